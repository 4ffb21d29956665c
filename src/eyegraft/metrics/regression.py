"""Scores of numbers against numbers: errors in the unit of the target, shares of its variance, intervals around the answers.

Names carry the unit: `rmse_kelvin`, `mae_celsius`, `rmse` where there is none. RMSE, R² and the correlation are no means over samples, so
`Scores.statistics` gives each as a function of drawn indices. scikit-learn and scipy are what the tests compare with.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eyegraft.errors import DataError
from eyegraft.metrics._bootstrap import OfSums, Statistic
from eyegraft.metrics._calibration import refuse_rows
from eyegraft.types import Scores

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_SPOKEN = {"K": "kelvin", "°C": "celsius", "degC": "celsius", "°F": "fahrenheit", "%": "percent", "°": "degrees"}


def score(values: ArrayLike, targets: ArrayLike, *, unit: str, scale: float, intervals: ArrayLike | None = None) -> Scores:
    """Score the numbers that were answered.

    R² is NaN where all targets are the same, and so is the correlation; of answers that are all the same the correlation is 0.

    Args:
        values, targets: [N] in `unit`.
        unit: as a table heads it, such as K, °C or m/s; empty for none.
        scale: standard deviation of the training targets in `unit`: what the normalised errors are divided by.
        intervals: [N, 2] in `unit`, the low and high end beside each answer.

    Raises:
        DataError: no sample, shapes that do not match, a value that is not finite, or a scale that is not positive.
    """
    answered, truth = _checked(values, targets)
    if not (math.isfinite(scale) and scale > 0):
        raise DataError(f"scale {scale}", "a positive number", "give the standard deviation of the training targets")
    rmse, mae, bias, width = (in_unit(name, unit) for name in ("rmse", "mae", "bias", "interval_width"))
    errors = answered - truth
    squares = errors**2
    per_sample = {mae: np.abs(errors), bias: errors, "mse_norm": squares / scale**2}
    statistics: dict[str, Statistic] = {
        rmse: _rmse(squares, 1.0),
        "r2": _r2(squares, truth),
        "pearson": _pearson(answered, truth),
        "rmse_norm": _rmse(squares, scale),
    }
    in_words = f" in {unit}" if unit else ""
    divided = f"divided by {scale:.6g}{' ' if unit else ''}{unit}, the standard deviation of the training targets"
    signature = {
        rmse: f"root of the mean squared error{in_words}",
        mae: f"mean absolute error{in_words}",
        bias: f"mean of answer less truth{in_words}; best at 0",
        "r2": "1 less squared errors over squared deviations from the mean of these targets",
        "pearson": "correlation of answers and truth; 0 where all answers are the same",
        "rmse_norm": f"RMSE {divided}",
        "mse_norm": "square of the normalised RMSE",
    }
    undirected = {bias}
    if intervals is not None:
        ends = _ends(intervals, truth.size)
        per_sample["interval_coverage"] = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).astype(np.float64)
        per_sample[width] = ends[:, 1] - ends[:, 0]
        signature["interval_coverage"] = "share of the samples whose interval holds the truth; best at the level of the intervals"
        signature[width] = f"mean width of the intervals{in_words}"
        undirected |= {"interval_coverage", width}
    everything = np.arange(truth.size)
    corpus = {name: float(per_sample[name].mean()) if name in per_sample else statistics[name](everything) for name in signature}
    directions = {name: name in ("r2", "pearson") for name in signature if name not in undirected}
    lists = {name: found.tolist() for name, found in per_sample.items()}
    return Scores(corpus, lists, signature, directions, statistics, frozenset(undirected))


def in_unit(metric: str, unit: str) -> str:
    """`rmse_kelvin` of rmse and K; the metric alone where there is no unit."""
    return f"{metric}_{unit_name(unit)}" if unit_name(unit) else metric


def unit_name(unit: str) -> str:
    """A unit as part of a name: `kelvin` of K, `m_per_s` of m/s, `hpa` of hPa; empty of none."""
    spoken = _SPOKEN.get(unit.strip()) or unit.strip().replace("/", " per ").lower()
    return re.sub(r"\W+", "_", spoken).strip("_")


def _rmse(squares: Floats, scale: float) -> Statistic:
    return OfSums(
        lambda rows: math.sqrt(squares[rows].mean()) / scale, squares[:, None], lambda sums, counts: np.sqrt(sums[:, 0] / counts) / scale
    )


def _r2(squares: Floats, truth: Floats) -> Statistic:
    def value(rows: Rows) -> float:
        drawn = truth[rows]
        if _all_equal(drawn):
            return math.nan
        return 1 - float(squares[rows].sum()) / float(((drawn - drawn.mean()) ** 2).sum())

    def of(sums: Floats, counts: Floats) -> Floats:
        return 1 - sums[:, 0] / _spread(sums[:, 2], sums[:, 1], counts)

    about = truth - truth.mean()
    return OfSums(value, np.stack([squares, about, about**2], axis=1), of)


def _pearson(answered: Floats, truth: Floats) -> Statistic:
    def value(rows: Rows) -> float:
        x, y = answered[rows], truth[rows]
        if _all_equal(y):
            return math.nan
        if _all_equal(x):
            return 0.0
        x, y = x - x.mean(), y - y.mean()
        return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))

    def of(sums: Floats, counts: Floats) -> Floats:
        a, b, aa, bb, ab = sums.T
        of_x, of_y = _spread(aa, a, counts), _spread(bb, b, counts)
        return np.where(np.isnan(of_x) & ~np.isnan(of_y), 0.0, (ab - a * b / counts) / np.sqrt(of_x * of_y))

    x, y = answered - answered.mean(), truth - truth.mean()
    return OfSums(value, np.stack([x, y, x * x, y * y, x * y], axis=1), of)


def _spread(squares: Floats, sums: Floats, counts: Floats) -> Floats:
    """[R] sums of squares about the mean, NaN where nothing but rounding is left of them: all values were equal."""
    left = squares - sums**2 / counts
    return np.where(left > 1e-12 * squares, left, np.nan)


def _all_equal(values: Floats) -> bool:
    """Asked of the values themselves: less their mean, equal numbers may differ from 0 by rounding."""
    return bool((values == values[0]).all())


def _checked(values: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    answered, truth = np.asarray(values, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if answered.ndim != 1 or answered.shape != truth.shape or answered.size == 0:
        raise DataError(f"answers of shape {answered.shape}, targets of shape {truth.shape}", "[N] of both, N >= 1")
    refuse_rows(~np.isfinite(answered), "answers", "finite numbers")
    refuse_rows(~np.isfinite(truth), "targets", "finite numbers", "leave rows without a number out")
    return answered, truth


def _ends(intervals: ArrayLike, size: int) -> Floats:
    ends = np.asarray(intervals, dtype=np.float64)
    if ends.shape != (size, 2):
        raise DataError(f"intervals of shape {ends.shape}", f"[{size}, 2], the low and high end beside each answer")
    refuse_rows(~(np.isfinite(ends).all(1) & (ends[:, 0] <= ends[:, 1])), "intervals", "finite ends, the low one first")
    return ends
