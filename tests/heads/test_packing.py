"""Logits at labels alone, and texts that share rows: the loss and every gradient are those of texts apart."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from eyegraft.errors import PartError
from eyegraft.heads._packing import pack
from eyegraft.objectives import cross_entropy
from eyegraft.objectives.cross_entropy import CrossEntropy
from eyegraft.types import IGNORE, Output, Tokens

FAMILIES = ["llama", "mistral", "qwen2", "phi", "gpt2"]
KINDS = ["prefix_lm", "cross_attention_lm"]
OPTIONS = {"prefix_lm": {}, "cross_attention_lm": {"num_layers": 2}}
PAIRS = [
    ("What is drawn here?", "a red square"),
    ("Name it:", "파란 동그라미"),
    ("What?", "a green triangle and more than that"),
    ("무엇이 그려져 있나요?", "a"),
    ("Name:", "a blue circle beside a red square"),
]


def made(model: str, kind: str = "prefix_lm", **options: Any) -> Any:
    torch.manual_seed(0)
    module = import_module(f"eyegraft.heads.{kind}")
    config = module.Config(model=model, **options)
    return module.build(config, in_dim=module.input_dim(config), num_outputs=0).eval()


def image_tokens(rows: int, count: int = 4, width: int = 32) -> Tokens:
    """Some rows lack some of them, one all."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, count, dtype=torch.bool)
    mask[1, 2] = mask[2, 0] = False
    mask[3 % rows] = False
    return Tokens(torch.randn(rows, count, width, generator=generator, requires_grad=True), mask)


def loss_of(head: Any, tokens: Tokens, batch: Any, *, learned: bool = True) -> Any:
    logits, labels = (head.learned if learned else head)(tokens, batch)
    return CrossEntropy()(Output({}, tokens, logits, labels), batch)


def gradients(head: Any, tokens: Tokens) -> dict[str, torch.Tensor]:
    found = {"tokens": tokens.values.grad, **{name: parameter.grad for name, parameter in head.named_parameters()}}
    tokens.values.grad = None
    head.zero_grad()
    return found


# ── the row ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_every_token_has_one_place(lengths: list[int]) -> None:
    mask = torch.arange(max(lengths)).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)
    values = torch.arange(mask.numel()).view(mask.shape)
    row = pack(mask)
    assert row.packed(values).tolist() == [values[mask].tolist()]
    assert row.positions.tolist() == [[place for length in lengths for place in range(length)]]
    if mask.any():
        assert torch.equal(row.apart(row.packed(values))[mask], values[mask])


