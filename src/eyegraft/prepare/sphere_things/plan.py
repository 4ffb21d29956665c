"""What stands where in each picture, and what is asked about it: decided by the seed before anything is drawn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WORLD = 1
"""Changes with every change of the drawing that moves a pixel: older pictures are then drawn again."""

AXES = {"ahead": 0.0, "right": 90.0, "behind": 180.0, "left": -90.0}
_SAID = {"ahead": "ahead", "right": "on the right", "behind": "behind", "left": "on the left"}
TURNS = (45, 90, 135, 180)
CHOICES: dict[str, tuple[str, ...]] = {
    "where": tuple(AXES),
    "apart": tuple(str(turn) for turn in TURNS),
    "exists": ("yes", "no"),
}
KINDS = ("what", "where", "count", "apart", "exists")
NEAR = 35.0  # degrees of yaw from an axis within which a thing is "ahead", "on the left" …
CLEAR = 55.0  # and from which on another thing is not
EXACT = 12.0  # degrees by which a turn may differ from its class


@dataclass(frozen=True)
class Thing:
    """A drawing on the sphere: its middle, and its width and height, in degrees."""

    name: str
    style: str
    codepoint: str
    yaw: float
    pitch: float
    degrees: float

    @property
    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "yaw": self.yaw, "pitch": self.pitch, "degrees": self.degrees}

    def off(self, axis: float) -> float:
        """Degrees of yaw between it and an axis, 0 to 180."""
        return apart(self.yaw, axis)


@dataclass(frozen=True)
class Scene:
    """One picture: a panorama of a real place, rolled to the right, with things on it."""

    split: str
    number: int
    background: str
    roll_degrees: float
    things: tuple[Thing, ...]

    @property
    def name(self) -> str:
        return f"{self.split}/{self.number}"

    def digest(self, width: int, quality: int) -> str:
        """12 digits that change with anything in the picture."""
        facts = [WORLD, width, quality, asdict(self)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the things that either names."""

    kind: str
    question: str
    answer: str
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Limits:
    """How many things, how large, how high, how far from one another; see `Config`."""

    num_things: tuple[int, int]
    size_degrees: tuple[float, float]
    pitch_degrees: tuple[float, float]
    gap_degrees: float


def plan(
    split: str,
    *,
    seed: Sequence[int],
    num_scenes: int,
    num_questions: int,
    backgrounds: Sequence[str],
    drawings: Mapping[str, Sequence[tuple[str, str]]],
    limits: Limits,
) -> list[tuple[Scene, list[Asked]]]:
    """Scenes with their questions. The first of more scenes are the same as of fewer."""
    tally: defaultdict[str, Counter[str]] = defaultdict(Counter)
    planned = []
    for number in range(num_scenes):
        random = np.random.default_rng([*seed, number])
        scene = _scene(split, number, random, backgrounds, drawings, limits)
        planned.append((scene, _ask(scene, num_questions, tuple(drawings), tally, random)))
    return planned


def apart(one: float, other: float) -> float:
    """Degrees between two yaws, 0 to 180."""
    return abs((one - other + 180) % 360 - 180)


def _scene(
    split: str,
    number: int,
    random: np.random.Generator,
    backgrounds: Sequence[str],
    drawings: Mapping[str, Sequence[tuple[str, str]]],
    limits: Limits,
) -> Scene:
    fewest, most = limits.num_things
    count = fewest + number % (most - fewest + 1)
    spare = 360 - count * limits.gap_degrees
    gaps = limits.gap_degrees + spare * random.dirichlet(np.ones(count))
    yaws = (random.uniform(-180, 180) + np.cumsum(gaps) + 180) % 360 - 180
    things = []
    for name, yaw in zip(random.choice(sorted(drawings), count, replace=False), yaws, strict=True):
        style, codepoint = drawings[name][int(random.integers(len(drawings[name])))]
        pitch, degrees = random.uniform(*limits.pitch_degrees), random.uniform(*limits.size_degrees)
        things.append(Thing(str(name), style, codepoint, round(float(yaw), 2), round(float(pitch), 2), round(float(degrees), 2)))
    background = backgrounds[int(random.integers(len(backgrounds)))]
    return Scene(split, number, background, round(float(random.uniform(0, 360)), 2), tuple(things))


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ask(scene: Scene, count: int, names: Sequence[str], tally: defaultdict[str, Counter[str]], random: np.random.Generator) -> list[Asked]:
    """Questions of the kinds that were asked least, with the answers that were given least; no two of them name one thing."""
    possible = _possible(scene, names)
    asked: list[Asked] = []
    named: set[str] = set()
    while len(asked) < count:
        least = min(tally["exists"][answer] for answer in CHOICES["exists"])
        left = {kind: [one for one in some if not one.names & named and one not in asked] for kind, some in possible.items()}
        left["exists"] = [one for one in left["exists"] if tally["exists"][one.answer] == least]  # there is always one to say no to
        kinds = [kind for kind in KINDS if left[kind] and all(one.kind != kind for one in asked)] or [kind for kind in KINDS if left[kind]]
        if not kinds:
            break
        kind = min(kinds, key=lambda kind: (tally[kind].total(), random.random()))
        answers = tally[kind]
        chosen = min(left[kind], key=lambda one: (answers[_class(one)], random.random()))
        answers[_class(chosen)] += 1
        named |= chosen.names
        asked.append(chosen)
    order = random.permutation(len(asked))
    return [asked[place] for place in order]


def _class(asked: Asked) -> str:
    """What is kept in balance: the answer; of `what`, where one looks, for the things are drawn by lot."""
    return asked.question if asked.kind == "what" else asked.answer


def describe(scene: Scene) -> Asked:
    """All that is in a picture at once, each thing at the axis that it is nearest to: what a model learns the directions from."""
    near: defaultdict[str, list[str]] = defaultdict(list)
    for thing in scene.things:
        near[min(AXES, key=lambda word: thing.off(AXES[word]))].append(thing.name)
    said = ", ".join(f"{word} {' and '.join(near[word]) or 'nothing'}" for word in AXES)
    return Asked("scene", "What is where?", f"{said}: {len(scene.things)}")


def _possible(scene: Scene, names: Sequence[str]) -> dict[str, list[Asked]]:
    """All that can be asked about a scene, by kind. Things too near a border between two answers are not asked about."""
    things = scene.things
    what, where = [], []
    for word, axis in AXES.items():
        near = [thing for thing in things if thing.off(axis) <= NEAR]
        where += [Asked("where", f"Where is the {thing.name}?", word, frozenset({thing.name})) for thing in near]
        if len(near) == 1 and all(thing.off(axis) >= CLEAR for thing in things if thing is not near[0]):
            what.append(Asked("what", f"What is {_SAID[word]}?", near[0].name, frozenset({near[0].name})))
    turns = []
    for place, one in enumerate(things):
        for other in things[place + 1 :]:
            turn = apart(one.yaw, other.yaw)
            question = f"How many degrees apart are the {one.name} and the {other.name}?"
            turns += [
                Asked("apart", question, str(about), frozenset({one.name, other.name})) for about in TURNS if abs(turn - about) <= EXACT
            ]
    there = {thing.name for thing in things}
    exists = [Asked("exists", f"Is there {_article(name)} {name}?", "yes" if name in there else "no", frozenset({name})) for name in names]
    count = [Asked("count", "How many drawings are there?", str(len(things)))]
    return {"what": what, "where": where, "count": count, "apart": turns, "exists": exists}


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"
