"""Texts that are sampled after every epoch: of every task, the same after a resume, and nothing of the training is changed by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import TESTS, Interrupted, kept_registry, read_table, rows, stop_before, tensors
from eyegraft import load_recipe, load_run, train
from eyegraft.composition import use_config_dir
from eyegraft.registry import use_plugin
from serving import weather_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.shapes(tmp_path_factory.mktemp("sampled") / "data", {"train": 8, "val": 6, "test": 2})


def made(data: Path, root: Path, *words: str) -> Any:
    """Captions, of two stages; dropout in the head takes random numbers in every step."""
    use_plugin("tinyparts")
    use_config_dir(str(TESTS / "tinyparts" / "conf"))
    short = ("stages.warm.epochs=1", "stages.finetune.epochs=3", "train.checkpoint_every=1")
    return load_recipe("tiny", *short, f"data.base_dir={data}", f"run_root={root}", *words)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with kept_registry(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(made(data, tmp_path_factory.mktemp("whole")))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def test_they_change_nothing(data: Path, tmp_path: Path, whole: Path) -> None:
    without = train(made(data, tmp_path, "train.log_samples=0"))
    assert not list(without.rglob("samples.jsonl"))
    assert rows(without) == rows(whole)
    assert tensors(without) == tensors(whole)


def test_the_same_few_samples_are_asked_after_every_epoch(data: Path, whole: Path) -> None:
    table = read_table(whole / "finetune" / "samples.jsonl")
    val = read_table(data / "val.jsonl")
    assert [row["epoch"] for row in table] == [0] * 4 + [1] * 4 + [2] * 4
    assert [row["step"] for row in table[::4]] == [
        row["step"] for row in read_table(whole / "finetune" / "metrics.jsonl") if row["kind"] == "val"
    ]
    assert {tuple(row["id"] for row in table[start : start + 4]) for start in (0, 4, 8)} == {
        tuple(val[place]["id"] for place in (0, 1, 3, 4))
    }
    assert [row["reference"] for row in table[:4]] == [val[place]["caption"] for place in (0, 1, 3, 4)]
    assert set(table[0]) == {"epoch", "step", "id", "task", "prompt", "answer", "reference"}


def test_they_are_what_the_checkpoint_answers(data: Path, whole: Path) -> None:
    last = read_table(whole / "finetune" / "samples.jsonl")[-4:]
    use_plugin("tinyparts")
    images = {row["id"]: data / row["image"] for row in read_table(data / "val.jsonl")}
    said = load_run(whole / "finetune" / "checkpoints" / "latest").predict([images[row["id"]] for row in last])
    assert said == [row["answer"] for row in last]


def test_a_run_that_was_killed_has_each_epoch_once(data: Path, tmp_path: Path, whole: Path) -> None:
    steps = [row["step"] for row in read_table(whole / "finetune" / "samples.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, steps[4] + 1, "finetune")
        with pytest.raises(Interrupted):
            train(made(data, tmp_path))
    (cut,) = tmp_path.glob("*/*/finetune/samples.jsonl")
    cut.write_text(cut.read_text(encoding="utf-8") + json.dumps({"step": steps[-1]}) + "\n", encoding="utf-8")  # beyond the checkpoint
    run = train(made(data, tmp_path))
    assert (run / "finetune" / "samples.jsonl").read_bytes() == (whole / "finetune" / "samples.jsonl").read_bytes()
    assert tensors(run) == tensors(whole)


def test_every_task_of_a_mixture_and_every_tracker(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = weather_run.trained(tmp_path, "train.log_samples=2", "trackers.tensorboard=true")
    table = read_table(run / "all" / "samples.jsonl")
    tasks = ["element_caption", "summary", "link", "text_summary"]
    assert [row["task"] for row in table] == [task for task in tasks for _ in range(2 if task != "text_summary" else 1)]
    sums = next(row for row in table if row["task"] == "summary")
    assert (sums["prompt"], sums["reference"]) == ("Sum:\nAnswer:", weather_run.SUMMARY)
    link = next(row for row in table if row["task"] == "link")
    assert link["reference"] == weather_run.sentences("mcon")[-1]
    assert link["reference"] not in link["prompt"]
    (events,) = (run / "all" / "tensorboard").glob("events.out.tfevents*")
    content = events.read_bytes()
    assert all(f"samples/{task}".encode() in content for task in tasks)
    assert weather_run.SUMMARY.encode() in content


def test_stages_without_texts_have_none(tmp_path: Path) -> None:
    look = "stages.look={task: maps, objective: {kind: condition}, tune: {condition_classifier: full, vision_encoder: frozen}}"
    run = weather_run.trained(tmp_path, "tasks.maps={kind: pretrain}", look)
    assert (run / "all" / "samples.jsonl").is_file()
    assert (run / "look" / "metrics.jsonl").is_file()
    assert not (run / "look" / "samples.jsonl").exists()
