"""Charts of the page: Vega-Lite specifications, rendered to inline SVG when the page is written.

Every colour comes from `COLOURS`; the page's dark style re-colours exactly these values, so a chart reads well on either ground.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import vl_convert
from markupsafe import Markup

from eyegraft.report.reading import Stage, finite

INK, MUTED, RULE, MODEL, OTHER, BEST = "#23262a", "#676c73", "#e3dfd7", "#0b6b72", "#8c939c", "#b4530a"

COLOURS: Mapping[str, str] = {INK: "#e7e5e0", MUTED: "#a0a5ac", RULE: "#33373c", MODEL: "#5cc4cb", OTHER: "#8e96a0", BEST: "#f0a35e"}
"""Colour on a light ground -> colour on a dark ground."""

MAX_POINTS = 400
"""Points of a training curve; longer ones are averaged in equal runs of steps."""

SHARE_BINS = 20

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans KR', sans-serif"

_AXIS = {
    "labelColor": MUTED,
    "titleColor": MUTED,
    "gridColor": RULE,
    "domain": False,
    "ticks": False,
    "labelFontSize": 11,
    "titleFontSize": 11,
    "titleFontWeight": "normal",
    "labelPadding": 6,
}
_LABELS = {"labelColor": INK, "labelFontSize": 12, "minExtent": 142}  # room for fonts wider than the one that was measured
_CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": None,
    "aria": False,
    "view": {"stroke": None},
    "axis": _AXIS,
    "text": {"color": INK, "fontSize": 11},
    "header": {"labelColor": INK, "labelFontSize": 12, "labelFontWeight": 600, "title": None, "labelAnchor": "start", "labelPadding": 4},
}


def loss_chart(stage: Stage, width: int, height: int = 240) -> Markup | None:
    """Training and validation loss over the steps, the best checkpoint marked; None without a point to draw."""
    train = thinned([(row["step"], value) for row in stage.train if (value := finite(row.get("loss"))) is not None])
    val = [(row["step"], value) for row in stage.val if (value := finite(row.get("val_loss"))) is not None]
    if not train and not val:
        return None
    layers = _loss_layers(train, val, {"tickCount": 5})
    best = finite(stage.info.get("best", {}).get("step")) if isinstance(stage.info.get("best"), Mapping) else None
    if best is not None:
        layers.extend(_best_mark(best, [step for step, _ in train + val], layers[0]["encoding"]["x"]))
    return render({"width": width, "height": height, "autosize": {"type": "fit", "contains": "padding"}, "layer": layers})


def task_loss_chart(stage: Stage, tasks: Sequence[str], width: int, columns: int, height: int = 130) -> Markup | None:
    """Training and validation loss of each of several tasks over the steps, a panel a task; None without a task."""
    panels = []
    for task in tasks:
        train, val = (
            [(row["step"], value) for row in rows if (value := finite(row.get(key))) is not None]
            for rows, key in ((stage.train, f"loss_{task}"), (stage.val, f"val_loss_{task}"))
        )
        layers = _loss_layers(thinned(train), val, {"tickCount": 4})
        panels.append({"title": _heading(task.replace("_", " ")), "width": width, "height": height, "layer": layers})
    spacing = {"row": 74, "column": 54}  # beside flush panels, room for titles and axes
    return render({"concat": panels, "columns": columns, "bounds": "flush", "spacing": spacing}) if panels else None


def _loss_layers(
    train: Sequence[tuple[float, float]], val: Sequence[tuple[float, float]], ticks: Mapping[str, Any]
) -> list[dict[str, Any]]:
    x = {"field": "x", "type": "quantitative", "title": "step", "scale": {"nice": False}, "axis": {"grid": False, **ticks}}
    y = {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}, "axis": {**ticks, "minExtent": 34}}
    seen = {"type": "line", "color": MODEL, "strokeWidth": 2, "point": {"color": MODEL, "size": 34}}
    return [
        {"data": points(train), "mark": {"type": "line", "color": OTHER, "strokeWidth": 1.4}, "encoding": {"x": x, "y": y}},
        {"data": points(val), "mark": seen, "encoding": {"x": x, "y": y}},
    ]


def _best_mark(best: float, steps: Sequence[float], x: Mapping[str, Any]) -> list[dict[str, Any]]:
    right_half = best > (min(steps) + max(steps)) / 2  # the word stands on the side that has room
    data = {"values": [{"x": best, "word": "best"}]}
    text = {"type": "text", "align": "right" if right_half else "left", "dx": -5 if right_half else 5, "y": 8, "color": BEST}
    return [
        {"data": data, "mark": {"type": "rule", "color": BEST, "strokeDash": [3, 3], "strokeWidth": 1.4}, "encoding": {"x": x}},
        {"data": data, "mark": {**text, "fontWeight": 600}, "encoding": {"x": x, "text": {"field": "word"}}},
    ]


def learning_rate_chart(stage: Stage, width: int, height: int = 240) -> Markup | None:
    """The learning rate over the steps; None without two points."""
    rates = [(row["step"], value) for row in stage.train if (value := finite(row.get("learning_rate"))) is not None]
    if len(rates) < 2:
        return None
    label = "datum.value == 0 ? '0' : format(datum.value, '~e')"
    x = {"field": "x", "type": "quantitative", "title": "step", "scale": {"nice": False}, "axis": {"grid": False, "tickCount": 3}}
    y = {"field": "y", "type": "quantitative", "title": None, "axis": {"tickCount": 3, "labelExpr": label}}
    title = {"text": "learning rate", "anchor": "start", "fontSize": 11, "fontWeight": "normal", "color": MUTED}
    size = {"width": width, "height": height, "autosize": {"type": "fit", "contains": "padding"}, "title": title}
    mark = {"type": "line", "color": MUTED, "strokeWidth": 1.4}
    return render({**size, "data": points(thinned(rates)), "mark": mark, "encoding": {"x": x, "y": y}})


def interval_chart(rows: Sequence[Mapping[str, Any]], systems: Sequence[str], columns: int, panel_width: int) -> Markup | None:
    """One panel per metric: a dot per system and a line for its interval.

    Args:
        rows: {metric, system, value, low, high, model}; low and high may be None; `model` tells the model from the baselines.
        systems: labels from top to bottom.
    """
    if not rows:
        return None
    y = {"field": "system", "type": "nominal", "sort": list(systems), "title": None, "axis": _LABELS}
    axis = {"title": None, "tickCount": 3, "labelOverlap": "greedy", "labelFlush": False}
    colour = {"condition": {"test": "datum.model", "value": MODEL}, "value": OTHER}
    # the model is filled and larger, so that it stands out without colour too
    dot = {"size": {"condition": {"test": "datum.model", "value": 90}, "value": 55}, "stroke": colour, "strokeWidth": {"value": 1.6}}
    dot["fill"] = {"condition": {"test": "datum.model", "value": MODEL}, "value": None}
    layers = [
        {
            "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"y": y, "x": {"field": "low", "type": "quantitative", "axis": axis}, "x2": {"field": "high"}, "stroke": colour},
        },
        {
            "mark": {"type": "point", "opacity": 1},
            "encoding": {"y": y, "x": {"field": "value", "type": "quantitative", "axis": axis}, **dot},
        },
    ]
    return render(
        {
            "data": {"values": [dict(row) for row in rows]},
            "facet": {"field": "metric", "type": "nominal", "sort": list(dict.fromkeys(str(row["metric"]) for row in rows))},
            "columns": columns,
            "spacing": {"row": 26, "column": 26},
            "resolve": {"scale": {"x": "independent"}},
            "spec": {"width": panel_width, "height": {"step": 24}, "layer": layers},
        }
    )


def reliability_chart(panels: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]], width: int, columns: int) -> Markup:
    """Reliability diagrams: how often the label is true over the probability that was said, and beneath how many samples each bin holds.

    Args:
        panels: (`model` or another word, title, bins {low, high, count, mean_probability, frequency, low_ci, high_ci}).
    """
    specs = [_reliability_panel(MODEL if name == "model" else OTHER, title, bins, width) for name, title, bins in panels]
    return render({"concat": specs, "columns": columns, "spacing": 34})


def _reliability_panel(colour: str, title: str, bins: Sequence[Mapping[str, Any]], width: int) -> dict[str, Any]:
    axis = {"tickCount": 5, "format": ".1f"}
    unit = {"domain": [0, 1]}
    x = {"field": "mean_probability", "type": "quantitative", "title": None, "scale": unit, "axis": {**axis, "labels": False}}
    y = {"field": "frequency", "type": "quantitative", "title": "how often true", "scale": unit, "axis": {**axis, "minExtent": 34}}
    diagonal = {"values": [{"mean_probability": 0, "frequency": 0}, {"mean_probability": 1, "frequency": 1}]}
    # a bin of one sample says little, and should look so
    weight = {"field": "count", "type": "quantitative", "legend": None, "scale": {"zero": True, "range": [12, 150]}}
    layers: list[dict[str, Any]] = [
        {
            "data": diagonal,
            "mark": {"type": "line", "color": MUTED, "strokeDash": [4, 4], "strokeWidth": 1.2},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "rule", "color": colour, "strokeWidth": 1.3},
            "encoding": {"x": x, "y": {**y, "field": "low_ci"}, "y2": {"field": "high_ci"}},
        },
        {"mark": {"type": "point", "color": colour, "fill": colour, "opacity": 1}, "encoding": {"x": x, "y": y, "size": weight}},
    ]
    edges = {**x, "field": "low", "title": "probability said", "axis": axis}
    top = max((row["count"] or 0 for row in bins), default=0)
    counts = {"field": "count", "type": "quantitative", "title": "samples", "scale": {"domain": [0, 1.3 * top]}}
    bars: list[dict[str, Any]] = [
        {
            "mark": {"type": "bar", "color": colour, "binSpacing": 1.5},
            "encoding": {
                "x": {**edges, "bin": "binned"},
                "x2": {"field": "high"},
                "y": {**counts, "axis": {"minExtent": 34, "tickCount": 2}},
            },
        },
        {
            "transform": [{"calculate": "(datum.low + datum.high) / 2", "as": "middle"}],
            "mark": {"type": "text", "dy": -6, "fontSize": 9, "color": MUTED},
            "encoding": {"x": {**edges, "field": "middle"}, "y": counts, "text": {"field": "count", "format": ",d"}},
        },
    ]
    parts = [{"width": width, "height": round(0.62 * width), "layer": layers}, {"width": width, "height": 70, "layer": bars}]
    return {"title": _heading(title), "data": {"values": [dict(row) for row in bins]}, "vconcat": parts, "spacing": 10}


def share_chart(series: Mapping[str, Sequence[float]], modality: str, width: int, columns: int) -> Markup:
    """Histograms of a modality's share of a gate, one panel for each part of the samples (none of them empty), with its mean marked."""
    specs = [_share_panel(name, values, modality, width) for name, values in series.items()]
    return render({"concat": specs, "columns": columns, "spacing": 34})


