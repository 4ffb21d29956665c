"""The simulated world as a data set: whole in one call, the same whoever makes it and however often it was stopped, honest about itself."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eyegraft.data.patch_store import PatchStore
from eyegraft.errors import DataError
from eyegraft.prepare import gk2a_simulated
from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.ground import ground_at
from eyegraft.prepare.gk2a.index import SPLITS
from eyegraft.prepare.gk2a.read import find_scenes, read_band
from eyegraft.prepare.gk2a.weather import noise_floor_k
from eyegraft.prepare.gk2a_simulated import Config, prepare, scene_plan

TABLE = Path(gk2a_simulated.__file__).with_name("stations.csv")
TINY = Config.model_validate(
    {"scenes_per_year": {"train": 4, "val": 2, "test": 2}, "num_stations": 6, "whole_scenes": 0, "workers": 1, "unlabelled_per_scene": 3}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("world")
    return place, prepare(TINY, place)


def scenes_of(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in sorted((place / "scenes").rglob("*.nc"))}


def test_places_are_real_ones_on_land_and_apart() -> None:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len({row["station"] for row in rows}) == len({row["icao"] for row in rows}) == 103
    lon, lat, height = (np.array([float(row[name]) for row in rows]) for name in ("lon", "lat", "elevation_m"))
    assert ground_at(lon, lat).land.all()
    assert height.min() >= 0
    column, row = grid_of("ko").to_pixel(lon, lat)
    assert (grid_of("ko").missing(column, row, margin=24) == "").all()
    apart = np.hypot(column[:, None] - column, row[:, None] - row)[~np.eye(len(rows), dtype=bool)]
    assert apart.min() >= 5
    incheon_side = {row["icao"]: row for row in rows}["RKSS"]  # Seoul Gimpo
    assert (round(float(incheon_side["lat"]), 2), round(float(incheon_side["lon"]), 2)) == (37.56, 126.79)


def test_one_call_makes_all_splits_and_says_what_they_are(made: tuple[Path, dict[str, Any]]) -> None:
    place, facts = made
    assert facts["simulated"] is True
    for split in (*SPLITS, "unlabelled"):
        with PatchStore(place / "patches" / split) as store:
            assert len(store) > 0
            told = store.schema.facts
            x, y, station = (store.read(np.arange(len(store)), ["x", "y", "stn"])[name] for name in ("x", "y", "stn"))
        assert told["simulated"] is True
        assert told["world"] == {"version": gk2a_simulated.WORLD, "seed": 7741}
        assert "CC0" in told["licence"]
        assert np.isfinite(x).all()
        if split == "unlabelled":
            assert np.isnan(y).all()
            continue
        assert told["noise_floor"][split] == round(noise_floor_k(new_station=split.startswith("test_new")), 3)
        assert set(map(str, station)) <= set(told["stations"])
        assert ((y > 240) & (y < 320)).all()
    known, new = (set(PatchStore(place / "patches" / split).read([0, 1], ["stn"])["stn"]) for split in ("train", "test_new_both"))
    assert not known & new
    assert "Michael duPont" in (place / "LICENSES" / "avwx-engine.txt").read_text(encoding="utf-8")
    assert all((place / name).is_file() for name in facts["outputs"])


def test_a_second_call_changes_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    place, facts = made
    before = {path: path.stat().st_mtime_ns for folder in ("scenes", "observations", "patches") for path in (place / folder).rglob("*.n*")}
    before |= {path: path.stat().st_mtime_ns for path in (place / "observations").iterdir()}
    assert prepare(TINY, place) == facts
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_killed_and_started_again_it_ends_with_the_same_scenes(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A real process with a second one beside it, killed while it writes; both end, and the next run makes what is missing."""
    (tmp_path / "main.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom eyegraft.prepare import gk2a_simulated\n"
        "if __name__ == '__main__':\n"
        f"    config = gk2a_simulated.Config.model_validate_json({TINY.model_dump_json()!r})\n"
        "    stations = gk2a_simulated._stations(Path(sys.argv[1]) / 'stations.csv', config.num_stations)\n"
        "    archive = gk2a_simulated._archive(Path(sys.argv[1]), stations, config)\n"
        "    gk2a_simulated._simulate(archive, gk2a_simulated.scene_plan(config), workers=2)\n",
        encoding="utf-8",
    )
    process = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path], start_new_session=True)
    _wait(lambda: process.poll() is not None or len(list(tmp_path.rglob("*.nc"))) >= 20)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _wait(lambda: not _alive(process.pid))
    assert 20 <= len(list(tmp_path.rglob("*.nc"))) < 8 * 16
    stations = gk2a_simulated._stations(tmp_path / "stations.csv", TINY.num_stations)
    gk2a_simulated._simulate(gk2a_simulated._archive(tmp_path, stations, TINY), scene_plan(TINY), workers=1)
    assert scenes_of(tmp_path) == scenes_of(made[0])
    assert not list(tmp_path.rglob(".*.tmp"))


def test_another_world_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    archive = gk2a_simulated._Archive(tmp_path / "scenes", "ko", 1, np.array([126.8]), np.array([37.6]))
    plan = scene_plan(TINY)[:1]
    gk2a_simulated._simulate(archive, plan, workers=1)
    first = scenes_of(tmp_path)
    other = gk2a_simulated._Archive(tmp_path / "scenes", "ko", 2, np.array([126.8]), np.array([37.6]))
    gk2a_simulated._simulate(other, plan, workers=1)
    assert list(scenes_of(tmp_path)) == list(first)
    assert scenes_of(tmp_path) != first
    gk2a_simulated._simulate(other, scene_plan(TINY)[1:2], workers=1)  # other times: what nobody asks for goes
    assert len(scenes_of(tmp_path)) == 16
    assert not set(scenes_of(tmp_path)) & set(first)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "mine.nc").write_bytes(b"measured")
    with pytest.raises(DataError, match=r"without simulation\.json"):
        prepare(TINY, tmp_path)
    assert (tmp_path / "scenes" / "mine.nc").read_bytes() == b"measured"


def test_full_disk_files_hold_korea_alone(tmp_path: Path) -> None:
    config = TINY.model_copy(update={"area": "fd"})
    stations = gk2a_simulated._stations(tmp_path / "stations.csv", config.num_stations)
    gk2a_simulated._simulate(gk2a_simulated._archive(tmp_path, stations, config), scene_plan(config)[:1], workers=1)
    (scene,) = find_scenes(tmp_path / "scenes")
    assert (scene.area, scene.missing) == ("fd", ())
    image = read_band(scene.files["IR105"], grid_of("fd").window_around((110, 140, 25, 50)))
    assert image.good.sum() == 6 * 25**2
    assert image.simulated


def test_the_plan_covers_hours_seasons_and_noon() -> None:
    plan = scene_plan(Config())
    assert len(plan) == 288
    assert len(set(plan)) == 288
    for year, count in ((2022, 144), (2023, 72), (2024, 72)):
        hours = [when.hour for when, _ in plan if when.year == year]
        assert np.bincount(hours, minlength=24).tolist() == [count // 24] * 24
        months = np.bincount([when.month for when, _ in plan if when.year == year], minlength=13)[1:]
        assert months.min() >= count / 12 - 3
    (whole,) = [when for when, everywhere in plan if everywhere]
    assert (whole.year, whole.hour) == (2024, 3)


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(session: int) -> bool:
    """Whether any process of a session runs."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stats.append(path.read_text().rsplit(")", 1)[1].split())
        except OSError:
            continue
    return any(int(fields[3]) == session and fields[0] != "Z" for fields in stats)
