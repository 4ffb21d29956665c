"""Index and scenes to patches: the right pixels, what was left out and why, and the same bytes whatever happened on the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time as clock
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pandas as pd
import pytest
import xarray

from eyegraft.data.patch_chunks import CHANNELS
from eyegraft.data.patch_statistics import read_statistics
from eyegraft.data.patch_store import PatchStore
from eyegraft.errors import DataError, RunError
from eyegraft.prepare.gk2a import Config, Rasters, gather, prepare, sun
from eyegraft.prepare.gk2a.bands import BANDS
from eyegraft.prepare.gk2a.grid import OUTSIDE_GRID, grid_of
from eyegraft.prepare.gk2a.ground import ground_at
from eyegraft.prepare.gk2a.index import COLUMNS
from eyegraft.prepare.gk2a.patches import build_patches
from eyegraft.prepare.gk2a.read import find_scenes, read_scene
from eyegraft.prepare.gk2a.simulate import read_stations_at, write_asos, write_scene
from eyegraft.prepare.gk2a.stations import CONFLICT, TWICE
from eyegraft.sensors import GK2A_AMI, Sensor

BOX = (126.2, 126.8, 36.2, 36.8)
NOON, NIGHT = datetime(2022, 7, 1, 3, tzinfo=UTC), datetime(2022, 7, 1, 15, tzinfo=UTC)
TIMES = (NOON, NIGHT, datetime(2023, 7, 1, 3, tzinfo=UTC), datetime(2024, 7, 1, 3, tzinfo=UTC))
STATIONS = pd.DataFrame(
    {"lat": [36.3, 36.4, 36.5, 36.6, 36.7, 36.35], "lon": [126.3, 126.4, 126.5, 126.6, 126.7, 126.65]},
    index=pd.Index(["108", "109", "110", "111", "112", "113"], name="station"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four simulated scenes with the records of six stations, indexed; nobody writes here."""
    base = tmp_path_factory.mktemp("made")
    for time in TIMES:
        write_scene(base / "scenes", time, 3, box=BOX)
    write_asos(base / "asos.txt", read_stations_at(STATIONS, TIMES, 3))
    STATIONS.to_csv(base / "stations.csv")
    prepare(Config(step="build_index", scenes="scenes", observations=("asos.txt",), stations="stations.csv"), base)
    return base


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Path:
    """The train split of the same, to be written into. Scenes are links: replace one, never write into it."""
    (tmp_path / "index").mkdir()
    shutil.copy(made / "index" / "index_train.csv", tmp_path / "index")
    shutil.copytree(made / "scenes", tmp_path / "scenes", copy_function=os.link)
    return tmp_path


@pytest.fixture
def whole_world(made: Path, world: Path) -> Path:
    """All splits."""
    shutil.copytree(made / "index", world / "index", dirs_exist_ok=True)
    return world


def build(base: Path, **options: Any) -> dict[str, Any]:
    return build_patches(base, scenes_root=base / "scenes", **options)


def rows_of(base: Path, split: str = "train") -> dict[str, np.ndarray]:
    with PatchStore(base / "patches" / split) as store:
        return store.read(np.arange(len(store)))


def contents(base: Path) -> dict[str, bytes]:
    """All that counts under `patches`."""
    files = sorted(path for path in (base / "patches").rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files}


