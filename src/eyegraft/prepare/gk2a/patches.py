"""Index and scenes to patches: one store a split, `patches/<split>`, and the statistics of the train split beside them.

A shard is a run of scenes in order of time, and depends on nothing but its job: the rows of its scenes, and size and date of their files.
Killed and started again, a build makes what is missing or has changed, and ends with the same bytes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from eyegraft.console import Advance
from eyegraft.console import progress as shown_progress
from eyegraft.data.patch_chunks import CHANNELS, fields
from eyegraft.data.patch_statistics import Fitted, fit, read_statistics, scaled, write_statistics
from eyegraft.data.patch_store import PatchStore, Schema
from eyegraft.data.patch_writer import grouped, write_shards
from eyegraft.errors import DataError, RunError, shown
from eyegraft.prepare.gk2a import Rasters
from eyegraft.prepare.gk2a.gather import ROW, UNREADABLE, Cut, packed, produce, unpacked
from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.index import SPLITS, Index, read_index
from eyegraft.prepare.gk2a.rasters import identity, surface
from eyegraft.prepare.gk2a.read import Window, find_scenes, is_simulated, parse_name
from eyegraft.sensors import GK2A_AMI

log = logging.getLogger(__name__)

UNLABELLED: Final = "unlabelled"
NO_STATION: Final = -1
_MADE_BY = 1  # counts up when the same sources would give other rows
_MISPLACED = 2.0  # pixels between a station and the pixel that an index gives it
_SCENE = ["path_bt", "path_reflectance", "path_sza", "year"]


def build_patches(
    base: Path,
    *,
    scenes_root: Path,
    area: str = "ko",
    patch_size: int = 9,
    workers: int = 1,
    rows_per_shard: int = 100_000,
    missing: str = "drop",
    rasters: Rasters | None = None,
    facts: Mapping[str, Any] | None = None,
    unlabelled_per_scene: int = 0,
    unlabelled_near: int | None = None,
    seed: int = 0,
    statistics: tuple[Fitted, str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Write `patches/<split>` for every `index/index_<split>.csv` of `base`, and `patches/statistics.json`.

    Args:
        scenes_root: folder that the paths of the index are relative to.
        workers: processes, each with a shard in memory: 6.4 kB for each of its rows.
        missing: `drop` leaves out patches with pixels that were not measured, `mask` keeps them, NaN there.
        rasters: elevation, mask and land cover, with paths relative to `base`; None: the ground of simulated scenes.
        facts: more facts for all stores, such as `noise_floor`.
        unlabelled_per_scene: patches at random places of each scene of the train split, without a target, into `patches/unlabelled`.
        unlabelled_near: pixels in each direction that these places lie from a station of the train split, at most; None: anywhere.
        seed: of these places.
        statistics: of channels and target, and where they are from, in place of ones fitted on the train split.
        progress: called as (done, total) for the shards of each split; None shows a bar.

    Gives rows and what was left out by split, how many rows and scenes are nightly, whether scenes are simulated, and `outputs`: the files
    that stand for all others.

    Raises:
        DataError: no index, scenes or rasters that cannot be used, or statistics that do not fit.
        RunError: another process builds here.
    """
    folder = base / "patches"
    table, left_out = _read_indices(base)
    with _alone(folder):
        names, table = _numbered(table)
        window = _window(table, area, patch_size)
        scenes = _scenes(table, scenes_root, area)
        simulated = _simulated(scenes, scenes_root)
        if rasters is None and not simulated:
            raise DataError(
                "measured scenes without elevation and land-sea mask",
                "prepare.rasters.dem and prepare.rasters.lsmask",
                "name the rasters: .npy on the grid of the scenes, or NetCDF in degrees",
            )
        if unlabelled_per_scene:
            around = table.loc[table["split"] == "train", ["pixel_x", "pixel_y"]].drop_duplicates().to_numpy()
            _add_unlabelled(scenes, area, window, patch_size, unlabelled_per_scene, seed, around, unlabelled_near)
        cut = Cut(scenes_root, base, area, window, patch_size, missing, simulated, rasters, folder / ".stash")
        surface(grid_of(area).window(*window), rasters, base)  # what is wrong with the rasters is told at once
        described = _facts(cut, names, facts or {})
        shutil.rmtree(folder / ".stash", ignore_errors=True)
        try:
            rows, counts = _write_stores(folder, cut, scenes, described, workers, rows_per_shard, progress)
        finally:
            shutil.rmtree(folder / ".stash", ignore_errors=True)
        _write_statistics(folder, statistics)
        stores = [f"patches/{split}/manifest.json" for split in rows]
        return {
            "rows": rows,
            "left_out": {"index": left_out, **counts},
            "night": {split: _night(folder / split) for split in rows},
            "simulated": simulated,
            "outputs": [*indexed(base), *stores, "patches/statistics.json"],
        }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".building")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder} is being built by another process", "one build at a time", "wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def indexed(base: Path) -> list[str]:
    """The files of the index, relative to `base`."""
    return sorted(path.relative_to(base).as_posix() for path in (base / "index").glob("index*.*"))


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_indices(base: Path) -> tuple[Any, dict[str, int]]:
    """All rows with their split, in order of time, scene and station; and what reading left out."""
    files = {split: base / "index" / f"index_{split}.csv" for split in SPLITS}
    there = {split: path for split, path in files.items() if path.exists()}
    if "train" not in there:
        raise DataError(f"{files['train']} is not there", "an index of each split", "make it: eyegraft prepare step=build_index")
    read: dict[str, Index] = {split: read_index(path) for split, path in there.items()}
    table = pd.concat([one.table.assign(split=split) for split, one in read.items() if len(one.table)], ignore_index=True)
    left_out: dict[str, int] = {}
    for one in read.values():
        for reason, count in one.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return table.sort_values(["timestamp_utc", "path_bt", "stn"], kind="stable", ignore_index=True), left_out


