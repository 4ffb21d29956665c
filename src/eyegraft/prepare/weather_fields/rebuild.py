"""Make `fields.npz` again: station reports, analyses and a forecast out of Debian's package `libncarg-data`.

    pip install eccodes scipy
    apt-get download libncarg-data && dpkg -x libncarg-data_*.deb unpacked
    python rebuild.py --ncarg unpacked/usr/share/ncarg

README.md says what is taken and how it is rounded.
"""

from __future__ import annotations

import argparse
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eyegraft.prepare.weather_fields.projection import AWIPS_211, MAP

MISSING = -32768
LATS, LONS = (22.0, 56.0), (-132.0, -58.0)
BOX_X, BOX_Y = (-2500.0, 2500.0), (-1750.0, 1750.0)  # km of the map: stations outside are of no use
G = 9.80665


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ncarg", type=Path, required=True, help="usr/share/ncarg of the unpacked package")
    root = parser.parse_args().ncarg
    arrays = {**_storm(root / "data" / "cdf"), **_stations(root / "data" / "cdf"), **_model(root / "data" / "grb"), **_ground(root)}
    np.savez_compressed(Path(__file__).with_name("fields.npz"), **arrays)


def _rounded(values: Any, step: float, offset: float = 0.0) -> Any:
    """int16 in units of `step`, `MISSING` where there is no number."""
    numbers = np.round((np.asarray(values, float) - offset) / step)
    assert np.nanmax(np.abs(numbers)) < -MISSING
    return np.where(np.isnan(numbers), MISSING, numbers).astype(np.int16)


def _read(path: Path, *names: str) -> list[Any]:
    from scipy.io import netcdf_file

    with netcdf_file(path, mmap=False) as stream:
        found = [np.array(stream.variables[name][:]) for name in names]
    return [np.where(values < -9000, np.nan, values.astype(float)) if values.dtype.kind == "f" else values for values in found]


def _storm(folder: Path) -> dict[str, Any]:
    """64 analyses, six hours apart, from 1996-01-05 00 UTC."""
    lat, lon = _read(folder / "Pstorm.cdf", "lat", "lon")
    rows, columns = (lat >= LATS[0]) & (lat <= LATS[1]), (lon >= LONS[0]) & (lon <= LONS[1])
    steps = {"P": (0.1, 1000.0), "T": (0.05, 273.15), "U": (0.05, 0.0), "V": (0.05, 0.0), "U500": (0.05, 0.0), "V500": (0.05, 0.0)}
    names = {"P": "pressure_hpa", "T": "temperature_c", "U": "east_ms", "V": "north_ms", "U500": "east500_ms", "V500": "north500_ms"}
    arrays = {"storm/lat": lat[rows], "storm/lon": lon[columns]}
    for name, (step, offset) in steps.items():
        values = _read(folder / f"{name}storm.cdf", name[0].lower())[0] * (0.01 if name == "P" else 1.0)
        arrays[f"storm/{names[name]}"] = _rounded(values[:, rows][:, :, columns], step, offset)
    return arrays


def _stations(folder: Path) -> dict[str, Any]:
    """Hourly reports of 1995-03-18. What cannot be true (a longitude of -790, 406 degrees) is no number."""
    columns: dict[str, list[Any]] = {name: [] for name in ("hour", "lat", "lon", "t", "td", "slp", "p", "east", "north")}
    for hour in range(24):
        file = folder / f"950318{hour:02d}_sao.cdf"
        lat, lon, high, t, td, slp, alt, speed, way = _read(file, "lat", "lon", "elev", "T", "TD", "PSL", "ALTIM", "SPD", "DIR")
        t, td = _within(t, -50, 50), _within(td, -50, 35)
        td = np.where(td > t + 1, np.nan, td)
        slp, alt, high = _within(slp, 960, 1060), _within(alt, 960, 1060), _within(high, -100, 4000)
        speed, way = _within(speed, 0, 45), _within(way, 0, 360)
        east, north = -speed * np.sin(np.radians(way)), -speed * np.cos(np.radians(way))
        here = (np.abs(lat) <= 90) & (np.abs(lon) <= 180)
        x, y = MAP.to_km(np.where(here, lon, 0), np.where(here, lat, 0))
        here &= (x > BOX_X[0]) & (x < BOX_X[1]) & (y > BOX_Y[0]) & (y < BOX_Y[1]) & ~np.isnan(t)
        # the altimeter setting says what the barometer at the station read (NWS, equation of the U.S. standard atmosphere)
        station = (alt**0.190284 - 8.42288e-5 * high) ** (1 / 0.190284)
        found = {"lat": lat, "lon": lon, "t": t, "td": td, "slp": slp, "p": station, "east": east, "north": north}
        for name, values in found.items():
            columns[name].append(values[here])
        columns["hour"].append(np.full(here.sum(), hour))
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    steps = {"lat": 0.01, "lon": 0.01, "t": 0.1, "td": 0.1, "slp": 0.1, "p": 0.1, "east": 0.1, "north": 0.1}
    named = {"t": "temperature_c", "td": "dewpoint_c", "slp": "pressure_hpa", "p": "station_hpa", "east": "east_ms", "north": "north_ms"}
    arrays = {
        f"stations/{named.get(name, name)}": _rounded(joined[name], step, 1000.0 if name in ("slp", "p") else 0.0)
        for name, step in steps.items()
    }
    return {**arrays, "stations/hour": joined["hour"].astype(np.uint8)}


