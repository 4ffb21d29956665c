"""Panoramas: whether a picture is one, and its views as pixels.

The map from a view's pixels to the panorama's depends on nothing but the view's shape and the two sizes. It is computed once and shared by
all views that differ in yaw alone, and by all pictures; OpenCV then reads the panorama through it, closed across the seam and the poles.

Where the panorama is finer than the view, a point read by itself would flicker, so pixels are averaged twice: the panorama is shrunk by
a whole number while it stays at least twice as fine as its finest view, and in every view several points are then read for each pixel: two
a side at least, and at most 1.5 panorama pixels apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eyegraft.data.images import opened, upright_size
from eyegraft.errors import DataError, PartError
from eyegraft.views import View, Views

NOT_WHOLE = "not 2:1"
PARTIAL = "partial panorama"

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

_TOLERANCE = 0.01  # of 2:1: stitchers are a few rows off; a photograph (3:2, 16:9) and a cut panorama are far beyond it
_FINEST = 2  # panorama pixels to a view's at least, after shrinking
_SPACING = 1.5  # panorama pixels between points that are read: on noise 2 was up to 10 dB worse, and 1 took twice the time
_STEPS = 64  # places are rounded to this part of a pixel: then turning by whole pixels is exact in float32
_FIX = "pad it to the whole sphere, or set views=none for ordinary pictures"
_GPANO = re.compile(rb"GPano:(\w+)\s*(?:=\s*[\"']|>)\s*([\d.]+)")
_FIELD = re.compile(rb"FOV: *([\d.]+) *x *([\d.]+)")
_EXIF, _DESCRIPTION, _COMMENT = 0x8769, 0x010E, 0x9286


# ── what is a panorama ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def fault(width: int, height: int) -> str:
    """Why a picture of this size cannot be a whole panorama; empty where it can: twice as wide as high, within 1 %."""
    if abs(width / (2 * height) - 1) <= _TOLERANCE:
        return ""
    return f"{width} x {height} pixels, {width / height:.3g}:1, and not 2:1 within {_TOLERANCE:.0%}; {_FIX}"


def refusal(picture: str, detail: str) -> DataError:
    """The error for a picture that is no whole panorama, from what `fault` or `fault_of` said of it."""
    given, _, fix = detail.partition("; ")
    return DataError(f"{picture}: {given}", "a whole panorama, twice as wide as high", fix)


def fault_of(path: Path) -> tuple[str, str]:
    """Why the picture of a file is no whole panorama, as (reason, detail); both empty where it is one. Only the header is read.

    A partial panorama says so in its metadata, even at 2:1: in XMP the cropped area beside that of the full panorama (Photo Sphere XMP,
    Google), or in the EXIF comment its field of view, as Hugin writes it.
    """
    with opened(path) as image:
        width, height = upright_size(image)
        xmp = image.info.get("xmp") or b""
        exif = image.getexif()
        notes = [exif.get(_DESCRIPTION), exif.get_ifd(_EXIF).get(_COMMENT)]
    said = {name: float(number) for name, number in _GPANO.findall(_bytes(xmp)) if _is_number(number)}
    for side in (b"Width", b"Height"):
        seen, whole = said.get(b"CroppedAreaImage%sPixels" % side), said.get(b"FullPano%sPixels" % side)
        if seen and whole and seen < whole * (1 - _TOLERANCE):
            detail = f"its XMP says {seen:.0f} of {whole:.0f} pixels of the {side.decode().lower()}; {_FIX}"
            return PARTIAL, detail
    for note in notes:
        if (field := _FIELD.search(_bytes(note))) and all(_is_number(number) for number in field.groups()):
            across, down = (float(number) for number in field.groups())
            if across < 360 * (1 - _TOLERANCE) or down < 180 * (1 - _TOLERANCE):
                return PARTIAL, f"its EXIF comment says {across:g} x {down:g} degrees of 360 x 180; {_FIX}"
    wrong = fault(width, height)
    return (NOT_WHOLE, wrong) if wrong else ("", "")


def faults_of(paths: Iterable[Path]) -> dict[Path, tuple[str, str]]:
    """path -> (reason, detail) for the files that are no whole panorama; files must be readable pictures."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(8) as pool:
        return {path: found for path, found in zip(wanted, pool.map(fault_of, wanted), strict=True) if found[0]}


def _bytes(value: Any) -> bytes:
    """Metadata as bytes whose ASCII can be searched: without the zeros of UTF-16."""
    return (value if isinstance(value, bytes) else str(value or "").encode()).replace(b"\0", b"")


def _is_number(text: bytes) -> bool:
    return text.replace(b".", b"", 1).isdigit()


