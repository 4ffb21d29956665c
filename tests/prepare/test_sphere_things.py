"""Things on the sphere: what is pasted lies where the table says, every answer follows from it, and guessing is of little use."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import RecipeError
from eyegraft.prepare.sphere_things import Config, Counts, prepare
from eyegraft.prepare.sphere_things.plan import Scene, Thing
from eyegraft.prepare.sphere_things.render import render
from eyegraft.views import WHOLE, View

SPLITS = ("train", "val", "test")
SMALL = Config(panoramas=Counts(train=40, val=6, test=10), width=256)
AXES = {"ahead": 0, "right": 90, "behind": 180, "left": 270}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sphere_things")
    prepare(SMALL, place)
    return place


def read(place: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("yaw", "pitch", "degrees"), [(0, 0, 30), (178, -25, 15), (-60, 40, 60)])
def test_a_thing_fills_its_field_of_view_and_touches_nothing_else(yaw: float, pitch: float, degrees: float) -> None:
    width, empty = 512, Scene("train", 0, "night", 77.0, ())
    thing = Thing("television", "twemoji", "1f4fa", yaw, pitch, degrees)
    changed = (render(Scene("train", 0, "night", 77.0, (thing,)), width) != render(empty, width)).any(axis=-1)
    directions = WHOLE.cells(width // 2, width)[changed]
    x, y = View("perspective", yaw, pitch, degrees, degrees).places(directions)
    pixel = 2 * (360 / width) / degrees / np.cos(np.radians(abs(pitch) + degrees / 2))  # as wide as it gets, in halves of the view
    assert max(abs(x).max(), abs(y).max()) < 1 + pixel
    assert min(x.max() - x.min(), y.max() - y.min()) > 1.75, "a television is nearly as wide and as high as its picture"
    assert abs(x.max() + x.min()) < 0.1 + pixel, "and stands in its middle"


def test_the_seam_is_no_border() -> None:
    """At the seam a thing looks as ahead: the sphere has no first column."""
    width = 256
    ahead = render(Scene("train", 0, "city", 10.0, (Thing("cat", "noto", "1f408", 0.0, 12.0, 28.0),)), width)
    behind = render(Scene("train", 0, "city", 190.0, (Thing("cat", "noto", "1f408", -180.0, 12.0, 28.0),)), width)
    assert np.array_equal(np.roll(ahead, width // 2, axis=1), behind)


def test_a_transparent_border_leaves_no_trace() -> None:
    """A drawing's colours where it is transparent do not bleed into the picture: a banana on white has no dark rim."""
    width = 512
    plain = render(Scene("train", 0, "studio", 0.0, ()), width).astype(int)
    shown = render(Scene("train", 0, "studio", 0.0, (Thing("banana", "twemoji", "1f34c", -122.0, 0.0, 20.0),)), width).astype(int)
    changed = (plain != shown).any(axis=-1)
    blue = shown[..., 2][changed & (plain[..., 2] > 180)]
    red = shown[..., 0][changed & (plain[..., 2] > 180)]
    assert len(red) > 100
    assert (red > 90).mean() > 0.98, "a banana on white is nowhere black, not even where it ends"
    assert blue.min() < 100, "and it is there"


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_follows_from_what_was_pasted(made: Path) -> None:
    kinds = Counter()
    for split in SPLITS:
        for row in read(made, split):
            things = {thing["name"]: thing for thing in row["things"]}
            named = [name for name in SMALL.things if name in row["prompt"]]
            kinds[row["kind"]] += 1
            match row["kind"]:
                case "what":
                    axis = next(axis for word, axis in AXES.items() if word in row["prompt"])
                    offs = {name: turn(thing["yaw"], axis) for name, thing in things.items()}
                    assert min(offs, key=lambda name: offs[name]) == row["caption"]
                    assert offs.pop(row["caption"]) <= 35
                    assert all(off >= 55 for off in offs.values())
                case "where":
                    assert turn(things[named[0]]["yaw"], AXES[row["caption"]]) <= 35
                case "count":
                    assert row["caption"] == str(len(things))
                case "apart":
                    one, other = (things[name]["yaw"] for name in named)
                    assert abs(turn(one, other) - int(row["caption"])) <= 12
                case "exists":
                    assert row["caption"] == ("yes" if named[0] in things else "no")
            assert row["choices"] is None or row["caption"] in row["choices"]
    assert set(kinds) == {"what", "where", "count", "apart", "exists"}


def turn(one: float, other: float) -> float:
    return min((one - other) % 360, (other - one) % 360)


def test_no_question_about_a_picture_answers_another(made: Path) -> None:
    named: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in read(made, "train"):
        named[row["image"]].update(name for name in SMALL.things if name in f"{row['prompt']} {row['caption']}")
    assert max(count for names in named.values() for count in names.values()) == 1


