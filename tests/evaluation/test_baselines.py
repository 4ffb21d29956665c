"""Dumb answers: they look at what they say they look at, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from evaluation import weather
from eyegraft.answering import readers_of
from eyegraft.config import Part
from eyegraft.data.patch_rows import PatchRows
from eyegraft.errors import DataError
from eyegraft.evaluation import baselines
from eyegraft.evaluation.baselines import (
    ExchangedReader,
    blank,
    donors,
    nearest_neighbours,
    retrieval_set,
    shuffled_columns,
    shuffled_images,
    shuffled_texts,
    shuffled_within,
)
from eyegraft.registry import configured
from eyegraft.types import Sample


def rows(references: list[str]) -> list[Sample]:
    return [Sample(str(n), Path(f"{n}.png"), prompt=f"p{n}", references=(text,)) for n, text in enumerate(references)]


def test_blank_is_the_mean_colour(make_graft: Callable[..., Any]) -> None:
    """0 after normalisation, encoded once and given to every sample."""
    _, model = make_graft()
    model.eval()
    tokens = blank(model, "image").read([None] * 3, [None] * 3)
    expected = model.encoders["image"](torch.zeros(1, 3, *model.encoders["image"].spec.size))
    assert torch.equal(tokens.values, expected.values.expand(3, -1, -1))
    assert tokens.mask.all()


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=20), st.integers(0, 9))
def test_shuffling_gives_every_sample_another_image(references: list[str], seed: int) -> None:
    samples = rows(references)
    mixed = shuffled_images(samples, seed)
    of_image = {sample.image: sample for sample in samples}
    for sample, other in zip(samples, mixed, strict=True):
        assert replace(other, image=sample.image) == sample, "prompt, references and order stay"
        assert other.image != sample.image
        if len(set(references)) > 1:
            assert of_image[other.image].references != sample.references
    assert shuffled_images(samples, seed) == mixed


def test_shuffling_depends_on_the_seed_alone() -> None:
    samples = rows(list("abcdefghijkl"))
    assert shuffled_images(samples, 1) != shuffled_images(samples, 2)


@pytest.mark.parametrize("count", [0, 1])
def test_there_must_be_another_image(count: int) -> None:
    with pytest.raises(DataError, match=f"{count} samples"):
        shuffled_images(rows(["a"] * count), 0)


def test_the_same_image_is_never_given_back() -> None:
    """Many questions of few images, whose references rarely differ: more than shuffling may search."""
    samples = [Sample(str(n), Path("many.png"), references=("yes",)) for n in range(400)]
    samples += [Sample("few", Path("few.png"), references=("yes",)), Sample("no", Path("many.png"), references=("no",))]
    for seed in range(5):
        for before, after in zip(samples, shuffled_images(samples, seed), strict=True):
            assert after.image == Path("few.png" if before.image.name == "many.png" else "many.png")
    with pytest.raises(DataError, match="401 samples that are all alike"):
        shuffled_images([item for item in samples if item.id != "few"], 0)


def test_shuffling_looks_at_a_bounded_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, compared = rows(["same"] * 2000), []

    class Watched(tuple):  # type: ignore[type-arg]
        __hash__ = tuple.__hash__

        def __ne__(self, other: object) -> bool:
            compared.append(other)
            return tuple.__ne__(self, other)

    shuffled_images([replace(sample, references=Watched(sample.references)) for sample in samples], 0)
    assert 0 < len(compared) <= baselines.DONOR_STEPS * len(samples)


def test_images_are_shuffled_among_those_that_are_alike(caplog: pytest.LogCaptureFixture) -> None:
    kinds = [("06", "pmsl"), ("06", "pmsl"), ("06", "thea"), ("12", "pmsl"), ("12", "pmsl"), ("12", "pmsl")]
    samples = [
        replace(sample, meta={"hour": hour, "condition": kind}) for sample, (hour, kind) in zip(rows(list("abcdef")), kinds, strict=True)
    ]
    of_image = {sample.image: sample for sample in samples}
    with caplog.at_level("WARNING"):
        mixed = shuffled_within(samples, ("hour", "condition"), 0)
    for place, (before, after) in enumerate(zip(samples, mixed, strict=True)):
        assert replace(after, image=before.image) == before, "all else stays"
        assert of_image[after.image].meta == before.meta
        assert (after.image == before.image) == (place == 2), "the one map of its kind and hour keeps its own"
    assert "1 of 6 samples keep their picture: none that is alike in hour, condition shows another" in caplog.text
    assert shuffled_within(samples[2:3], ("hour",), 0) == [], "no control"


def test_texts_are_shuffled_alone() -> None:
    samples = [replace(sample, text=f"t{sample.id}") for sample in rows(list("abab"))]
    for before, after in zip(samples, shuffled_texts(samples, 0), strict=True):
        assert replace(after, text=before.text) == before
        assert after.text != before.text


def test_a_patch_is_its_store_and_its_row() -> None:
    samples = [Sample(str(n), Path("store"), references=(str(n % 2),), sha256=f"k{n}", record=n) for n in range(8)]
    for before, after in zip(samples, shuffled_images(samples, 0), strict=True):
        assert replace(after, record=before.record, sha256=before.sha256) == before
        assert (after.record or 0) % 2 != (before.record or 0) % 2
        assert after.sha256 == f"k{after.record}"


def test_columns_are_shuffled_together_and_alone() -> None:
    samples = [replace(sample, meta={"a": n % 3, "b": n % 2, "c": n}) for n, sample in enumerate(rows(list("abababab")))]
    pairs = {(sample.meta["a"], sample.meta["b"]) for sample in samples}
    for before, after in zip(samples, shuffled_columns(samples, ("a", "b"), 0), strict=True):
        assert replace(after, meta=before.meta) == before
        assert after.meta["c"] == before.meta["c"]
        assert (after.meta["a"], after.meta["b"]) in pairs - {(before.meta["a"], before.meta["b"])}


@pytest.fixture
def patches(tmp_path: Path) -> PatchRows:
    return weather.rows(tmp_path, "test", range(12), times=10)


def test_patches_are_exchanged_without_making_samples(patches: PatchRows) -> None:
    part = patches.take(np.arange(5, 95))
    others = donors(part, 0)
    assert (part.targets[others] != part.targets).all()
    assert len(np.unique(others)) == len(part), "a round trip: every patch is shown once"
    assert np.array_equal(donors(part, 0), others)
    assert not np.array_equal(donors(part, 1), others)

    class Rows:
        slow = random = False

        def present(self, samples: PatchRows) -> torch.Tensor:
            return torch.ones(len(samples), dtype=torch.bool)

        def read(self, samples: PatchRows, seeds: Any) -> torch.Tensor:
            return torch.from_numpy(samples.targets)

        def blank(self) -> torch.Tensor:
            return torch.zeros(1)

    reader = ExchangedReader(Rows(), part, others)
    batch = part.take([3, 80, 7])
    assert reader.read(batch, [None] * 3).tolist() == part.targets[others[[3, 80, 7]]].tolist()
    assert reader.present(batch).all()
    with pytest.raises(DataError, match="1 patches to shuffle"):
        donors(part.take([0]), 0)


def test_a_patch_is_given_one_with_another_target(tmp_path: Path) -> None:
    """Where nearly all read the same, the few others are found as far as shuffling looks."""
    made = weather.rows(tmp_path, "test", range(12), times=10)
    made.__class__ = type("Same", (PatchRows,), {"targets": property(lambda self: (self.rows % 10 == 0).astype(np.float64))})
    others = donors(made, 0)
    assert (made.targets[others] != made.targets).all()


def caption_task() -> Any:
    module, config = configured("tasks", Part(kind="caption"))
    return module.build("caption", config)


def test_most_frequent() -> None:
    train = [*rows(["b", "a", "b", "a", "c"]), Sample("x", Path("x"), references=("c",))]
    assert caption_task().prior(train) == "a", "the first in the alphabet among equals"
    assert caption_task().prior([*train, Sample("y", Path("y"), references=("z", "z", "z"))]) == "z", "every reference counts"


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., list[Sample]]:
    def made(tag: str, side: int) -> list[Sample]:
        return [
            Sample(
                f"{tag}{colour}",
                tiny.picture(tmp_path / f"{tag}-{colour}.png", colour, side=side),
                references=(f"a {colour} square", "other"),
            )
            for colour in ("red", "blue", "green")
        ]

    return made


def test_the_nearest_training_image_answers(make_graft: Callable[..., Any], pictures: Callable[..., list[Sample]]) -> None:
    """The same picture, resized, is nearest by the encoder's own tokens; answers are the first references, in order."""
    recipe, model = make_graft()
    model.eval()
    readers, task = readers_of(model, recipe), caption_task()
    train, asked = pictures("train", 64), list(reversed(pictures("test", 60)))
    answers = nearest_neighbours(model, task, train, asked, readers, batch_size=2, num_workers=0)
    assert answers == [sample.references[0] for sample in asked]
    again = nearest_neighbours(model, task, train, asked, readers, batch_size=3, num_workers=0)
    assert again == answers


