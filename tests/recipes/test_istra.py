"""The recipe lst_stations on the real data of Istria, which lie beside the repository and in no part of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cli.running import TESTS
from eyegraft.composition import load_recipe
from eyegraft.data.patch_store import PatchStore
from eyegraft.prepare import prepare_data

DATA = Path(os.environ.get("ISTRA_DIR") or TESTS.parent.parent / "shared" / "data" / "istra")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data of Istria in {DATA}")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTRA_DIR", str(DATA))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


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
    run = train(recipe)
    evaluate(run)
    rows = [json.loads(line) for line in (run / "evaluation" / "test.samples.jsonl").read_text(encoding="utf-8").splitlines()]
    truth = np.array([float(row["references"][0]) for row in rows])
    error = {
        system: np.sqrt(np.mean((np.array([row["answers"][system]["value"] for row in rows]) - truth) ** 2))
        for system in ("model", "shuffled_image")
    }
    assert len(rows) == 1958
    assert error["model"] < 3.2  # 7.5 K is the spread of the readings
    assert error["shuffled_image"] > error["model"] + 0.5  # it looks at the patch
