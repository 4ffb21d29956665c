"""Things at known directions in panoramas of real places: questions that need a sharp look and a sense of direction.

Drawings (`prepare=drawings`) are pasted on the panoramas of `prepare=panoramas` as a camera that looks at them would see them, and each
picture is asked, in short words, what lies ahead, to the left, to the right or behind, where a thing is, how many there are, how far apart
two of them are, and whether there is one at all. The places, and the hands that drew the things, differ from split to split.

    images/<split>/0017-<hash>.jpg      the hash is of all that is in the picture, so a stopped run goes on where it stopped
    train|val|test.jsonl                questions; the column `things` has the true name, yaw, pitch and size of everything pasted
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eyegraft.config import Fraction, NonNegative, Positive, Strict
from eyegraft.console import progress
from eyegraft.errors import RecipeError, nearest
from eyegraft.files import write_atomically
from eyegraft.prepare import panoramas
from eyegraft.prepare.drawings import Config as Drawings
from eyegraft.prepare.drawings import pairs_of, put_licences
from eyegraft.prepare.sphere_things.plan import CHOICES, Asked, Limits, Scene, describe, plan
from eyegraft.prepare.sphere_things.render import jpeg

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
THINGS = (
    *("banana", "basketball", "bicycle", "cactus", "camera", "castle", "cat", "doughnut", "elephant", "fish", "frog", "guitar"),
    *("hamburger", "house", "mushroom", "octopus", "pineapple", "rocket", "snail", "strawberry", "sunflower", "television"),
    *("tractor", "trophy"),
)
_MADE_HERE = re.compile(r"\d{4,}-[0-9a-f]{12}\.jpg")


class Counts(Strict):
    """So many in each split."""

    train: Positive
    val: Positive
    test: Positive


class Config(Strict):
    """Attributes:
    panoramas: how many pictures in each split.
    questions: to each picture at most; no two of them name the same thing, so that none answers another.
    conversations: share of the training pictures whose questions are turns of one conversation; the others have a row a question.
    descriptions: every picture is described whole as well, in a row of a task of its own, so that no question reads it.
    things: names of drawings that training knows.
    drawings: which styles of drawings are in which split.
    num_things: fewest and most in one picture; every number in between as often.
    size_degrees: smallest and largest width and height of a thing.
    pitch_degrees: lowest and highest elevation of its middle.
    gap_degrees: of yaw, at least, between two things.
    width: of the pictures in pixels; they are half as high.
    quality: of the JPEG files.
    seed: another seed, other pictures and questions. More pictures of one seed begin with the same ones.
    workers: threads that draw.
    """

    panoramas: Counts = Counts(train=800, val=100, test=200)
    questions: Counts = Counts(train=5, val=5, test=5)
    conversations: Fraction = 0.0
    descriptions: bool = False
    things: tuple[str, ...] = THINGS
    drawings: Drawings = Drawings()
    num_things: tuple[Positive, Positive] = (2, 6)
    size_degrees: tuple[float, float] = (15.0, 30.0)
    pitch_degrees: tuple[float, float] = (-25.0, 25.0)
    gap_degrees: Annotated[float, Field(gt=0)] = 40.0
    width: Annotated[int, Field(ge=64, multiple_of=2)] = 1024
    quality: Annotated[int, Field(ge=1, le=95)] = 90
    seed: NonNegative = 0
    workers: Positive = 2

    @model_validator(mode="after")
    def _has_room(self) -> Config:
        for name in ("num_things", "size_degrees", "pitch_degrees"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}=({low:g}, {high:g}): give the lower one first")
        if self.size_degrees[0] < 2 or self.size_degrees[1] > 60:
            raise ValueError(f"size_degrees=({self.size_degrees[0]:g}, {self.size_degrees[1]:g}): give sizes between 2 and 60 degrees")
        if self.pitch_degrees[0] < -45 or self.pitch_degrees[1] > 45:
            raise ValueError(f"pitch_degrees=({self.pitch_degrees[0]:g}, {self.pitch_degrees[1]:g}): keep within 45 degrees of the horizon")
        if self.num_things[1] * self.gap_degrees > 360:
            raise ValueError(f"{self.num_things[1]} things, each {self.gap_degrees:g} degrees from the next, do not fit around 360 degrees")
        if self.num_things[1] >= len(set(self.things)):
            raise ValueError(f"up to {self.num_things[1]} different things of {len(set(self.things))}: name more, some must be missing")
        return self


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test.jsonl` and the pictures into `target`.

    Raises:
        RecipeError: a thing or a style of drawings that is not there.
    """
    outputs: list[str] = []
    facts: dict[str, dict[str, Any]] = defaultdict(dict)
    for number, split in enumerate(SPLITS):
        planned = plan(
            split,
            seed=[config.seed, number],
            num_scenes=getattr(config.panoramas, split),
            num_questions=getattr(config.questions, split),
            backgrounds=[path.stem for path in panoramas.pictures_of(panoramas.rows_of_splits()[split])],
            drawings=_drawings_of(config, split),
            limits=Limits(config.num_things, config.size_degrees, config.pitch_degrees, config.gap_degrees),
        )
        images = _draw([scene for scene, _ in planned], target, config)
        talks = round(config.conversations * len(planned)) if split == "train" else 0
        rows = [row for place, (scene, asked) in enumerate(planned) for row in _rows(scene, asked, images[scene.name], place < talks)]
        if config.descriptions:
            rows += [_answered(scene, images[scene.name], f"{scene.name}-scene", describe(scene)) for scene, _ in planned]
        write_atomically(target / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), durable=False)
        _take_away_others(target / "images" / split, images.values(), target)
        outputs += [f"{split}.jsonl", *images.values()]
        facts["rows"][split] = len(rows)
        facts["panoramas"][split] = len(planned)
        facts["answers"][split] = _tallied(asked for _, asked in planned)
        facts["most_frequent"][split] = _most_frequent(asked for _, asked in planned)
    put_licences(target)
    panoramas.put_licence(target)
    outputs += sorted(path.relative_to(target).as_posix() for path in (target / "LICENSES").glob("*.txt"))
    licence = "drawings: see LICENSES; panoramas and questions: CC0-1.0"
    return {**facts, "left_out": {}, "licence": licence, "simulated": True, "outputs": outputs}


