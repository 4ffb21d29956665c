"""Fusions for labels: the gate follows what is informative, and a missing modality is a case that is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eyegraft.errors import PartError
from eyegraft.fusion import concat, gated
from eyegraft.types import Tokens

DIMS = {"image": 12, "text": 6}


def one(values: torch.Tensor, present: torch.Tensor | None = None) -> Tokens:
    mask = torch.ones(len(values), dtype=torch.bool) if present is None else present
    return Tokens(values.unsqueeze(1), mask.unsqueeze(1))


def both(count: int, seed: int = 0, text_present: torch.Tensor | None = None) -> dict[str, Tokens]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(count, dim, generator=generator) for dim in DIMS.values())
    return {"image": one(image), "text": one(text, text_present)}


def test_the_gate_is_the_formula() -> None:
    """h_v = tanh(W_v v), h_t = tanh(W_t t), g = sigmoid(W_g [v; t]), out = norm(g h_v + (1 - g) h_t)."""
    torch.manual_seed(0)
    fusion = gated.build(gated.Config(dim=5, dropout=0, normalize=False), dims=DIMS).eval()
    tokens = both(4)
    v, t = tokens["image"].values[:, 0], tokens["text"].values[:, 0]
    g = torch.sigmoid(torch.cat([v, t], 1) @ fusion.gate.weight.T + 0.5)
    mixed = g * torch.tanh(v @ fusion.first.weight.T + fusion.first.bias) + (1 - g) * torch.tanh(
        t @ fusion.second.weight.T + fusion.second.bias
    )
    expected = torch.nn.functional.layer_norm(mixed, (5,), fusion.norm.weight, fusion.norm.bias)
    out = fusion(tokens)
    torch.testing.assert_close(out.values[:, 0], expected)
    torch.testing.assert_close(out.weights["image"], g.mean(1))
    torch.testing.assert_close(out.weights["image"] + out.weights["text"], torch.ones(4))


def test_the_scale_of_an_encoder_decides_nothing() -> None:
    """A pooled CNN's features may be 17 long where sentence vectors are 1: as published, the gate would hear the larger alone."""
    torch.manual_seed(0)
    fusion, tokens = gated.build(gated.Config(dim=5, dropout=0), dims=DIMS).eval(), both(4)
    louder = {**tokens, "image": one(tokens["image"].values[:, 0] * 17)}
    torch.testing.assert_close(fusion(louder).values, fusion(tokens).values, rtol=1e-3, atol=1e-3)
    plain = gated.build(gated.Config(dim=5, dropout=0, normalize=False), dims=DIMS).eval()
    assert (plain(louder).values - plain(tokens).values).abs().max() > 0.1


