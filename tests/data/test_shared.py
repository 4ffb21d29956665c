"""Real files from elsewhere load. Their place comes from EYEGRAFT_TEST_DATA; the project does not need them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from eyegraft.config import Columns, Data
from eyegraft.data.images import check_image, open_image, to_pixels
from eyegraft.data.samples import load_samples
from eyegraft.types import ImageSpec

SPEC = ImageSpec(size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def shared() -> Path:
    place = os.environ.get("EYEGRAFT_TEST_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder")
    return Path(place)


@pytest.mark.parametrize("pattern", ["weather_maps/*.gif", "coco/images/*.jpg", "panoramas/images/*.jpg", "ocr/*.*g"])
def test_real_pictures_become_pixels(shared: Path, pattern: str) -> None:
    paths = sorted(shared.glob(pattern))
    assert paths
    for path in paths:
        assert check_image(path, 100_000_000, decode=True).ok, path
        pixels = to_pixels(open_image(path), SPEC)
        assert pixels.shape == (3, 64, 64)
        assert pixels.std() > 0.01, f"{path} came out blank"


def test_panorama_tables_with_their_own_columns(shared: Path) -> None:
    data = Data(
        name="panoramas",
        base_dir=str(shared / "panoramas"),
        tables={"train": "train.csv", "val": "valid.csv", "test": "test.csv"},
        columns=Columns(image="url", prompt="query", references="annotation", group="url"),
    )
    prepared = load_samples(data)
    assert not prepared.quarantined
    assert all(sample.prompt and sample.references[0] for samples in prepared.splits.values() for sample in samples)


def test_coco_captions_as_a_table(shared: Path, tmp_path: Path) -> None:
    """Five captions of each image, flattened to pairs for training and merged for evaluation."""
    official = json.loads((shared / "coco" / "captions_val2017.json").read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in official["images"]}
    rows = [{"image": f"images/{names[item['image_id']]}", "caption": item["caption"]} for item in official["annotations"]]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    columns = Columns(image="image", references="caption")
    test = load_samples(Data(name="coco", base_dir=str(shared / "coco"), tables={"test": str(tmp_path / "rows.json")}, columns=columns))
    assert len(test.splits["test"]) == len(names)
    assert {len(sample.references) for sample in test.splits["test"]} == {5}
    train = load_samples(Data(name="coco", base_dir=str(shared / "coco"), tables={"train": str(tmp_path / "rows.json")}, columns=columns))
    assert len(train.splits["train"]) == len(rows)
