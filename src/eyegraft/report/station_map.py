"""Maps of station errors: drawn as SVG by hand, with a graticule in degrees, in the aspect of the middle latitude.

Colours are CSS variables, so that dark mode turns them; magnitude is also the size of a mark and the sign its shape, for readers who tell
colours apart badly and for print.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from eyegraft import prepare
from eyegraft.evaluation.conclusions import MIN_SAMPLES
from eyegraft.report import words
from eyegraft.report.numbers import Station

NUM_SHADES = 5
_USUAL = 0.9
"""Share of the stations that the classes are made for."""
NUM_NAMED = 3
"""Worst stations that have their name on the map, of those with samples enough to tell."""
_STEPS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 45.0)
_NAME = 16
"""Letters of it."""
_TITLED = 1500
"""Stations up to which each mark says its numbers when it is pointed at; of more, titles would be most of the page."""


@dataclass(frozen=True)
class Key:
    """A line of the legend: a mark as SVG, and what it stands for."""

    mark: Markup
    text: str


@dataclass(frozen=True)
class StationMap:
    """One quantity on the map, drawn for a wide and for a narrow page."""

    title: str
    about: str
    keys: list[Key]
    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class _Frame:
    """Degrees to pixels. `west` and `east` are unwrapped: a frame over the antimeridian goes on beyond 180."""

    west: float
    east: float
    south: float
    north: float
    width: float
    height: float

    def x(self, lon: float) -> float:
        return (lon - self.west) / (self.east - self.west) * self.width

    def y(self, lat: float) -> float:
        return (self.north - lat) / (self.north - self.south) * self.height


Placed = tuple[Station, float, float]
"""A station with its latitude and its longitude in the frame; a list of them has the worst first."""
Mark = Callable[[Station, float, float], str]


def station_maps(stations: Sequence[Station], unit: str) -> list[StationMap]:
    """Maps of RMSE and of bias; none where fewer than two stations have a place."""
    placed = _placed(stations)
    if len(placed) < 2:
        return []
    found = [_rmse_map(placed, unit)]
    if all(station.bias is not None for station, _, _ in placed):
        found.append(_bias_map(sorted(placed, key=lambda place: -abs(place[0].bias or 0.0)), unit))
    return found


def _placed(stations: Sequence[Station]) -> list[Placed]:
    known = [
        (station, station.lat, station.lon)
        for station in stations
        if station.lat is not None and station.lon is not None and abs(station.lat) <= 90 and abs(station.lon) <= 360
    ]
    east = [lon % 360 for _, _, lon in known]
    plain = [(lon + 180) % 360 - 180 for lon in east]
    chosen = plain if not known or max(plain) - min(plain) <= max(east) - min(east) else east  # the way round that is shorter
    return [(station, lat, lon) for (station, lat, _), lon in zip(known, chosen, strict=True)]


def _rmse_map(placed: Sequence[Placed], unit: str) -> StationMap:
    values = [station.rmse for station, _, _ in placed]
    edges = _edges(values)

    def mark(station: Station, x: float, y: float) -> str:
        shade = sum(station.rmse >= edge for edge in edges[1:])
        return _circle(x, y, 3.2 + 1.15 * shade, f"s{shade}", station)

    said = [f"{low:g} to {high:g}" for low, high in pairwise(edges)] + [f"{edges[-1]:g} or more"]
    keys = [Key(_swatch(_circle(9, 9, 3.2 + 1.15 * shade, f"s{shade}")), text) for shade, text in enumerate(said)]
    about = f"RMSE of {len(placed)} stations{f' in {unit}' if unit else ''}, from {min(values):.2f} to {max(values):.2f}"
    return _drawn("RMSE", about, keys, placed, mark, unit)


def _bias_map(placed: Sequence[Placed], unit: str) -> StationMap:
    usual = float(np.quantile([abs(station.bias or 0.0) for station, _, _ in placed], _USUAL))
    step = _nice(usual / 2.5) if usual else 1.0

    def shade_of(bias: float) -> int:
        """-2 to 2, in steps around a middle that counts as none."""
        return int(math.copysign(min(2, round(abs(bias) / step)), bias)) if abs(bias) >= step / 2 else 0

    def mark(station: Station, x: float, y: float) -> str:
        return _signed(x, y, shade_of(station.bias or 0.0), station)

    half, far = f"{step / 2:g}", f"{1.5 * step:g}"
    said = {
        2: f"more than {far} too high", 1: f"{half} to {far} too high", 0: f"within {half}",
        -1: f"{half} to {far} too low", -2: f"more than {far} too low",
    }  # fmt: skip
    keys = [Key(_swatch(_signed(9, 9, shade)), text) for shade, text in said.items()]
    about = f"Bias of {len(placed)} stations{f' in {unit}' if unit else ''}, answer less truth"
    return _drawn("Bias", about, keys, placed, mark, unit)


def _edges(values: Sequence[float]) -> list[float]:
    """Where each of `NUM_SHADES` classes begins, in round steps: nine of ten stations share all but the last, which is open. One station
    that is far off would otherwise put all others into one class."""
    low, high = min(values), float(np.quantile(values, _USUAL))
    step = _nice((high - low) / (NUM_SHADES - 1) or high / NUM_SHADES or 1.0)
    start = math.floor(low / step + 1e-9) * step
    return [round(start + number * step, 9) for number in range(NUM_SHADES)]


def _nice(value: float) -> float:
    """The next round number upwards: 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value * (1 - 1e-9)))


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _drawn(title: str, about: str, keys: list[Key], placed: Sequence[Placed], mark: Mark, unit: str) -> StationMap:
    wide, narrow = (_svg(placed, mark, about, width) for width in (500, 340))
    return StationMap(f"{title} of each station{f' ({unit})' if unit else ''}", about, keys, wide, narrow)