def replaced(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def band_file(base: Path, time: datetime, band: str) -> Path:
    return base / "scenes" / f"gk2a_ami_le1b_{band}_ko020lc_{time:%Y%m%d%H%M}.nc"


def flag(path: Path, rows: slice, columns: slice) -> None:
    """Set the quality bits of some pixels to "error"."""
    shutil.copy2(path, path.with_suffix(".copy"))
    path.unlink()
    path.with_suffix(".copy").rename(path)
    with h5netcdf.File(path, "a") as stored:
        pixels = stored.variables["image_pixel_values"]
        pixels[rows, columns] = np.asarray(pixels[rows, columns]) | np.uint16(3 << 14)


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def built(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    base = tmp_path_factory.mktemp("built")
    shutil.copytree(made / "index", base / "index")
    shutil.copytree(made / "scenes", base / "scenes", copy_function=os.link)
    return base, build(base, facts={"noise_floor": {"test": 0.85}}, unlabelled_per_scene=5, rows_per_shard=12)


def test_every_row_holds_the_pixels_around_its_station(built: tuple[Path, dict[str, Any]]) -> None:
    base, facts = built
    index = pd.read_csv(base / "index" / "index.csv", keep_default_na=False)
    grid = grid_of("ko")
    rows, columns = grid.window_around(BOX)
    scenes = {scene.time: read_scene(scene, (rows, columns)) for scene in find_scenes(base / "scenes")}
    lon, lat = grid.window(rows, columns).lonlats()
    top, left = rows.start, columns.start
    seen = 0
    for split, wanted in index.groupby("split"):
        columns = rows_of(base, split)
        assert facts["rows"][split] == len(wanted) == len(columns["y"])
        for row, one in enumerate(wanted.itertuples()):
            scene = scenes[datetime.fromisoformat(one.timestamp_utc).replace(tzinfo=UTC)]
            place = (slice(one.pixel_y - top - 4, one.pixel_y - top + 5), slice(one.pixel_x - left - 4, one.pixel_x - left + 5))
            x = columns["x"][row]
            assert np.array_equal(x[:10], scene.brightness_k[:, *place])
            assert np.array_equal(x[10:16], scene.reflectance[:, *place])
            assert np.allclose(x[16], sun.zenith(scene.grid, scene.start, scene.end)[place], atol=1e-3)
            ground = ground_at(lon[place], lat[place])
            assert np.allclose(x[17], ground.elevation_m, atol=1e-3)
            assert np.array_equal(x[18], ground.land)
            assert columns["landcover"][row] == ground.igbp[4, 4]
            assert columns["y"][row] == np.float32(one.ta_k)
            assert columns["loc"][row].tolist() == [np.float32(one.lat), np.float32(one.lon), 2000]
            assert (columns["stn"][row], *columns["pixel"][row]) == (one.stn, one.pixel_x, one.pixel_y)
            assert columns["timestamp"][row] == scene.time.timestamp()
            assert columns["time7"][row, 6] == x[16, 4, 4]
            seen += 1
    assert seen == len(index) == 22


def test_time_is_written_cosine_first() -> None:
    moments = np.array(["2024-01-01T00:00", "2024-04-01T06:30", "2024-12-31T18:00"], dtype="datetime64[s]")
    found = gather.time7(moments, np.array([10.0, 20.0, 120.0]))
    assert found[0] == pytest.approx([1, 0, 1, 0, np.cos(np.pi / 6), 0.5, 10], abs=1e-6)
    assert found[1, :2] == pytest.approx([np.cos(2 * np.pi * 91 / 365.25), np.sin(2 * np.pi * 91 / 365.25)], abs=1e-6)
    assert found[1, 2:4] == pytest.approx([np.cos(2 * np.pi * 6.5 / 24), np.sin(2 * np.pi * 6.5 / 24)], abs=1e-6)
    assert found[2, 2:6] == pytest.approx([0, -1, 1, 0], abs=1e-6)


def test_facts_and_statistics_are_those_of_the_train_split(built: tuple[Path, dict[str, Any]]) -> None:
    base, made = built
    with PatchStore(base / "patches" / "train") as train:
        facts = train.schema.facts
        statistics = read_statistics(base / "patches" / "statistics.json", CHANNELS, train=train)
    GK2A_AMI.require_same(Sensor.model_validate(facts["sensor"]), here="the known one", there="the patches")
    assert facts["channels"][16:] == facts["extra"] == ["sza", "dem", "lsmask"]
    assert (facts["target"], facts["simulated"], facts["noise_floor"]) == ({"name": "ta", "unit": "K"}, True, {"test": 0.85})
    x = rows_of(base)["x"].astype(np.float64)
    assert statistics["inputs"]["bt_06"]["mean"] == pytest.approx(x[:, 6].mean())
    assert statistics["inputs"]["dem"]["std"] == pytest.approx(x[:, 17].std())
    assert "lsmask" not in statistics["inputs"]
    assert made["night"]["train"] == {"rows": 5, "scenes": 1}  # kept, and said
    assert made["left_out"]["train"] == {}
    assert all((base / name).is_file() for name in made["outputs"])


def test_unlabelled_patches_are_of_train_and_have_no_target(built: tuple[Path, dict[str, Any]]) -> None:
    base, made = built
    columns = rows_of(base, "unlabelled")
    assert made["rows"]["unlabelled"] == 10
    assert np.isnan(columns["y"]).all()
    assert set(columns["stn"]) == {-1}
    assert set(columns["timestamp"]) == {int(NOON.timestamp()), int(NIGHT.timestamp())}
    assert len({tuple(pixel) for pixel in columns["pixel"]}) > 5
    lon, lat = grid_of("ko").to_lonlat(columns["pixel"][:, 0], columns["pixel"][:, 1])
    assert np.allclose(columns["loc"][:, :2], np.stack([lat, lon], axis=1), atol=1e-4)


def test_old_statistics_are_taken_in_place_of_new_ones(world: Path) -> None:
    one = {"mean": 250.0, "std": 9.0}
    (world / "inputs.json").write_text(json.dumps(dict.fromkeys(CHANNELS[:-1], one)))
    (world / "target.json").write_text(json.dumps({"TA": one}))
    config = Config(step="build_patches", scenes="scenes", input_statistics="inputs.json", target_statistics="target.json")
    prepare(config, world)
    told = read_statistics(world / "patches" / "statistics.json", CHANNELS)
    assert (told["target"], told["source"], told["train_store"]) == (one, "inputs.json", None)


# ── the same bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_scene_is_decoded_once_for_all_splits_and_once_more_for_unlabelled_rows(
    whole_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, decoded = gather.read, []

    def counted(cut: gather.Cut, described: Any) -> Any:
        decoded.append(described["time"])
        return whole(cut, described)

    monkeypatch.setattr(gather, "read", counted)
    build(whole_world, rows_per_shard=6)
    assert sorted(decoded) == [f"{time:%Y-%m-%dT%H:%M:%S}" for time in TIMES]
    assert not (whole_world / "patches" / ".stash").exists()
    manifests = {path: path.read_bytes() for path in whole_world.glob("patches/*/manifest.json")}
    decoded.clear()
    build(whole_world, unlabelled_per_scene=5, rows_per_shard=6)
    assert {time[:4] for time in decoded} == {"2022"}
    assert len(decoded) == len(set(decoded))
    assert (whole_world / "patches" / "unlabelled").exists()
    assert all(path.read_bytes() == content for path, content in manifests.items())  # runs go on upon the same data
    build(whole_world, rows_per_shard=6)
    assert not (whole_world / "patches" / "unlabelled").exists()  # rows of another plan must not stay beside these


def test_a_second_build_keeps_all_and_a_changed_scene_is_cut_again(world: Path) -> None:
    build(world, rows_per_shard=6)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (world / "patches").rglob("*.npy")}
    build(world, rows_per_shard=6)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (world / "patches").rglob("*.npy")}
    flag(band_file(world, NIGHT, "ir105"), slice(521, 522), slice(0, 900))
    made = build(world, rows_per_shard=6)
    changed = {path for path, (_, content) in before.items() if path.read_bytes() != content}
    assert {path.parent.relative_to(world / "patches").as_posix() for path in changed} == {"train/shard-00001"}
    assert made["left_out"]["train"].keys() == {gather.QUALITY}
    statistics = json.loads((world / "patches" / "statistics.json").read_text())
    with PatchStore(world / "patches" / "train") as train:
        assert statistics["train_store"] == train.identity  # fitted again with it