def test_neighbours_are_sought_among_what_the_feature_cache_holds(
    make_graft: Callable[..., Any], pictures: Callable[..., list[Sample]]
) -> None:
    """The class token where the recipe takes it: cached or not, the same neighbours."""
    recipe, model = make_graft(vision="clip", pooling={"kind": "cls"})
    samples, readers = pictures("train", 64), readers_of(model.eval(), recipe)
    found = baselines._features(model, samples, readers, 2, 0, "features")
    with torch.inference_mode():
        tokens = model.encoders["image"](readers["image"].read(samples, [None] * len(samples)))
    assert tokens.num_prefix == 1
    assert torch.allclose(found, torch.nn.functional.normalize(tokens.values[:, 0], dim=-1), atol=1e-6)


def test_a_large_training_set_is_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(list("abcdefgh"))
    assert retrieval_set(train, 0) == train
    monkeypatch.setattr(baselines, "RETRIEVAL_LIMIT", 3)
    assert retrieval_set(train, 0) == retrieval_set(train, 0)
    assert len(retrieval_set(train, 0)) == 3
    assert retrieval_set(train, 0) != retrieval_set(train, 1)


def test_a_large_split_of_patches_is_drawn_from_as_rows(patches: PatchRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RETRIEVAL_LIMIT", 30)
    found = retrieval_set(patches, 0)
    assert isinstance(found, PatchRows)
    assert len(np.unique(found.rows)) == 30
