"""`eyegraft map` and `eyegraft predict --patches`: what they print and write, and how they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from PIL import Image

from cli.running import run as command
from eyegraft.data.patch_rows import PatchRows, opened
from eyegraft.data.patch_store import PatchStore
from eyegraft.data.patch_writer import write_shards
from eyegraft.prepare.gk2a.grid import grid_of
from serving.scenes import BOX, TEST, trained, world

WHEN = f"{TEST:%Y%m%d%H%M}"
DEGREES = [str(side) for side in BOX]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world(tmp_path_factory.getbasetemp() / "scenes")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.getbasetemp() / "scenes")


def mapped(run: Path, base: Path, tmp_path: Path, *words: str) -> Any:
    return command("map", str(run), "--scene", str(base / "scenes"), "--box", *DEGREES, *words, cwd=tmp_path)


def test_a_field_and_its_picture(run: Path, base: Path, tmp_path: Path) -> None:
    readings = ("--observations", str(base / "asos.txt"), "--stations", str(base / "stations.csv"))
    done = mapped(run, base, tmp_path, "--time", WHEN, "--out", "field.nc", *readings)
    assert done.returncode == 0, done.stderr
    rows, columns = grid_of("ko").window_around(BOX, margin=0)
    total = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert f"{total:,} of {total:,} pixels answered" in done.stdout
    assert "SIMULATED: the scene and what the model learned from" in done.stdout
    assert "a second" in done.stdout
    rows = [PatchRows(opened(base / "patches" / split)) for split in ("test", "test_new_both")]
    x, y = (np.concatenate([part.column(name) for part in rows]) for name in ("pixel_x", "pixel_y"))
    measured = np.concatenate([part.targets for part in rows])
    with xarray.open_dataset(tmp_path / "field.nc") as field:
        by_pixel = field["ta"].swap_dims(x="pixel_x", y="pixel_y")
        error = by_pixel.sel(pixel_x=xarray.DataArray(x), pixel_y=xarray.DataArray(y)).values - measured
    spread = float(np.sqrt((error**2).mean()))
    assert len(error) == 16
    assert f"16 readings, RMSE {spread:.2f} K, bias {error.mean():+.2f} K" in done.stdout
    with Image.open(tmp_path / "field.png") as picture:
        assert picture.width > 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["field.nc", "field.png"]


def test_where_it_is_written_by_default_and_as_zarr(run: Path, base: Path, tmp_path: Path) -> None:
    copied = tmp_path / "ta_small" / run.name
    shutil.copytree(run, copied)
    done = command("map", str(copied), "--scene", str(base / "scenes"), "--box", *DEGREES, "--time", WHEN, "--stride", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (copied / "maps").iterdir()} == {f"{WHEN}_ko.nc", f"{WHEN}_ko.png"}
    zarr = mapped(run, base, tmp_path, "--time", WHEN, "--stride", "5", "--out", "field.zarr")
    assert zarr.returncode == 0, zarr.stderr
    with xarray.open_dataset(copied / "maps" / f"{WHEN}_ko.nc") as one, xarray.open_zarr(tmp_path / "field.zarr") as other:
        assert np.array_equal(one["ta"], other["ta"])
        assert np.diff(one["pixel_x"]).tolist() == [5] * (one.sizes["x"] - 1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 3, "several scenes"),
        (["--time", "2024"], 2, "is no time such as"),
        (["--time", "202001010000"], 3, "no such scene"),
        (["--time", WHEN, "--area", "fd"], 3, "no such scene"),
        (["--time", WHEN, "--out", "field.tif"], 3, ".nc or .zarr"),
        (["--time", WHEN, "--stride", "0"], 2, "no whole number from 1 on"),
        (["--time", WHEN, "--stage", "nothing"], 5, "nothing"),
    ],
)
def test_what_is_refused(run: Path, base: Path, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    done = mapped(run, base, tmp_path, *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_readings_of_another_time(run: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "late.csv").write_text("station,lat,lon,time_utc,ta_k\n1,37,127,2024-07-25T03:00:00Z,290\n", encoding="utf-8")
    done = mapped(run, base, tmp_path, "--time", WHEN, "--out", "field.nc", "--observations", "late.csv")
    assert done.returncode == 3
    assert "none within 5 minutes" in done.stderr
    assert "KST" in done.stderr


def test_a_folder_that_is_no_run(base: Path, tmp_path: Path) -> None:
    done = command("map", str(tmp_path), "--scene", str(base / "scenes"), "--time", WHEN, cwd=tmp_path)
    assert done.returncode == 5
    assert "no run folder" in done.stderr


# ── predict --patches ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_a_store_are_answered_in_the_order_that_was_asked_for(run: Path, base: Path, tmp_path: Path) -> None:
    store = str(base / "patches" / "test")
    asked = command("predict", str(run), "--patches", store, "--rows", "3,0", "--json", cwd=tmp_path)
    whole = command("predict", str(run), "--patches", store, "--json", cwd=tmp_path)
    some, every = ([json.loads(line) for line in done.stdout.splitlines()] for done in (asked, whole))
    assert [line["row"] for line in some] == [3, 0]
    assert [line["row"] for line in every] == list(range(len(every)))
    for line in some:
        same = every[line["row"]]
        assert line["patch"] == same["patch"]
        assert line["answer"]["value"] == pytest.approx(same["answer"]["value"], abs=1e-4)
    with PatchStore(Path(store)) as kept:
        assert [line["measured"] for line in every] == pytest.approx(kept.read(np.arange(len(kept)), ["y"])["y"].tolist())
    plain = command("predict", str(run), "--patches", store, "--rows", "3", cwd=tmp_path)
    assert plain.stdout.startswith(f"{some[0]['patch']}\t{some[0]['answer']['value']:.6g} K (")
    assert "\tmeasured " in plain.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--patches", "STORE", "--rows", "0,999"], 3, "row 999"),
        (["--patches", "STORE", "--rows", "one"], 2, "no list of rows"),
        (["--patches", "STORE", "picture.png"], 3, "one kind of input"),
        (["--patches", "nowhere"], 3, "nowhere"),
        (["--rows", "1"], 3, "--rows without --patches"),
        (["picture.png"], 3, "--patches STORE"),
    ],
)
def test_rows_that_are_refused(run: Path, base: Path, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    store = str(base / "patches" / "test")
    done = command("predict", str(run), *(store if word == "STORE" else word for word in words), cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_patches_of_another_sensor_or_size(run: Path, base: Path, tmp_path: Path) -> None:
    with PatchStore(base / "patches" / "test") as store:
        schema, columns = store.schema, store.read(np.arange(4))
    sensor = schema.facts["sensor"]
    longer = [{**band, "wavelength_um": band["wavelength_um"] * 1.1} for band in sensor["bands"]]
    other = schema.model_copy(update={"facts": {**schema.facts, "sensor": {**sensor, "bands": longer}}})
    fields = {**schema.fields, "x": schema.fields["x"].model_copy(update={"shape": (19, 7, 7)})}
    smaller = schema.model_copy(update={"fields": fields})
    for name, changed, kept, code, said in (
        ("other", other, columns, 4, "band SW038: wavelength_um"),
        ("smaller", smaller, {**columns, "x": columns["x"][:, :, 1:8, 1:8]}, 3, "7 x 7"),
    ):
        write_shards(tmp_path / name, changed, [{"n": 0}], lambda job, kept=kept: (kept, {}))
        done = command("predict", str(run), "--patches", name, cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
