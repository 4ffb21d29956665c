"""Runs side by side: in what they differ, what each reached on validation and on a held-out split, and whether that can be told apart.

Runs are ranked by the validation value that they watched, never by the held-out split: whoever chooses by a test set has none left.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from eyegraft.config import BESIDE_THE_RESULT, staged
from eyegraft.errors import RunError, nearest
from eyegraft.evaluation._pairs import Pairs
from eyegraft.files import file_sha256
from eyegraft.training.checkpoints import checkpoints_of, find_checkpoint, read_config
from eyegraft.training.runs import needed_stages

_APART = {*BESIDE_THE_RESULT, "seed", "title", "experiment_name"}
"""Keys with a column or a path of their own, and those that decide nothing."""
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
class Comparison:
    """Runs side by side, the best by validation first where they can be ranked.

    Attributes:
        split: whose results are shown.
        keys: the recipe's keys in which the runs differ.
        ranked: the runs may be held against each other; else they stand in the order of their folders.
        watched, higher_is_better: what they are ranked by.
        metric: what `difference` is of; reference: the run that it is against.
        notes: sentences that must stand beside the table.
    """

    split: str
    entries: tuple[Entry, ...]
    keys: tuple[str, ...]
    ranked: bool
    watched: str | None
    higher_is_better: bool | None
    metric: str | None
    reference: str | None
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Read:
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


def compare_runs(runs: Sequence[Path | str], *, split: str = "test", metric: str | None = None, every_metric: bool = False) -> Comparison:
    """Put runs into one table.

    Args:
        runs: run folders, and folders of runs, which stand for all runs in them; `FOLDER@STAGE` is a run after that stage.
        split: whose evaluation is shown, where there is one.
        metric: of the split, for the differences; None takes the first of the best run.
        every_metric: also give the differences in all the others.

    Raises:
        RunError: a folder is no run and holds none, lacks the stage, or no run was evaluated by `metric`.
    """
    reads = [_read(folder, split, stage) for folder, stage in named_runs(runs)]
    keys = _differing([{key: value for key, value in read.plain.items() if key not in _APART} for read in reads])
    apart, notes = _told_apart(reads, split, by_seed=_unevenly_seeded(reads, keys))
    known = [read for read in reads if read.entry.best is not None]
    ranked = bool(known) and not notes
    first = known[0] if known else None
    if ranked and first is not None:
        sign = -1 if first.higher_is_better else 1
        reads.sort(key=lambda read: (not read.finished, read.entry.best is None, sign * (read.entry.best or 0.0)))
    entries = [replace(read.entry, settings=_settings(read, keys), marks=(*read.entry.marks, *apart[read.entry.run])) for read in reads]
    compared, reference, more = _differences(reads, entries, split, metric, ranked, every_metric)
    return Comparison(
        split=split,
        entries=tuple(entries),
        keys=tuple(keys),
        ranked=ranked,
        watched=first.entry.watched if ranked and first is not None else None,
        higher_is_better=first.higher_is_better if ranked and first is not None else None,
        metric=compared,
        reference=reference,
        notes=(*_how_ranked(reads, ranked, first), *notes, *more),
    )


def named_runs(runs: Sequence[Path | str]) -> list[tuple[Path, str | None]]:
    """Each run once, in the order given, with the stage that was named; a folder of runs stands for those in it, by name.

    Raises:
        RunError: nothing there is a run.
    """
    found: dict[tuple[Path, str | None], tuple[Path, str | None]] = {}
    for given in runs:
        place, stage = _parted(given)
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


def _parted(run: Path | str) -> tuple[Path, str | None]:
    """`FOLDER@STAGE`, unless a folder has that very name."""
    place = Path(run).expanduser()
    folder, at, stage = place.name.rpartition("@")
    return (place.with_name(folder), stage) if at and folder and stage and not place.exists() else (place, None)


# ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(folder: Path, split: str, wanted: str | None) -> _Read:
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
    result, stale = _result(folder, split, wanted)
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
    return _Read(
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


def _result(folder: Path, split: str, stage: str | None) -> tuple[Mapping[str, Any] | None, bool]:
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


# ── many runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _told_apart(reads: Sequence[_Read], split: str, *, by_seed: bool) -> tuple[dict[str, list[str]], list[str]]:
    """What sets single runs apart from most others, and why runs must not be ranked against each other."""
    marks: dict[str, list[str]] = {read.entry.run: [] for read in reads}
    sentences = []
    aspects: list[tuple[str, str, list[tuple[_Read, Any]]]] = [
        (
            "other validation data",
            "the runs were validated on different data: a value on easier data says nothing about the better run",
            [(read, read.val_sha256) for read in reads],
        ),
        ("another task", "the runs learned different tasks", [(read, read.task) for read in reads]),
        (
            "another watched value",
            "the runs watched different validation values",
            [(read, read.entry.watched) for read in reads if read.entry.best is not None],
        ),
        (
            "another loss",
            "val_loss is of another objective, or over the tokens of another language model",
            [(read, read.loss) for read in reads if read.entry.best is not None],
        ),
        (
            f"other {split} data",
            f"the {split} results stand on different data: evaluate the runs on the same",
            [(read, read.result["data"]["sha256"]) for read in reads if read.result is not None],
        ),
    ]
    for mark, sentence, values in aspects:
        if _mark(marks, mark, values):
            sentences.append(f"Not ranked: {sentence}.")
    if by_seed:
        _mark(marks, "another seed", [(read, read.entry.seed) for read in reads])
    return marks, sentences


def _mark(marks: dict[str, list[str]], mark: str, values: Sequence[tuple[_Read, Any]]) -> bool:
    """Mark the runs whose value is not the most common one; gives whether there are any."""
    counts = Counter(value for _, value in values).most_common()
    for read, value in values:
        if value != counts[0][0]:
            marks[read.entry.run].append(mark)
    return len(counts) > 1


def _how_ranked(reads: Sequence[_Read], ranked: bool, first: _Read | None) -> list[str]:
    if first is None:
        return ["No run has a validation value, so none is ranked."]
    if not ranked or len(reads) < 2:
        return []
    better = "higher" if first.higher_is_better else "lower"
    return [f"Sorted by the validation value {first.entry.watched} ({better} is better). Nothing is chosen by test results."]


def _differences(
    reads: Sequence[_Read], entries: list[Entry], split: str, metric: str | None, ranked: bool, every_metric: bool
) -> tuple[str | None, str | None, list[str]]:
    """Fill in the paired differences from the best run; gives the metric, the best run and what must be said."""
    from eyegraft.evaluation.run import MIN_SAMPLES

    evaluated = [read for read in reads if read.result is not None]
    names = list(dict.fromkeys(name for read in evaluated for name in read.entry.metrics))
    if metric is not None and metric not in names:
        expected = f"one of {', '.join(names)}" if names else "runs that were evaluated"
        raise RunError(f"no run has {metric!r} on {split}", expected, nearest(metric, names) or "`eyegraft evaluate RUN`")
    if len(evaluated) < 2 or not ranked:
        return metric, None, []
    best = reads[0]
    if best.result is None:
        return metric, None, [f"The best run by validation has no {split} results: eyegraft evaluate {best.entry.run}"]
    metric = metric or next(iter(best.entry.metrics))
    grouped = best.plain.get("data", {}).get("columns", {}).get("group") is not None
    pairs, unknown = Pairs(best.folder, best.result, grouped=grouped), set()
    for place, read in enumerate(reads):
        if read is best or read.result is None:
            continue
        found = {}
        for name in names if every_metric else [metric]:
            if name not in read.entry.metrics or name not in best.entry.metrics:
                continue
            value, low, high = pairs.difference(read.folder, read.result, name)
            known = math.isfinite(low)
            if math.isfinite(value):
                found[name] = Value(value, low if known else None, high if known else None)
            if not known and name == metric:
                unknown.add(pairs.why)
        entries[place] = replace(entries[place], difference=found.get(metric), differences=found if every_metric else {})
    notes = [f"Differences in {metric} are paired by sample, against the best run by validation, with 95 % bootstrap intervals."]
    if best.result["num_samples"] < MIN_SAMPLES:
        notes.append(f"{split} has {best.result['num_samples']} samples: too few to tell runs apart.")
    return metric, best.entry.run, notes + [f"{metric}: {why}, so the interval is unknown." for why in sorted(unknown)]


def _differing(values: Sequence[Any], prefix: str = "") -> list[str]:
    """The dotted keys in which plain data differ. Of parts of different kinds, the kind and the model."""
    if all(value == values[0] for value in values):
        return []
    if not all(isinstance(value, Mapping) for value in values):
        return [prefix.removesuffix(".")]
    keys = list(dict.fromkeys(key for value in values for key in value))
    if len({value.get("kind") for value in values}) > 1:
        keys = [key for key in ("kind", "model") if key in keys]
    return [found for key in keys for found in _differing([value.get(key) for value in values], f"{prefix}{key}.")]


def _settings(read: _Read, keys: Sequence[str]) -> dict[str, Any]:
    return {key: _at(read.plain, key) for key in keys}


def _unevenly_seeded(reads: Sequence[_Read], keys: Sequence[str]) -> bool:
    """Different settings were not tried with the same seeds."""
    seeds: dict[str, set[int]] = {}
    for read in reads:
        seeds.setdefault(json.dumps(_settings(read, keys), sort_keys=True), set()).add(read.entry.seed)
    first, *others = seeds.values()
    return any(other != first for other in others)


def _at(plain: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; of a part, its kind."""
    value: Any = plain
    for step in key.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value["kind"] if isinstance(value, Mapping) and "kind" in value else value
