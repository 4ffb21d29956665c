"""Drawings to name and shapes to answer questions about: two tasks in one folder, small enough for a CPU.

The drawings are those of `prepare=drawings`, rows of the task `captions`. The shapes are easy-VQA (Zhou 2019, MIT licence,
https://github.com/vzhou842/easy-VQA), from the package `easy-vqa`: 64 x 64 pixels with one circle, rectangle or triangle in one of eight
colours, and questions that templates made; rows of the task `instruct`.

Asked alone, without a picture, four of five of easy-VQA's yes-or-no questions can be answered ("is there a red shape?": mostly no). So a
picture is asked, turn by turn, for its shape, its colour, what is there and what is not, and the words of a question tell nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from eyegraft.config import Fraction, NonNegative, Positive, Strict
from eyegraft.console import track
from eyegraft.data.duplicates import alike_pairs, fingerprint
from eyegraft.errors import DataError
from eyegraft.files import copy_whole, write_atomically
from eyegraft.prepare.drawings import Config as Drawings
from eyegraft.prepare.drawings import pairs_of, put, put_licences

ALIKE = "looks like a picture that is held out"
CHOICES = {
    "yes or no": ("yes", "no"),
    "shape": ("circle", "rectangle", "triangle"),
    "colour": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}
_KIND_OF = {answer: kind for kind, answers in CHOICES.items() for answer in answers}
_NEGATION = re.compile(r"\b(?:no|not)\b")
_SHAPE = re.compile("|".join(CHOICES["shape"]))

_AT_ONCE = 16

Split = Literal["train", "val", "test"]


class Counts(Strict):
    """So many in each split."""

    train: Positive
    val: Positive
    test: Positive


class Config(Strict):
    """Attributes:
    drawings: which styles of drawings are in which split; things that no split learns are left out.
    pictures: how many pictures of shapes. `val` is cut from the package's training pictures.
    questions: to each of these pictures.
    conversations: share of the training pictures whose questions are turns of one conversation; the others have a row a question.
    balanced: as many questions about what is there as about what is not, about shape and about colour; else as the package has them.
    seed: another seed, other pictures and questions.
    """

    drawings: Drawings = Drawings()
    pictures: Counts = Counts(train=600, val=100, test=300)
    questions: Counts = Counts(train=4, val=4, test=2)
    conversations: Fraction = 0.5
    balanced: bool = True
    seed: NonNegative = 0


@dataclass(frozen=True)
class Shapes:
    """A picture of easy-VQA and all that it is asked.

    Attributes:
        name: `train/17`.
        asked: (question, answer) pairs.
    """

    name: str
    file: Path
    asked: tuple[tuple[str, str], ...]


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test.jsonl` and the images into `target`.

    Raises:
        DataError: easy-vqa is not installed, or has fewer pictures than are asked for.
        RecipeError: a drawing style that is not there.
    """
    found, left_out = _cut(config)
    pairs = pairs_of(config.drawings)
    counts: dict[str, Counter[str]] = {}
    for split, pictures in found.items():
        rows = [_caption(style, concept, target) for style, concept in track(pairs[split], f"preparing {split}")]
        for picture in pictures:
            copy_whole(picture.file, target / _image(picture))
            asked = picture.asked[: getattr(config.questions, split)]
            talks = split == "train" and _fraction(config.seed, f"talk {picture.name}") < config.conversations
            rows += _conversation(picture, asked) if talks else _questions(picture, asked)
        counts[split] = Counter(row["task"] for row in rows)
        write_atomically(target / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), durable=False)
    put_licences(target)
    write_atomically(target / "LICENSES" / "easy-vqa.txt", distribution("easy-vqa").read_text("LICENSE") or "MIT", durable=False)
    return {
        "rows": {split: sum(tally.values()) for split, tally in counts.items()},
        "rows_of_task": {split: dict(tally) for split, tally in counts.items()},
        "left_out": {ALIKE: left_out},
        "licence": "drawings: see LICENSES; shapes and questions: MIT (Victor Zhou)",
    }


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _package() -> Path:
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise DataError("easy-vqa is not installed", "the package with pictures of shapes and questions", "pip install 'eyegraft[demo]'")
    return Path(spec.origin).parent


def _pool(split: str, count: int, config: Config) -> list[Shapes]:
    """Pictures of one of the package's splits that can be asked so many questions, in an order that the seed gives."""
    folder = _package() / "data" / split
    asked: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        if (question, answer) not in asked[image]:
            asked[image].append((question, answer))
    pictures = [Shapes(f"{split}/{image}", folder / "images" / f"{image}.png", tuple(pairs)) for image, pairs in asked.items()]
    pool = [replace(picture, asked=tuple(_in_order(picture, config))) for picture in pictures]
    pool = [picture for picture in pool if len(picture.asked) >= count]
    return sorted(pool, key=lambda picture: _fraction(config.seed, picture.name))


