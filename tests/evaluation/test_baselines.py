"""Dumb answers: they look at what they say they look at, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from eyegraft.errors import DataError
from eyegraft.evaluation import baselines
from eyegraft.evaluation.baselines import blank, most_frequent, nearest_neighbour, shuffled
from eyegraft.types import Sample


def rows(references: list[str]) -> list[Sample]:
    return [Sample(str(n), Path(f"{n}.png"), prompt=f"p{n}", references=(text,)) for n, text in enumerate(references)]


def test_blank_is_the_mean_colour(folders: Any) -> None:
    batch = tiny.text_batch(folders.tokenizer(), [("What?", "a dog")], torch.randn(1, 3, 8, 8))
    assert not blank(batch).inputs["image"].any()
    assert blank(batch).inputs["image"].shape == (1, 3, 8, 8)
    assert blank(batch).labels is batch.labels
    assert batch.inputs["image"].any()


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=20), st.integers(0, 9))
def test_shuffling_gives_every_sample_another_image(references: list[str], seed: int) -> None:
    samples = rows(references)
    mixed = shuffled(samples, seed)
    of_image = {sample.image: sample for sample in samples}
    for sample, other in zip(samples, mixed, strict=True):
        assert replace(other, image=sample.image) == sample, "prompt, references and order stay"
        assert other.image != sample.image
        if len(set(references)) > 1:
            assert of_image[other.image].references != sample.references
    assert shuffled(samples, seed) == mixed


def test_shuffling_depends_on_the_seed_alone() -> None:
    samples = rows(list("abcdefghijkl"))
    assert shuffled(samples, 1) != shuffled(samples, 2)


@pytest.mark.parametrize("count", [0, 1])
def test_there_must_be_another_image(count: int) -> None:
    with pytest.raises(DataError, match=f"{count} samples"):
        shuffled(rows(["a"] * count), 0)


def test_the_same_image_is_never_given_back() -> None:
    """Many questions of few images, whose references rarely differ: more than shuffling may search."""
    samples = [Sample(str(n), Path("many.png"), references=("yes",)) for n in range(400)]
    samples += [Sample("few", Path("few.png"), references=("yes",)), Sample("no", Path("many.png"), references=("no",))]
    for seed in range(5):
        for before, after in zip(samples, shuffled(samples, seed), strict=True):
            assert after.image == Path("few.png" if before.image.name == "many.png" else "many.png")
    with pytest.raises(DataError, match="401 samples of 1 image"):
        shuffled([item for item in samples if item.id != "few"], 0)


def test_shuffling_looks_at_a_bounded_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, compared = rows(["same"] * 2000), []

    class Watched(tuple):  # type: ignore[type-arg]
        __hash__ = tuple.__hash__

        def __ne__(self, other: object) -> bool:
            compared.append(other)
            return tuple.__ne__(self, other)

    shuffled([replace(sample, references=Watched(sample.references)) for sample in samples], 0)
    assert 0 < len(compared) <= baselines.DONOR_STEPS * len(samples)


def test_most_frequent() -> None:
    train = [*rows(["b", "a", "b", "a", "c"]), Sample("x", Path("x"), references=("c",))]
    assert most_frequent(train, 3) == ["a"] * 3, "the first in the alphabet among equals"
    assert most_frequent([*train, Sample("y", Path("y"), references=("z", "z", "z"))], 1) == ["z"], "every reference counts"


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
    _, model = make_graft()
    model.eval()
    train, asked = pictures("train", 64), list(reversed(pictures("test", 60)))
    answers = nearest_neighbour(model, train, asked, batch_size=2, num_workers=0, seed=0)
    assert answers == [sample.references[0] for sample in asked]
    again = nearest_neighbour(model, train, asked, batch_size=3, num_workers=0, seed=1)
    assert again == answers


def test_a_large_training_set_is_drawn_from(
    make_graft: Callable[..., Any], pictures: Callable[..., list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = make_graft()
    model.eval()
    train = pictures("train", 64)
    monkeypatch.setattr(baselines, "RETRIEVAL_LIMIT", 1)
    answers = [nearest_neighbour(model, train, train, batch_size=3, num_workers=0, seed=0) for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 1
