"""Classifier, masked autoencoding and text as three stages of one recipe on palette maps: what each changes, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import maps
from cli.running import kept_registry, read_table, write_table
from eyegraft import load_recipe, load_run, train
from eyegraft.composition import use_config_dir
from eyegraft.config import Recipe
from eyegraft.errors import DataError
from eyegraft.registry import use_plugin
from eyegraft.training.building import build_model
from eyegraft.training.runs import read_run

Make = Callable[..., Recipe]
RECIPE = """
# @package _global_
defaults:
  - override /vision_encoder: patch_perceiver_small
  - override /pooling: class_mean
  - override /connector: class_prefix
  - override /head: tiny_gru

recipe: maps
experiment_name: maps
num_threads: 1
vision_encoder:
  classes: [mcon, sbcp, thea]
  image_size: 16
  patch_size: 4
  dim: 8
  num_latents: 5
  num_heads: 2
  depth: 2
  num_experts: 3
  classifier:
    model: test_efficientnet
data:
  name: maps
  tables: {train: train.jsonl, val: val.jsonl, test: test.jsonl}
  columns: {image: image, references: caption, id: id, group: case, meta: [condition]}
  near_duplicates: allow
tasks:
  maps: {kind: pretrain}
  caption: {kind: caption, prompt: "Map:", max_new_tokens: 24}
train:
  batch_size: 6
  learning_rate: 0.01
  log_every: 1
  betas: [0.9, 0.98]
stages:
  condition:
    task: maps
    objective: {kind: condition}
    tune: {condition_classifier: full}
    epochs: 6
  mae:
    task: maps
    objective: {kind: mae, mask_ratio: 0.5, loss: l1, condition_weight: 0.3, decoder_dim: 8, decoder_depth: 1, decoder_heads: 2}
    tune: {vision_encoder: full}
    epochs: 3
  text:
    task: caption
    tune:
      vision_encoder: {mode: last_n, last_n: 1, learning_rate: 0.002}
    epochs: 2
"""


@pytest.fixture(autouse=True)
def _newcomers() -> None:
    use_plugin("tinyparts")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("maps")
    data = maps.prepared(folder / "data")
    (folder / "conf" / "recipe").mkdir(parents=True)
    (folder / "conf" / "recipe" / "maps.yaml").write_text(RECIPE.lstrip(), encoding="utf-8")
    weights = maps.classifier_weights(folder)

    def made(root: Path, *overrides: str) -> Recipe:
        use_plugin("tinyparts")
        use_config_dir(str(Path(__file__).parent.parent / "tinyparts" / "conf"))
        use_config_dir(str(folder / "conf"))
        places = [f"data.base_dir={data}", f"run_root={root}", f"vision_encoder.classifier.weights={weights}"]
        return load_recipe("maps", *places, *overrides)

    return made


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with kept_registry(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(make(tmp_path_factory.mktemp("runs")))


def at_first(make: Make, tmp_path: Path) -> dict[str, torch.Tensor]:
    with kept_registry():
        return dict(build_model(make(tmp_path)).state_dict())


def best(run: Path, stage: str) -> dict[str, torch.Tensor]:
    place = run / stage / "checkpoints" / "best"
    return load_file(place / "model.safetensors")


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_table(folder / "metrics.jsonl")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if name in after and not torch.equal(before[name], after[name])}


CLASSIFIER, PERCEIVER = "encoders.image.classifier.", "encoders.image.perceiver."


def test_the_first_stage_trains_the_classifier(make: Make, finished: Path, tmp_path: Path) -> None:
    first, after = at_first(make, tmp_path), best(finished, "condition")
    moved = changed(first, after)
    assert moved
    assert all(name.startswith(CLASSIFIER) for name in after), "nothing else is saved"
    assert {name for name in after if "running" not in name and "num_batches" not in name} == moved, "batch norms keep their statistics"
    table = {row["part"]: row["trainable"] for row in read_run(finished).facts["stages"]["condition"]["trainable"]}
    assert {part for part, number in table.items() if number} == {"condition_classifier"}
    checks = [row for row in rows(finished / "condition") if row["kind"] == "val"]
    assert checks[-1]["val_accuracy"] > checks[0]["val_accuracy"]
    assert checks[-1]["val_loss"] < 0.7 * checks[0]["val_loss"]


def test_the_second_stage_trains_the_perceiver(make: Make, finished: Path, tmp_path: Path) -> None:
    first, before, after = at_first(make, tmp_path), best(finished, "condition"), best(finished, "mae")
    assert changed(first, {name: tensor for name, tensor in after.items() if name.startswith(PERCEIVER)}) == {
        name for name in first if name.startswith(PERCEIVER)
    }, "every tensor of it"
    assert not changed(before, after), "the classifier is still what the first stage made"
    steps, checks = ([row for row in rows(finished / "mae") if row["kind"] == kind] for kind in ("train", "val"))
    assert {"pixel_loss", "condition_loss", "condition_accuracy", "auxiliary_loss"} <= set(steps[0])
    assert {"val_pixel_loss", "val_condition_loss", "val_condition_accuracy"} <= set(checks[0])
    assert "val_auxiliary_loss" not in checks[0]
    assert checks[-1]["val_loss"] < checks[0]["val_loss"]


def test_the_third_stage_trains_the_last_block_alone(finished: Path) -> None:
    before, after = best(finished, "mae"), best(finished, "text")
    moved = changed(before, after)
    assert moved == {name for name in before if name.startswith((f"{PERCEIVER}backbone.blocks.1.", f"{PERCEIVER}backbone.norm."))}
    assert {name for name in before if name.startswith("encoders.")} <= set(after), "all that was trained is carried on"
    table = {row["part"]: row for row in read_run(finished).facts["stages"]["text"]["trainable"]}
    assert table["vision_encoder"]["learning_rate"] == 0.002
    assert table["condition_classifier"]["trainable"] == 0
    assert "auxiliary_loss" in rows(finished / "text")[0], "the experts are balanced while texts are learned too"


def test_frozen_stays_identical(make: Make, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    words = ["run_stages=[text]", f"+stages.text.init_from={finished}", "stages.text.tune.vision_encoder=frozen", "stages.text.epochs=1"]
    run = train(make(tmp_path / "runs", *words))
    before, after = best(finished, "text"), best(run, "text")
    encoder = {name for name in after if name.startswith("encoders.")}
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not all(torch.equal(before[name], after[name]) for name in after if name.startswith("connectors."))
    assert "auxiliary_loss" not in rows(run / "text")[0]
    assert any((tmp_path / "cache" / "features").iterdir()), "two vectors a map are kept"


def test_a_finished_run_answers_and_guesses_classes(finished: Path) -> None:
    model = load_run(finished)
    picture = Path(read_run(finished).recipe.data.base_dir) / "maps" / "1.gif"
    assert len(model.predict([str(picture)])) == 1


def test_a_class_that_there_is_not(make: Make, tmp_path: Path) -> None:
    data = maps.prepared(tmp_path / "data")
    table = read_table(data / "val.jsonl")
    table[2]["condition"] = "tea"
    write_table(data / "val.jsonl", table)
    with pytest.raises(DataError, match=r"val: 1 rows name a class that there is not: 'tea' 1 times") as caught:
        train(make(tmp_path / "runs", f"data.base_dir={data}"))
    assert caught.value.fix == "did you mean 'thea'?"