# ── views as pixels ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def render(picture: Pixels | Image.Image, views: Views, size: Size) -> Pixels:
    """The views of a panorama, [V, h, w, C] uint8.

    Args:
        picture: equirectangular, [H, W, C] or [H, W] uint8 or a picture of mode `RGB` or `L`, W = 2 H within 1 %.
        views: which.
        size: (h, w) of each view in pixels.

    Raises:
        DataError: the picture is not 2:1.
        PartError: OpenCV is not installed.
    """
    cv2 = _opencv()
    closed = _closed(shrunk(picture, views, size))
    height, width = closed.shape[0] - 2, closed.shape[1]
    seen = np.empty((views.num_views, *size, 1 if closed.ndim == 2 else closed.shape[2]), np.uint8)
    for number, view in enumerate(views.views):
        columns, rows = _places(replace(view, yaw=0.0), (height, width), size)
        turn = ((view.yaw + 180) % 360 - 180) / 360 * width
        columns = columns + np.float32(round(turn * _STEPS) / _STEPS)
        points = cv2.remap(closed, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        if points.shape[:2] != size:
            points = cv2.resize(points, size[::-1], interpolation=cv2.INTER_AREA)
        seen[number] = ((points + np.uint16(128)) >> 8).reshape(seen.shape[1:])
    return seen


def shrunk(picture: Pixels | Image.Image, views: Views, size: Size) -> Pixels:
    """A panorama as fine as its views need, and no finer; `render` does the same first, and finds no more to do then.

    Args, Raises: as in `render`.
    """
    pixels: Pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    if wrong := fault(width, height):
        raise refusal("a picture", wrong)
    most = int(width / (_FINEST * finest(views, size)))
    whole = [by for by in range(most, most // 2, -1) if width % by == height % by == 0]  # blocks that fit are faster, and turn with it
    by = whole[0] if whole else most
    if by < 2:
        return pixels
    cv2 = _opencv()
    smaller: Pixels = cv2.resize(pixels, (round(width / by), round(height / by)), interpolation=cv2.INTER_AREA)
    return smaller


def finest(views: Views, size: Size) -> float:
    """The width of a panorama whose pixels are as large as the smallest in the middles of the views."""
    height, width = size
    return max(max(360 / across * width, 360 / down * height) for across, down in map(_spans, views.views))


def _spans(view: View) -> tuple[float, float]:
    """The degrees that a view would have across and down if all its pixels were like those in its middle."""
    if view.kind == "equirect":
        return view.width, view.height
    across, down = (math.degrees(2 * math.tan(math.radians(side) / 2)) for side in (view.width, view.height))
    return across, down


def _closed(pixels: Pixels) -> NDArray[np.uint16]:
    """One more row beyond each pole, which is the other side of the last one; columns are wrapped while they are read.

    In 256ths of a level: interpolating and averaging would else round twice, and OpenCV takes no longer.
    """
    half = pixels.shape[1] // 2
    closed = np.empty((pixels.shape[0] + 2, *pixels.shape[1:]), np.uint16)
    np.multiply(pixels, 256, out=closed[1:-1], dtype=np.uint16)
    closed[0], closed[-1] = np.roll(closed[1], half, axis=0), np.roll(closed[-2], half, axis=0)
    return closed


@lru_cache(maxsize=32)
def _places(view: View, panorama: Size, size: Size) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row in the closed panorama of every point that is read for a view, [h·a, w·b] each, a·b points for a pixel.

    Directions of the middles of pixels go to the middles of pixels: the panorama's column c looks at longitude
    ((c + 1/2) / W - 1/2) · 360.
    """
    (height, width), (across, down) = panorama, _spans(view)
    per_row, per_column = _num_points(height * down / 180 / size[0]), _num_points(width * across / 360 / size[1])
    looks = view.cells(size[0] * per_row, size[1] * per_column)
    longitude = np.arctan2(looks[..., 0], looks[..., 2]) / (2 * math.pi) + 0.5
    latitude = 0.5 - np.arcsin(np.clip(looks[..., 1], -1, 1)) / math.pi
    columns, rows = longitude * width - 0.5, latitude * height + 0.5
    fixed = [np.round(values * _STEPS).astype(np.float32) / np.float32(_STEPS) for values in (columns, rows)]
    for values in fixed:
        values.flags.writeable = False  # they are shared
    return fixed[0], fixed[1]


def _num_points(finer: float) -> int:
    """Points along a side of a view's pixel, which is as large as so many of the panorama's."""
    return 1 if finer <= 1 + 1e-6 else max(2, math.ceil(finer / _SPACING - 1e-6))


def stop_without_opencv() -> None:
    """Raises:
    PartError: OpenCV, which draws views, is not installed.
    """
    _opencv()


@cache
def _opencv() -> Any:
    """OpenCV on one thread: loaders read in several processes, and its threads do not survive a fork."""
    try:
        import cv2
    except ImportError as error:
        raise PartError(
            "views of a panorama, but OpenCV is not installed", "the extra `panorama`", "pip install 'eyegraft[panorama]'"
        ) from error
    cv2.setNumThreads(1)
    return cv2