def _numbered(table: Any) -> tuple[dict[str, str], Any]:
    """Stations as numbers: their own where all have one, else 1, 2, … in order of names. Gives number -> name."""
    stations = sorted(table["stn"].unique())
    whole = all(name.isdecimal() and int(name) < 2**31 for name in stations)
    numbers = {name: int(name) if whole else place + 1 for place, name in enumerate(stations)}
    if len(set(numbers.values())) < len(numbers):  # 090 and 90
        numbers = {name: place + 1 for place, name in enumerate(stations)}
    return {str(number): name for name, number in numbers.items()}, table.assign(number=table["stn"].map(numbers).astype(np.int32))


def _window(table: Any, area: str, patch_size: int) -> Window:
    """The part of the grid that holds every patch which lies inside it.

    Raises:
        DataError: no patch does, or pixels are not those of the stations' places: the index is of another grid.
    """
    grid, half = grid_of(area), patch_size // 2
    places = table[["stn", "lat", "lon", "pixel_x", "pixel_y"]].drop_duplicates()
    column, row = grid.to_pixel(places["lon"].to_numpy(), places["lat"].to_numpy())
    away = np.maximum(np.abs(column - places["pixel_x"]), np.abs(row - places["pixel_y"])).to_numpy()
    away = np.where(np.isnan(away), np.inf, away)  # beyond the disk
    if away.max() > _MISPLACED:
        place = int(away.argmax())
        worst = places.iloc[place]
        where = f"at {column[place]:.1f}, {row[place]:.1f}" if np.isfinite(away[place]) else "beyond the disk"
        raise DataError(
            f"station {worst['stn']} at {worst['lat']:g} N {worst['lon']:g} E has the pixel {worst['pixel_x']}, {worst['pixel_y']}; "
            f"on the grid {area} it lies {where}",
            f"an index of the grid {area} of 2 km, columns and rows from 0",
            "set prepare.area to the grid of the index, or build the index anew",
        )
    x, y = places["pixel_x"].to_numpy(np.int64), places["pixel_y"].to_numpy(np.int64)
    inside = (x >= half) & (x < grid.shape[1] - half) & (y >= half) & (y < grid.shape[0] - half)
    if not inside.any():
        raise DataError(
            f"{len(places)} stations, none with a patch of {patch_size} pixels inside the grid {area}", "stations in it", "set prepare.area"
        )
    spans = [slice(int(values[inside].min()) - half, int(values[inside].max()) + half + 1) for values in (y, x)]
    return spans[0], spans[1]


