"""Adverts in small: coloured shapes on noise with words beside some of them, as tables of labels; and the words of the recipe on tiny folders."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS, SHAPES = ("red", "blue", "green"), ("square", "circle", "triangle")
COUNTS = {"train": 24, "val": 9, "test": 12}


def picture(path: Path, number: int, colour: str, shape: str) -> Path:
    """A shape on noise, so that no two pictures look alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((48, 36), Image.Resampling.NEAREST)
    draw, box = ImageDraw.Draw(image), (14, 8, 34, 28)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(24, 8), (14, 28), (34, 28)], fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    image.save(path)
    return path


def rows(counts: dict[str, int], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Split -> rows of {id, local_image_path, colour, shape, text_info}; every third row has no words."""
    found: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for split, count in counts.items():
        found[split] = []
        for place in range(count):
            colour, shape = COLOURS[place % 3], SHAPES[place // 3 % 3]
            picture(folder / "images" / f"{number}.png", number, colour, shape)
            text = "" if place % 3 == 2 else f"a {colour} {shape}"
            names = {"id": f"{split}/{place}", "local_image_path": f"images/{number}.png"}
            found[split].append({**names, "colour": colour, "shape": shape, "text_info": text})
            number += 1
    return found


def adverts(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """`<split>.csv` with the columns of the recipe: red is True. `classes.jsonl`-like tables of colours and of both names lie beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    spellings = {True: ("True", "1", "TRUE", "true", "1.0"), False: ("False", "0", "FALSE", "false", "0.0")}
    for split, found in rows(counts or COUNTS, folder).items():
        labels = [spellings[row["colour"] == "red"][place % 5] for place, row in enumerate(found)]
        write_csv(folder / f"{split}.csv", [{**row, "label": label} for row, label in zip(found, labels, strict=True)])
        both = [[row["colour"], row["shape"]] if row["shape"] != "square" else ["none"] for row in found]
        lines = [json.dumps({**row, "label": label}) for row, label in zip(found, both, strict=True)]
        (folder / f"both-{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_csv(path: Path, table: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def ad_words(folders: Any, *overrides: str, vision: str = "siglip") -> list[str]:
    """The recipe `ad_classifier` on tiny folders in the hub's layout, for a second or two."""
    return [
        "recipe=ad_classifier",
        "vision_encoder=siglip2_base",
        f"vision_encoder.model={folders.vision(vision)}",
        "vision_encoder.architecture=null",
        "vision_encoder.preprocessor=null",
        *(text_words(folders) if "text_encoder=none" not in overrides else ()),
        "head.hidden_dim=16",
        "data.columns.id=id",
        "num_threads=1",
        "train.epochs=3",
        "train.batch_size=8",
        "train.learning_rate=0.01",
        "evaluation.num_resamples=40",
        *overrides,
    ]


def text_words(folders: Any) -> list[str]:
    return [f"text_encoder.model={folders.text('bert')}", "text_encoder.architecture=null", "text_encoder.max_tokens=32"]


@contextmanager
def logged() -> Iterator[StringIO]:
    """What is said meanwhile, from information on."""
    said, logger = StringIO(), logging.getLogger("eyegraft")
    handler, level = logging.StreamHandler(said), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
