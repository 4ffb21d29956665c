"""Where a pixel lies: longitude and latitude to column and row, and back, on the two grids of GK-2A AMI level 1B files.

Columns and rows are zero-based, run east and south, and are whole numbers in the middle of a pixel.

- `ko`, Lambert conformal conic: parallels 30 and 60 N, origin 38 N 126 E, WGS 84; 900 x 900 pixels of 2 km, centre of the upper-left one
  899 km west and north of the origin (global attributes of the files; 1 km and 500 m files share its outer edge).
- `fd`, the disk as the satellite sees it (CGMS 03, "LRIT/HRIT Global Specification", 4.4): scan angles are
  `(column - coff) * 2**16 / cfac` degrees. `coff` = `loff` = 2750.5 counts pixels from 1, so that the satellite looks at the middle of the
  5500 x 5500 grid and four pixels of 1 km fill one of 2 km.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eyegraft.errors import DataError

Floats = NDArray[np.float64]

KOREA = (123.5, 132.5, 32.5, 39.5)
"""West, east, south and north of the window that holds South Korea with its islands, in degrees."""

_WGS84 = "+ellps=WGS84 +units=m +no_defs"
_LAMBERT = f"+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=126 {_WGS84}"
_HEIGHT_M = 42_164_000.0 - 6_378_137.0  # above the ellipsoid; the files give the distance from the Earth's centre
_DISK = f"+proj=geos +h={_HEIGHT_M} +lon_0=128.2 +sweep=y {_WGS84}"
_CFAC = 20_425_338.9

BEYOND_DISK = "beyond the disk that the satellite sees"
OUTSIDE_GRID = "outside the grid"


@dataclass(frozen=True)
class Grid:
    """A regular grid of square pixels in projected metres.

    Attributes:
        area: `ko` or `fd`, as in file names.
        crs: of the projected metres, for PROJ.
        shape: rows, columns.
        x0_m, y0_m: centre of pixel (column 0, row 0).
        step_m: side of a pixel; in the geostationary grid its side below the satellite.
        first: column and row of pixel (0, 0) in the whole grid; not (0, 0) in a window.
    """

    area: str
    crs: str
    shape: tuple[int, int]
    x0_m: float
    y0_m: float
    step_m: float
    first: tuple[int, int] = (0, 0)

    @property
    def gsd_m(self) -> float:
        """Nominal side of a pixel on the ground, in metres."""
        return round(self.step_m / 100) * 100.0

    def to_pixel(self, lon: ArrayLike, lat: ArrayLike) -> tuple[Floats, Floats]:
        """Degrees to (column, row), with fractions; NaN where the satellite does not see the place. Outside the frame they run on."""
        x, y = _projection(self.crs)(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
        column, row = (x - self.x0_m) / self.step_m, (self.y0_m - y) / self.step_m
        seen = np.isfinite(column) & np.isfinite(row)
        return np.where(seen, column, np.nan), np.where(seen, row, np.nan)

    def to_lonlat(self, column: ArrayLike, row: ArrayLike) -> tuple[Floats, Floats]:
        """(column, row) to degrees east and north; NaN in space."""
        x = self.x0_m + np.asarray(column, np.float64) * self.step_m
        y = self.y0_m - np.asarray(row, np.float64) * self.step_m
        lon, lat = _projection(self.crs)(x, y, inverse=True)
        on_earth = np.isfinite(lon) & np.isfinite(lat) & (np.abs(lat) <= 90)
        return np.where(on_earth, lon, np.nan), np.where(on_earth, lat, np.nan)

    def lonlats(self) -> tuple[Floats, Floats]:
        """Degrees east and north of every pixel centre, each [rows, columns]; NaN in space."""
        column, row = np.meshgrid(np.arange(self.shape[1]), np.arange(self.shape[0]))
        return self.to_lonlat(column, row)

    def missing(self, column: ArrayLike, row: ArrayLike, margin: int = 0) -> NDArray[np.object_]:
        """Why a place has no pixel: one of the two reasons of this module, or "" where it has one.

        Args:
            margin: pixels on each side that must be there too, 4 for a patch of 9 x 9.
        """
        column, row = np.atleast_1d(np.asarray(column, np.float64)), np.atleast_1d(np.asarray(row, np.float64))
        unseen = ~(np.isfinite(column) & np.isfinite(row))
        nearest_column, nearest_row = nearest(np.where(unseen, -1, column)), nearest(np.where(unseen, -1, row))
        inside = (nearest_column >= margin) & (nearest_column < self.shape[1] - margin)
        inside &= (nearest_row >= margin) & (nearest_row < self.shape[0] - margin)
        reasons = np.full(column.shape, "", dtype=object)
        reasons[~inside] = OUTSIDE_GRID
        reasons[unseen] = BEYOND_DISK
        return reasons

    def window(self, rows: slice, columns: slice) -> Grid:
        """The part of this grid in two slices with a start and a stop."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (0 <= rows.start < rows.stop <= self.shape[0] and 0 <= columns.start < columns.stop <= self.shape[1]):
            raise DataError(
                f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop} of the grid {self.area}",
                f"a window inside {self.shape[0]} rows and {self.shape[1]} columns",
                "give a smaller window",
            )
        return replace(
            self,
            shape=(height, width),
            x0_m=self.x0_m + columns.start * self.step_m,
            y0_m=self.y0_m - rows.start * self.step_m,
            first=(self.first[0] + columns.start, self.first[1] + rows.start),
        )

    def window_around(self, box: tuple[float, float, float, float] = KOREA, margin: int = 8) -> tuple[slice, slice]:
        """Rows and columns that hold a box of degrees (west, east, south, north), with `margin` pixels around it, cut at the frame.

        Raises:
            DataError: no pixel of the grid lies in the box.
        """
        west, east, south, north = box
        side = np.linspace(0, 1, 65)
        lon, lat = west + (east - west) * side, south + (north - south) * side
        ring_lon = np.concatenate([lon, lon, np.full_like(side, west), np.full_like(side, east)])
        ring_lat = np.concatenate([np.full_like(side, south), np.full_like(side, north), lat, lat])
        column, row = self.to_pixel(ring_lon, ring_lat)
        seen = np.isfinite(column)
        if not seen.any():
            raise DataError(f"the box {box} is not on the grid {self.area}", "west, east, south, north in degrees", "give another box")
        spans = []
        for values, size in ((row[seen], self.shape[0]), (column[seen], self.shape[1])):
            start, stop = int(np.floor(values.min())) - margin, int(np.ceil(values.max())) + margin + 1
            spans.append(slice(max(start, 0), min(stop, size)))
        if any(span.start >= span.stop for span in spans):
            raise DataError(f"the box {box} lies outside the grid {self.area}", "west, east, south, north in degrees", "give another box")
        return spans[0], spans[1]


