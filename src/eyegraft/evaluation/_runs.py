"""What one run says of itself before it is held against others: its settings, what it reached on validation, and its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eyegraft.config import staged
from eyegraft.errors import RunError, nearest
from eyegraft.files import file_sha256
from eyegraft.training.checkpoints import checkpoints_of, find_checkpoint, read_config
from eyegraft.training.runs import needed_stages

_IN_TRAINING_ALONE = ("label_smoothing", "class_weights")
"""Keys of objectives that leave the validation loss as it is."""


@dataclass(frozen=True)
class Value:
    """A number and the ends of its 95 % interval, None where they are not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Entry:
    """One run, or one of its stages.

    Attributes:
        run: its folder, followed by `@STAGE` where a stage was named.
        settings: the recipe's keys in which the compared runs differ (dotted), with this run's values; None where it lacks the key.
        seconds: of training, over all stages.
        trained_parameters: of the stage that `best` stands for.
        stage, epoch, watched, best: the validation value that chose the checkpoint; epoch counts from 1.
        metrics: of the model on the split, empty where it was not evaluated.
        difference: this run less the reference on the compared metric, paired by sample.
        differences: the same on every metric, where that was asked for.
        marks: what sets it apart from the others, or makes it incomplete.
    """

    run: str
    recipe: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    trained_parameters: int | None = None
    stage: str | None = None
    epoch: int | None = None
    watched: str | None = None
    best: float | None = None
    metrics: dict[str, Value] = field(default_factory=dict)
    difference: Value | None = None
    differences: dict[str, Value] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Read:
    """What a run folder says, before it is held against others."""

    folder: Path
    facts: Mapping[str, Any]
    plain: Mapping[str, Any]
    entry: Entry
    higher_is_better: bool
    finished: bool
    val_sha256: str | None
    task: str
    loss: str
    result: Mapping[str, Any] | None


def named_runs(runs: Sequence[Path | str]) -> list[tuple[Path, str | None]]:
    """Each run once, in the order given, with the stage that was named; a folder of runs stands for those in it, by name.

    Raises:
        RunError: nothing there is a run.
    """
    found: dict[tuple[Path, str | None], tuple[Path, str | None]] = {}
    for given in runs:
        place, stage = parted(given)
        itself = [place / "run.json"] if (place / "run.json").is_file() else []
        here = itself or sorted(place.glob("*/run.json")) or sorted(place.glob("*/*/run.json"))
        if not here:
            raise RunError(
                f"{place}: " + ("no run in this folder" if place.is_dir() else "no such folder"),
                "run folders, or a folder of runs such as runs/EXPERIMENT",
                "give the folders that `eyegraft train` printed",
            )
        for path in here:
            found.setdefault((path.parent.resolve(), stage), (path.parent, stage))
    return list(found.values())


def parted(run: Path | str) -> tuple[Path, str | None]:
    """`FOLDER@STAGE`, unless a folder has that very name."""
    place = Path(run).expanduser()
    folder, at, stage = place.name.rpartition("@")
    return (place.with_name(folder), stage) if at and folder and stage and not place.exists() else (place, None)


