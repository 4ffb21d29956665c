"""Scores of probabilities against labels: binary, multi-class, multi-label.

AUROC, average precision, F1 and their like are no means over samples, so `Scores.statistics` gives each as a function of drawn indices.
They are written here rather than called from a library because an interval asks for thousands of values: the probabilities are ranked
once, and a draw only counts. scikit-learn is what the tests compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eyegraft.errors import DataError
from eyegraft.metrics._bootstrap import Statistic
from eyegraft.metrics._calibration import NUM_BINS, checked_binary, ece, ece_statistic, fit_temperature, refuse_rows, reliability
from eyegraft.types import Scores

__all__ = [
    "best_thresholds",
    "confusion",
    "ece",
    "fit_temperature",
    "per_class",
    "reliability",
    "score_binary",
    "score_multi_class",
    "score_multi_label",
    "undefined",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

LOWER_IS_BETTER = ("brier", "ece", "log_loss")

_SMALLEST = float(np.finfo(np.float64).eps)  # what a probability of 0 counts as in a logarithm, as in scikit-learn
_UNIT_SUM = 1e-3  # how far the probabilities of a sample may sum from 1

_AUROC = "area under the ROC curve, a tie counts half"
_AP = "average precision, the step-wise area under precision over recall, no interpolation"
_F1 = "over the classes among targets or predictions"
_ECE = f"{NUM_BINS} bins of equal width (Guo et al. 2017)"


def score_binary(probabilities: ArrayLike, targets: ArrayLike, threshold: float) -> Scores:
    """Score the probability of the positive class.

    Where all targets are of one class AUROC is NaN (`undefined` gives the reason); average precision is NaN where none is positive.

    Args:
        probabilities: [N] in [0, 1].
        targets: [N] of 0 and 1.
        threshold: a sample is called positive where probability >= threshold. Choose it on other samples.

    Raises:
        DataError: no sample, shapes that do not match, a probability outside [0, 1], or a target other than 0 and 1.
    """
    scores, positive = checked_binary(probabilities, targets)
    called = scores >= threshold
    auroc, average_precision = _ranking(scores, positive.astype(np.float64))
    counts = _confusion(positive, called)
    statistics: dict[str, Statistic] = {
        "auroc": auroc,
        "pr_auc": average_precision,
        "balanced_accuracy": lambda rows: _balanced_accuracy(*counts(rows)),
        "precision": lambda rows: _precision(*counts(rows)),
        "recall": lambda rows: _recall(*counts(rows)),
        "f1": lambda rows: _f1(*counts(rows)),
        "ece": ece_statistic(scores, positive),
    }
    per_sample = {
        "accuracy": (called == positive).astype(np.float64),
        "brier": (scores - positive) ** 2,
        "log_loss": -np.log(np.maximum(np.where(positive, scores, 1 - scores), _SMALLEST)),
    }
    at = f"positive where p >= {threshold:.6g}"
    zero = f"{at}; 0 where it divides by zero"
    signature = {
        "auroc": _AUROC,
        "pr_auc": _AP,
        "accuracy": at,
        "balanced_accuracy": f"{at}; mean recall over the classes among the targets",
        "precision": zero,
        "recall": zero,
        "f1": zero,
        "brier": "mean squared error of p",
        "ece": f"p of the positive class against the share of positives; {_ECE}",
        "log_loss": "mean, natural logarithm",
    }
    return _scores(signature, statistics, per_sample, scores.size)


def score_multi_class(probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> Scores:
    """Score the distribution over classes of which one is true.

    Args:
        probabilities: [N, K] in [0, 1], each row sums to 1. The answer is the first of the largest.
        targets: [N] class numbers in 0..K-1.
        classes: K names.

    Raises:
        DataError: no sample, shapes that do not match, rows that are no distribution, or a target that is no class.
    """
    scores, truth = _distributions(probabilities, classes), np.asarray(targets)
    if truth.shape != scores.shape[:1]:
        raise DataError(f"targets of shape {truth.shape} for {len(scores)} samples", "[N] class numbers")
    refuse_rows(~np.isin(truth, np.arange(len(classes))), "targets", f"a class number in 0..{len(classes) - 1}")
    truth, answer = truth.astype(np.int64), scores.argmax(1)
    right = answer == truth
    ranking = [_ranking(scores[:, k], (truth == k).astype(np.float64))[0] for k in range(len(classes))]

    def counts(rows: Rows) -> tuple[Floats, Floats, Floats]:
        hits = truth[rows][right[rows]]
        found = (np.bincount(drawn, minlength=len(classes)).astype(np.float64) for drawn in (hits, truth[rows], answer[rows]))
        return next(found), next(found), next(found)

    statistics: dict[str, Statistic] = {
        "macro_f1": lambda rows: _macro_f1(*counts(rows)),
        "balanced_accuracy": lambda rows: _macro_recall(*counts(rows)[:2]),
        "auroc": _mean_of(ranking),
        "ece": ece_statistic(scores.max(1), right),
    }
    likelihood = np.take_along_axis(scores, truth[:, None], 1)[:, 0]
    per_sample = {
        "accuracy": right.astype(np.float64),
        "log_loss": -np.log(np.maximum(likelihood, _SMALLEST)),
        "brier": (scores**2).sum(1) - 2 * likelihood + 1,
    }
    signature = {
        "accuracy": "the most probable class",
        "macro_f1": f"mean of F1 {_F1}",
        "balanced_accuracy": "mean recall over the classes among the targets",
        "auroc": f"each class against the rest, mean over the classes that are neither absent nor everywhere; {_AUROC}",
        "log_loss": "mean, natural logarithm",
        "brier": "squared error summed over classes, 0 to 2",
        "ece": f"largest p against how often its class is right; {_ECE}",
    }
    return _scores(signature, statistics, per_sample, len(truth))


def score_multi_label(probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], thresholds: ArrayLike) -> Scores:
    """Score independent probabilities of labels of which any number may be true.

    Args:
        probabilities: [N, K] in [0, 1].
        targets: [N, K] of 0, 1 and NaN; what is NaN (not known) counts nowhere.
        classes: K names.
        thresholds: [K]; a label is called present where probability >= threshold.

    Raises:
        DataError: no sample, shapes that do not match, values outside these, or a sample of which no label is known.
    """
    scores, truth = _labels(probabilities, targets, classes)
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != (len(classes),):
        raise DataError(f"thresholds of shape {limits.shape}", f"one for each of {len(classes)} classes")
    known = ~np.isnan(truth)
    present, called = truth == 1, (scores >= limits) & known
    ranking = [_ranking(scores[:, k], truth[:, k]) for k in range(len(classes))]

    def counts(rows: Rows) -> tuple[Floats, Floats, Floats]:
        return _column_sums(present & called, rows), _column_sums(present, rows), _column_sums(called, rows)

    statistics: dict[str, Statistic] = {
        "macro_f1": lambda rows: _macro_f1(*counts(rows)),
        "micro_f1": lambda rows: _macro_f1(*(column.sum(keepdims=True) for column in counts(rows))),
        "mean_average_precision": _mean_of([average_precision for _, average_precision in ranking]),
        "auroc": _mean_of([auroc for auroc, _ in ranking]),
    }
    at = "present where p >= the threshold of the label"
    signature = {
        "macro_f1": f"{at}; mean of F1 {_F1}",
        "micro_f1": f"{at}; F1 of all labels of all samples together",
        "mean_average_precision": f"mean over the labels that some sample has; {_AP}",
        "auroc": f"mean over the labels that some samples have and some have not; {_AUROC}",
        "exact_match": f"{at}; every known label of a sample right",
    }
    per_sample = {"exact_match": ((called == present) | ~known).all(1).astype(np.float64)}
    return _scores(signature, statistics, per_sample, len(truth))


def per_class(probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str], called: ArrayLike) -> list[dict[str, float | str]]:
    """A row per class: class, support, precision, recall, f1 (0 where they divide by zero), auroc, pr_auc (NaN where undefined).

    Args:
        probabilities: [N, K] in [0, 1].
        targets: [N, K] of 0, 1 and NaN; one-hot for multi-class.
        classes: K names.
        called: [N, K] bool, what the model answers: above the thresholds, or the most probable class alone.

    Raises:
        DataError: as `score_multi_label`.
    """
    scores, truth = _labels(probabilities, targets, classes)
    answers = np.asarray(called, dtype=bool)
    if answers.shape != truth.shape:
        raise DataError(f"called of shape {answers.shape}", f"the shape of the targets, {truth.shape}")
    table: list[dict[str, float | str]] = []
    for k, name in enumerate(classes):
        rows = np.flatnonzero(~np.isnan(truth[:, k]))
        counts = _confusion(truth[:, k] == 1, answers[:, k])(rows)
        auroc, average_precision = _ranking(scores[:, k], truth[:, k])
        row: dict[str, float | str] = {"class": name, "support": counts[2] + counts[3]}
        row |= {"precision": _precision(*counts), "recall": _recall(*counts), "f1": _f1(*counts)}
        table.append(row | {"auroc": auroc(rows), "pr_auc": average_precision(rows)})
    return table


def confusion(probabilities: ArrayLike, targets: ArrayLike, threshold: float) -> dict[str, int]:
    """How many samples were rightly and wrongly called positive and negative: tp, tn, fp, fn. Arguments and errors of `score_binary`."""
    scores, positive = checked_binary(probabilities, targets)
    tn, fp, fn, tp = _confusion(positive, scores >= threshold)(np.arange(scores.size))
    return {"tp": tp, "tn": tn, "fp": fp, "fn": fn}


def best_thresholds(probabilities: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """The thresholds with the largest F1 and the largest accuracy on these samples: {"f1": t, "accuracy": t}.

    Exact: every way to cut the ranking is tried, at the midpoint between neighbouring probabilities (half-way to 0 and to 1 at the ends).
    Of equally good thresholds the one nearest to 0.5 is taken, and of two equally near the lower. Choose on validation, apply to test: on
    the samples that chose it a threshold looks better than it is.

    Args:
        probabilities, targets: as in `score_binary`.

    Raises:
        DataError: as `score_binary`.
    """
    scores, positive = checked_binary(probabilities, targets)
    levels, level_of = np.unique(scores, return_inverse=True)
    middles = (levels[:-1] + levels[1:]) / 2
    middles = np.where(middles > levels[:-1], middles, levels[1:])  # the midpoint of neighbouring floats may round down to the lower one
    above_all = (levels[-1] + 1) / 2 if levels[-1] < 1 else 1.0
    cuts = np.concatenate([[levels[0] / 2], middles, [max(above_all, np.nextafter(levels[-1], 2))]])  # [L + 1]; cut i keeps levels i..
    num_positive = np.bincount(level_of, positive, levels.size)
    num_negative = np.bincount(level_of, ~positive, levels.size)
    tp, fp = (np.concatenate([np.cumsum(counts[::-1])[::-1], [0]]) for counts in (num_positive, num_negative))
    fn = tp[0] - tp
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)  # quotients of whole numbers: equal ones are equal bit for bit
    accuracy = tp + (fp[0] - fp)
    nearest_first = np.argsort(np.abs(cuts - 0.5), kind="stable")
    return {name: float(cuts[nearest_first[np.argmax(value[nearest_first])]]) for name, value in (("f1", f1), ("accuracy", accuracy))}


def undefined(targets: ArrayLike) -> str | None:
    """Why AUROC has no value on these targets ([N], of 0 and 1 or class numbers), or None where it has one."""
    found = np.unique(np.asarray(targets, dtype=np.float64))
    if found.size > 1:
        return None
    have = f"all {np.size(targets)} targets are {found[0]:g}" if found.size else "there is no target"
    return f"{have}; AUROC needs two classes"


def _scores(signature: Mapping[str, str], statistics: Mapping[str, Statistic], per_sample: Mapping[str, Floats], size: int) -> Scores:
    """Corpus values in the order of `signature`: means where there are values per sample, else the statistic over all of them."""
    everything = np.arange(size)
    corpus = {name: float(per_sample[name].mean()) if name in per_sample else statistics[name](everything) for name in signature}
    lists = {name: values.tolist() for name, values in per_sample.items()}
    return Scores(corpus, lists, signature, {name: name not in LOWER_IS_BETTER for name in signature}, statistics)


def _ranking(scores: Floats, targets: Floats) -> tuple[Statistic, Statistic]:
    """AUROC and average precision over drawn samples of one label; targets [N] of 0, 1 and NaN, which counts nowhere."""
    levels, level_of = np.unique(scores, return_inverse=True)
    known = ~np.isnan(targets)
    cell_of = np.where(known, 2 * level_of + (targets == 1), 2 * levels.size)  # the last cell is not looked at

    def counts(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        table = np.bincount(cell_of[rows], minlength=2 * levels.size + 1)[:-1].reshape(-1, 2)
        return table[:, 0], table[:, 1]  # negatives, positives at each level, from low to high

    def auroc(rows: Rows) -> float:
        """The share of pairs in which the positive ranks higher (Hanley & McNeil 1982)."""
        negatives, positives = counts(rows)
        pairs = float(negatives.sum()) * float(positives.sum())
        return float(positives @ (np.cumsum(negatives) - negatives / 2)) / pairs if pairs else math.nan

    def average_precision(rows: Rows) -> float:
        negatives, positives = (drawn[::-1] for drawn in counts(rows))
        precision = np.cumsum(positives) / np.maximum(np.cumsum(positives + negatives), 1)
        return float(positives @ precision) / float(positives.sum()) if positives.any() else math.nan

    return auroc, average_precision


def _mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of those that are defined on the draw."""

    def value(rows: Rows) -> float:
        values = [found for found in (statistic(rows) for statistic in statistics) if not math.isnan(found)]
        return sum(values) / len(values) if values else math.nan

    return value


