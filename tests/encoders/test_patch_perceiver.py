"""The patch perceiver: routing and balance against plain loops, whose word counts for a class, what is trained apart, and weights from files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

import maps
from eyegraft.encoders import _map_classifier, patch_perceiver
from eyegraft.encoders._perceiver_layers import Mixture, balance
from eyegraft.errors import PartError
from eyegraft.types import UNKNOWN, UNTOLD

K = len(maps.CLASSES)


def pixels(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return maps.classifier_weights(tmp_path_factory.mktemp("classifier"))


# ── the mixture ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def mixture(experts: int = 5, top_k: int = 2) -> Mixture:
    torch.manual_seed(0)
    made = Mixture(6, experts, top_k)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def mixed_by_hand(made: Mixture, values: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token, expert by expert."""
    out, losses = torch.zeros_like(values), []
    for picture in range(len(values)):
        share, mean = [0.0] * made.num_experts, torch.zeros(made.num_experts)
        for place in range(values.shape[1]):
            token = values[picture, place]
            odds = torch.softmax(made.router(token), 0)
            best = sorted(range(made.num_experts), key=lambda expert: -float(odds[expert]))[: made.top_k]
            total = sum(odds[expert] for expert in best) if made.top_k > 1 else 1.0
            for expert in best:
                inner = nn.functional.gelu(token @ made.w_in[expert] + made.b_in[expert])
                out[picture, place] += odds[expert] / total * (inner @ made.w_out[expert] + made.b_out[expert])
                share[expert] += 1 / (values.shape[1] * made.top_k)
            mean = mean + odds / values.shape[1]
        losses.append(made.num_experts * sum(share[expert] * mean[expert] for expert in range(made.num_experts)))
    return out, torch.stack([torch.as_tensor(loss) for loss in losses])


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_routing_and_balance_are_those_of_a_plain_loop(top_k: int) -> None:
    made, values = mixture(top_k=top_k), torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))
    found = made(values)
    with torch.no_grad():
        expected, losses = mixed_by_hand(made, values)
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(found.balance, losses)


def test_an_expert_that_nobody_chose_costs_nothing() -> None:
    made = mixture()
    with torch.no_grad():
        made.router.bias[3] = -1e4
    found = made(torch.randn(2, 7, 6))
    found.values.sum().backward()
    assert found.values.isfinite().all()
    assert made.w_in.grad is not None
    assert not made.w_in.grad[3].any()
    assert made.w_in.grad[[0, 1, 2, 4]].flatten(1).any(1).all()


def test_balance_is_one_at_its_best_and_the_number_of_experts_at_its_worst() -> None:
    even = torch.full((1, 4, 4), 0.25)
    assert balance(even, torch.arange(4).view(1, 4, 1)).item() == pytest.approx(1)
    one = nn.functional.one_hot(torch.zeros(1, 4, dtype=torch.int64), 4).float()
    assert balance(one, torch.zeros(1, 4, 1, dtype=torch.int64)).item() == pytest.approx(4)


