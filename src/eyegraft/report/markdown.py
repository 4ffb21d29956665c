"""Markdown in which whatever stands in the data stays text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left_last: bool = False) -> Iterator[str]:
    """The first column to the left, the others, which are numbers, to the right; the last one too unless it is words."""
    yield row(heads)
    yield row(["---", *["---:"] * (len(heads) - 2), "---" if left_last else "---:"])
    yield from map(row, rows)


def text(value: Any) -> str:
    """One line in which nothing is markup: what stands in a table or was read from a picture may look like Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|~$&])", r"\\\1", " ".join(str(value).split()))


def code(value: str) -> str:
    """The text as code, within more backticks than it holds in a row."""
    line = " ".join(value.split("\n"))
    fence = "`" * (1 + max((len(found) for found in re.findall(r"`+", line)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def link(image: str, folder: Path) -> str:
    """A picture's address from the run folder (resolved), or a `file:` address where no relative path leads there (another Windows drive).

    Letters of every script stay readable; what Markdown or an address would trip over is percent-encoded.
    """
    path = folder / image  # an absolute path stands on its own
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_uri()
    return re.sub(r"[^\w/.~-]", lambda found: quote(found[0]), relative)