def _share_panel(name: str, values: Sequence[float], modality: str, width: int) -> dict[str, Any]:
    mean = sum(values) / len(values)
    counts = Counter(min(int(value * SHARE_BINS), SHARE_BINS - 1) for value in values)  # counted here: a split may be large
    bins = [{"low": place / SHARE_BINS, "high": (place + 1) / SHARE_BINS, "samples": count} for place, count in sorted(counts.items())]
    x = {"field": "low", "type": "quantitative", "scale": {"domain": [0, 1]}}
    axis = {"tickCount": 5, "format": ".1f"}
    y = {"field": "samples", "type": "quantitative", "title": "samples", "axis": {"tickCount": 3, "minExtent": 34, "format": ",d"}}
    bars = {"x": {**x, "bin": "binned", "title": f"share of the {modality}", "axis": axis}, "x2": {"field": "high"}, "y": y}
    layers: list[dict[str, Any]] = [
        {"data": {"values": bins}, "mark": {"type": "bar", "color": MODEL, "binSpacing": 1.5}, "encoding": bars},
        {
            "data": {"values": [{"low": mean}]},
            "mark": {"type": "rule", "color": BEST, "strokeDash": [3, 3], "strokeWidth": 1.6},
            "encoding": {"x": x},
        },
    ]
    return {"title": _heading(f"{name}: {len(values):,} samples, mean {mean:.2f}"), "width": width, "height": 110, "layer": layers}


def _heading(text: str) -> dict[str, Any]:
    return {"text": text, "anchor": "start", "fontSize": 12, "fontWeight": 600, "color": INK}


def thinned(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, each the mean of a run of neighbours."""
    if len(curve) <= MAX_POINTS:
        return list(curve)
    bounds = [len(curve) * index // MAX_POINTS for index in range(MAX_POINTS + 1)]
    runs = [curve[start:end] for start, end in pairwise(bounds)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def points(curve: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {"values": [{"x": x, "y": y} for x, y in curve]}


def render(spec: Mapping[str, Any]) -> Markup:
    """A specification as SVG to stand inside HTML: scalable, without namespaces or links that point outside."""
    svg: str = vl_convert.vegalite_to_svg({**spec, "config": _CONFIG})
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    return Markup(svg)  # vl_convert escapes the text that it draws