# ── packed = unpacked ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_in_one_row_learn_what_they_learn_apart(folders: Any, family: str, kind: str) -> None:
    """Loss of every text, gradient of every weight and of every image token, all random weights live."""
    head = tiny.lively(made(folders.lm(family), kind, **OPTIONS[kind]))
    tokens, batch = image_tokens(5), tiny.text_batch(head.tokenizer, PAIRS)
    apart = loss_of(head, tokens, batch)
    apart.sums.sum().backward()
    expected = gradients(head, tokens)
    packed = loss_of(head, tokens, replace(batch, packed=True))
    packed.sums.sum().backward()
    torch.testing.assert_close(packed.sums, apart.sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(packed.counts, apart.counts)
    for name, gradient in gradients(head, tokens).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}")
        assert scale > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_and_no_image_reaches_its_neighbours(folders: Any, kind: str) -> None:
    head = tiny.lively(made(folders.lm(), kind, **OPTIONS[kind]))
    tokens, batch = image_tokens(5), replace(tiny.text_batch(head.tokenizer, PAIRS), packed=True)
    before = loss_of(head, tokens, batch).sums
    other = tiny.text_batch(head.tokenizer, [PAIRS[0], ("Name it:", "red red"), *PAIRS[2:]])
    words = loss_of(head, tokens, replace(other, packed=True)).sums
    torch.testing.assert_close(words[[0, 2, 3, 4]], before[[0, 2, 3, 4]], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(words[1], before[1])
    values = tokens.values.detach().clone()
    values[4] += 1
    image = loss_of(head, tokens.with_values(values), batch).sums
    torch.testing.assert_close(image[:4], before[:4], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(image[4], before[4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_a_prompt_learns_its_first_token_as_it_does_alone(folders: Any, kind: str) -> None:
    """With and without an image before it; never from the text before it in the row."""
    head = tiny.lively(made(folders.lm(), kind, **OPTIONS[kind]))
    batch = tiny.text_batch(head.tokenizer, PAIRS)
    batch = replace(batch, labels=torch.where(batch.text_mask, batch.input_ids, IGNORE))
    tokens = image_tokens(5)
    dense, apart, packed = (
        loss_of(head, tokens, given, learned=learned)
        for given, learned in ((batch, False), (batch, True), (replace(batch, packed=True), True))
    )
    for found in (apart, packed):
        assert torch.equal(found.counts, dense.counts)
        torch.testing.assert_close(found.sums, dense.sums, rtol=1e-5, atol=1e-4)


@pytest.mark.packaged
@pytest.mark.parametrize("kind", KINDS)
def test_real_weights_learn_the_same_packed(kind: str) -> None:
    """SmolLM2 with image tokens, and adapters that train."""
    from peft import LoraConfig, get_peft_model

    head = made("packaged:smollm2-135m-instruct", kind)
    head.backbone = get_peft_model(head.backbone, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    head.eval()
    tokens, batch = image_tokens(5, width=576), tiny.text_batch(head.tokenizer, PAIRS)
    apart = loss_of(head, tokens, batch)
    apart.sums.sum().backward()
    expected = gradients(head, tokens)
    packed = loss_of(head, tokens, replace(batch, packed=True))
    packed.sums.sum().backward()
    torch.testing.assert_close(packed.sums, apart.sums, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(head, tokens).items():
        if gradient is not None:
            size = float(expected[name].norm())
            assert float((gradient - expected[name]).norm()) <= 1e-4 * size, name


# ── families ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def family(folder: Any, config: Any) -> str:
    from transformers import AutoModelForCausalLM

    made = tiny.tokenizer(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(len(made))).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_capped_after_the_output_layer_stay_capped(tmp_path: Any, kind: str) -> None:
    """Gemma 2: the output layer alone would give other logits. Packed and apart it is the loss of all logits."""
    from transformers import Gemma2Config

    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    head = made(
        family(tmp_path, lambda size: Gemma2Config(vocab_size=size, head_dim=8, final_logit_softcapping=0.5, sliding_window=8, **wide)),
        kind,
        **OPTIONS[kind],
    )
    tokens, batch = image_tokens(5), tiny.text_batch(head.tokenizer, PAIRS)
    dense, apart, packed = (
        loss_of(head, tokens, given, learned=learned)
        for given, learned in ((batch, False), (batch, True), (replace(batch, packed=True), True))
    )
    torch.testing.assert_close(apart.sums, dense.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.sums, dense.sums, rtol=1e-5, atol=1e-4)
    assert float(head.learned(tokens, batch)[0].all().detach().abs().max()) <= 0.5


def test_a_family_that_cannot_keep_texts_apart_is_refused(tmp_path: Any) -> None:
    from transformers import BloomConfig

    head = made(family(tmp_path, lambda size: BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4)))
    tokens, batch = image_tokens(5), tiny.text_batch(head.tokenizer, PAIRS)
    assert loss_of(head, tokens, batch).sums.isfinite().all()
    with pytest.raises(PartError, match=r"train\.packing: in a BloomForCausalLM texts that share a row would see each other") as caught:
        loss_of(head, tokens, replace(batch, packed=True))
    assert caught.value.fix == "set train.packing=null"


def test_finding_out_about_a_family_disturbs_nothing(folders: Any) -> None:
    """GPT-2 has dropout: the first step's draws, and every mode, are as if nothing had been tried."""
    head = made(folders.lm("gpt2"), "cross_attention_lm", **OPTIONS["cross_attention_lm"])
    head.train()
    head.backbone.transformer.h[0].eval()
    modes = {name: module.training for name, module in head.named_modules()}
    tokens, batch = image_tokens(5), replace(tiny.text_batch(head.tokenizer, PAIRS), packed=True)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(loss_of(head, tokens, batch).sums)
    assert torch.equal(*found)
    assert {name: module.training for name, module in head.named_modules()} == modes
    torch.manual_seed(4)
    assert not torch.equal(loss_of(head, tokens, batch).sums, found[0])


def test_an_output_layer_that_trains_gets_all_its_gradient(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters on it, and weights that it shares with the embeddings."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    for adapted in (True, False):
        head = tiny.lively(made(folders.lm("phi" if adapted else "gpt2")))
        assert adapted or head.backbone.lm_head.weight is head.backbone.transformer.wte.weight
        if adapted:
            head.backbone = get_peft_model(head.backbone, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
            head.eval()
        tokens, batch = image_tokens(5), tiny.text_batch(head.tokenizer, PAIRS)
        loss_of(head, tokens, batch, learned=False).sums.sum().backward()
        expected = gradients(head, tokens)
        loss_of(head, tokens, batch).sums.sum().backward()
        for name, gradient in gradients(head, tokens).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
            assert gradient is None or not adapted or "lora" not in name or gradient.any()
