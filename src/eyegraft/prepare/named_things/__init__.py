"""Is the thing alive? The drawings, with CLDR keywords beside some of them: a set in which a picture and its words know different things.

The drawings and the words are real; which rows have words is simulated, by a hash. See the README beside this file.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eyegraft.config import Fraction, Strict
from eyegraft.errors import RecipeError, nearest
from eyegraft.files import copy_whole, write_atomically
from eyegraft.prepare import drawings

HERE = Path(__file__).parent
COLUMNS = ("local_image_path", "label", "text_info", "concept", "name", "style", "id")
LIVING = "animals-nature"  # the group of Unicode's emoji list that holds animals and plants
_SHARES = {"train": 0.4, "val": 0.2, "test": 0.4}  # of the concepts of each label


class Config(Strict):
    """Attributes:
    train_styles: drawing styles of the training pictures.
    new_styles: drawing styles of the validation and test pictures.
    text_share: share of the rows that have words, chosen by the hash of their id.
    """

    train_styles: tuple[str, ...] = ("fluent_3d", "fluent_flat", "noto")
    new_styles: tuple[str, ...] = ("noto_v1", "fxemoji", "twemoji", "emojione_2")
    text_share: Fraction = 0.55


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test.csv` and the images into `target`.

    Raises:
        RecipeError: a style that is not there, or one that is both for training and new.
    """
    _check(config)
    things = _read(drawings.HERE / "drawings.csv")
    words = {row["codepoint"]: row["keywords"] for row in _read(HERE / "keywords.csv")}
    facts: dict[str, dict[str, int]] = {"rows": {}, "positives": {}, "with_text": {}}
    for split, concepts in _split(things).items():
        styles = config.train_styles if split == "train" else config.new_styles
        rows = [_row(style, thing, words[thing["codepoint"]], config.text_share) for style in styles for thing in concepts]
        for row in rows:
            copy_whole(drawings.HERE / row["local_image_path"], target / row["local_image_path"])
        _write(target / f"{split}.csv", rows)
        facts["rows"][split] = len(rows)
        facts["positives"][split] = sum(row["label"] == "True" for row in rows)
        facts["with_text"][split] = sum(bool(row["text_info"]) for row in rows)
    licences = [HERE / "LICENSES" / "keywords.txt", *((drawings.HERE / "LICENSES").glob("*.txt"))]
    for licence in licences:
        copy_whole(licence, target / "LICENSES" / licence.name)
    return {**facts, "left_out": {}}


def _check(config: Config) -> None:
    available = sorted(path.name for path in (drawings.HERE / "images").iterdir())
    for style in (*config.train_styles, *config.new_styles):
        if style not in available:
            raise RecipeError(f"prepare: no drawing style {style!r}", f"one of {', '.join(available)}", nearest(style, available))
    if both := sorted(set(config.train_styles) & set(config.new_styles)):
        raise RecipeError(
            f"prepare: {', '.join(both)} in both train_styles and new_styles",
            "styles that are new where the model is tested",
            f"take {both[0]} out of one of the two lists",
        )


def _split(things: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Cut the concepts of each label by the hash of their name, so that a concept stands in one split and the labels in equal shares."""
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in _SHARES}
    for living in (True, False):
        same = sorted((thing for thing in things if (thing["group"] == LIVING) == living), key=lambda thing: _fraction(thing["name"]))
        start, share = 0, 0.0
        for split, part in _SHARES.items():
            share += part
            end = round(share * len(same))
            splits[split] += same[start:end]
            start = end
    return splits


def _row(style: str, thing: dict[str, str], keywords: str, text_share: float) -> dict[str, str]:
    code = thing["codepoint"]
    return {
        "local_image_path": f"images/{style}/{code}.webp",
        "label": str(thing["group"] == LIVING),
        "text_info": keywords if _fraction(f"words {style}/{code}") < text_share else "",
        "concept": code,
        "name": thing["name"],
        "style": style,
        "id": f"{style}/{code}",
    }


def _fraction(text: str) -> float:
    """A number in [0, 1) that is a pure function of the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue(), durable=False)
