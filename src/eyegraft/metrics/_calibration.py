"""Whether probabilities mean what they say: calibration error, reliability table, temperature scaling."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eyegraft.errors import DataError, shown
from eyegraft.metrics._bootstrap import Statistic

log = logging.getLogger(__name__)

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""The range that is searched. A temperature at an end of it says that the logits are of no use, or that the set is too small."""

_WILSON_Z = 1.959963984540054  # of a 95 % interval
_BISECTIONS = 60  # of log temperature: the last step is smaller than float64 resolves


def ece(probabilities: ArrayLike, targets: ArrayLike, bins: int = NUM_BINS) -> float:
    """Expected calibration error in [0, 1]: mean over samples of |mean probability - frequency| of their bin.

    Naeini et al. 2015 (Obtaining well calibrated probabilities using Bayesian binning) with the equal-width bins (low, high] of Guo et al.
    2017; 0 belongs to the first. Of a binary model the probability is that of the positive class and the frequency that of positives; of a
    multi-class model pass the top probability and whether the top class is right.

    Args:
        probabilities: [N] in [0, 1].
        targets: [N] of 0 and 1.

    Raises:
        DataError: see `checked_binary`; fewer than one bin.
    """
    scores, positive = checked_binary(probabilities, targets)
    return ece_statistic(scores, positive, bins)(np.arange(scores.size))


def ece_statistic(probabilities: NDArray[np.float64], positive: NDArray[np.bool_], bins: int = NUM_BINS) -> Statistic:
    """`ece` over drawn samples. Bins of few samples look off by chance, more so on a draw: its intervals lie somewhat high."""
    bin_of = _bin_of(probabilities, bins)
    excess = probabilities - positive  # summed over a bin: count * (mean probability - frequency)

    def value(rows: NDArray[np.int64]) -> float:
        return float(np.abs(np.bincount(bin_of[rows], excess[rows])).sum() / rows.size)

    return value


def reliability(probabilities: ArrayLike, targets: ArrayLike, bins: int = NUM_BINS) -> list[dict[str, float]]:
    """What a reliability plot shows: the bins of `ece` that hold a sample, from low to high.

    Args:
        probabilities, targets: as in `ece`.

    Returns:
        A row per bin: low, high (its ends), count, mean_probability, frequency (share of positives), low_ci and high_ci (95 % interval of
        the frequency, Wilson 1927).

    Raises:
        DataError: as `ece`.
    """
    scores, positive = checked_binary(probabilities, targets)
    bin_of = _bin_of(scores, bins)
    rows: list[dict[str, float]] = []
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        count, frequency = int(inside.sum()), float(positive[inside].mean())
        low_ci, high_ci = _wilson(frequency, count)
        row = {"low": number / bins, "high": (number + 1) / bins, "count": count, "mean_probability": float(scores[inside].mean())}
        rows.append(row | {"frequency": frequency, "low_ci": low_ci, "high_ci": high_ci})
    return rows


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature T > 0 that makes logits / T most likely on held-out targets (Guo et al. 2017, On calibration of neural networks).

    The order of the answers, and so accuracy and AUROC, stay as they are. The likelihood is concave in 1 / T; its one maximum is found by
    bisection of the slope between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`, and an end of that range is said in the log. Where the maximum
    lies nowhere (targets of one class; every answer right, so that any sharper one is likelier) T is 1, which changes nothing, and the log
    says why.

    Args:
        logits: [N], of which the sigmoid is the probability of the positive class, or [N, K] before a softmax.
        targets: [N] of 0 and 1, or the class number in 0..K-1.

    Raises:
        DataError: no sample, shapes that do not match, a logit that is not finite, or a target that is no class.
    """
    values, classes = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    num_classes = values.shape[1] if values.ndim == 2 else 2
    if values.ndim not in (1, 2) or classes.shape != values.shape[:1] or classes.size == 0 or num_classes < 2:
        raise DataError(
            f"logits of shape {values.shape}, targets of shape {classes.shape}", "[N] or [N, K] logits, K >= 2, and [N] targets"
        )
    refuse_rows(~np.isfinite(values).reshape(len(values), -1).all(1), "logits", "finite logits")
    refuse_rows(~np.isin(classes, np.arange(num_classes)), "targets", f"a class number in 0..{num_classes - 1}")
    if np.all(classes == classes[0]):
        log.warning("temperature not fitted, left at 1: all %d targets are of class %d", classes.size, int(classes[0]))
        return 1.0
    # A binary logit z is the pair (0, z), so one formula serves both
    pairs = values if values.ndim == 2 else np.stack([np.zeros_like(values), values], axis=1)  # [N, K]
    labels = classes.astype(np.int64)[:, None]
    gaps = pairs - np.take_along_axis(pairs, labels, axis=1)  # [N, K] how far each class lies above the true one, whose gap is 0
    others = gaps.copy()
    np.put_along_axis(others, labels, -np.inf, axis=1)
    if np.all(others < 0):
        log.warning("temperature not fitted, left at 1: all %d answers are right, so any sharper ones would look better", classes.size)
        return 1.0
    return _temperature_at_rest(gaps)


def _temperature_at_rest(gaps: NDArray[np.float64]) -> float:
    def slope(temperature: float) -> float:
        """Of the summed negative log likelihood in 1 / T: the mean gap under the softmax of gaps / T."""
        scaled = gaps / temperature
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float((weights * gaps).sum(1) @ (1 / weights.sum(1)))

    if slope(MIN_TEMPERATURE) <= 0 <= slope(MAX_TEMPERATURE):  # no gap anywhere: every temperature is as good
        return 1.0
    for temperature, beyond in ((MIN_TEMPERATURE, slope(MIN_TEMPERATURE) <= 0), (MAX_TEMPERATURE, slope(MAX_TEMPERATURE) >= 0)):
        if beyond:
            log.warning("temperature %g lies at the end of the range %g..%g", temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
            return temperature
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def checked_binary(probabilities: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[N] float64 probabilities and [N] whether the target is 1.

    Raises:
        DataError: no sample, shapes that do not match, a probability outside [0, 1], or a target other than 0 and 1; names the indices.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != truth.shape or scores.size == 0:
        raise DataError(f"probabilities of shape {scores.shape}, targets of shape {truth.shape}", "[N] of both, N >= 1")
    refuse_rows(~((scores >= 0) & (scores <= 1)), "probabilities", "values in [0, 1]")
    refuse_rows((truth != 0) & (truth != 1), "targets", "0 or 1", "leave rows without a label out")
    return scores, truth == 1


def refuse_rows(broken: Any, name: str, expected: str, fix: str = "look at these samples, or leave them out") -> None:
    """Raise `DataError` with the indices at which `broken` [N] is true, if there are any."""
    places = np.flatnonzero(broken).tolist()
    if places:
        raise DataError(f"{name}: not so at index {shown(places)}", expected, fix)


def _bin_of(probabilities: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    if bins < 1:
        raise DataError(f"bins = {bins}", "at least 1 bin", f"take {NUM_BINS}")
    return np.searchsorted(np.arange(1, bins) / bins, probabilities, side="left").astype(np.int64)


def _wilson(frequency: float, count: int) -> tuple[float, float]:
    z2 = _WILSON_Z**2 / count
    centre = (frequency + z2 / 2) / (1 + z2)
    half = _WILSON_Z / (1 + z2) * math.sqrt(frequency * (1 - frequency) / count + z2 / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)
