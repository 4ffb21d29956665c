"""Captions and conversations about the same pictures in one folder: rows say whose they are, and no picture is learned here and held out there."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from command_line import eyegraft
from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError
from eyegraft.prepare import coco_captions, llava_instruct
from eyegraft.prepare.coco_llava import Config, prepare

NUM_PICTURES = 40  # of train2017; each has a caption and is talked about


def written(root: Path) -> Path:
    """COCO and LLaVA in small, where their options look for them."""
    coco = root / "coco"
    for folder, numbers in {"train2017": range(1, NUM_PICTURES + 1), "val2017": range(901, 905)}.items():
        (coco / folder).mkdir(parents=True)
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(coco / folder / f"{number:012d}.jpg")
        official = {
            "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in numbers],
            "annotations": [{"id": 10 * number, "image_id": number, "caption": f"Picture {number}."} for number in numbers],
        }
        (coco / "annotations").mkdir(exist_ok=True)
        (coco / "annotations" / f"captions_{folder}.json").write_text(json.dumps(official), encoding="utf-8")
    talks = [
        {
            "id": f"{number:012d}",
            "image": f"{number:012d}.jpg",
            "conversations": [{"from": "human", "value": "<image>\nWhich is it?"}, {"from": "gpt", "value": f"Number {number}."}],
        }
        for number in range(1, NUM_PICTURES + 1)
    ]
    (root / "llava").mkdir()
    (root / "llava" / "llava_instruct_150k.json").write_text(json.dumps(talks), encoding="utf-8")
    return root / "coco_llava"


def options(**changes: Any) -> dict[str, Any]:
    """As the recipe has them, with more pictures held out."""
    sources = {
        "captions": {
            "folder": "../coco",
            "annotations": {"train": "annotations/captions_train2017.json", "val": "annotations/captions_val2017.json"},
            "images": {"train": "train2017", "val": "val2017"},
            "splits": {"train": {"train": 0.5, "val": 0.25, "left_out": 0.25}, "val": {"test": 1.0}},
        },
        "instruct": {
            "folder": "../llava",
            "annotations": {"all": "llava_instruct_150k.json"},
            "images": "../coco/train2017",
            "splits": {"all": {"train": 0.5, "val": 0.25, "test": 0.25}},
        },
    }
    for path, value in changes.items():
        task, key = path.split("__")
        sources[task][key] = value
    return sources


def read(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_picture_is_in_one_split_whichever_task_asks_about_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    place = written(tmp_path)
    facts = prepare(Config.model_validate(options()), place)
    option = yaml.safe_load((CONF / "data" / "coco_llava.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(place)}))
    splits: dict[str, set[str]] = defaultdict(set)
    for split, samples in data.splits.items():
        assert {sample.task for sample in samples} == {"captions", "instruct"}
        for sample in samples:
            splits[sample.group or ""].add(split)
    assert all(len(found) == 1 for found in splits.values())
    captions = data.of_task("captions")
    assert {sample.references for sample in captions.splits["test"]} == {(f"Picture {number}.",) for number in range(901, 905)}
    talk = data.of_task("instruct").splits["test"][0]
    assert (talk.prompt, talk.references) == ("Which is it?", (f"Number {talk.group}.",))
    held_out = {row["group"] for row in read(place / "left_out.jsonl")}
    assert held_out == {sample.group for sample in data.of_task("instruct").splits["test"]}
    assert facts["rows"]["test"] == 4 + len(held_out)
    assert facts["read"]["captions"]["train"]["place"] == "annotations/captions_train2017.json"


def test_rows_of_both_tasks_have_the_same_columns(tmp_path: Path) -> None:
    place = written(tmp_path)
    prepare(Config.model_validate(options()), place)
    rows = read(place / "train.jsonl")
    assert {tuple(row) for row in rows} == {("id", "image", "task", "caption", "turns", "group")}
    assert {(row["task"], row["caption"] is None, row["turns"] is None) for row in rows} == {
        ("captions", False, True),
        ("instruct", True, False),
    }
    assert len({row["id"] for row in rows}) == len(rows)


def test_each_task_has_the_rows_of_its_own_source(tmp_path: Path) -> None:
    place = written(tmp_path)
    config = Config.model_validate(options())
    prepare(config, place)
    coco_captions.prepare(config.captions, tmp_path / "coco")
    llava_instruct.prepare(config.instruct, tmp_path / "llava")
    for task, alone, key in (("captions", "coco", "caption"), ("instruct", "llava", "turns")):
        together = [(row["group"], row[key]) for row in read(place / "train.jsonl") if row["task"] == task]
        assert together == [(row["group"], row[key]) for row in read(tmp_path / alone / "train.jsonl")]


@pytest.mark.parametrize("task", ["captions", "instruct"])
def test_faults_name_the_options_of_their_source(tmp_path: Path, task: str) -> None:
    place = written(tmp_path)
    with pytest.raises(DataError) as caught:
        prepare(Config.model_validate(options(**{f"{task}__folder": "nowhere"})), place)
    assert f"prepare.{task}.folder" in str(caught.value)


def test_what_is_left_out_says_from_which_task(tmp_path: Path) -> None:
    place = written(tmp_path)
    for folder in ("train2017", "val2017"):
        path = tmp_path / "coco" / "annotations" / f"captions_{folder}.json"
        official = json.loads(path.read_text(encoding="utf-8"))
        official["annotations"].append({"id": 7, "image_id": official["images"][0]["id"], "caption": " "})
        path.write_text(json.dumps(official), encoding="utf-8")
    facts = prepare(Config.model_validate(options(captions__max_bad_fraction=0.1)), place)
    assert facts["left_out"] == {"empty caption": 2}
    assert [(row["task"], row["source"]) for row in read(place / "quarantine.jsonl")] == [("captions", "train"), ("captions", "val")]
    with pytest.raises(DataError, match=r"prepare\.captions\.max_bad_fraction"):
        prepare(Config.model_validate(options(captions__max_bad_fraction=0.01)), place)


def test_an_option_of_another_kind_is_refused() -> None:
    given = options()
    Config.model_validate({**given, "captions": {**given["captions"], "kind": "coco_captions"}})
    with pytest.raises(ValidationError, match="kind"):
        Config.model_validate({**given, "captions": {**given["captions"], "kind": "llava_instruct"}})


def test_the_recipe_finds_both_where_they_lie(tmp_path: Path) -> None:
    """By its own shares: enough pictures that one in a hundred is at least one."""
    place = written(tmp_path)
    done = eyegraft("prepare", "recipe=phi2_clip", cwd=tmp_path, env={"DATA_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows"]["train"] == 2 * (NUM_PICTURES - 2)
    assert set(manifest["files"]) == {"train.jsonl", "val.jsonl", "left_out.jsonl", "test.jsonl", "quarantine.jsonl"}