def test_workers_write_the_same_bytes(world: Path) -> None:
    build(world, rows_per_shard=6)
    alone = contents(world)
    shutil.rmtree(world / "patches")
    build(world, rows_per_shard=6, workers=2)
    assert contents(world) == alone


_BUILD = """
import sys
from pathlib import Path
from eyegraft.prepare.gk2a import gather
from eyegraft.prepare.gk2a.patches import build_patches
base = Path(sys.argv[1])
build_patches(base, scenes_root=base / "scenes", facts={"noise_floor": {"test": 0.85}}, unlabelled_per_scene=5, rows_per_shard=12)
"""


def test_killed_twice_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(whole_world: Path, built: tuple[Path, dict[str, Any]]) -> None:
    draw, moments = random.Random(), []
    script = whole_world / "build.py"
    script.write_text(_BUILD)
    for _ in range(2):
        begun = len(list((whole_world / "patches").glob("*/shard-*")))
        process = subprocess.Popen([sys.executable, script, whole_world])
        until = clock.monotonic() + 60
        while process.poll() is None and len(list((whole_world / "patches").glob("*/shard-*"))) == begun and clock.monotonic() < until:
            clock.sleep(0.005)
        clock.sleep(draw.uniform(0, 0.08))
        process.kill()
        moments.append(process.wait())
    assert moments[0] == -9  # it was at work
    assert not (whole_world / "patches" / "statistics.json").exists() or moments[1] == 0
    subprocess.run([sys.executable, script, whole_world], check=True, timeout=120)
    assert contents(whole_world) == contents(built[0])


