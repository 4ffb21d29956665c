"""Readings at stations matched to scenes: one row for each station and scene, split by time, by station, and by both.

Splits: years make `train`, `val` and `test`; stations set aside never enter these three. What they give is read in two ways:

| split | years | stations | asks for |
|---|---|---|---|
| train, val | theirs | known | |
| test | of test | known | new time |
| test_new_station | of train | set aside | new station |
| test_new_both | of test | set aside | new time and new station |

Rows of stations set aside in the years of `val` are left out: that time has chosen the model.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from eyegraft.errors import DataError, shown
from eyegraft.files import write_atomically
from eyegraft.prepare.gk2a.grid import grid_of, nearest
from eyegraft.prepare.gk2a.read import SceneFiles
from eyegraft.prepare.gk2a.stations import COLDEST_K, CONFLICT, TOO_COLD, TWICE, Observations

COLUMNS: Final = (*("timestamp_utc", "stn", "lat", "lon", "pixel_x", "pixel_y", "ta_k", "path_bt", "path_reflectance", "path_sza", "year"),)
"""Of every index. `timestamp_utc`: nominal time of the scene; `pixel_x`, `pixel_y`: zero-based column and row in the whole grid of 2 km;
`path_bt`, `path_reflectance`: of level 1B scenes the IR105 and the VI006 file, which stand for all of their kind; of extracted scenes the
arrays; `path_sza`: empty where the angle is computed; `year`: of the scene, UTC."""

SPLITS: Final = ("train", "val", "test", "test_new_station", "test_new_both")

NO_SCENE = "no scene near enough in time"
NEARER = "another reading of the station is nearer to the scene"
NO_YEAR = "a year of no split"
SPOILT = "station set aside, in a year of val"
MISSING_BANDS = "scene with missing bands"


@dataclass(frozen=True)
class Index:
    """Attributes:
    table: `COLUMNS` in order of time and station, and `split` once it is split.
    left_out: reason -> number of readings; scenes without all bands count as scenes.
    """

    table: Any
    left_out: dict[str, int]


def build_index(
    scenes: Sequence[SceneFiles],
    observations: Observations,
    root: Path,
    *,
    area: str = "ko",
    tolerance_minutes: float = 5,
    patch_size: int = 9,
) -> Index:
    """Match each reading to the nearest whole scene of an area.

    Args:
        root: folder that the paths in the index are relative to.
        tolerance_minutes: between reading and nominal scene time, at most.
        patch_size: pixels on a side that must lie inside the grid around the station.

    Raises:
        DataError: no scene of the area, or nothing matches.
    """
    left_out = Counter(observations.left_out)
    whole = [scene for scene in scenes if scene.area == area and not scene.missing]
    left_out[MISSING_BANDS] += sum(scene.area == area and bool(scene.missing) for scene in scenes)
    if not whole:
        there = Counter(f"{scene.area} {'whole' if not scene.missing else 'with missing bands'}" for scene in scenes)
        raise DataError(
            f"no whole scene of the area {area}; found {', '.join(f'{count} {kind}' for kind, count in there.items()) or 'none'}",
            "sixteen bands of one time and area",
            "set `area`, or download the missing bands",
        )
    whole = sorted(whole, key=lambda scene: scene.time)
    table, reasons = _matched(observations.table, [scene.time for scene in whole], tolerance_minutes)
    left_out.update(reasons)
    grid = grid_of(area)
    column, row = grid.to_pixel(table["lon"].to_numpy(), table["lat"].to_numpy())
    missing = grid.missing(column, row, margin=patch_size // 2)
    left_out.update(Counter(reason for reason in missing if reason))
    inside = missing == ""
    table, column, row = table[inside], column[inside], row[inside]
    if table.empty:
        raise DataError(
            f"no reading matches a scene: {', '.join(f'{count} {reason}' for reason, count in left_out.items() if count)}",
            f"readings within {tolerance_minutes:g} minutes of scenes, {whole[0].time:%Y-%m-%d %H:%M} to {whole[-1].time:%Y-%m-%d %H:%M}",
            "check that station times are read in their own zone (KMA writes UTC + 9), or raise `tolerance_minutes`",
        )
    chosen = [whole[number] for number in table["scene"]]
    result = pd.DataFrame(
        {
            "timestamp_utc": [scene.time.strftime("%Y-%m-%d %H:%M:%S") for scene in chosen],
            "stn": table["station"].to_numpy(),
            "lat": table["lat"].to_numpy(),
            "lon": table["lon"].to_numpy(),
            "pixel_x": nearest(column),
            "pixel_y": nearest(row),
            "ta_k": table["ta_k"].to_numpy().round(3),
            "path_bt": [_relative(scene.files["IR105"], root) for scene in chosen],
            "path_reflectance": [_relative(scene.files["VI006"], root) for scene in chosen],
            "path_sza": "",
            "year": [scene.time.year for scene in chosen],
        }
    )
    return Index(result[list(COLUMNS)], {reason: count for reason, count in left_out.items() if count})


def read_index(path: Path) -> Index:
    """An index that was made before, here or elsewhere: CSV or Parquet with `COLUMNS`.

    Readings below 223.15 K are left out. So are two different ones of a station and time; of equal ones the first is kept.

    Raises:
        DataError: columns are missing, or numbers are none.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"stn": str, "path_sza": str})
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", "an index in CSV or Parquet", "build it with step=build_index") from None
    absent = [name for name in COLUMNS if name not in table]
    if absent:
        raise DataError(f"{path} has no column {shown(absent, 11)}", ", ".join(COLUMNS), "build the index anew with step=build_index")
    table = table[[*COLUMNS, *(["split"] if "split" in table else [])]]
    table = table.assign(stn=table["stn"].astype(str), path_sza=table["path_sza"].fillna(""))
    times = pd.to_datetime(table["timestamp_utc"], errors="coerce", utc=True)
    numbers = table[["lat", "lon", "pixel_x", "pixel_y", "ta_k", "year"]].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = times.isna() | ~np.isfinite(numbers).all(axis=1) | (times.dt.year != numbers["year"])
    if bad.any():
        raise DataError(
            f"{path}: {int(bad.sum())} rows without a time or a number, first in row {int(np.flatnonzero(bad)[0]) + 2}",
            "times in UTC, whose year is `year`, and numbers",
            "mend these rows or take them out",
        )
    table = table.assign(timestamp_utc=times.dt.strftime("%Y-%m-%d %H:%M:%S"))
    left_out = Counter({TOO_COLD: int((numbers["ta_k"] < COLDEST_K).sum())})
    table = table[numbers["ta_k"] >= COLDEST_K]
    again = table.duplicated(["stn", "timestamp_utc", "ta_k"])
    table = table[~again]
    conflict = table.duplicated(["stn", "timestamp_utc"], keep=False)
    left_out.update({TWICE: int(again.sum()), CONFLICT: int(conflict.sum())})
    return Index(table[~conflict].reset_index(drop=True), {reason: count for reason, count in left_out.items() if count})


