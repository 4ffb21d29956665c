"""Assembly: measured widths, parts that hold every parameter once, and one forward for them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from eyegraft.answering import num_tokens
from eyegraft.errors import PartError
from eyegraft.types import IGNORE

Make = Callable[..., Any]
PAIRS = [("What?", "a red square"), ("Name it:", "파란 동그라미")]
CHAINS = [
    ({"connector": {"kind": "mlp"}}, 16),
    ({"connector": {"kind": "prefix", "num_tokens": 3}, "pooling": {"kind": "mean"}}, 3),
    ({"connector": {"kind": "mlp"}, "pooling": {"kind": "attention", "num_queries": 5}}, 5),
    ({"connector": {"kind": "mlp"}, "pooling": {"kind": "cls"}, "vision": "clip"}, 1),
    ({"connector": {"kind": "mlp"}, "vision": "clip"}, 17),
    ({"connector": {"kind": "mlp"}, "vision": "resnet", "lm": "gpt2"}, 1),
    (
        {
            "connector": {"kind": "prefix", "num_tokens": 2},
            "vision_encoder": {"kind": "timm", "model": "test_convnext", "pretrained": False},
        },
        50,
    ),
]


def batch_for(model: Any, *, seed: int = 0) -> Any:
    pixels = torch.randn(2, 3, *model.encoders["image"].spec.size, generator=torch.Generator().manual_seed(seed))
    return tiny.text_batch(model.head.tokenizer, PAIRS, pixels)


@pytest.mark.parametrize(("changes", "count"), CHAINS)
def test_one_forward_for_every_chain(make_graft: Make, changes: dict[str, Any], count: int) -> None:
    _, model = make_graft(**changes)
    model.eval()
    batch = batch_for(model)
    output = model(batch)
    assert output.logits.all().shape[:1] == output.labels.shape == output.logits.rows.shape
    assert len(output.labels) == (batch.labels != IGNORE).sum()
    assert num_tokens(model) == count
    assert output.encoded["image"].values.shape[-1] == model.encoders["image"].token_dim


@pytest.mark.parametrize(("changes", "count"), CHAINS)
def test_parts_hold_every_parameter_once(make_graft: Make, changes: dict[str, Any], count: int) -> None:
    _, model = make_graft(**changes)
    ids = [id(parameter) for part in model.parts().values() for parameter in part.parameters()]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in model.parameters()}
    assert ("pooling" in model.parts()) == ("pooling" in changes)


def test_the_answer_hangs_on_the_image(make_graft: Make) -> None:
    _, model = make_graft()
    tiny.lively(model.eval(), scale=8)
    with torch.no_grad():
        one, other = (model(batch_for(model, seed=seed)).logits.all() for seed in (1, 2))
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_same_seed_gives_the_same_new_parts(plain_recipe: Make) -> None:
    from eyegraft.composition import validate
    from eyegraft.training.stages import build_model

    models = [build_model(validate(plain_recipe(seed=seed))) for seed in (4, 4, 5)]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pooling": {"kind": "attention", "num_heads": 5}}, "does not divide"),
        ({"pooling": {"kind": "cls"}, "vision": "siglip"}, "no class token"),
    ],
)
def test_parts_that_do_not_fit_say_why(make_graft: Make, changes: dict[str, Any], match: str) -> None:
    def used() -> None:
        _, model = make_graft(**changes)
        model(batch_for(model))

    with pytest.raises(PartError, match=match) as caught:
        used()
    assert caught.value.fix


def test_a_connector_that_keeps_the_width_before_a_wider_model(make_graft: Make, folders: Any) -> None:
    with pytest.raises(PartError, match=r"tokens of width \d+ before a language model of width 32"):
        make_graft(vision_encoder={"kind": "timm", "model": "test_resnet", "pretrained": False}, connector={"kind": "mean"})
