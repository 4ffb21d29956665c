"""A time series of rasters out of `.npz`, NetCDF or Zarr: one grid, north up and west left, read one moment at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from eyegraft.errors import DataError, PartError, nearest, shown

if TYPE_CHECKING:
    from eyegraft.prepare.raster_series import Config, Raster

_NETCDF = (".nc", ".nc4", ".cdf", ".h5")
_SAME_PLACE = 0.1  # of a pixel, by which the grid of an extra map may lie beside that of the series


@dataclass(frozen=True)
class Series:
    """Attributes:
    starts, ends: of the window of each raster, [T] datetime64[s]; a time belongs to it from its start until before its end.
    lat, lon: of the pixel centres, [H] falling and [W] rising, in degrees.
    bands: the bands at moment t, [C, H, W] float32, NaN where nothing was measured.
    extra: [E, H, W] float32, maps that do not change.
    """

    starts: NDArray[np.datetime64]
    ends: NDArray[np.datetime64]
    lat: NDArray[np.float64]
    lon: NDArray[np.float64]
    bands: Callable[[int], NDArray[np.float32]]
    extra: NDArray[np.float32]

    def moments(self, times: NDArray[np.datetime64]) -> NDArray[np.int64]:
        """The raster whose window holds each time [N]; -1 where none does."""
        found = np.searchsorted(self.starts, times, side="right") - 1
        inside = (found >= 0) & (times < self.ends[np.maximum(found, 0)])
        return np.where(inside, found, -1)

    def pixels(self, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.int64]:
        """Column and row [N, 2] of the pixel that holds each place; -1 outside the raster."""
        return np.stack([_nearest(self.lon, lon), _nearest(-self.lat, -lat)], axis=-1)

    def patches(self, moment: int, pixels: NDArray[np.int64], side: int) -> NDArray[np.float32]:
        """Patches [N, C + E, side, side] around pixels [N, 2]; beyond the edge bands are NaN, and maps that do not change go on."""
        half = side // 2
        around = ((0, 0), (half, half), (half, half))
        bands = np.pad(self.bands(moment), around, constant_values=np.nan)
        maps = np.concatenate([bands, np.pad(self.extra, around, mode="edge")])
        windows = sliding_window_view(maps, (side, side), axis=(1, 2))
        return np.ascontiguousarray(windows[:, pixels[:, 1], pixels[:, 0]].swapaxes(0, 1))


@contextmanager
def open_series(source: Path, config: Config) -> Iterator[Series]:
    """The series and the maps beside it.

    Raises:
        DataError: no such file or variable, other dimensions, coordinates or times that make no grid and no series.
        PartError: a library for the format is not installed.
    """
    raster, path = config.raster, source / config.raster.file
    with _opened(path) as variables:
        named = [_Variable(path, variables, name) for name in raster.variables]
        lat, lon = _axis(path, variables, raster.lat, 90), _axis(path, variables, raster.lon, 360)
        starts = _starts(path, variables, raster)
        expected: tuple[int, ...] = (len(starts), len(lat), len(lon))
        if len(named) < len(config.sensor.bands) or (len(named) == 1 and len(named[0].shape) == 4):
            expected = (len(starts), len(config.sensor.bands), len(lat), len(lon))
        for one in named:
            one.arrange(raster.time, raster.lat, raster.lon)
            if one.shape != expected:
                words = "time, band, lat, lon" if len(expected) == 4 else "time, lat, lon"
                fix = "name raster.variables, raster.time, raster.lat and raster.lon, and as many sensor.bands as there are"
                raise DataError(f"{path}: {one.name} is {list(one.shape)}", f"[{words}] = {list(expected)}", fix)
        rows = slice(None, None, -1) if lat[0] < lat[-1] else slice(None)
        columns = slice(None, None, -1) if lon[0] > lon[-1] else slice(None)

        def bands(moment: int) -> NDArray[np.float32]:
            maps = np.concatenate([np.asarray(one.at(moment), dtype=np.float32).reshape(-1, len(lat), len(lon)) for one in named])
            bad = ~np.isfinite(maps) if raster.fill is None else ~np.isfinite(maps) | (maps == np.float32(raster.fill))
            return np.where(bad, np.float32(np.nan), maps)[:, rows, columns]

        length = np.timedelta64(round(raster.window_days * 86_400), "s")
        ends = np.minimum(starts + length, np.append(starts[1:], starts[-1] + length))
        extra = [_map(source, config, name, lat, lon)[rows, columns] for name in config.extra]
        maps = np.stack(extra) if extra else np.zeros((0, len(lat), len(lon)), np.float32)
        yield Series(starts, ends, lat[rows], lon[columns], bands, maps)


class _Variable:
    """One array of a file, read a moment at a time where the format can."""

    def __init__(self, path: Path, variables: Any, name: str) -> None:
        if name not in variables:
            there = [str(one) for one in variables]
            raise DataError(f"{path}: no variable {name!r}", f"one of {shown(there, 20)}", nearest(name, there))
        self.path, self.name, self._data = path, name, variables[name]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._data.shape)

    def arrange(self, *wanted: str) -> None:
        """NetCDF and Zarr name their dimensions: bring these to (time, …, lat, lon). Others are taken to be in that order."""
        dims = getattr(self._data, "dims", None)
        if dims is not None and set(wanted[-2:]) <= set(dims):
            first = [name for name in wanted[:-2] if name in dims]
            self._data = self._data.transpose(*first, ..., *wanted[-2:])

    def at(self, moment: int) -> Any:
        return self._data[moment]

    def whole(self) -> NDArray[Any]:
        return np.asarray(self._data)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The variables of a file by name."""
    if not path.exists():
        raise DataError(f"{path} is not there", "the raster, as .npz, NetCDF or Zarr", "set prepare.folder, or the name of the file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                yield {name: archive[name] for name in archive.files}
            return
        import xarray

        if path.suffix not in (*_NETCDF, ".zarr"):
            raise DataError(f"{path}: {path.suffix or 'no ending'}", f".npz, .zarr or {', '.join(_NETCDF)}", "convert it")
        with xarray.open_zarr(path) if path.suffix == ".zarr" else xarray.open_dataset(path, engine="h5netcdf") as dataset:
            yield {str(name): dataset[name] for name in dataset.variables}
    except ImportError as error:
        package = "zarr" if path.suffix == ".zarr" else "eyegraft[satellite]"
        raise PartError(f"{path}: {error}", f"a library for {path.suffix}", f"pip install '{package}'") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", "a whole file of arrays", "write it again") from error


def _axis(path: Path, variables: Any, name: str, limit: float) -> NDArray[np.float64]:
    values = np.asarray(_Variable(path, variables, name).whole(), dtype=np.float64)
    steps = np.diff(values) if values.ndim == 1 else np.zeros(0)
    rising = steps.size > 0 and bool((steps > 0).all() or (steps < 0).all())
    if not rising or np.abs(values).max() > limit:
        given = f"{path}: {name} {list(values.shape)}" + (
            f" from {values[0]:g} to {values[-1]:g}" if values.ndim == 1 and values.size else ""
        )
        raise DataError(
            given, "one axis in degrees that only rises or only falls, of 2 pixels or more", "warp the raster to lat and lon first"
        )
    return values


def _starts(path: Path, variables: Any, raster: Raster) -> NDArray[np.datetime64]:
    """The beginning of each window, [T] datetime64[s], rising."""
    values = np.atleast_1d(_Variable(path, variables, raster.time).whole())
    wrong = f"{path}: {raster.time} holds {values.dtype} {shown(values[:3].tolist())}"
    if raster.year is not None:
        if values.dtype.kind not in "iuf" or (values != np.floor(values)).any() or values.min() < 1 or values.max() > 366:
            raise DataError(f"{wrong}, with raster.year {raster.year}", "days of the year, 1 to 366", "without raster.year, dates are read")
        year = raster.year if isinstance(raster.year, int) else _Variable(path, variables, raster.year).whole().astype(np.int64)
        first = (np.asarray(year) - 1970).astype("datetime64[Y]").astype("datetime64[D]")
        starts = (first + (values.astype(np.int64) - 1)).astype("datetime64[s]")
    elif values.dtype.kind in "MUS":
        try:
            starts = values.astype("datetime64[s]")
        except ValueError as error:
            raise DataError(wrong, "dates such as 2008-01-09", "write the times as dates, or set raster.year for days of a year") from error
    else:
        raise DataError(wrong, "dates", "set raster.year where these are days of a year; else write the times as dates")
    back = np.flatnonzero(~(np.diff(starts) > np.timedelta64(0, "s")))
    if np.isnat(starts).any() or back.size:
        place = int(back[0]) if back.size else int(np.flatnonzero(np.isnat(starts))[0])
        given = f"{path}: {raster.time} at {place} and {place + 1}: {shown(starts[place : place + 2].tolist())}"
        raise DataError(given, "times that rise, each once", "sort the series, and put rasters of one time together")
    return starts


def _map(source: Path, config: Config, name: str, lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.float32]:
    """A map that does not change, on the grid of the series and in its order."""
    chosen, raster = config.extra[name], config.raster
    path = source / chosen.file
    with _opened(path) as variables:
        one = _Variable(path, variables, chosen.variable)
        one.arrange(raster.lat, raster.lon)
        if raster.lat in variables and raster.lon in variables:
            for mine, key in ((lat, raster.lat), (lon, raster.lon)):
                theirs = np.asarray(_Variable(path, variables, key).whole(), dtype=np.float64)
                if theirs.shape != mine.shape or np.abs(theirs - mine).max() > _SAME_PLACE * np.abs(np.diff(mine)).min():
                    raise DataError(f"{path}: {key} is not that of {raster.file}", "one grid for all", f"resample extra.{name} to it")
        if one.shape != (len(lat), len(lon)):
            raise DataError(f"{path}: {one.name} is {list(one.shape)}", f"[lat, lon] = {[len(lat), len(lon)]}", f"resample extra.{name}")
        return np.asarray(one.whole(), dtype=np.float32)


def _nearest(axis: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pixel of a rising axis that holds each value; -1 beyond half a pixel outside."""
    edges = np.concatenate([[1.5 * axis[0] - 0.5 * axis[1]], (axis[1:] + axis[:-1]) / 2, [1.5 * axis[-1] - 0.5 * axis[-2]]])
    found = np.searchsorted(edges, values, side="right") - 1
    return np.where((found >= 0) & (found < len(axis)) & np.isfinite(values), found, -1)
