"""The memory budget: what it counts is what is kept, and neither weights nor data need be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eyegraft.composition import load_recipe
from eyegraft.config import Lora
from eyegraft.pretrained import ready
from eyegraft.training.budget import FOUR_BITS, GIB, activations, budget_of
from eyegraft.tuning import add_adapter

MISTRAL = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


@pytest.fixture
def mistral(tmp_path: Path) -> str:
    """Mistral-7B without its weights."""
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL), encoding="utf-8")
    return str(tmp_path)


def gib(line: str, what: str) -> float:
    return float(line.split(f"{what} ")[1].split(" ")[0])


def test_reports_with_mistral_fit_24_gib(mistral: str) -> None:
    lines = list(budget_of(load_recipe("weather_mtl", f"head.model={mistral}")))
    assert [line.split(",")[0] for line in lines] == ["memory budget of align", "memory budget of report"]
    line = lines[-1]
    language, prefix, perceiver = 7_241_732_096, 768 * 16384 + 16384 * 16385, 131e6
    lora = 32 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert gib(line, "weights") == pytest.approx((2 * language + 4 * (prefix + perceiver + lora)) / GIB, rel=0.01)
    assert gib(line, "Adam") == pytest.approx(12 * (prefix + lora + 0.17 * perceiver) / GIB, rel=0.02)
    assert "fits a GPU of 24 GB" in line


def test_a_model_of_which_nothing_is_here_is_reckoned_by_what_the_recipe_ships(mistral: str) -> None:
    assert list(budget_of(load_recipe("weather_mtl"))) == list(budget_of(load_recipe("weather_mtl", f"head.model={mistral}")))
    (other,) = budget_of(load_recipe("weather_mtl", "head.model=mistralai/Another-70B"))
    assert other.startswith("memory budget: not known"), "another model has another shape"


def test_four_bits_and_another_batch(mistral: str) -> None:
    words = ("weather_mtl", f"head.model={mistral}", "head.quantize=nf4")
    one, many = (list(budget_of(load_recipe(*words, f"train.batch_size={size}")))[-1] for size in (1, 8))
    whole = list(budget_of(load_recipe(*words[:2])))[-1]
    linear = 7_241_732_096 - 2 * 32000 * 4096
    assert gib(whole, "weights") - gib(one, "weights") == pytest.approx(linear * (2 - FOUR_BITS) / GIB, rel=0.02)
    assert gib(many, "activations") == pytest.approx(8 * gib(one, "activations"), rel=0.03)


def test_a_configuration_that_is_not_there_is_said(tmp_path: Path) -> None:
    (line,) = budget_of(load_recipe("weather_mtl", f"head.model={tmp_path}"))
    assert line.startswith("memory budget: not known, head.model: ")


def test_nothing_is_said_where_no_language_model_is() -> None:
    assert not list(budget_of(load_recipe("ta_small")))


class Head(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        ready()
        from transformers import AutoModelForCausalLM, MistralConfig

        small = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 50}
        self.backbone: Any = AutoModelForCausalLM.from_config(MistralConfig(**small, num_hidden_layers=4), dtype=dtype)


@pytest.mark.parametrize(("half", "targets"), [(True, "q_proj v_proj"), (False, "q_proj k_proj v_proj o_proj")])
def test_what_is_counted_is_what_the_backward_keeps(half: bool, targets: str) -> None:
    """Bytes that the layers keep for the backward, measured. Adapters may share what they keep; they are counted as if none did."""
    head = Head(torch.bfloat16 if half else torch.float32)
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    add_adapter("head", head, Lora(rank=2, target_modules=tuple(targets.split())))
    assert 0.95 < activations(head, 64, half) / _kept(head.backbone, 64, half) < 1.25


def _kept(backbone: Any, tokens: int, half: bool) -> int:
    own, kept = {p.untyped_storage()._cdata for p in backbone.parameters()}, dict[int, int]()
    values = torch.randn(1, tokens, backbone.config.hidden_size, dtype=backbone.dtype, requires_grad=True)

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    cast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with cast, torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        alive = backbone(inputs_embeds=values, use_cache=False, logits_to_keep=1)
    assert alive is not None
    return sum(kept.values())
