"""A simulated atmosphere over real ground: what drives both the bands of a satellite and the air temperature at a station.

Nothing here is a forecast or a measurement. Fields are sums of plane waves with random directions and phases (a Gaussian random field with
a chosen range of scales), so that any place and time can be asked for, in any order, with the same answer for the same seed.

The air temperature at 2 m and the bands share the air mass, the clouds, the sun and the ground. Each has parts that the other does not
know: bands see the skin of the ground with its own random part, through vapour and clouds; the air has a part of `LOCAL_K` that no band
sees, and a station adds its site (`SITING_K`, constant at a station) and its instrument (`READING_K`). No model can do better than
`noise_floor_k`.

Air does not answer to the ground right below the thermometer alone. At 3 m/s it comes from 11 km away within an hour, and takes on what
the skin there gave it (some tenths of a kelvin for each kelvin by which the skin is warmer), how clouded it was, how much of it was sea or
town. So heat, clouds, sea and town enter the air as means over `UPWIND`, a stretch of some kilometres to the west, where all weather of
this world comes from: a satellite sees it in the pixels around the station, not in the station's own. The smallest clouds are a few
kilometres wide, and variance falls with wave length as in observed cloud fields (power spectrum about k^-5/3).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eyegraft.prepare.gk2a import sun
from eyegraft.prepare.gk2a.ground import URBAN, Ground, ground_at

Floats = NDArray[np.float64]

LOCAL_K, SITING_K, READING_K = 0.8, 0.5, 0.3
LAPSE_K_PER_KM = 6.0
UPWIND = (-8.0, -5.0, -2.0, 1.0), (-4.0, 0.0, 4.0)
"""Kilometres east and north of a station: the places, each with each, whose ground and sky its air has passed within the hour."""
_KM_PER_DEGREE, _SHRINK = 111.2, float(np.cos(np.deg2rad(37)))  # of a degree of longitude at the latitude of Korea
_RASTER = 3000  # points of a raster from west to east, at most
_START = datetime(2020, 1, 1, tzinfo=UTC)


def noise_floor_k(*, new_station: bool) -> float:
    """Root mean square error in kelvin of a model that knows all but what is random: at known stations it can learn their sites."""
    return float(np.sqrt(LOCAL_K**2 + READING_K**2 + (SITING_K**2 if new_station else 0)))


@dataclass(frozen=True)
class Field:
    """A random field of mean 0 and variance 1.

    Attributes:
        name: with the seed it decides all phases.
        scales_km: shortest and longest wave.
        hours: after which it has changed.
        wind_kmh: it drifts east as fast as this.
        slope: amplitude grows with wave length to this power.
        count: of waves.
    """

    name: str
    scales_km: tuple[float, float]
    hours: float
    wind_kmh: float = 0.0
    slope: float = 0.5
    count: int = 96

    def _waves(self, seed: int, hours: float) -> tuple[Floats, Floats, NDArray[np.complex128]]:
        """Wave numbers in radians per degree of longitude and latitude, and complex amplitudes at a moment."""
        draw = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        low, high = np.log(self.scales_km)
        length = np.exp(draw.uniform(low, high, self.count))
        heading = draw.uniform(0, 2 * np.pi, self.count)
        east, north = 2 * np.pi / length * np.cos(heading), 2 * np.pi / length * np.sin(heading)
        turning = draw.normal(0, 1 / self.hours, self.count) - east * self.wind_kmh
        size = length**self.slope
        size *= np.sqrt(2 / (size**2).sum())
        amplitude = size * np.exp(1j * (draw.uniform(0, 2 * np.pi, self.count) + turning * hours))
        return east * _KM_PER_DEGREE * _SHRINK, north * _KM_PER_DEGREE, amplitude

    def at(self, lon: Floats, lat: Floats, hours: float, seed: int) -> Floats:
        """Values at places in degrees, in the shape of `lon`.

        Many places are read from a raster, where the sum over waves is one product of two matrices. It has six points to the shortest
        wave, or fewer if places lie more than some 25 degrees apart, as in a full disk.
        """
        east, north, amplitude = self._waves(seed, hours)
        if lon.size <= 2000:
            phase = np.multiply.outer(lon, east) + np.multiply.outer(lat, north)
            found: Floats = (np.exp(1j * phase) @ amplitude).real
            return found
        from scipy.ndimage import map_coordinates

        west, south = float(np.nanmin(lon)), float(np.nanmin(lat))
        step = max(self.scales_km[0] / 6 / _KM_PER_DEGREE, (float(np.nanmax(lon)) - west) / _RASTER)
        x = west + step * np.arange(int((np.nanmax(lon) - west) / step) + 2)
        y = south + step * np.arange(int((np.nanmax(lat) - south) / step) + 2)
        rows = np.exp(1j * np.outer(y, north)) * amplitude
        columns = np.exp(1j * np.outer(east, x))
        raster = rows.real @ columns.real - rows.imag @ columns.imag  # the real part; in single precision threads would change counts
        places = np.stack([(lat - south) / step, (lon - west) / step])
        values: Floats = map_coordinates(raster, np.nan_to_num(places), order=1, mode="nearest", output=np.float64)
        return values


SYNOPTIC = Field("synoptic", (400, 3000), 30, 30)
MESO = Field("meso", (80, 400), 12, 20)
CLOUD = Field("cloud", (6, 900), 6, 40, slope=1 / 3, count=192)
CLOUD_TOP = Field("cloud top", (60, 900), 10, 40)
VAPOUR = Field("vapour", (60, 1500), 15, 30)
SOIL = Field("soil", (8, 120), 100, slope=0.2, count=192)
LOCAL = Field("air alone", (12, 60), 3, slope=0.2, count=192)


@dataclass(frozen=True)
class Weather:
    """The state over given places at one time, all arrays of one shape.

    Attributes:
        ground: what lies below.
        air_mass_k: temperature of the air mass, reduced to sea level, without day and night.
        cloud: opacity of the clouds, 0 to 1; cloud_top_km: their height.
        vapour_mm: precipitable water.
        sun_cos: cosine of the sun's zenith angle, below 0 at night.
        season: 1 in the middle of summer, -1 in the middle of winter.
        sea_k: temperature of the sea's surface, everywhere.
        solar_hour: local solar time.
    """

    ground: Ground
    lon: Floats
    lat: Floats
    hours: float
    seed: int
    air_mass_k: Floats
    cloud: Floats
    cloud_top_km: Floats
    vapour_mm: Floats
    sun_cos: Floats
    season: float
    sea_k: Floats
    solar_hour: Floats


def weather_at(lon: ArrayLike, lat: ArrayLike, time: datetime, seed: int) -> Weather:
    """The state at places in degrees and a time in UTC."""
    x, y = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    ground = ground_at(x, y)
    hours = (time - _START).total_seconds() / 3600
    day = time.timetuple().tm_yday + time.hour / 24
    season, sea_season = float(np.cos(2 * np.pi * (day - 208) / 365.25)), float(np.cos(2 * np.pi * (day - 235) / 365.25))
    synoptic, cloud_field = SYNOPTIC.at(x, y, hours, seed), CLOUD.at(x, y, hours, seed)
    north = np.clip(np.nan_to_num(y, nan=36.0), 0, 60) - 36
    air_mass = 286.0 - north * (0.75 - 0.3 * season) + 12.5 * season + 3.5 * synoptic + 1.2 * MESO.at(x, y, hours, seed)
    cloud = 1 / (1 + np.exp(-4 * (cloud_field - 0.15 - 0.25 * synoptic)))
    top = 1.5 + 9 / (1 + np.exp(-(1.2 * CLOUD_TOP.at(x, y, hours, seed) + 0.8 * cloud_field)))
    vapour = 12 * np.exp(0.05 * (air_mass - 281) + 0.25 * VAPOUR.at(x, y, hours, seed) - ground.elevation_m / 2200)
    sun_cos = np.cos(np.deg2rad(sun.zenith_at(np.nan_to_num(x), np.nan_to_num(y), time).astype(np.float64)))
    return Weather(
        ground=ground,
        lon=x,
        lat=y,
        hours=hours,
        seed=seed,
        air_mass_k=air_mass,
        cloud=cloud,
        cloud_top_km=top,
        vapour_mm=vapour,
        sun_cos=sun_cos,
        season=season,
        sea_k=289.5 - 0.7 * north + 7.0 * sea_season,
        solar_hour=(time.hour + time.minute / 60 + np.nan_to_num(x) / 15) % 24,
    )


def skin_temperature(weather: Weather) -> Floats:
    """Kelvin of the surface that the bands see: heated by the sun where it is dry and bare, cooled by clear nights."""
    soil = SOIL.at(weather.lon, weather.lat, weather.hours, weather.seed)
    on_land = weather.air_mass_k - LAPSE_K_PER_KM * weather.ground.elevation_m / 1000 + _heat(weather, soil)
    return np.where(weather.ground.land, on_land, weather.sea_k + 0.3 * soil)


def air_temperature(lon: ArrayLike, lat: ArrayLike, time: datetime, seed: int) -> Floats:
    """Kelvin of the air at 2 m over places [N] in degrees: what stations read, with its own part of `LOCAL_K` that no band sees."""
    here = weather_at(lon, lat, time, seed)
    east, north = np.meshgrid(*UPWIND)
    around_lat = here.lat[:, None] + north.ravel() / _KM_PER_DEGREE
    around_lon = here.lon[:, None] + east.ravel() / _KM_PER_DEGREE / np.cos(np.deg2rad(here.lat[:, None]))
    around = weather_at(around_lon, around_lat, time, seed)  # [N, places upwind]
    land = around.ground.land
    share = land.mean(1)
    soil = SOIL.at(around_lon, around_lat, around.hours, seed)
    heat = np.where(land, _heat(around, soil), 0).mean(1)
    town = (around.ground.igbp == URBAN).mean(1) * (0.8 - 0.6 * np.maximum(here.sun_cos, 0))
    swing = (3.5 + 0.5 * here.season) * ((1 - 0.6 * around.cloud) * land).mean(1) + 0.6 * (1 - share)
    daily = swing * np.cos(2 * np.pi * (here.solar_hour - 15) / 24)
    base = here.air_mass_k * (0.5 + 0.5 * share) + here.sea_k * (0.5 - 0.5 * share)
    local = LOCAL_K * LOCAL.at(here.lon, here.lat, here.hours, seed)
    found: Floats = base + daily + town + _TAKEN_ON * heat - LAPSE_K_PER_KM * here.ground.elevation_m / 1000 + local
    return found


def _heat(weather: Weather, soil: Floats) -> Floats:
    """By how many kelvin the skin of land is warmer than the air mass over it."""
    lit, clear = np.maximum(weather.sun_cos, 0), 1 - weather.cloud
    sun_and_sky = _DRYNESS[weather.ground.igbp] * 17 * lit**0.9 * (1 - 0.75 * weather.cloud) - 3.5 * clear * np.exp(-4 * lit)
    found: Floats = sun_and_sky + 1.2 * soil + 1.0 * (weather.ground.igbp == URBAN)
    return found


# how far the sun heats the skin of each IGBP class, relative to grass: forests and wetlands evaporate, towns and deserts do not
_DRYNESS = np.array([0, 0.45, 0.4, 0.5, 0.5, 0.5, 0.9, 1.0, 0.75, 0.9, 0.9, 0.4, 0.85, 1.15, 0.8, 0.1, 1.3])
_TAKEN_ON = 0.25  # kelvin of the air for each kelvin by which the skin upwind is warmer