def nearest(position: ArrayLike) -> NDArray[np.int64]:
    """The pixel that a fractional column or row falls into; halves go up, everywhere alike."""
    return np.floor(np.asarray(position, np.float64) + 0.5).astype(np.int64)


@cache
def grid_of(area: str, resolution_m: int = 2000) -> Grid:
    """The whole grid of an area (`ko`, `fd`) at 500, 1000 or 2000 m.

    Raises:
        DataError: a grid that is not known here.
    """
    if resolution_m not in (500, 1000, 2000) or area not in ("ko", "fd"):
        raise DataError(
            f"a file of the area {area!r} at {resolution_m} m",
            "`ko` (Korea, Lambert) or `fd` (full disk), at 500, 1000 or 2000 m",
            "give files named gk2a_ami_le1b_…_ko…lc_… or gk2a_ami_le1b_…_fd…ge_…",
        )
    times = 2000 // resolution_m
    if area == "ko":
        edge = 900_000.0 - resolution_m / 2
        return Grid("ko", _LAMBERT, (900 * times, 900 * times), -edge, edge, float(resolution_m))
    step = float(np.deg2rad(2**16 / _CFAC)) * _HEIGHT_M / times  # scan angle times height: the metres of PROJ's `geos`
    count = 5500 * times
    edge = (count - 1) / 2 * step
    return Grid("fd", _DISK, (count, count), -edge, edge, step)


@cache
def _projection(crs: str) -> Any:
    from pyproj import Proj

    return Proj(crs)
