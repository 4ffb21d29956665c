"""A planned picture to pixels: every drawing as a camera that looks straight at it would see it (gnomonic), on a rolled panorama."""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eyegraft.prepare import drawings, panoramas
from eyegraft.prepare.sphere_things.plan import Scene, Thing
from eyegraft.views import WHOLE, View

Floats = NDArray[np.float64]
Colours = NDArray[np.float32]
_FINE = 3  # samples along each side of a pixel: a drawing is shown smaller than it is stored


def jpeg(scene: Scene, width: int, quality: int) -> bytes:
    """The picture as a JPEG file, `width` by `width` / 2 pixels."""
    content = io.BytesIO()
    Image.fromarray(render(scene, width)).save(content, "JPEG", quality=quality)
    return content.getvalue()


def render(scene: Scene, width: int) -> NDArray[np.uint8]:
    """The picture, [H, W, 3]. Yaw 0 is its middle."""
    picture = np.roll(_background(scene.background, width), round(scene.roll_degrees / 360 * width), axis=1).astype(np.float64)
    for thing in scene.things:
        rows, columns = _around(thing, width)
        shown = _seen(thing, rows, columns, width)  # [h, w, 4], colours times opacity
        box = np.ix_(rows, columns % width)
        picture[box] = picture[box] * (1 - shown[..., 3:]) + shown[..., :3]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _around(thing: Thing, width: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns, from one beyond the left border on, that hold all of a thing and not much else."""
    reach = math.degrees(math.atan(math.tan(math.radians(thing.degrees / 2)) * math.sqrt(2))) + 1  # to its corners
    top, bottom = ((90 - thing.pitch - sign * reach) / 180 * (width // 2) for sign in (1, -1))
    rows = np.arange(max(0, math.floor(top)), min(width // 2, math.ceil(bottom)))
    # a cap of this radius around the thing reaches so far in yaw; pitch and reach, of which neither passes 45 degrees, end before a pole
    wide = math.degrees(math.asin(min(1.0, math.sin(math.radians(reach)) / math.cos(math.radians(thing.pitch)))))
    left, right = ((thing.yaw + sign * wide + 180) / 360 * width for sign in (-1, 1))
    return rows, np.arange(math.floor(left), math.ceil(right))


def _seen(thing: Thing, rows: NDArray[np.intp], columns: NDArray[np.intp], width: int) -> Colours:
    """What of a drawing falls on these pixels, [h, w, 4]: the mean over fine samples."""
    within = (np.arange(_FINE) + 0.5) / _FINE
    x = (columns[:, None] + within).ravel() / width * 2 - 1
    y = (rows[:, None] + within).ravel() / (width // 2) * 2 - 1
    camera = View("perspective", thing.yaw, thing.pitch, thing.degrees, thing.degrees)
    across, down = camera.places(WHOLE.directions(x[None, :], y[:, None]))
    fine = _sampled(_drawing(thing.style, thing.codepoint), across, down)
    shown: Colours = fine.reshape(len(rows), _FINE, len(columns), _FINE, 4).mean(axis=(1, 3))
    return shown


def _sampled(picture: Colours, x: Floats, y: Floats) -> Colours:
    """A square picture [S, S, C] read between its pixels, at places from -1 to 1; nothing beyond its border."""
    size = len(picture)
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
    column, row = (np.where(np.isnan(place), -2, place) for place in (x, y))
    column, row = (np.clip((place + 1) / 2 * size + 0.5, 0, size + 1 - 1e-9) for place in (column, row))
    left, top = np.floor(column).astype(np.intp), np.floor(row).astype(np.intp)
    right, below = ((place - start).astype(np.float32)[..., None] for place, start in ((column, left), (row, top)))
    upper, lower = (padded[line, left] + (padded[line, left + 1] - padded[line, left]) * right for line in (top, top + 1))
    return upper + (lower - upper) * below


@lru_cache(maxsize=64)
def _background(name: str, width: int) -> NDArray[np.uint8]:
    with Image.open(panoramas.HERE / "images" / f"{name}.jpg") as picture:
        return np.asarray(picture.convert("RGB").resize((width, width // 2), Image.Resampling.LANCZOS))


@lru_cache(maxsize=256)
def _drawing(style: str, codepoint: str) -> Colours:
    """[S, S, 4]: colours from 0 to 255 times opacity, and opacity from 0 to 1."""
    with Image.open(drawings.HERE / "images" / style / f"{codepoint}.webp") as picture:
        pixels = np.asarray(picture.convert("RGBA"), np.float32)
    opacity = pixels[..., 3:] / 255
    return np.concatenate([pixels[..., :3] * opacity, opacity], axis=-1)