def _confusion(positive: NDArray[np.bool_], called: NDArray[np.bool_]) -> Callable[[Rows], tuple[int, int, int, int]]:
    cell_of = 2 * positive + called.astype(np.int64)

    def counts(rows: Rows) -> tuple[int, int, int, int]:
        tn, fp, fn, tp = np.bincount(cell_of[rows], minlength=4).tolist()
        return tn, fp, fn, tp

    return counts


def _precision(tn: int, fp: int, fn: int, tp: int) -> float:
    return tp / (tp + fp) if tp + fp else 0.0


def _recall(tn: int, fp: int, fn: int, tp: int) -> float:
    return tp / (tp + fn) if tp + fn else 0.0


def _f1(tn: int, fp: int, fn: int, tp: int) -> float:
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def _balanced_accuracy(tn: int, fp: int, fn: int, tp: int) -> float:
    recalls = [hits / total for hits, total in ((tn, tn + fp), (tp, tp + fn)) if total]
    return sum(recalls) / len(recalls)


def _macro_f1(hits: Floats, present: Floats, called: Floats) -> float:
    """Mean of 2 hits / (present + called) over the classes [K] where that is defined; 0 where it is for none."""
    total = present + called
    return float((2 * hits[total > 0] / total[total > 0]).mean()) if total.any() else 0.0


