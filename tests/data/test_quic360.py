"""Tables in the columns of QuIC-360, as `data=quic360` and `data=quic360_instruct` read them, with paths that were written on Windows."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eyegraft import load_recipe
from eyegraft.config import Data
from eyegraft.data.samples import PreparedData, load_samples
from eyegraft.errors import DataError

Rows = list[tuple[str, str, str]]


def data_of(name: str, base: Path, *overrides: str) -> Data:
    return load_recipe("demo", f"data={name}", f"data.base_dir={base}", "augmentation=none", *overrides).data


def write(path: Path, rows: Rows, columns: str = "url,query,annotation") -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([columns.split(","), *rows])


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as stream:
        return [(row["url"], row["query"], row["annotation"]) for row in csv.DictReader(stream)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Six panoramas of noise, and tables that name two each."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 16, 3), dtype=np.uint8)
        Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "images" / f"{number}.png")
    for start, split in ((0, "train"), (2, "valid"), (4, "test")):
        write(tmp_path / f"{split}.csv", [(f"images/{number}.png", "sky", f"sky {number}") for number in (start, start + 1)])
    return tmp_path


def references(prepared: PreparedData, split: str) -> list[tuple[str | None, tuple[str, ...]]]:
    return [(sample.prompt, sample.references) for sample in prepared.splits[split]]


def test_several_annotations_of_a_query_are_right_answers_alike(base: Path) -> None:
    """However their paths are written; in training each is a row of its own."""
    rows = [
        ("images/4.png", "sky", "blue"),
        ("images\\4.png", "sky", "very blue"),
        (str(base / "images" / "4.png"), "sky", "clear"),
        (".\\images\\4.png", "ground", "grass"),
    ]
    write(base / "test.csv", rows)
    write(base / "train.csv", [(url.replace("4.png", "0.png"), query, text) for url, query, text in rows])
    prepared = load_samples(data_of("quic360", base), panoramas=True)
    assert references(prepared, "test") == [("sky", ("blue", "very blue", "clear")), ("ground", ("grass",))]
    assert references(prepared, "train") == [("sky", ("blue",)), ("sky", ("very blue",)), ("sky", ("clear",)), ("ground", ("grass",))]
    assert list(prepared.splits) == ["train", "val", "test"]


def test_instructions(base: Path) -> None:
    for split in ("train", "valid", "test"):
        write(
            base / f"{split}.csv",
            [(url, "Describe the sky.", text) for url, _, text in read(base / f"{split}.csv")],
            "url,instruction,response",
        )
    prepared = load_samples(data_of("quic360_instruct", base), panoramas=True)
    assert references(prepared, "val") == [("Describe the sky.", ("sky 2",)), ("Describe the sky.", ("sky 3",))]
    with pytest.raises(DataError, match=r"data\.columns\.references: no column 'annotation'") as caught:
        load_samples(data_of("quic360", base), panoramas=True)
    assert "url, instruction, response" in caught.value.expected


def test_no_panorama_stands_in_two_splits(base: Path) -> None:
    """Under one spelling the tables are refused; a picture that hides behind another leaves training."""
    write(base / "test.csv", [("images/0.png", "ground", "grass")])
    with pytest.raises(DataError, match=r"leak between splits(.|\n)*images/0\.png \(train\) = images/0\.png \(test\)"):
        load_samples(data_of("quic360", base), panoramas=True)
    write(base / "test.csv", [("images\\0.png", "ground", "grass")])
    prepared = load_samples(data_of("quic360", base), panoramas=True)
    assert references(prepared, "train") == [("sky", ("sky 1",))]


@pytest.mark.skipif(os.name == "nt", reason="there these are paths of this machine")
@pytest.mark.parametrize("url", ["C:\\data\\images\\0.png", "C:/data/images/0.png", "\\\\server\\share\\images\\0.png"])
def test_paths_of_another_machine_say_so(base: Path, url: str) -> None:
    write(base / "train.csv", [*read(base / "train.csv"), (url, "sky", "blue")])
    with pytest.raises(DataError) as caught:
        load_samples(data_of("quic360", base), panoramas=True)
    assert f"{url!r} is a path of another machine" in str(caught.value)
    assert "but " + str(base / "images" / "0.png") + " exists: write 'images/0.png', relative to data.base_dir" in str(caught.value)
    prepared = load_samples(data_of("quic360", base, "data.max_bad_fraction=0.2"), panoramas=True)
    assert [row["image"] for row in prepared.quarantined] == [url]


def test_the_shared_panoramas_by_paths_of_either_system(tmp_path: Path) -> None:
    place = Path(os.environ.get("EYEGRAFT_TEST_DATA") or "nowhere", "panoramas")
    if not place.is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder with panoramas")
    plain = load_samples(data_of("quic360", place), panoramas=True)
    assert not plain.quarantined
    assert {split: len(samples) for split, samples in plain.splits.items()} == {"train": 39, "val": 6, "test": 9}
    pictures = {split: {sample.image for sample in samples} for split, samples in plain.splits.items()}
    assert {split: len(found) for split, found in pictures.items()} == {"train": 13, "val": 2, "test": 3}
    assert not pictures["train"] & (pictures["val"] | pictures["test"])
    tables = []
    for split in ("train", "valid", "test"):
        rows = read(place / f"{split}.csv")
        write(tmp_path / f"{split}.csv", [(url.replace("/", "\\"), query, text) for url, query, text in rows])
        tables.append(str(tmp_path / f"{split}.csv"))
    named = [f"data.tables.{split}={table}" for split, table in zip(("train", "val", "test"), tables, strict=True)]
    other = load_samples(data_of("quic360", place, *named), panoramas=True)
    assert other.split_sha256 == plain.split_sha256, "the same pictures and words, however their paths are written"
