"""A field on the satellite's grid as a picture: colours, coast line, graticule, colour bar, and what must be said beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]

# cold to warm over a pale middle: told apart without red and green, and dark lines are seen on all of it
_COLOURS: Final = np.array(
    [
        (38, 42, 122),
        (47, 92, 168),
        (92, 150, 202),
        (160, 202, 226),
        (222, 238, 240),
        (253, 243, 200),
        (250, 206, 122),
        (240, 150, 78),
        (214, 84, 58),
        (168, 32, 48),
        (104, 10, 42),
    ],
    np.float64,
)
_NOTHING = (201, 203, 206)
_INK, _MUTED, _WARNING = (28, 32, 38), (96, 102, 110), (176, 24, 36)
_LONG_SIDE = 900  # of the map in the picture, about
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 128, 82, 74


@dataclass(frozen=True)
class Marks:
    """Readings at places, drawn as dots in the colours of the field.

    Attributes:
        lon, lat: degrees [N]; values: [N] in the unit of the field.
        label: what the picture calls them.
    """

    lon: Floats
    lat: Floats
    values: Floats
    label: str = "readings"


def draw_field(
    values: NDArray[np.float32],
    lon: Floats,
    lat: Floats,
    *,
    title: str,
    unit: str,
    notes: Sequence[str] = (),
    warning: str = "",
    marks: Marks | None = None,
) -> bytes:
    """A PNG of a field.

    Args:
        values: [H, W], NaN where there is none, which is drawn grey.
        lon, lat: [H, W] degrees of its pixels, rows running south; NaN in space.
        title, notes: above and below the map.
        warning: said in red beside the title: that what is seen is simulated.
        marks: readings to draw upon it.

    The coast line is that of the land mask of `prepare.gk2a.ground`, which knows East Asia; elsewhere there is none.
    """
    from eyegraft.prepare.gk2a.ground import ground_at

    height, width = values.shape
    every = max(1, -(-max(height, width) // (2 * _LONG_SIDE)))  # a full disk has more pixels than anyone sees
    values, lon, lat = values[::every, ::every], lon[::every, ::every], lat[::every, ::every]
    times = max(1, round(_LONG_SIDE / max(values.shape)))
    fine_lon, fine_lat = _finer(lon, times), _finer(lat, times)
    low, high = _span(values, marks)
    pixels = np.repeat(np.repeat(_coloured(values, low, high), times, 0), times, 1)
    step = _graticule_step(fine_lon, fine_lat)
    for places in (fine_lon, fine_lat):
        _blend(pixels, _changes(np.floor(places / step)), (40, 44, 52), 0.28)
    _blend(pixels, _changes(ground_at(fine_lon, fine_lat).land.astype(np.float64)), (20, 22, 26), 0.85)
    picture = Image.new("RGB", (_LEFT + pixels.shape[1] + _RIGHT, _TOP + pixels.shape[0] + _BOTTOM + 16 * max(0, len(notes) - 2)), "white")
    picture.paste(Image.fromarray(pixels), (_LEFT, _TOP))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((_LEFT - 1, _TOP - 1, _LEFT + pixels.shape[1], _TOP + pixels.shape[0]), outline=_MUTED)
    if marks is not None:
        _draw_marks(draw, marks, fine_lon, fine_lat, low, high)
    _draw_degrees(draw, fine_lon, fine_lat, step)
    _draw_bar(draw, picture, pixels.shape, low, high, values, unit)
    _draw_words(draw, picture.width, _TOP + pixels.shape[0], title, warning, notes)
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


# ── colours ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _span(values: NDArray[np.float32], marks: Marks | None) -> tuple[float, float]:
    """Ends of the colour bar, rounded outwards: all but the outermost hundredth of the field, and every reading."""
    parts: list[NDArray[Any]] = [np.percentile(known, (0.5, 99.5))] if (known := values[np.isfinite(values)]).size else []
    parts += [read] if marks is not None and (read := marks.values[np.isfinite(marks.values)]).size else []
    if not parts:
        return 0.0, 1.0
    low, high = float(min(part.min() for part in parts)), float(max(part.max() for part in parts))
    step = _nice((high - low) / 10) if high > low else 1.0
    low, high = float(np.floor(low / step) * step), float(np.ceil(high / step) * step)
    return (low, high) if high > low else (low - step, high + step)


def _nice(size: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(size))
    return float(next(times * power for times in (1, 2, 5, 10) if times * power >= size * 0.999))


def _decimals(step: float) -> int:
    return max(0, -int(np.floor(np.log10(step) + 1e-9)))


def _coloured(values: NDArray[Any], low: float, high: float) -> Pixels:
    """[H, W] -> [H, W, 3]"""
    place = np.clip((np.nan_to_num(values, nan=low) - low) / (high - low), 0, 1) * (len(_COLOURS) - 1)
    found = np.stack([np.interp(place, np.arange(len(_COLOURS)), _COLOURS[:, channel]) for channel in range(3)], axis=-1)
    found[~np.isfinite(values)] = _NOTHING
    return found.round().astype(np.uint8)


def _blend(pixels: Pixels, where: NDArray[np.bool_], colour: tuple[int, int, int], share: float) -> None:
    pixels[where] = (pixels[where] * (1 - share) + np.array(colour) * share).round().astype(np.uint8)


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _finer(places: Floats, times: int) -> Floats:
    """Degrees of `times` x `times` pixels in each pixel, in between by straight lines: [H, W] -> [H times, W times]."""
    if times == 1 or min(places.shape) < 2:
        return np.repeat(np.repeat(places, times, 0), times, 1)
    for axis, size in enumerate(places.shape):
        at = (np.arange(size * times) + 0.5) / times - 0.5
        first = np.clip(np.floor(at).astype(int), 0, size - 2)
        share = (at - first).reshape((-1, 1) if axis == 0 else (1, -1))
        places = np.take(places, first, axis) * (1 - share) + np.take(places, first + 1, axis) * share
    return places


def _changes(values: Floats) -> NDArray[np.bool_]:
    """True where the pixel to the right or below is another; never towards NaN."""
    found = np.zeros(values.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(values, axis=axis)
        found[tuple(slice(0, size) for size in change.shape)] |= np.isfinite(change) & (change != 0)
    return found


def _graticule_step(lon: Floats, lat: Floats) -> float:
    spread = max(float(np.nanmax(one) - np.nanmin(one)) for one in (lon, lat))
    return next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if spread / step <= 9), 30)


def _draw_degrees(draw: ImageDraw.ImageDraw, lon: Floats, lat: Floats, step: float) -> None:
    """What the lines are, along the left edge and below."""
    font = _font(13)
    column, row = lat[:, 0], lon[-1]
    for at in np.flatnonzero(_changes(np.floor(column[:, None] / step))[:, 0]):
        degree = np.floor(max(column[at], column[at + 1]) / step) * step
        draw.text((_LEFT - 6, _TOP + at), f"{abs(degree):.{_decimals(step)}f}°{'N' if degree >= 0 else 'S'}", _MUTED, font, anchor="rm")
    for at in np.flatnonzero(_changes(np.floor(row[None, :] / step))[0]):
        degree = np.floor(max(row[at], row[at + 1]) / step) * step
        draw.text(
            (_LEFT + at, _TOP + lon.shape[0] + 5),
            f"{abs(degree):.{_decimals(step)}f}°{'E' if degree >= 0 else 'W'}",
            _MUTED,
            font,
            anchor="ma",
        )


def _draw_marks(draw: ImageDraw.ImageDraw, marks: Marks, lon: Floats, lat: Floats, low: float, high: float) -> None:
    """Each reading at the pixel that lies nearest to it, if it lies on the map."""
    size = np.nanmedian(np.hypot(np.diff(lon, axis=1)[:-1], np.diff(lat, axis=0)[:, :-1]))
    known = np.where(np.isfinite(lon), lon, 1e9), np.where(np.isfinite(lat), lat, 1e9)
    colours = _coloured(np.asarray(marks.values)[None], low, high)[0]
    for east, north, colour in zip(marks.lon, marks.lat, colours, strict=True):
        distance = np.hypot(known[0] - east, known[1] - north)
        row, column = np.unravel_index(int(distance.argmin()), distance.shape)
        if distance[row, column] > 2 * size:
            continue
        x, y = _LEFT + int(column), _TOP + int(row)
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill="white")
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=tuple(int(part) for part in colour), outline=_INK)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _draw_bar(
    draw: ImageDraw.ImageDraw, picture: Image.Image, shape: tuple[int, ...], low: float, high: float, values: NDArray[Any], unit: str
) -> None:
    """The colour bar right of the map; a triangle where values go beyond its end."""
    height = min(shape[0] - 60, 620)
    left, top, width = _LEFT + shape[1] + 24, _TOP + (shape[0] - height) // 2, 18
    scale = _coloured(np.repeat(np.linspace(high, low, height)[:, None], width, 1), low, high)
    picture.paste(Image.fromarray(scale), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_MUTED)
    known = values[np.isfinite(values)]
    middle = left + width / 2
    if known.size and known.max() > high:
        draw.polygon([(left - 1, top - 3), (left + width, top - 3), (middle, top - 14)], fill=tuple(int(one) for one in _COLOURS[-1]))
    if known.size and known.min() < low:
        draw.polygon(
            [(left - 1, top + height + 3), (left + width, top + height + 3), (middle, top + height + 14)],
            fill=tuple(int(one) for one in _COLOURS[0]),
        )
    step = _nice((high - low) / 8)
    for tick in np.arange(np.ceil(low / step - 1e-9) * step, high + step * 1e-6, step):
        y = top + height * (high - tick) / (high - low)
        draw.line((left + width, y, left + width + 4, y), fill=_MUTED)
        draw.text((left + width + 8, y), f"{tick:.{_decimals(step)}f}", _INK, _font(14), anchor="lm")
    draw.text((middle, top - 20), unit, _INK, _font(15), anchor="ms")


def _draw_words(draw: ImageDraw.ImageDraw, width: int, below: int, title: str, warning: str, notes: Sequence[str]) -> None:
    draw.text((_LEFT, 14), title, _INK, _font(22))
    if warning:
        draw.text((_LEFT, 46), warning, _WARNING, _font(18))
    for number, note in enumerate(notes):
        draw.text((_LEFT, below + 28 + 18 * number), _cut(note, width - _LEFT - 12, _font(13)), _MUTED, _font(13))


def _cut(text: str, width: int, font: Any) -> str:
    """The text, or as much of it as fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
