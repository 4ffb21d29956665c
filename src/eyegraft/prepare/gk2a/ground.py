"""The ground that simulated scenes stand on: land and water, land cover and elevation around Korea (README.md says from where)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

WATER, URBAN = 0, 13


@dataclass(frozen=True)
class Ground:
    """At given places, all of one shape.

    Attributes:
        land: True on land.
        igbp: land cover class, 0 (water) to 16.
        elevation_m: above the sea; 0 on water.
    """

    land: NDArray[np.bool_]
    igbp: NDArray[np.uint8]
    elevation_m: Floats


def ground_at(lon: ArrayLike, lat: ArrayLike) -> Ground:
    """The ground at places in degrees. Outside 112 to 140 E, 27 to 47 N, and where a place is NaN, it is open sea."""
    from scipy.ndimage import map_coordinates

    stored = _stored()
    west, east, south, north = stored["box"]
    x, y = np.broadcast_arrays(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
    inside = (x >= west) & (x < east) & (y > south) & (y <= north)
    right, down = np.where(inside, x - west, 0), np.where(inside, north - y, 0)
    land = stored["land"][(down * 120).astype(int), (right * 120).astype(int)] & inside
    igbp = np.where(land, stored["igbp"][(down * 20).astype(int), (right * 20).astype(int)], WATER).astype(np.uint8)
    # coarse cells of land cover that are water although the fine mask says land take the shore's most frequent class
    igbp[land & (igbp == WATER)] = 12
    nodes = np.stack([down.ravel(), right.ravel()]) * 12
    elevation: Floats = map_coordinates(stored["elevation_m"], nodes, order=1, mode="nearest").reshape(x.shape)
    return Ground(land, igbp, np.where(land, elevation, 0))


@cache
def _stored() -> dict[str, Any]:
    with np.load(Path(__file__).with_name("ground_east_asia.npz"), allow_pickle=False) as file:
        land = np.unpackbits(file["land"], axis=1).astype(bool)
        return {
            "box": tuple(float(side) for side in file["box"]),
            "land": land,
            "igbp": file["igbp"],
            "elevation_m": file["elevation_m"].astype(np.float64),
        }
