"""Runs from the Python interface: what is learned, what is written down, and how a run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny
from cli.running import TESTS, Interrupted, kept_registry, read_table, rows, small_words, stop_before, tensors, write_table
from eyegraft import evaluate, load_recipe, load_run, train
from eyegraft.composition import use_config_dir
from eyegraft.config import Recipe
from eyegraft.errors import RecipeError, RunError
from eyegraft.registry import use_plugin

Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.shapes(tmp_path_factory.mktemp("run") / "data", {"train": 12, "val": 3, "test": 4})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def tiny_recipe(data: Path, root: Path, *overrides: str) -> Recipe:
    """Two stages of torch-only parts."""
    use_plugin("tinyparts")
    use_config_dir(str(TESTS / "tinyparts" / "conf"))
    short = ("stages.warm.epochs=2", "stages.finetune.epochs=1")
    return load_recipe("tiny", *short, f"data.base_dir={data}", f"run_root={root / 'runs'}", *overrides)


def small_recipe(folders: Any, data: Path, root: Path, *overrides: str) -> Recipe:
    """A vision encoder whose last block trains, and a language model with adapters, as folders of the hub hold them."""
    use_config_dir(str(TESTS / "cli" / "conf"))
    return load_recipe("small", *small_words(folders)[1:], f"data.base_dir={data}", f"run_root={root / 'runs'}", *overrides)


@pytest.fixture(scope="module")
def small_run(folders: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with kept_registry():
        return train(small_recipe(folders, data, tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def tiny_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with kept_registry():
        return train(tiny_recipe(data, tmp_path_factory.mktemp("tiny")))


# ── what a run is ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_folder(small_run: Path) -> None:
    facts = json.loads((small_run / "run.json").read_text(encoding="utf-8"))
    assert facts["finished"] is True
    assert {name: split["rows"] for name, split in facts["data"]["splits"].items()} == {"train": 12, "val": 3, "test": 4}
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"] == torch.__version__
    stage = facts["stages"]["only"]
    assert (stage["status"], stage["steps"]) == ("finished", 6)
    assert stage["best"]["metric"] == "val_loss"
    modes = {row["part"]: (row["mode"], row["trainable"] > 0) for row in stage["trainable"]}
    assert modes == {"vision_encoder": ("last_n", True), "connector": ("full", True), "head": ("lora", True)}
    best = small_run / "only" / "checkpoints" / "best"
    assert not (best / "optimizer.safetensors").exists(), "only `latest` carries what resuming needs"
    assert (best / "adapter" / "head" / "adapter_model.safetensors").exists()
    saved = load_file(best / "model.safetensors")
    assert all(name.startswith(("connectors.", "encoders.")) for name in saved), "a frozen tensor is never saved"
    assert yaml.safe_load((best / "recipe.yaml").read_text(encoding="utf-8"))["recipe"] == "small"


def test_metrics_rows(small_run: Path) -> None:
    table = [json.loads(line) for line in (small_run / "only" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in table if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in steps] == [0, 0, 0, 1, 1, 1]
    assert all(set(row) == {"kind", "epoch", "step", "loss", "learning_rate", "tokens", "seconds"} for row in steps)
    assert [row["tokens"] for row in steps] == sorted({row["tokens"] for row in steps}), "learned tokens are counted up"
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(table))
    validations = [row for row in table if row["kind"] == "val"]
    assert [(row["epoch"], row["step"]) for row in validations] == [(0, 3), (1, 6)]
    assert all(set(row) == {"kind", "epoch", "step", "val_loss", "seconds"} for row in validations)
    facts = json.loads((small_run / "run.json").read_text(encoding="utf-8"))
    assert facts["stages"]["only"]["best"]["value"] == min(row["val_loss"] for row in validations)


def test_reloaded_run_gives_the_loss_that_training_wrote(small_run: Path) -> None:
    """What is saved is all that was trained: a fresh model with the checkpoint put in has the validation loss of that epoch."""
    from eyegraft.data.batches import load_batches
    from eyegraft.data.samples import load_samples
    from eyegraft.training.building import build_objective
    from eyegraft.training.runs import read_run
    from eyegraft.training.stage_data import encode_splits, stage_data
    from eyegraft.training.trained import load_model

    opened = read_run(small_run)
    model, task, path = load_model(opened)
    assert path == small_run / "only" / "checkpoints" / "best"
    objective = build_objective(task, opened.recipe.stage("only"))
    data = load_samples(opened.recipe.data)
    settings = opened.recipe.stage("only")
    read = stage_data(opened.recipe, settings, model, data, encode_splits(task, settings, data, model), {})
    assert read.val is not None
    with torch.no_grad():
        batch = next(load_batches(read.val, [range(len(read.val))], pad_id=read.pad_id))
        loss = objective(model.eval()(batch), batch)
    assert float(loss.sums.sum() / loss.counts.sum()) == pytest.approx(opened.facts["stages"]["only"]["best"]["value"], abs=1e-5)


def test_public_functions_can_be_called_again_and_again(small_run: Path) -> None:
    import eyegraft

    for _ in range(2):
        for name in ("load_recipe", "prepare_data", "train", "evaluate", "load_run", "write_report"):
            assert callable(getattr(eyegraft, name))
            assert not isinstance(getattr(eyegraft, name), type(eyegraft)), f"eyegraft.{name} is a module"
        first = evaluate(small_run, splits=["val"])["val"]
        assert evaluate(small_run, splits=["val"])["val"]["systems"] == first["systems"]
    assert len(load_run(small_run).predict([read_table(small_run / "evaluation" / "val.samples.jsonl")[0]["image"]])) == 1


# ── the same again ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("override", ["seed=0", "data.num_workers=2"])
def test_same_seed_same_bits(small_run: Path, folders: Any, data: Path, tmp_path: Path, override: str) -> None:
    again = train(small_recipe(folders, data, tmp_path, override))
    assert again != small_run
    assert rows(again) == rows(small_run)
    assert tensors(again) == tensors(small_run)


def test_another_seed_another_run(tiny_run: Path, data: Path, tmp_path: Path) -> None:
    assert rows(train(tiny_recipe(data, tmp_path, "seed=1"))) != rows(tiny_run)


@pytest.mark.parametrize("step", [1, 4])
def test_interrupted_run_with_adapters_goes_on_to_the_same_bits(
    folders: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    small_run: Path,
    step: int,
) -> None:
    recipe = small_recipe(folders, data, tmp_path, "train.checkpoint_every=1")
    stop_before(monkeypatch, step)
    with pytest.raises(Interrupted):
        train(recipe)
    monkeypatch.undo()
    (run,) = (tmp_path / "runs" / "small").iterdir()
    assert not json.loads((run / "run.json").read_text(encoding="utf-8"))["finished"]
    with caplog.at_level(logging.INFO, logger="eyegraft"):
        assert train(recipe) == run, "the same call goes on with the same run"
    assert f"going on from {run / 'only' / 'checkpoints' / 'latest'}: epoch {1 + step // 3}, step {step}" in caplog.text
    assert rows(run) == rows(small_run)
    assert tensors(run) == tensors(small_run)


def test_interrupted_in_the_second_stage(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    recipe = tiny_recipe(data, tmp_path)
    stop_before(monkeypatch, 1, stage="finetune")
    with pytest.raises(Interrupted):
        train(recipe)
    monkeypatch.undo()
    run = train(recipe)
    assert rows(run) == rows(tiny_run)
    assert tensors(run) == tensors(tiny_run)


def test_changed_data_are_refused_on_resume(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny.shapes(tmp_path / "data", {"train": 6, "val": 2, "test": 2})
    recipe = tiny_recipe(own, tmp_path)
    stop_before(monkeypatch, 1)
    with pytest.raises(Interrupted):
        train(recipe)
    monkeypatch.undo()
    table = read_table(own / "train.jsonl")
    write_table(own / "train.jsonl", [{**table[0], "caption": "a new caption"}, *table[1:]])
    with pytest.raises(RunError, match="the data of train changed since this run began") as caught:
        train(recipe)
    assert "--fresh" in caught.value.fix
    write_table(own / "train.jsonl", table)
    train(recipe)


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

HARDLY = "learning_rate=1e-12"  # so little that what a stage ends with is what it began with


def weights(run: Path, stage: str, which: str = "best") -> dict[str, torch.Tensor]:
    return load_file(run / stage / "checkpoints" / which / "model.safetensors")


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a.keys() & b.keys())


def test_second_stage_starts_from_the_best_of_the_first(data: Path, tmp_path: Path) -> None:
    # `max` calls the highest loss the best, which is that of the first epoch: best and latest differ
    run = train(tiny_recipe(data, tmp_path, f"stages.finetune.{HARDLY}", "train.early_stopping.mode=max", "stages.warm.epochs=3"))
    best, latest, second = weights(run, "warm"), weights(run, "warm", "latest"), weights(run, "finetune")
    assert set(best) <= set(second), "what the first stage trained is saved by the second too"
    assert apart(best, second) < 1e-9
    assert apart(latest, second) > 1e-3
    lineage = [
        json.loads((run / stage / "checkpoints" / "best" / "config.json").read_text(encoding="utf-8"))["lineage"]
        for stage in ("warm", "finetune")
    ]
    assert lineage == [["warm"], ["warm", "finetune"]]


def test_init_from_another_run(data: Path, tmp_path: Path, tiny_run: Path) -> None:
    """The first stage starts from the run that is named, the second from the first."""
    slow = (f"stages.warm={{epochs: 1, {HARDLY.replace('=', ': ')}}}", "train.early_stopping.mode=max")
    run = train(tiny_recipe(data, tmp_path, f"train.init_from={tiny_run}", *slow, "stages.finetune.learning_rate=0.01"))
    assert apart(weights(run, "warm"), weights(tiny_run, "finetune")) < 1e-9
    assert apart(weights(run, "finetune"), weights(tiny_run, "finetune")) > 1e-3
    assert set(weights(run, "warm")) == set(weights(tiny_run, "finetune")), "tensors of earlier stages are carried along"


def test_init_from_keeps_adapters(folders: Any, data: Path, tmp_path: Path, small_run: Path) -> None:
    run = train(small_recipe(folders, data, tmp_path, f"train.init_from={small_run}", f"train.{HARDLY}", "stages.only.epochs=1"))
    there, here = (
        load_file(place / "only" / "checkpoints" / "best" / "adapter" / "head" / "adapter_model.safetensors") for place in (small_run, run)
    )
    assert apart(there, here) < 1e-9
    assert rows(run)[0]["loss"] < rows(small_run)[0]["loss"]


# ── early stopping, accumulation, precision, trackers ────────────────────────────────────────────────────────────────────────────


def test_early_stopping_on_the_loss(data: Path, tmp_path: Path) -> None:
    run = train(tiny_recipe(data, tmp_path, "stages.warm.epochs=9", "train.early_stopping={mode: max, patience: 2}", "run_stages=[warm]"))
    validations = [row for row in rows(run) if row["kind"] == "val"]
    assert len(validations) == 3, "the first epoch is the best, and two more were allowed"
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["stages"]["warm"]["status"] == "finished"
    assert facts["finished"] is False, "the recipe has another stage, which was not asked for"
    assert facts["stages"]["warm"]["best"]["epoch"] == 1


def test_stages_one_command_at_a_time(data: Path, tmp_path: Path) -> None:
    """`run_stages` says which stages run now; they share one run, and give what one command for all gives."""
    quick = ("stages.warm.epochs=1", "stages.finetune.epochs=1")
    whole = train(tiny_recipe(data, tmp_path / "whole", *quick))
    with pytest.raises(RunError, match="starts from 'warm', which this run has not trained"):
        train(tiny_recipe(data, tmp_path / "apart", *quick, "run_stages=[finetune]"))
    first = train(tiny_recipe(data, tmp_path / "apart", *quick, "run_stages=[warm]"))
    second = train(tiny_recipe(data, tmp_path / "apart", *quick, "run_stages=[finetune]"))
    assert first == second
    assert json.loads((first / "run.json").read_text(encoding="utf-8"))["finished"]
    assert apart(weights(first, "finetune"), weights(whole, "finetune")) == 0


def test_the_direction_of_a_metric_is_its_own(data: Path, tmp_path: Path) -> None:
    """A metric that is better when higher never chooses its worst epoch."""
    run = train(tiny_recipe(data, tmp_path, "stages.warm.epochs=4", "train.early_stopping.metric=val_token_f1", "run_stages=[warm]"))
    values = [row["val_token_f1"] for row in rows(run) if row["kind"] == "val"]
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["warm"]["best"]["value"] == max(values)


def test_a_fault_in_the_last_stage_is_found_before_the_first_trains(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.finetune\.early_stopping\.metric='val_accuracy'"):
        train(tiny_recipe(data, tmp_path, "stages.finetune.early_stopping.metric=val_accuracy"))
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_early_stopping_on_answers(data: Path, tmp_path: Path) -> None:
    rule = "train.early_stopping={metric: val_exact_match, mode: max, patience: 1}"
    run = train(tiny_recipe(data, tmp_path, "stages.warm.epochs=9", rule, "run_stages=[warm]", f"train.{HARDLY}", f"stages.warm.{HARDLY}"))
    validations = [row for row in rows(run) if row["kind"] == "val"]
    assert [row["val_exact_match"] for row in validations] == [0, 0], "nothing is learned, so the second epoch is no better"
    assert {"val_loss", "val_token_f1", "val_cider"} <= set(validations[0])
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["warm"]["best"]["metric"] == "val_exact_match"


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    """Batches hold different numbers of learned tokens, so a mean of means would differ."""
    own = tiny.shapes(tmp_path / "data", {"train": 22, "val": 2, "test": 2})
    table = read_table(own / "train.jsonl")
    for number, row in enumerate(table):  # all of one length, so that the order does not hang on the batch size
        row |= {"question": "?" * (2 + number % 11), "caption": "a" * (14 - number % 11)}
    write_table(own / "train.jsonl", table)
    for split in ("val", "test"):
        write_table(own / f"{split}.jsonl", [{**row, "question": "?"} for row in read_table(own / f"{split}.jsonl")])
    plain = ("augmentation=none", "head.dropout=0", "train.log_every=1", "data.columns.prompt=question")
    large = train(tiny_recipe(own, tmp_path, *plain, "train.batch_size=8", "train.gradient_accumulation=1"))
    small = train(tiny_recipe(own, tmp_path, *plain, "train.batch_size=4", "train.gradient_accumulation=2"))
    steps = [[row for row in rows(run) if row["kind"] == "train"] for run in (large, small)]
    assert len(steps[0]) == 9
    assert [row["loss"] for row in steps[1]] == pytest.approx([row["loss"] for row in steps[0]], abs=1e-5)
    assert [row["tokens"] for row in steps[1]] == [row["tokens"] for row in steps[0]]
    assert apart(weights(large, "finetune"), weights(small, "finetune")) < 1e-4


def test_bf16_mixed(folders: Any, data: Path, tmp_path: Path, small_run: Path) -> None:
    run = train(small_recipe(folders, data, tmp_path, "train.precision=bf16-mixed"))
    mixed, full = ([row["loss"] for row in rows(place) if row["kind"] == "train"] for place in (run, small_run))
    assert mixed == pytest.approx(full, rel=0.02)
    assert mixed != full
    assert {tensor.dtype for tensor in weights(run, "only").values()} == {torch.float32}
    assert len(load_run(run).predict([data / "images" / "0.png"])) == 1


def test_max_steps(data: Path, tmp_path: Path) -> None:
    run = train(tiny_recipe(data, tmp_path, "train.max_steps=2"))
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert [stage["steps"] for stage in facts["stages"].values()] == [2, 2]


def test_tensorboard(data: Path, tmp_path: Path, tiny_run: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train(tiny_recipe(data, tmp_path, "trackers.tensorboard=true"))
    assert rows(run) == rows(tiny_run), "where metrics go does not change them"
    for stage in ("warm", "finetune"):
        (events,) = (run / stage / "tensorboard").glob("events.out.tfevents*")
        content = events.read_bytes()
        assert b"train/loss" in content
        assert b"val/val_loss" in content


def test_plan_is_logged(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="eyegraft"):
        train(tiny_recipe(data, tmp_path, "train.max_steps=1"))
    assert "part            mode          parameters     trainable        lr" in caplog.text
    assert "stage finetune from " in caplog.text
    assert "warm/checkpoints/best" in caplog.text