def read_one(folder: Path, split: str, wanted: str | None) -> Read:
    """Read a run without its parts, so that plugins, weights and data need not be at hand."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        plain = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        stages = list(plain["stages"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RunError(
            f"{folder} cannot be read ({type(error).__name__})", "a whole run.json and recipe.yaml", "leave this run out"
        ) from error
    needed = [wanted] if wanted is not None else needed_stages(stages, facts.get("stages", {}))
    if wanted is not None and wanted not in stages:
        raise RunError(f"{folder} has no stage {wanted!r}", f"one of {', '.join(stages)}", nearest(wanted, stages))
    upto = stages if wanted is None else stages[: stages.index(wanted) + 1]
    states = {name: facts.get("stages", {}).get(name, {}) for name in upto}
    unfinished = [name for name in needed if states[name].get("status") != "finished"]
    marks = [f"unfinished: {', '.join(unfinished)}"] if unfinished else []
    stage, best = _best(folder, states if wanted is None else {wanted: states[wanted]})
    settings = staged(plain["train"], plain["stages"][stage])
    rule = settings.get("early_stopping", {})
    result, stale = result_of(folder, split, wanted)
    if stale:
        marks.append(f"{split} results are of an older checkpoint")
    if result is None and wanted is not None:
        marks.append(f"no {split} results: eyegraft evaluate {folder} --stage {wanted}")
    watched = best.get("metric") or rule.get("metric", "val_loss")
    value = best.get("value")
    entry = Entry(
        run=str(folder) if wanted is None else f"{folder}@{wanted}",
        recipe=facts.get("recipe", ""),
        seed=facts.get("seed", 0),
        seconds=_seconds(folder, states),
        trained_parameters=sum(row["trainable"] for row in states[stage]["trainable"]) if "trainable" in states[stage] else None,
        stage=stage,
        epoch=best.get("epoch"),
        watched=watched if value is not None else None,
        best=value,
        metrics={name: Value(**entry) for name, entry in result["systems"]["model"].items()} if result else {},
        marks=tuple(marks),
    )
    task = settings.get("task") or next(iter(plain["tasks"]))
    return Read(
        folder=folder,
        facts=facts,
        plain=plain,
        entry=entry,
        higher_is_better=_direction(watched, rule, best, result),
        finished=not unfinished,
        val_sha256=facts.get("data", {}).get("splits", {}).get("val", {}).get("sha256"),
        task=f"{task} ({plain['tasks'][task]['kind']})",
        loss=_loss(plain, settings) if watched == "val_loss" else "",
        result=result,
    )


def _best(folder: Path, states: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """The last stage that is finished, and its best; in a run without one, what the first best checkpoint says so far."""
    finished = [name for name, facts in states.items() if facts.get("status") == "finished"]
    if finished:
        return finished[-1], states[finished[-1]].get("best", {})
    for name in states:
        checkpoint = find_checkpoint(checkpoints_of(folder / name) / "best")
        if checkpoint is not None:
            config = read_config(checkpoint)
            return name, {"metric": config["metric"], "value": config["best"], "epoch": config["epoch"]}
    return next(iter(states)), {}


def result_of(folder: Path, split: str, stage: str | None) -> tuple[Mapping[str, Any] | None, bool]:
    """The evaluation of a split, and whether another checkpoint has taken the place of the one that it is of. That of the run's last stage
    stands under the name of the split alone."""
    if stage is not None:
        found = _result_in(folder, f"{split}@{stage}")
        last = _result_in(folder, split) if found[0] is None else found
        return last if last[0] is not None and last[0]["checkpoint"].get("stage") == stage else (None, False)
    return _result_in(folder, split)


def _result_in(folder: Path, name: str) -> tuple[Mapping[str, Any] | None, bool]:
    try:
        result = json.loads((folder / "evaluation" / f"{name}.json").read_text(encoding="utf-8"))
        used = result["checkpoint"]
        place = Path(used["path"])
        if place.anchor or ".." in place.parts:
            raise ValueError("a checkpoint outside the run")
        manifest = folder / place / "manifest.json"
        return result, manifest.is_file() and file_sha256(manifest) != used["sha256"]
    except FileNotFoundError:
        return None, False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder}/evaluation/{name}.json cannot be read ({type(error).__name__})",
            "what `eyegraft evaluate` wrote",
            f"run `eyegraft evaluate {folder}` again",
        ) from error


def _seconds(folder: Path, states: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Of training, with what an unfinished stage has taken so far."""
    total, known = 0.0, False
    for name, facts in states.items():
        seconds = facts.get("seconds")
        if seconds is None and (file := folder / name / "metrics.jsonl").is_file():
            for line in reversed(file.read_text(encoding="utf-8").splitlines()):
                try:
                    seconds = json.loads(line).get("seconds")
                    break
                except ValueError:
                    continue  # a line that a kill cut short
        if seconds is not None:
            total, known = total + seconds, True
    return round(total, 1) if known else None


def _direction(watched: str, rule: Mapping[str, Any], best: Mapping[str, Any], result: Mapping[str, Any] | None) -> bool:
    if "higher_is_better" in best:
        return bool(best["higher_is_better"])
    if rule.get("mode", "auto") != "auto":
        return bool(rule["mode"] == "max")
    if watched == "val_loss":
        return False
    return bool((result or {}).get("higher_is_better", {}).get(watched.removeprefix("val_"), True))


def _loss(plain: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What a loss is the mean of: the same objective, over the tokens of the same language model."""
    objective = settings.get("objective") or {"kind": settings.get("loss_type")}
    objective = {key: value for key, value in objective.items() if key not in _IN_TRAINING_ALONE}
    return json.dumps([objective, plain["head"].get("model")], sort_keys=True)
