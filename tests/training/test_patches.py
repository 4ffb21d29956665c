"""Numbers from patches of a satellite, from training to the answer: what is learned of the training split stays with the run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eyegraft.evaluation
import eyegraft.training
from evaluation import weather
from eyegraft.answering import readers_of
from eyegraft.composition import load_recipe
from eyegraft.config import Recipe
from eyegraft.data.inputs import StoredReader
from eyegraft.data.patch_rows import PatchRows, opened
from eyegraft.data.patch_statistics import fit, write_statistics
from eyegraft.data.patch_writer import write_shards
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError, PartError, RecipeError
from eyegraft.training.building import build_model
from eyegraft.training.checkpoints import read_config
from eyegraft.training.checkup import check_recipe
from eyegraft.training.features import stored_readers
from eyegraft.training.inputs import restore_inputs, teach_inputs
from eyegraft.training.runs import read_run
from eyegraft.training.starts import stop_at_other_inputs
from eyegraft.training.trained import load_model

SENSOR = json.dumps(weather.SENSOR).replace('"', "").replace("made-up", "made_up")
SPLITS = ("train", "val", "test", "test_new_station", "test_new_both")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weather")
    patches = folder / "patches"
    sensor = {**weather.SENSOR, "name": "made_up"}
    weather.rows(patches, "train", range(100, 112), times=60, sensor=sensor)
    weather.rows(patches, "val", range(100, 112), times=20, first_day=365, seed=1, sensor=sensor)
    weather.rows(patches, "test", range(100, 112), times=20, first_day=730, seed=2, sensor=sensor)
    weather.rows(patches, "test_new_station", range(200, 206), times=20, seed=3, sensor=sensor)
    weather.rows(patches, "test_new_both", range(200, 206), times=20, first_day=730, seed=4, sensor=sensor)
    weather.rows(patches, "unlabelled", range(300, 310), times=20, seed=5, sensor=sensor)
    return folder


@pytest.fixture
def recipe(base: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def made(*overrides: str) -> Recipe:
        plain = [f"data.base_dir={base}", f"run_root={tmp_path / 'runs'}", f"vision_encoder.sensor={SENSOR}", "vision_encoder.side=5"]
        small = ["vision_encoder.extra_channels=[sza,dem]", "train.epochs=8", "evaluation.num_resamples=50"]
        return load_recipe("ta_small", *plain, *small, *overrides)

    return made


def clay(*overrides: str) -> list[str]:
    return ["vision_encoder=clay_tiny", "vision_encoder.checkpoint=null", "train.freeze_backbone=true", *overrides]


def values(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "ta" / "metrics.jsonl").read_text().splitlines()]
    return [row["val_rmse_kelvin"] for row in rows if row["kind"] == "val"]


def test_patches_are_learned_from(recipe: Callable[..., Recipe], base: Path) -> None:
    run = eyegraft.training.train(recipe())
    kelvin = values(run)
    assert kelvin[-1] < 0.6 * kelvin[0]
    rows = [json.loads(line) for line in (run / "ta" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert last["rmse_norm"] ** 2 == pytest.approx(last["loss"])
    assert last["rmse_kelvin"] == pytest.approx(last["rmse_norm"] * read_run(run).facts["stages"]["ta"]["learned"]["std"])
    learned = read_config(run / "ta" / "checkpoints" / "best")["inputs"]
    store = opened(base / "patches" / "train")
    middle = np.nanmean(store.read(np.arange(len(store)), ["x"])["x"], axis=(0, 2, 3))
    assert [band["mean"] for band in learned["image"]["sensor"]["bands"]] == pytest.approx(middle[:2].tolist(), rel=1e-4)
    assert learned["image"]["extra_statistics"]["dem"][0] == pytest.approx(middle[3], rel=1e-4)
    assert set(learned["context"]["statistics"]) == {"lat", "lon", "elevation_m", "sza_deg"}
    facts = read_run(run).facts
    assert facts["inputs"] == learned
    assert facts["stages"]["ta"]["unseen"] == []


def test_a_loaded_run_scales_as_it_was_trained(recipe: Callable[..., Recipe], base: Path, tmp_path: Path) -> None:
    """Never by what it is given to answer."""
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    run = eyegraft.training.train(recipe(f"data.base_dir={copy}", "train.epochs=1"))
    opened_run = read_run(run)
    model, _, _ = load_model(opened_run)
    shutil.rmtree(copy)
    again, _, _ = load_model(opened_run)
    for one in (model, again):
        spec: Any = one.encoders["image"].spec
        assert spec.sensor.model_dump(mode="json") == opened_run.facts["inputs"]["image"]["sensor"]


def test_given_statistics_are_taken_and_others_refused(recipe: Callable[..., Recipe], base: Path, tmp_path: Path) -> None:
    fitted = fit(opened(base / "patches" / "train"))
    fitted["inputs"]["bt_00"]["std"] *= 2
    file = tmp_path / "statistics.json"
    write_statistics(file, fitted, train_store=None, source="input_statistics_2022.json")
    first = eyegraft.training.train(recipe(f"data.satellite.statistics={file}", "train.epochs=1"))
    bands = read_config(first / "ta" / "checkpoints" / "best")["inputs"]["image"]["sensor"]["bands"]
    assert bands[0]["std"] == pytest.approx(fitted["inputs"]["bt_00"]["std"])
    with pytest.raises(PartError, match=r"(?s)sensor made_up of these patches is not.*band ir: std .* there"):
        eyegraft.training.train(recipe(f"train.init_from={first}", "experiment_name=other"))
    write_statistics(file, fitted, train_store="1" * 64, source="patches/train")
    with pytest.raises(DataError, match="fitted on the train split 1111"):
        eyegraft.training.train(recipe(f"data.satellite.statistics={file}", "experiment_name=wrong"))


def test_another_sensor_is_refused(recipe: Callable[..., Recipe]) -> None:
    other = SENSOR.replace("10.5", "11.2")
    with pytest.raises(PartError, match=r"(?s)sensor made_up of vision_encoder.sensor.*band ir: wavelength_um 11.2, there 10.5"):
        eyegraft.training.train(recipe(f"vision_encoder.sensor={other}"))
    with pytest.raises(RecipeError, match=r"write micrometres: 10.5"):
        recipe(f"vision_encoder.sensor={SENSOR.replace('10.5', '10500')}")


def test_frozen_clay_reads_its_features_from_the_cache(
    recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    first = eyegraft.training.train(recipe(*clay("train.epochs=2", "vision_encoder.extra_channels=[]")))
    assert "720 records" in caplog.text
    assert "720 of them encoded now" in caplog.text
    caplog.clear()
    cached = eyegraft.training.train(recipe(*clay("train.epochs=2", "vision_encoder.extra_channels=[]", "experiment_name=again")))
    assert ", 0 of them encoded now" in caplog.text
    assert values(cached) == values(first)
    plain = recipe(*clay("train.epochs=2", "vision_encoder.extra_channels=[]", "experiment_name=off", "train.feature_cache.mode=off"))
    assert values(eyegraft.training.train(plain)) == pytest.approx(values(first), rel=0.02)


def test_what_an_encoder_does_not_see_is_said(recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    tall = tmp_path / "tall"
    for split in SPLITS:
        weather.rows(tall / "patches", split, range(100 + 10 * SPLITS.index(split), 104 + 10 * SPLITS.index(split)), times=8, side=9,
                     sensor={**weather.SENSOR, "name": "made_up"})  # fmt: skip
    crop = recipe(
        *clay(
            f"data.base_dir={tall}", "vision_encoder.side=9", "vision_encoder.grid=crop", "train.epochs=1", "train.feature_cache.mode=off"
        )
    )
    run = eyegraft.training.train(crop)
    said = read_run(run).facts["stages"]["ta"]["unseen"]
    assert "pixels: 17 of 81 pixels (21 %) have no effect: row 9, column 9" in said
    assert "ta does not see: pixels: 17 of 81 pixels" in caplog.text


def test_the_checkup_looks_at_patches_too(recipe: Callable[..., Recipe]) -> None:
    lines = "\n".join(check_recipe(recipe()))
    assert "train                720 samples" in lines
    assert "training targets: mean 2" in lines
    assert "every trainable tensor got a gradient" in lines


@pytest.mark.parametrize("kind", ["mae", "dino"])
def test_pretraining_on_patches_without_numbers(recipe: Callable[..., Recipe], kind: str) -> None:
    patches = "data.satellite.patches.unlabelled=patches/unlabelled"
    run = eyegraft.training.train(recipe(patches, f"+experiment=ta_{kind}", "stages.pretrain.epochs=3", "stages.ta.epochs=2"))
    rows = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if row["kind"] == "val"}
    assert len(losses) == 4, "one before the first step"
    del losses[0]  # before it has a centre, dino's loss is that of a teacher who puts everything into one cluster
    assert losses[max(losses)] < losses[min(losses)]
    assert read_config(run / "ta" / "checkpoints" / "best")["lineage"] == ["pretrain", "ta"]
    before = read_config(run / "pretrain" / "checkpoints" / "best")["inputs"]["image"]
    assert before == read_config(run / "ta" / "checkpoints" / "best")["inputs"]["image"], "both stages see the same numbers"


def test_a_split_that_is_not_there_is_named(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"stages.ta.split='tain'(.|\n)*did you mean 'train'"):
        eyegraft.training.train(recipe("train.split=tain"))


def test_nothing_is_learned_from_what_is_to_be_held_out(recipe: Callable[..., Recipe], base: Path, tmp_path: Path) -> None:
    for split, why in (("test", "reports as held out"), ("val", "chooses the checkpoint")):
        with pytest.raises(RecipeError, match=why):
            eyegraft.training.train(recipe(f"stages.ta.split={split}"))
    more = tmp_path / "more"
    shutil.copytree(base / "patches" / "test_new_both", more)  # the same readings under another name
    with pytest.raises(DataError, match=r"leak between splits.*test_new_both"):
        eyegraft.training.train(recipe(f"+data.satellite.patches.more={more}", "stages.ta.split=more"))


def test_a_split_that_was_learned_from_is_not_held_out(recipe: Callable[..., Recipe]) -> None:
    more = ["+data.satellite.patches.more=patches/unlabelled", "stages.ta.split=more", "evaluation.after_training=false"]
    run = eyegraft.training.train(recipe("train.epochs=1", "evaluation.baselines=[most_frequent]", *more))
    result = eyegraft.evaluation.evaluate(run, splits=["more"])["more"]
    assert result["held_out"].startswith("none")
    assert any(said.startswith("Not held out") for said in result["conclusions"])


def test_a_split_without_numbers_that_nobody_reads_is_passed_over(recipe: Callable[..., Recipe], base: Path, tmp_path: Path) -> None:
    """As after `+experiment=ta_mae stages.pretrain=null`."""
    store = opened(base / "patches" / "unlabelled")
    without = tmp_path / "without"

    def columns(job: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        found = store.read(np.arange(len(store)))
        return {**found, "y": np.full(len(store), np.nan, np.float32)}, {}

    write_shards(without, store.schema, [{"all": True}], columns)
    run = eyegraft.training.train(
        recipe("train.epochs=1", "evaluation.after_training=false", f"+data.satellite.patches.unlabelled={without}")
    )
    assert read_run(run).is_finished("ta")
    with pytest.raises(DataError, match=r"split unlabelled: .* have no usable number"):
        eyegraft.training.train(recipe(f"+data.satellite.patches.unlabelled={without}", "evaluation.splits=[test,unlabelled]"))


def test_no_sample_is_made_to_look_into_the_cache(
    recipe: Callable[..., Recipe], base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Millions of them would not fit into memory. Rows, samples one by one and rows that were exchanged are read alike."""
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    made = recipe(*clay("vision_encoder.extra_channels=[]", "context_encoder=none", "fusion=sequence"))
    model = build_model(made)
    data = load_samples(made.data)
    restore_inputs(model, teach_inputs(made, model, data))
    train, test = data.splits["train"], data.splits["test"]
    some = test.take([30, 3, 17])  # type: ignore[attr-defined]
    with ExitStack() as closing, monkeypatch.context() as patched:
        patched.setattr(PatchRows, "_samples", None)
        cache, plain = made.stage("ta").feature_cache, readers_of(model, made)
        read = stored_readers(made, cache, model, [test, train[:50]], plain, frozen={"image"}, augmented=False, closing=closing)["image"]
        assert isinstance(read, StoredReader)
        assert read.num_records == len(test) + 50
        values = read.read(some, [None] * 3).values
        with torch.no_grad():
            fresh = model.connect({"image": model.encoders["image"].eval()(plain["image"].read(some, [None] * 3))})
        assert torch.allclose(values, fresh.values, rtol=0.01, atol=0.01)
        patched.undo()
        assert torch.equal(read.read(list(some), [None] * 3).values, values)
        with pytest.raises(KeyError, match="not stored"):
            read.read(train[49:51], [None] * 2)


