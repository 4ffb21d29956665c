"""Batches: their order and every random change are pure functions of the seed, the epoch and the place in the data."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from eyegraft.config import Augmentation
from eyegraft.data.augment import augment
from eyegraft.data.batches import Examples, batch_order, derived_seed, load_batches, packed, rows_of
from eyegraft.data.images import check_image, open_image, to_pixels
from eyegraft.data.inputs import reader
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError
from eyegraft.types import IGNORE, Batch, ImageSpec, Sample, Tokens

SPEC = ImageSpec(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="squash")
STRONG = Augmentation(rotation_degrees=20, translation=0.2, brightness=0.3, hue=0.2, flip=0.5)
lengths = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("pictures")
    names = [(colour, shape) for colour in ("red", "blue", "green") for shape in ("square", "circle", "triangle")]
    return [Sample(f"s{n}", tiny.picture(folder / f"{n}.png", *name, side=20 + n)) for n, name in enumerate(names)]


def examples(samples: list[Sample], augmentation: Augmentation | None = STRONG) -> Examples:
    texts = [Encoded(tuple(range(1, n + 2)), (IGNORE,) * n + (n + 1,)) for n in range(len(samples))]
    return Examples(samples, texts, {"image": reader(SPEC, augmentation=augmentation)})


def pixels(batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
    return {sample.id: picture for batch in batches for sample, picture in zip(batch.samples, batch.inputs["image"], strict=True)}


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(lengths, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_every_sample_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int, grouped: bool) -> None:
    order = batch_order(lengths, batch_size, seed=seed, epoch=epoch, grouped=grouped)
    assert sorted(place for batch in order for place in batch) == list(range(len(lengths)))
    assert sorted((len(batch) for batch in order), reverse=True)[:-1] == [batch_size] * (len(order) - 1)


@given(lengths, st.integers(1, 9), st.integers(0, 5), st.booleans())
def test_the_longest_full_batch_comes_first(lengths: list[int], batch_size: int, seed: int, grouped: bool) -> None:
    order = batch_order(lengths, batch_size, seed=seed, epoch=0, grouped=grouped)
    full = [max(lengths[place] for place in batch) for batch in order if len(batch) == batch_size]
    if full:
        assert len(order[0]) == batch_size
        assert max(lengths[place] for place in order[0]) == max(full)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_depends_on_seed_and_epoch_and_nothing_else(grouped: bool) -> None:
    sizes = list(range(1, 60))
    first = batch_order(sizes, 4, seed=1, epoch=2, grouped=grouped)
    random.seed(5)
    torch.manual_seed(5)
    assert batch_order(sizes, 4, seed=1, epoch=2, grouped=grouped) == first
    assert (batch_order([1] * 59, 4, seed=1, epoch=2) == first) != grouped, "lengths decide only what stands first in the first epoch"
    assert batch_order(sizes, 4, seed=2, epoch=2, grouped=grouped) != first
    assert batch_order(sizes, 4, seed=1, epoch=3, grouped=grouped) != first
    before = random.getstate()
    batch_order(sizes, 4, seed=1, epoch=0, grouped=grouped)
    assert random.getstate() == before, "the global generator was touched"


def test_the_order_is_the_same_on_every_machine() -> None:
    """Written down once: a change of it would end the resumability of every run."""
    assert batch_order([1] * 7, 3, seed=0, epoch=1) == [[0, 3, 5], [1, 6, 4], [2]]
    assert batch_order(list(range(9)), 2, seed=0, epoch=1, grouped=True) == [[6, 3], [4, 1], [7, 0], [5], [8, 2]]
    assert derived_seed("a", 1) == 2057769193037142695


# ── by length ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_equal_lengths_nothing_is_grouped() -> None:
    """Labels and numbers have no text: their order is as it was."""
    assert batch_order([0] * 50, 4, seed=1, epoch=2, grouped=True) == batch_order([0] * 50, 4, seed=1, epoch=2)


def test_grouped_batches_hold_hardly_any_padding() -> None:
    """Captions and instructions: padded to the longest of all about a quarter is real, in random batches a third."""
    drawn = random.Random(0)
    sizes = [min(400, int(drawn.gauss(28, 6) if drawn.random() < 0.6 else drawn.lognormvariate(5, 0.5))) for _ in range(4000)]

    def share(grouped: bool) -> float:
        batches = batch_order(sizes, 8, seed=0, epoch=1, grouped=grouped)
        return sum(sizes) / sum(len(batch) * max(sizes[place] for place in batch) for batch in batches)

    assert share(True) > 0.95
    assert share(False) < 0.45


def test_grouped_batches_come_in_no_order_of_length_and_change_with_the_epoch() -> None:
    sizes = list(range(1, 801))
    seen = []
    for epoch in (1, 2):
        batches = batch_order(sizes, 8, seed=0, epoch=epoch, grouped=True)
        longest = [max(sizes[place] for place in batch) for batch in batches]
        rising = sum(a < b for a, b in pairwise(longest))
        assert 35 <= rising <= 65, "of 99"
        seen.append({frozenset(batch) for batch in batches})
    assert not seen[0] & seen[1]


@given(st.lists(st.integers() | st.text(max_size=3), max_size=4))
def test_derived_seeds(parts: list[Any]) -> None:
    assert 0 <= derived_seed(*parts) < 2**63
    assert derived_seed(*parts) == derived_seed(*parts)
    assert derived_seed(*parts) != derived_seed(*parts, 0)
    torch.Generator().manual_seed(derived_seed(*parts))


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.integers(1, 100))
def test_every_text_has_a_place_in_a_row(sizes: list[int], limit: int) -> None:
    rows = rows_of(sizes, limit)
    assert sorted(place for row in rows for place in row) == list(range(len(sizes)))
    assert all(len(row) == 1 or sum(sizes[place] for place in row) <= limit for row in rows)


def test_rows_are_few_and_about_equally_long() -> None:
    sizes = [400, 30, 25, 60, 80, 20, 33, 200]
    assert sorted(sum(sizes[place] for place in row) for row in rows_of(sizes, 512)) == [423, 425]
    assert rows_of([300, 300, 300], 512) == [[0], [1], [2]]
    assert rows_of([900, 300, 300], 512) == [[0], [1], [2]], "a longer one has a row to itself"
    assert rows_of([900, 5, 5], 512) == [[0], [1, 2]]


def test_parts_of_a_batch_hold_all_that_belongs_to_their_samples(samples: list[Sample]) -> None:
    batch = examples(samples).batch(range(9), [None] * 9, 0)
    batch = replace(batch, inputs={**batch.inputs, "seen": Tokens(torch.arange(9.0).view(9, 1, 1), torch.ones(9, 1, dtype=torch.bool))})
    parts = packed(batch, 20, image_tokens=4)
    assert all(part.packed for part in parts)
    assert not batch.packed
    assert all(int(part.text_mask.sum()) + 4 * len(part) <= 20 for part in parts)
    assert sorted(sample.id for part in parts for sample in part.samples) == sorted(sample.id for sample in samples)
    for part in parts:
        for row, sample in enumerate(part.samples):
            place = samples.index(sample)
            assert torch.equal(part.inputs["image"][row], batch.inputs["image"][place])
            assert part.inputs["seen"].values[row] == place
            assert torch.equal(part.labels[row], batch.labels[place])
            assert torch.equal(part.input_ids[row], batch.input_ids[place])
            assert part.present["image"][row] == batch.present["image"][place]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_augmentation_does_not_depend_on_the_batch(samples: list[Sample]) -> None:
    data = examples(samples)
    order = [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    one = pixels(load_batches(data, order, pad_id=0, seed=(1, "stage", 0)))
    other = pixels(load_batches(data, [[place] for place in reversed(range(9))], pad_id=0, seed=(1, "stage", 0)))
    later = pixels(load_batches(data, order[1:], pad_id=0, seed=(1, "stage", 0)))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(torch.equal(one[key], later[key]) for key in later), "what a resumed epoch reads"


def test_augmentation_depends_on_seed_stage_and_epoch(samples: list[Sample]) -> None:
    data, order = examples(samples), [list(range(9))]
    seen = [pixels(load_batches(data, order, pad_id=0, seed=seed)) for seed in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))]
    assert all(not torch.equal(seen[0][key], other[key]) for other in seen[1:] for key in seen[0])


def test_without_a_seed_or_settings_nothing_is_random(samples: list[Sample]) -> None:
    order = [list(range(9))]
    still = pixels(load_batches(examples(samples, None), order, pad_id=0, seed=(1,)))
    assert all(torch.equal(picture, still[key]) for key, picture in pixels(load_batches(examples(samples), order, pad_id=0)).items())
    quiet = pixels(load_batches(examples(samples, Augmentation()), order, pad_id=0, seed=(1,)))
    assert all(torch.equal(picture, still[key]) for key, picture in quiet.items())
    loud = pixels(load_batches(examples(samples), order, pad_id=0, seed=(1,)))
    assert all(not torch.equal(picture, still[key]) for key, picture in loud.items())


def test_workers_change_nothing(samples: list[Sample]) -> None:
    data, order = examples(samples), [[3, 1, 8], [0, 2, 4], [7, 5, 6]]
    alone, helped = (list(load_batches(data, order, pad_id=0, seed=(1, 0), num_workers=number)) for number in (0, 2))
    assert [[sample.id for sample in batch.samples] for batch in helped] == [[f"s{place}" for place in batch] for batch in order]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.inputs["image"], other.inputs["image"])
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.text_mask, other.text_mask)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(samples: list[Sample], num_workers: int) -> None:
    """Dropout after a resume must draw what it would have drawn."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(load_batches(examples(samples), [[0, 1]], pad_id=0, seed=(1,), num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_picture_that_breaks_is_named(samples: list[Sample], tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = examples([*samples, Sample("bad", tmp_path / "broken.png")])
    with pytest.raises(DataError, match=r"broken\.png"):
        list(load_batches(data, [[9]], pad_id=0, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("harm", ["deleted", "cut", "folder"])
def test_a_picture_harmed_after_its_check_is_an_error_like_any_other(tmp_path: Path, num_workers: int, harm: str) -> None:
    """Worker or not: the sample, what is wrong and the fix, and no text of the loader's around them."""
    many = [Sample(f"s{n}", tiny.picture(tmp_path / f"{n}.png", "red", "square", side=40)) for n in range(6)]
    assert all(check_image(sample.image, 10_000, decode=True).ok for sample in many)
    path = many[3].image
    content = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "folder":
        path.mkdir()
    seen = []
    with pytest.raises(DataError) as caught:
        seen.extend(load_batches(examples(many), [[0, 1], [2, 3], [4, 5]], pad_id=0, seed=(1,), num_workers=num_workers))
    assert [sample.id for batch in seen for sample in batch.samples] == ["s0", "s1"], "batches before it arrive"
    assert caught.value.given.startswith(f"sample 's3': image {path}: ")
    assert caught.value.fix.startswith("restore the file")
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_fails_outside_the_decoder_is_named_too(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object, **__: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("eyegraft.data.inputs.open_image", stale)
    with pytest.raises(DataError, match=r"sample 's2': image .*2\.png: .*Stale file handle"):
        list(load_batches(examples(samples), [[2]], pad_id=0))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_large_picture_is_shrunk_before_it_is_augmented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """To twice what the transform needs, whatever its shape; a small one, and any picture without augmentation, is left as it is."""
    sizes = {"large": (900, 600), "tall": (128, 1280), "small": (32, 500), "tiny": (9, 12)}
    many = []
    for name, size in sizes.items():
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{name}.{suffix}", quality=95)
        many.append(Sample(name, tmp_path / f"{name}.{suffix}"))
    augmented: list[tuple[int, int]] = []

    def noted(picture: Image.Image, settings: Augmentation, seed: int) -> Image.Image:
        augmented.append(picture.size)
        return augment(picture, settings, seed)

    monkeypatch.setattr("eyegraft.data.inputs.augment", noted)
    data = Examples(many, [Encoded((1,), (1,))] * 4, {"image": reader(SPEC, augmentation=STRONG)})
    moved = pixels(load_batches(data, [[0, 1, 2, 3]], pad_id=0, seed=(1,)))
    assert augmented == [(48, 32), (32, 320), (32, 500), (9, 12)]
    still = pixels(load_batches(data, [[0, 1, 2, 3]], pad_id=0))
    assert len(augmented) == 4
    for sample in many:
        assert torch.equal(still[sample.id], to_pixels(open_image(sample.image), SPEC))
    for number in (0, 2):
        again = pixels(load_batches(data, [[3, 1], [0, 2]], pad_id=0, seed=(1,), num_workers=number))
        assert all(torch.equal(picture, moved[name]) for name, picture in again.items())


def test_shrinking_first_hardly_changes_what_the_encoder_sees(tmp_path: Path) -> None:
    """It is antialiased: a plain flip of a fine pattern gives the flipped pixels."""
    Image.radial_gradient("L").resize((700, 500)).convert("RGB").save(tmp_path / "a.png")
    data = Examples([Sample("a", tmp_path / "a.png")], [Encoded((1,), (1,))], {"image": reader(SPEC, augmentation=Augmentation(flip=1))})
    flipped, plain = (pixels(load_batches(data, [[0]], pad_id=0, seed=seed))["a"] for seed in ((1,), None))
    assert (flipped.flip(-1) - plain).abs().max() < 0.03


# ── collation ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_texts_are_padded_on_the_right(samples: list[Sample]) -> None:
    batch = next(iter(load_batches(examples(samples), [[0, 2, 1]], pad_id=77)))
    assert batch.input_ids.tolist() == [[1, 77, 77], [1, 2, 3], [1, 2, 77]]
    assert batch.labels.tolist() == [[1, IGNORE, IGNORE], [IGNORE, IGNORE, 3], [IGNORE, 2, IGNORE]]
    assert batch.text_mask.tolist() == [[True, False, False], [True] * 3, [True, True, False]]
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.text_mask.dtype) == (torch.int64, torch.int64, torch.bool)
    assert batch.inputs["image"].shape == (3, 3, 16, 16)
    assert [sample.id for sample in batch.samples] == ["s0", "s2", "s1"]


def test_texts_may_be_empty(samples: list[Sample]) -> None:
    """An image alone, without a prompt."""
    data = Examples(samples, [Encoded(), Encoded((5,), (5,)), Encoded()], {"image": reader(SPEC)})
    assert data.batch([0, 1], [None] * 2, 0).text_mask.tolist() == [[False], [True]]
    alone = data.batch([0], [None], 0)
    assert alone.input_ids.shape == alone.labels.shape == alone.text_mask.shape == (1, 0)


def test_a_batch_keeps_the_rest_when_one_thing_changes(samples: list[Sample]) -> None:
    batch = next(iter(load_batches(examples(samples), [[0, 1]], pad_id=0)))
    blank = batch.with_input("image", torch.zeros(2, 3, 16, 16))
    assert not blank.inputs["image"].any()
    assert batch.inputs["image"].any()
    assert blank.input_ids is batch.input_ids
    assert len(blank.to("cpu")) == 2