def test_guessing_is_of_little_use(tmp_path: Path) -> None:
    facts = prepare(Config(panoramas=Counts(train=300, val=1, test=100), width=64), tmp_path)
    for split in ("train", "test"):
        best = facts["most_frequent"][split]
        assert best["exists"] < 0.52
        assert best["where"] < 0.31
        assert best["apart"] < 0.31
        assert best["count"] < 0.21
        assert best["what"] < 0.15
        assert best["all"] < 0.3
    yes = Counter((row["prompt"], row["caption"]) for row in read(tmp_path, "train") if row["kind"] == "exists")
    asked = Counter(question for question, _ in yes.elements())
    told = sum(max(yes[question, answer] for answer in ("yes", "no")) for question in asked) / asked.total()
    assert told < 0.7, "which thing is asked for says nothing; 24 small tallies are never quite even"


def test_neither_a_place_nor_a_style_is_in_two_splits(made: Path) -> None:
    places, styles = defaultdict(set), defaultdict(set)
    for split in SPLITS:
        for row in read(made, split):
            places[row["background"]].add(split)
            for thing in row["things"]:
                styles[thing["style"]].add(split)
    assert all(len(splits) == 1 for splits in (*places.values(), *styles.values()))


def test_turns_of_one_conversation_are_the_questions_of_its_picture(tmp_path: Path) -> None:
    facts = prepare(SMALL.model_copy(update={"conversations": 0.5}), tmp_path)
    rows = read(tmp_path, "train")
    talks = [row for row in rows if row["kind"] == "conversation"]
    assert len(talks) == 20
    assert facts["rows"]["train"] == len(rows)
    assert all(row["prompt"] is None and row["caption"] is None and row["choices"] is None for row in talks)
    assert all(1 < len(row["turns"]) <= 5 for row in talks)
    assert all(row["turns"] is None for split in ("val", "test") for row in read(tmp_path, split))


def test_a_description_names_everything_where_it_is_in_a_row_that_no_turn_reads(tmp_path: Path) -> None:
    facts = prepare(SMALL.model_copy(update={"conversations": 1.0, "descriptions": True}), tmp_path)
    rows = read(tmp_path, "train")
    scenes = [row for row in rows if row["kind"] == "scene"]
    assert (len(scenes), facts["rows"]["train"]) == (40, len(rows))
    assert all((row["task"] == "describe") == (row["kind"] == "scene") for row in rows)
    for row in scenes:
        directions, number = row["caption"].split(": ")
        said = {part.split(" ", 1)[0]: part.split(" ", 1)[1] for part in directions.split(", ")}
        assert list(said) == ["ahead", "right", "behind", "left"]
        assert int(number) == len(row["things"])
        for thing in row["things"]:
            nearest = min(range(4), key=lambda turn: abs((thing["yaw"] - 90 * turn + 180) % 360 - 180))
            assert thing["name"] in said[list(said)[nearest]].split(" and ")
        assert sum(0 if names == "nothing" else len(names.split(" and ")) for names in said.values()) == len(row["things"])
        assert row["turns"] is None


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_goes_on_where_it_stopped_and_another_configuration_leaves_nothing_behind(tmp_path: Path) -> None:
    few = SMALL.model_copy(update={"panoramas": Counts(train=6, val=1, test=2)})
    prepare(few, tmp_path)
    first = {path: path.read_bytes() for path in (tmp_path / "images" / "train").iterdir()}
    lost = sorted(first)[2]
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in first if path != lost}
    prepare(few, tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "images" / "train").iterdir()} == first
    assert {path: path.stat().st_mtime_ns for path in times} == times, "what was there is not drawn again"

    rows = read(tmp_path, "train")
    prepare(few.model_copy(update={"panoramas": Counts(train=8, val=1, test=2)}), tmp_path)
    assert read(tmp_path, "train")[: len(rows)] == rows, "more of one seed begin with the same"
    (tmp_path / "images" / "train" / "mine.jpg").write_bytes(b"kept")
    facts = prepare(few.model_copy(update={"seed": 1}), tmp_path)
    there = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "images").rglob("*.jpg")}
    assert there == {name for name in facts["outputs"] if name.endswith(".jpg")} | {"images/train/mine.jpg"}
    assert not there & {path.relative_to(tmp_path).as_posix() for path in first}


def test_it_is_read_as_it_is(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    conf = yaml.safe_load((CONF / "data" / "sphere_things.yaml").read_text(encoding="utf-8"))
    found = load_samples(Data.model_validate({**conf, "base_dir": str(made)}))
    assert not found.quarantined
    assert not found.near_duplicates
    sample = found.splits["test"][0]
    assert sample.group == "test/0"
    assert {thing["name"] for thing in sample.meta["things"]} <= set(SMALL.things)


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(ValidationError, match="12 things, each 40 degrees from the next, do not fit"):
        Config(num_things=(2, 12))
    with pytest.raises(ValidationError, match="give the lower one first"):
        Config(size_degrees=(30, 15))
    with pytest.raises(ValidationError, match="within 45 degrees of the horizon"):
        Config(pitch_degrees=(-60, 0))
    with pytest.raises(RecipeError, match="no drawing of 'elefant'") as error:
        prepare(Config(things=("elefant", *SMALL.things)), Path("nowhere"))
    assert "elephant" in str(error.value)
