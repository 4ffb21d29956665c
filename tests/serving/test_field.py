"""A field holds at every pixel what the run would answer for a patch that was stored there, and says of every other pixel why it has none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5netcdf
import numpy as np
import pytest
import xarray
from pyproj import CRS, Transformer

from eyegraft.answering import answer_samples, readers_of
from eyegraft.data.patch_rows import PatchRows, opened
from eyegraft.errors import DataError, PartError, RunError
from eyegraft.prepare.gk2a import Rasters, gather
from eyegraft.prepare.gk2a.grid import KOREA, grid_of
from eyegraft.prepare.gk2a.rasters import identity
from eyegraft.prepare.gk2a.read import find_scenes
from eyegraft.prepare.gk2a.simulate import write_scene
from eyegraft.sensors import GK2A_AMI, Sensor
from eyegraft.serving import mapping
from eyegraft.serving.field import HAS_VALUE, REASONS, Field
from eyegraft.serving.field_file import as_dataset, write_field
from eyegraft.serving.mapping import choose_scene, map_scene
from eyegraft.training.runs import Run, read_run
from eyegraft.training.trained import load_model
from eyegraft.types import PatchSpec
from serving.scenes import BOX, SEED, TEST, trained, world


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.getbasetemp() / "scenes")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.getbasetemp() / "scenes")


@pytest.fixture(scope="module")
def field(base: Path, run: Path) -> Field:
    return map_scene(run, choose_scene(base / "scenes", TEST), box=BOX)


def plane(shape: tuple[int, int], **changes: Any) -> Field:
    """A field that no model made, on part of the Korea grid."""
    grid = grid_of("ko").window(slice(300, 300 + 2 * shape[0]), slice(500, 500 + 2 * shape[1]))
    values = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape) / 10 + 270
    quality = np.zeros(shape, np.uint8)
    values[0, 0], quality[0, 0] = np.nan, REASONS.index(gather.NOT_FINITE)
    made = Field(
        grid=grid,
        rows=np.arange(0, grid.shape[0], 2),
        columns=np.arange(0, grid.shape[1], 2),
        time=datetime(2024, 7, 25, 1, 10, tzinfo=UTC),
        name="ta",
        unit="K",
        values=values,
        std=np.full(shape, 0.5, np.float32),
        half_width=np.full(shape, 1.25, np.float32),
        level=0.9,
        quality=quality,
        scene_simulated=False,
        training_simulated=True,
        facts={"run": "a/b", "checkpoint": {"stage": "ta", "sha256": "0" * 64}},
        seconds=1.0,
    )
    return replace(made, **changes)


# ── the same answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_station_s_pixel_holds_the_answer_to_its_stored_patch(base: Path, run: Path, field: Field) -> None:
    """Patch, sun, elevation, time, place and land cover: all the model reads comes out the same."""
    rows = PatchRows(opened(base / "patches" / "test"))
    recipe = read_run(run)
    model, task, _ = load_model(recipe)
    assert set(model.encoders) == {"image", "context"}
    answers = answer_samples(model, task, rows, readers_of(model, recipe.recipe), batch_size=64)
    x, y = rows.column("pixel_x") - field.grid.first[0], rows.column("pixel_y") - field.grid.first[1]
    there = np.searchsorted(field.rows, y), np.searchsorted(field.columns, x)
    assert len(rows) >= 10
    assert np.abs(field.values[there] - np.array([answer["value"] for answer in answers])).max() < 1e-4
    assert field.half_width is not None
    widths = np.array([answer["interval"][1] - answer["interval"][0] for answer in answers]) / 2
    assert np.abs(field.half_width[there] - widths).max() < 1e-4
    assert np.abs(field.at(rows.column("lon"), rows.column("lat")) - field.values[there]).max() == 0
    assert np.isfinite(field.values).all()
    assert field.values.std() > 1e-3  # not the same everywhere


def test_the_field_does_not_depend_on_the_window_the_stride_or_the_batch(base: Path, run: Path, field: Field) -> None:
    files = choose_scene(base / "scenes", TEST)
    whole = map_scene(run, files, batch_size=100, stride=3)
    assert whole.values.shape == (300, 300)
    assert whole.grid.shape == (900, 900)
    top, left = field.grid.first[1], field.grid.first[0]
    rows, columns = top + field.rows, left + field.columns
    every = np.ix_(np.flatnonzero(rows % 3 == 0), np.flatnonzero(columns % 3 == 0))
    same = np.ix_(rows[rows % 3 == 0] // 3, columns[columns % 3 == 0] // 3)
    known = np.isfinite(whole.values[same])
    assert known.sum() > 50
    assert np.abs(whole.values[same][known] - field.values[every][known]).max() < 1e-4
    # the world is filled in BOX alone: what lies outside has no value, and says why
    assert whole.counts()[HAS_VALUE] == int(np.isfinite(whole.values).sum())
    assert whole.counts()[gather.QUALITY] > 80_000
    assert sum(whole.counts().values()) == 90_000


def test_of_a_full_disk_the_window_around_korea_is_answered(run: Path, tmp_path: Path) -> None:
    write_scene(tmp_path, TEST, SEED, area="fd", box=BOX)
    field = map_scene(run, choose_scene(tmp_path), stride=2)
    grid = grid_of("fd")
    asked = grid.window_around(KOREA, margin=0)
    assert field.values.shape == tuple(-(-(one.stop - one.start) // 2) for one in asked)
    lon, lat = field.lonlats()
    inside = np.isfinite(field.values)
    assert 50 < inside.sum() == field.counts()[HAS_VALUE]
    assert BOX[0] - 0.2 < lon[inside].min() < lon[inside].max() < BOX[1] + 0.2
    assert BOX[2] - 0.2 < lat[inside].min() < lat[inside].max() < BOX[3] + 0.2
    assert field.facts["trained_on_area"] == "ko"


# ── why a pixel has no value ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def damaged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene of the test with a column of error pixels in one band and a few cold counts without a temperature in another."""
    folder = tmp_path_factory.mktemp("damaged")
    for path in choose_scene(base / "scenes", TEST).files.values():
        shutil.copy(path, folder)
    rows, columns = grid_of("ko").window_around(BOX, margin=0)
    for band, quality, place in (("ir105", 3, (slice(None), columns.start + 14)), ("wv063", 2, (rows.start + 9, slice(None)))):
        with h5netcdf.File(next(folder.glob(f"*_{band}_*.nc")), "r+") as stored:
            pixels = stored.variables["image_pixel_values"]
            values = pixels[...]
            values[place] = quality << 14
            pixels[...] = values
    return folder