def test_the_balance_alone_brings_work_to_all_experts() -> None:
    made, values = mixture(4), torch.randn(8, 32, 6)
    with torch.no_grad():
        made.router.bias[0] += 8

    def spread() -> float:
        odds = made.router(values).softmax(-1)
        return float(nn.functional.one_hot(odds.topk(2).indices, 4).float().mean((0, 1, 2)).max())

    before, optimizer = spread(), torch.optim.Adam(made.router.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        made(values).balance.mean().backward()
        optimizer.step()
    assert before > 0.4
    assert spread() < 0.33


# ── what is given ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def classes_seen(encoder: Any, condition: Tensor | None) -> list[int]:
    """Which type each map was read with, by the class token."""
    given = {"pixels": pixels(4)} if condition is None else {"pixels": pixels(4), "condition": condition}
    with torch.no_grad():
        first = encoder(given).values[:, 0]
    types = encoder.backbone.types.weight
    return [int((types - row).abs().sum(1).argmin()) for row in first]


def test_whose_word_counts(classifier: str) -> None:
    given, guessing, alone = (
        maps.encoder(classifier=classifier),
        maps.encoder(classifier=classifier, condition="predicted"),
        maps.encoder(),
    )
    with torch.no_grad():
        guess = guessing.classifier(pixels(4)).argmax(1).tolist()
    told = torch.tensor([2, 0, UNKNOWN, UNTOLD])
    assert classes_seen(given, told) == [2, 0, guess[2], K]
    assert classes_seen(guessing, told) == [*guess[:3], K]
    assert classes_seen(alone, told) == [2, 0, K, K]
    assert (classes_seen(given, None), classes_seen(alone, None)) == (guess, [K] * 4)


def test_the_classifier_is_asked_only_where_a_class_hangs_on_it(classifier: str) -> None:
    encoder = maps.encoder(classifier=classifier)
    with torch.no_grad():
        told, some = (encoder({"pixels": pixels(2), "condition": torch.tensor(given)}) for given in ([1, UNTOLD], [1, UNKNOWN]))
        assert told.condition is None
        torch.testing.assert_close(some.condition, encoder.classifier(pixels(2)))


def test_the_class_changes_what_is_read() -> None:
    encoder = maps.encoder()
    with torch.no_grad():
        one, two = (encoder({"pixels": pixels(1), "condition": torch.tensor([number])}).values for number in (0, 1))
    assert not torch.isclose(one, two).all(-1).any(), "no token is the same"


def test_the_classifier_sees_its_own_scaling(classifier: str) -> None:
    """The same picture in another encoder's scaling and in its own is the same to it."""
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    made = _map_classifier.build(_map_classifier.Config(model="test_efficientnet", weights=classifier), K, mean, std).eval()
    own, picture = made.backbone.pretrained_cfg, torch.rand(2, 3, 32, 32)
    given, wanted = (
        (picture - torch.tensor(middle).view(3, 1, 1)) / torch.tensor(spread).view(3, 1, 1)
        for middle, spread in ((mean, std), (own["mean"], own["std"]))
    )
    with torch.no_grad():
        torch.testing.assert_close(made(given), made.backbone(wanted), rtol=1e-4, atol=1e-4)
        assert not torch.isclose(made.backbone(given), made.backbone(wanted)).any()


def test_what_is_masked_reaches_nothing() -> None:
    encoder = maps.encoder()
    mask = torch.ones(3, 3, 16, 16, dtype=torch.bool)
    mask[:, :, 4:8, :8] = False  # two patches of 4 x 4
    mask[1, :, 12:, 15] = False  # a part of one
    other = torch.where(mask, pixels(), 50.0)
    with torch.no_grad():
        one, two = (encoder({"pixels": given, "mask": mask}) for given in (pixels(), other))
        blank = encoder({"pixels": torch.where(mask, pixels(), 0.0)})
    assert torch.equal(one.values, two.values)
    assert not torch.isclose(one.values[:, 1:], blank.values[:, 1:]).all(-1).any(), (
        "a patch of the mean colour is read, a masked one is not"
    )
    with torch.no_grad():
        assert encoder({"pixels": pixels(), "mask": torch.zeros_like(mask)}).values.isfinite().all()


# ── what trains ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_and_blocks(classifier: str) -> None:
    encoder = maps.encoder(classifier=classifier, depth=3)
    parts = encoder.parts()
    assert list(parts) == ["vision_encoder", "condition_classifier"]
    ids = [{id(parameter) for parameter in part.parameters()} for part in parts.values()]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {id(parameter) for parameter in encoder.parameters()}
    for part, its in zip(parts.values(), ids, strict=True):
        assert {id(parameter) for block in part.blocks for parameter in block} == its
    last = {name for name, parameter in encoder.named_parameters() if any(parameter is other for other in encoder.blocks[-1])}
    assert last == {
        name for name, _ in encoder.named_parameters() if name.startswith(("perceiver.backbone.blocks.2.", "perceiver.backbone.norm."))
    }
    assert len(encoder.blocks) == 4
    assert [tuple(parameter.shape) for parameter in parts["condition_classifier"].new_parameters] == [(K, 256), (K,)], (
        "a head for other classes"
    )
    assert list(maps.encoder().parts()) == ["vision_encoder"]


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def saved(encoder: Any, folder: Path, prefix: str = "", *, only: str = "", **metadata: str) -> str:
    folder.mkdir(exist_ok=True)
    tensors = {f"{prefix}{name}": tensor.contiguous() for name, tensor in encoder.state_dict().items() if name.startswith(only)}
    save_file(tensors, folder / "model.safetensors", metadata=metadata or None)
    return str(folder)


@pytest.mark.parametrize("prefix", ["", "encoders.image."])
def test_weights_of_a_folder_or_a_checkpoint(tmp_path: Path, classifier: str, prefix: str) -> None:
    first = maps.encoder(seed=1, classifier=classifier)
    second = maps.encoder(seed=2, classifier=classifier, weights=saved(first, tmp_path / "whole", prefix))
    with torch.no_grad():
        one, two = first(pixels()), second(pixels())
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.condition, two.condition)
    assert not second.classifier.new_parameters, "its head was trained"


