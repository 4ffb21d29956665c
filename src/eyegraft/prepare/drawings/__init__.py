"""Drawings of named things in several styles, shipped with eyegraft (see the README and LICENSES beside this file)."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from eyegraft.config import Positive, Strict
from eyegraft.console import track
from eyegraft.errors import RecipeError, nearest
from eyegraft.files import copy_whole, write_atomically

HERE = Path(__file__).parent


class Config(Strict):
    """Attributes:
    train_styles, val_style, test_style: drawing styles; no picture of one stands in the split of another.
    num_unseen: concepts that training and validation never see, chosen by the hash of their name.
    """

    train_styles: tuple[str, ...] = ("fluent_3d", "fluent_flat", "noto", "noto_v1", "emojione_2")
    val_style: str = "fxemoji"
    test_style: str = "twemoji"
    num_unseen: Positive = 79


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test|test_unseen.jsonl` and the images into `target`."""
    splits = pairs_of(config)
    for split, pairs in splits.items():
        rows = [put(style, row, target) for style, row in track(pairs, f"preparing {split}")]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(target / f"{split}.jsonl", text, durable=False)
    put_licences(target)
    return {"rows": {split: len(pairs) for split, pairs in splits.items()}, "left_out": {}}


def pairs_of(config: Config) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Split -> (style, concept) of its drawings.

    Raises:
        RecipeError: a style that is not there.
    """
    available = sorted(path.name for path in (HERE / "images").iterdir())
    for style in (*config.train_styles, config.val_style, config.test_style):
        if style not in available:
            raise RecipeError(f"prepare: no drawing style {style!r}", f"one of {', '.join(available)}", nearest(style, available))
    with (HERE / "drawings.csv").open(encoding="utf-8", newline="") as stream:
        concepts = list(csv.DictReader(stream))
    unseen = {
        row["codepoint"] for row in sorted(concepts, key=lambda row: hashlib.sha256(row["name"].encode()).hexdigest())[: config.num_unseen]
    }
    known = [row for row in concepts if row["codepoint"] not in unseen]
    new = [row for row in concepts if row["codepoint"] in unseen]
    return {
        "train": [(style, row) for style in config.train_styles for row in known],
        "val": [(config.val_style, row) for row in known],
        "test": [(config.test_style, row) for row in known],
        "test_unseen": [(config.test_style, row) for row in new],
    }


def put_licences(target: Path) -> None:
    for licence in (HERE / "LICENSES").iterdir():
        copy_whole(licence, target / "LICENSES" / licence.name)


def put(style: str, concept: dict[str, str], target: Path) -> dict[str, str]:
    """Copy a drawing into `target` and give its row."""
    image = Path("images") / style / f"{concept['codepoint']}.webp"
    copy_whole(HERE / image, target / image)
    return {
        "id": f"{style}/{concept['codepoint']}",
        "image": image.as_posix(),
        "name": concept["name"],
        "style": style,
        "concept": concept["codepoint"],
        "name_ko": concept["name_ko"],
    }
