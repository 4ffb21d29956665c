"""Results on patches: baselines of columns stand beside the model, intervals are drawn over stations, and what is simulated says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eyegraft.training
from evaluation import weather
from eyegraft.composition import load_recipe
from eyegraft.data.patch_rows import PatchRows, opened
from eyegraft.evaluation import evaluate
from eyegraft.evaluation._pairs import Pairs

SENSOR = json.dumps({**weather.SENSOR, "name": "made_up"}).replace('"', "")
SPLITS = ("test", "test_new_station")
FLOOR = {"noise_floor": {"test": 0.3, "test_new_station": 1.1}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weather")
    sensor = {**weather.SENSOR, "name": "made_up"}
    for seed, (split, stations, first_day, times) in enumerate(
        [
            ("train", range(100, 124), 0, 30),
            ("val", range(100, 124), 365, 12),
            ("test", range(100, 124), 730, 12),
            ("test_new_station", range(200, 206), 0, 40),
        ]
    ):
        weather.rows(folder / "patches", split, stations, times=times, first_day=first_day, seed=seed, sensor=sensor, **FLOOR)
    return folder


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    words = [
        f"data.base_dir={base}",
        f"run_root={base / 'runs'}",
        f"vision_encoder.sensor={SENSOR}",
        "vision_encoder.side=5",
        "vision_encoder.extra_channels=[sza,dem]",
        "~data.satellite.patches.test_new_both",
        "train.epochs=2",
        "train.learning_rate=0.01",
        "evaluation.num_resamples=200",
        "evaluation.splits=[test,test_new_station]",
        "evaluation.after_training=false",
        "evaluation.slices=[hour,season,land_cover,elevation,station]",
    ]
    return eyegraft.training.train(load_recipe("ta_small", *words), fresh=True)


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, dict[str, Any]]:
    return evaluate(run)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_system_stands_in_the_table(results: dict[str, dict[str, Any]]) -> None:
    damaged = ["blank_image", "shuffled_image", "absent_image", "shuffled_context", "absent_context"]
    dumb = ["most_frequent", "nearest_neighbour", "climatology", "elevation_linear", "ridge", "boosting"]
    for result in results.values():
        assert list(result["systems"]) == ["model", *damaged, *dumb]
        for system in [*damaged, *dumb]:
            gap = result["differences"][system]["rmse_kelvin"]
            assert gap["low"] <= gap["value"] <= gap["high"]
            values = [result["systems"][name]["rmse_kelvin"]["value"] for name in ("model", system)]
            assert gap["value"] == pytest.approx(values[0] - values[1])


def test_stations_are_drawn_whole_and_weeks_where_they_are_few(results: dict[str, dict[str, Any]]) -> None:
    assert results["test"]["resampled"] == "24 stations, each with all its samples"
    assert results["test_new_station"]["resampled"].endswith(" weeks, each with all its samples (only 6 stations)")


def test_what_is_simulated_is_said_first(results: dict[str, dict[str, Any]]) -> None:
    for split, result in results.items():
        assert result["simulated"] is True
        assert result["noise_floor"] == FLOOR["noise_floor"][split]
        first, second, third, *_ = result["conclusions"]
        assert first.startswith("Simulated data: ")
        assert second.startswith("The model does not beat every baseline on rmse_kelvin: it beats "), "after two epochs"
        assert "boosted trees on columns" in second
        assert third == f"No model can be expected below the noise floor of these samples, {result['noise_floor']:g} K."
        coverage = result["systems"]["model"]["interval_coverage"]["value"]
        assert result["details"]["intervals"]["coverage"] == pytest.approx(coverage)
        assert any(f"to cover 90 % of new samples cover {100 * coverage:.1f} %" in line for line in result["conclusions"])


def test_parts_of_a_split_with_the_best_baseline_of_each(results: dict[str, dict[str, Any]], base: Path) -> None:
    slices = results["test"]["slices"]
    assert set(slices) == {"hour", "season", "land_cover", "elevation", "station"}
    rows = PatchRows(opened(base / "patches" / "test"))
    for column, parts in slices.items():
        names, counts = np.unique(rows.column(column).astype(str), return_counts=True)
        expected = dict(zip(names.tolist(), counts.tolist(), strict=True))
        assert {name: entry["num_samples"] for name, entry in parts.items()}.items() <= expected.items()
        assert len(parts) == min(20, len(expected))
    for entry in slices["season"].values():
        best = entry["best_baseline"]
        assert best["system"] in results["test"]["systems"]
        assert best["metrics"]["rmse_kelvin"]["value"] < entry["metrics"]["rmse_kelvin"]["value"]
        assert best["differences"]["rmse_kelvin"]["low"] > 0, "paired, on the same draws"
    assert "stations" in slices["season"]["DJF"]["resampled"]
    alone = next(iter(slices["station"].values()))
    assert alone["resampled"].endswith("weeks, each with all its samples (only 1 station)") or "as if independent" in alone["resampled"]


def test_errors_by_station(results: dict[str, dict[str, Any]], run: Path, base: Path) -> None:
    result = results["test_new_station"]
    rows = PatchRows(opened(base / "patches" / "test_new_station"))
    predictions = read(run / "test_new_station_predictions.json")
    errors = np.array([row["pred"] - row["gt"] for row in predictions])
    stations = result["details"]["stations"]
    assert sum(entry["n"] for entry in stations) == len(rows)
    assert [entry["rmse_kelvin"] for entry in stations] == sorted((entry["rmse_kelvin"] for entry in stations), reverse=True)
    for entry in stations:
        here = rows.column("station") == entry["station"]
        assert entry["n"] == here.sum()
        assert (entry["lat"], entry["lon"]) == (rows.column("lat")[here][0], rows.column("lon")[here][0])
        assert entry["rmse_kelvin"] == pytest.approx(np.sqrt((errors[here] ** 2).mean()))
        assert entry["bias_kelvin"] == pytest.approx(errors[here].mean())
        assert entry["mae_kelvin"] == pytest.approx(np.abs(errors[here]).mean())


def test_what_a_script_and_a_map_read(results: dict[str, dict[str, Any]], run: Path, base: Path) -> None:
    rows = PatchRows(opened(base / "patches" / "test"))
    predictions = read(run / "test_predictions.json")
    assert [row["record"] for row in predictions] == rows.rows.tolist()
    assert [row["station"] for row in predictions] == rows.column("station").tolist()
    assert [row["lat"] for row in predictions] == rows.column("lat").tolist()
    assert [np.datetime64(row["time"].removesuffix("Z")) for row in predictions] == rows.column("time").tolist()
    assert {row["path"] for row in predictions} == {str(base / "patches" / "test")}
    lines = (run / "evaluation" / "test.samples.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0], parse_constant=pytest.fail)
    assert len(lines) == len(rows)
    assert (first["record"], first["drawn_with"]) == (0, first["meta"]["station"])
    assert first["answers"]["climatology"]["interval"] is None


def test_runs_are_compared_on_the_same_stations(results: dict[str, dict[str, Any]], run: Path) -> None:
    for split, width in (("test", 24), ("test_new_station", None)):
        pairs = Pairs(run, results[split], grouped=False)
        names = pairs._groups()
        assert names is not None
        assert width is None or len(set(names)) == width
        assert pairs.difference(run, results[split], "rmse_kelvin") == (0, 0, 0)


def test_the_same_again(results: dict[str, dict[str, Any]], run: Path) -> None:
    again = evaluate(run, splits=["test_new_station"])["test_new_station"]
    for system in ("model", "shuffled_image", "shuffled_context", "boosting"):
        assert again["systems"][system] == results["test_new_station"]["systems"][system]


def test_another_store_is_evaluated_by_its_folder(run: Path, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    sensor = {**weather.SENSOR, "name": "made_up"}
    weather.rows(base / "more", "later", range(100, 104), times=10, first_day=1095, seed=9, sensor=sensor, simulated=False)
    with caplog.at_level(logging.INFO, logger="eyegraft"):
        result = evaluate(run, table=str(base / "more" / "later"))["later"]
    assert (result["num_samples"], result["simulated"], result["noise_floor"]) == (40, False, None)
    assert not any(line.startswith("Simulated") for line in result["conclusions"])
