"""Panoramas whose views are read from the feature cache are what encoding them anew would give, places included."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from eyegraft.answering import readers_of
from eyegraft.data.batches import Examples
from eyegraft.data.inputs import StoredReader
from eyegraft.data.text import encode_pair
from eyegraft.evaluation.baselines import blank
from eyegraft.training.features import stored_readers, why_not
from eyegraft.types import Sample

VIEWS = {"strategy": "anyres_e2p", "fov_degrees": 120, "overlap": 0}
NUM_VIEWS = 4


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder, found = tmp_path_factory.mktemp("panoramas"), []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((128, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        found.append(Sample(str(number), folder / f"{number}.png", prompt="What?", references=("a room",), sha256=f"{number}" * 64))
    return [*found, Sample("none", None, prompt="What?", references=("no room",))]


def batch_of(model: Any, samples: list[Sample], readers: Any) -> Any:
    tokenizer = model.head.tokenizer
    texts = [encode_pair(tokenizer, "What?", sample.references[0], max_tokens=64) for sample in samples]
    return Examples(samples, texts, readers).batch(range(len(samples)), [None] * len(samples), tokenizer.pad_token_id)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"pooling": {"kind": "avg"}}, False),
        ({"pooling": {"kind": "spatial_pool", "size": [2, 2]}}, False),
        ({"pooling": {"kind": "cls"}, "vision": "clip"}, False),
        ({"pooling": {"kind": "avg"}, "vision": "naflex"}, False),
        ({"vision": "clip", "connector": {"kind": "perceiver", "num_latents": 3, "depth": 1, "num_heads": 4}}, True),
    ],
)
def test_stored_views_are_views(
    make_graft: Any, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], tokens: bool
) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    recipe, model = make_graft(views=VIEWS, **changes)
    tiny.lively(model.connectors.eval(), scale=2)
    model.eval()
    settings = recipe.stage("only").feature_cache.model_copy(update={"tokens": tokens})
    readers = readers_of(model, recipe)
    with ExitStack() as closing:
        stored = stored_readers(recipe, settings, model, [samples], readers, frozen={"image"}, augmented=False, closing=closing)
        assert isinstance(stored["image"], StoredReader)
        plain, cached = batch_of(model, samples, readers), batch_of(model, samples, stored)
        with torch.no_grad():
            expected, found = (model.connect(model.encode(batch)) for batch in (plain, cached))
        torch.testing.assert_close(found.values[found.mask], expected.values[expected.mask], atol=2e-2, rtol=2e-2)
        assert torch.equal(found.mask, expected.mask)
        assert (found.num_views, found.grid, found.num_prefix) == (expected.num_views, expected.grid, expected.num_prefix)
        if expected.directions is not None:
            torch.testing.assert_close(found.directions, expected.directions)
        encoded = model.encode(cached)["image"]
        assert encoded.num_views == NUM_VIEWS
        assert encoded.directions is not None
        assert encoded.directions.shape == (encoded.values.shape[1], 7)
        model(cached).logits.all().sum().backward()  # what was stored without gradients can be learned from
        assert model.connectors["image"].view_encoding.layer.weight.grad.any()


def test_poolings_of_another_shape_share_nothing(
    make_graft: Any, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grids of 1 x 4 and 4 x 1 give records of one shape; views that look elsewhere do too."""
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    for size, yaw in (([1, 4], 0), ([4, 1], 0), ([4, 1], 30)):
        recipe, model = make_graft(views={**VIEWS, "yaw_degrees": yaw}, pooling={"kind": "spatial_pool", "size": size})
        with ExitStack() as closing:
            stored_readers(
                recipe,
                recipe.stage("only").feature_cache,
                model.eval(),
                [samples],
                readers_of(model, recipe),
                frozen={"image"},
                augmented=False,
                closing=closing,
            )
    assert len(list(tmp_path.glob("features/*/facts.json"))) == 3


def test_whole_sequences_of_views_are_not_stored_unasked(make_graft: Any) -> None:
    recipe, model = make_graft(views=VIEWS, connector={"kind": "identity"})
    reason = why_not(recipe, recipe.stage("only").feature_cache, model, "image", {"image"}, augmented=False)
    assert reason is not None
    assert reason.startswith(f"{NUM_VIEWS * 16} tokens of 32 numbers")


def test_a_blank_panorama_is_blank_in_all_views(make_graft: Any) -> None:
    _, model = make_graft(views=VIEWS, pooling={"kind": "avg"})
    tokens = blank(model, "image").read([Sample("0", None)] * 3, [None] * 3)
    assert tokens.values.shape == (3, NUM_VIEWS * 16, 32)
    assert tokens.num_views == NUM_VIEWS
    views = tokens.values[0].unflatten(0, (NUM_VIEWS, -1))
    torch.testing.assert_close(views, views[:1].expand_as(views))
    assert model.connect({"image": tokens}).values.shape[:2] == (3, NUM_VIEWS)
