"""Brand marks: the shipped slice keeps its promises about splits, classes, licences and matched pictures."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageChops

from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.prepare import brand_marks
from eyegraft.prepare.brand_marks import Config, prepare, rebuild

SPLITS = ("train", "val", "test", "test_new_styles")
ROWS = {"train": 480, "val": 160, "test": 240, "test_new_styles": 160}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("brand_marks")
    prepare(Config(), place)
    return place


def read(place: Path, split: str) -> list[dict[str, str]]:
    with (place / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_is_the_same_again_and_counts_what_it_wrote(made: Path, tmp_path: Path) -> None:
    facts = prepare(Config(), tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.csv").read_bytes() == (made / f"{split}.csv").read_bytes()
        rows = read(made, split)
        assert list(rows[0]) == ["local_image_path", "label", "text_info", "advertiser", "style", "id"]
        assert facts["with_text"][split] == sum(row["text_info"] != "" for row in rows)
    assert facts["rows"] == ROWS
    assert facts["positives"] == {split: rows // 2 for split, rows in ROWS.items()}
    shipped = {path.relative_to(brand_marks.HERE).as_posix() for path in (brand_marks.HERE / "images").rglob("*.webp")}
    assert shipped == {row["local_image_path"] for split in SPLITS for row in read(made, split)}


def test_no_brand_and_no_thing_crosses_splits(made: Path) -> None:
    groups = defaultdict(set)
    for split in SPLITS:
        for row in read(made, split):
            groups[row["advertiser"]].add((split, row["label"]))
    assert all(len(places) == 1 for places in groups.values())


def test_the_first_three_splits_have_one_mix_of_styles_and_the_last_has_others(made: Path) -> None:
    styles = {split: Counter(row["style"] for row in read(made, split) if row["label"] == "False") for split in SPLITS}
    for split in ("val", "test"):
        assert {style: count / ROWS[split] for style, count in styles[split].items()} == pytest.approx(
            {style: count / ROWS["train"] for style, count in styles["train"].items()}
        )
    assert len(styles["train"]) == 5
    assert len(styles["test_new_styles"]) == 4
    assert not set(styles["train"]) & set(styles["test_new_styles"])


def test_no_word_of_the_name_of_a_thing_crosses_splits(made: Path) -> None:
    """A thing drawn in two styles, or its variants in one, would make the splits easier than they say."""
    words = defaultdict(set)
    for split in SPLITS:
        for row in read(made, split):
            if row["label"] == "False":
                for word in set(row["id"].split("/")[1].split("-")) - set(rebuild.PASSED_OVER.split()):
                    if len(word) > 1 and not word.isdigit():
                        words[word].add(split)
    assert not {word: splits for word, splits in words.items() if len(splits) > 1}


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_each_split_are_marks_and_their_shapes_are_matched(made: Path, split: str) -> None:
    shapes: dict[str, list[float]] = {"True": [], "False": []}
    for row in read(made, split):
        with Image.open(made / row["local_image_path"]) as picture:
            assert (picture.size, picture.mode) == ((128, 128), "RGB")
            white = Image.new("RGB", picture.size, "white")
            box = ImageChops.difference(picture, white).convert("L").point(lambda value: 255 * (value > 12)).getbbox()
            assert box is not None
            shapes[row["label"]].append((box[2] - box[0]) / (box[3] - box[1]))
    marks, others = (sorted(shapes[label]) for label in ("True", "False"))
    assert len(marks) == len(others)
    assert sum(abs(one - two) for one, two in zip(marks, others, strict=True)) / len(marks) < 0.08


def test_texts_are_read_and_kept_whole(made: Path) -> None:
    texts = {row["id"]: row["text_info"] for split in SPLITS for row in read(made, split)}
    assert texts["logos/flask"] == "Flask"
    assert texts["logos/tsu"] == "tsū"
    assert Counter(text == " ".join(text.split()) for text in texts.values()) == {True: sum(ROWS.values())}


def test_a_torn_copy_is_made_whole_and_a_whole_one_is_left(made: Path) -> None:
    torn, whole = (made / read(made, "val")[place]["local_image_path"] for place in (0, 1))
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")  # of the same size
    before = whole.stat().st_mtime_ns
    prepare(Config(), made)
    assert torn.read_bytes() == (brand_marks.HERE / torn.relative_to(made)).read_bytes()
    assert whole.stat().st_mtime_ns == before


def test_licences_come_along(made: Path) -> None:
    styles = {row["style"] for split in SPLITS for row in read(made, split)}
    assert styles == {path.stem for path in (made / "LICENSES").iterdir()}
    assert "trademarks of their owners" in (made / "LICENSES" / "logos.txt").read_text(encoding="utf-8")


def test_the_data_option_reads_it_without_a_bad_row_or_a_leak(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    option = yaml.safe_load((CONF / "data" / "brand_marks.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(made)}))
    assert data.num_rows == ROWS
    assert not data.quarantined
    assert {sample.references for samples in data.splits.values() for sample in samples} == {("True",), ("False",)}
