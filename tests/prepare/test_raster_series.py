"""A raster time series and stations to patch stores: places, windows, holes, folds, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from eyegraft.data.patch_rows import load_patches
from eyegraft.data.patch_statistics import read_statistics
from eyegraft.data.patch_store import PatchStore
from eyegraft.errors import DataError
from eyegraft.prepare.raster_series import Config, Held, folds, prepare

LAT, LON = np.linspace(45.0, 45.19, 20), np.linspace(14.0, 14.29, 30)  # 0.01 degrees a pixel
MOMENTS = 8
STATIONS = {str(number): (45.05 + 0.004 * number, 14.06 + 0.009 * number) for number in range(1, 11)}


def coded() -> NDArray[np.float32]:
    """[T, H, W]: the value says where and when it stands: moment, row from the south, column."""
    moment, row, column = np.meshgrid(np.arange(MOMENTS), np.arange(len(LAT)), np.arange(len(LON)), indexing="ij")
    return (moment * 10_000 + row * 100 + column).astype(np.float32)


def write_source(folder: Path, *, lst: Any = None, lat: Any = LAT, lon: Any = LON, days: Any = None, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    days = 1 + 8 * np.arange(MOMENTS) if days is None else days
    np.savez(folder / "series.npz", lst=coded() if lst is None else lst, lat=lat, lon=lon, day=days, **more)
    stations = pd.DataFrame([{"stn": name, "lat": lat, "lon": lon, "height": 10 * int(name)} for name, (lat, lon) in STATIONS.items()])
    stations.to_csv(folder / "stations.csv", index=False)
    dates = pd.date_range("2008-01-01", "2008-03-04").strftime("%Y-%m-%d")
    rows = [{"date": date, "stn": name, "ta": int(name) + place / 100} for place, date in enumerate(dates) for name in STATIONS]
    pd.DataFrame(rows).to_csv(folder / "readings.csv", index=False)


def options(**changed: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "folder": "raw",
        "raster": {"file": "series.npz", "variables": ["lst"], "time": "day", "year": 2008, "window_days": 8},
        "sensor": {"name": "lst", "bands": [{"name": "lst_day", "unit": "degC"}], "gsd_m": 1000, "missing": "mask"},
        "stations": {"file": "stations.csv", "station": "stn"},
        "readings": {"file": "readings.csv", "station": "stn", "time": "date", "value": "ta", "unit": "degC"},
        "patch_size": 5,
        "held": {"folds": 4, "val_fraction": 0.2},
    }
    for key, value in changed.items():
        plain[key] = {**plain[key], **value} if isinstance(value, Mapping) and key in plain else value
    return plain


def made(target: Path, **changed: Any) -> dict[str, Any]:
    return prepare(Config.model_validate(options(**changed)), target)


def columns(target: Path, *splits: str) -> dict[str, NDArray[Any]]:
    """Every record of some splits (of all, without a name), by time and station."""
    names = splits or [path.parent.name for path in sorted((target / "patches").glob("*/manifest.json"))]
    parts = []
    for name in names:
        with PatchStore(target / "patches" / name) as store:
            parts.append(store.read(np.arange(len(store))))
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.lexsort((whole["stn"], whole["timestamp"]))
    return {key: values[order] for key, values in whole.items()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    write_source(tmp_path / "raw")
    return tmp_path


def test_the_station_is_in_the_middle_of_its_patch_and_north_is_up(target: Path) -> None:
    facts = made(target, held={"out": "block"})
    found = columns(target)
    assert facts["left_out"] == {}
    assert sum(facts["rows"].values()) == len(found["y"]) == 64 * 10  # 8 windows of 8 days
    for place in (0, 123, 639):
        station = str(found["stn"][place])
        row, column = round((STATIONS[station][0] - 45) / 0.01), round((STATIONS[station][1] - 14) / 0.01)
        moment = place // 10 // 8
        assert found["x"][place, 0, 2, 2] == moment * 10_000 + row * 100 + column
        assert found["x"][place, 0, 0, 4] == moment * 10_000 + (row + 2) * 100 + column + 2  # the north-east corner
        assert found["pixel"][place].tolist() == [column, len(LAT) - 1 - row]
        np.testing.assert_allclose(found["loc"][place], [*STATIONS[station], 1000], rtol=1e-6)
    assert found["y"][0] == 1
    assert found["timestamp"][0] == int(np.datetime64("2008-01-01T12", "s").astype(np.int64))  # a date is its noon


@pytest.mark.parametrize(("flip_lat", "flip_lon"), [(True, False), (False, True), (True, True)])
def test_axes_may_fall_or_rise(target: Path, flip_lat: bool, flip_lon: bool) -> None:
    made(target)
    expected = columns(target)
    rows, turned = slice(None, None, -1 if flip_lat else 1), slice(None, None, -1 if flip_lon else 1)
    write_source(target / "raw", lst=coded()[:, rows, turned], lat=LAT[rows], lon=LON[turned])
    made(target)
    found = columns(target)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_formats_agree(target: Path, ending: str) -> None:
    import xarray

    made(target)
    expected = columns(target)
    times = np.datetime64("2008-01-01", "ns") + 8 * np.arange(MOMENTS) * np.timedelta64(1, "D").astype("timedelta64[ns]")
    moved = coded().transpose(1, 2, 0)  # dimensions have names there: their order is free
    dataset = xarray.Dataset({"lst": (("lat", "lon", "time"), moved)}, coords={"lat": LAT, "lon": LON, "time": times})
    if ending == "nc":
        dataset.to_netcdf(target / "raw" / "series.nc", engine="h5netcdf")
    else:
        dataset.to_zarr(target / "raw" / "series.zarr", zarr_format=2)
    made(target, raster={"file": f"series.{ending}", "time": "time", "year": None})
    found = columns(target)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_windows_hold_their_readings(target: Path) -> None:
    days = np.array([361, 1, 9, 25, 33, 41, 49, 57])  # over the year's end, and one window is missing
    write_source(target / "raw", days=days, years=np.array([2007] + [2008] * 7))
    facts = made(target, raster={"year": "years"}, held={"out": "block"})
    found = columns(target)
    dates = found["timestamp"].astype("datetime64[s]").astype("datetime64[D]")
    assert facts["left_out"] == {"in no raster's window": 80}  # 17 to 24 January
    assert not ((dates >= np.datetime64("2008-01-17")) & (dates < np.datetime64("2008-01-25"))).any()
    moments = found["x"][:, 0, 2, 2] // 10_000
    assert sorted(set(zip(dates.astype(str).tolist(), moments.tolist(), strict=True)))[0] == ("2008-01-01", 1.0)  # 2007's ended there
    assert set(moments[dates == np.datetime64("2008-01-26")]) == {3.0}


def test_times_of_day_and_their_clock(target: Path) -> None:
    rows = [
        {"date": f"2008-01-{day:02}T{hour:02}:30", "stn": name, "ta": day} for day in range(1, 25) for hour in (3, 20) for name in STATIONS
    ]
    pd.DataFrame(rows).to_csv(target / "raw" / "readings.csv", index=False)
    facts = made(target, readings={"utc_offset_hours": 9}, held={"out": "station"})
    found = columns(target)
    assert facts["left_out"] == {"in no raster's window": 10}  # 18:30 UTC on the last day of the year before
    assert str(found["timestamp"].astype("datetime64[s]")[0]) == "2008-01-01T11:30:00"


def test_holes_are_kept_or_dropped(target: Path) -> None:
    lst = coded()
    lst[2] = np.nan
    lst[3, 5, 7] = -9999
    write_source(target / "raw", lst=lst)
    kept = made(target, raster={"fill": -9999}, held={"out": "station"})
    found = columns(target)
    assert kept["left_out"] == {}
    assert np.isnan(found["x"]).all(axis=(1, 2, 3)).sum() == 80
    holed = np.isnan(found["x"]).any(axis=(1, 2, 3)).sum()
    assert 80 < holed < 160
    dropped = made(target, raster={"fill": -9999}, sensor={"missing": "drop"}, held={"out": "station"})
    assert dropped["left_out"] == {"pixel not measured": holed}
    assert not np.isnan(columns(target)["x"]).any()


def test_patches_over_the_edge_have_holes_there(target: Path) -> None:
    stations = pd.read_csv(target / "raw" / "stations.csv")
    stations.loc[0, ["lat", "lon"]] = 45.004, 14.291  # in the last pixels, half a pixel beyond their centres at most
    stations.to_csv(target / "raw" / "stations.csv", index=False)
    np.savez(target / "raw" / "height.npz", dem=np.arange(600.0).reshape(20, 30))
    made(target, extra={"dem": {"file": "height.npz", "variable": "dem", "unit": "m"}})
    found = columns(target)
    patch, height = found["x"][found["stn"] == 1][0]
    assert np.isnan(patch[3:]).all()
    assert np.isnan(patch[:, 3:]).all()
    assert np.isfinite(patch[:3, :3]).all()
    assert height[2, 2] == height[4, 4] == 29.0  # the south-east corner goes on
    with PatchStore(target / "patches" / "train") as store:
        assert store.schema.facts["channels"] == ["lst_day", "dem"]
        assert store.schema.facts["extra"] == ["dem"]


def test_heights_of_stations_are_a_channel(target: Path) -> None:
    made(target, stations={"elevation_m": "height"})
    found = columns(target)
    assert (found["x"][:, 1] == 10 * found["stn"][:, None, None]).all()


def test_several_bands_in_one_variable_or_in_several(target: Path) -> None:
    both = np.stack([coded(), -coded()], axis=1)
    write_source(target / "raw", lst=both, day_lst=both[:, 0], night_lst=both[:, 1])
    bands = {"bands": [{"name": "day", "unit": "K"}, {"name": "night", "unit": "K"}]}
    made(target, sensor=bands)
    expected = columns(target)
    assert (expected["x"][:, 1] == -expected["x"][:, 0]).all()
    made(target, sensor=bands, raster={"variables": ["day_lst", "night_lst"]})
    np.testing.assert_array_equal(columns(target)["x"], expected["x"])


# ── folds ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def split_of(out: str, fold: int, **changed: Any) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.str_]]:
    times = np.repeat(np.datetime64("2008-01-01T12", "s") + np.arange(80) * np.timedelta64(86_400, "s"), 10)
    stations = np.array([f"s{number}" for number in range(10)] * 80)
    held = Held.model_validate({"out": out, "fold": fold, "folds": 4, **changed})
    origin = np.datetime64("2008-01-01", "s")
    return folds.assigned(stations, times, origin, held), stations, folds.blocks_of(times, origin, held.block_days)


@pytest.mark.parametrize(("out", "split"), [("station", "test_new_station"), ("block", "test")])
def test_each_unit_is_held_out_once_and_never_split(out: str, split: str) -> None:
    seen: Counter[str] = Counter()
    for fold in range(4):
        assigned, stations, blocks = split_of(out, fold)
        units = stations if out == "station" else blocks
        by_split = {name: set(units[assigned == name]) for name in ("train", "val", split)}
        assert set(assigned) == {"train", "val", split}
        assert not by_split["train"] & by_split["val"]
        assert not by_split[split] & (by_split["train"] | by_split["val"])
        seen.update(by_split[split])
    assert set(seen.values()) == {1}
    assert len(seen) == 10


def test_held_on_both_sides_means_what_it_says() -> None:
    station_times, block_times = Counter(), Counter()
    for fold in range(4):
        assigned, stations, blocks = split_of("both", fold)
        known, days = set(stations[assigned == "train"]), set(blocks[assigned == "train"])
        assert set(stations[assigned == "test"]) <= known
        assert not set(blocks[assigned == "test"]) & days
        assert set(blocks[assigned == "test_new_station"]) <= days
        assert not set(stations[assigned == "test_new_station"]) & known
        assert not set(stations[assigned == "test_new_both"]) & known
        assert not set(blocks[assigned == "test_new_both"]) & days
        station_times.update(set(stations[assigned == "test_new_station"]))
        block_times.update(set(blocks[assigned == "test"]))
        held = {str(unit) for split in ("test", "test_new_both") for unit in blocks[assigned == split]}
        assert not held & set(blocks[assigned == "val"])
    assert set(station_times.values()) == set(block_times.values()) == {1}
    assert len(station_times) == len(block_times) == 10


def test_a_fold_is_a_function_of_seed_and_names() -> None:
    assigned, stations, blocks = split_of("both", 1)
    mixed = np.random.default_rng(0).permutation(len(assigned))
    times = np.array(blocks, dtype="datetime64[s]")[mixed]
    held = Held(out="both", fold=1, folds=4)
    again = folds.assigned(stations[mixed], times, np.datetime64("2008-01-01", "s"), held)
    np.testing.assert_array_equal(again, assigned[mixed])
    assert (split_of("both", 1, seed=1)[0] != assigned).any()
    assert (split_of("both", 2)[0] != assigned).any()


def test_splits_of_another_hold_out_are_taken_away_and_whole_shards_kept(target: Path) -> None:
    made(target)
    assert (target / "patches" / "test_new_both").exists()
    first = (target / "patches" / "train" / "shard-00000" / "x.npy").stat().st_mtime_ns
    made(target)
    assert (target / "patches" / "train" / "shard-00000" / "x.npy").stat().st_mtime_ns == first
    made(target, held={"out": "station"})
    assert sorted(path.name for path in (target / "patches").iterdir() if path.is_dir()) == ["test_new_station", "train", "val"]


def test_shards_do_not_change_the_rows(target: Path) -> None:
    made(target)
    expected = columns(target, "train")
    made(target, rows_per_shard=37)
    with PatchStore(target / "patches" / "train") as store:
        assert len(store.manifest.shards) > 3
    for name, values in columns(target, "train").items():
        np.testing.assert_array_equal(values, expected[name])


def test_what_is_written_is_what_recipes_read(target: Path) -> None:
    facts = made(target, stations={"name": "height"}, simulated=True, licence="CC0-1.0")
    from eyegraft.config import Data

    patches = {split: f"patches/{split}" for split in facts["rows"]}
    data = load_patches(Data(name="lst", base_dir=str(target), satellite={"patches": patches}))
    assert {split: len(rows) for split, rows in data.splits.items()} == facts["rows"]
    sample = data.splits["train"][0]
    assert sample.meta["station"] in {str(10 * int(name)) for name in STATIONS}  # its name, here the height
    train = columns(target, "train")
    with PatchStore(target / "patches" / "train") as store:
        found = read_statistics(target / "patches" / "statistics.json", ["lst_day"], train=store)
        assert store.schema.facts["simulated"] is True
        assert store.schema.facts["target"] == {"name": "ta", "unit": "degC"}
        assert set(store.schema.facts["sources"]) == {"series.npz", "stations.csv", "readings.csv"}
    assert found["inputs"]["lst_day"]["mean"] == pytest.approx(train["x"].mean(), rel=1e-6)
    assert found["target"]["std"] == pytest.approx(train["y"].std(), rel=1e-6)
    assert json.loads((target / "patches" / "train" / "manifest.json").read_text())["data"]["facts"]["licence"] == "CC0-1.0"


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def edited(target: Path, name: str, edit: Any) -> None:
    table = pd.read_csv(target / "raw" / name, dtype=str)
    edit(table).to_csv(target / "raw" / name, index=False)


def appended(**row: str) -> Any:
    return lambda table: pd.concat([table, pd.DataFrame([row])])


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("readings.csv", appended(date="2008-01-01", stn="99", ta="3"), r"1 readings of 1 unknown stations: 99"),
        ("readings.csv", appended(date="2008-01-02", stn="3", ta="3"), r"1 readings twice: 3 at 2008-01-02 12:00:00"),
        ("readings.csv", appended(date="02.01.2008", stn="3", ta="3"), r"date of 1 readings: '02.01.2008'"),
        ("readings.csv", appended(date="2008-05-02", stn="3", ta="warm"), r"ta warm"),
        ("readings.csv", lambda table: table.rename(columns={"ta": "tair"}), r"no column 'ta'"),
        ("stations.csv", appended(stn="11", lat="46.5", lon="14.1"), r"outside the raster: 11 at 46.5, 14.1"),
        ("stations.csv", appended(stn="11", lat="14.1", lon="145.1"), r"are lat and lon exchanged"),
        ("stations.csv", appended(stn="11", lat="96.5", lon="14.1"), r"impossible position of 11"),
        ("stations.csv", appended(stn="2", lat="45.1", lon="14.1"), r"2 more than once"),
        ("stations.csv", appended(stn="11", lat="", lon="14.1"), r"no lat of 11"),
    ],
)
def test_tables_that_cannot_be_used(target: Path, name: str, edit: Any, message: str) -> None:
    edited(target, name, edit)
    with pytest.raises(DataError, match=message):
        made(target)


def test_stations_outside_can_be_left_out(target: Path) -> None:
    edited(target, "stations.csv", appended(stn="11", lat="46.5", lon="14.1"))
    edited(target, "readings.csv", appended(date="2008-01-02", stn="11", ta="3"))
    facts = made(target, stations={"outside": "leave_out"}, held={"out": "block"})
    assert facts["stations_outside"] == ["11"]
    assert facts["left_out"] == {"station outside the raster": 1}


def test_empty_values_are_counted(target: Path) -> None:
    edited(target, "readings.csv", lambda table: table.assign(ta=table["ta"].mask(table["stn"] == "4", "")))
    assert made(target, held={"out": "block"})["left_out"] == {"no value": 64}


@pytest.mark.parametrize(
    ("source", "changed", "message"),
    [
        ({"days": np.array([1, 9, 17, 17, 33, 41, 49, 57])}, {}, r"day at 2 and 3"),
        ({"days": np.array([1, 9, 17, 25, 33, 41, 49, 367])}, {}, r"days of the year, 1 to 366"),
        ({"days": np.arange(7)}, {}, r"days of the year"),
        ({}, {"raster": {"year": None}}, r"set raster.year where these are days of a year"),
        ({"days": np.array(["2008-01-01", "later"] * 4)}, {"raster": {"year": None}}, r"dates such as"),
        ({"days": np.arange(1, 10)}, {}, r"lst is \[8, 20, 30\]"),
        ({"lat": np.roll(LAT, 3)}, {}, r"lat \[20\] from"),
        ({"lat": np.tile(LAT, (2, 1))}, {}, r"lat \[2, 20\]"),
        ({"lst": coded()[:, :, :-1]}, {}, r"\[time, lat, lon\] = \[8, 20, 30\]"),
        ({}, {"raster": {"variables": ["lsd"]}}, r"did you mean 'lst'"),
        ({}, {"raster": {"file": "other.npz"}}, r"is not there"),
        ({}, {"raster": {"file": "stations.csv"}}, r"convert it"),
        ({}, {"raster": {"year": 2009}}, r"none of 640 readings has a raster"),
        ({}, {"held": {"folds": 9, "out": "block"}}, r"8 blocks with readings, to be dealt to 9 folds"),
        ({}, {"held": {"folds": 11, "out": "station"}}, r"10 stations with readings"),
        ({"lst": np.full_like(coded(), np.nan)}, {"sensor": {"missing": "drop"}}, r"no patch for train, val"),
    ],
)
def test_rasters_and_folds_that_cannot_be_used(target: Path, source: Mapping[str, Any], changed: Mapping[str, Any], message: str) -> None:
    write_source(target / "raw", **source)
    with pytest.raises(DataError, match=message):
        made(target, **changed)


def test_a_map_on_another_grid_is_refused(target: Path) -> None:
    np.savez(target / "raw" / "height.npz", dem=np.zeros((20, 30)), lat=LAT + 0.003, lon=LON)
    with pytest.raises(DataError, match=r"lat is not that of series\.npz"):
        made(target, extra={"dem": {"file": "height.npz", "variable": "dem"}})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 4}, "no pixel in the middle"),
        ({"held": {"fold": 4}}, "counted from 0 to 3"),
        ({"raster": {"variables": ["a", "b"]}}, "2 raster.variables for 1 sensor.bands"),
        ({"extra": {"lst_day": {"file": "a.npz", "variable": "a"}}}, "two channels are called lst_day"),
    ],
)
def test_options_that_contradict_each_other(changed: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(options(**changed))
