"""Assembly: measured widths, parts that hold every parameter once, and one forward for them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from eyegraft.answering import num_tokens
from eyegraft.config import Part
from eyegraft.errors import PartError, RecipeError
from eyegraft.registry import configured
from eyegraft.types import IGNORE, Tokens, moved_to, taken_from
from eyegraft.views import Views

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
    from eyegraft.training.building import build_model

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


# ── panoramas ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

VIEWS = {"strategy": "anyres_e2p", "fov_degrees": 120, "overlap": 0}  # the whole picture and three tiles
EYES: dict[str, dict[str, Any]] = {
    "grid": {"vision": "siglip"},
    "class-token": {"vision": "clip"},
    "class-token-timm": {"vision_encoder": {"kind": "timm", "model": "test_vit", "pretrained": False}},
    "convolution": {"vision_encoder": {"kind": "timm", "model": "test_resnet", "pretrained": False}},
    "naflex": {"vision": "naflex"},
}


def views_for(model: Any, *, seed: int = 0) -> Any:
    """[B, V, …] of two samples and four views."""
    generator = torch.Generator().manual_seed(seed)
    spec = model.encoders["image"].spec
    if spec.patch_size is None:
        return torch.randn(2, 4, 3, *spec.size, generator=generator)
    real = torch.tensor([[8, 16, 16, 16], [8, 12, 16, 16]])
    grid = torch.stack([real // 4, torch.full_like(real, 4)], dim=-1)
    pixels = torch.randn(2, 4, spec.max_patches, spec.patch_size**2 * 3, generator=generator)
    return {"pixels": pixels, "mask": torch.arange(spec.max_patches) < real[..., None], "grid": grid}


@pytest.mark.parametrize("eye", EYES)
@torch.no_grad()
def test_every_view_is_seen_as_if_it_were_alone(make_graft: Make, eye: str) -> None:
    _, model = make_graft(views=VIEWS, **EYES[eye])
    encoder, given = model.eval().encoders["image"], views_for(model)
    tokens = model.encode(tiny.text_batch(model.head.tokenizer, PAIRS, given))["image"]
    assert tokens.num_views == 4
    for sample in range(2):
        for view in range(4):
            alone = encoder(
                {key: item[sample, view][None] for key, item in given.items()} if eye == "naflex" else given[sample, view][None]
            )
            there = tokens.values[sample].unflatten(0, (4, -1))[view]
            mask = tokens.mask[sample].unflatten(0, (4, -1))[view]
            assert torch.equal(mask, alone.mask[0])
            torch.testing.assert_close(there[mask], alone.values[0][mask], atol=1e-5, rtol=1e-4)
            assert (tokens.grid, tokens.num_prefix) == (alone.grid, alone.num_prefix)
    assert tokens.directions is not None
    places = tokens.directions.unflatten(0, (4, -1))
    for view, seen in enumerate(Views.model_validate(VIEWS).views):
        middle = torch.from_numpy(seen.cells(1, 1)).float().flatten()
        torch.testing.assert_close(places[view, :, 3:6], middle.expand(places.shape[1], 3))
        if tokens.grid is not None:
            cells = torch.from_numpy(seen.cells(*tokens.grid)).float().flatten(0, 1)
            torch.testing.assert_close(places[view, tokens.num_prefix :, :3], cells)
        torch.testing.assert_close(places[view, : tokens.num_prefix, :3], middle.expand(tokens.num_prefix, 3))


VIEW_CHAINS: list[tuple[dict[str, Any], int]] = [
    ({"connector": {"kind": "mlp"}}, 64),
    ({"connector": {"kind": "linear"}, "pooling": {"kind": "avg"}}, 4),
    ({"connector": {"kind": "prefix", "num_tokens": 2}, "pooling": {"kind": "avg"}}, 8),
    ({"connector": {"kind": "mlp"}, "pooling": {"kind": "spatial_pool", "size": [2, 3]}}, 24),
    ({"connector": {"kind": "mlp"}, "pooling": {"kind": "cls"}, "vision": "clip"}, 4),
    ({"connector": {"kind": "spatial_pool", "size": [1, 2]}, "vision": "clip"}, 8),
    ({"connector": {"kind": "avg"}}, 4),
    ({"connector": {"kind": "perceiver", "num_latents": 5, "depth": 2, "num_heads": 4}}, 5),
    ({"connector": {"kind": "perceiver", "num_latents": 2, "depth": 1, "num_heads": 4, "per_view": True}}, 8),
    ({"connector": {"kind": "qformer", "num_queries": 6, "dim": 8, "depth": 2, "num_heads": 2}, "vision": "naflex"}, 6),
    ({"connector": {"kind": "identity"}}, 64),
    ({"connector": {"kind": "mlp"}, "pooling": {"kind": "mean"}, "views": {**VIEWS, "encode_positions": False}}, 1),
    ({"connector": {"kind": "mlp"}, "pooling": {"kind": "attention"}, "views": {**VIEWS, "encode_positions": False}}, 1),
]


@pytest.mark.parametrize(("changes", "count"), VIEW_CHAINS)
def test_all_views_reach_the_answer_and_all_new_parts_learn(make_graft: Make, changes: dict[str, Any], count: int) -> None:
    _, model = make_graft(**{"views": VIEWS, **changes})
    tiny.lively(model.eval(), scale=2)
    given = views_for(model)
    if not isinstance(given, dict):
        given.requires_grad_(True)
    output = model(tiny.text_batch(model.head.tokenizer, PAIRS, given))
    assert output.tokens.values.shape[1] == count
    output.logits.all().square().mean().backward()
    if not isinstance(given, dict):
        assert given.grad is not None
        assert given.grad.flatten(2).any(2).all(), "a view was not seen"
    new = dict(model.connectors.named_parameters())
    assert ("image.view_encoding.layer.weight" in new) == ("views" not in changes)
    without = [name for name, parameter in new.items() if parameter.grad is None or not parameter.grad.any()]
    assert not without, f"no gradient: {without}"


def test_a_pooling_that_loses_places_before_their_encoding(make_graft: Make) -> None:
    _, model = make_graft(views=VIEWS, pooling={"kind": "mean"})
    with pytest.raises(PartError, match="no longer say where they look") as caught:
        model(tiny.text_batch(model.head.tokenizer, PAIRS, views_for(model)))
    assert "pooling=avg" in caught.value.fix


def test_views_of_what_is_no_picture(make_graft: Make) -> None:
    bands = [{"name": name, "wavelength_um": length, "unit": "K"} for name, length in {"a": 3.9, "b": 10.8}.items()]
    sensor = {"name": "two", "bands": bands, "gsd_m": 2000.0, "missing": "mask"}
    with pytest.raises(RecipeError, match="reads no pictures"):
        make_graft(views=VIEWS, vision_encoder={"kind": "patch_cnn", "sensor": sensor})


def test_views_of_a_size_that_the_encoder_does_not_read(make_graft: Make) -> None:
    for eye in ("grid", "class-token"):
        with pytest.raises(RecipeError, match=r"views.size=64, but this encoder reads pictures of (\d+) x \1 pixels") as caught:
            make_graft(views={**VIEWS, "size": 64}, **EYES[eye])
        assert caught.value.fix == "set views.size=null"
    for eye, count in (("convolution", 4 * 2 * 2), ("naflex", 4 * 16), ("class-token-timm", 4 * (1 + 4 * 4))):
        _, model = make_graft(views={**VIEWS, "size": 64}, **EYES[eye])
        assert num_tokens(model) == count


@torch.no_grad()
def test_a_panorama_that_is_missing_is_masked_in_all_its_views(make_graft: Make) -> None:
    _, model = make_graft(views=VIEWS, pooling={"kind": "avg"}, connector={"kind": "perceiver", "num_latents": 3, "num_heads": 4})
    batch = tiny.text_batch(model.head.tokenizer, PAIRS, views_for(model))
    batch = replace(batch, present={"image": torch.tensor([True, False])})
    tokens = model.connect(model.eval().encode(batch))
    assert tokens.mask.tolist() == [[True] * 3, [False] * 3]
    assert tokens.values.isfinite().all()


def test_rows_of_views_share_their_directions(make_graft: Make) -> None:
    _, model = make_graft(views=VIEWS)
    batch = tiny.text_batch(model.head.tokenizer, PAIRS, views_for(model))
    assert batch.take([1]).inputs["image"].shape[:2] == (1, 4)
    tokens = model.encode(batch)["image"]
    row = taken_from(tokens, [1])
    assert isinstance(row, Tokens)
    assert row.values.shape == (1, 64, 32)
    assert row.directions is tokens.directions
    there = moved_to(tokens, "meta")
    assert there.directions.device == there.values.device


@pytest.mark.parametrize("kind", ["dino", "mae"])
def test_objectives_of_one_picture_refuse_views(make_graft: Make, kind: str) -> None:
    """They would mix up samples and views."""
    _, model = make_graft(views=VIEWS)
    module, config = configured("objectives", Part(kind=kind))
    with pytest.raises(PartError, match=f"objective {kind} with views: anyres_e2p, 4 pictures") as caught:
        module.build(config).attach(model)
    assert "vicreg" in caught.value.fix