def test_one_part_alone(tmp_path: Path, classifier: str) -> None:
    first = maps.encoder(seed=1, classifier=classifier)
    perceiver = maps.encoder(seed=2, classifier=classifier, weights=saved(first, tmp_path / "p", only="perceiver."))
    told = {"pixels": pixels(), "condition": torch.tensor([0, 1, 2])}
    with torch.no_grad():
        assert torch.equal(first(told).values, perceiver(told).values)
        assert not torch.equal(first.classifier(pixels()), perceiver.classifier(pixels()))
    assert perceiver.classifier.new_parameters
    other = maps.encoder(seed=2, classifier=classifier, weights=saved(first, tmp_path / "c", only="classifier."))
    with torch.no_grad():
        assert not torch.equal(first(told).values, other(told).values)
        assert torch.equal(first.classifier(pixels()), other.classifier(pixels()))
    assert isinstance(maps.encoder(weights=saved(first, tmp_path / "all")), patch_perceiver.PatchPerceiver), "a classifier may be left"


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    first = maps.encoder()
    place = saved(first, tmp_path / "a")
    with pytest.raises(PartError, match=r"of another shape: perceiver.backbone.positions(.|\n)*sizes of the weights"):
        maps.encoder(weights=place, image_size=32)
    with pytest.raises(PartError, match=r"missing: perceiver.backbone.blocks.2"):
        maps.encoder(weights=place, depth=3)
    with pytest.raises(PartError, match="no file at"):
        maps.encoder(weights=str(tmp_path))
    with pytest.raises(PartError, match="made for classes x, y, z"):
        maps.encoder(weights=saved(first, tmp_path / "b", classes=json.dumps(["x", "y", "z"])))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 18}, "patch_size=4 does not divide image_size=18"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=8"),
        ({"top_k": 9}, "top_k=9 of num_experts=3"),
        ({"classes": ["a", "a"]}, "names one twice"),
        ({"condition": "predicted"}, "condition=predicted without a classifier"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        maps.encoder(**options)


def test_random_weights_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "eyegraft"):
        patch_perceiver.build(patch_perceiver.Config(**maps.SMALL, classifier={"model": "test_efficientnet", "pretrained": False}))
    assert "the perceiver starts from random weights" in caplog.text
    assert "batch norms that never saw a picture" in caplog.text


def test_the_document_s_size() -> None:
    """Width, tokens and depth of the earlier system, on the meta device."""
    with torch.device("meta"):
        encoder = patch_perceiver.build(patch_perceiver.Config(classifier=None))
    trunk = encoder.backbone
    assert (encoder.token_dim, encoder.cells, len(trunk.positions), len(trunk.latents)) == (768, (14, 14), 196, 196)
    assert trunk.types.weight.shape == (21, 768), "20 classes, and one that stands for none"
    assert (len(trunk.blocks), trunk.blocks[0].mixture.w_in.shape, trunk.blocks[0].mixture.top_k) == (6, (8, 768, 1536), 2)
    assert len(patch_perceiver.WEATHERQA) == 20
    assert list(patch_perceiver.WEATHERQA) == sorted(patch_perceiver.WEATHERQA)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(130.9, abs=0.1)
