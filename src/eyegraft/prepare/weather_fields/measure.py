"""What can be said of the fields of a window: the dominant feature of each map, and the main concern of the case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from eyegraft.prepare.weather_fields.conditions import CONDITIONS, Condition
from eyegraft.prepare.weather_fields.facts import COMPASS
from eyegraft.prepare.weather_fields.fields import COLUMNS, ROWS, Window, slope, stored
from eyegraft.prepare.weather_fields.projection import MAP

MIN_KNOWN = 0.55
"""Share of a window that must be known for a map to be drawn."""
_PLACES = (("northwest", "north", "northeast"), ("west", "center", "east"), ("southwest", "south", "southeast"))
_CALM_MS = 1.5


@dataclass(frozen=True)
class Feature:
    """The dominant feature of a map.

    Attributes:
        place: one of nine parts of the map, or `nowhere`.
        over: the state, sea or country there.
        sign, level: words of the condition; level is empty where it has none.
        value: as written.
        flow: the direction that the drawn wind comes from, `calm`, or empty where none is drawn.
        size: how far beyond what is ordinary, for the choice of the concern.
    """

    condition: str
    place: str
    over: str
    sign: str
    level: str
    value: str
    flow: str
    size: float

    @property
    def facts(self) -> dict[str, str]:
        over = "" if self.place == "nowhere" else self.over
        named = {"variable": self.condition, "place": self.place, "over": over, "sign": self.sign, "level": self.level, "flow": self.flow}
        return {name: text for name, text in named.items() if text}


@dataclass(frozen=True)
class Concern:
    """What a case is about. `area`: states or seas; `source`: the condition that it was read from."""

    name: str
    area: tuple[str, ...]
    place: str
    percent: int
    source: str

    @property
    def facts(self) -> dict[str, Any]:
        return {"concern": self.name, "area": list(self.area), "place": self.place, "percent": self.percent}


def known(fields: Mapping[str, Any], condition: Condition) -> bool:
    """Whether enough of the window is known for this map."""
    winds = [f"{condition.wind}_{axis}" for axis in "xy" if condition.wind]
    needed = [*winds, *(name for name in (condition.fill, condition.lines, condition.judged) if name)]
    return all(name in fields and np.isfinite(fields[name]).mean() >= MIN_KNOWN for name in needed)


def feature_of(condition: Condition, fields: Mapping[str, Any], window: Window) -> Feature:
    field = _smooth(fields[condition.judged or condition.fill])
    middle = float(np.nanmedian(field))
    low, high = float(np.nanmin(field)), float(np.nanmax(field))
    judged, sign, value = field, 1, high
    if condition.kind == "pressure":
        sign = int(high - middle > middle - low)
        value, size = (high, high - middle) if sign else (low, middle - low)
    elif condition.kind == "change":
        sign = int(high > -low)
        value, size = (high, high) if sign else (low, -low)
    elif condition.kind == "contrast":
        judged = _smooth(slope(field))
        value = size = float(np.nanmax(judged))
        sign = int(np.nanmean(field) >= condition.sign_at)
    elif condition.kind == "lowest":
        value, size, sign = low, 0.0, int(np.nanmean(field) >= condition.sign_at)
    else:
        size, sign = high, int(high >= condition.sign_at)
    lowest = condition.kind == "lowest" or (condition.kind in ("pressure", "change") and not sign)
    row, column = np.unravel_index(int(np.nanargmin(judged) if lowest else np.nanargmax(judged)), field.shape)
    nothing = high < condition.nothing_below
    level = "" if condition.degrees is None else ("weak", "moderate", "strong")[sum(size >= bound for bound in condition.degrees)]
    return Feature(
        condition=condition.name,
        place="nowhere" if nothing else _PLACES[int(3 * row / ROWS)][int(3 * column / COLUMNS)],
        over=_over(window, int(row), int(column)),
        sign=condition.signs[sign],
        level=level,
        value=condition.value.format(value=value),
        flow=_flow(condition, fields, window),
        size=size,
    )


def _smooth(field: Any) -> Any:
    """The mean of 3 x 3 nodes, of those that are known; a node that is not known stays so."""
    padded = np.pad(field, 1, constant_values=np.nan)
    parts = np.stack([padded[down : down + ROWS, across : across + COLUMNS] for down in range(3) for across in range(3)])
    there = np.isfinite(parts)
    total = np.where(there, parts, 0.0).sum(0) / np.maximum(there.sum(0), 1)
    return np.where(np.isfinite(field), total, np.nan)


def _flow(condition: Condition, fields: Mapping[str, Any], window: Window) -> str:
    if not condition.wind:
        return ""
    along_x, along_y = (float(np.nanmean(fields[f"{condition.wind}_{axis}"])) for axis in "xy")
    lon, _ = MAP.to_degrees(window.x, window.y)
    east, north = MAP.to_earth(along_x, along_y, lon)
    if np.hypot(east, north) < _CALM_MS:
        return "calm"
    return COMPASS[round(float(np.degrees(np.arctan2(-east, -north))) / 45) % 8]


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def places_of(lon: Any, lat: Any) -> list[str]:
    """The state, or the sea or country, that each place is in."""
    data = stored()
    at, names = data["ground/state_at"], data["ground/states"]
    rows, columns = np.floor((np.asarray(lat) - 24) * 4).astype(int), np.floor((np.asarray(lon) + 125) * 4).astype(int)
    found = []
    for row, column, x, y in zip(rows.ravel(), columns.ravel(), np.ravel(lon), np.ravel(lat), strict=True):
        inside = 0 <= row < at.shape[0] and 0 <= column < at.shape[1]
        number = int(at[row, column]) if inside else 0
        found.append(str(names[number - 1]) if number else _abroad(float(x), float(y)))
    return found


def _abroad(lon: float, lat: float) -> str:
    if 41.3 < lat < 49 and -93 < lon < -76:
        return "the Great Lakes"
    if lat > 44 if lon > -82 else lat > 48.3:
        return "the Pacific" if lon < -124 else "Canada"
    if lon < -117 or (lon < -110 and lat < 31 and lon + 0.85 * (31 - lat) < -114.5):
        return "the Pacific"
    if lat < 32.6 and (lon < -104 or (lon < -97.3 and lat < 30)):
        return "Mexico"
    return "the Gulf of Mexico" if lon < -81.5 and lat < 31 else "the Atlantic"


def _over(window: Window, row: int, column: int) -> str:
    x, y = window.nodes()
    lon, lat = MAP.to_degrees(x[row, column], y[row, column])
    return places_of([lon], [lat])[0]


# ── the concern of a case ────────────────────────────────────────────────────────────────────────────────────────────────────────

_SCALES: dict[str, float] = {"pchg": 2.2, "pch6": 6.5, "ladv": 3.2, "tadv": 3.5, "thea": 5.0}
"""What is much: where the score of a concern is 1. Set once from the distribution over the windows and times of training."""
_WIND_MS, _QUIET = 17.0, 0.8


def concern_of(features: Mapping[str, Feature], fields: Mapping[str, Any], window: Window) -> Concern:
    """The concern with the highest score, or quiet weather where none is high."""
    scores: dict[str, tuple[float, str, Any]] = {}

    def offer(name: str, score: float, source: str, strength: Any) -> None:
        if score > scores.get(name, (0.0, "", None))[0]:
            scores[name] = (score, source, strength)

    for condition, feature in features.items():
        if condition not in _SCALES:
            continue
        field = _smooth(fields[CONDITIONS[condition].fill])
        down, up = max(-float(np.nanmin(field)), 0.0), max(float(np.nanmax(field)), 0.0)
        if feature.sign == "falls":
            offer("falling pressure", down / _SCALES[condition], condition, -field)
        elif feature.sign in ("cold", "negative"):
            offer("a surge of cold air", down / _SCALES[condition], condition, -field)
        elif feature.sign in ("warm", "positive"):
            offer("a surge of warm air", up / _SCALES[condition], condition, field)
    speed = _smooth(fields["speed_ms"])
    carrier = next(name for name in ("pmsl", "ltmp", "ttd") if name in features)
    offer("strong wind", float(np.nanmax(speed)) / _WIND_MS, carrier, speed)
    name, (score, source, strength) = max(scores.items(), key=lambda item: item[1][0])
    if score < _QUIET and "pmsl" in features:
        name, source, strength, score = "quiet weather", "pmsl", fields["pressure_hpa"] - np.nanmin(fields["pressure_hpa"]), 1 - score
    area, place = _area(strength, window)
    return Concern(name, area, place, 20 * int(np.clip(round(2.2 * score), 1, 4)), source)


def _area(strength: Any, window: Window) -> tuple[tuple[str, ...], str]:
    """States or seas under the strongest tenth, at most three, the largest share first; and the part of the map that it centers on."""
    values = _smooth(strength)
    top = np.argwhere(values >= np.nanquantile(values, 0.9))
    peak = np.unravel_index(int(np.nanargmax(values)), values.shape)
    near = top[np.hypot(*(top - np.array(peak)).T) < 22]  # of several regions that with the peak
    x, y = window.nodes()
    tally = Counter(places_of(*MAP.to_degrees(x[near[:, 0], near[:, 1]], y[near[:, 0], near[:, 1]])))
    names = [name for name, count in sorted(tally.items(), key=lambda item: (-item[1], item[0])) if count >= 0.12 * len(near)][:3]
    return tuple(names), _PLACES[int(3 * peak[0] / ROWS)][int(3 * peak[1] / COLUMNS)]