def _cut(config: Config) -> tuple[dict[Split, list[Shapes]], int]:
    """Split -> its pictures, and how many were passed over because they look like one that is held out from them."""
    asked, wanted = config.questions, config.pictures
    learned, tested = _pool("train", max(asked.train, asked.val), config), _pool("test", asked.test, config)
    _stop_at_too_few(tested, config, "test")
    test = tested[: wanted.test]
    apart, passed_over = _unlike(learned, test, wanted.val + wanted.train)
    _stop_at_too_few(apart, config, "val")
    val = apart[: wanted.val]
    train, of_those = _unlike(apart[wanted.val :], val, wanted.train)
    _stop_at_too_few(train, config, "train")
    return {"train": train[: wanted.train], "val": val, "test": test}, passed_over + of_those


def _unlike(pictures: Sequence[Shapes], held_out: Sequence[Shapes], count: int) -> tuple[list[Shapes], int]:
    """At least so many that look like none that is held out, as far as there are; and how many do (see `eyegraft.data.duplicates`)."""
    theirs = [_fingerprint(picture.file) for picture in held_out]
    kept: list[Shapes] = []
    seen = 0
    while len(kept) < count and seen < len(pictures):
        some = pictures[seen : seen + max(_AT_ONCE, count - len(kept))]
        prints = [*(_fingerprint(picture.file) for picture in some), *theirs]
        alike = set(alike_pairs(prints, [0] * len(some) + [1] * len(theirs), [(0, 1)])[0].tolist())
        kept += [picture for place, picture in enumerate(some) if place not in alike]
        seen += len(some)
    return kept, seen - len(kept)


def _fingerprint(file: Path) -> bytes:
    with Image.open(file) as image:
        return fingerprint(image.convert("RGB"))


def _stop_at_too_few(pictures: Sequence[Shapes], config: Config, split: Split) -> None:
    wanted = getattr(config.pictures, split)
    if len(pictures) < wanted:
        given = f"prepare.pictures.{split}={wanted}"
        raise DataError(
            given,
            f"at most {len(pictures)}: so many have enough questions and look like no other",
            f"set prepare.pictures.{split}={len(pictures)}",
        )


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _in_order(picture: Shapes, config: Config) -> list[tuple[str, str]]:
    """A picture's questions in an order that the seed gives; balanced, of one kind after the other, as far as there are any."""

    def chance(text: str) -> float:
        return _fraction(config.seed, f"{picture.name} {text}")

    order = sorted(picture.asked, key=lambda pair: chance(pair[0]))
    if not config.balanced:
        return order
    kinds = {kind: [pair for pair in order if _KIND_OF[pair[1]] == kind] for kind in CHOICES}
    # anew: those that come first of many are early ones, and would stand before those that come first of few
    kinds["yes or no"] = sorted(_balanced(kinds["yes or no"]), key=lambda pair: chance(f"again {pair[0]}"))
    turns = [kinds[kind] for kind in sorted(kinds, key=chance)]
    return [pairs[place] for place in range(len(order)) for pairs in turns if place < len(pairs)]


def _balanced(asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """As many questions that name what is there as that name what is not, of shapes and of colours alike; in the given order."""
    sorts: defaultdict[tuple[bool, bool], list[tuple[str, str]]] = defaultdict(list)
    for question, answer in asked:
        there = (answer == "yes") != bool(_NEGATION.search(question))
        sorts[bool(_SHAPE.search(question)), there].append((question, answer))
    kept = {pair for named in (False, True) for both in zip(sorts[named, False], sorts[named, True], strict=False) for pair in both}
    return [pair for pair in asked if pair in kept]


def _fraction(seed: int, text: str) -> float:
    return int.from_bytes(sha256(f"{seed}\0{text}".encode()).digest()[:6]) / 2**48


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _caption(style: str, concept: dict[str, str], target: Path) -> dict[str, Any]:
    row = put(style, concept, target)
    return _row(row["id"], row["image"], "captions", style, "name", caption=row["name"])


def _questions(picture: Shapes, asked: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for number, (question, answer) in enumerate(asked, 1):
        kind = _KIND_OF[answer]
        values = {"prompt": question, "caption": answer, "choices": CHOICES[kind]}
        rows.append(_row(f"{picture.name}-{number}", _image(picture), "instruct", picture.name, kind, **values))
    return rows


def _conversation(picture: Shapes, asked: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    turns = [{"question": question, "answer": answer} for question, answer in asked]
    return [_row(picture.name, _image(picture), "instruct", picture.name, "conversation", turns=turns)]


def _image(picture: Shapes) -> str:
    return f"images/shapes/{picture.name}.png"


def _row(name: str, image: str, task: str, group: str, kind: str, **values: Any) -> dict[str, Any]:
    """A row of the tables; those of both tasks have the same columns."""
    own: Mapping[str, Any] = {"prompt": None, "caption": None, "turns": None, "choices": None, **values}
    return {"id": name, "image": image, "task": task, **own, "kind": kind, "group": group}