def _scenes(table: Any, root: Path, area: str) -> list[dict[str, Any]]:
    """Scenes in order of time: their time, files (path, bytes, time of change) and the rows of each split."""
    levels = table["path_bt"].str.endswith(".nc").any()
    found = {scene.time.strftime("%Y-%m-%d %H:%M:%S"): scene.files for scene in find_scenes(root) if scene.area == area} if levels else {}
    scenes, absent = [], []
    for (bt, reflectance, sza, _), group in table.groupby(_SCENE, sort=False):
        times = group["timestamp_utc"].unique()
        if len(times) > 1:
            raise DataError(f"{bt} at {shown(sorted(times))}", "one time for a scene", "mend the index")
        if bt.endswith(".nc"):
            _same_time(bt, times[0], area)
            files = {name: path.relative_to(root).as_posix() for name, path in found.get(times[0], {}).items()}
        else:
            files = {"bt": bt, "reflectance": reflectance, **({"sza": sza} if sza else {})}
        facts = {name: known for name, path in files.items() if (known := _file(root, path)) is not None}
        if not facts:
            absent.append(bt)
        rows = {split: packed(_rows(part)) for split, part in group.groupby("split", sort=False)}
        scenes.append({"time": times[0].replace(" ", "T"), "files": facts, "rows": {s: rows[s] for s in SPLITS if s in rows}})
    if absent:
        raise DataError(
            f"{len(absent)} of {len(scenes)} scenes of the index are not below {root}: {shown(absent, 3)}",
            "every scene of the index",
            "set prepare.scenes to the folder that its paths are relative to, or build the index anew",
        )
    return scenes


def _same_time(name: str, time: str, area: str) -> None:
    told = parse_name(Path(name))
    if told.time.strftime("%Y-%m-%d %H:%M:%S") != time or told.area != area:
        raise DataError(
            f"the index has {Path(name).name} at {time} UTC on the grid {area}",
            f"{told.time:%Y-%m-%d %H:%M} UTC on the grid {told.area}, as its name says",
            "times of an index are UTC; set prepare.area to its grid",
        )


def _file(root: Path, path: str) -> list[Any] | None:
    try:
        facts = (root / path).stat()
    except OSError:
        return None
    return [path, facts.st_size, facts.st_mtime_ns]


def _rows(table: Any) -> NDArray[Any]:
    rows = np.zeros(len(table), ROW)
    for name, column in (("stn", "number"), ("lat", "lat"), ("lon", "lon"), ("x", "pixel_x"), ("y", "pixel_y"), ("ta", "ta_k")):
        values = table[column].to_numpy()
        rows[name] = np.clip(values, -1, 2**15 - 1) if name in "xy" else values  # far outside is outside
    return rows


def _simulated(scenes: Sequence[Mapping[str, Any]], root: Path) -> bool:
    """What the first scene that can be read says of itself; extracted arrays say nothing and are taken as measured."""
    failed: DataError | None = None
    for scene in scenes:
        first = next(iter(scene["files"].values()))[0]
        try:
            return first.endswith(".nc") and is_simulated(root / first)
        except DataError as error:
            failed = error
    raise failed or DataError("no scene", "an index with rows", "build the index anew")


def _add_unlabelled(
    scenes: Iterable[dict[str, Any]], area: str, window: Window, side: int, count: int, seed: int, stations: Any, near: int | None
) -> None:
    """Random places for each scene of the train split, where a patch fits into the window; the same for the same seed and time.

    Args:
        stations: columns and rows [N, 2]; near: pixels from one of them at most, None: anywhere.
    """
    grid, half = grid_of(area), side // 2
    low, high = ([getattr(span, end) + shift for span in reversed(window)] for end, shift in (("start", half), ("stop", -half)))
    for scene in scenes:
        if "train" not in scene["rows"]:
            continue
        draw = np.random.default_rng([seed, int(np.datetime64(scene["time"], "s").astype(np.int64))])
        if near is None:
            places = draw.integers(low, high, (count, 2))
        else:
            places = stations[draw.integers(len(stations), size=count)] + draw.integers(-near, near + 1, (count, 2))
            places = np.clip(places, low, np.subtract(high, 1))
        rows = np.zeros(count, ROW)
        rows["x"], rows["y"] = places.T
        rows["lon"], rows["lat"] = grid.to_lonlat(rows["x"], rows["y"])
        rows["stn"], rows["ta"] = NO_STATION, np.nan
        scene["rows"][UNLABELLED] = packed(rows)


def facts_of(missing: str, area: str, *, simulated: bool) -> dict[str, Any]:
    """What every store of GK-2A patches says of itself."""
    sensor = GK2A_AMI.model_copy(update={"missing": missing, "gsd_m": grid_of(area).gsd_m})
    return {
        "sensor": sensor.model_dump(mode="json", exclude={"bands": {"__all__": {"mean", "std"}}}),
        "channels": list(CHANNELS),
        "extra": list(CHANNELS[len(sensor.bands) :]),
        "target": {"name": "ta", "unit": "K"},
        "simulated": simulated,
    }