def _within(values: Any, low: float, high: float) -> Any:
    return np.where((values >= low) & (values <= high), values, np.nan)


def _model(folder: Path) -> dict[str, Any]:
    """The forecast of 2007-01-24 00 UTC for 12 UTC; winds turned to east and north."""
    import eccodes  # type: ignore[import-not-found,unused-ignore]

    fields: dict[tuple[str, str, int], Any] = {}
    with (folder / "fh.0012_tl.press_gr.awp211.grb2").open("rb") as stream:
        while (message := eccodes.codes_grib_new_from_file(stream)) is not None:
            key = tuple(eccodes.codes_get(message, name) for name in ("shortName", "typeOfLevel", "level"))
            fields.setdefault(key, eccodes.codes_get_values(message).reshape(65, 93))
            eccodes.codes_release(message)
    first_x, first_y = AWIPS_211.to_km(226.541 - 360, 12.19)
    x, y = np.meshgrid(first_x + 81.271 * np.arange(93), first_y + 81.271 * np.arange(65))
    lon, _ = AWIPS_211.to_degrees(x, y)

    def wind(where: str, level: int, prefix: str = "") -> tuple[Any, Any]:
        return AWIPS_211.to_earth(fields[f"{prefix}u", where, level], fields[f"{prefix}v", where, level], lon)

    east, north = wind("heightAboveGround", 10, "10")
    high = fields["orog", "surface", 0] + 6000.0
    levels = list(range(1000, 250, -50))
    heights = np.stack([fields["gh", "isobaricInhPa", level] for level in levels])
    winds = np.stack([np.stack(wind("isobaricInhPa", level)) for level in levels])  # [level, 2, 65, 93]
    above = np.argmax(heights > high, axis=0)  # the first level above 6 km over the ground
    upper, lower = (np.take_along_axis(heights, place[None], 0)[0] for place in (above, above - 1))
    share = (high - lower) / (upper - lower)
    at6 = [
        np.take_along_axis(part, (above - 1)[None], 0)[0] * (1 - share) + np.take_along_axis(part, above[None], 0)[0] * share
        for part in (winds[:, 0], winds[:, 1])
    ]
    dewpoint = _dewpoint(fields["2t", "heightAboveGround", 2] - 273.15, fields["2r", "heightAboveGround", 2])
    lapse = 1000 * (fields["t", "isobaricInhPa", 700] - fields["t", "isobaricInhPa", 500])
    lapse = lapse / (fields["gh", "isobaricInhPa", 500] - fields["gh", "isobaricInhPa", 700])
    named = {
        "pressure_hpa": (fields["prmsl", "meanSea", 0] / 100, 0.1, 1000.0),
        "station_hpa": (fields["sp", "surface", 0] / 100, 0.1, 1000.0),
        "temperature_c": (fields["2t", "heightAboveGround", 2] - 273.15, 0.05, 0.0),
        "dewpoint_c": (dewpoint, 0.05, 0.0),
        "east_ms": (east, 0.05, 0.0),
        "north_ms": (north, 0.05, 0.0),
        "east500_ms": (wind("isobaricInhPa", 500)[0], 0.05, 0.0),
        "north500_ms": (wind("isobaricInhPa", 500)[1], 0.05, 0.0),
        "east850_ms": (wind("isobaricInhPa", 850)[0], 0.05, 0.0),
        "north850_ms": (wind("isobaricInhPa", 850)[1], 0.05, 0.0),
        "temperature850_c": (fields["t", "isobaricInhPa", 850] - 273.15, 0.05, 0.0),
        "height850_m": (fields["gh", "isobaricInhPa", 850], 1.0, 0.0),
        "shear6_east_ms": (at6[0] - east, 0.05, 0.0),
        "shear6_north_ms": (at6[1] - north, 0.05, 0.0),
        "cape_jkg": (fields["cape", "surface", 0], 1.0, 0.0),
        "helicity1_m2s2": (fields["hlcy", "heightAboveGroundLayer", 1000], 1.0, 0.0),
        "lapse_kkm": (lapse, 0.01, 0.0),
        "freezing_m": (fields["gh", "isothermZero", 0], 1.0, 0.0),
    }
    return {f"model/{name}": _rounded(*what) for name, what in named.items()}


