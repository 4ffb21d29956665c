"""The model of a run on every pixel of a GK-2A scene: a field of answers.

What the model reads of a pixel is made by the code that makes training patches: `gather.stacked` stacks the channels of a scene,
`PatchRows` and the readers turn patches, time and place into inputs, and statistics are those that the checkpoint holds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from eyegraft.answering import answer_samples, readers_of
from eyegraft.data.inputs import Reader
from eyegraft.data.patch_chunks import CHANNELS
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.patch_store import PatchStore
from eyegraft.data.samples import base_folder
from eyegraft.errors import DataError, PartError, RunError, shown
from eyegraft.files import file_sha256
from eyegraft.model import Graft
from eyegraft.prepare.gk2a import Rasters, gather
from eyegraft.prepare.gk2a.grid import BEYOND_DISK, KOREA, OUTSIDE_GRID, Grid, grid_of
from eyegraft.prepare.gk2a.rasters import NO_CLASS, identity
from eyegraft.prepare.gk2a.read import SceneFiles, Window, find_scenes, parse_name, read_scene
from eyegraft.registry import configured
from eyegraft.sensors import GK2A_AMI, Sensor
from eyegraft.serving.field import REASONS, Field
from eyegraft.serving.pixels import ScenePixels
from eyegraft.tasks import Task
from eyegraft.training.checkpoints import read_config
from eyegraft.training.runs import Run, read_run
from eyegraft.training.trained import load_model
from eyegraft.types import PatchSpec

log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]

_EXTRA: Final = CHANNELS[len(GK2A_AMI.bands) :]
_OTHER_RUN: Final = "give a run of recipe=ta_small or recipe=ta_regression, and with --stage one that answers"
_PIECE = 100_000  # answers that are kept as Python objects at once


def choose_scene(place: Path, moment: datetime | None = None, area: str | None = None) -> SceneFiles:
    """The scene of a folder, or the one that a file belongs to.

    Args:
        moment: nominal time, UTC, where the folder holds several; area: `ko` or `fd`, where it holds both.

    Raises:
        DataError: there is none, or several.
    """
    if not place.exists():
        raise DataError(f"--scene {place}: not there", "a level 1B file of GK-2A AMI, or a folder with them", "check the path")
    found = find_scenes(place if place.is_dir() else place.parent)
    if place.is_file():
        name = parse_name(place)
        moment, area = name.time, name.area
    fitting = [scene for scene in found if moment in (None, scene.time) and area in (None, scene.area)]
    if len(fitting) != 1:
        there = shown([f"{scene.time:%Y%m%d%H%M} ({scene.area})" for scene in fitting or found], 12)
        given = f"{place}: {'several scenes' if fitting else 'no such scene'}; {'they are' if fitting else 'there are'} {there}"
        raise DataError(given, "one scene", "give --time YYYYmmddHHMM and, where a time is there in both grids, --area ko or --area fd")
    return fitting[0]


def map_scene(
    run: Path | str, files: SceneFiles, *, stage: str | None = None, box: Box | None = None, stride: int = 1, batch_size: int | None = None
) -> Field:
    """Answer for every pixel of a scene, as the run would for a station there.

    Args:
        stage: whose best checkpoint answers; None the last.
        box: west, east, south, north in degrees of what is wanted; None: of a Korea scene all, of a full disk `grid.KOREA`.
        stride: answer every stride-th row and column.
        batch_size: patches in one forward; None takes the recipe's for evaluation.

    Raises:
        RunError: the run is none that answers with numbers from patches of GK-2A.
        PartError: its model reads another sensor, or maps that are not made of a scene.
        DataError: the scene cannot be read, a raster is not what it was in training, or the box lies outside.
    """
    opened = read_run(run)
    patches = patches_of(opened)
    model, task, checkpoint = load_model(opened, stage)
    _stop_at_other_tasks(opened, task)
    spec = _patch_spec(model, opened, files)
    side = spec.size[0] if spec is not None else 1
    started = time.monotonic()
    look = _look(opened, files, patches, side, box, stride)
    if not (look.quality == 0).any():
        reasons = np.bincount(look.quality.ravel(), minlength=len(REASONS)).tolist()
        said = ", ".join(f"{count:,} {reason}" for reason, count in zip(REASONS, reasons, strict=True) if count)
        fix = "another scene, or another --box; `eyegraft check` shows how much of a scene is usable"
        raise DataError(
            f"no pixel of the scene of {files.time:%Y-%m-%d %H:%M} UTC can be answered: {said}", "pixels that were measured", fix
        )
    trained = (patches.get("grid") or {}).get("area", files.area)
    if trained != files.area:
        log.warning("the scene is of the grid %s, the run learned from %s: patches show another size of ground", files.area, trained)
    height, width = look.grid.shape
    log.info("%s UTC: %d x %d pixels read in %.1f s", f"{files.time:%Y-%m-%d %H:%M}", height, width, time.monotonic() - started)
    started = time.monotonic()
    size = batch_size or opened.recipe.evaluation.batch_size
    found = _answers(model, task, look.pixels, readers_of(model, opened.recipe), size)
    answered = {key: np.full(look.quality.shape, np.nan, np.float32) for key in ("value", *found)}
    for key, numbers in found.items():
        answered[key][look.quality == 0] = numbers
    return Field(
        grid=look.grid,
        rows=look.rows,
        columns=look.columns,
        time=files.time,
        name=patches["target"]["name"],
        unit=patches["target"]["unit"],
        values=answered["value"],
        std=answered.get("std"),
        half_width=answered.get("half_width"),
        level=(task.decision.get("intervals") or {}).get("level"),
        quality=look.quality,
        scene_simulated=look.simulated,
        training_simulated=bool(patches.get("simulated", False)),
        facts=_identity(opened, checkpoint, spec),
        seconds=time.monotonic() - started,
    )


# ── what may be asked of which run ───────────────────────────────────────────────────────────────────────────────────────────────


def patches_of(run: Run) -> Mapping[str, Any]:
    """What the patches that a run was trained on say of themselves.

    Raises:
        RunError: they are not GK-2A's.
    """
    patches: Mapping[str, Any] = run.facts.get("data", {}).get("patches") or {}
    if tuple(patches.get("channels", ())) != CHANNELS:
        reads = f"patches of {patches['sensor']['name']}" if patches else "no patches of a satellite"
        raise RunError(f"{run.folder}: recipe {run.recipe.recipe} reads {reads}", "a run on patches of GK-2A", _OTHER_RUN)
    return patches


def _stop_at_other_tasks(run: Run, task: Task) -> None:
    kind = run.recipe.tasks[task.name].kind
    if kind != "regress":
        raise RunError(f"{run.folder}: the task of this stage is {kind}", "a task that answers with a number: regress", _OTHER_RUN)


def _patch_spec(model: Graft, run: Run, files: SceneFiles) -> PatchSpec | None:
    """What the model reads of a patch, None where it reads time and place alone.

    Raises:
        PartError: another sensor, or maps that are not made of a scene.
    """
    spec = getattr(dict(model.encoders.items()).get("image"), "spec", None)
    if not isinstance(spec, PatchSpec):
        return None
    # what missing pixels do is the model's to say
    scene = GK2A_AMI.model_copy(update={"missing": spec.sensor.missing, "gsd_m": grid_of(files.area).gsd_m})
    spec.sensor.require_same(scene, here=f"the model of {run.folder}", there="the scene")
    unknown = [name for name in spec.extra_channels if name not in _EXTRA]
    if unknown:
        given = f"{run.folder}: the model reads the maps {shown(unknown)}"
        raise PartError(given, f"some of {', '.join(_EXTRA)}", "train without them: they are not made of a scene")
    if spec.size[0] != spec.size[1] or spec.size[0] % 2 == 0:
        given = f"{run.folder}: the model reads patches of {spec.size[0]} x {spec.size[1]} pixels"
        raise PartError(given, "a square with a pixel in the middle", "train on patches of an odd side")
    return spec


def _rasters(run: Run, patches: Mapping[str, Any], base: Path) -> Rasters | None:
    """Those that the training patches were made with; None: the ground of the simulation.

    Raises:
        DataError: one is gone, or another file lies in its place.
        RunError: neither the patches nor the recipe say which they are.
    """
    ground = patches.get("ground")
    if isinstance(ground, str):
        return None
    if ground is None:  # converted from old files, which do not say it
        part = run.recipe.prepare
        rasters = getattr(configured("prepare", part)[1], "rasters", None) if part is not None else None
        if rasters is None:
            given = f"{run.folder}: its patches do not say which rasters elevation and land-sea mask came from"
            raise RunError(given, "prepare.rasters in the recipe of the run", "train with prepare=gk2a and prepare.rasters set")
        return cast("Rasters", rasters)
    rasters = Rasters.model_validate({name: known["file"] for name, known in ground.items()})
    for name, now in identity(rasters, base).items():
        if now["bytes"] != ground[name]["bytes"]:
            given = f"{base / now['file']}: {now['bytes']:,} bytes, and {ground[name]['bytes']:,} when the patches were made"
            raise DataError(given, f"the raster {name} of the training patches", "put that file back: the model has learned from it")
    return rasters


def _identity(run: Run, checkpoint: Path, spec: PatchSpec | None) -> dict[str, Any]:
    """Who answers, as plain data."""
    config, data = read_config(checkpoint), run.facts["data"]
    folder = run.folder.resolve()
    return {
        "run": f"{folder.parent.name}/{folder.name}",
        "recipe": run.recipe.recipe,
        "checkpoint": {key: config[key] for key in ("stage", "epoch", "step")} | {"sha256": file_sha256(checkpoint / "manifest.json")},
        "data": {"name": data["name"], "train": data["splits"].get("train")},
        "trained_on_area": (data["patches"].get("grid") or {}).get("area", "unknown"),
        **({"sensor": spec.sensor.model_dump(mode="json")} if spec is not None else {}),
    }


# ── pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Look:
    """A scene cut into patches: `pixels` are those with quality 0 among `rows` and `columns` of the window `grid`, row by row."""

    grid: Grid
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    quality: NDArray[np.uint8]
    pixels: ScenePixels
    simulated: bool


def _look(run: Run, files: SceneFiles, patches: Mapping[str, Any], side: int, box: Box | None, stride: int) -> _Look:
    """Read a scene on the window that is asked for and what patches at its rim reach over."""
    whole, base = grid_of(files.area), base_folder(run.recipe.data.base_dir)
    asked: Window = (slice(0, whole.shape[0]), slice(0, whole.shape[1]))
    if box is not None or files.area == "fd":
        asked = whole.window_around(box or KOREA, margin=0)
    top, left = (max(one.start - side // 2, 0) for one in asked)
    bottom, right = (min(one.stop + side // 2, size) for one, size in zip(asked, whole.shape, strict=True))
    window = slice(top, bottom), slice(left, right)
    scene = read_scene(files, window)
    missing = Sensor.model_validate(patches["sensor"]).missing
    cut = gather.Cut(Path(), base, files.area, window, side, missing, scene.simulated, _rasters(run, patches, base))
    layers = gather.stacked(cut, scene)
    channels = np.concatenate(layers.channels)
    if missing == "mask":
        channels[np.isinf(channels)] = np.nan
    rows, columns = (
        np.arange(asked[0].start - top, asked[0].stop - top, stride),
        np.arange(asked[1].start - left, asked[1].stop - left, stride),
    )
    quality = _quality(channels, layers, side, missing)[np.ix_(rows, columns)]
    row, column = np.nonzero(quality == 0)
    ground = layers.surface
    pixels = ScenePixels(
        channels,
        lon=ground.lon,
        lat=ground.lat,
        landcover=ground.landcover,
        row=rows[row],
        column=columns[column],
        side=side,
        gsd_m=whole.gsd_m,
        time=scene.time,
        first=scene.grid.first,
        facts=patches,
        path=next(iter(files.files.values())).parent,
    )
    return _Look(scene.grid, rows, columns, quality, pixels, scene.simulated)


def _quality(channels: Floats, layers: gather.Layers, side: int, missing: str) -> NDArray[np.uint8]:
    """[H, W] which of `REASONS` holds for the patch around each pixel, the first in that order; 0 for patches that training would keep."""
    from scipy.ndimage import maximum_filter

    def anywhere(bad: Any) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = maximum_filter(bad, side, mode="constant")
        return found

    bands, extra = np.isfinite(channels[: -len(_EXTRA)]), np.isfinite(channels[-len(_EXTRA) :])
    height, width = bands.shape[1:]
    inside = np.zeros((height, width), dtype=bool)
    inside[side // 2 : height - side // 2, side // 2 : width - side // 2] = True
    cover = layers.surface.landcover
    checks = [(OUTSIDE_GRID, ~inside), (BEYOND_DISK, ~np.isfinite(layers.surface.lon))]
    checks += [(gather.LAND_COVER, cover == NO_CLASS)] if cover is not None else []
    if missing == "mask":
        checks.append((gather.NOTHING, ~anywhere(bands.any(0))))
    else:
        checks += [(gather.QUALITY, anywhere(layers.flagged))] if layers.flagged is not None else []
        checks += [(gather.NOT_FINITE, anywhere(~bands.all(0))), (gather.NO_GROUND, anywhere(~extra.all(0)))]
    found = np.zeros((height, width), np.uint8)
    for reason, bad in reversed(checks):
        found[bad] = REASONS.index(reason)
    return found


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _answers(model: Graft, task: Task, pixels: ScenePixels, readers: Mapping[str, Reader], batch_size: int) -> dict[str, Floats]:
    """`value` and, where the task has them, `std` and `half_width`: each [N]."""
    rows = PatchRows(cast("PatchStore", pixels))  # it has all that rows ask of a store
    parts: dict[str, list[Floats]] = {}
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        label = f"pixels {start:,} to {start + len(piece):,} of {len(rows):,}"
        answers = answer_samples(model, task, piece, readers, batch_size=batch_size, label=label)
        numbers = {"value": [answer["value"] for answer in answers]}
        if answers[0]["std"] is not None:
            numbers["std"] = [answer["std"] for answer in answers]
        if answers[0]["interval"] is not None:
            numbers["half_width"] = [(answer["interval"][1] - answer["interval"][0]) / 2 for answer in answers]
        for key, found in numbers.items():
            parts.setdefault(key, []).append(np.array(found, np.float32))
    return {key: np.concatenate(found) for key, found in parts.items()}
