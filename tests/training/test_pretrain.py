"""Stages without labels through the real trainer: what they train, what they keep, and how they go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eyegraft.training
from cli.running import Interrupted, rows, stop_before, tensors
from evaluation import weather
from eyegraft.composition import load_recipe
from eyegraft.config import Recipe
from eyegraft.data.patch_store import Schema
from eyegraft.data.patch_writer import write_shards
from eyegraft.errors import RecipeError, RunError
from eyegraft.evaluation import evaluate
from eyegraft.training.checkup import check_recipe
from eyegraft.training.runs import read_run

SENSOR = {**weather.SENSOR, "name": "made_up", "missing": "mask"}
PLAIN = json.dumps(SENSOR).replace('"', "")
STEPS = 7

Make = Callable[..., Recipe]


def without_numbers(job: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    found, counts = weather.columns(job)
    return {**found, "y": np.full_like(found["y"], np.nan)}, counts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weather")
    for seed, (split, stations) in enumerate({"train": range(100, 104), "val": range(100, 104), "test": range(200, 204)}.items()):
        weather.rows(folder / "patches", split, stations, times=8, first_day=365 * (seed % 2), seed=seed, sensor=SENSOR)
    facts = {"sensor": SENSOR, "channels": list(weather.CHANNELS), "extra": ["sza", "dem"], "target": {"name": "ta", "unit": "K"}}
    job = {"stations": list(range(300, 304)), "times": 14, "days": 365, "first_day": 0, "seed": 9, "side": weather.SIDE}
    schema = Schema(fields=weather.FIELDS, split="unlabelled", facts={**facts, "simulated": True})
    write_shards(folder / "patches" / "unlabelled", schema, [job], without_numbers)
    return folder


@pytest.fixture(scope="module")
def recipe(base: Path) -> Make:
    """Seven steps of eight patches without numbers, then two of numbers with the encoder as it is by then."""

    def made(root: Path, kind: str, *overrides: str) -> Recipe:
        splits = "{train: patches/train, val: patches/val, test: patches/test, unlabelled: patches/unlabelled}"
        data = [f"data.base_dir={base}", "~data.satellite.patches", f"+data.satellite.patches={splits}"]
        eye = [
            f"vision_encoder.sensor={PLAIN}",
            "vision_encoder.side=5",
            "vision_encoder.extra_channels=[sza,dem]",
            "vision_encoder.width=8",
        ]
        train = ["train.batch_size=8", "train.checkpoint_every=1", "train.log_every=3", "num_threads=1", "evaluation.splits=[test]"]
        stages = ["stages.pretrain.epochs=1", "+stages.ta.epochs=1", "+stages.ta.max_steps=2", "+stages.ta.tune.vision_encoder=frozen"]
        small = ["stages.pretrain.objective={kind: dino, num_prototypes: 16, hidden_dim: 16, bottleneck_dim: 8}"] if kind == "dino" else []
        small = small or ["stages.pretrain.objective={kind: mae, decoder_dim: 16, decoder_depth: 1}"]
        words = [*data, *eye, *train, *stages, *small, "evaluation.after_training=false", "train.feature_cache.mode=off"]
        return load_recipe("ta_small", f"+experiment=ta_{kind}", f"run_root={root}", *words, *overrides)

    return made


@pytest.fixture(scope="module", params=["mae", "dino"])
def finished(request: pytest.FixtureRequest, recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, eyegraft.training.train(recipe(tmp_path_factory.mktemp("runs"), request.param))


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_only_what_the_objective_reads_trains(finished: tuple[str, Path]) -> None:
    kind, run = finished
    table = {row["part"]: row for row in read_run(run).facts["stages"]["pretrain"]["trainable"]}
    assert {part: row["mode"] for part, row in table.items() if row["trainable"]} == {"vision_encoder": "full", "objective": "full"}
    assert {part for part, row in table.items() if row["mode"] == "frozen"} == set(table) - {"vision_encoder", "objective"} >= {"head"}
    assert table["vision_encoder"]["trainable"] == table["vision_encoder"]["parameters"]
    names = set(saved(run / "pretrain" / "checkpoints" / "best"))
    assert {name.split(".")[0] for name in names} == {"encoders", "objective"}
    own = {name.split(".")[1] for name in names if name.startswith("objective.")}
    assert own == {"mae": {"decoder"}, "dino": {"head", "teacher", "teacher_head", "centre"}}[kind]
    optimised = {
        key.split("|")[0].split(".")[1] for key in load_file(run / "pretrain" / "checkpoints" / "latest" / "optimizer.safetensors")
    }
    assert optimised == {"mae": {"decoder", "image"}, "dino": {"head", "image"}}[kind], "no teacher"


def test_the_next_stage_starts_from_the_encoder_alone(finished: tuple[str, Path]) -> None:
    _, run = finished
    before, after = saved(run / "pretrain" / "checkpoints" / "best"), saved(run / "ta" / "checkpoints" / "best")
    encoder = {name for name in before if name.startswith("encoders.image")}
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder), "frozen in the second stage, so still what the first made"
    assert not [name for name in after if name.startswith("objective.")]
    assert {name.split(".")[0] for name in after} >= {"encoders", "head"}


def test_what_is_written_beside_the_loss(finished: tuple[str, Path]) -> None:
    kind, run = finished
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, checks = ([row for row in lines if row["kind"] == which] for which in ("train", "val"))
    assert [row["step"] for row in steps] == [3, 6, 7]
    assert [(row["epoch"], row["step"]) for row in checks] == [(0, 0), (0, STEPS)], "one before the first step"
    assert lines[0] is checks[0]
    assert len({row["val_loss"] for row in checks}) == 2
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["pretrain"]["best"]["step"] == STEPS, (
        "no best is chosen by it"
    )
    noted = {"teacher_entropy", "feature_variance"} if kind == "dino" else set()
    assert all(set(row) == {"kind", "epoch", "step", "loss", "learning_rate", "tokens", "seconds"} | noted for row in steps)
    assert all(set(row) == {"kind", "epoch", "step", "val_loss", "seconds"} | {f"val_{name}" for name in noted} for row in checks)
    if noted:
        assert all(0 < row["teacher_entropy"] <= np.log(16) + 1e-6 for row in steps)


@pytest.mark.parametrize("step", [1, 4])
def test_a_stage_that_was_killed_ends_with_the_same_bits(
    finished: tuple[str, Path], recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    kind, whole = finished
    made = recipe(tmp_path, kind)
    with monkeypatch.context() as patched:
        stop_before(patched, step, "pretrain")
        with pytest.raises(Interrupted):
            eyegraft.training.train(made)
    again = eyegraft.training.train(made)
    assert len(list(again.parent.iterdir())) == 1
    assert rows(again) == rows(whole)
    assert tensors(again) == tensors(whole)


def test_validation_draws_the_same_every_time(recipe: Make, tmp_path: Path) -> None:
    """An encoder that stands still has the same loss after every epoch, and before the first step, though what is hidden is drawn by chance."""
    run = eyegraft.training.train(
        recipe(tmp_path, "mae", "stages.pretrain.epochs=3", "train.learning_rate=1e-30", "train.weight_decay=0", "run_stages=[pretrain]")
    )
    losses = [row["val_loss"] for row in rows(run) if row["kind"] == "val"]
    assert losses == [losses[0]] * 4
    steps = [row["loss"] for row in rows(run) if row["kind"] == "train"]
    assert len(set(steps)) == len(steps)


def test_nothing_to_evaluate(finished: tuple[str, Path]) -> None:
    _, run = finished
    with pytest.raises(RunError, match=r"stage 'pretrain' learns by tasks\.patches, which has no answers: nothing to score") as caught:
        evaluate(run, stage="pretrain")
    assert caught.value.fix == "train stage 'ta', which starts from it, and evaluate that"


def test_the_checkup_goes_through_both_stages(recipe: Make, tmp_path: Path) -> None:
    for kind in ("mae", "dino"):
        lines = "\n".join(check_recipe(recipe(tmp_path, kind)))
        assert f"stage pretrain: task patches, objective {kind.upper()}" in lines
        assert lines.count("every trainable tensor got a gradient") == 2
    assert not list(tmp_path.iterdir())


# ── what does not go together ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_part_that_is_not_read_cannot_be_tuned(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tune\.head=full under objective mae, which reads vision_encoder") as caught:
        eyegraft.training.train(recipe(tmp_path, "mae", "+train.tune.head=full"))
    assert "set stages.NAME.tune.head=frozen" in caught.value.fix


def test_a_frozen_encoder_under_it_is_refused(recipe: Make, tmp_path: Path) -> None:
    clay = ["vision_encoder=clay_tiny", "vision_encoder.checkpoint=null", "~vision_encoder.width", "vision_encoder.grid=resize72"]
    with pytest.raises(RecipeError, match="in a stage where vision_encoder is frozen"):
        eyegraft.training.train(
            recipe(tmp_path, "dino", *clay, "stages.pretrain.freeze_backbone=true", "stages.pretrain.finetune_layers=0")
        )


def test_a_task_with_answers_does_not_know_it(recipe: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective\.kind=mae with tasks\.ta"):
        eyegraft.training.train(recipe(tmp_path, "mae", "stages.pretrain.task=ta"))