def _dewpoint(temperature_c: Any, humidity: Any) -> Any:
    """Degrees Celsius by the inverse of Bolton's (1980) saturation vapour pressure."""
    log = np.log(np.clip(humidity, 1, 100) / 100) + 17.67 * temperature_c / (temperature_c + 243.5)
    return 243.5 * log / (17.67 - log)


def _ground(root: Path) -> dict[str, Any]:
    """Outlines of states and coasts in hundredths of a degree, and which state a place is in on a quarter-degree grid."""
    names, rings = _shapes(root / "data" / "shp")
    lines = [(1, _thinned(ring, 0.03)) for group in rings for ring in group]
    for kind, points in _earth(root / "database" / "Earth..1.lines"):
        lat, lon = points.T
        inside = (lat > 18) & (lat < 60) & (lon > -142) & (lon < -48)
        if inside.any():
            lines.append((kind, _thinned(points[:, ::-1], 0.05)))
    lines = [(kind, points) for kind, points in lines if len(points) > 2]
    grid_lon, grid_lat = np.meshgrid(np.arange(-125, -66, 0.25) + 0.125, np.arange(24, 50, 0.25) + 0.125)
    place = np.zeros(grid_lon.shape, np.uint8)
    for number, group in enumerate(rings, 1):
        for ring in group:
            place[_contains(ring, grid_lon, grid_lat)] = number
    return {
        "ground/points": np.round(np.concatenate([points for _, points in lines]) * 100).astype(np.int16),
        "ground/lengths": np.array([len(points) for _, points in lines], np.int32),
        "ground/states": np.array(names),
        "ground/state_at": place,
    }


def _shapes(folder: Path) -> tuple[list[str], list[list[Any]]]:
    """Names and rings of the contiguous states (ESRI shapefile technical description, 1998)."""
    table = (folder / "states.dbf").read_bytes()
    count, start, width = struct.unpack("<IHH", table[4:12])
    length = table[32 + 16]  # of the first column, STATE_NAME
    names = [table[start + row * width + 1 : start + row * width + 1 + length].decode("latin1").strip() for row in range(count)]
    content, place, rings = (folder / "states.shp").read_bytes(), 100, []
    while place < len(content):
        size = struct.unpack(">i", content[place + 4 : place + 8])[0] * 2
        body = content[place + 8 : place + 8 + size]
        parts, points = struct.unpack("<ii", body[36:44])
        starts = [*struct.unpack(f"<{parts}i", body[44 : 44 + 4 * parts]), points]
        xy = np.frombuffer(body[44 + 4 * parts :], "<f8").reshape(-1, 2)
        rings.append([xy[first:last] for first, last in pairwise(starts)])
        place += 8 + size
    kept = [(name, group) for name, group in zip(names, rings, strict=True) if name not in ("Alaska", "Hawaii")]
    return [name for name, _ in kept], [group for _, group in kept]


def _earth(file: Path) -> list[tuple[int, Any]]:
    """(kind, [N, 2] of latitude and longitude) of NCAR's outlines: a count of numbers, three integers, a box, the points."""
    content, place, found = file.read_bytes(), 0, []
    while place + 32 <= len(content):
        count, kind, _, _ = struct.unpack("<4i", content[place : place + 16])
        if not 0 < count < 1_000_000 or place + 32 + 4 * count > len(content):
            break
        found.append((kind, np.frombuffer(content[place + 32 : place + 32 + 4 * count], "<f4").reshape(-1, 2).astype(float)))
        place += 32 + 4 * count
    return found


def _thinned(points: Any, apart: float) -> Any:
    """Points at least so many degrees apart, and the last."""
    kept = [points[0]]
    for point in points[1:-1]:
        if np.hypot(*(point - kept[-1])) >= apart:
            kept.append(point)
    return np.array([*kept, points[-1]])


def _contains(ring: Any, x: Any, y: Any) -> Any:
    """Whether places lie in a ring, by crossings of a ray (Shimrat 1962)."""
    inside = np.zeros(x.shape, bool)
    for (x1, y1), (x2, y2) in pairwise(ring):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


if __name__ == "__main__":
    main()
