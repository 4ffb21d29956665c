"""Runs side by side: in what they differ, what each reached on validation and on a held-out split, and whether that can be told apart.

Runs are ranked by the validation value that they watched, never by the held-out split: whoever chooses by a test set has none left.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eyegraft.config import BESIDE_THE_RESULT
from eyegraft.errors import RunError, nearest
from eyegraft.evaluation._pairs import Pairs, Rows, rows_of
from eyegraft.evaluation._runs import Entry as Entry
from eyegraft.evaluation._runs import Read, named_runs, parted, read_one, result_of
from eyegraft.evaluation._runs import Value as Value

_APART = {*BESIDE_THE_RESULT, "seed", "title", "experiment_name"}
"""Keys with a column or a path of their own, and those that decide nothing."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, the best by validation first where they can be ranked.

    Attributes:
        split: whose results are shown.
        keys: the recipe's keys in which the runs differ.
        ranked: the runs may be held against each other; else they stand in the order of their folders.
        watched, higher_is_better: what they are ranked by.
        metric: what `difference` is of; reference: the run that it is against, the first of those that are ranked. With every metric
            asked for, runs that are not ranked are held against the first that was named, if their results stand on the same data.
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
    reads = [read_one(folder, split, stage) for folder, stage in named_runs(runs)]
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


def answers_of(run: Path | str, split: str) -> tuple[Mapping[str, Any], Rows]:
    """The result of a run, named as in `Entry.run`, and its samples by their ids; both empty where it was not evaluated."""
    folder, stage = parted(run)
    result, _ = result_of(folder, split, stage)
    return ({}, {}) if result is None else (result, rows_of(folder, result))


# ── many runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _told_apart(reads: Sequence[Read], split: str, *, by_seed: bool) -> tuple[dict[str, list[str]], list[str]]:
    """What sets single runs apart from most others, and why runs must not be ranked against each other."""
    marks: dict[str, list[str]] = {read.entry.run: [] for read in reads}
    sentences = []
    aspects: list[tuple[str, str, list[tuple[Read, Any]]]] = [
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


def _mark(marks: dict[str, list[str]], mark: str, values: Sequence[tuple[Read, Any]]) -> bool:
    """Mark the runs whose value is not the most common one; gives whether there are any."""
    counts = Counter(value for _, value in values).most_common()
    for read, value in values:
        if value != counts[0][0]:
            marks[read.entry.run].append(mark)
    return len(counts) > 1


def _how_ranked(reads: Sequence[Read], ranked: bool, first: Read | None) -> list[str]:
    if first is None:
        return ["No run has a validation value, so none is ranked."]
    if not ranked or len(reads) < 2:
        return []
    better = "higher" if first.higher_is_better else "lower"
    return [f"Sorted by the validation value {first.entry.watched} ({better} is better). Nothing is chosen by test results."]


def _differences(
    reads: Sequence[Read], entries: list[Entry], split: str, metric: str | None, ranked: bool, every_metric: bool
) -> tuple[str | None, str | None, list[str]]:
    """Fill in the paired differences from the best run; gives the metric, the best run and what must be said."""
    from eyegraft.evaluation.run import MIN_SAMPLES

    evaluated = [read for read in reads if read.result is not None]
    names = list(dict.fromkeys(name for read in evaluated for name in read.entry.metrics))
    if metric is not None and metric not in names:
        expected = f"one of {', '.join(names)}" if names else "runs that were evaluated"
        raise RunError(f"no run has {metric!r} on {split}", expected, nearest(metric, names) or "`eyegraft evaluate RUN`")
    one_data = len({read.result["data"]["sha256"] for read in evaluated if read.result is not None}) == 1
    if len(evaluated) < 2 or not (ranked or (every_metric and one_data)):
        return metric, None, []
    best = reads[0] if ranked else evaluated[0]
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
            if not _is_same(name, read, best):
                continue
            value, low, high = pairs.difference(read.folder, read.result, name)
            known = math.isfinite(low)
            if math.isfinite(value):
                found[name] = Value(value, low if known else None, high if known else None)
            if not known and name == metric:
                unknown.add(pairs.why)
        entries[place] = replace(entries[place], difference=found.get(metric), differences=found if every_metric else {})
    against = "the best run by validation" if ranked else "the first run, for the runs are not ranked"
    notes = [f"Differences in {metric} are paired by sample, against {against}, with 95 % bootstrap intervals."]
    if best.result["num_samples"] < MIN_SAMPLES:
        notes.append(f"{split} has {best.result['num_samples']} samples: too few to tell runs apart.")
    return metric, best.entry.run, notes + [f"{metric}: {why}, so the interval is unknown." for why in sorted(unknown)]


def _is_same(metric: str, read: Read, other: Read) -> bool:
    """Both have it, counted in the same way: the same metric of words and of characters are two."""
    ways = [(found.result or {}).get("signature", {}).get(metric) for found in (read, other)]
    return metric in read.entry.metrics and metric in other.entry.metrics and ways[0] == ways[1]


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


def _settings(read: Read, keys: Sequence[str]) -> dict[str, Any]:
    return {key: _at(read.plain, key) for key in keys}


def _unevenly_seeded(reads: Sequence[Read], keys: Sequence[str]) -> bool:
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
