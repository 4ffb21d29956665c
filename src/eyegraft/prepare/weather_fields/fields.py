"""What was measured, analysed or forecast, brought to the grid of a window; and what is derived from it.

Three sources lie in `fields.npz` (README.md): `stations`, hourly surface reports of one day; `storm`, six-hourly analyses of sixteen days;
and `model`, one forecast. A window is `ROWS` x `COLUMNS` nodes, 20 km apart, its first row in the north; every field below is
[ROWS, COLUMNS] with NaN where nothing is known. Winds are given as components along the map's x and y (`_x`, `_y`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eyegraft.prepare.weather_fields.projection import AWIPS_211, MAP

Source = Literal["storm", "stations", "model"]
ROWS, COLUMNS, STEP_KM = 54, 72, 20.0
SIZE_KM = (COLUMNS * STEP_KM, ROWS * STEP_KM)
START = {"storm": datetime(1996, 1, 5), "stations": datetime(1995, 3, 18), "model": datetime(2007, 1, 24, 12)}
STEP_HOURS = {"storm": 6, "stations": 1, "model": 1}
NUM_TIMES = {"storm": 64, "stations": 24, "model": 1}

_MISSING = -32768
_UNITS = {"pressure_hpa": (0.1, 1000.0), "station_hpa": (0.1, 1000.0), "lapse_kkm": (0.01, 0.0)}  # step, offset; others below
_WHOLE = ("cape_jkg", "helicity1_m2s2", "height850_m", "freezing_m")
_TENTHS = ("stations/temperature_c", "stations/dewpoint_c", "stations/east_ms", "stations/north_ms")
_KAPPA_KM2 = 5.052 * (2 * 100.0 / np.pi) ** 2
"""Barnes' smoothing for stations 100 km apart (Koch, desJardins and Kocin 1983, eq. 12)."""
_GAMMA, _NEAR_KM, _AROUND_KM, _BUDDY = 0.3, 220.0, 400.0, 4.0
_COARSE = 2
"""Stations are analysed at every other node."""


@dataclass(frozen=True)
class Window:
    """A part of the map. `x`, `y`: its middle in km."""

    name: str
    x: float
    y: float

    def nodes(self, every: int = 1) -> tuple[Any, Any]:
        """Kilometres of the nodes, each [ROWS, COLUMNS]."""
        across = self.x + STEP_KM * (np.arange(0, COLUMNS, every) - (COLUMNS - 1) / 2)
        down = self.y - STEP_KM * (np.arange(0, ROWS, every) - (ROWS - 1) / 2)
        x, y = np.meshgrid(across, down)
        return x, y


def time_of(source: Source, index: int) -> datetime:
    return START[source] + timedelta(hours=STEP_HOURS[source] * index)


@cache
def stored() -> Mapping[str, Any]:
    """The arrays of `fields.npz` in their units, float64."""
    found: dict[str, Any] = {}
    with np.load(Path(__file__).with_name("fields.npz"), allow_pickle=False) as archive:
        for name in archive.files:
            values = archive[name]
            if values.dtype != np.int16 or name == "ground/points":
                found[name] = values
                continue
            step, offset = _UNITS.get(name.split("/")[1], (0.05, 0.0))
            step = 0.01 if name in ("stations/lat", "stations/lon") else 0.1 if name in _TENTHS else step
            step = 1.0 if name.split("/")[1] in _WHOLE else step
            found[name] = np.where(values == _MISSING, np.nan, values * step + offset)
    return found


def fields_of(source: Source, index: int, window: Window) -> dict[str, Any]:
    """Every field that the source has at this time, and those derived from them."""
    raw = {"storm": _storm, "stations": _stations, "model": _model}[source](index, window)
    lon, _ = MAP.to_degrees(*window.nodes())
    for end in ("", "500", "850"):
        if f"east{end}_ms" in raw:
            raw[f"wind{end}_x"], raw[f"wind{end}_y"] = MAP.to_map(raw[f"east{end}_ms"], raw[f"north{end}_ms"], lon)
    return {**raw, **_derived(raw, lon)}


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _storm(index: int, window: Window) -> dict[str, Any]:
    data = stored()
    lon, lat = MAP.to_degrees(*window.nodes())
    rows, columns = (lat - data["storm/lat"][0]) / 1.25, (lon - data["storm/lon"][0]) / 2.5
    names = ("pressure_hpa", "temperature_c", "east_ms", "north_ms", "east500_ms", "north500_ms")
    found = {name: sampled(data[f"storm/{name}"][index], rows, columns) for name in names}
    if index > 0:
        found["change6_hpa"] = found["pressure_hpa"] - sampled(data["storm/pressure_hpa"][index - 1], rows, columns)
    return found