@pytest.mark.parametrize("missing", ["drop", "mask"])
def test_the_pixels_with_a_value_are_those_that_preparation_keeps(base: Path, damaged: Path, missing: str) -> None:
    """Every pixel of a window, cut by the code that makes training patches."""
    (files,) = find_scenes(damaged)
    patches = {**opened(base / "patches" / "train").schema.facts}
    patches["sensor"] = {**patches["sensor"], "missing": missing}
    recipe = SimpleNamespace(data=SimpleNamespace(base_dir=str(base)), prepare=None)
    look = mapping._look(SimpleNamespace(recipe=recipe), files, patches, 9, BOX, 1)  # type: ignore[arg-type]
    x, y = np.meshgrid(look.grid.first[0] + look.columns, look.grid.first[1] + look.rows)
    index = np.zeros(x.size, gather.ROW)
    index["x"], index["y"], index["stn"] = x.ravel(), y.ravel(), np.arange(x.size)
    whole = grid_of("ko")
    window = slice(0, whole.shape[0]), slice(0, whole.shape[1])
    cut = gather.Cut(damaged, base, "ko", window, 9, missing, True, None)
    described = {name: [path.name, 0, 0] for name, path in files.files.items()}
    scene = {"time": f"{TEST:%Y-%m-%dT%H:%M:%S}", "files": described, "rows": {"train": gather.packed(index)}}
    columns, left_out = gather.produce(cut, "train", [scene])
    assert np.flatnonzero(look.quality.ravel() == 0).tolist() == columns["stn"].tolist()
    counts = np.bincount(look.quality.ravel(), minlength=len(REASONS))
    assert {reason: int(count) for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count} == {
        reason: count for reason, count in left_out.items() if count
    }
    assert (counts[0] == x.size) == (missing == "mask")  # masked, all of them are kept
    assert np.array_equal(look.pixels.read(np.arange(len(look.pixels)), ["x"])["x"], columns["x"], equal_nan=True)
    small = look.pixels.read(np.arange(len(look.pixels)), ["landcover", "timestamp", "pixel"])
    assert all(np.array_equal(small[name], columns[name]) for name in small)


def test_a_record_that_is_not_there(base: Path) -> None:
    look = mapping._look(
        read_run_like(base), choose_scene(base / "scenes", TEST), opened(base / "patches" / "train").schema.facts, 9, BOX, 4
    )
    with pytest.raises(DataError, match="no field 'time7'"):
        look.pixels.read(np.arange(2), ["time7"])


