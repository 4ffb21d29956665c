"""GK-2A AMI level 1B files to numbers: one band a file, sixteen of one time a scene on one 2 km grid.

Only the window that is asked for is read and computed: a full disk of one band costs more than a second, Korea in it a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError, shown
from eyegraft.prepare.gk2a.bands import BANDS, BRIGHTNESS, REFLECTANCE, Band, calibration_of, to_values
from eyegraft.prepare.gk2a.grid import KOREA, Grid, grid_of

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Window = tuple[slice, slice]

EPOCH = datetime(2000, 1, 1, 12, tzinfo=UTC)
"""`observation_start_time` counts seconds from here."""
VARIABLE = "image_pixel_values"
_NAME = re.compile(r"gk2a_ami_le1b_([a-z]{2}\d{3})_(fd|ko|ea|la)(005|010|020)(ge|lc)_(\d{12})\.nc")
_PROJECTION = {"ko": "lc", "fd": "ge"}
_LATE = timedelta(minutes=10)
_DARK = 0.02


@dataclass(frozen=True)
class FileName:
    """What a file's name says: band, area, side of a pixel, nominal time in UTC."""

    band: Band
    area: str
    resolution_m: int
    time: datetime


@dataclass(frozen=True)
class SceneFiles:
    """The files of one area and one time; band name -> path. `missing` lists the bands without a file."""

    area: str
    time: datetime
    files: Mapping[str, Path]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in BANDS if name not in self.files)


@dataclass(frozen=True)
class BandImage:
    """One band on a window of the 2 km grid.

    Attributes:
        values: [H, W] reflectance or kelvin, NaN where `good` is False.
        good: [H, W] True where the quality bits and the radiance allow its use.
        flagged: [H, W] True where the quality bits forbid it.
        start, end: of the scan, UTC.
        calibration: where the coefficients come from.
        simulated: the file says of itself that it is.
    """

    values: Floats
    good: Bools
    flagged: Bools
    grid: Grid
    start: datetime
    end: datetime
    calibration: str
    simulated: bool


@dataclass(frozen=True)
class Scene:
    """Sixteen bands of one time on one grid.

    Attributes:
        brightness_k: [10, H, W] kelvin, in the order of `bands.BRIGHTNESS`; NaN where not good.
        reflectance: [6, H, W] in the order of `bands.REFLECTANCE`, not normalised by the sun's height; NaN where not good.
        sza_deg: [H, W] as stored beside pre-extracted arrays; None: compute it with `sun.zenith`.
        flagged: [16, H, W] True where quality bits forbid the use of a band; None where there are none, as in pre-extracted arrays.
        time: nominal, UTC; start, end: of the scan.
        night: no reflected light anywhere: the six reflectances are 0 and say nothing.
        simulated: at least one file says of itself that it is.
        notes: what a report should say.
    """

    brightness_k: Floats
    reflectance: Floats
    grid: Grid
    time: datetime
    start: datetime
    end: datetime
    night: bool
    simulated: bool = False
    sza_deg: Floats | None = None
    flagged: Bools | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def good(self) -> Bools:
        """[16, H, W] True where a band has a value; brightness temperatures first."""
        found: Bools = np.isfinite(np.concatenate([self.brightness_k, self.reflectance]))
        return found


