"""Panoramas of 18 places with queries and captions, shipped with eyegraft (see the README and LICENSES beside this file)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eyegraft.config import Strict
from eyegraft.console import track
from eyegraft.files import copy_whole, write_atomically

HERE = Path(__file__).parent
COLUMNS = ("url", "query", "annotation")
LICENCE = "CC0-1.0, pictures and captions alike"
_FILES = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}


class Config(Strict):
    """No options: pictures, captions and splits are as `panoramas.csv` gives them."""


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|valid|test.csv` and the images into `target`."""
    splits = rows_of_splits()
    for split, rows in splits.items():
        for url in track(sorted({row["url"] for row in rows}), f"preparing {split}"):
            copy_whole(HERE / url, target / url)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(target / _FILES[split], text.getvalue(), durable=False)
    put_licence(target)
    return {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "panoramas": {split: len({row["url"] for row in rows}) for split, rows in splits.items()},
        "left_out": {},
        "licence": LICENCE,
    }


def rows_of_splits() -> dict[str, list[dict[str, str]]]:
    """Split -> its rows. A place is in one split alone."""
    with (HERE / "panoramas.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {split: [row for row in rows if row["split"] == split] for split in _FILES}


def pictures_of(rows: Sequence[dict[str, str]]) -> list[Path]:
    """The files of the panoramas that rows are about, in the order of their names."""
    return [HERE / url for url in sorted({row["url"] for row in rows})]


def put_licence(target: Path) -> None:
    copy_whole(HERE / "LICENSES" / "panoramas.txt", target / "LICENSES" / "panoramas.txt")