def _model(index: int, window: Window) -> dict[str, Any]:
    data = stored()
    first_x, first_y = AWIPS_211.to_km(226.541 - 360, 12.19)
    x, y = AWIPS_211.to_km(*MAP.to_degrees(*window.nodes()))
    rows, columns = (y - first_y) / 81.271, (x - first_x) / 81.271
    found = {name.split("/")[1]: sampled(values, rows, columns) for name, values in data.items() if name.startswith("model/")}
    found["cape_jkg"] = np.maximum(found["cape_jkg"], 0.0)
    return found


def _stations(index: int, window: Window) -> dict[str, Any]:
    found = {}
    for name in ("temperature_c", "dewpoint_c", "pressure_hpa", "station_hpa", "east_ms", "north_ms"):
        x, y, values = reports(index, name)
        found[name] = barnes(x, y, values, window)
    found["dewpoint_c"] = np.minimum(found["dewpoint_c"], found["temperature_c"])
    if index >= 2:
        now, before = (_by_place(hour, "pressure_hpa") for hour in (index, index - 2))
        both = [place for place in now if place in before]
        x, y = np.array(both).T
        found["change2_hpa"] = barnes(x, y, np.array([now[place] - before[place] for place in both]), window)
    return found


def _by_place(hour: int, name: str) -> dict[tuple[float, float], float]:
    x, y, values = reports(hour, name)
    return dict(zip(zip(x.tolist(), y.tolist(), strict=True), values.tolist(), strict=True))


@cache
def reports(hour: int, name: str) -> tuple[Any, Any, Any]:
    """x and y in km and what stations reported at this hour; the first report of a place."""
    data = stored()
    values = data[f"stations/{name}"]
    here = (data["stations/hour"] == hour) & ~np.isnan(values)
    x, y = MAP.to_km(data["stations/lon"][here], data["stations/lat"][here])
    _, first = np.unique(np.stack([x, y]), axis=1, return_index=True)
    first = np.sort(first)
    return x[first], y[first], values[here][first]


def barnes(x: Any, y: Any, values: Any, window: Window) -> Any:
    """Reports of stations as a field: two passes of distance-weighted means (Barnes 1964; Koch et al. 1983).

    A report that lies more than four robust standard deviations off the first pass is left out. NaN where no station is near.
    """
    nodes = window.nodes(_COARSE)
    half = np.array(SIZE_KM) / 2 + _AROUND_KM
    near = (np.abs(x - window.x) < half[0]) & (np.abs(y - window.y) < half[1])
    x, y, values = x[near], y[near], values[near]
    if len(x) < 8:
        return np.full((ROWS, COLUMNS), np.nan)
    apart = _squares(x, y, x, y)
    alone = np.exp(-apart / _KAPPA_KM2)
    np.fill_diagonal(alone, 0.0)  # what its neighbours say of a station
    rest = values - alone @ values / np.maximum(alone.sum(1), 1e-9)
    spread = 1.4826 * np.median(np.abs(rest - np.median(rest))) + 0.05
    good = np.abs(rest) < _BUDDY * spread
    x, y, values, apart = x[good], y[good], values[good], apart[np.ix_(good, good)]
    there = _squares(nodes[0].ravel(), nodes[1].ravel(), x, y)
    first, at_stations = (np.exp(-squares / _KAPPA_KM2) for squares in (there, apart))
    guess, own = first @ values / (first.sum(1) + 1e-30), at_stations @ values / at_stations.sum(1)
    second = np.exp(-there / (_GAMMA * _KAPPA_KM2))
    guess = guess + second @ (values - own) / (second.sum(1) + 1e-30)
    guess[there.min(1) > _NEAR_KM**2] = np.nan
    coarse = guess.reshape(nodes[0].shape)
    rows, columns = np.meshgrid(np.arange(ROWS) / _COARSE, np.arange(COLUMNS) / _COARSE, indexing="ij")
    return sampled(coarse, rows, columns)


def _squares(x1: Any, y1: Any, x2: Any, y2: Any) -> Any:
    return (x1[:, None] - x2[None]) ** 2 + (y1[:, None] - y2[None]) ** 2


def sampled(field: Any, rows: Any, columns: Any) -> Any:
    """Values between grid points, by Catmull-Rom splines; NaN beside what is not known, the border repeated outside by one cell."""
    height, width = field.shape
    row, column = np.floor(rows).astype(int), np.floor(columns).astype(int)
    total = np.zeros(rows.shape)
    for down, by_row in enumerate(_cubic(rows - row), -1):
        line = np.clip(row + down, 0, height - 1)
        for across, by_column in enumerate(_cubic(columns - column), -1):
            total += by_row * by_column * field[line, np.clip(column + across, 0, width - 1)]
    outside = (rows < -1) | (rows > height) | (columns < -1) | (columns > width)
    return np.where(outside, np.nan, total)