def _macro_recall(hits: Floats, present: Floats) -> float:
    return float((hits[present > 0] / present[present > 0]).mean())


def _column_sums(table: NDArray[np.bool_], rows: Rows) -> Floats:
    return np.asarray(table[rows].sum(0), dtype=np.float64)


def _probabilities(probabilities: ArrayLike, classes: Sequence[str]) -> Floats:
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(classes) or scores.size == 0:
        raise DataError(f"probabilities of shape {scores.shape}", f"[N, {len(classes)}], a column for each class, N >= 1")
    refuse_rows(~((scores >= 0) & (scores <= 1)).all(1), "probabilities", "values in [0, 1]")
    return scores


def _distributions(probabilities: ArrayLike, classes: Sequence[str]) -> Floats:
    scores = _probabilities(probabilities, classes)
    refuse_rows(np.abs(scores.sum(1) - 1) > _UNIT_SUM, "probabilities", "each row sums to 1", "take the softmax in float32")
    return scores


def _labels(probabilities: ArrayLike, targets: ArrayLike, classes: Sequence[str]) -> tuple[Floats, Floats]:
    scores, truth = _probabilities(probabilities, classes), np.asarray(targets, dtype=np.float64)
    if truth.shape != scores.shape:
        raise DataError(f"targets of shape {truth.shape}", f"the shape of the probabilities, {scores.shape}")
    refuse_rows(~((truth == 0) | (truth == 1) | np.isnan(truth)).all(1), "targets", "0, 1, or NaN where not known")
    refuse_rows(np.isnan(truth).all(1), "targets", "a known label in every row", "leave rows without a label out")
    return scores, truth
