"""Panoramas that ship: whole spheres with captions, in the columns of QuIC-360, no place in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from drawn import read_csv
from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.prepare.panoramas import Config, prepare


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("panoramas")
    assert prepare(Config(), place)["rows"] == {"train": 39, "val": 6, "test": 9}
    return place


def test_tables_have_the_columns_of_quic_360_and_every_picture_is_a_whole_sphere(made: Path) -> None:
    seen: dict[str, str] = {}
    for table in ("train.csv", "valid.csv", "test.csv"):
        rows = read_csv(made / table)
        assert list(rows[0]) == ["url", "query", "annotation"]
        for row in rows:
            assert seen.setdefault(row["url"], table) == table, "a place in two splits"
            assert row["query"]
            assert row["annotation"].endswith(".")
    assert len(seen) == 18
    assert {path.relative_to(made).as_posix() for path in (made / "images").iterdir()} == set(seen)
    for url in seen:
        with Image.open(made / url) as picture:
            assert picture.size == (1024, 512)


def test_it_is_read_as_it_is(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    conf = yaml.safe_load((CONF / "data" / "panoramas.yaml").read_text(encoding="utf-8"))
    found = load_samples(Data.model_validate({**conf, "base_dir": str(made)}))
    assert {split: len(samples) for split, samples in found.splits.items()} == {"train": 39, "val": 6, "test": 9}
    assert not found.quarantined
    assert not found.near_duplicates
    assert found.splits["test"][0].prompt == "landscape"


def test_a_torn_picture_is_made_whole(made: Path) -> None:
    image = made / "images" / "park.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:1000])
    prepare(Config(), made)
    assert image.read_bytes() == whole
