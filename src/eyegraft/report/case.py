"""The page of a case: its maps with what a run wrote about each, the summary, and how it came to all of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyegraft.files import write_atomically
from eyegraft.report.page import environment
from eyegraft.report.pictures import picture_uri
from eyegraft.report.reading import finite, mapping
from eyegraft.report.words import probability

SIZE = (900, 900)
"""Pixels that a map is made to fit into: its labels must stay legible."""
QUALITY = 80
BUDGET = 12_000_000
"""Characters of embedded maps; later ones are left out."""


@dataclass(frozen=True)
class Map:
    """One map with its texts.

    Attributes:
        kind: its class, and who says so.
        remark: where the encoder sees another class than the one that was given.
        picture: data URI, or None with the reason in `no_picture`.
    """

    name: str
    kind: str
    remark: str
    element: Mapping[str, Any]
    picture: str | None
    no_picture: str


def write_case_page(report: Mapping[str, Any], root: Path, target: Path) -> Path:
    """Write the page of a report that `eyegraft.serving.case_report` made, in one file.

    Args:
        root: the folder that relative images lie in.
    """
    maps, spent = [], 0
    for element in report["elements"]:
        path = str(element["image"]).replace("\\", "/")
        picture, reason = picture_uri(path, root, SIZE, quality=QUALITY) if spent < BUDGET else (None, "picture left out")
        spent += len(picture or "")
        maps.append(Map(path, *_kind(element), element, picture, reason))
    page = environment().get_template("case.html.j2").render(report=report, maps=maps, model=mapping(report["model"]))
    write_atomically(target, page)
    return target


def _kind(element: Mapping[str, Any]) -> tuple[str, str]:
    """`ttd, as given`, `ttd, predicted (0.83)`; and what the encoder sees where that is another class."""
    name, seen = element["condition"], mapping(element["condition_seen"])
    if not name:
        return "class unknown", ""
    sure = f" ({probability(finite(seen.get('probability')))})" if seen else ""
    if element["condition_from"] == "predicted":
        return f"{name}, predicted{sure}", ""
    other = seen and seen.get("name") != name
    return f"{name}, as given", f"The model itself goes by its own classifier, which sees {seen['name']}{sure}." if other else ""
