"""A map of one condition over one window, as a picture of few colours: fill, contours, outlines, wind, a colour bar with units, a title."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eyegraft.prepare.weather_fields.conditions import Condition
from eyegraft.prepare.weather_fields.fields import COLUMNS, ROWS, SIZE_KM, STEP_KM, Window, reports, stored
from eyegraft.prepare.weather_fields.projection import MAP
from eyegraft.prepare.weather_fields.styles import Colour, Style

MAP_SIZE = (480, 360)
TITLE, BAR_RIGHT, BAR_BOTTOM, MARGIN = 18, 46, 30, 4
KM_A_PIXEL = SIZE_KM[0] / MAP_SIZE[0]
NUM_COLOURS = 64
_KNOTS = 1.943844
_LABELS_APART = 70
_UNKNOWN = 0.82  # how much of the paper's brightness unknown ground keeps


def drawn(condition: Condition, fields: Mapping[str, Any], window: Window, style: Style, time: datetime, hour: int | None) -> bytes:
    """A PNG. `hour`: of the station reports that are plotted where the condition asks for it."""
    picture = Image.new("RGB", MAP_SIZE, style.paper)
    known = np.isfinite(fields[condition.judged or condition.fill])
    if condition.fill:
        picture = Image.fromarray(_filled(fields[condition.fill], condition, style))
    pixels = np.asarray(picture).copy()
    pixels[~_enlarged_mask(known)] = [int(_UNKNOWN * part) for part in style.paper]
    lines = _enlarged(fields[condition.lines])
    edges = _contours(lines, condition.line_step)
    edges &= _enlarged_mask(np.isfinite(fields[condition.lines]))
    pixels[_thick(edges) if style.line_width > 1 else edges] = style.line
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    _outlines(pen, window, style)
    if condition.wind:
        _winds(pen, fields[f"{condition.wind}_x"], fields[f"{condition.wind}_y"], style)
    if not condition.fill and hour is not None:
        _stations(pen, window, hour, style)
    if style.labels:
        _labels(pen, edges, lines, condition, style)
    whole = _framed(picture, condition, style, f"{time:%y%m%d/%H%M} {condition.title}")
    stream = io.BytesIO()
    whole.quantize(NUM_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(stream, "PNG", optimize=False)
    return stream.getvalue()


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _enlarged(field: Any) -> Any:
    """[H, W] of the picture; what is not known is filled from its neighbours, so that known ground beside it keeps its values."""
    whole = np.array(field)
    while np.isnan(whole).any():
        padded = np.pad(whole, 1, constant_values=np.nan)
        beside = np.stack([padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]])
        there = np.isfinite(beside)
        if not there.any():
            return np.zeros(MAP_SIZE[::-1])
        mean = np.where(there, beside, 0.0).sum(0) / np.maximum(there.sum(0), 1)
        whole = np.where(np.isnan(whole) & there.any(0), mean, whole)
    large = np.asarray(Image.fromarray(whole.astype(np.float32)).resize(MAP_SIZE, Image.Resampling.BICUBIC))
    return np.clip(large, np.float32(whole.min()), np.float32(whole.max()))  # a bicubic filter overshoots, and 0 J/kg must not become less


def _enlarged_mask(known: Any) -> Any:
    return np.asarray(Image.fromarray(known.astype(np.uint8) * 255).resize(MAP_SIZE, Image.Resampling.BILINEAR)) > 127


def colours_of(condition: Condition, style: Style) -> list[Colour]:
    """One colour below the first level, one between each two, one above the last."""
    ramp = np.array(style.ramps[condition.palette], float)
    count = len(condition.levels) + 1
    places = np.linspace(0, len(ramp) - 1, count)
    if condition.palette == "diverging":  # the two bands beside zero share the middle colour
        places = np.concatenate(
            [np.linspace(0, len(ramp) // 2, count // 2), np.linspace(len(ramp) // 2, len(ramp) - 1, count - count // 2)]
        )
    mixed = [ramp[int(place)] + (place % 1) * (ramp[min(int(place) + 1, len(ramp) - 1)] - ramp[int(place)]) for place in places]
    return [(int(red), int(green), int(blue)) for red, green, blue in mixed]


def _filled(field: Any, condition: Condition, style: Style) -> Any:
    return np.array(colours_of(condition, style), np.uint8)[np.digitize(_enlarged(field), condition.levels)]


def _contours(field: Any, step: float) -> Any:
    """Where a contour crosses: True in the pixel before it."""
    band = np.floor(field / step)
    edges = np.zeros(band.shape, bool)
    edges[:, :-1] |= band[:, :-1] != band[:, 1:]
    edges[:-1] |= band[:-1] != band[1:]
    return edges


def _thick(edges: Any) -> Any:
    wide = edges.copy()
    wide[1:] |= edges[:-1]
    wide[:, 1:] |= edges[:, :-1]
    return wide


# ── what lies over them ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _ground_km() -> list[Any]:
    """Outlines of states and coasts, [N, 2] each, in km of the map."""
    data = stored()
    points = data["ground/points"].astype(float) / 100
    x, y = MAP.to_km(points[:, 0], points[:, 1])
    return np.split(np.stack([x, y], 1), np.cumsum(data["ground/lengths"])[:-1])


def _to_pixels(x: Any, y: Any, window: Window) -> tuple[Any, Any]:
    left, top = window.x - SIZE_KM[0] / 2, window.y + SIZE_KM[1] / 2
    return (x - left) / KM_A_PIXEL, (top - y) / KM_A_PIXEL


def _outlines(pen: ImageDraw.ImageDraw, window: Window, style: Style) -> None:
    lines = [(line, style.border) for line in _ground_km()]
    if style.grid:
        lines = [(line, style.grid) for line in _graticule()] + lines
    for points, colour in lines:
        across, down = _to_pixels(points[:, 0], points[:, 1], window)
        if across.max() < 0 or across.min() > MAP_SIZE[0] or down.max() < 0 or down.min() > MAP_SIZE[1]:
            continue
        pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=colour, width=1)


@cache
def _graticule() -> list[Any]:
    meridians = [MAP.to_km(np.full(30, lon), np.linspace(20, 56, 30)) for lon in range(-135, -55, 5)]
    parallels = [MAP.to_km(np.linspace(-135, -55, 60), np.full(60, lat)) for lat in range(20, 60, 5)]
    return [np.stack(line, 1) for line in (*meridians, *parallels)]


def _winds(pen: ImageDraw.ImageDraw, along_x: Any, along_y: Any, style: Style) -> None:
    each = style.every
    for down in range(each // 2, MAP_SIZE[1], each):
        for across in range(each // 2, MAP_SIZE[0], each):
            row = min(int(down * KM_A_PIXEL / STEP_KM), ROWS - 1)
            column = min(int(across * KM_A_PIXEL / STEP_KM), COLUMNS - 1)
            east, north = float(along_x[row, column]), float(along_y[row, column])
            if np.isfinite(east + north):
                (_barb if style.wind == "barbs" else _arrow)(pen, across, down, east, north, style.barb)


def _barb(pen: ImageDraw.ImageDraw, x: float, y: float, east: float, north: float, colour: Colour, length: float = 19.0) -> None:
    """A wind barb: half a feather 5 knots, a feather 10, a flag 50; the shaft points to where the wind comes from (WMO-No. 485)."""
    speed = np.hypot(east, north)
    knots = 5 * round(speed * _KNOTS / 5)
    if knots == 0:
        pen.ellipse([x - 2, y - 2, x + 2, y + 2], outline=colour)
        return
    back = np.array([-east, north]) / speed  # towards where it comes from, on a picture whose y runs down
    side = np.array([-back[1], back[0]])  # clockwise of the shaft as seen from its tip: feathers of the northern half
    tip = np.array([x, y]) + length * back
    pen.line([x, y, *tip], fill=colour)
    place = 0.0
    for worth, size, kind in ((50, 8.0, "flag"), (10, 8.0, "line"), (5, 4.5, "line")):
        while knots >= worth:
            knots -= worth
            if worth == 5 and place == 0.0:
                place = 3.0
            foot = tip - place * back
            end = foot + size * side + 2.0 * back
            if kind == "flag":
                pen.polygon([*foot, *end, *(foot - 4.0 * back)], fill=colour)
                place += 5.0
            else:
                pen.line([*foot, *end], fill=colour)
                place += 3.5


def _arrow(pen: ImageDraw.ImageDraw, x: float, y: float, east: float, north: float, colour: Colour) -> None:
    """An arrow along the wind, as long as the wind is strong."""
    speed = np.hypot(east, north)
    if speed < 0.5:
        return
    ahead = np.array([east, -north]) / speed
    side = np.array([-ahead[1], ahead[0]])
    length = 6.0 + min(26.0, 0.9 * speed)
    start, end = np.array([x, y]) - length / 2 * ahead, np.array([x, y]) + length / 2 * ahead
    pen.line([*start, *end], fill=colour)
    for turn in (1, -1):
        pen.line([*end, *(end - 5 * ahead + turn * 3 * side)], fill=colour)


def _stations(pen: ImageDraw.ImageDraw, window: Window, hour: int, style: Style) -> None:
    """Temperature above and dewpoint below the station, left; the wind as a barb. Stations too near to one drawn before are left out."""
    columns: dict[tuple[float, float], dict[str, float]] = {}
    for name in ("temperature_c", "dewpoint_c", "east_ms", "north_ms"):
        for x, y, value in zip(*reports(hour, name), strict=True):
            columns.setdefault((float(x), float(y)), {})[name] = float(value)
    font, taken = _font(9), list[tuple[float, float]]()
    for (x, y), seen in columns.items():
        across, down = (float(part) for part in _to_pixels(x, y, window))
        if not (14 < across < MAP_SIZE[0] - 6 and 10 < down < MAP_SIZE[1] - 10) or len(seen) < 4:
            continue
        if any(abs(across - a) < 32 and abs(down - d) < 24 for a, d in taken):
            continue
        taken.append((across, down))
        lon, _ = MAP.to_degrees(x, y)
        east, north = (float(part) for part in MAP.to_map(seen["east_ms"], seen["north_ms"], lon))
        _barb(pen, across, down, east, north, style.barb, length=15.0)
        pen.text((across - 3, down - 1), f"{seen['temperature_c']:.0f}", fill=(190, 30, 30), font=font, anchor="rs")
        pen.text((across - 3, down + 8), f"{seen['dewpoint_c']:.0f}", fill=(20, 120, 50), font=font, anchor="rs")


def _labels(pen: ImageDraw.ImageDraw, edges: Any, field: Any, condition: Condition, style: Style) -> None:
    """Numbers on contours, one to each stretch of map that has any."""
    font, taken = _font(9), list[tuple[int, int]]()
    rows, columns = np.nonzero(edges[12:-12, 16:-16])
    for place in range(0, len(rows), 37):
        row, column = int(rows[place]) + 12, int(columns[place]) + 16
        if any(abs(row - r) < _LABELS_APART and abs(column - c) < _LABELS_APART for r, c in taken):
            continue
        taken.append((row, column))
        value = condition.line_step * round(float(field[row, column]) / condition.line_step)
        text = f"{value:g}"
        box = pen.textbbox((column, row), text, font=font, anchor="mm")
        pen.rectangle(box, fill=style.paper)
        pen.text((column, row), text, fill=style.line, font=font, anchor="mm")


# ── the frame ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _framed(picture: Image.Image, condition: Condition, style: Style, title: str) -> Image.Image:
    right = style.bar == "right"
    width = MAP_SIZE[0] + 2 * MARGIN + BAR_RIGHT * right
    height = MAP_SIZE[1] + 2 * MARGIN + TITLE + BAR_BOTTOM * (not right)
    whole = Image.new("RGB", (width, height), style.paper)
    left, top = MARGIN, MARGIN + TITLE * (style.title == "above")
    whole.paste(picture, (left, top))
    pen = ImageDraw.Draw(whole)
    pen.rectangle([left - 1, top - 1, left + MAP_SIZE[0], top + MAP_SIZE[1]], outline=style.ink)
    line = MARGIN + TITLE // 2 if style.title == "above" else height - TITLE // 2 - 2
    pen.text((left + MAP_SIZE[0] // 2, line), title, fill=style.ink, font=_font(12), anchor="mm")
    if condition.fill:
        corner = (left + MAP_SIZE[0] + 6, top) if right else (left, top + MAP_SIZE[1] + 4)
        _bar(pen, corner, condition.levels, colours_of(condition, style), condition.unit, style)
    return whole


def _bar(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], levels: Sequence[float], colours: Sequence[Colour], unit: str, style: Style
) -> None:
    """The colour bar, a level's number at its border, the unit at its end."""
    x, y, font = *corner, _font(9)
    right = style.bar == "right"
    room = MAP_SIZE[1] - 16 if right else MAP_SIZE[0] - 50
    step, skip = room / len(colours), 1 + len(levels) // 9
    for number, colour in enumerate(colours):
        near, far = number * step, (number + 1) * step
        box = [x, y + room - far, x + 10, y + room - near] if right else [x + near, y, x + far, y + 10]
        pen.rectangle(box, fill=colour, outline=style.ink)
        if number < len(levels) and number % skip == 0:
            at, anchor = ((x + 13, y + room - far), "lm") if right else ((x + far, y + 17), "mm")
            pen.text(at, f"{levels[number]:g}", fill=style.ink, font=font, anchor=anchor)
    pen.text((x, y + room + 9) if right else (x + room + 5, y + 5), unit, fill=style.ink, font=font, anchor="lm")


@cache
def _font(size: int) -> Any:
    """Pillow's own, which it carries with it: the same on every machine."""
    return ImageFont.load_default(size)
