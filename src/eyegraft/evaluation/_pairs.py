"""Two runs on the same samples: the difference of a metric and its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eyegraft.errors import EyegraftError
from eyegraft.metrics._bootstrap import Statistic, paired_interval, paired_statistic_interval
from eyegraft.types import Sample

Rows = Mapping[str, Mapping[str, Any]]
"""Sample id -> its line of `<split>.samples.jsonl`."""


class Pairs:
    """Holds other runs against one.

    Attributes:
        why: why the last difference has no interval; empty where it has one.
    """

    def __init__(self, folder: Path, result: Mapping[str, Any], *, grouped: bool) -> None:
        self._folder, self._result, self._grouped = folder, result, grouped
        self._rows = rows_of(folder, result)
        self._others: dict[tuple[Path, str], Rows] = {}
        self._statistics: dict[tuple[Path, str], Mapping[str, Statistic]] = {}
        self.why = ""

    def difference(self, folder: Path, result: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
        """(other run - this one, low, high); low and high are NaN where they are not known."""
        self.why = ""
        key = folder, str(result.get("samples"))
        if key not in self._others:
            self._others[key] = rows_of(folder, result)
        theirs, here = self._others[key], self._rows
        if not here or theirs.keys() != here.keys():
            return self._without("the runs have no answers to the same samples", result, metric)
        settings = self._result["num_resamples"], self._result["seed"], self._groups()
        a, b = _scores([theirs[id_] for id_ in here], metric), _scores(list(here.values()), metric)
        if a is not None and b is not None:
            return paired_interval(a, b, *settings)
        mine = self._scored_again(self._folder, self._result, here).get(metric)
        other = self._scored_again(folder, result, {id_: theirs[id_] for id_ in here}).get(metric)
        if mine is None or other is None:
            return self._without("no per-sample score", result, metric)
        value, low, high = paired_statistic_interval(other, mine, len(here), *settings)
        if math.isfinite(value) and not math.isfinite(low):
            self.why = "too few resamples define it"
        return value, low, high

    def _scored_again(self, folder: Path, result: Mapping[str, Any], rows: Rows) -> Mapping[str, Statistic]:
        key = folder, str(result.get("samples"))
        if key not in self._statistics:
            self._statistics[key] = _statistics(folder, result, rows)
        return self._statistics[key]

    def _groups(self) -> list[str | None] | None:
        """What is drawn together, by the rule of evaluation (see `Drawing`)."""
        from eyegraft.evaluation.drawing import MIN_GROUPS

        drawn = [row.get("drawn_with") for row in self._rows.values()]
        if any(drawn):
            return drawn
        names = [row.get("group") for row in self._rows.values()]  # of a run that was evaluated before this was written down
        different = len({name or number for number, name in enumerate(names)})
        return names if self._grouped and MIN_GROUPS <= different < len(names) else None

    def _without(self, why: str, result: Mapping[str, Any], metric: str) -> tuple[float, float, float]:
        self.why = why
        values = [found["systems"]["model"].get(metric, {}).get("value") for found in (result, self._result)]
        return (math.nan if None in values else values[0] - values[1]), math.nan, math.nan


def rows_of(folder: Path, result: Mapping[str, Any]) -> Rows:
    """The samples of a run's result; none where the file is gone."""
    file = folder / "evaluation" / Path(str(result.get("samples", ""))).name  # a run from elsewhere names no file outside its folder
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as stream:  # str.splitlines also cuts at U+2028, which JSON leaves as it is
        rows = [json.loads(line) for line in stream]
    return {row["id"]: row for row in rows}


def _scores(rows: list[Mapping[str, Any]], metric: str) -> list[float] | None:
    """One score a sample, where the metric is a mean over samples."""
    scores = [row["scores"].get(metric) for row in rows]
    return None if any(score is None or not math.isfinite(score) for score in scores) else scores


def _statistics(folder: Path, result: Mapping[str, Any], rows: Rows) -> Mapping[str, Statistic]:
    """Metrics that are no means over samples, from the answers that were written down: the task scores them again.

    None of them where a package that the task needs is not at hand.
    """
    from eyegraft.registry import configured
    from eyegraft.training.runs import read_run

    try:
        run = read_run(folder)
        module, config = configured("tasks", run.recipe.tasks[result["task"]])
        task = module.build(result["task"], config)
        facts = run.facts["stages"].get(result["checkpoint"]["stage"], {})
        task.learned, task.decision = facts.get("learned") or {}, facts.get("decision") or {}
        samples = [Sample(id=id_, image=None, references=tuple(row["references"]), meta=row.get("meta") or {}) for id_, row in rows.items()]
        found: Mapping[str, Statistic] = task.score([row["answers"]["model"] for row in rows.values()], samples).statistics
    except (EyegraftError, KeyError):
        return {}
    return found
