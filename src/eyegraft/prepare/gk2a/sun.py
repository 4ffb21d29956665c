"""Where the sun stands over each pixel at the moment when its row was scanned."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eyegraft.prepare.gk2a.grid import Floats, Grid, grid_of


def zenith(grid: Grid, start: datetime, end: datetime | None = None, *, places: tuple[Floats, Floats] | None = None) -> NDArray[np.float32]:
    """Sun zenith angle of each pixel centre, [rows, columns] in degrees (0 overhead, above 90 the sun is down), NaN in space.

    Args:
        grid: whole or a window.
        start, end: of the scan, UTC. Rows of the whole grid are taken as scanned from north to south at an even pace between the two;
            without `end`, all at `start`.
        places: what `grid.lonlats()` gave, where many scenes share a grid: it costs six times the angle.
    """
    lon, lat = places if places is not None else grid.lonlats()
    row = grid.first[1] + np.arange(grid.shape[0]) + 0.5
    seconds = (end - start).total_seconds() * row / grid_of(grid.area).shape[0] if end is not None else np.zeros_like(row)
    times = _utc(start) + np.round(seconds * 1e3).astype("timedelta64[ms]")
    return zenith_at(lon, lat, times[:, None])


def zenith_at(lon: ArrayLike, lat: ArrayLike, times: Any) -> NDArray[np.float32]:
    """Sun zenith angle in degrees at places (degrees) and times (UTC: one datetime, or `datetime64` that broadcasts with the places)."""
    from pyorbital.astronomy import cos_zen

    when = _utc(times) if isinstance(times, datetime) else np.asarray(times)
    cosine = cos_zen(when, np.asarray(lon, np.float64), np.asarray(lat, np.float64))
    found: NDArray[np.float32] = np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).astype(np.float32)
    return found


def _utc(time: datetime) -> np.datetime64:
    return np.datetime64(time.replace(tzinfo=None), "ms")