def test_a_second_builder_is_refused(world: Path) -> None:
    from filelock import FileLock

    (world / "patches").mkdir()
    with FileLock(world / "patches" / ".building"), pytest.raises(RunError, match="being built by another process"):
        build(world)


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_truncated_scene_is_left_out_by_name_and_made_when_it_is_whole(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = band_file(world, NIGHT, "ir105")
    whole = path.read_bytes()
    replaced(path, whole[: len(whole) // 2])
    made = build(world)
    assert made["left_out"]["train"] == {gather.UNREADABLE: 5}
    assert f"{path} ({len(whole) // 2:,} bytes) cannot be read" in caplog.text
    with PatchStore(world / "patches" / "train") as train:
        assert train.manifest.counts[f"{gather.UNREADABLE}: 2022-07-01T15:00:00 UTC"] == 5
    replaced(path, whole)
    assert build(world)["rows"]["train"] == 10


def test_many_scenes_that_cannot_be_read_stop_the_build(world: Path) -> None:
    for time in TIMES:
        path = band_file(world, time, "ir112")
        replaced(path, path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"2 of 2 scenes of a shard cannot be read; the last: .*ir112(.|\n)*take its rows out"):
        build(world)


def test_missing_bands_are_named(world: Path) -> None:
    for time in TIMES[:2]:
        band_file(world, time, "sw038").unlink()
        band_file(world, time, "nr016").unlink()
    with pytest.raises(DataError, match=r"has no file for SW038, NR016(.|\n)*download the missing files"):
        build(world)


def test_scenes_that_are_not_there(world: Path) -> None:
    write_scene(world / "elsewhere", datetime(2022, 7, 2, tzinfo=UTC), 3, box=BOX, bands=(BANDS["IR105"],))
    with pytest.raises(DataError, match=r"2 of 2 scenes of the index are not below .*elsewhere(.|\n)*prepare\.scenes"):
        build_patches(world, scenes_root=world / "elsewhere")
    shutil.rmtree(world / "index")
    with pytest.raises(DataError, match=r"index_train\.csv is not there(.|\n)*step=build_index"):
        build(world)


def test_an_index_of_another_grid_or_clock(world: Path) -> None:
    with pytest.raises(DataError, match=r"on the grid fd it lies at(.|\n)*prepare\.area"):
        build(world, area="fd")
    path = world / "index" / "index_train.csv"
    table = pd.read_csv(path, keep_default_na=False)
    table.assign(lat=40.0, lon=-60.0).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"station 108 at 40 N -60 E has the pixel 463, 542; on the grid fd it lies beyond the disk"):
        build(world, area="fd")
    table.assign(timestamp_utc=pd.to_datetime(table["timestamp_utc"]) + pd.Timedelta(hours=9)).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"at 2022-07-01 12:00:00 UTC on the grid ko(.|\n)*2022-07-01 03:00 UTC(.|\n)*are UTC"):
        build(world)


def test_stations_beyond_the_grid_and_readings_given_twice(world: Path) -> None:
    path = world / "index" / "index_train.csv"
    table = pd.read_csv(path, dtype={"stn": str}, keep_default_na=False)
    beyond, edge = (table.iloc[[0]].assign(stn=name, **place(x, y)) for name, x, y in (("8", -400, 300), ("9", 400, 2)))
    again, other = table.iloc[[1]], table.iloc[[2]].assign(ta_k=table.iloc[2]["ta_k"] + 1)
    pd.concat([table, beyond, edge, again, other]).to_csv(path, index=False)
    made = build(world)
    assert made["left_out"]["train"] == {OUTSIDE_GRID: 2}
    assert made["left_out"]["index"] == {TWICE: 1, CONFLICT: 2}
    assert made["rows"]["train"] == 9


def place(x: int, y: int) -> dict[str, Any]:
    """A station in a pixel of the Korea grid."""
    lon, lat = grid_of("ko").to_lonlat(x, y)
    return {"lat": float(lat), "lon": float(lon), "pixel_x": x, "pixel_y": y}


def test_a_night_without_light_is_kept_with_zeros_and_a_bad_day_is_not(world: Path) -> None:
    """Reflected bands whose pixels are flagged, around one station by day and everywhere by night: nothing is missing at night."""
    one = pd.read_csv(world / "index" / "index_train.csv").iloc[0]
    flag(band_file(world, NOON, "vi006"), slice(one["pixel_y"], one["pixel_y"] + 1), slice(one["pixel_x"], one["pixel_x"] + 1))
    for band in ("vi004", "vi006", "nr016"):
        flag(band_file(world, NIGHT, band), slice(500, 560), slice(440, 500))
    made = build(world)
    assert made["left_out"]["train"].keys() == {gather.QUALITY}
    columns = rows_of(world)
    night = columns["timestamp"] == NIGHT.timestamp()
    assert night.sum() == 5
    assert 0 < (~night).sum() < 5
    assert not columns["x"][night][:, [10, 12, 15]].any()
    assert columns["x"][night][:, 13].any()  # what was measured stays
    assert made["night"]["train"] == {"rows": 5, "scenes": 1}


@pytest.mark.parametrize("missing", ["drop", "mask"])
def test_pixels_that_were_not_measured(world: Path, missing: str) -> None:
    """The pixel of one station and its surroundings are flagged in one band."""
    one = pd.read_csv(world / "index" / "index_train.csv").iloc[0]
    x, y = int(one["pixel_x"]), int(one["pixel_y"])
    flag(band_file(world, NOON, "ir105"), slice(y - 1, y + 2), slice(x - 1, x + 2))
    made = build(world, missing=missing)
    columns = rows_of(world)
    with PatchStore(world / "patches" / "train") as train:
        assert train.schema.facts["sensor"]["missing"] == missing
    if missing == "drop":
        assert made["left_out"]["train"] == {gather.QUALITY: 1}
        assert np.isfinite(columns["x"]).all()
        return
    assert made["left_out"]["train"] == {}
    gaps = np.isnan(columns["x"])
    assert gaps[0, 6, 3:6, 3:6].all()
    assert gaps.sum() == gaps[:, 6].sum() >= 9
    assert read_statistics(world / "patches" / "statistics.json", CHANNELS)["inputs"]["bt_06"]["mean"] == pytest.approx(
        np.nanmean(columns["x"][:, 6].astype(np.float64))
    )


def test_patches_without_any_measurement_are_not_kept(world: Path) -> None:
    for band in BANDS:
        flag(band_file(world, NOON, band.lower()), slice(500, 560), slice(440, 500))
    assert build(world, missing="mask")["left_out"]["train"] == {gather.NOTHING: 5}


def test_measured_and_simulated_scenes_do_not_mix(world: Path) -> None:
    for path in (world / "scenes").glob("*_202207011500.nc"):
        shutil.copy2(path, path.with_suffix(".copy"))
        path.unlink()
        path.with_suffix(".copy").rename(path)
        with h5netcdf.File(path, "a") as stored:
            stored.attrs["simulated"] = "false"
    with pytest.raises(DataError, match=r"2022-07-01T15:00:00 UTC is measured, the first one simulated"):
        build(world)


def test_statistics_of_another_sensor_are_refused(world: Path) -> None:
    (world / "inputs.json").write_text(json.dumps({f"B{number:02}": {"mean": 1, "std": 1} for number in range(7)}))
    (world / "target.json").write_text(json.dumps({"TA": {"mean": 1, "std": 1}}))
    config = Config(step="build_patches", scenes="scenes", input_statistics="inputs.json", target_statistics="target.json")
    with pytest.raises(DataError, match=r"inputs\.json: statistics of other channels: none for bt_00"):
        prepare(config, world)


# ── extracted scenes and rasters ─────────────────────────────────────────────────────────────────────────────────────────────────

WINDOW = (slice(500, 560), slice(440, 500))


def on_grid(path: Path, values: Any, bands: int = 0) -> Path:
    """A `.npy` on the whole Korea grid that holds something in one window."""
    shape = (bands, 900, 900) if bands else (900, 900)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    stored[..., WINDOW[0], WINDOW[1]] = values
    stored.flush()
    return path


@pytest.fixture
def extracted(whole_world: Path) -> Iterator[Path]:
    """The scenes as arrays, with an index that names them, and rasters on the grid and in degrees."""
    parts = [pd.read_csv(whole_world / "index" / f"index_{split}.csv", keep_default_na=False) for split in ("train", "val", "test")]
    table = pd.concat(parts, ignore_index=True)
    shutil.rmtree(whole_world / "scenes")
    draw = np.random.default_rng(0)
    for number, time in enumerate(sorted(table["timestamp_utc"].unique())):
        on_grid(whole_world / f"scenes/{number}/bt.npy", draw.normal(280, 10, (10, 60, 60)), 10)
        on_grid(whole_world / f"scenes/{number}/rf.npy", draw.uniform(0.1, 0.9, (6, 60, 60)), 6)
        on_grid(whole_world / f"scenes/{number}/sza.npy", draw.uniform(20, 40, (60, 60)))
        here = table["timestamp_utc"] == time
        for column, file in (("path_bt", "bt.npy"), ("path_reflectance", "rf.npy"), ("path_sza", "sza.npy")):
            table.loc[here, column] = f"{number}/{file}" if file != "sza.npy" or number else ""
    for path in (whole_world / "index").iterdir():
        path.unlink()
    table[list(COLUMNS)].to_csv(whole_world / "mine.csv", index=False)
    on_grid(whole_world / "dem.npy", draw.uniform(-50, 900, (60, 60)))
    on_grid(whole_world / "mask.npy", draw.integers(0, 2, (60, 60)))
    yield whole_world
    shutil.rmtree(whole_world / "scenes")  # sparse, but large for whoever copies them


def raster(path: Path, values: np.ndarray, lat: np.ndarray, lon: np.ndarray, **more: np.ndarray) -> Path:
    maps = {"cover": values, **more}
    xarray.Dataset({name: (("lat", "lon"), one) for name, one in maps.items()}, {"lat": lat, "lon": lon}).to_netcdf(path, engine="h5netcdf")
    return path


def test_arrays_and_rasters_of_the_user(extracted: Path) -> None:
    lat, lon = np.arange(39, 34, -0.02), np.arange(124, 129, 0.02)
    classes = (np.arange(len(lat))[:, None] + np.arange(len(lon))) % 18
    raster(extracted / "igbp.nc", classes.astype(np.uint8), lat, lon)
    rasters = Rasters(dem="dem.npy", lsmask="mask.npy", landcover="igbp.nc")
    made = prepare(Config(scenes="scenes", index="mine.csv", new_station_fraction=0, rasters=rasters), extracted)
    assert made["simulated"] is False
    assert made["rows"] == {"train": 10, "val": 5, "test": 5}
    columns, dem = rows_of(extracted), np.load(extracted / "dem.npy", mmap_mode="r")
    for row in range(10):
        x, y = columns["pixel"][row]
        place = (slice(y - 4, y + 5), slice(x - 4, x + 5))
        scene = row // 5
        assert np.array_equal(columns["x"][row, :10], np.load(extracted / f"scenes/{scene}/bt.npy", mmap_mode="r")[:, *place])
        assert np.array_equal(columns["x"][row, 17], np.maximum(dem[place], 0))
        assert np.array_equal(columns["x"][row, 18], np.load(extracted / "mask.npy", mmap_mode="r")[place])
        east, north = grid_of("ko").to_lonlat(x, y)
        nearest = classes[np.abs(lat - north).argmin(), np.abs(lon - east).argmin()]
        assert columns["landcover"][row] == nearest % 17  # 17 is water in other editions
    assert np.array_equal(
        columns["x"][7, 16, 4, 4], np.load(extracted / "scenes/1/sza.npy", mmap_mode="r")[tuple(columns["pixel"][7][::-1])]
    )
    assert columns["time7"][0, 6] == pytest.approx(15.5, abs=1)  # computed where none is stored


def test_what_extracted_scenes_may_fail_by(extracted: Path) -> None:
    table = pd.read_csv(extracted / "mine.csv")
    first, second, third = table.iloc[0], table.iloc[1], table.iloc[2]
    lat, lon = np.arange(39, 34, -0.02), np.arange(124, 129, 0.02)
    classes = np.full((len(lat), len(lon)), 5.0)
    north, east = (float(value) for value in reversed(grid_of("ko").to_lonlat(third["pixel_x"], third["pixel_y"])))
    classes[np.abs(lat - north).argmin(), np.abs(lon - east).argmin()] = 255
    raster(extracted / "igbp.nc", classes, lat, lon)
    scene = np.load(extracted / "scenes/0/bt.npy", mmap_mode="r+")
    scene[3, first["pixel_y"], first["pixel_x"]] = np.inf
    dem = np.load(extracted / "dem.npy", mmap_mode="r+")
    dem[second["pixel_y"], second["pixel_x"]] = np.nan
    config = Config(
        scenes="scenes", index="mine.csv", new_station_fraction=0, rasters=Rasters(dem="dem.npy", lsmask="mask.npy", landcover="igbp.nc")
    )
    made = prepare(config, extracted)
    left_out = made["left_out"]["train"]
    assert set(left_out) == {gather.NOT_FINITE, gather.NO_GROUND, gather.LAND_COVER}
    assert left_out[gather.LAND_COVER] == 2  # at both times
    assert sum(left_out.values()) + made["rows"]["train"] == 10
    masked = prepare(config.model_copy(update={"missing": "mask"}), extracted)
    assert masked["left_out"]["train"] == {gather.LAND_COVER: 2}
    columns = rows_of(extracted)
    assert not np.isinf(columns["x"]).any()
    assert np.isnan(columns["x"][0, 3, 4, 4])


def test_rasters_that_do_not_fit(extracted: Path) -> None:
    (extracted / "index").mkdir(exist_ok=True)
    prepare(Config(step="build_index", index="mine.csv", new_station_fraction=0), extracted)
    lat, lon = np.arange(10, 20, 0.5), np.arange(124, 129, 0.5)
    zeros = np.zeros((len(lat), len(lon)))
    raster(extracted / "south.nc", zeros, lat, lon)
    raster(extracted / "two.nc", zeros, lat + 22, lon, other=zeros)
    np.save(extracted / "small.npy", np.zeros((5, 5), np.float32))
    (extracted / "broken.nc").write_bytes(b"CDF no")
    with pytest.raises(DataError, match=r"measured scenes without elevation"):
        build(extracted)
    for dem, message in (
        ("nowhere.nc", r"prepare\.rasters\.dem|cannot be read"),
        ("south.nc", r"10 to 19\.5 N(.|\n)*area of the scenes"),
        ("two.nc", r"2 maps; there cover, other(.|\n)*two\.nc#VARIABLE"),
        ("two.nc#third", "no map third; there cover, other"),
        ("small.npy", r"shape \(5, 5\)(.|\n)*\(900, 900\)"),
        ("broken.nc", "broken.nc cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            build(extracted, rasters=Rasters(dem=dem, lsmask="mask.npy"))


def test_configuration_says_what_a_step_needs() -> None:
    from pydantic import ValidationError

    for options, message in (
        ({"index": "index.csv"}, "give prepare.scenes"),
        ({"step": "build_patches"}, "give prepare.scenes"),
        ({"step": "convert_chunks"}, "give prepare.chunks"),
        ({"scenes": "s", "index": "i", "input_statistics": "a.json"}, "belong together"),
    ):
        with pytest.raises(ValidationError, match=message):
            Config(**options)  # type: ignore[arg-type]
