"""Intervals around what was measured: which samples are drawn, alone or by group, and the same draws for everything that is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eyegraft.config import Columns, Recipe
from eyegraft.data.patch_rows import PatchRows
from eyegraft.metrics import _bootstrap
from eyegraft.types import Sample, Scores

MIN_GROUPS = 10
"""Fewer groups than this say nothing of how groups differ: samples are then drawn one by one, and the result says so."""


@dataclass(frozen=True)
class Drawing:
    """How resamples of a split are drawn.

    Attributes:
        groups: one name a sample where rows of a group are drawn together; None where each is drawn alone.
        unit: the same in words, for reports.
        caution: what must be known of the intervals; empty where there is nothing.
    """

    size: int
    groups: tuple[str | None, ...] | None
    unit: str
    num_resamples: int
    seed: int
    caution: str = ""

    @classmethod
    def of(cls, samples: Sequence[Sample], recipe: Recipe) -> Drawing:
        caution = ""
        if isinstance(samples, PatchRows):
            groups, unit = _stations(samples)
        elif (columns := recipe.data.columns).drawn_with is not None:
            groups, unit, caution = _alike(samples, columns)
        else:
            groups, unit = _groups(samples, columns.group)
        return cls(len(samples), groups, unit, recipe.evaluation.num_resamples, recipe.seed, caution)

    def some(self, places: Sequence[int], samples: Sequence[Sample]) -> Drawing:
        """The same for some of the samples; of patches anew, for a part may be of few stations, or of one.

        Args:
            samples: those at these places.
        """
        if isinstance(samples, PatchRows):
            groups, unit = _stations(samples)
            return Drawing(len(places), groups, unit, self.num_resamples, self.seed)
        groups = tuple(self.groups[place] for place in places) if self.groups is not None else None
        return Drawing(len(places), groups, self.unit, self.num_resamples, self.seed)

    def table(self, scores: Scores) -> dict[str, dict[str, float | None]]:
        """Metric -> {value, low, high} with the ends of its 95 % interval; None where a number is undefined."""
        table = {}
        for name, value in scores.corpus.items():
            low = high = math.nan
            if name in scores.per_sample:
                _, low, high = _bootstrap.interval(scores.per_sample[name], self.num_resamples, self.seed, self.groups)
            elif name in scores.statistics:
                _, low, high = _bootstrap.statistic_interval(scores.statistics[name], self.size, self.num_resamples, self.seed, self.groups)
            table[name] = _entry(value, low, high)
        return table

    def differences(self, model: Scores, other: Scores) -> dict[str, dict[str, float | None]]:
        """Metric -> {value, low, high} of the model less the other, on the same draws."""
        found: dict[str, dict[str, float | None]] = {}
        for name in other.corpus:
            if name in model.per_sample and name in other.per_sample:
                a, b = model.per_sample[name], other.per_sample[name]
                found[name] = _entry(*_bootstrap.paired_interval(a, b, self.num_resamples, self.seed, self.groups))
            elif name in model.statistics and name in other.statistics:
                pair = model.statistics[name], other.statistics[name]
                found[name] = _entry(*_bootstrap.paired_statistic_interval(*pair, self.size, self.num_resamples, self.seed, self.groups))
        return found


def _alike(samples: Sequence[Sample], columns: Columns) -> tuple[tuple[str | None, ...] | None, str, str]:
    """By `data.columns.drawn_with`; where it has few values by group, be there ever so few of these, for the rows of one are nearly the
    same. What remains alike is said."""
    wider = str(columns.drawn_with)
    of_group: dict[str, str] = {}
    for sample in samples:  # rows of a group stay together, and a row that says nothing stands with its group
        if sample.group is not None and (value := sample.meta.get(wider)) not in (None, ""):
            of_group.setdefault(sample.group, str(value))
    own = tuple(sample.group or f"sample {number}" for number, sample in enumerate(samples))
    names = tuple(of_group.get(name, name) for name in own)
    different, cases = len(set(names)), len(set(own))
    if different >= MIN_GROUPS:
        return names, f"{different} of {wider}, each with all its samples", ""
    caution = f"The intervals are too narrow: these samples are of {different} of {wider} only, within which they are alike."
    if cases == len(samples):
        return None, f"{cases} samples, as if independent (only {different} of {wider})", caution
    return own, f"{cases} of {columns.group or 'picture'}, each with all its samples (only {different} of {wider})", caution


def _groups(samples: Sequence[Sample], column: str | None) -> tuple[tuple[str | None, ...] | None, str]:
    names = tuple(sample.group for sample in samples)
    different = len({name or number for number, name in enumerate(names)})
    if column is None or different == len(samples):
        return None, f"{len(samples)} samples"
    if different < MIN_GROUPS:
        return None, f"{len(samples)} samples, as if independent (only {different} of {column})"
    return names, f"{different} of {column}, each with all its samples"


def _stations(rows: PatchRows) -> tuple[tuple[str | None, ...] | None, str]:
    """Stations, or where these are few, weeks: one hour is like the next, and one weather lies over all stations."""
    stations = rows.column("station").astype(str)
    count = len(np.unique(stations))
    few = f"only {count} station{'s' if count > 1 else ''}"
    if count >= MIN_GROUPS:
        return tuple(stations.tolist()), f"{count} stations, each with all its samples"
    weeks = rows.column("time").astype("datetime64[W]").astype(str)
    if (different := len(np.unique(weeks))) >= MIN_GROUPS:
        return tuple(weeks.tolist()), f"{different} weeks, each with all its samples ({few})"
    return None, f"{len(rows)} samples, as if independent ({few}, {different} week{'s' if different > 1 else ''})"


def _entry(value: float, low: float, high: float) -> dict[str, Any]:
    return {key: float(number) if math.isfinite(number) else None for key, number in (("value", value), ("low", low), ("high", high))}