def read_run_like(base: Path) -> Any:
    return SimpleNamespace(folder=Path("runs/x"), recipe=SimpleNamespace(data=SimpleNamespace(base_dir=str(base)), prepare=None))


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("area", ["ko", "fd"])
def test_coordinates_follow_from_the_projection_that_the_file_names(tmp_path: Path, area: str) -> None:
    """As a geographic information system would read it: CF's attributes alone, and the well-known text alone."""
    window = grid_of(area).window(*grid_of(area).window_around(BOX, margin=0))
    rows, columns = np.arange(0, window.shape[0], 2), np.arange(1, window.shape[1], 2)
    shape = len(rows), len(columns)
    one = plane((2, 2), grid=window, rows=rows, columns=columns, quality=np.zeros(shape, np.uint8), std=None, half_width=None)
    write_field(replace(one, values=np.full(shape, 290, np.float32)), tmp_path / "field.nc")
    with xarray.open_dataset(tmp_path / "field.nc") as stored:
        assert stored["ta"].attrs["grid_mapping"] == "crs"
        crs = dict(stored["crs"].attrs)
        x, y = np.meshgrid(stored["x"], stored["y"])
        for said in ({key: value for key, value in crs.items() if key not in ("crs_wkt", "proj4")}, {"crs_wkt": crs["crs_wkt"]}):
            lon, lat = Transformer.from_crs(CRS.from_cf(said), CRS("EPSG:4326"), always_xy=True).transform(x, y)
            assert np.abs(lon - stored["lon"]).max() < 2e-5
            assert np.abs(lat - stored["lat"]).max() < 2e-5
        column, row = grid_of(area).to_pixel(stored["lon"].values, stored["lat"].values)
        assert np.abs(column - stored["pixel_x"].values).max() < 0.01
        assert np.abs(row - stored["pixel_y"].values[:, None]).max() < 0.01


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_what_is_written_is_read_back(tmp_path: Path, ending: str) -> None:
    field, path = plane((5, 7)), tmp_path / "new" / f"field.{ending}"
    write_field(field, path)
    write_field(field, path)  # again: replaced
    assert [item.name for item in path.parent.iterdir()] == [path.name]  # and no draft is left
    with xarray.open_dataset(path, engine="zarr" if ending == "zarr" else "h5netcdf") as stored:
        assert np.array_equal(stored["ta"], field.values, equal_nan=True)
        assert stored["ta"].attrs["units"] == "K"
        assert stored["ta"].attrs["standard_name"] == "air_temperature"
        assert float(stored["ta_std"].mean()) == 0.5
        assert float(stored["ta_half_width"].mean()) == 1.25
        assert "90 %" in stored["ta_half_width"].attrs["long_name"]
        assert stored["time"].values == np.datetime64("2024-07-25T01:10")
        flags = dict(
            zip(
                np.asarray(stored["ta_quality"].attrs["flag_values"]).tolist(),
                stored["ta_quality"].attrs["flag_meanings"].split(),
                strict=True,
            )
        )
        assert flags[int(stored["ta_quality"][0, 0])] == "NaN_or_infinity_in_a_band"
        assert stored.attrs["simulated"] == "true"
        assert stored.attrs["scene_simulated"] == "false"
        assert "SIMULATED: what the model learned from" in stored.attrs["title"]
        assert json.loads(stored.attrs["checkpoint"])["sha256"] == "0" * 64
        assert int(stored.attrs["stride"]) == 2


def test_a_field_of_measurements_does_not_say_simulated() -> None:
    said = as_dataset(plane((3, 3), training_simulated=False)).attrs
    assert said["simulated"] == "false"
    assert "SIMULATED" not in said["title"]


def test_the_run_and_its_sensor_stand_in_the_file(run: Path, field: Field) -> None:
    said = as_dataset(field).attrs
    assert said["run"] == f"ta_small/{run.name}"
    assert json.loads(said["checkpoint"])["stage"] == "ta"
    sensor = Sensor.model_validate_json(said["sensor"])
    sensor.require_same(GK2A_AMI, here="the field", there="the instrument")
    assert sensor.bands[0].mean is not None
    assert said["scene_simulated"] == said["training_simulated"] == "true"


