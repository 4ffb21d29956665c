"""Charts of numbers: answers against truth as hexagons, errors by truth, residuals, intervals. Small however many rows there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from eyegraft.report.charts import BEST, INK, MODEL, MUTED, OTHER, render
from eyegraft.report.numbers import Floats, Level, Numbers, Tenth

HEXAGONS = 36
"""Hexagons across a panel."""
SHADES = (0.16, 0.34, 0.54, 0.76, 1.0)
"""Opacity of a hexagon, from few samples to many: on either ground more is stronger."""
RESIDUAL_BINS = 44
_HEXAGON = "M0,-1L0.866,-0.5L0.866,0.5L0,1L-0.866,0.5L-0.866,-0.5Z"


WIDE, NARROW = 424, 282
"""Width of a drawing's inside: two beside each other on a screen, one on a phone."""


@dataclass(frozen=True)
class Panel:
    """One drawing in two widths.

    Attributes:
        name: what it shows: `answers`, `tenths`, `residuals` or `levels`.
        shades: opacity of a hexagon and the fewest samples that it stands for, of `answers` alone.
    """

    name: str
    title: str
    wide: Markup
    narrow: Markup
    shades: Sequence[tuple[float, int]] = ()


def panels_of(numbers: Numbers, tenths: Sequence[Tenth], levels: Sequence[Level], rival: str | None) -> list[Panel]:
    """Args:
    rival: the system whose errors stand behind the model's.
    """
    bins = hexagons(numbers.truth, numbers.answer)
    steps = _steps(max(count for _, _, count in bins.cells))
    found = [_panel("answers", "Answer against truth", lambda side: _density(bins, steps, numbers.unit, side), shades=steps)]
    if tenths:
        found.append(_panel("tenths", "Error against truth", lambda side: _by_truth(tenths, numbers.unit, side)))
    found.append(_panel("residuals", "Residuals", lambda side: _residuals(numbers, rival, side)))
    if len(levels) > 2:
        found.append(_panel("levels", "Intervals: said and measured", lambda side: _coverage(levels, side)))
    return found


def _panel(name: str, title: str, drawn: Callable[[int], Mapping[str, Any]], shades: Sequence[int] = ()) -> Panel:
    return Panel(name, title, render(drawn(WIDE)), render(drawn(NARROW)), list(zip(SHADES, shades, strict=False)))


@dataclass(frozen=True)
class Hexagons:
    """Counts on a honeycomb over a square whose axes are the same: (x, y, count) of each cell that holds a sample, in `low` to `high`."""

    low: float
    high: float
    cells: list[tuple[float, float, int]]


def hexagons(truth: Floats, answer: Floats) -> Hexagons:
    """Bin points on a honeycomb: the nearer of two shifted grids (Carr et al. 1987, Scatterplot matrix techniques for large N)."""
    low, high = float(min(truth.min(), answer.min())), float(max(truth.max(), answer.max()))
    pad = 0.03 * (high - low) or 1.0
    low, high = low - pad, high + pad
    width, height = 1.0, math.sqrt(3)  # of a cell of either grid, in columns; rows of one grid lie √3 apart
    x, y = ((values - low) / (high - low) * HEXAGONS for values in (truth, answer))
    grids = [(np.round((x - shift * width / 2) / width), np.round((y - shift * height / 2) / height), shift) for shift in (0, 1)]
    centres = [((i + shift / 2) * width, (j + shift / 2) * height) for i, j, shift in grids]
    distances = [(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres]
    second = distances[1] < distances[0]
    cx, cy = (np.where(second, centres[1][axis], centres[0][axis]) for axis in (0, 1))
    found, counts = np.unique(np.round(np.stack([cx, cy], axis=1), 6), axis=0, return_counts=True)
    scale = (high - low) / HEXAGONS
    cells = [(low + cx * scale, low + cy * scale, int(count)) for (cx, cy), count in zip(found.tolist(), counts.tolist(), strict=True)]
    return Hexagons(low, high, cells)


def _steps(most: int) -> list[int]:
    """The fewest samples of each shade, by equal factors from 1 up to the fullest cell."""
    steps = [max(number, round(most ** (number / len(SHADES)))) if number else 1 for number in range(len(SHADES))]
    return [step + place for place, step in enumerate(steps)] if most <= len(SHADES) else list(dict.fromkeys(steps))


def _axis(unit: str, what: str) -> str:
    return f"{what} ({unit})" if unit else what


def _x(field: str, title: str, **more: Any) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 5, "labelFlush": False}, **more}