def test_the_gate_follows_the_informative_modality() -> None:
    """In every row one modality carries the label and the other is noise; the last number of each says which."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    patterns = {name: torch.randn(dim, generator=generator).sign() for name, dim in DIMS.items()}

    def drawn(count: int) -> tuple[dict[str, Tokens], torch.Tensor, torch.Tensor]:
        label = torch.randint(0, 2, (count,), generator=generator).float()
        by_image = torch.rand(count, generator=generator) < 0.5
        vectors = {}
        for name, informative in (("image", by_image), ("text", ~by_image)):
            values = torch.randn(count, DIMS[name], generator=generator)
            signal = (2 * label - 1).unsqueeze(1) * patterns[name] * 1.5
            values = torch.where(informative.unsqueeze(1), values * 0.3 + signal, values * 1.5)
            values[:, -1] = informative.float() * 2 - 1
            vectors[name] = one(values)
        return vectors, label, by_image

    fusion = gated.build(gated.Config(dim=16, dropout=0), dims=DIMS)
    head = torch.nn.Linear(16, 1)
    optimizer = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(300):
        tokens, label, _ = drawn(64)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(fusion(tokens).values[:, 0])[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, label, by_image = drawn(500)
    with torch.no_grad():
        out = fusion.eval()(tokens)
        right = ((head(out.values[:, 0])[:, 0] > 0) == label.bool()).float().mean()
    assert right > 0.95
    share = out.weights["image"]
    assert share[by_image].mean() - share[~by_image].mean() > 0.2
    assert (share[by_image] > share[~by_image].mean()).float().mean() > 0.9


@pytest.mark.parametrize("module", [gated, concat])
def test_a_missing_text_is_one_learned_vector(module: Any) -> None:
    """Whatever stands in its place changes nothing, and the vector gets a gradient."""
    torch.manual_seed(0)
    fusion = module.build(module.Config(), dims=DIMS).eval()
    fusion.modalities.absent["text"].data.normal_()
    present = torch.tensor([True, False, False])
    tokens = both(3, text_present=present)
    out = fusion(tokens)
    noisy = {**tokens, "text": one(torch.where(present.unsqueeze(1), tokens["text"].values[:, 0], torch.full((3, 6), 99.0)), present)}
    torch.testing.assert_close(fusion(noisy).values, out.values)
    as_if = {**tokens, "text": one(torch.where(present.unsqueeze(1), tokens["text"].values[:, 0], fusion.modalities.absent["text"]))}
    torch.testing.assert_close(fusion(as_if).values, out.values)
    (out.values * torch.randn(out.values.shape)).sum().backward()
    assert fusion.modalities.absent["text"].grad.any()
    assert out.mask.all(), "what is fused is always there"


def test_dropout_hides_a_modality_in_training_alone_and_never_all() -> None:
    torch.manual_seed(0)
    fusion = gated.build(gated.Config(dim=4, dropout=0, modality_dropout={"image": 0.5, "text": 0.9}), dims=DIMS)
    there = {"image": torch.ones(4000, dtype=torch.bool), "text": torch.arange(4000) % 2 == 0}
    kept = fusion.modalities._hidden(there)
    assert not (kept["text"] & ~there["text"]).any(), "what is missing does not come back"
    assert (kept["image"] | kept["text"]).all()
    assert kept["image"][~there["text"]].all(), "a row keeps the only thing that it has"
    assert kept["text"][there["text"]].float().mean() == pytest.approx(0.1 + 0.9 * 0.5, abs=0.05)  # both drawn to be hidden: both stay
    tokens = both(50)
    assert not torch.equal(fusion.train()(tokens).values, fusion(tokens).values)
    assert torch.equal(fusion.eval()(tokens).values, fusion(tokens).values)


def test_dropout_hides_further_columns_too() -> None:
    torch.manual_seed(0)
    fusion = concat.build(concat.Config(modality_dropout={"context": 0.5}), dims={"image": 12, "context": 6})
    there = {name: torch.ones(4000, dtype=torch.bool) for name in ("image", "context")}
    kept = fusion.modalities._hidden(there)
    assert kept["image"].all()
    assert kept["context"].float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("module", "width"), [(gated, 512), (concat, 12)])
def test_one_modality_alone_is_scaled_to_unit_length(module: Any, width: int) -> None:
    fusion = module.build(module.Config(), dims={"image": 12}).eval()
    out = fusion({"image": both(5)["image"]})
    assert fusion.out_dim == out.values.shape[2] == width
    torch.testing.assert_close(out.values[:, 0].norm(dim=-1), torch.ones(5))


def test_token_sequences_are_refused_with_the_way_out() -> None:
    fusion = concat.build(concat.Config(), dims=DIMS)
    sequence = Tokens(torch.zeros(2, 3, 12), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(PartError, match=r"3 image tokens(.|\n)*pooling=mean, or pooling=attention with pooling.num_queries=1"):
        fusion({"image": sequence, "text": both(2)["text"]})
    with pytest.raises(PartError, match="two modalities"):
        gated.build(gated.Config(), dims={"image": 3, "text": 4, "sound": 5})
