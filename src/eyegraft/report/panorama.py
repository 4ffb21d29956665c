"""Panoramas on a page: each picture once, on it the outlines of the model's views with what they were worth, and a viewer that turns it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from eyegraft.report.pictures import picture_uri
from eyegraft.report.reading import finite, mapping
from eyegraft.report.words import fixed
from eyegraft.views import View

SIZE = (1024, 512)
"""Pixels of an embedded panorama, at most."""
BUDGET = 5_000_000
"""Characters of embedded panoramas in a gallery; later ones are left out."""
FULL_TINT = 0.05
"""Nats per token: where no view is worth as much as that, the tint stays pale, for the answer stands on none of them."""
LEFT_OUT = "picture left out"
"""The reason where that budget is spent."""
_POINTS = 25
"""Along each side of an outline."""


@dataclass(frozen=True)
class Mark:
    """A view on the flat picture, which is 360 wide and 180 high.

    Attributes:
        path: its outline as an SVG path; empty of the whole picture.
        worth: as text, empty where it was not measured.
        strength: share of the largest worth of the picture, 0 to 1; less where all are small.
    """

    label: str
    yaw: float
    pitch: float
    path: str
    worth: str
    strength: float


@dataclass(frozen=True)
class Panorama:
    """One picture with one answer's views.

    Attributes:
        key: of its picture on the page.
        yaw, pitch: where the viewer looks first: into the tile that was worth most, else ahead.
        measured: the views have worths.
    """

    key: str
    marks: Sequence[Mark]
    yaw: float
    pitch: float
    measured: bool


@dataclass
class Pictures:
    """The panoramas of a page, each embedded once."""

    folder: Path
    shown: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path -> its key on the page and its data URI."""
    spent: int = 0

    def add(self, image: Any) -> tuple[str | None, str]:
        """The key of a picture on the page, or None and the reason."""
        name = str(image)
        if name not in self.shown:
            if self.spent >= BUDGET:
                return None, LEFT_OUT
            uri, reason = picture_uri(image, self.folder, SIZE, quality=70)
            if uri is None:
                return None, reason
            self.shown[name] = f"p{len(self.shown) + 1}", uri
            self.spent += len(uri)
        return self.shown[name][0], ""


def layout_of(info: Mapping[str, Any]) -> list[View]:
    """The views of an evaluation; none where the model saw the picture itself."""
    layout = mapping(info.get("views")).get("layout")
    try:
        return [View(**entry) for entry in layout] if isinstance(layout, list) else []
    except TypeError:
        return []


def panorama(key: str, layout: Sequence[View], row: Mapping[str, Any]) -> Panorama:
    """A sample's picture with the views of the model that answered it."""
    given = mapping(row.get("views")).get("worth")
    worths = [finite(value) for value in given] if isinstance(given, list) and len(given) == len(layout) else [None] * len(layout)
    largest = max((worth for worth in worths if worth is not None), default=0.0)
    levels = len({view.pitch for view in layout if view.width < 360}) > 1
    marks = [_mark(view, worth, largest, levels) for view, worth in zip(layout, worths, strict=True)]
    tiles = [mark for view, mark in zip(layout, marks, strict=True) if view.width < 360]
    first = max(tiles, key=lambda mark: mark.strength, default=None)
    yaw, pitch = (first.yaw, first.pitch) if first is not None and first.strength > 0 else (0.0, 0.0)
    return Panorama(key, marks, yaw, pitch, any(worth is not None for worth in worths))


def _mark(view: View, worth: float | None, largest: float, levels: bool) -> Mark:
    yaw = 180 - (180 - view.yaw) % 360
    label = "whole" if view.width >= 360 else f"{yaw:+.0f}°".replace("-", "−").replace("+0°", "0°")
    if levels and view.width < 360:
        label += f", {abs(view.pitch):.0f}° {'up' if view.pitch >= 0 else 'down'}"
    strength = max(0.0, worth / max(largest, FULL_TINT)) if worth is not None else 0.0
    return Mark(label, yaw, view.pitch, outline(view), "" if worth is None else fixed(worth, 3, signed=True), round(strength, 3))


@cache
def outline(view: View) -> str:
    """What a view sees, as an SVG path in a box of 360 x 180 degrees: twice where it reaches over the seam of the picture."""
    if view.width >= 360:
        return ""
    along = np.linspace(-1, 1, _POINTS)[:-1]
    edge = np.ones_like(along)
    looks = view.directions(np.concatenate([along, edge, -along, -edge]), np.concatenate([-edge, along, edge, -along]))
    longitude, latitude = np.degrees(np.arctan2(looks[:, 0], looks[:, 2])), np.degrees(np.arcsin(np.clip(looks[:, 1], -1, 1)))
    unwrapped = np.unwrap(np.append(longitude, longitude[0]), period=360)
    x, y = unwrapped + 180, 90 - np.append(latitude, latitude[0])
    if abs(x[-1] - x[0]) > 180:  # it goes once around: a pole is in view
        pole = 0.0 if view.pitch > 0 else 180.0
        x, y = np.append(x, [x[-1], x[0]]), np.append(y, [pole, pole])
    return "".join(
        "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x + shift, y, strict=True)) + "Z"
        for shift in (-720, -360, 0, 360, 720)
        if (x + shift).min() < 359.9 and (x + shift).max() > 0.1
    )


@cache
def script() -> Markup:
    """The viewer, with its licence, and what starts and stops it."""
    here = Path(__file__).parent
    licence = (here / "pannellum" / "LICENSE").read_text(encoding="utf-8")
    viewer, own = (here / name for name in ("pannellum/pannellum.js", "panorama.js"))
    return Markup(f"/*! Pannellum\n{licence}*/\n{viewer.read_text(encoding='utf-8')}\n{own.read_text(encoding='utf-8')}")


def script_hash() -> str:
    """What the page's security policy allows to run, and nothing else (Content Security Policy Level 3)."""
    return base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()


@cache
def style() -> Markup:
    here = Path(__file__).parent
    return Markup("\n".join((here / name).read_text(encoding="utf-8") for name in ("pannellum/pannellum.css", "panorama.css")))