def _y(field: str, title: str, **more: Any) -> dict[str, Any]:
    """With room for its labels, so that panels under each other begin at one line."""
    return {"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 5, "minExtent": 34}, **more}


def _density(bins: Hexagons, steps: Sequence[int], unit: str, side: int) -> dict[str, Any]:
    scale = {"domain": [bins.low, bins.high], "nice": False, "zero": False}
    x, y = _x("x", _axis(unit, "truth"), scale=scale), _y("y", _axis(unit, "answer"), scale=scale)
    shade = [SHADES[sum(count >= step for step in steps) - 1] for _, _, count in bins.cells]
    cells = [{"x": round(cx, 6), "y": round(cy, 6), "o": shown} for (cx, cy, _), shown in zip(bins.cells, shade, strict=True)]
    across = side / HEXAGONS / math.sqrt(3)  # the radius of a hexagon whose width is one column
    mark = {"type": "point", "shape": _HEXAGON, "size": (2 * across) ** 2, "color": MODEL, "fill": MODEL, "strokeWidth": 0, "clip": True}
    ends = [{"x": bins.low, "y": bins.low}, {"x": bins.high, "y": bins.high}]
    opacity = {"field": "o", "type": "quantitative", "scale": None}
    diagonal = {"type": "line", "color": INK, "strokeDash": [4, 4], "strokeWidth": 1.1}
    layers: list[dict[str, Any]] = [
        {"data": {"values": cells}, "mark": mark, "encoding": {"x": x, "y": y, "opacity": opacity}},
        {"data": {"values": ends}, "mark": diagonal, "encoding": {"x": x, "y": y}},
    ]
    return {"width": side, "height": side, "layer": layers}


def _by_truth(tenths: Sequence[Tenth], unit: str, side: int) -> dict[str, Any]:
    rows = [asdict(tenth) for tenth in tenths]
    x = _x("centre", _axis(unit, "truth, in tenths of the samples"), scale={"nice": False, "zero": False, "padding": 14})
    y = _y("bias", _axis(unit, "error, answer less truth"))
    outer = {"type": "rule", "color": OTHER, "strokeWidth": 1.3}
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": [{"bias": 0}]},
            "mark": {"type": "rule", "color": INK, "strokeDash": [4, 4], "strokeWidth": 1.1},
            "encoding": {"y": y},
        },
        {"mark": outer, "encoding": {"x": x, "y": {**y, "field": "p10"}, "y2": {"field": "p90"}}},
        {"mark": {**outer, "strokeWidth": 5}, "encoding": {"x": x, "y": {**y, "field": "p25"}, "y2": {"field": "p75"}}},
        {"mark": {"type": "line", "color": MODEL, "strokeWidth": 1.4}, "encoding": {"x": x, "y": y}},
        {"mark": {"type": "point", "fill": MODEL, "color": MODEL, "size": 62, "opacity": 1}, "encoding": {"x": x, "y": y}},
    ]
    return {"width": side, "height": side, "data": {"values": rows}, "layer": layers}


def _residuals(numbers: Numbers, rival: str | None, side: int) -> dict[str, Any]:
    """The model's errors as bars, the best baseline's as a line; what lies beyond the drawing stands in its last bins."""
    other = numbers.others.get(rival or "", np.full(len(numbers), np.nan)) - numbers.truth
    known = other[np.isfinite(other)]
    every = np.concatenate([np.abs(numbers.errors), np.abs(known)])
    reach = float(np.quantile(every, 0.995)) or 1.0
    edges = np.linspace(-reach, reach, RESIDUAL_BINS + 1)
    x = _x("low", _axis(numbers.unit, "error, answer less truth"), axis={"tickCount": 7, "labelFlush": False})
    y = _y("share", "share of samples", axis={"tickCount": 4, "minExtent": 34, "format": "~%"})
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": _bins(numbers.errors, edges)},
            "mark": {"type": "bar", "color": MODEL, "binSpacing": 1},
            "encoding": {"x": {**x, "bin": "binned"}, "x2": {"field": "high"}, "y": y},
        }
    ]
    if len(known):
        bars = _bins(known, edges)
        line = [*bars, {"low": bars[-1]["high"], "share": bars[-1]["share"]}]
        mark = {"type": "line", "interpolate": "step-after", "color": OTHER, "strokeWidth": 1.6}
        layers.append({"data": {"values": line}, "mark": mark, "encoding": {"x": x, "y": y}})
    bias = float(numbers.errors.mean())
    mark = {"type": "rule", "color": BEST, "strokeDash": [3, 3], "strokeWidth": 1.6}
    layers.append({"data": {"values": [{"low": bias}]}, "mark": mark, "encoding": {"x": x}})
    return {"width": side, "height": round(0.55 * side), "layer": layers}