def _frame(placed: Sequence[Placed], width: float) -> _Frame:
    lats, lons = [lat for _, lat, _ in placed], [lon for _, _, lon in placed]
    middle, centre = (min(lats) + max(lats)) / 2, (min(lons) + max(lons)) / 2
    squeeze = max(0.05, math.cos(math.radians(middle)))  # a degree of longitude in degrees of latitude
    across, up = (max(lons) - min(lons)) * squeeze, max(lats) - min(lats)
    across, up = (1.14 * max(span, 0.1 * max(across, up), 0.05) for span in (across, up))
    across, up = max(across, up / 1.15), max(up, across * 0.45)  # neither a tower nor a ribbon
    height = width * up / across
    half = across / squeeze / 2
    return _Frame(centre - half, centre + half, middle - up / 2, middle + up / 2, width, height)


def _svg(placed: Sequence[Placed], mark: Mark, about: str, width: int) -> Markup:
    left, bottom, edge = 44, 24, 6
    frame = _frame(placed, width - left - edge)
    inner = [*_graticule(frame), *_marks(placed, mark, frame), *_names(placed, frame)]
    total = frame.height + bottom + edge
    size = f'viewBox="0 0 {width} {total:.0f}" width="{width}" height="{total:.0f}"'
    return Markup(
        f'<svg class="stations" {size} role="img" aria-label="{escape(about)}">'
        f'<g transform="translate({left},{edge})">{_land(frame)}{"".join(inner)}</g></svg>'
    )


def _graticule(frame: _Frame) -> Iterator[str]:
    yield f'<rect class="frame" width="{frame.width:.1f}" height="{frame.height:.1f}"/>'
    for lon in _ticks(frame.west, frame.east, frame.width / 80):
        x = frame.x(lon)
        yield f'<path class="grid" d="M{x:.1f},0V{frame.height:.1f}"/>'
        yield f'<text x="{x:.1f}" y="{frame.height + 16:.1f}" text-anchor="middle">{_degrees((lon + 180) % 360 - 180, "E", "W")}</text>'
    for lat in _ticks(frame.south, frame.north, frame.height / 60):
        y = frame.y(lat)
        yield f'<path class="grid" d="M0,{y:.1f}H{frame.width:.1f}"/>'
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{_degrees(lat, "N", "S")}</text>'


def _ticks(low: float, high: float, room: float) -> list[float]:
    """Round degrees between two ends, about as many as there is room for."""
    step = next((step for step in _STEPS if (high - low) / step <= max(2.0, room)), 90.0)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _degrees(value: float, positive: str, negative: str) -> str:
    size = f"{abs(value):.2f}".rstrip("0").rstrip(".")
    return f"{size}°{positive if value > 0 else negative if value < 0 else ''}"


