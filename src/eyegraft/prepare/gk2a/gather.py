"""One shard of patches: its scenes decoded one after the other, each once, and all patches of all its stations cut out at one go.

A scene may give rows to several splits (known stations and new ones share their days). The shard that comes first keeps what it cut for
the others in a stash beside the stores; without the stash they decode the scene again and end with the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eyegraft.data.patch_chunks import CHANNELS, fields
from eyegraft.data.patch_store import Columns
from eyegraft.errors import DataError
from eyegraft.prepare.gk2a import Rasters, sun
from eyegraft.prepare.gk2a.grid import OUTSIDE_GRID, grid_of
from eyegraft.prepare.gk2a.rasters import NO_CLASS, Surface, surface
from eyegraft.prepare.gk2a.read import Scene, SceneFiles, Window, read_arrays, read_scene

log = logging.getLogger(__name__)

Scenes = Sequence[Mapping[str, Any]]
Bools = NDArray[np.bool_]

ROW: Final = np.dtype([("stn", "<i4"), ("lat", "<f4"), ("lon", "<f4"), ("x", "<i2"), ("y", "<i2"), ("ta", "<f4")])
"""A row of the index in a job: station, degrees, pixel in the whole grid, kelvin."""

QUALITY = "bad quality bits"
NOT_FINITE = "NaN or infinity in a band"
NO_GROUND = "NaN or infinity in sza, dem or lsmask"
LAND_COVER = "land cover class out of range"
NOTHING = "no band measured"
UNREADABLE = "scene cannot be read"

_BANDS, _REFLECTANCE = 16, slice(10, 16)
_MOST_UNREADABLE = 0.05  # of a shard's scenes; one of them may always be


@dataclass(frozen=True)
class Cut:
    """What all shards of a build share.

    Attributes:
        root: folder that the paths of scenes are relative to; base: that of the rasters.
        window: rows and columns of the 2 km grid that hold every patch.
        side: of a patch in pixels.
        missing: `drop` leaves out patches with a pixel that was not measured, `mask` keeps them with NaN.
        simulated: what every scene must be.
        stash: folder for rows of other splits; None keeps none.
    """

    root: Path
    base: Path
    area: str
    window: Window
    side: int
    missing: str
    simulated: bool
    rasters: Rasters | None
    stash: Path | None = None


def packed(rows: NDArray[Any]) -> str:
    """Rows of type `ROW` as text for a job."""
    return base64.b64encode(rows.tobytes()).decode()


def unpacked(text: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), ROW)


def produce(cut: Cut, split: str, job: Scenes) -> tuple[Columns, dict[str, int]]:
    """The rows of one split in a shard, and counts of what was left out by reason.

    Args:
        job: scenes as `patches.plan` describes them: time, files, and the rows of each split.

    Raises:
        DataError: more than a few scenes cannot be read, or some are simulated and some are not.
    """
    place = cut.stash / _digest(job) if cut.stash is not None else None
    kept = _unstashed(place / split) if place is not None else None
    if kept is not None:
        return kept
    parts = {name: _Rows(cut.side, job, name) for name in dict.fromkeys(name for scene in job for name in scene["rows"])}
    unreadable = 0  # not the errors: they would keep this frame and its arrays alive
    for described in job:
        try:
            scene = read(cut, described)
        except DataError as error:
            unreadable += 1
            log.warning("left out: %s", error.given)
            if unreadable > max(1, _MOST_UNREADABLE * len(job)) or unreadable == len(job):
                raise DataError(
                    f"{unreadable} of {len(job)} scenes of a shard cannot be read; the last: {error.given}",
                    error.expected,
                    f"{error.fix}; or take its rows out of the index. The same command goes on where it stopped",
                ) from error
            for name, text in described["rows"].items():
                parts[name].left_out[f"{UNREADABLE}: {described['time']} UTC"] += len(unpacked(text))
            continue
        if scene.simulated != cut.simulated:
            kinds = ("measured", "simulated")
            raise DataError(
                f"the scene of {described['time']} UTC is {kinds[scene.simulated]}, the first one {kinds[cut.simulated]}",
                "one kind of scenes in a data set",
                "keep them in folders of their own",
            )
        layers = stacked(cut, scene)
        for name, text in described["rows"].items():
            parts[name].add(cut, layers, unpacked(text), described["time"])
    if place is not None:
        for name in parts.keys() - {split}:
            _stash(place / name, parts[name])
    return parts[split].columns(), dict(parts[split].left_out)


def read(cut: Cut, described: Mapping[str, Any]) -> Scene:
    """One scene on the window of the build.

    Raises:
        DataError: a file is missing or cannot be used.
    """
    time = datetime.fromisoformat(described["time"]).replace(tzinfo=UTC)
    paths = {name: cut.root / facts[0] for name, facts in described["files"].items()}
    if "bt" in paths:
        return read_arrays(paths["bt"], paths["reflectance"], paths.get("sza"), time, cut.area, cut.window)
    return read_scene(SceneFiles(cut.area, time, paths), cut.window)


@dataclass(frozen=True)
class Layers:
    """All channels of a scene on the window, in the order of `CHANNELS`, and where quality bits forbid the use of a pixel [H, W]."""

    channels: tuple[NDArray[np.float32], ...]
    flagged: Bools | None
    surface: Surface
    first: tuple[int, int]


def stacked(cut: Cut, scene: Scene) -> Layers:
    """A scene with sun, elevation and mask. Where the sun is down, reflected bands hold no light: what is missing there is 0."""
    ground = surface(scene.grid, cut.rasters, cut.base)
    sza = scene.sza_deg
    if sza is None:
        sza = sun.zenith(scene.grid, scene.start, scene.end, places=(ground.lon, ground.lat))
    dark = sza > 90
    reflectance = np.where(dark & ~np.isfinite(scene.reflectance), np.float32(0), scene.reflectance)
    flagged: Bools | None = None
    if scene.flagged is not None:
        by_band = scene.flagged.copy()
        by_band[_REFLECTANCE] &= ~dark
        flagged = np.logical_or.reduce(by_band)
    maps = (sza[None], ground.dem[None], ground.lsmask[None])
    return Layers((scene.brightness_k, reflectance, *maps), flagged, ground, scene.grid.first)


class _Rows:
    """The rows of one split, filled scene by scene: arrays of the final size, so that a shard is in memory once."""

    def __init__(self, side: int, job: Scenes, split: str) -> None:
        most = sum(len(unpacked(scene["rows"][split])) for scene in job if split in scene["rows"])
        self._arrays = {name: np.empty((most, *field.shape), field.on_disk) for name, field in fields(side=side).items()}
        self._count = 0
        self.left_out: Counter[str] = Counter()

    def columns(self) -> Columns:
        return {name: values[: self._count] for name, values in self._arrays.items()}

    def add(self, cut: Cut, layers: Layers, rows: NDArray[Any], time: str) -> None:
        """Cut the patches of one scene, and leave out those that fail a check, each counted by the first check it fails."""
        half = cut.side // 2
        shape = grid_of(cut.area).shape
        x, y = rows["x"].astype(np.int64), rows["y"].astype(np.int64)
        inside = (x >= half) & (x < shape[1] - half) & (y >= half) & (y < shape[0] - half)
        self.left_out[OUTSIDE_GRID] += int((~inside).sum())
        rows, x, y = rows[inside], x[inside] - layers.first[0], y[inside] - layers.first[1]
        patches = self._arrays["x"][self._count : self._count + len(rows)]  # [N, C, side, side], to be overwritten by the kept ones
        done = 0
        for part in layers.channels:
            windows = sliding_window_view(part, (cut.side, cut.side), axis=(1, 2))
            patches[:, done : done + len(part)] = windows[:, y - half, x - half].swapaxes(0, 1)
            done += len(part)
        cover = np.full(len(rows), NO_CLASS, np.uint8)
        if layers.surface.landcover is not None:
            cover = layers.surface.landcover[y, x]
        kept = self._checked(cut, layers, patches, cover, y, x)
        last = self._count + int(kept.sum())
        if not kept.all():
            patches[: last - self._count] = patches[kept]
        rows, here = rows[kept], slice(self._count, last)
        moment = np.datetime64(time, "s")
        sza = self._arrays["x"][here, CHANNELS.index("sza"), half, half]
        columns = {
            "time7": time7(np.full(len(rows), moment), sza),
            "loc": np.stack([rows["lat"], rows["lon"], np.full(len(rows), grid_of(cut.area).gsd_m)], axis=1),
            "landcover": cover[kept],
            "y": rows["ta"],
            "timestamp": moment.astype(np.int64),
            "stn": rows["stn"],
            "pixel": np.stack([rows["x"], rows["y"]], axis=1),
        }
        for name, values in columns.items():
            self._arrays[name][here] = values
        self._count = last

    def _checked(
        self, cut: Cut, layers: Layers, patches: NDArray[np.float32], cover: NDArray[np.uint8], y: NDArray[np.int64], x: NDArray[np.int64]
    ) -> Bools:
        finite: Any = np.isfinite(patches).all(axis=(2, 3))  # [N, C]
        checks: list[tuple[str, Any]] = []
        if layers.surface.landcover is not None:
            checks.append((LAND_COVER, cover == NO_CLASS))
        if cut.missing == "mask":
            with_infinity = np.flatnonzero(~finite.all(axis=1))
            part = patches[with_infinity]
            patches[with_infinity] = np.where(np.isinf(part), np.float32(np.nan), part)
            checks.append((NOTHING, np.isnan(patches[:, :_BANDS]).all(axis=(1, 2, 3))))
        else:
            if layers.flagged is not None:
                windows = sliding_window_view(layers.flagged, (cut.side, cut.side))
                half = cut.side // 2
                checks.append((QUALITY, windows[y - half, x - half].any(axis=(1, 2))))
            checks += [(NOT_FINITE, ~finite[:, :_BANDS].all(axis=1)), (NO_GROUND, ~finite[:, _BANDS:].all(axis=1))]
        kept = np.ones(len(patches), dtype=bool)
        for reason, bad in checks:
            self.left_out[reason] += int((kept & bad).sum())
            kept &= ~bad
        return kept


def time7(times: NDArray[np.datetime64], sza_deg: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """[N] UTC and sun zenith angles in degrees -> [N, 7] = cosine and sine of day of the year, of hour and of month, then the angle.

    A year has 365.25 days and begins at angle 0, as do the day and the month of January (1 of 12, so December's is the full circle).
    """
    day = (times.astype("datetime64[D]") - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.float64)
    hour = (times - times.astype("datetime64[D]")).astype("timedelta64[s]").astype(np.float64) / 3600
    month = times.astype("datetime64[M]").astype(np.int64) % 12 + 1
    turns = np.stack([day / 365.25, hour / 24, month / 12], axis=1) * 2 * np.pi  # [N, 3]
    pairs = np.stack([np.cos(turns), np.sin(turns)], axis=2).reshape(len(times), 6)
    found: NDArray[np.float32] = np.concatenate([pairs, np.asarray(sza_deg)[:, None]], axis=1).astype(np.float32)
    return found


# ── rows of other splits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _digest(job: Scenes) -> str:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:32]


def _stash(place: Path, rows: _Rows) -> None:
    """Keep rows until the shard of their split is made. A stash that is cut short by a kill is never read: its folder has another name."""
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, values in rows.columns().items():
        np.save(draft / f"{name}.npy", values, allow_pickle=False)
    (draft / "left_out.json").write_text(json.dumps(dict(rows.left_out)), encoding="utf-8")
    draft.rename(place)


def _unstashed(place: Path) -> tuple[Columns, dict[str, int]] | None:
    try:
        left_out = json.loads((place / "left_out.json").read_text(encoding="utf-8"))
        columns = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in place.glob("*.npy")}
    except (OSError, ValueError):
        return None
    return columns, left_out
