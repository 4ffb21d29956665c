"""False-colour pictures of satellite patches, drawn from the patch store: warm and cold of an infrared band, and what the eye would see.

A patch is a few pixels wide, so the picture is too, and the page enlarges it without smoothing: each square is one pixel of the sensor.
Colours have the same meaning on all cards of a store, so that cards can be compared.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eyegraft.data.patch_store import PatchStore
from eyegraft.errors import EyegraftError
from eyegraft.report.reading import finite, mapping

Floats = NDArray[np.float64]

MAX_SIDE = 64
"""Pixels of a picture's side; larger patches are thinned."""
_SEEN_ROWS = 256
"""Rows that the range of the colours is taken from."""
_DAY_SZA_DEG = 85.0
_WINDOW_UM = 10.4  # the atmosphere is clear there: ground and cloud tops, by temperature
_RED_GREEN_BLUE_UM = (0.64, 0.54, 0.47)
_NEAR_UM = 0.06
# cividis (Nuñez, Anderton & Renslow 2018), in five stops: the same order for all kinds of colour vision, and in grey
_STOPS = np.array([(0, 34, 78), (65, 77, 107), (125, 124, 120), (188, 175, 111), (254, 232, 56)], dtype=np.float64)


@dataclass(frozen=True)
class Picture:
    """A patch as a PNG data URI, and what it shows: `IR105 262–281 K`."""

    uri: str
    caption: str


@dataclass(frozen=True)
class _Ranges:
    """What is drawn of a store: channel and range of the heat picture, channels of red, green and blue and the value of white."""

    heat: int
    name: str
    unit: str
    low: float
    high: float
    colours: tuple[int, ...]
    white: float


class PatchPictures:
    """The stores that the rows of a split name, each opened once. A context manager: stores are closed at its end."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the run, to which relative paths refer."""
        self._folder = folder
        self._stores: dict[str, tuple[PatchStore, _Ranges] | str] = {}

    def __enter__(self) -> PatchPictures:
        return self

    def __exit__(self, *exception: object) -> None:
        for opened in self._stores.values():
            if not isinstance(opened, str):
                opened[0].close()

    def of(self, row: Mapping[str, Any], truth: float) -> tuple[list[Picture], str]:
        """The pictures of a row that names a record of a store, or none and the reason.

        Args:
            truth: of the row; where the record holds another number, the store was written anew since.
        """
        opened, record = self._opened(str(row.get("image"))), row.get("record")
        if isinstance(opened, str):
            return [], opened
        store, ranges = opened
        if not isinstance(record, int) or not 0 <= record < len(store):
            return [], "not in the patch store"
        try:
            found = store.read(np.array([record]), ["x", *(["y"] if "y" in store.schema.fields else [])])
        except (EyegraftError, OSError):
            return [], "patch store unreadable"
        if "y" in found and not math.isclose(float(found["y"][0]), truth, rel_tol=1e-5, abs_tol=1e-6):
            return [], "patch store changed since"
        return _pictures(found["x"][0].astype(np.float64), ranges, finite(mapping(row.get("meta")).get("sza_deg"))), ""

    def _opened(self, place: str) -> tuple[PatchStore, _Ranges] | str:
        if place not in self._stores:
            self._stores[place] = _open(self._folder / place)
        return self._stores[place]


def is_patch(row: Mapping[str, Any]) -> bool:
    """Whether a row names a record of a patch store rather than a picture file."""
    return isinstance(row.get("record"), int) and isinstance(row.get("image"), str)


def _open(path: Path) -> tuple[PatchStore, _Ranges] | str:
    """The store and its ranges, or why it cannot be had: a page must not fail because data went elsewhere."""
    if not path.is_dir():
        return "patch store gone"
    try:
        store = PatchStore(path)
    except (EyegraftError, OSError):
        return "patch store unreadable"
    try:
        return store, _ranges(store)
    except (EyegraftError, OSError, KeyError, ValueError, IndexError):
        store.close()
        return "no picture of this store"