def _cubic(share: Any) -> tuple[Any, Any, Any, Any]:
    square, cube = share**2, share**3
    first, last = (-cube + 2 * square - share) / 2, (cube - square) / 2
    return first, (3 * cube - 5 * square + 2) / 2, (-3 * cube + 4 * square + share) / 2, last


# ── derived ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _derived(raw: Mapping[str, Any], lon: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"speed_ms": np.hypot(raw["wind_x"], raw["wind_y"])}
    per_3h = 3 * 3600.0
    if "change6_hpa" in raw or "wind500_x" in raw:
        found["low_advection_k3h"] = _advection(raw["temperature_c"], raw["wind_x"], raw["wind_y"]) * per_3h
    if "wind500_x" in raw:
        found["speed500_ms"] = np.hypot(raw["wind500_x"], raw["wind500_y"])
        found["shear5_x"], found["shear5_y"] = raw["wind500_x"] - raw["wind_x"], raw["wind500_y"] - raw["wind_y"]
        found["shear5_ms"] = np.hypot(found["shear5_x"], found["shear5_y"])
    if "temperature850_c" in raw:
        found["advection850_k3h"] = _advection(raw["temperature850_c"], raw["wind850_x"], raw["wind850_y"]) * per_3h
    if "shear6_east_ms" in raw:
        found["shear6_x"], found["shear6_y"] = MAP.to_map(raw["shear6_east_ms"], raw["shear6_north_ms"], lon)
        found["shear6_ms"] = np.hypot(found["shear6_x"], found["shear6_y"])
    if "dewpoint_c" in raw:
        t, td, p = raw["temperature_c"], raw["dewpoint_c"], raw["station_hpa"]
        ratio = mixing_ratio_gkg(td, p)
        theta_e = theta_e_k(t, td, p)
        flux = _divergence(ratio * raw["wind_x"], ratio * raw["wind_y"])
        found["mixing_gkg"], found["theta_e_k"] = ratio, theta_e
        found["moisture_convergence"] = -flux * per_3h  # g/kg in 3 hours
        found["theta_e_advection_k3h"] = _advection(theta_e, raw["wind_x"], raw["wind_y"]) * per_3h
        found["wet_bulb_c"] = wet_bulb_c(t, td, p)
    return found


def _gradient(field: Any) -> tuple[Any, Any]:
    """Along x and y, for each metre. The map's scale differs from 1 by less than 3 % inside the windows and is taken as 1."""
    down, across = np.gradient(field, STEP_KM * 1000.0)
    return across, -down


def _advection(field: Any, wind_x: Any, wind_y: Any) -> Any:
    across, up = _gradient(field)
    return -(wind_x * across + wind_y * up)


def _divergence(along_x: Any, along_y: Any) -> Any:
    return _gradient(along_x)[0] + _gradient(along_y)[1]


def slope(field: Any) -> Any:
    """By how much a field changes in 100 km."""
    return np.hypot(*_gradient(field)) * 1e5


def vapour_hpa(temperature_c: Any) -> Any:
    """Saturation vapour pressure over water (Bolton 1980, eq. 10)."""
    return 6.112 * np.exp(17.67 * temperature_c / (temperature_c + 243.5))


def mixing_ratio_gkg(dewpoint_c: Any, pressure_hpa: Any) -> Any:
    vapour = vapour_hpa(dewpoint_c)
    return 622.0 * vapour / (pressure_hpa - vapour)


def theta_e_k(temperature_c: Any, dewpoint_c: Any, pressure_hpa: Any) -> Any:
    """Equivalent potential temperature (Bolton 1980, eq. 15 and 43)."""
    kelvin, dew = temperature_c + 273.15, dewpoint_c + 273.15
    lifted = 1 / (1 / (dew - 56) + np.log(kelvin / dew) / 800) + 56
    ratio = mixing_ratio_gkg(dewpoint_c, pressure_hpa)
    theta = kelvin * (1000 / pressure_hpa) ** (0.2854 * (1 - 0.28e-3 * ratio))
    return theta * np.exp((3.376 / lifted - 0.00254) * ratio * (1 + 0.81e-3 * ratio))


def wet_bulb_c(temperature_c: Any, dewpoint_c: Any, pressure_hpa: Any) -> Any:
    """Where the psychrometer's equation holds (WMO-No. 8, annex 4.B: ventilated, over water), by halving."""
    vapour, low, high = vapour_hpa(dewpoint_c), dewpoint_c.copy(), temperature_c.copy()
    for _ in range(20):
        middle = (low + high) / 2
        constant = 6.53e-4 * (1 + 9.44e-4 * middle) * pressure_hpa
        too_warm = vapour_hpa(middle) - constant * (temperature_c - middle) > vapour
        low, high = np.where(too_warm, low, middle), np.where(too_warm, middle, high)
    return np.where(np.isnan(vapour), np.nan, (low + high) / 2)
