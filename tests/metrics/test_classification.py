"""Classification scores: against scikit-learn on whole sets and on draws, and against values worked out by hand."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from eyegraft.errors import DataError
from eyegraft.metrics._bootstrap import statistic_interval
from eyegraft.metrics.classification import (
    best_thresholds,
    confusion,
    ece,
    fit_temperature,
    per_class,
    reliability,
    score_binary,
    score_multi_class,
    score_multi_label,
    undefined,
)

NAMES = ("cat", "dog", "owl", "eel")
close = pytest.approx


def binary(size: int, seed: int, digits: int = 2) -> tuple[Any, Any]:
    """Probabilities with ties (two digits) that know something of their targets; both classes are there."""
    rng = np.random.default_rng(seed)
    targets = np.append(rng.integers(0, 2, size - 2), [0, 1])
    return np.round(np.clip(0.5 + 0.2 * (targets - 0.5) + rng.normal(0, 0.25, size), 0, 1), digits), targets


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def multi_class(size: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    targets = np.append(rng.integers(0, 4, size - 4), range(4))
    return softmax(rng.normal(size=(size, 4)) + np.eye(4)[targets]), targets


def by_sklearn(probabilities: Any, targets: Any, threshold: float) -> dict[str, float]:
    called = probabilities >= threshold
    return {
        "auroc": sk.roc_auc_score(targets, probabilities),
        "pr_auc": sk.average_precision_score(targets, probabilities),
        "accuracy": sk.accuracy_score(targets, called),
        "balanced_accuracy": sk.balanced_accuracy_score(targets, called),
        "precision": sk.precision_score(targets, called, zero_division=0),
        "recall": sk.recall_score(targets, called, zero_division=0),
        "f1": sk.f1_score(targets, called, zero_division=0),
        "brier": sk.brier_score_loss(targets, probabilities),
        "log_loss": sk.log_loss(targets, probabilities),
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.61, 1.1])
def test_binary_agrees_with_scikit_learn(seed: int, threshold: float) -> None:
    probabilities, targets = binary(60, seed)
    scores = score_binary(probabilities, targets, threshold)
    expected = by_sklearn(probabilities, targets, threshold)
    assert {name: scores.corpus[name] for name in expected} == close(expected, abs=1e-12)
    tn, fp, fn, tp = sk.confusion_matrix(targets, probabilities >= threshold, labels=[0, 1]).ravel().tolist()
    assert confusion(probabilities, targets, threshold) == {"tp": tp, "tn": tn, "fp": fp, "fn": fn}


def test_binary_statistics_agree_with_scikit_learn_on_draws() -> None:
    probabilities, targets = binary(50, 3)
    scores, rng = score_binary(probabilities, targets, 0.5), np.random.default_rng(0)
    for _ in range(40):
        rows = rng.integers(0, 50, 50)
        expected = by_sklearn(probabilities[rows], targets[rows], 0.5)
        expected["ece"] = ece(probabilities[rows], targets[rows])
        assert {name: value(rows) for name, value in scores.statistics.items()} == close(
            {name: expected[name] for name in scores.statistics}
        )


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.50000001, 0.9, 1.0]), st.integers(0, 1)), min_size=2, max_size=12))
def test_ties_and_extremes_rank_as_in_scikit_learn(pairs: list[tuple[float, int]]) -> None:
    probabilities, targets = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])
    corpus = score_binary(probabilities, targets, 0.5).corpus
    if 0 < targets.sum() < targets.size:
        assert corpus["auroc"] == close(sk.roc_auc_score(targets, probabilities))
        assert corpus["pr_auc"] == close(sk.average_precision_score(targets, probabilities))
        assert corpus["log_loss"] == close(sk.log_loss(targets, probabilities))
        assert undefined(targets) is None
    else:
        assert math.isnan(corpus["auroc"])
        assert math.isnan(corpus["pr_auc"]) == (not targets.any())
        assert undefined(targets) == f"all {targets.size} targets are {targets[0]}; AUROC needs two classes"


def test_the_order_and_the_parts_of_binary_scores() -> None:
    scores = score_binary(*binary(30, 0), 0.5)
    names = ["auroc", "pr_auc", "accuracy", "balanced_accuracy", "precision", "recall", "f1", "brier", "ece", "log_loss"]
    assert list(scores.corpus) == list(scores.signature) == list(scores.higher_is_better) == names
    assert sorted(scores.per_sample) == ["accuracy", "brier", "log_loss"]
    assert set(scores.per_sample) | set(scores.statistics) == set(names)
    assert [name for name, better in scores.higher_is_better.items() if not better] == ["brier", "ece", "log_loss"]
    assert all(scores.corpus[name] == close(np.mean(values)) for name, values in scores.per_sample.items())
    assert scores.per_sample["accuracy"][-1] == float(binary(30, 0)[0][-1] >= 0.5)


def test_two_thousand_resamples_of_two_thousand_samples_take_seconds() -> None:
    scores = score_binary(*binary(2000, 0, digits=9), 0.5)
    started = time.perf_counter()
    _, low, high = statistic_interval(scores.statistics["auroc"], 2000, 2000, 0)
    assert time.perf_counter() - started < 5, "an interval of AUROC should take well under a second"
    assert low < scores.corpus["auroc"] < high


@pytest.mark.parametrize("seed", range(5))
def test_multi_class_agrees_with_scikit_learn(seed: int) -> None:
    probabilities, targets = multi_class(40, seed)
    corpus, answers = score_multi_class(probabilities, targets, NAMES).corpus, probabilities.argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(targets, answers),
        "macro_f1": sk.f1_score(targets, answers, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(targets, answers),
        "auroc": sk.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro"),
        "log_loss": sk.log_loss(targets, probabilities),
        "brier": ((probabilities - np.eye(4)[targets]) ** 2).sum(1).mean(),
        "ece": ece(probabilities.max(1), answers == targets),
    }
    assert list(corpus) == list(expected)
    assert corpus == close(expected)


def test_multi_class_statistics_on_draws_that_lack_a_class() -> None:
    probabilities, targets = multi_class(30, 1)
    statistics = score_multi_class(probabilities, targets, NAMES).statistics
    rows = np.flatnonzero(targets != 2).repeat(2)
    drawn, answers = targets[rows], probabilities[rows].argmax(1)
    assert statistics["macro_f1"](rows) == close(sk.f1_score(drawn, answers, average="macro"))
    assert statistics["balanced_accuracy"](rows) == close(sk.recall_score(drawn, answers, average="macro", labels=[0, 1, 3]))
    each = [sk.roc_auc_score(drawn == k, probabilities[rows, k]) for k in (0, 1, 3)]
    assert statistics["auroc"](rows) == close(np.mean(each))
    assert math.isnan(statistics["auroc"](np.flatnonzero(targets == 2)))


def multi_label(seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (50, 4)).astype(float)
    targets[:2] = [[0] * 4, [1] * 4]
    return np.round(np.clip(rng.normal(0.3 + 0.4 * targets, 0.3), 0, 1), 2), targets


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_agrees_with_scikit_learn(seed: int) -> None:
    probabilities, targets = multi_label(seed)
    limits = np.array([0.3, 0.5, 0.6, 0.7])
    called = probabilities >= limits
    scores = score_multi_label(probabilities, targets, NAMES, limits)
    assert scores.corpus == close(
        {
            "macro_f1": sk.f1_score(targets, called, average="macro"),
            "micro_f1": sk.f1_score(targets, called, average="micro"),
            "mean_average_precision": sk.average_precision_score(targets, probabilities, average="macro"),
            "auroc": sk.roc_auc_score(targets, probabilities, average="macro"),
            "exact_match": sk.accuracy_score(targets, called),
        }
    )
    for number, row in enumerate(per_class(probabilities, targets, NAMES, called)):
        truth, answer = targets[:, number], called[:, number]
        precision, recall, f1, _ = sk.precision_recall_fscore_support(truth, answer, average="binary")
        expected = {"class": NAMES[number], "support": truth.sum(), "precision": precision, "recall": recall, "f1": f1}
        expected |= {
            "auroc": sk.roc_auc_score(truth, probabilities[:, number]),
            "pr_auc": sk.average_precision_score(truth, probabilities[:, number]),
        }
        assert row == {name: value if name == "class" else close(value) for name, value in expected.items()}


def test_unknown_labels_count_nowhere() -> None:
    probabilities, targets = multi_label(4)
    targets[10:30, 1] = np.nan
    targets[2:, 3] = np.nan
    scores = score_multi_label(probabilities, targets, NAMES, [0.5] * 4)
    called, known = probabilities >= 0.5, ~np.isnan(targets)
    each = [sk.f1_score(targets[known[:, k], k], called[known[:, k], k]) for k in range(4)]
    assert scores.corpus["macro_f1"] == close(np.mean(each))
    assert scores.corpus["micro_f1"] == close(sk.f1_score(targets[known], called[known]))
    assert scores.corpus["auroc"] == close(
        np.mean([sk.roc_auc_score(targets[known[:, k], k], probabilities[known[:, k], k]) for k in range(4)])
    )
    assert scores.per_sample["exact_match"] == [float(((c == t) | ~k).all()) for c, t, k in zip(called, targets, known, strict=True)]
    assert [row["support"] for row in per_class(probabilities, targets, NAMES, called)] == np.nansum(targets, 0).tolist()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=9))
def test_no_threshold_beats_the_best_ones(pairs: list[tuple[float, int]]) -> None:
    probabilities, targets = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])
    best = best_thresholds(probabilities, targets)
    tried = [score_binary(probabilities, targets, limit).corpus for limit in [*probabilities, 0.0, 0.5, 2.0]]
    for name, limit in best.items():
        assert score_binary(probabilities, targets, limit).corpus[name] == max([corpus[name] for corpus in tried])


def test_best_thresholds_lie_midway_and_near_a_half() -> None:
    assert best_thresholds([0.2, 0.4, 0.8], [0, 0, 1]) == close({"f1": 0.6, "accuracy": 0.6})
    # cuts at 0.3 and at 0.85 have three of four right: 0.3 is nearer to a half
    assert best_thresholds([0.2, 0.4, 0.8, 0.9], [0, 1, 0, 1])["accuracy"] == close(0.3)
    assert best_thresholds([0.02, 0.1, 0.6, 0.9], [0, 1, 0, 1])["accuracy"] == close(0.75)
    # F1 keeps both positives (0.8), accuracy too
    assert best_thresholds([0.2, 0.4, 0.8, 0.9], [0, 1, 0, 1])["f1"] == close(0.3)
    floats = [0.3, np.nextafter(0.3, 1), np.nextafter(np.nextafter(0.3, 1), 1)]
    for pair in (floats[:2], floats[1:]):  # of one the midpoint rounds to the lower
        assert best_thresholds(pair, [0, 1])["accuracy"] == pair[1]
    assert best_thresholds([1.0, 1.0, 1.0], [0, 0, 1])["accuracy"] > 1


def test_calibration_error_by_hand() -> None:
    # bins of a half: (0.2, 0.4 | 0.5 is in the lower) mean 11/30, one of three; (0.7, 0.9) mean 0.8, one of two
    assert ece([0.2, 0.4, 0.5, 0.7, 0.9], [0, 1, 0, 1, 0], bins=2) == close((3 * abs(11 / 30 - 1 / 3) + 2 * 0.3) / 5)
    assert ece([0.0, 1.0], [0, 1]) == 0
    rng = np.random.default_rng(0)
    probabilities = rng.random(200_000)
    assert ece(probabilities, rng.random(200_000) < probabilities) < 0.01
    assert ece(probabilities, rng.random(200_000) < probabilities**2) > 0.1


def test_reliability_rows_are_the_bins_of_the_calibration_error() -> None:
    probabilities, targets = binary(300, 5, digits=6)
    rows = reliability(probabilities, targets, bins=10)
    assert sum(row["count"] for row in rows) == 300
    assert sum(row["count"] * abs(row["mean_probability"] - row["frequency"]) for row in rows) / 300 == close(
        ece(probabilities, targets, 10)
    )
    for row in rows:
        assert row["low"] <= row["mean_probability"] <= row["high"]
        assert 0 <= row["low_ci"] <= row["frequency"] <= row["high_ci"] <= 1
    frequencies, means = sk_curve(probabilities, targets)
    assert [row["frequency"] for row in rows] == close(frequencies)
    assert [row["mean_probability"] for row in rows] == close(means)
    # Wilson 1927 for 5 of 10: 0.2366 to 0.7634
    (row,) = reliability([0.5] * 10, [0, 1] * 5, bins=1)
    assert (row["low_ci"], row["high_ci"]) == (close(0.23659, abs=1e-5), close(0.76341, abs=1e-5))


def sk_curve(probabilities: Any, targets: Any) -> tuple[list[float], list[float]]:
    from sklearn.calibration import calibration_curve

    frequencies, means = calibration_curve(targets, probabilities, n_bins=10)
    return frequencies.tolist(), means.tolist()


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_of_overstated_logits_is_found(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    targets = rng.random(logits.size) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(true * logits, targets.astype(int)) == close(true, rel=0.05)
    several = rng.normal(0, 2, (20_000, 3))
    drawn = (several + rng.gumbel(size=several.shape)).argmax(1)
    assert fit_temperature(true * several, drawn) == close(true, rel=0.05)


def test_no_other_temperature_is_likelier() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(0, 3, (80, 4)), rng.integers(0, 4, 80)
    logits[range(80), targets] += 2

    def loss(temperature: float) -> float:
        return float(sk.log_loss(targets, softmax(logits / temperature)))

    best = fit_temperature(logits, targets)
    assert loss(best) <= min(loss(best * 1.001), loss(best / 1.001))
    pair, side = logits[:, :2], (logits[:, 0] + rng.normal(0, 3, 80) < logits[:, 1]).astype(int)
    assert fit_temperature(pair, side) == close(fit_temperature(pair[:, 1] - pair[:, 0], side)), "two classes are one logit"


def test_what_has_no_temperature_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def fitted(logits: Any, targets: Any) -> tuple[float, str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return fit_temperature(logits, targets), caplog.text

    temperature, said = fitted([1.0, -2.0, 3.0], [1, 1, 1])
    assert temperature == 1
    assert "all 3 targets are of class 1" in said
    temperature, said = fitted([1.0, -2.0, 800.0], [1, 0, 1])
    assert temperature == 1
    assert "all 3 answers are right" in said
    temperature, said = fitted([1.0, -2.0, 3.0, -1.0], [0, 1, 0, 1])  # always wrong: the flatter the better
    assert temperature == 20
    assert "end of the range" in said
    temperature, said = fitted([2e-3, -1e-3, -1e-3, 2e-3], [1, 0, 1, 1])  # too flat to be made sharp enough
    assert temperature == 0.05
    assert "end of the range" in said
    assert fitted([0.0, 0.0], [0, 1]) == (1.0, "")


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match=r"probabilities: not so at index 1, 2\n  expected: values in \[0, 1\]"):
        score_binary([0.1, 1.5, math.nan], [0, 1, 0], 0.5)
    with pytest.raises(DataError, match="targets: not so at index 1"):
        best_thresholds([0.1, 0.2], [0, math.nan])
    with pytest.raises(DataError, match=r"shape \(2,\), targets of shape \(1,\)"):
        confusion([0.1, 0.2], [0], 0.5)
    with pytest.raises(DataError, match="N >= 1"):
        ece([], [])
    with pytest.raises(DataError, match="bins = 0"):
        reliability([0.5], [1], bins=0)
    with pytest.raises(DataError, match="sums to 1"):
        score_multi_class([[0.5, 0.6]], [0], ["a", "b"])
    with pytest.raises(DataError, match=r"class number in 0\.\.1"):
        score_multi_class([[0.5, 0.5]], [2], ["a", "b"])
    with pytest.raises(DataError, match="a column for each class"):
        score_multi_class([[0.5, 0.5]], [0], NAMES)
    with pytest.raises(DataError, match=r"index 1\n  expected: a known label in every row"):
        score_multi_label([[0.5], [0.5]], [[1], [math.nan]], ["a"], [0.5])
    with pytest.raises(DataError, match="one for each of 1 classes"):
        score_multi_label([[0.5]], [[1]], ["a"], 0.5)
    with pytest.raises(DataError, match="finite logits"):
        fit_temperature([math.inf, 1], [0, 1])
    with pytest.raises(DataError, match=r"class number in 0\.\.1"):
        fit_temperature([1.0, 1], [0, 2])