def parse_name(path: Path) -> FileName:
    """What a file's name says.

    Raises:
        DataError: another name, an unknown band or time, or a grid that is not read here.
    """
    found = _NAME.fullmatch(path.name)
    expected = "gk2a_ami_le1b_<band>_<ko|fd><005|010|020><lc|ge>_<UTC YYYYMMDDHHMM>.nc"
    if found is None:
        raise DataError(f"the file name {path.name}", expected, "keep the names that the files were published under")
    channel, area, resolution, projection, stamp = found.groups()
    if channel.upper() not in BANDS:
        raise DataError(f"{path.name}: band {channel}", f"one of {', '.join(BANDS).lower()}", "give level 1B files of AMI")
    if _PROJECTION.get(area) != projection:
        raise DataError(
            f"{path.name}: grid {area}…{projection}", "ko…lc (Korea) or fd…ge (full disk)", "order the files in one of these two grids"
        )
    try:
        time = datetime.strptime(stamp, "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError:
        raise DataError(f"{path.name}: the time {stamp}", expected, "keep the names that the files were published under") from None
    return FileName(BANDS[channel.upper()], area, int(resolution) * 100, time)


def find_scenes(root: Path) -> list[SceneFiles]:
    """Every area and time with at least one level 1B file below `root`, whole or not, in order of time.

    Of a band at two resolutions the file of 2 km is taken, which needs no averaging. Other files are passed over.

    Raises:
        DataError: two files of the same name, or no level 1B file at all.
    """
    groups: dict[tuple[datetime, str], dict[str, Path]] = {}
    for path in sorted(root.rglob("gk2a_ami_le1b_*.nc")):
        name = parse_name(path)
        files = groups.setdefault((name.time, name.area), {})
        other = files.get(name.band.name)
        if other is not None and other.name == path.name:
            raise DataError(f"{path.name} lies in {other.parent} and in {path.parent}", "each file once", "take one of them away")
        if other is None or parse_name(other).resolution_m < name.resolution_m:
            files[name.band.name] = path
    if not groups:
        raise DataError(
            f"{root}: no file gk2a_ami_le1b_*.nc", "a folder with level 1B files of GK-2A AMI", "set the folder that holds them"
        )
    return [SceneFiles(area, time, files) for (time, area), files in sorted(groups.items())]


def read_band(path: Path, window: Window | None = None, *, conditional: bool = False) -> BandImage:
    """One file to reflectance or brightness temperature on the 2 km grid.

    Args:
        window: rows and columns of the 2 km grid; None takes all. Finer files are averaged over the good pixels of each 2 km one, which is
            missing if fewer than half of them are good.
        conditional: take pixels whose quality bits say "conditionally usable" too.

    Raises:
        DataError: the name, the file, its shape, its times or its calibration cannot be used.
    """
    name = parse_name(path)
    times = 2000 // name.resolution_m
    whole = grid_of(name.area)
    rows, columns = window or (slice(0, whole.shape[0]), slice(0, whole.shape[1]))
    grid = whole.window(rows, columns)
    with _opened(path) as stored:
        attributes = dict(stored.attrs)
        pixels = stored.variables.get(VARIABLE)
        if pixels is None:
            raise DataError(f"{path}: no variable {VARIABLE}", "a level 1B file of AMI", "download the file again")
        _same_grid(path, name, pixels.shape, attributes)
        start, end = _scan_times(path, name, attributes)
        bits = int(np.asarray(pixels.attrs.get("number_of_valid_bits_per_pixel", name.band.bits)).reshape(-1)[0])
        if bits != name.band.bits:
            raise DataError(
                f"{path}: {bits} valid bits a pixel", f"{name.band.bits} for {name.band.name}", "check that the band in the name is right"
            )
        raw = np.asarray(pixels[rows.start * times : rows.stop * times, columns.start * times : columns.stop * times], dtype=np.uint16)
    calibration = calibration_of(name.band, attributes, str(path))
    values = to_values(name.band, raw & np.uint16(2**bits - 1), calibration)
    allowed = raw >> 14 <= int(conditional)
    good = allowed & np.isfinite(values)
    if times > 1:
        values, good = _averaged(values, good, times)
        allowed = _enough(allowed, times)[1]
    values = np.where(good, values, np.float32(np.nan))
    return BandImage(values, good, ~allowed, grid, start, end, calibration.source, _says_simulated(attributes))


def read_scene(
    scene: SceneFiles, window: Window | None = None, *, box: tuple[float, float, float, float] | None = None, conditional: bool = False
) -> Scene:
    """All sixteen bands of one time.

    Args:
        window: rows and columns of the 2 km grid; `box`: degrees (west, east, south, north) in its place. With neither, the
            whole Korea grid, and of a full disk the window `grid.KOREA`.

    Raises:
        DataError: bands are missing, scans lie too far apart, or a file cannot be used.
    """
    if scene.missing:
        raise DataError(
            f"the scene of {scene.time:%Y-%m-%d %H:%M} UTC ({scene.area}) has no file for {shown(scene.missing, 16)}",
            "all sixteen bands",
            "download the missing files, or leave this time out",
        )
    if window is None and (box is not None or scene.area == "fd"):
        window = grid_of(scene.area).window_around(box or KOREA)
    images = {name: read_band(scene.files[name], window, conditional=conditional) for name in BANDS}
    names = [parse_name(path) for path in scene.files.values()]
    if len({(name.time, name.area) for name in names}) > 1:
        said = ", ".join(sorted({f"{name.area} {name.time:%Y-%m-%d %H:%M}" for name in names}))
        raise DataError(f"a scene of {said}", "files of one area and one time", "sort the files by area and time")
    starts = [image.start for image in images.values()]
    if max(starts) - min(starts) > timedelta(minutes=2):
        raise DataError(
            f"scene {scene.time:%Y-%m-%d %H:%M} UTC ({scene.area}): scans start between {min(starts):%H:%M:%S} and {max(starts):%H:%M:%S}",
            "all bands scanned together",
            "download the files of this time again",
        )
    reflectance = np.stack([images[band.name].values for band in REFLECTANCE])
    brightness = np.stack([images[band.name].values for band in BRIGHTNESS])
    tables = [name for name, image in images.items() if image.calibration != "the file"]
    return Scene(
        brightness,
        reflectance,
        next(iter(images.values())).grid,
        scene.time,
        min(starts),
        max(image.end for image in images.values()),
        night=is_dark(reflectance),
        simulated=any(image.simulated for image in images.values()),
        flagged=np.stack([images[band.name].flagged for band in (*BRIGHTNESS, *REFLECTANCE)]),
        notes=(f"calibrated by the table v3.0: {', '.join(tables)}",) if tables else (),
    )


def read_arrays(
    brightness: Path, reflectance: Path, sza: Path | None, time: datetime, area: str = "ko", window: Window | None = None
) -> Scene:
    """A scene that was extracted before: `.npy` files [10, H, W] in kelvin, [6, H, W] and [H, W] in degrees, on the whole grid of `area`.

    Args:
        window: rows and columns that are read; None takes all.

    Raises:
        DataError: a file is missing or damaged, has another shape, or needs pickle.
    """
    whole = grid_of(area)
    rows, columns = window or (slice(0, whole.shape[0]), slice(0, whole.shape[1]))
    bands = [
        _array(path, count, whole)[:, rows, columns] for path, count in ((brightness, len(BRIGHTNESS)), (reflectance, len(REFLECTANCE)))
    ]
    kelvin, reflected = (np.asarray(values, dtype=np.float32) for values in bands)
    angles = np.asarray(_array(sza, 0, whole)[rows, columns], dtype=np.float32) if sza is not None else None
    return Scene(kelvin, reflected, whole.window(rows, columns), time, time, time, night=is_dark(reflected), sza_deg=angles)


def is_dark(reflectance: Floats) -> bool:
    """Whether no part of a scene shows reflected light: fewer than one value in a thousand above 0.02."""
    return bool(np.mean(reflectance > _DARK) < 1e-3)


def is_simulated(path: Path) -> bool:
    """Whether a level 1B file says of itself that it is simulated."""
    with _opened(path) as stored:
        return _says_simulated(dict(stored.attrs))


def _says_simulated(attributes: Mapping[str, Any]) -> bool:
    return str(attributes.get("simulated", "false")).lower() == "true"


def _array(path: Path, count: int, grid: Grid) -> NDArray[Any]:
    """The file as it lies on the disk, bands first."""
    expected = (count, *grid.shape) if count else grid.shape
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {error}", f"a NumPy array of shape {expected}", "extract the scene again") from None
    if stored.shape != expected and stored.shape != (*expected[1:], count):
        raise DataError(
            f"{path}: shape {stored.shape}", f"{expected}, on the grid {grid.area} of 2 km", "extract the scene again on that grid"
        )
    bands_last = stored.shape != expected
    found: NDArray[Any] = np.moveaxis(stored, -1, 0) if bands_last else stored
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, open; damage found on opening or while reading is told in words."""
    try:
        import h5netcdf
    except ImportError:
        raise DataError("h5netcdf is not installed", "the packages of the extra `satellite`", "pip install 'eyegraft[satellite]'") from None
    try:
        with h5netcdf.File(path, "r") as stored:
            yield stored
    except FileNotFoundError:
        raise DataError(f"{path} is not there", "a level 1B file of AMI", "check the folder") from None
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read: {str(error).splitlines()[0]}",
            "a whole NetCDF-4 file",
            "it may be cut short: download it again",
        ) from error


def _same_grid(path: Path, name: FileName, shape: Iterable[int], attributes: Mapping[str, Any]) -> None:
    whole = grid_of(name.area, name.resolution_m)
    if tuple(shape) != whole.shape:
        raise DataError(
            f"{path}: {' x '.join(str(size) for size in shape)} pixels",
            f"{whole.shape[0]} x {whole.shape[1]} for {name.area} at {name.resolution_m} m",
            "the name says another grid than the file holds: download it again",
        )
    half = (whole.shape[1] + 1) / 2
    wanted = {"coff": half, "loff": half} if name.area == "fd" else {"upper_left_easting": whole.x0_m, "upper_left_northing": whole.y0_m}
    for key, value in wanted.items():
        given = attributes.get(key)
        if given is not None and abs(float(np.asarray(given).reshape(-1)[0]) - value) > max(abs(value) * 1e-6, 1e-6):
            raise DataError(f"{path}: {key} = {given}", f"{value}", "this grid is not the published one: its pixels would be misplaced")


def _scan_times(path: Path, name: FileName, attributes: Mapping[str, Any]) -> tuple[datetime, datetime]:
    found = []
    for key in ("observation_start_time", "observation_end_time"):
        if key in attributes:
            found.append(EPOCH + timedelta(seconds=float(np.asarray(attributes[key]).reshape(-1)[0])))
    start = found[0] if found else name.time
    end = found[1] if len(found) == 2 else start
    if abs(start - name.time) > _LATE or end < start:
        raise DataError(
            f"{path}: observed from {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC",
            f"within {_LATE.seconds // 60} minutes of the time in its name, {name.time:%Y-%m-%d %H:%M} UTC",
            "the file was renamed or is damaged: download it again",
        )
    return start, end


def _averaged(values: Floats, good: Bools, times: int) -> tuple[Floats, Bools]:
    """Mean of the good pixels of each block of `times` x `times`; missing where fewer than half are good."""
    height, width = values.shape[0] // times, values.shape[1] // times
    blocks = np.where(good, values, 0).reshape(height, times, width, times).sum((1, 3), dtype=np.float32)
    counts, enough = _enough(good, times)
    return (blocks / np.maximum(counts, 1)).astype(np.float32), enough


def _enough(good: Bools, times: int) -> tuple[NDArray[np.int64], Bools]:
    """How many pixels of each block are good, and whether that is half of them."""
    height, width = good.shape[0] // times, good.shape[1] // times
    counts = good.reshape(height, times, width, times).sum((1, 3))
    return counts, counts * 2 >= times**2