def split_index(index: Index, years: Mapping[str, Sequence[int]], new_station_fraction: float, seed: int = 0) -> Index:
    """Say which split a row belongs to; the module says how.

    Which stations are set aside depends on their names and the seed alone, not on the order of rows.

    Raises:
        DataError: a year in two splits, or a split among train, val and test without a row.
    """
    split_of: dict[int, str] = {}
    for split, chosen in years.items():
        for year in chosen:
            if year in split_of:
                raise DataError(f"the year {year} is in {split_of[year]} and in {split}", "each year in one split", "change `years`")
            split_of[year] = split
    table = index.table.drop(columns="split", errors="ignore")
    aside = stations_aside(table["stn"].unique(), new_station_fraction, seed)
    time = table["year"].map(split_of).fillna("")
    new = table["stn"].isin(aside)
    split = (
        time.mask(new & (time == "train"), "test_new_station")
        .mask(new & (time == "test"), "test_new_both")
        .mask(new & (time == "val"), SPOILT)
    )
    left_out = Counter(index.left_out)
    left_out[SPOILT] += int((split == SPOILT).sum())
    left_out[NO_YEAR] += int((split == "").sum())
    table = table.assign(split=split)[split.isin(SPLITS)].reset_index(drop=True)
    empty = [name for name in SPLITS[:3] if not (table["split"] == name).any()]
    if empty:
        there = ", ".join(f"{count} of {year}" for year, count in index.table["year"].value_counts().sort_index().items())
        raise DataError(
            f"no row in {shown(empty)}; rows by year: {there}", "rows in train, val and test", "set `years` to the years of your data"
        )
    return Index(table, {reason: count for reason, count in left_out.items() if count})


def stations_aside(stations: Sequence[str], fraction: float, seed: int = 0) -> frozenset[str]:
    """The part of the stations that no model sees, drawn by the hash of seed and name."""
    ordered = sorted((str(name) for name in stations), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return frozenset(ordered[: round(fraction * len(ordered))])


def write_index(index: Index, folder: Path) -> dict[str, int]:
    """Write `index` and `index_<split>`, each as CSV and Parquet; gives the rows of each split."""
    rows: dict[str, int] = {}
    for split in (None, *SPLITS):
        table = index.table if split is None else index.table[index.table["split"] == split].drop(columns="split")
        name = "index" if split is None else f"index_{split}"
        stream = io.BytesIO()
        table.to_parquet(stream, index=False)
        write_atomically(folder / f"{name}.parquet", stream.getvalue())
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        if split is not None:
            rows[split] = len(table)
    return rows


def _matched(readings: Any, times: list[Any], tolerance_minutes: float) -> tuple[Any, Counter[str]]:
    """Readings with the number of their scene; of several of one station the nearest in time, the earlier of two as near."""
    scene_times = pd.DatetimeIndex(times).as_unit("ns").asi8
    reading_times = pd.DatetimeIndex(readings["time_utc"]).as_unit("ns").asi8
    after = np.clip(np.searchsorted(scene_times, reading_times), 1, max(len(scene_times) - 1, 1))
    after = np.minimum(after, len(scene_times) - 1)
    before = np.maximum(after - 1, 0)
    scene = np.where(np.abs(reading_times - scene_times[before]) <= np.abs(scene_times[after] - reading_times), before, after)
    apart = np.abs(reading_times - scene_times[scene])
    near = apart <= tolerance_minutes * 60e9
    found = readings.assign(scene=scene, apart=apart)[near].sort_values(["scene", "station", "apart", "time_utc"], kind="stable")
    best = found.drop_duplicates(["scene", "station"])
    return best, Counter({NO_SCENE: int((~near).sum()), NEARER: len(found) - len(best)})


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
