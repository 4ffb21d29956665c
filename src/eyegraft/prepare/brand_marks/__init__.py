"""Brand marks against other drawings, shipped with eyegraft (see the README and LICENSES beside this file)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from eyegraft.config import Strict
from eyegraft.console import track
from eyegraft.files import copy_whole, write_atomically

HERE = Path(__file__).parent


class Config(Strict):
    """No options: pictures, texts and splits are as `brand_marks.csv` gives them."""


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test|test_new_styles.csv` and the images into `target`."""
    with (HERE / "brand_marks.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    splits: dict[str, list[dict[str, str]]] = {"train": [], "val": [], "test": [], "test_new_styles": []}
    for row in track(rows, "preparing brand_marks"):
        copy_whole(HERE / row["local_image_path"], target / row["local_image_path"])
        splits[row.pop("split")].append(row)
    for split, kept in splits.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, list(kept[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(target / f"{split}.csv", text.getvalue(), durable=False)
    for licence in (HERE / "LICENSES").glob("*.txt"):
        copy_whole(licence, target / "LICENSES" / licence.name)
    return {
        "rows": {split: len(kept) for split, kept in splits.items()},
        "positives": {split: sum(row["label"] == "True" for row in kept) for split, kept in splits.items()},
        "with_text": {split: sum(bool(row["text_info"]) for row in kept) for split, kept in splits.items()},
        "left_out": {},
    }