def _facts(cut: Cut, stations: Mapping[str, str], more: Mapping[str, Any]) -> dict[str, Any]:
    rows, columns = cut.window
    named = {number: name for number, name in stations.items() if number != name}
    return {
        **facts_of(cut.missing, cut.area, simulated=cut.simulated),
        "grid": {"area": cut.area, "rows": [rows.start, rows.stop], "columns": [columns.start, columns.stop]},
        "ground": identity(cut.rasters, cut.base) if cut.rasters is not None else "that of the simulation",
        "made_by": _MADE_BY,
        **({"stations": named} if named else {}),
        **more,
    }


# ── write ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_stores(
    folder: Path,
    cut: Cut,
    scenes: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    workers: int,
    rows_per_shard: int,
    progress: Callable[[int, int], object] | None,
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    # unlabelled rows have shards of their own: who adds them later keeps the labelled stores, bit for bit, and the runs on them
    groups = [group for asked in (SPLITS, (UNLABELLED,)) for group in grouped(*_rows_of(scenes, asked), rows_per_shard)]
    rows: dict[str, int] = {}
    left_out: dict[str, dict[str, int]] = {}
    for split in (*SPLITS, UNLABELLED):
        jobs = [group for group in groups if any(split in scene["rows"] for scene in group)]
        if not jobs:
            if any((folder / split).glob("shard-*")):
                log.warning("%s: no rows for it any more; it is taken away", folder / split)
                shutil.rmtree(folder / split)
            continue
        schema = Schema(fields=fields(side=cut.side), split=split, facts=dict(facts))
        make = partial(produce, cut, split)
        with shown_progress(f"patches/{split}: shards", len(jobs)) as advance:
            manifest = write_shards(folder / split, schema, jobs, make, workers=workers, progress=progress or advancing(advance))
        rows[split] = manifest.rows
        left_out[split] = _merged(manifest.counts)
        log.info("patches/%s: %s rows; left out: %s", split, f"{manifest.rows:,}", _listed(left_out[split]))
    if not rows["train"]:
        raise DataError(
            f"no patch in the train split; left out: {_listed(left_out['train'])}", "rows that pass the checks", "mend what they fail by"
        )
    return rows, left_out


def _rows_of(scenes: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> tuple[list[dict[str, Any]], list[int]]:
    """The scenes that have rows of these splits, with those alone, and how many rows each has."""
    parts = [{**scene, "rows": {split: scene["rows"][split] for split in splits if split in scene["rows"]}} for scene in scenes]
    there = [scene for scene in parts if scene["rows"]]
    return there, [sum(len(unpacked(text)) for text in scene["rows"].values()) for scene in there]


def advancing(advance: Advance) -> Callable[[int, int], object]:
    """A bar that counts as a call of (done, total)."""
    seen = 0

    def tell(done: int, _: int) -> None:
        nonlocal seen
        advance(done - seen)
        seen = done

    return tell


def _merged(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason; the manifest of a store names every scene that cannot be read."""
    found: dict[str, int] = {}
    for reason, count in counts.items():
        reason = UNREADABLE if reason.startswith(UNREADABLE) else reason
        found[reason] = found.get(reason, 0) + count
    return {reason: count for reason, count in found.items() if count}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none"


def _write_statistics(folder: Path, given: tuple[Fitted, str] | None) -> None:
    """`statistics.json`, fitted anew only where the train split has changed."""
    path = folder / "statistics.json"
    if given is not None:
        write_statistics(path, given[0], train_store=None, source=given[1])
        return
    with PatchStore(folder / "train") as train:
        try:
            known = read_statistics(path, scaled(CHANNELS), train=train)
            if known["train_store"] is not None:
                return
        except DataError:
            pass
        write_statistics(path, fit(train), train_store=train.identity, source="patches/train")


def _night(store: Path) -> dict[str, int]:
    """Rows with the sun down, and scenes where it is down at every one."""
    with PatchStore(store) as opened:
        columns = opened.read(np.arange(len(opened)), ["time7", "timestamp"])
    down = columns["time7"][:, 6] > 90
    _, scene = np.unique(columns["timestamp"], return_inverse=True)
    lit = np.bincount(scene, ~down) if len(scene) else np.zeros(0)
    return {"rows": int(down.sum()), "scenes": int((lit == 0).sum())}
