"""Percentile bootstrap intervals around a mean (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError, shown

LOW_PERCENT, HIGH_PERCENT = 2.5, 97.5
"""The two ends of a 95 % interval."""

_DRAWS_AT_ONCE = 2_000_000
"""Indices drawn in one piece (16 MB), so that a large test set times many resamples does not fill the memory."""


def interval(values: Sequence[float], num_resamples: int, seed: int) -> tuple[float, float, float]:
    """The mean of `values` and the ends of its 95 % percentile bootstrap interval.

    The samples are taken to be independent; rows that share a picture or a patient make the true interval wider.
    One value, or values that are all alike, give an interval of width zero: the sample then says nothing about its own spread.

    Args:
        values: one score per sample.
        num_resamples: how many data sets of the same size are drawn with replacement; 1000 or more for two stable digits.
        seed: the same seed gives the same interval.

    Returns:
        (mean, low, high) in the unit of `values`.

    Raises:
        DataError: no value, a value that is not finite, or fewer than one resample.
    """
    scores = _checked(values, "values")
    if num_resamples < 1:
        raise DataError(f"num_resamples = {num_resamples}", "at least 1 resample", "ask for 1000 resamples")
    means = _resampled_means(scores, num_resamples, np.random.default_rng(seed))  # [num_resamples]
    low, high = np.percentile(means, [LOW_PERCENT, HIGH_PERCENT])
    return float(scores.mean()), float(low), float(high)


def paired_interval(a: Sequence[float], b: Sequence[float], num_resamples: int, seed: int) -> tuple[float, float, float]:
    """The mean of a - b and its 95 % interval, resampling the samples that both systems answered.

    Pairing takes out what makes a sample easy or hard for both; overlapping single intervals can still hide a clear difference.

    Args:
        a, b: one score per sample of two systems, in the same order of samples.
        num_resamples, seed: as in `interval`.

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
    return interval(difference.tolist(), num_resamples, seed)


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


def _resampled_means(scores: NDArray[np.float64], num_resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    rows_at_once = max(1, _DRAWS_AT_ONCE // scores.size)
    pieces = []
    for start in range(0, num_resamples, rows_at_once):
        num_rows = min(rows_at_once, num_resamples - start)
        drawn = rng.integers(0, scores.size, size=(num_rows, scores.size))  # [resamples, samples]
        pieces.append(scores[drawn].mean(axis=1))
    return np.concatenate(pieces)
