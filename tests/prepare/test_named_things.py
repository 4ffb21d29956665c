"""Named things: words beside some drawings; labels, splits and texts are facts of the drawings and a hash, the same on every machine."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import RecipeError
from eyegraft.prepare import drawings, named_things
from eyegraft.prepare.named_things import Config, prepare

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("named_things")
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
        assert facts["rows"][split] == len(rows)
        assert facts["positives"][split] == sum(row["label"] == "True" for row in rows)
        assert facts["with_text"][split] == sum(row["text_info"] != "" for row in rows)
    assert facts["rows"] == {"train": 336, "val": 220, "test": 448}


def test_neither_a_thing_nor_a_style_of_training_is_tested(made: Path) -> None:
    concepts, styles = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for row in read(made, split):
            concepts[row["concept"]].add(split)
            styles[row["style"]].add(split)
    assert all(len(splits) == 1 for splits in concepts.values())
    assert len(concepts) == 279
    assert all("train" not in splits or splits == {"train"} for splits in styles.values())


def test_the_label_is_the_group_of_unicode(made: Path) -> None:
    labels = {row["name"]: row["label"] for split in SPLITS for row in read(made, split)}
    assert {name: labels[name] for name in ("monkey", "rose", "tomato", "hammer", "cloud")} == {
        "monkey": "True",
        "rose": "True",
        "tomato": "False",
        "hammer": "False",
        "cloud": "False",
    }
    for split in SPLITS:
        rows = read(made, split)
        assert {row["label"] for row in rows} == {"True", "False"}
        assert sum(row["label"] == "True" for row in rows) / len(rows) == pytest.approx(57 / 279, abs=0.01)


def test_words_are_the_keywords_of_the_thing_in_the_stated_share_whatever_the_label(made: Path) -> None:
    with (named_things.HERE / "keywords.csv").open(encoding="utf-8", newline="") as stream:
        words = {row["codepoint"]: row["keywords"] for row in csv.DictReader(stream)}
    rows = [row for split in SPLITS for row in read(made, split)]
    assert {row["text_info"] == words[row["concept"]] for row in rows if row["text_info"]} == {True}
    for label in ("True", "False"):
        same = [row["text_info"] != "" for row in rows if row["label"] == label]
        assert sum(same) / len(same) == pytest.approx(0.55, abs=0.06)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, {False}), (1.0, {True})])
def test_words_may_be_nowhere_or_everywhere(tmp_path: Path, share: float, wanted: set[bool]) -> None:
    prepare(Config(text_share=share, train_styles=("noto",), new_styles=("twemoji",)), tmp_path)
    assert {row["text_info"] != "" for row in read(tmp_path, "test")} == wanted


def test_a_torn_copy_is_made_whole_and_a_whole_one_is_left(made: Path) -> None:
    torn, whole = (made / read(made, "val")[place]["local_image_path"] for place in (0, 1))
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")  # of the same size
    before = whole.stat().st_mtime_ns
    prepare(Config(), made)
    assert torn.read_bytes() == (drawings.HERE / torn.relative_to(made)).read_bytes()
    assert whole.stat().st_mtime_ns == before


def test_a_style_that_is_not_there_or_on_both_sides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no drawing style 'notto'"):
        prepare(Config(train_styles=("notto",)), tmp_path)
    with pytest.raises(RecipeError, match="noto in both"):
        prepare(Config(new_styles=("noto", "twemoji")), tmp_path)


def test_licences_come_along(made: Path) -> None:
    used = {row["style"] for split in SPLITS for row in read(made, split)}
    assert used | {"keywords"} <= {path.stem for path in (made / "LICENSES").iterdir()}
    assert "Unicode, Inc." in (made / "LICENSES" / "keywords.txt").read_text(encoding="utf-8")


def test_the_data_option_reads_it_without_a_bad_row_or_a_leak(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    option = yaml.safe_load((CONF / "data" / "named_things.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(made)}))
    assert data.num_rows == {"train": 336, "val": 220, "test": 448}
    assert not data.quarantined
    assert {sample.references for samples in data.splits.values() for sample in samples} == {("True",), ("False",)}
