"""Drawings and shapes: held out is held out, questions give nothing away, and a conversation is several questions about one picture."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError
from eyegraft.prepare import drawings_and_shapes as source
from eyegraft.prepare.drawings_and_shapes import CHOICES, Config, Counts, prepare

SPLITS = ("train", "val", "test")
SMALL = Config(pictures=Counts(train=30, val=5, test=8), questions=Counts(train=4, val=3, test=2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("drawings_and_shapes")
    facts = prepare(SMALL, place)
    assert facts["rows"] == {split: len(read(place, split)) for split in SPLITS}
    return place


def read(place: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def asked(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Picture -> (question, answer) pairs."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        if row["task"] == "instruct":
            found[row["image"]] += [(turn["question"], turn["answer"]) for turn in row["turns"] or []]
            found[row["image"]] += [(row["prompt"], row["caption"])] if row["prompt"] else []
    return dict(found)


def test_both_tasks_are_read_and_nothing_crosses_splits(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    option = yaml.safe_load((CONF / "data" / "drawings_and_shapes.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(made)}))  # refuses groups, pictures and lookalikes in two splits
    assert not data.reasons
    for split, things in {"train": 1000, "val": 200, "test": 200}.items():
        assert len(data.of_task("captions").splits[split]) == things
        assert len(data.of_task("instruct").splits[split]) == len([row for row in read(made, split) if row["task"] == "instruct"])


def test_pictures_have_as_many_questions_as_asked_for(made: Path) -> None:
    for split in SPLITS:
        found = asked(read(made, split))
        assert len(found) == getattr(SMALL.pictures, split)
        assert {len(pairs) for pairs in found.values()} == {getattr(SMALL.questions, split)}
        assert all((made / image).is_file() for image in found)


def test_a_share_of_training_is_conversations_and_the_rest_brings_its_choices(made: Path) -> None:
    rows = [row for row in read(made, "train") if row["task"] == "instruct"]
    talks = [row for row in rows if row["turns"]]
    assert 5 < len(talks) < 25, "half of 30"
    assert all(len(row["turns"]) == 4 and row["choices"] is None for row in talks)
    for row in rows:
        if not row["turns"]:
            assert row["caption"] in row["choices"]
            assert tuple(row["choices"]) == CHOICES[row["kind"]]
    assert not any(row["turns"] for split in ("val", "test") for row in read(made, split))


def test_the_answers_are_those_of_the_package(made: Path) -> None:
    package = Path(source._package()) / "data"
    for split, theirs in {"train": "train", "val": "train", "test": "test"}.items():
        known = {
            (question, answer, f"images/shapes/{theirs}/{image}.png")
            for question, answer, image in json.loads((package / theirs / "questions.json").read_text(encoding="utf-8"))
        }
        ours = {(*pair, image) for image, pairs in asked(read(made, split)).items() for pair in pairs}
        assert ours <= known
    image = next(iter(asked(read(made, "test"))))
    assert (made / image).read_bytes() == (package / "test" / "images" / Path(image).name).read_bytes()


def test_the_words_of_a_question_do_not_tell_its_answer() -> None:
    """The most frequent answer to the same words is right four times in five as the package has them, and as often as luck, balanced."""

    def of_words_alone(*, balanced: bool) -> float:
        config = Config(balanced=balanced)
        tally: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for picture in source._pool("train", 4, config):
            for question, answer in picture.asked[:4]:
                tally[question][answer] += 1
        tested = [pair for picture in source._pool("test", 2, config) for pair in picture.asked[:2] if pair[1] in ("yes", "no")]
        assert len(tested) > 400
        return sum(tally[question].most_common(1)[0][0] == answer for question, answer in tested) / len(tested)

    assert of_words_alone(balanced=False) > 0.78
    assert 0.42 < of_words_alone(balanced=True) < 0.56


def test_what_looks_like_a_held_out_picture_is_not_learned() -> None:
    learned = {picture.name: picture for picture in source._pool("train", 1, SMALL)}
    held_out = {picture.name: picture for picture in source._pool("test", 1, SMALL)}
    order = [learned[f"train/{number}"] for number in (0, 1741, 1, 2, 1460)]  # the second and the last have a twin in test
    tested = [held_out["test/127"], held_out["test/20"]]
    assert [picture.name for picture in source._unlike(order, tested, 9)[0]] == ["train/0", "train/1", "train/2"]
    assert source._unlike([*order[:1], *tested], tested, 9) == ([order[0]], 2)
    assert source._unlike(order[:1] * 100, tested, 3)[0] == order[:1] * 16, "it looks no further than it must"


def test_another_seed_gives_other_pictures_and_the_same_seed_the_same(made: Path, tmp_path: Path) -> None:
    prepare(SMALL, tmp_path)
    assert [read(tmp_path, split) for split in SPLITS] == [read(made, split) for split in SPLITS]
    pools = [[picture.name for picture in source._pool("test", 2, SMALL.model_copy(update={"seed": seed}))][:8] for seed in (0, 1)]
    assert set(pools[0]) != set(pools[1])


def test_more_pictures_than_there_are_is_said() -> None:
    with pytest.raises(DataError, match=r"prepare\.pictures\.test=2000.*\n.*at most \d+"):
        source._cut(Config(pictures=Counts(train=10, val=10, test=2000)))


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"eyegraft\[demo\]"):
        prepare(SMALL, tmp_path)
