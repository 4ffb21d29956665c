"""The recipe lst_stations: whole on simulated files, and on the real ones of Istria, which lie beside the repository and in no part of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cli.running import TESTS, run, trained
from eyegraft.composition import load_recipe
from eyegraft.data.patch_store import PatchStore
from eyegraft.prepare import prepare_data

DATA = Path(os.environ.get("ISTRA_DIR") or TESTS.parent.parent / "shared" / "data" / "istra")

real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data of Istria in {DATA}")


def simulated(folder: Path) -> None:
    """The files of Istria in small, simulated: 12 stations, 10 windows of 8 days, air temperature drawn from the land's."""
    rng, days = np.random.default_rng(0), np.arange(80)
    lat, lon = np.linspace(44.7, 44.95, 26), np.linspace(13.5, 13.85, 36)
    season = 10 + 10 * np.sin(days * 2 * np.pi / 80)
    ground = rng.normal(0, 2, (len(lat), len(lon)))
    lst = season.reshape(10, 8).mean(1)[:, None, None] + ground + rng.normal(0, 0.5, (10, len(lat), len(lon)))
    lst[rng.random(lst.shape) < 0.1] = np.nan
    folder.mkdir(parents=True)
    first = 1 + 8 * np.arange(10)
    np.savez(folder / "modis_lst_8day_2008.npz", lst_celsius=lst.astype(np.float32), lat=lat, lon=lon, first_day_of_year=first)
    rows, columns = rng.integers(5, 21, 12), rng.integers(5, 31, 12)
    stations = [f"{number},{lat[row]},{lon[column]}" for number, (row, column) in enumerate(zip(rows, columns, strict=True), 1)]
    (folder / "stations.csv").write_text("\n".join(["stn,lat,lon", *stations]) + "\n", encoding="utf-8")
    dates = np.datetime_as_string(np.datetime64("2008-01-01") + days)
    air = [
        f"{dates[day]},{number},{season[day] + ground[row, column]:.2f}"
        for day in days
        for number, (row, column) in enumerate(zip(rows, columns, strict=True), 1)
    ]
    (folder / "daily_temperature_2008.csv").write_text("\n".join(["date,stn,ta_celsius", *air]) + "\n", encoding="utf-8")


def test_from_files_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISTRA_DIR", raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    simulated(tmp_path / "data" / "istra" / "raw")
    prepared = run("prepare", "recipe=lst_stations", cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    short = ("num_threads=1", "train.epochs=2", "evaluation.num_resamples=50")
    done = run("train", "recipe=lst_stations", *short, cwd=tmp_path)
    folder = tmp_path / trained(done)
    recipe = load_recipe("lst_stations")
    for split in recipe.evaluation.splits:
        result = json.loads((folder / "evaluation" / f"{split}.json").read_text(encoding="utf-8"))
        assert result["held_out"] == recipe.data.held_out[split]
        assert result["num_samples"] == json.loads((tmp_path / "data/istra/manifest.json").read_text(encoding="utf-8"))["rows"][split]
    assert recipe.title in (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTRA_DIR", str(DATA))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@real
def test_every_station_day_is_there_once(place: Path) -> None:
    for fold in range(2):
        folder = prepare_data(load_recipe("lst_stations", "prepare.held.out=station", f"prepare.held.fold={fold}"))
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert sum(facts["rows"].values()) == 8824
        assert facts["left_out"] == {}
        assert facts["simulated"] is False
    with PatchStore(folder / "patches" / "train") as store:
        rows = store.read(np.arange(len(store)))
        assert store.schema.facts["target"] == {"name": "air temperature", "unit": "degC"}
    measured = np.isfinite(rows["x"])
    assert 0.7 < measured.mean() < 0.95  # sea and clouds are holes
    middle = rows["x"][:, 0, 4, 4]
    there = np.isfinite(middle)
    assert np.corrcoef(middle[there], rows["y"][there])[0, 1] > 0.85  # the right pixel at the right time


@real
def test_it_learns_more_than_the_season(place: Path) -> None:
    from eyegraft.evaluation import evaluate
    from eyegraft.training import train

    words = (
        "prepare.held.out=block",
        "~data.satellite.patches.test_new_station",
        "~data.satellite.patches.test_new_both",
        "evaluation.splits=[test]",
        "evaluation.baselines=[shuffled_image]",
        "evaluation.slices=[]",
        "evaluation.num_resamples=10",
        "train.epochs=4",
        "num_threads=1",
        f"run_root={place}/runs",
    )
    recipe = load_recipe("lst_stations", *words)
    prepare_data(recipe)
    folder = train(recipe)
    evaluate(folder)
    rows = [json.loads(line) for line in (folder / "evaluation" / "test.samples.jsonl").read_text(encoding="utf-8").splitlines()]
    truth = np.array([float(row["references"][0]) for row in rows])
    error = {
        system: np.sqrt(np.mean((np.array([row["answers"][system]["value"] for row in rows]) - truth) ** 2))
        for system in ("model", "shuffled_image")
    }
    assert len(rows) == 1958
    assert error["model"] < 3.2  # 7.5 K is the spread of the readings
    assert error["shuffled_image"] > error["model"] + 0.5  # it looks at the patch
