"""Simulated scenes in the published format of GK-2A AMI level 1B, and station records drawn from the same simulated weather.

Each file says of itself `simulated = true`. The chain is that of a real scene, backwards: ground, sun and weather give the skin's
temperature, clouds and vapour; a one-layer atmosphere in each band gives the radiance at the satellite; noise is added; the calibration is
inverted to counts. The air temperature, which is the target, is made in `weather` from the same drivers and a random part of its own; only
the station records read it, no band does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eyegraft.files import write_atomically
from eyegraft.prepare.gk2a.bands import BANDS, REFLECTANCE, Band, radiance_of, to_counts
from eyegraft.prepare.gk2a.grid import KOREA, Grid, grid_of, nearest
from eyegraft.prepare.gk2a.read import Window
from eyegraft.prepare.gk2a.weather import READING_K, SITING_K, Weather, air_temperature, skin_temperature, weather_at
from eyegraft.prepare.gk2a.write import OFF_SCAN, write_band

Floats = NDArray[np.float64]

_SILENT = 0.005  # share of readings that are missing
_STRIP = 250  # rows at once: a full disk in one piece would take some ten gigabytes
_SUN_SW038 = 4.85  # solar radiance at 3.8 um over a white surface, mW m-2 sr-1 (cm-1)-1


@dataclass(frozen=True)
class Layer:
    """One absorbing layer between ground and satellite in an infrared band.

    Attributes:
        gas: optical depth that is always there; vapour: optical depth of 30 mm of precipitable water, both straight down.
        height_km: that it radiates from; vapour_km: how much higher per doubling of the vapour.
        depth_km: above which height it has thinned to 1/e.
        emissivity: of the ground in this band.
        noise_k: of the instrument near 300 K, one standard deviation.
    """

    gas: float
    vapour: float
    height_km: float
    vapour_km: float
    depth_km: float
    emissivity: float
    noise_k: float


# orders of magnitude of mid-latitude weighting functions; nothing here is fitted to a radiative transfer model
_LAYERS: Final = {
    "SW038": Layer(0.05, 0.08, 2.5, 0.0, 3, 0.96, 0.20),
    "WV063": Layer(1.50, 5.00, 7.2, 0.5, 7, 0.98, 0.15),
    "WV069": Layer(0.90, 3.50, 5.8, 0.5, 6, 0.98, 0.15),
    "WV073": Layer(0.50, 1.80, 4.2, 0.5, 5, 0.98, 0.15),
    "IR087": Layer(0.08, 0.28, 2.5, 0.2, 2, 0.95, 0.12),
    "IR096": Layer(0.75, 0.12, 9.5, 0.0, 40, 0.97, 0.12),
    "IR105": Layer(0.02, 0.18, 2.2, 0.2, 2, 0.97, 0.10),
    "IR112": Layer(0.02, 0.28, 2.2, 0.2, 2, 0.97, 0.10),
    "IR123": Layer(0.03, 0.42, 2.2, 0.2, 2, 0.97, 0.12),
    "IR133": Layer(0.80, 0.25, 4.0, 0.2, 9, 0.98, 0.20),
}

# reflectance of IGBP classes 0 to 16 in summer for VI004 VI005 VI006 VI008 NR013 NR016
_GROUND_ALBEDO: Final = np.array(
    [
        [0.05, 0.04, 0.03, 0.02, 0.01, 0.01],
        *[[0.03, 0.04, 0.04, 0.28, 0.2, 0.13]] * 5,
        *[[0.05, 0.07, 0.08, 0.28, 0.22, 0.22]] * 5,
        [0.03, 0.05, 0.05, 0.18, 0.1, 0.08],
        [0.05, 0.07, 0.08, 0.30, 0.22, 0.20],
        [0.09, 0.11, 0.13, 0.19, 0.18, 0.19],
        [0.05, 0.07, 0.08, 0.28, 0.22, 0.20],
        [0.85, 0.85, 0.84, 0.75, 0.3, 0.08],
        [0.14, 0.18, 0.25, 0.32, 0.3, 0.36],
    ]
)
_SNOW: Final = np.array([0.75, 0.75, 0.73, 0.65, 0.25, 0.08])
_BROWN: Final = np.array([1.2, 1.2, 1.5, 0.65, 1.1, 1.35])  # in winter, times the summer value of plants
_RAYLEIGH: Final = np.array([0.100, 0.070, 0.028, 0.008, 0.0, 0.0])
_CLEAR_AIR: Final = np.array([0.82, 0.82, 0.90, 0.95, 0.97, 0.96])
_CLOUD: Final = np.array([1.0, 1.0, 0.98, 0.97, 0.9, 0.65])


def scene_times(years: Iterable[int], per_year: int, seed: int = 0) -> list[datetime]:
    """Whole hours in UTC, drawn without repetition: each year's days in equal parts, hours of day and night alike."""
    draw = np.random.default_rng([seed, 1])
    rest = per_year % 24
    spread = np.concatenate([np.tile(np.arange(24), per_year // 24), np.arange(rest) * 24 // max(rest, 1)])
    times = []
    for year in years:
        start, days = datetime(year, 1, 1, tzinfo=UTC), 365 / per_year
        hours = draw.permutation(spread)
        times += [start + timedelta(days=int((part + draw.uniform()) * days), hours=int(hour)) for part, hour in enumerate(hours)]
    return times


def write_scene(
    folder: Path,
    time: datetime,
    seed: int,
    *,
    area: str = "ko",
    box: tuple[float, float, float, float] | None = KOREA,
    only: NDArray[np.bool_] | None = None,
    native: bool = False,
    bands: Sequence[Band] = tuple(BANDS.values()),
) -> list[Path]:
    """Write the files of one time.

    Args:
        box: west, east, south, north of the part that is filled, the rest is marked off-scan; None fills the whole grid.
        only: [rows, columns] of the whole grid, True where pixels are filled, in place of `box`.
        native: write the visible bands at 500 m and 1 km, as the instrument measures them, and not at 2 km.

    The same arguments give the same pixels. Noise, unlike the weather, depends on the part that is filled too.
    """
    whole = grid_of(area)
    rows, columns = _window(whole, box, only)
    finer = {band: 2000 // band.resolution_m if native else 1 for band in bands}
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    counts = {band: np.zeros((shape[0], times, shape[1], times), np.uint16) for band, times in finer.items()}
    good = np.zeros(shape, dtype=bool)
    for first in range(0, shape[0], _STRIP):
        strip = slice(first, min(first + _STRIP, shape[0]))
        inside = np.ones((strip.stop - first, shape[1]), bool) if only is None else only[rows, columns][strip]
        row, column = np.nonzero(inside)
        lon, lat = whole.to_lonlat(column + columns.start, row + first + rows.start)
        on_earth = np.isfinite(lon)
        if not on_earth.any():
            continue
        row, column = row[on_earth] + first, column[on_earth]
        good[row, column] = True
        weather = weather_at(lon[on_earth], lat[on_earth], time, seed)
        draw = np.random.default_rng([seed, int(time.timestamp()), area == "fd", first + rows.start, columns.start])
        radiances = {**_infrared(weather, bands), **_reflected(weather, bands)}
        for band, times in finer.items():
            counts[band][row, :, column, :] = _counts(band, radiances[band.name], times, draw)
    paths = []
    for band, times in finer.items():
        window: Window = (slice(rows.start * times, rows.stop * times), slice(columns.start * times, columns.stop * times))
        flags = None if good.all() else np.where(good, 0, OFF_SCAN).astype(np.uint8).repeat(times, 0).repeat(times, 1)
        values = counts.pop(band).reshape(shape[0] * times, shape[1] * times)
        paths.append(write_band(folder, band, area, 2000 // times, time, values, window, quality=flags))
    return paths


def pixels_around(area: str, lon: Floats, lat: Floats, radius: int) -> NDArray[np.bool_]:
    """[rows, columns] of the grid at 2 km: True in a square of 2 x radius + 1 pixels around each place [N] in degrees."""
    grid = grid_of(area)
    column, row = grid.to_pixel(lon, lat)
    found = np.zeros(grid.shape, dtype=bool)
    for x, y in zip(nearest(column), nearest(row), strict=True):
        found[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
    return found


def _window(grid: Grid, box: tuple[float, float, float, float] | None, only: NDArray[np.bool_] | None) -> Window:
    """The smallest one that holds what is filled."""
    if only is not None:
        row, column = np.flatnonzero(only.any(1)), np.flatnonzero(only.any(0))
        return slice(int(row[0]), int(row[-1]) + 1), slice(int(column[0]), int(column[-1]) + 1)
    return grid.window_around(box) if box is not None else (slice(0, grid.shape[0]), slice(0, grid.shape[1]))


def read_stations_at(stations: Any, times: Iterable[datetime], seed: int) -> Any:
    """What simulated thermometers show: a table station, time_utc, ta_k in kelvin; NaN where one gave nothing.

    Args:
        stations: index station, columns lat and lon in degrees, as `stations.read_stations` gives them.
    """
    import pandas as pd

    names = [str(name) for name in stations.index]
    lon, lat = stations["lon"].to_numpy(np.float64), stations["lat"].to_numpy(np.float64)
    siting = SITING_K * np.random.default_rng([seed, 2]).standard_normal(len(names))
    parts = []
    for time in times:
        draw = np.random.default_rng([seed, 3, int(time.timestamp())])
        kelvin = air_temperature(lon, lat, time, seed) + siting + READING_K * draw.standard_normal(len(names))
        kelvin[draw.random(len(names)) < _SILENT] = np.nan
        parts.append(pd.DataFrame({"station": names, "time_utc": pd.Timestamp(time), "ta_k": kelvin}))
    return pd.concat(parts, ignore_index=True)


def write_asos(path: Path, readings: Any, note: str = "") -> None:
    """Write readings as KMA's hourly ASOS records (`kma_sfctm2`): Korean time, tenths of a degree, all other columns missing (-9).

    Args:
        note: a comment in the second line.
    """
    columns = "# TM (KST) STN ... TA (C) in column 11, HM (%) in column 13, counted from 0"
    lines = ["#START7777", f"# simulated: no measurement {note}".rstrip(), columns]
    for station, time, kelvin in readings[["station", "time_utc", "ta_k"]].itertuples(index=False):
        cells = ["-9"] * 46
        cells[0], cells[1] = f"{time + timedelta(hours=9):%Y%m%d%H%M}", str(station)
        if np.isfinite(kelvin):
            cells[11], cells[13] = f"{kelvin - 273.15:.1f}", "50.0"
        lines.append(" ".join(cells))
    write_atomically(path, "\n".join([*lines, "#7777END", ""]))


def _infrared(weather: Weather, bands: Sequence[Band]) -> dict[str, Floats]:
    """Radiance of those of `bands` that are infrared, mW m-2 sr-1 (cm-1)-1."""
    skin, slant = skin_temperature(weather), 1 / _view_cosine(weather.lon, weather.lat)
    top_k = np.maximum(weather.air_mass_k - 6.3 * weather.cloud_top_km, 205)
    found = {}
    for band in bands:
        if not band.is_infrared:
            continue
        layer = _LAYERS[band.name]
        height = layer.height_km + layer.vapour_km * np.log2(np.maximum(weather.vapour_mm, 1) / 15)
        layer_k = np.maximum(weather.air_mass_k - 6.3 * height, 215)
        depth = (layer.gas + layer.vapour * weather.vapour_mm / 30) * slant
        through = np.exp(-depth)
        glow = radiance_of(band, layer_k)
        clear = through * layer.emissivity * radiance_of(band, skin) + (1 - through * layer.emissivity) * glow
        above = np.exp(-depth * np.exp(-weather.cloud_top_km / layer.depth_km))  # through what lies above the cloud
        cloudy = above * radiance_of(band, top_k) + (1 - above) * radiance_of(band, np.minimum(layer_k, top_k))
        radiance = (1 - weather.cloud) * clear + weather.cloud * cloudy
        if band.name == "SW038":
            radiance = radiance + (0.05 + 0.12 * weather.cloud) * np.maximum(weather.sun_cos, 0) * _SUN_SW038
        found[band.name] = radiance
    return found


def _reflected(weather: Weather, bands: Sequence[Band]) -> dict[str, Floats]:
    """Radiance of those of `bands` that reflect; none when the sun is down. As in real files it is not divided by the sun's height."""
    ground = weather.ground
    lit = np.maximum(weather.sun_cos, 0)
    thick = 40 * weather.cloud**2
    bright = 0.15 * thick / (2 + 0.15 * thick)  # two-stream albedo of a cloud, asymmetry 0.85
    cold = weather.air_mass_k - 6.0 * ground.elevation_m / 1000
    snow = np.where(ground.land, 0.6 / (1 + np.exp((cold - 268.5) / 1.0)), 0)
    brown = np.where(ground.land, (1 - weather.season) / 2, 0)
    found = {}
    for number, band in enumerate(REFLECTANCE):
        if band not in bands:
            continue
        below = _GROUND_ALBEDO[ground.igbp, number] * (1 + (_BROWN[number] - 1) * brown)
        below = below * (1 - snow) + _SNOW[number] * snow
        air = _CLEAR_AIR[number]
        if band.name == "NR013":  # vapour below swallows the light: only high clouds are seen
            ground_light, cloud_light = (
                np.exp(-0.6 * weather.vapour_mm),
                np.exp(-0.6 * weather.vapour_mm * np.exp(-weather.cloud_top_km / 2)),
            )
        else:
            ground_light = cloud_light = np.ones_like(lit)
        light = air**2 * (ground_light * (1 - bright) ** 2 * below + cloud_light * bright * _CLOUD[number])
        reflectance = (_RAYLEIGH[number] * (1 - 0.5 * bright) + light) * lit
        found[band.name] = reflectance / float(band.table.albedo or 1)
    return found


def _counts(band: Band, radiance: Floats, times: int, draw: np.random.Generator) -> NDArray[np.uint16]:
    """Radiance [N] with the noise of the instrument to counts [N, times, times]: a pixel in finer ones, with some texture."""
    size = (len(radiance), times, times)
    if band.is_infrared:
        step = radiance_of(band, np.array([300.0, 300.0 + _LAYERS[band.name].noise_k]))
        return to_counts(band, radiance[:, None, None] + (step[1] - step[0]) * draw.standard_normal(size, np.float32))
    texture = 1 + (0.05 if times > 1 else 0.01) * draw.standard_normal(size, np.float32)
    noise = 0.001 / float(band.table.albedo or 1) * draw.standard_normal(size, np.float32)
    return to_counts(band, radiance[:, None, None] * texture + noise)


def _view_cosine(lon: Floats, lat: Floats) -> Floats:
    """Cosine of the angle at the ground between the satellite at 128.2 E and the zenith, at least 0.1; the Earth taken as a sphere."""
    middle = np.cos(np.deg2rad(lat)) * np.cos(np.deg2rad(lon - 128.2))
    ratio = 42_164.0 / 6_371.0
    found: Floats = np.maximum((ratio * middle - 1) / np.sqrt(ratio**2 + 1 - 2 * ratio * middle), 0.1)
    return np.nan_to_num(found, nan=0.1)
