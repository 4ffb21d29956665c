"""Percentile bootstrap intervals around a mean, or around any statistic of the samples (Efron & Tibshirani 1993, An Introduction to the
Bootstrap, chapter 13).

One seed draws one set of resamples: the interval of a mean, of a statistic and of a paired difference all see the same data sets.
Without `groups` the samples are taken to be independent. Rows of one advertiser, patient or picture are not: with `groups`, whole groups
are drawn with replacement (cluster bootstrap, Davison & Hinkley 1997, Bootstrap Methods, section 3.8), and intervals get their true width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError, shown

Statistic = Callable[[NDArray[np.int64]], float]
"""The value over the samples at these indices, in any order and with repeats; NaN where it is not defined on them."""


@dataclass(frozen=True)
class OfSums:
    """A statistic that sums over samples are enough for (RMSE, R², a correlation): resamples of whole groups then cost no more than a table
    of the groups.

    Attributes:
        at: the statistic itself, of the samples at these indices.
        terms: [N, S] what is summed.
        of: sums [R, S] and numbers of samples [R] -> values [R], NaN where undefined; the same as `at`, up to rounding.
    """

    at: Statistic
    terms: NDArray[np.float64]
    of: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]

    def __call__(self, rows: NDArray[np.int64]) -> float:
        return self.at(rows)


LOW_PERCENT, HIGH_PERCENT = 2.5, 97.5
"""The two ends of a 95 % interval."""

MAX_UNDEFINED = 0.1
"""Where a statistic is undefined on a larger share of the resamples, what is left of them says too little for an interval."""

_DRAWS_AT_ONCE = 2_000_000
"""Indices drawn in one piece (16 MB), so that a large test set times many resamples does not fill the memory."""


def interval(
    values: Sequence[float], num_resamples: int, seed: int, groups: Sequence[str | None] | None = None
) -> tuple[float, float, float]:
    """The mean of `values` and the ends of its 95 % percentile bootstrap interval.

    One value, or values that are all alike, give an interval of width zero: the sample then says nothing about its own spread.

    Args:
        values: one score per sample.
        num_resamples: how many data sets of the same size are drawn with replacement; 1000 or more for two stable digits.
        seed: the same seed gives the same interval.
        groups: one name per sample; samples of one name are drawn together. None or an empty name stands alone.

    Returns:
        (mean, low, high) in the unit of `values`; low and high are NaN when all samples are of one group.

    Raises:
        DataError: no value, a value that is not finite, groups of another number, or fewer than one resample.
    """
    scores = _checked(values, "values")
    codes = _group_codes(groups, scores.size)
    drawn = _drawn(codes, scores.size, num_resamples, seed)
    if codes is None:
        means = np.concatenate([scores[rows].mean(axis=1) for rows in drawn])  # [num_resamples]
    else:
        sums, counts = np.bincount(codes, scores), np.bincount(codes).astype(np.float64)  # [G]
        means = np.concatenate([sums[rows].sum(axis=1) / counts[rows].sum(axis=1) for rows in drawn])
    return float(scores.mean()), *_ends(means, codes)


def paired_interval(
    a: Sequence[float], b: Sequence[float], num_resamples: int, seed: int, groups: Sequence[str | None] | None = None
) -> tuple[float, float, float]:
    """The mean of a - b and its 95 % interval, resampling the samples that both systems answered.

    Pairing takes out what makes a sample easy or hard for both; overlapping single intervals can still hide a clear difference.

    Args:
        a, b: one score per sample of two systems, in the same order of samples.
        num_resamples, seed, groups: as in `interval`.

    Returns:
        (mean difference, low, high); zero outside [low, high] means that the difference is unlikely to be luck.

    Raises:
        DataError: a and b differ in length, and whatever `interval` raises.
    """
    if len(a) != len(b):
        raise DataError(
            f"{len(a)} and {len(b)} scores to compare", "one score of either system per sample", "score both systems on the same samples"
        )
    difference = _checked(a, "a") - _checked(b, "b")
    return interval(difference.tolist(), num_resamples, seed, groups)


def statistic_interval(
    statistic: Statistic, size: int, num_resamples: int, seed: int, groups: Sequence[str | None] | None = None
) -> tuple[float, float, float]:
    """The value of a statistic that is no mean over samples (AUROC, F1), and the ends of its 95 % interval.

    Resamples on which it is undefined (a data set of one class has no AUROC) are left out; above 10 % of them there is no interval.

    Args:
        statistic: index array -> value. It is called `num_resamples` + 1 times.
        size: how many samples there are; the indices run from 0 to size - 1.
        num_resamples, seed, groups: as in `interval`, with the same resamples for the same seed, size and groups.

    Returns:
        (value over all samples, low, high). All three are NaN where the statistic is undefined on the samples themselves; low and high are
        NaN where it is undefined on too many resamples, or when all samples are of one group.

    Raises:
        DataError: no samples, groups of another number, or fewer than one resample.
    """
    if size < 1:
        raise DataError(f"{size} samples", "at least one sample", "score a split that has samples")
    codes = _group_codes(groups, size)
    value = statistic(np.arange(size))
    if not math.isfinite(value):
        return math.nan, math.nan, math.nan
    return float(value), *_ends(_resampled(statistic, size, codes, num_resamples, seed), codes)


def _resampled(statistic: Statistic, size: int, codes: NDArray[np.int64] | None, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """[num_resamples] its values on drawn samples or groups."""
    drawn = _drawn(codes, size, num_resamples, seed)
    if isinstance(statistic, OfSums):
        return _from_sums(statistic, np.arange(size) if codes is None else codes, drawn)
    order = np.arange(size) if codes is None else np.argsort(codes, kind="stable")

    def values() -> Iterator[float]:
        for rows in drawn:
            for row in rows:
                if codes is None:
                    yield statistic(row)
                else:
                    times = np.bincount(row, minlength=codes.max() + 1)  # [G] how often each group was drawn
                    yield statistic(np.repeat(order, times[codes[order]]))

    return np.fromiter(values(), np.float64, num_resamples)


def _from_sums(statistic: OfSums, codes: NDArray[np.int64], drawn: Iterator[NDArray[np.int64]]) -> NDArray[np.float64]:
    counts = np.bincount(codes).astype(np.float64)  # [G]
    sums = np.stack([np.bincount(codes, column) for column in statistic.terms.T] + [counts], axis=1)  # [G, S + 1]
    totals = np.array([np.bincount(row, minlength=len(counts)) @ sums for rows in drawn for row in rows])  # [num_resamples, S + 1]
    return statistic.of(totals[:, :-1], totals[:, -1])


def paired_statistic_interval(
    a: Statistic, b: Statistic, size: int, num_resamples: int, seed: int, groups: Sequence[str | None] | None = None
) -> tuple[float, float, float]:
    """a - b of a statistic of two systems on the same samples, and its 95 % interval; both see every resample.

    Args:
        a, b: index array -> value of either system; the indices must mean the same samples.
        size, num_resamples, seed, groups: as in `statistic_interval`.

    Returns:
        (difference, low, high), NaN as in `statistic_interval`.

    Raises:
        DataError: as `statistic_interval`.
    """
    if not (isinstance(a, OfSums) and isinstance(b, OfSums)):
        return statistic_interval(lambda rows: a(rows) - b(rows), size, num_resamples, seed, groups)
    split = a.terms.shape[1]
    both = OfSums(
        lambda rows: a(rows) - b(rows),
        np.concatenate([a.terms, b.terms], axis=1),
        lambda sums, counts: a.of(sums[:, :split], counts) - b.of(sums[:, split:], counts),
    )
    return statistic_interval(both, size, num_resamples, seed, groups)


def _checked(values: Sequence[float], name: str) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if scores.size == 0:
        raise DataError(f"{name}: no score", "at least one score", "score a split that has samples")
    broken = np.flatnonzero(~np.isfinite(scores))
    if broken.size:
        raise DataError(
            f"{name}: not finite at index {shown(broken.tolist())}", "finite scores", "look at these samples, or leave them out by name"
        )
    return scores


def _group_codes(groups: Sequence[str | None] | None, size: int) -> NDArray[np.int64] | None:
    """[size] the number of each sample's group, from 0."""
    if groups is None:
        return None
    if len(groups) != size:
        raise DataError(f"{len(groups)} groups for {size} samples", "one group per sample", "pass None for a sample of no group")
    return _codes(tuple(groups))