@pytest.mark.parametrize("name", ["field.tif", "taken.nc", "taken.zarr"])
def test_what_may_not_be_written(tmp_path: Path, name: str) -> None:
    for taken in ("taken.nc", "taken.zarr"):
        (tmp_path / taken).mkdir()
        (tmp_path / taken / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(DataError):
        write_field(plane((3, 3)), tmp_path / name)
    assert (tmp_path / "taken.zarr" / "mine.txt").exists()


# ── what may be asked ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_scene_must_be_meant(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="several scenes") as several:
        choose_scene(base / "scenes")
    assert "202407250100 (ko)" in str(several.value)
    with pytest.raises(DataError, match="no such scene"):
        choose_scene(base / "scenes", datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(DataError, match="not there"):
        choose_scene(base / "nowhere")
    one = next(iter(choose_scene(base / "scenes", TEST).files.values()))
    assert choose_scene(one).time == TEST  # a file stands for its scene
    assert len(choose_scene(one).files) == 16


def test_a_scene_without_a_band(run: Path, base: Path, tmp_path: Path) -> None:
    for path in choose_scene(base / "scenes", TEST).files.values():
        if "_ir105_" not in path.name:
            shutil.copy(path, tmp_path)
    with pytest.raises(DataError, match="IR105"):
        map_scene(run, choose_scene(tmp_path), box=BOX)


def test_a_field_without_any_value_is_refused(run: Path, base: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no pixel of the scene of .* UTC can be answered: [\d,]+ bad quality bits.*another --box"):
        map_scene(run, choose_scene(base / "scenes", TEST), box=(118, 119, 42, 43))  # nothing was written there


def test_a_box_that_is_not_on_the_grid(run: Path, base: Path) -> None:
    with pytest.raises(DataError, match="box"):
        map_scene(run, choose_scene(base / "scenes", TEST), box=(10, 12, 50, 52))


def test_a_run_of_something_else(run: Path) -> None:
    opened_run = read_run(run)
    without = {**opened_run.facts, "data": {key: value for key, value in opened_run.facts["data"].items() if key != "patches"}}
    with pytest.raises(RunError, match="no patches of a satellite"):
        mapping.patches_of(Run(run, opened_run.recipe, without))
    other = {"patches": {"channels": ["red"], "sensor": {"name": "modis"}}}
    with pytest.raises(RunError, match="patches of modis"):
        mapping.patches_of(Run(run, opened_run.recipe, {**opened_run.facts, "data": other}))
    tasks = {"ta": SimpleNamespace(kind="classify")}
    other_task: Any = SimpleNamespace(folder=run, recipe=SimpleNamespace(tasks=tasks))
    with pytest.raises(RunError, match="is classify"):
        mapping._stop_at_other_tasks(other_task, SimpleNamespace(name="ta"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (8, 8)}, "8 x 8 pixels"),
        ({"extra_channels": ("sza", "slope")}, "maps slope"),
        ({"sensor": GK2A_AMI.model_copy(update={"bands": GK2A_AMI.bands[:-1]})}, "NR016"),
        ({"sensor": GK2A_AMI.model_copy(update={"bands": GK2A_AMI.bands[::-1]})}, "order"),
        ({"sensor": GK2A_AMI.model_copy(update={"gsd_m": 500.0})}, "gsd_m"),
    ],
)
def test_a_model_of_other_patches(run: Path, base: Path, change: dict[str, Any], said: str) -> None:
    spec = replace(PatchSpec(GK2A_AMI, (9, 9), ("sza", "dem", "lsmask")), **change)
    model: Any = SimpleNamespace(encoders={"image": SimpleNamespace(spec=spec)})
    with pytest.raises(PartError, match=said):
        mapping._patch_spec(model, read_run(run), choose_scene(base / "scenes", TEST))


def test_rasters_must_be_those_of_training(run: Path, tmp_path: Path) -> None:
    whole = grid_of("ko").shape
    for name in ("dem", "mask"):
        np.save(tmp_path / f"{name}.npy", np.zeros(whole, np.uint8))
    rasters = Rasters(dem="dem.npy", lsmask="mask.npy")
    opened_run = read_run(run)
    ground = {"ground": identity(rasters, tmp_path)}
    assert mapping._rasters(opened_run, ground, tmp_path) == rasters
    np.save(tmp_path / "dem.npy", np.zeros(whole, np.int16))
    with pytest.raises(DataError, match="dem"):
        mapping._rasters(opened_run, ground, tmp_path)
    assert mapping._rasters(opened_run, {"ground": "that of the simulation"}, tmp_path) is None
    with pytest.raises(RunError, match="which rasters"):
        mapping._rasters(opened_run, {}, tmp_path)