def _ranges(store: PatchStore) -> _Ranges:
    """Raises:
    DataError, ValueError, IndexError: no patches in it, or none with a measured pixel.
    """
    bands = mapping(store.schema.facts.get("sensor")).get("bands")
    known = [mapping(band) for band in bands] if isinstance(bands, list) else []
    names = store.schema.facts.get("channels")
    sampled = np.unique(np.linspace(0, len(store) - 1, min(_SEEN_ROWS, len(store))).astype(np.int64))
    x = store.read(sampled, ["x"])["x"].astype(np.float64)  # [n, C, H, W]
    lengths = [finite(band.get("wavelength_um")) for band in known]
    heats = [number for number, band in enumerate(known) if band.get("unit") == "K" and (lengths[number] or 0) > 3]
    heat = min(heats, key=lambda number: abs((lengths[number] or 0) - _WINDOW_UM), default=0)
    values = x[:, heat][np.isfinite(x[:, heat])]
    low, high = (float(value) for value in np.quantile(values, (0.02, 0.98)))
    colours = _visible(known, lengths)
    bright = x[:, list(colours)] if colours else x[:0]
    bright = bright[np.isfinite(bright) & (bright > 0)]
    return _Ranges(
        heat,
        str(known[heat].get("name") if known else names[heat] if isinstance(names, list) else f"channel {heat}"),
        str(known[heat].get("unit") or "") if known else "",
        low,
        high if high > low else low + 1.0,
        colours if bright.size else (),
        float(np.quantile(bright, 0.98)) if bright.size else 1.0,
    )


def _visible(bands: Sequence[Mapping[str, Any]], lengths: Sequence[float | None]) -> tuple[int, ...]:
    """The channels of red, green and blue; empty where a sensor lacks one of them."""
    light = {number: length for number, length in enumerate(lengths) if length is not None and bands[number].get("unit") != "K"}
    found = []
    for wanted in _RED_GREEN_BLUE_UM:
        nearest = min(light, key=lambda number: abs(light[number] - wanted), default=None)
        if nearest is None or abs(light[nearest] - wanted) > _NEAR_UM or nearest in found:
            return ()
        found.append(nearest)
    return tuple(found)


def _pictures(patch: Floats, ranges: _Ranges, sza_deg: float | None) -> list[Picture]:
    """Of one patch [C, H, W]."""
    step = max(1, math.ceil(max(patch.shape[1:]) / MAX_SIDE))
    patch = patch[:, ::step, ::step]
    heat = patch[ranges.heat]
    measured = heat[np.isfinite(heat)]
    ends = f"{_short(measured.min())}–{_short(measured.max())} {ranges.unit}".strip() if measured.size else "not measured"
    found = [Picture(_uri(_coloured(heat, ranges.low, ranges.high), np.isfinite(heat)), f"{ranges.name} {ends}")]
    day = sza_deg is None or sza_deg < _DAY_SZA_DEG
    if ranges.colours and day:
        seen = patch[list(ranges.colours)]  # [3, H, W]
        known = np.logical_and.reduce(np.isfinite(seen))
        if known.any() and (sza_deg is not None or float(np.nanmax(seen)) > 0.02 * ranges.white):
            light = np.sqrt(np.clip(np.where(np.isfinite(seen), seen, 0) / ranges.white, 0, 1))  # as bright as a screen shows it
            found.append(Picture(_uri(np.moveaxis(light, 0, -1) * 255, known), "visible"))
    return found


def _coloured(values: Floats, low: float, high: float) -> Floats:
    """[H, W] -> [H, W, 3] of 0 to 255."""
    place = np.clip((np.where(np.isfinite(values), values, low) - low) / (high - low), 0, 1) * (len(_STOPS) - 1)
    return np.stack([np.interp(place, np.arange(len(_STOPS)), _STOPS[:, channel]) for channel in range(3)], axis=-1)


def _uri(colours: Floats, measured: NDArray[np.bool_]) -> str:
    """[H, W, 3] of 0 to 255 as a PNG; pixels that were not measured are clear."""
    alpha = np.where(measured, 255, 0)[..., None]
    picture = Image.fromarray(np.concatenate([np.round(colours), alpha], axis=-1).astype(np.uint8), "RGBA")
    memory = io.BytesIO()
    (picture if not measured.all() else picture.convert("RGB")).save(memory, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(memory.getvalue()).decode()}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


GRADIENT = ", ".join(f"rgb({red:.0f} {green:.0f} {blue:.0f})" for red, green, blue in _STOPS)
"""The colours from cold to warm, for a legend."""