def _drawings_of(config: Config, split: Split) -> dict[str, list[tuple[str, str]]]:
    """Name -> (style, code point) of its drawings in a split."""
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for style, concept in pairs_of(config.drawings)[split]:
        found[concept["name"]].append((style, concept["codepoint"]))
    for name in config.things:
        if name not in found:
            raise RecipeError(
                f"prepare.things: no drawing of {name!r}",
                f"one of the {len(found)} names that training knows",
                nearest(name, list(found)) or "see prepare/drawings/drawings.csv",
            )
    return {name: found[name] for name in sorted(set(config.things))}


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw(scenes: Sequence[Scene], target: Path, config: Config) -> dict[str, str]:
    """Draw the pictures that are not there; gives scene -> path relative to `target`."""
    images = {scene.name: f"images/{scene.split}/{scene.number:04}-{scene.digest(config.width, config.quality)}.jpg" for scene in scenes}
    todo = [scene for scene in scenes if not (target / images[scene.name]).exists()]
    draw = partial(jpeg, width=config.width, quality=config.quality)
    with progress(f"drawing {scenes[0].split}", len(todo)) as advance, ThreadPoolExecutor(config.workers) as pool:
        for first in range(0, len(todo), 64):  # what is drawn waits in memory until it is written
            some = todo[first : first + 64]
            for scene, content in zip(some, pool.map(draw, some), strict=True):
                write_atomically(target / images[scene.name], content, durable=False)
                advance()
    return images


def _take_away_others(folder: Path, images: Iterable[str], target: Path) -> None:
    """Delete what another configuration drew."""
    kept = {target / image for image in images}
    for path in folder.iterdir():
        if path not in kept and _MADE_HERE.fullmatch(path.name):
            path.unlink()


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _rows(scene: Scene, asked: Sequence[Asked], image: str, talks: bool) -> list[dict[str, Any]]:
    if talks:
        turns = [{"question": one.question, "answer": one.answer} for one in asked]
        return [_row(scene, image, scene.name, "conversation", turns=turns)]
    return [_answered(scene, image, f"{scene.name}-{number}", one) for number, one in enumerate(asked, 1)]


def _answered(scene: Scene, image: str, name: str, one: Asked) -> dict[str, Any]:
    return _row(scene, image, name, one.kind, prompt=one.question, caption=one.answer, choices=CHOICES.get(one.kind))


def _row(scene: Scene, image: str, name: str, kind: str, **values: Any) -> dict[str, Any]:
    """A row of the tables; those of conversations have the same columns."""
    own: Mapping[str, Any] = {"prompt": None, "caption": None, "choices": None, "turns": None, **values}
    things = [{**thing.facts, "style": thing.style} for thing in scene.things]
    about = {"panorama": scene.name, "background": scene.background, "things": things}
    return {"id": name, "image": image, "task": "describe" if kind == "scene" else "answer", **own, "kind": kind, **about}


def _tallied(asked: Iterable[Sequence[Asked]]) -> dict[str, dict[str, int]]:
    """Kind of question -> answer -> how often."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for some in asked:
        for one in some:
            found[one.kind][one.answer] += 1
    return {kind: dict(sorted(found[kind].items())) for kind in sorted(found)}


def _most_frequent(asked: Iterable[Sequence[Asked]]) -> dict[str, float]:
    """How often each kind of question, and any, is answered rightly by always giving its most frequent answer."""
    tallies = _tallied(asked)
    best = {kind: max(tally.values()) for kind, tally in tallies.items()}
    number = {kind: sum(tally.values()) for kind, tally in tallies.items()}
    shares = {kind: best[kind] / number[kind] for kind in tallies}
    return {kind: round(share, 4) for kind, share in {**shares, "all": sum(best.values()) / sum(number.values())}.items()}