def _marks(placed: Sequence[Placed], mark: Mark, frame: _Frame) -> Iterator[str]:
    """The worst are drawn last, above the others."""
    for station, lat, lon in reversed(placed):
        yield mark(station if len(placed) <= _TITLED else _silent(station), frame.x(lon), frame.y(lat))


def _silent(station: Station) -> Station:
    return replace(station, station="")


def _names(placed: Sequence[Placed], frame: _Frame) -> Iterator[str]:
    taken: list[tuple[float, float, float]] = []
    certain = [place for place in placed if place[0].count >= MIN_SAMPLES]
    for station, lat, lon in certain[:NUM_NAMED]:
        x, y, text = frame.x(lon), frame.y(lat), _cut(station.station)
        room = 7.0 * len(text)
        if any(abs(y - other_y) < 14 and x < end and start < x + room for start, end, other_y in taken):
            continue
        left = x + 12 + room > frame.width  # no room to the right of it
        taken.append((x - 12 - room, x, y) if left else (x, x + 12 + room, y))
        place = f'x="{x - 11:.1f}" text-anchor="end"' if left else f'x="{x + 11:.1f}"'
        yield f'<text class="name" {place} y="{y + 4:.1f}">{escape(text)}</text>'


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _circle(x: float, y: float, radius: float, shade: str, station: Station | None = None) -> str:
    return f'<circle class="{_class(shade, station)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{_title(station)}</circle>'


def _signed(x: float, y: float, shade: int, station: Station | None = None) -> str:
    """A triangle upwards for answers that are too high, downwards for too low, a dot for neither."""
    name = ("n2", "n1", "z", "p1", "p2")[shade + 2]
    if not shade:
        return _circle(x, y, 3.0, name, station)
    size = 4.6 if abs(shade) == 1 else 7.2
    tip = -size if shade > 0 else size
    path = f"M{x:.1f},{y + tip:.1f}l{size:.1f},{-1.7 * tip:.1f}h{-2 * size:.1f}z"
    return f'<path class="{_class(name, station)}" d="{path}">{_title(station)}</path>'


def _class(shade: str, station: Station | None) -> str:
    few = station is not None and station.count < MIN_SAMPLES
    return f"{shade} few" if few else shade


def _title(station: Station | None) -> str:
    if station is None or not station.station:
        return ""
    bias = f", bias {words.number(station.bias, signed=True)}" if station.bias is not None else ""
    told = f"{station.station}: RMSE {words.number(station.rmse)}{bias}, {words.counted(station.count, 'sample')}"
    return f"<title>{escape(told)}</title>"


def _swatch(mark: str) -> Markup:
    return Markup(f'<svg class="stations" width="18" height="18" viewBox="0 0 18 18" aria-hidden="true">{mark}</svg>')


# ── land ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _land(frame: _Frame) -> str:
    """Land as a grey veil where the land mask that ships reaches, East Asia; elsewhere the graticule must do."""
    (west, east, south, north), land = _land_mask()
    if not (west <= frame.west and frame.east <= east and south <= frame.south and frame.north <= north):
        return ""
    columns, rows = round(2 * frame.width), round(2 * frame.height)
    lon = frame.west + (np.arange(columns) + 0.5) / columns * (frame.east - frame.west)
    lat = frame.north - (np.arange(rows) + 0.5) / rows * (frame.north - frame.south)
    down, right = (np.clip(((north - lat) * 120).astype(int), 0, land.shape[0] - 1), ((lon - west) * 120).astype(int))
    picture = Image.fromarray(land[np.ix_(down, np.clip(right, 0, land.shape[1] - 1))].astype(np.uint8), "P")
    picture.putpalette([128, 128, 128, 128, 128, 128])
    memory = io.BytesIO()
    picture.save(memory, "PNG", bits=1, transparency=bytes([0, 46]), optimize=True)
    data = base64.b64encode(memory.getvalue()).decode()
    return f'<image width="{frame.width:.1f}" height="{frame.height:.1f}" preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'


@cache
def _land_mask() -> tuple[tuple[float, ...], Any]:
    """(west, east, south, north) in degrees and [rows, columns] of 1/120 degree from the north-west corner; prepare/gk2a/README.md."""
    with np.load(Path(prepare.__file__).parent / "gk2a" / "ground_east_asia.npz", allow_pickle=False) as file:
        return tuple(float(side) for side in file["box"]), np.unpackbits(file["land"], axis=1).astype(bool)