def test_tokens_of_which_some_are_not_real_are_not_cached(
    recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    for split in ("train", "val"):
        store = opened(base / "patches" / split)
        facts = {**store.schema.facts, "sensor": {**store.schema.facts["sensor"], "missing": "mask"}}
        schema = store.schema.model_copy(update={"facts": facts})
        write_shards(tmp_path / split, schema, [{"all": True}], lambda job, store=store: (store.read(np.arange(len(store))), {}))
    words = [f"data.satellite.patches.{split}={tmp_path / split}" for split in ("train", "val")]
    words += [f"~data.satellite.patches.{split}" for split in SPLITS[2:]]
    words += [f"vision_encoder.sensor={SENSOR[:-1]},missing:mask}}", "vision_encoder.extra_channels=[]", "train.feature_cache.tokens=true"]
    run = eyegraft.training.train(recipe(*clay(*words, "pooling=attention", "train.epochs=1", "evaluation.after_training=false")))
    assert read_run(run).is_finished("ta")
    assert "not all real" in caplog.text


def test_a_stage_does_not_start_from_maps_that_were_scaled_otherwise(
    recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    run = eyegraft.training.train(recipe("train.epochs=1", "evaluation.after_training=false"))
    best = run / "ta" / "checkpoints" / "best"
    inputs = read_config(best)["inputs"]
    stop_at_other_inputs(best, inputs)
    assert "scaled by other means" not in caplog.text
    moved = {"statistics": {**inputs["context"]["statistics"], "lat": [0.0, 1.0]}}
    stop_at_other_inputs(best, {**inputs, "context": moved})
    assert "saw lat scaled by other means" in caplog.text
    dem = inputs["image"]["extra_statistics"]["dem"]
    extra = {**inputs["image"]["extra_statistics"], "dem": [dem[0] + 1, dem[1]]}
    with pytest.raises(PartError, match=r"extra_channels dem with other statistics"):
        stop_at_other_inputs(best, {**inputs, "image": {**inputs["image"], "extra_statistics": extra}})
