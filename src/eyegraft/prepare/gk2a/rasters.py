"""What lies under the pixels of a grid: elevation, land-sea mask and land cover, from the user's rasters or the simulated ground.

A raster is a `.npy` file [rows, columns] on the whole 2 km grid of the scenes, or a file that xarray reads (NetCDF) with latitudes and
longitudes as one-dimensional coordinates, which is sampled at the nearest cell. `FILE#VARIABLE` names one of several variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError, shown
from eyegraft.prepare.gk2a import Rasters
from eyegraft.prepare.gk2a.grid import Grid, grid_of
from eyegraft.prepare.gk2a.ground import ground_at

NO_CLASS = 255
_CLASSES = 17
_LATITUDES, _LONGITUDES = ("lat", "latitude"), ("lon", "longitude")


def identity(rasters: Rasters, base: Path) -> dict[str, Any]:
    """Which files these are, with size and time of change.

    Raises:
        DataError: one is not there.
    """
    found = {}
    for name, file in rasters.model_dump(exclude_none=True).items():
        path = base / str(file).partition("#")[0]
        try:
            facts = path.stat()
        except OSError:
            raise DataError(
                f"prepare.rasters.{name}: {path} is not there", "a .npy on the grid, or a NetCDF file", "check the path"
            ) from None
        found[name] = {"file": file, "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}
    return found


@dataclass(frozen=True)
class Surface:
    """On a window of a grid, all [H, W].

    Attributes:
        lon, lat: degrees; NaN in space.
        dem: float32 metres, 0 where the raster lies below the sea; lsmask: float32 as in the raster; NaN where a raster ends.
        landcover: IGBP class, `NO_CLASS` where the raster has none; None without a raster.
    """

    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    dem: NDArray[np.float32]
    lsmask: NDArray[np.float32]
    landcover: NDArray[np.uint8] | None


@lru_cache(maxsize=2)
def surface(grid: Grid, rasters: Rasters | None, base: Path) -> Surface:
    """The surface under a window; read once a process.

    Args:
        rasters: None takes the ground that simulated scenes stand on.
        base: folder that their paths are relative to.

    Raises:
        DataError: a raster cannot be read or does not fit the grid.
    """
    lon, lat = grid.lonlats()
    if rasters is None:
        ground = ground_at(lon, lat)
        return Surface(lon, lat, ground.elevation_m.astype(np.float32), ground.land.astype(np.float32), ground.igbp)
    dem = _sampled(base, rasters.dem, grid, lon, lat)
    lsmask = _sampled(base, rasters.lsmask, grid, lon, lat)
    landcover = None
    if rasters.landcover is not None:
        classes = _sampled(base, rasters.landcover, grid, lon, lat)
        classes = np.where(classes == _CLASSES, 0, classes)
        known = (classes >= 0) & (classes < _CLASSES)
        landcover = np.where(known, classes, NO_CLASS).astype(np.uint8)
    return Surface(lon, lat, np.where(dem < 0, np.float32(0), dem), lsmask, landcover)


def _sampled(base: Path, given: str, grid: Grid, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float32]:
    name, _, variable = given.partition("#")
    path = base / name
    return _from_array(path, grid) if path.suffix == ".npy" else _from_degrees(path, variable, lon, lat)


def _from_array(path: Path, grid: Grid) -> NDArray[np.float32]:
    whole = grid_of(grid.area)
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False).squeeze()
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}", f"a NumPy array of shape {whole.shape}", "save the raster again with numpy.save") from None
    if stored.shape != whole.shape:
        raise DataError(
            f"{path}: shape {stored.shape}", f"{whole.shape}, the whole grid {grid.area} of 2 km", "resample the raster to that grid"
        )
    column, row = grid.first
    return np.asarray(stored[row : row + grid.shape[0], column : column + grid.shape[1]], dtype=np.float32)


def _from_degrees(path: Path, variable: str, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float32]:
    import xarray

    try:
        with xarray.open_dataset(path) as stored:
            values = _variable(path, stored, variable)
            (rows, south_north), (columns, west_east) = _axis(path, values, _LATITUDES), _axis(path, values, _LONGITUDES)
            east = lon % 360 if west_east.max() > 180 else lon
            row, column = _nearest(south_north, lat), _nearest(west_east, east)
            there = (row >= 0) & (column >= 0)
            if not there.any():
                raise DataError(
                    f"{path}: {south_north.min():g} to {south_north.max():g} N, {west_east.min():g} to {west_east.max():g} E",
                    f"a raster that holds {np.nanmin(lat):g} to {np.nanmax(lat):g} N, {np.nanmin(lon):g} to {np.nanmax(lon):g} E",
                    "give a raster of the area of the scenes",
                )
            top, left = int(row[there].min()), int(column[there].min())
            part = values.isel({rows: slice(top, int(row[there].max()) + 1), columns: slice(left, int(column[there].max()) + 1)})
            found = np.asarray(part.transpose(rows, columns).values, dtype=np.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            "a NetCDF file with latitude and longitude, or a .npy on the grid",
            "convert the raster (GeoTIFF: gdal_translate -of netCDF)",
        ) from error
    return np.where(there, found[np.where(there, row - top, 0), np.where(there, column - left, 0)], np.float32(np.nan))


def _variable(path: Path, stored: Any, wanted: str) -> Any:
    """The only variable over latitude and longitude, or the one that is named."""
    flat = {str(name): values.squeeze(drop=True) for name, values in stored.data_vars.items()}
    maps = {name: values for name, values in flat.items() if values.ndim == 2}
    if wanted in maps:
        return maps[wanted]
    if wanted or len(maps) != 1:
        given = f"{path}: no map {wanted}" if wanted else f"{path}: {len(maps)} maps"
        raise DataError(f"{given}; there {shown(list(maps), 10) or 'is none'}", "one map of numbers", f"name it: {path.name}#VARIABLE")
    return next(iter(maps.values()))


def _axis(path: Path, values: Any, names: tuple[str, ...]) -> tuple[str, NDArray[np.float64]]:
    for dimension in values.dims:
        coordinate = values.coords.get(dimension)
        said = {str(dimension).lower(), str(getattr(coordinate, "attrs", {}).get("standard_name", "")).lower()}
        if coordinate is not None and said & set(names) and coordinate.size > 1:
            return str(dimension), np.asarray(coordinate.values, dtype=np.float64)
    raise DataError(
        f"{path}: a map over {', '.join(str(name) for name in values.dims)}",
        f"{names[1]}s as a one-dimensional coordinate, called {' or '.join(names)}",
        "give a raster in degrees, or a .npy on the grid of the scenes",
    )


def _nearest(axis: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cell that each place falls into; -1 beyond the raster. The axis may run either way."""
    order = 1 if axis[-1] > axis[0] else -1
    rising = axis[::order]
    edges = np.concatenate([[1.5 * rising[0] - 0.5 * rising[1]], (rising[1:] + rising[:-1]) / 2, [1.5 * rising[-1] - 0.5 * rising[-2]]])
    cell = np.searchsorted(edges, np.nan_to_num(places, nan=-1e9), side="right") - 1
    inside = (cell >= 0) & (cell < len(axis))
    found: NDArray[np.int64] = np.where(inside, cell if order == 1 else len(axis) - 1 - cell, -1)
    return found
