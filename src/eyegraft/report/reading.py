"""What a run left behind, read leniently: a missing or torn file becomes a remark on the page, not an exception."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eyegraft.errors import RunError


@dataclass(frozen=True)
class Figure:
    """A value and the ends of its 95 % interval, each None where it is unknown."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass
class Stage:
    """One stage: its entry in `run.json` and its curves.

    Attributes:
        train: rows {step, epoch, loss, learning_rate …}, by step.
        val: rows {step, epoch, val_loss, val_* …}, by step.
        samples: rows of sampled texts {epoch, step, id, task, prompt, answer, reference}, as they were written.
    """

    name: str
    info: Mapping[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """Everything that a page is made of.

    Attributes:
        info: `run.json`.
        recipe: the resolved recipe as text, empty where there is none.
        evaluations: split -> `evaluation/<split>.json`.
        samples: split -> rows of `evaluation/<split>.samples.jsonl`.
        remarks: what could not be read, in words for the reader of the page.
    """

    folder: Path
    info: Mapping[str, Any]
    recipe: str = ""
    stages: list[Stage] = field(default_factory=list)
    evaluations: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RunError: the folder has no `run.json`, or one that is not a JSON object.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"no run.json in {folder}", "the folder of a run", "pass a folder that `eyegraft train` wrote")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}", "a JSON object", "restore the file, or train again") from error
    if not isinstance(info, dict):
        raise RunError(f"{path} holds a {type(info).__name__}", "a JSON object", "restore the file, or train again")
    run = Run(folder, info)
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        run.recipe = recipe.read_text(encoding="utf-8", errors="replace")
    else:
        run.remarks.append("recipe.yaml is missing, so the resolved recipe cannot be shown.")
    run.stages = [_read_stage(run, name) for name in _stage_names(run)]
    _read_evaluations(run)
    return run


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object of a JSON file, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def finite(value: Any) -> float | None:
    """The value as a number, None if it is none or is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def figure(value: Any) -> Figure:
    """An entry {value, low, high} of an evaluation, or a bare number."""
    if isinstance(value, Mapping):
        return Figure(finite(value.get("value")), finite(value.get("low")), finite(value.get("high")))
    return Figure(finite(value))


def _stage_names(run: Run) -> list[str]:
    named = list(mapping(run.info.get("stages")))
    # a stage that was killed may have curves before run.json names it
    found = sorted(path.parent.name for path in run.folder.glob("*/metrics.jsonl"))
    return named + [name for name in found if name not in named]


def _read_stage(run: Run, name: str) -> Stage:
    # a resumed stage repeats the steps after its last checkpoint: the last word counts
    by_step: dict[str, dict[float, dict[str, Any]]] = {"train": {}, "val": {}}
    for row in _rows(run, run.folder / name / "metrics.jsonl"):
        step, kind = finite(row.get("step")), row.get("kind")
        if step is not None and isinstance(kind, str) and kind in by_step:
            by_step[kind][step] = row
    curves = {kind: [rows[step] for step in sorted(rows)] for kind, rows in by_step.items()}
    samples = list(_rows(run, run.folder / name / "samples.jsonl"))
    return Stage(name, mapping(mapping(run.info.get("stages")).get(name)), curves["train"], curves["val"], samples)


def _read_evaluations(run: Run) -> None:
    for path in sorted((run.folder / "evaluation").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict):
            run.remarks.append(f"evaluation/{path.name} cannot be read and is left out.")
            continue
        run.evaluations[path.stem] = content
        samples = path.parent / Path(str(content.get("samples") or f"{path.stem}.samples.jsonl")).name  # nothing outside the run
        run.samples[path.stem] = list(_rows(run, samples))


def _rows(run: Run, path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; torn lines are counted in the remarks."""
    if not path.is_file():
        return
    torn = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            else:
                torn += 1
    if torn:
        run.remarks.append(f"{path.parent.name}/{path.name}: {torn} unreadable line{'s' if torn > 1 else ''} left out.")
