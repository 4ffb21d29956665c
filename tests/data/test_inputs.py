"""What an encoder is given: pictures, words, what was stored before, and what stands for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from eyegraft.config import Augmentation
from eyegraft.data.batches import Examples
from eyegraft.data.features import FeatureStore
from eyegraft.data.inputs import AbsentReader, ConstantReader, ImageReader, StoredReader, TextReader, one_blank, reader
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError
from eyegraft.types import ImageSpec, Sample, TextSpec, Tokens

SPEC = ImageSpec(size=(16, 24), mean=(0.5,) * 3, std=(0.25,) * 3, fit="squash")
PATCHES = ImageSpec(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, patch_size=8, max_patches=12)
NOTHING = Sample("nothing", None)


@pytest.fixture
def square(tmp_path: Path) -> Sample:
    return Sample("square", tiny.picture(tmp_path / "square.png"))


def read_one(made: Any, sample: Sample, seed: int | None = None) -> Any:
    return made.read([sample], [seed])[0]


def test_a_spec_chooses_its_reader(folders: Any) -> None:
    assert isinstance(reader(SPEC), ImageReader)
    assert isinstance(reader(TextSpec(folders.tokenizer(), 8)), TextReader)


def test_the_recipe_may_say_how_a_picture_is_fitted(tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    Image.new("RGB", (60, 20), (255, 0, 0)).save(wide)
    sample = Sample("wide", wide)
    whole, padded = read_one(reader(SPEC), sample), read_one(reader(SPEC, fit="pad"), sample)
    assert whole.shape == padded.shape == (3, 16, 24)
    assert torch.equal(whole[0], torch.full((16, 24), 2.0)), "(1 - 0.5) / 0.25"
    assert padded[:, 0, 0].tolist() == pytest.approx([(128 / 255 - 0.5) / 0.25] * 3, abs=1e-6), "grey 128 above a wide picture"


def test_changes_come_by_seed_alone(square: Sample) -> None:
    changing = reader(SPEC, augmentation=Augmentation(rotation_degrees=30, brightness=0.4))
    plain = read_one(reader(SPEC), square, 5)
    assert torch.equal(read_one(changing, square), plain), "no seed, no change"
    assert torch.equal(read_one(changing, square, 5), read_one(changing, square, 5))
    assert not torch.equal(read_one(changing, square, 5), read_one(changing, square, 6))
    assert torch.equal(read_one(reader(SPEC, augmentation=Augmentation()), square, 5), plain)
    assert (changing.random, reader(SPEC).random) == (True, False)


@pytest.mark.parametrize("spec", [SPEC, PATCHES])
def test_rows_without_a_picture_stand_among_the_others(spec: ImageSpec, square: Sample) -> None:
    made = reader(spec)
    assert made.present((square, NOTHING)).tolist() == [True, False]
    stacked: Any = made.read((square, NOTHING), (1, 1))
    if spec is SPEC:
        assert stacked.shape == (2, 3, 16, 24)
    else:
        assert stacked["pixels"].shape == (2, 12, 8 * 8 * 3)
        assert stacked["mask"].any(1).tolist() == [True, True], "attention over nothing is NaN"
        assert stacked["grid"].prod(1).tolist() == stacked["mask"].sum(1).tolist()


@pytest.mark.parametrize("spec", [SPEC, PATCHES])
def test_blank_is_the_mean_colour(spec: ImageSpec) -> None:
    blank: Any = one_blank({"image": reader(spec)})["image"]
    pixels = blank if spec is SPEC else blank["pixels"]
    assert len(pixels) == 1
    assert not pixels.any()


def test_words_become_ids_and_their_absence_a_mask(folders: Any) -> None:
    made = reader(TextSpec(folders.tokenizer(), 8))
    rows = [Sample("a", None, text="a red square and much more of it than fits"), Sample("b", None, text=" \n"), NOTHING]
    assert made.present(rows).tolist() == [True, False, False]
    stacked: Any = made.read(rows, [None] * 3)
    assert stacked["input_ids"].shape == stacked["mask"].shape == (3, 8)
    assert stacked["mask"].sum(1).tolist() == [8, 0, 0]


@pytest.fixture
def stored(tmp_path: Path) -> Any:
    """copies -> a reader of a store that holds `a` and `b`, each 2 x 3 numbers."""
    stores = []

    def made(copies: int) -> StoredReader:
        names = [f"{name}-{copy}" if copies else name for name in "ab" for copy in range(copies or 1)]
        store = FeatureStore(tmp_path / "features", {"copies": copies}, shape=(2, 3), max_bytes=1 << 20)
        stores.append(store)
        store.fill(
            names, lambda batches: [torch.arange(6.0).view(1, 2, 3) + 10 * torch.tensor(b).view(-1, 1, 1) for b in batches], batch_size=2
        )
        rows = dict(zip(names, store.rows(names).tolist(), strict=True))
        layout = Tokens(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), grid=(1, 1), num_prefix=1)
        plain = reader(SPEC)
        return StoredReader(store, rows, layout, plain, lambda sample, copy: sample.id if copy is None else f"{sample.id}-{copy}", copies)

    yield made
    for store in stores:
        store.close()


def test_what_is_stored_comes_back_with_its_layout(stored: Any) -> None:
    made = stored(0)
    tokens = made.read([Sample(name, None) for name in "bab"], (None, 7, 8))
    assert tokens.values[:, 0, 0].tolist() == [10.0, 0.0, 10.0]
    assert tokens.values.dtype == torch.float32
    assert tokens.mask.shape == (3, 2)
    assert tokens.mask.all()
    assert (tokens.grid, tokens.num_prefix) == ((1, 1), 1)
    assert made.present([NOTHING]).tolist() == [False], "who is absent is known from the row"


def test_a_seed_chooses_among_the_copies(stored: Any) -> None:
    made = stored(2)
    values = made.read([Sample("a", None)] * 5, (0, 1, 2, 3, None)).values[:, 0, 0].tolist()
    assert values == [0.0, 10.0, 0.0, 10.0, 0.0], "the probe of the trainable plan asks without a seed"
    assert made.random


def test_constants_stand_for_every_row() -> None:
    tokens = Tokens(torch.arange(6.0).view(1, 2, 3), torch.tensor([[True, False]]))
    for kind, present in ((ConstantReader, True), (AbsentReader, False)):
        made = kind(tokens)
        stacked = made.read([NOTHING] * 3, [None] * 3)
        assert stacked.values.shape == (3, 2, 3)
        assert stacked.mask.tolist() == [[True, False]] * 3
        assert made.present([NOTHING] * 2).tolist() == [present] * 2


def test_a_batch_knows_what_is_there(square: Sample, folders: Any) -> None:
    readers = {"image": reader(SPEC), "text": reader(TextSpec(folders.tokenizer(), 8))}
    rows = [square, Sample("words", None, text="a red square")]
    examples = Examples(rows, [Encoded(target=(1.0,)), Encoded(target=(float("nan"),))], readers)
    batch = examples.batch([0, 1], [None, None], 0)
    assert {name: there.tolist() for name, there in batch.present.items()} == {"image": [True, False], "text": [False, True]}
    assert batch.input_ids.shape == (2, 0)
    assert np.array_equal(batch.targets.numpy(), [[1.0], [np.nan]], equal_nan=True)


def test_a_picture_that_vanished_is_named(tmp_path: Path) -> None:
    examples = Examples([Sample("gone", tmp_path / "gone.png")], [Encoded()], {"image": reader(SPEC)})
    with pytest.raises(DataError, match=r"sample 'gone': image .*gone\.png"):
        examples.batch([0], [None], 0)