@lru_cache(maxsize=4)  # a table of results asks for the same groups a hundred times
def _codes(groups: tuple[str | None, ...]) -> NDArray[np.int64]:
    names = [group or (place,) for place, group in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    codes = np.array([numbers[name] for name in names], dtype=np.int64)
    codes.flags.writeable = False
    return codes


def _drawn(codes: NDArray[np.int64] | None, size: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Pieces [resamples, U] of drawn units: samples, or groups where there are some. How it is cut into pieces changes no draw."""
    if num_resamples < 1:
        raise DataError(f"num_resamples = {num_resamples}", "at least 1 resample", "ask for 1000 resamples")
    return _pieces(size if codes is None else int(codes.max()) + 1, num_resamples, np.random.default_rng(seed))


def _pieces(num_units: int, num_resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    rows_at_once = max(1, _DRAWS_AT_ONCE // num_units)
    for start in range(0, num_resamples, rows_at_once):
        yield rng.integers(0, num_units, size=(min(rows_at_once, num_resamples - start), num_units))


def _ends(values: NDArray[np.float64], codes: NDArray[np.int64] | None) -> tuple[float, float]:
    """The percentiles of the resampled values that are defined; NaN where these are too few, or where a single group has no spread."""
    defined = values[np.isfinite(values)]
    one_group = codes is not None and not codes.any()
    if one_group or defined.size < (1 - MAX_UNDEFINED) * values.size:
        return math.nan, math.nan
    low, high = np.percentile(defined, [LOW_PERCENT, HIGH_PERCENT])
    return float(low), float(high)