def _bins(values: Floats, edges: Floats) -> list[dict[str, float]]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return [
        {"low": float(low), "high": float(high), "share": round(int(count) / len(values), 6)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _coverage(levels: Sequence[Level], side: int) -> dict[str, Any]:
    rows = [{"nominal": level.nominal, "measured": level.measured, "used": level.in_use} for level in levels]
    least = max(0.0, math.floor(10 * min(min(level.nominal, level.measured) for level in levels)) / 10)
    unit, axis = {"domain": [least, 1.0], "nice": False}, {"tickCount": 5, "format": "~%", "labelFlush": False}
    x = _x("nominal", "level of the intervals", scale=unit, axis=axis)
    y = _y("measured", "share that holds the truth", scale=unit, axis={**axis, "minExtent": 34})
    ends = [{"nominal": least, "measured": least}, {"nominal": 1.0, "measured": 1.0}]
    size = {"condition": {"test": "datum.used", "value": 130}, "value": 60}
    fill = {"condition": {"test": "datum.used", "value": MODEL}, "value": None}
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": ends},
            "mark": {"type": "line", "color": MUTED, "strokeDash": [4, 4], "strokeWidth": 1.2},
            "encoding": {"x": x, "y": y},
        },
        {"mark": {"type": "line", "color": MODEL, "strokeWidth": 1.4}, "encoding": {"x": x, "y": y}},
        {
            "mark": {"type": "point", "stroke": MODEL, "strokeWidth": 1.6, "opacity": 1},
            "encoding": {"x": x, "y": y, "size": size, "fill": fill},
        },
    ]
    return {
        "width": side,
        "height": round(0.55 * side),
        "data": {"values": rows},
        "layer": layers,
    }


def slice_chart(rows: Sequence[Mapping[str, Any]], values: Sequence[str], unit: str, metric: str, width: int, limit: int) -> Markup:
    """A dot and interval of the model for each value of a column, the best baseline beside it.

    Args:
        rows: {slice, value, low, high, model}; low and high may be None.
        values: from top to bottom; longer than `limit` pixels they are cut.
    """
    room = min(limit + 12, round(7.2 * max(map(len, values), default=0)))  # for fonts wider than the one that is measured
    labels = {"labelColor": INK, "labelFontSize": 12, "minExtent": room, "labelLimit": limit}
    y = {"field": "slice", "type": "nominal", "sort": list(values), "title": None, "axis": labels}
    shift = {"field": "model", "type": "nominal", "sort": [True, False], "scale": {"paddingOuter": 0.6}}
    colour = {"condition": {"test": "datum.model", "value": MODEL}, "value": OTHER}
    x = _x("value", _axis(unit, metric), scale={"zero": True}, axis={"tickCount": 4, "labelFlush": False})
    size = {"condition": {"test": "datum.model", "value": 80}, "value": 50}
    fill = {"condition": {"test": "datum.model", "value": MODEL}, "value": None}
    layers = [
        {
            "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"y": y, "yOffset": shift, "x": {**x, "field": "low"}, "x2": {"field": "high"}, "stroke": colour},
        },
        {
            "mark": {"type": "point", "opacity": 1, "strokeWidth": 1.6},
            "encoding": {"y": y, "yOffset": shift, "x": x, "size": size, "fill": fill, "stroke": colour},
        },
    ]
    return render(
        {"data": {"values": [dict(row) for row in rows]}, "width": width, "height": {"step": 30, "for": "position"}, "layer": layers}
    )
