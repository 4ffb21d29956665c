"""Bootstrap intervals: seeded, ordered, of the right width, and paired where that matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eyegraft.errors import DataError
from eyegraft.metrics import _bootstrap
from eyegraft.metrics._bootstrap import OfSums, interval, paired_interval, paired_statistic_interval, statistic_interval

values = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def test_width_is_that_of_the_normal_approximation() -> None:
    scores = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    mean, low, high = interval(scores.tolist(), 4000, seed=1)
    half = 1.96 * scores.std() / math.sqrt(len(scores))
    assert mean == pytest.approx(scores.mean())
    assert (mean - low, high - mean) == (pytest.approx(half, rel=0.06), pytest.approx(half, rel=0.06))


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(300):
        _, low, high = interval(rng.normal(0.0, 1.0, size=60).tolist(), 400, seed=trial)
        covered += low <= 0.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


@settings(max_examples=40, deadline=None)
@given(values, st.integers(0, 9))
def test_same_seed_same_interval_within_the_range(scores: list[float], seed: int) -> None:
    mean, low, high = interval(scores, 50, seed)
    assert (mean, low, high) == interval(scores, 50, seed)
    assert min(scores) - 1e-9 <= low <= high <= max(scores) + 1e-9


def test_another_seed_gives_other_ends() -> None:
    scores = [0.0, 1.0, 0.5, 0.25, 0.9, 0.1, 0.7]
    assert interval(scores, 99, 0)[1:] != interval(scores, 99, 1)[1:]


def test_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random(37).tolist()
    whole = interval(scores, 100, 5)
    monkeypatch.setattr(_bootstrap, "_DRAWS_AT_ONCE", 37 * 7)
    assert interval(scores, 100, 5) == whole


def test_alike_values_have_no_width() -> None:
    assert interval([0.5] * 8, 100, 0) == (0.5, 0.5, 0.5)


def test_pairing_sees_a_small_constant_gain() -> None:
    easy_and_hard = np.random.default_rng(0).random(200)
    mean, low, high = paired_interval((easy_and_hard + 0.01).tolist(), easy_and_hard.tolist(), 500, 0)
    assert (mean, low, high) == (pytest.approx(0.01), pytest.approx(0.01), pytest.approx(0.01))
    assert interval(easy_and_hard.tolist(), 500, 0)[2] - interval(easy_and_hard.tolist(), 500, 0)[1] > 0.05


@given(values)
def test_a_system_against_itself_differs_by_nothing(scores: list[float]) -> None:
    assert paired_interval(scores, scores, 20, 0) == (0.0, 0.0, 0.0)


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(DataError, match="no score"):
        interval([], 10, 0)
    with pytest.raises(DataError, match="not finite at index 1"):
        interval([0.0, math.nan], 10, 0)
    with pytest.raises(DataError, match="at least 1 resample"):
        interval([0.0], 0, 0)
    with pytest.raises(DataError, match="2 and 1 scores"):
        paired_interval([0.0, 1.0], [0.0], 10, 0)


def test_a_statistic_sees_the_resamples_of_the_mean() -> None:
    scores = np.random.default_rng(0).random(40)
    other = np.random.default_rng(1).random(40)
    groups = [str(n // 3) for n in range(40)]
    for of in (None, groups):
        whole = statistic_interval(lambda rows: float(scores[rows].mean()), 40, 200, 7, of)
        assert whole == pytest.approx(interval(scores.tolist(), 200, 7, of))
        paired = paired_statistic_interval(lambda rows: float(scores[rows].mean()), lambda rows: float(other[rows].mean()), 40, 200, 7, of)
        assert paired == pytest.approx(paired_interval(scores.tolist(), other.tolist(), 200, 7, of))
    assert interval(scores.tolist(), 200, 7) != interval(scores.tolist(), 200, 7, groups)


def test_sums_give_the_interval_of_the_statistic_itself() -> None:
    terms = np.random.default_rng(0).random((40, 2))
    ratio = OfSums(lambda rows: float(terms[rows, 0].sum() / terms[rows, 1].sum()), terms, lambda sums, counts: sums[:, 0] / sums[:, 1])
    for of in (None, [str(n // 3) for n in range(40)]):
        assert statistic_interval(ratio, 40, 200, 7, of) == pytest.approx(statistic_interval(ratio.at, 40, 200, 7, of))


def test_draws_without_a_value_are_left_out_until_they_are_too_many() -> None:
    def with_a_zero(rows: NDArray[np.int64]) -> float:
        return float(rows.mean()) if (rows == 0).any() else math.nan  # missing from 1/e of the draws

    def mostly(rows: NDArray[np.int64]) -> float:
        return float(rows.mean()) if (rows < 3).any() else math.nan  # missing from 1/e^3 of them

    value, low, high = statistic_interval(with_a_zero, 30, 500, 0)
    assert value == 14.5
    assert math.isnan(low)
    assert math.isnan(high)
    _, low, high = statistic_interval(mostly, 30, 500, 0)
    assert low < 14.5 < high
    assert all(math.isnan(number) for number in statistic_interval(lambda rows: math.nan, 30, 50, 0))


def test_groups_give_the_width_of_as_many_independent_samples() -> None:
    """Fifty copies of one score are one score: the interval of 40 groups of 50 is that of 40 samples."""
    rng = np.random.default_rng(0)
    of_group = rng.normal(0, 1, 40)
    scores, groups = np.repeat(of_group, 50).tolist(), np.repeat([f"group {n}" for n in range(40)], 50).tolist()
    _, low, high = interval(scores, 2000, 0, groups)
    _, one_low, one_high = interval(of_group.tolist(), 2000, 0)
    assert (low, high) == (pytest.approx(one_low), pytest.approx(one_high))
    _, naive_low, naive_high = interval(scores, 2000, 0)
    assert high - low > 5 * (naive_high - naive_low)


def test_rows_without_a_group_stand_alone() -> None:
    scores = np.random.default_rng(0).random(30).tolist()
    assert interval(scores, 100, 0, [None] * 30) == interval(scores, 100, 0, [""] * 30) == interval(scores, 100, 0)


def test_one_group_has_no_interval() -> None:
    mean, low, high = interval([0.0, 1.0], 100, 0, ["a", "a"])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(DataError, match="1 groups for 2 samples"):
        interval([0.0, 1.0], 100, 0, ["a"])
    with pytest.raises(DataError, match="0 samples"):
        statistic_interval(lambda rows: 0.0, 0, 10, 0)
