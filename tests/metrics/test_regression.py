"""Errors of numbers against scikit-learn and scipy, by hand where neither has them, and intervals that cover as often as they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from eyegraft.errors import DataError
from eyegraft.metrics import _bootstrap, regression
from eyegraft.metrics._conformal import conformal_quantile, least


def drawn(size: int = 60, seed: int = 0) -> tuple[Any, Any]:
    """Temperatures in kelvin and answers 2 K off, 0.5 K too warm."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(288, 9, size)
    return truth + rng.normal(0.5, 2, size), truth


def test_the_numbers_are_those_of_other_libraries() -> None:
    answered, truth = drawn()
    scores = regression.score(answered, truth, unit="K", scale=8)
    rmse = root_mean_squared_error(truth, answered)
    assert scores.corpus == pytest.approx(
        {
            "rmse_kelvin": rmse,
            "mae_kelvin": mean_absolute_error(truth, answered),
            "bias_kelvin": answered.mean() - truth.mean(),
            "r2": r2_score(truth, answered),
            "pearson": pearsonr(truth, answered).statistic,
            "rmse_norm": rmse / 8,
            "mse_norm": rmse**2 / 64,
        },
        rel=1e-9,
    )
    assert next(iter(scores.corpus)) == "rmse_kelvin", "results are compared by it"
    assert scores.per_sample["mae_kelvin"] == pytest.approx(abs(answered - truth).tolist())


def test_a_draw_is_scored_as_if_it_were_all_there_is() -> None:
    answered, truth = drawn()
    rows = np.array([3, 3, 9, 41, 7, 3, 20])
    alone = regression.score(answered[rows], truth[rows], unit="K", scale=8).corpus
    statistics = regression.score(answered, truth, unit="K", scale=8).statistics
    assert {name: statistic(rows) for name, statistic in statistics.items()} == pytest.approx({name: alone[name] for name in statistics})
    assert set(alone) - set(statistics) == {"mae_kelvin", "bias_kelvin", "mse_norm"}, "means over samples"


def test_sums_of_groups_give_the_intervals_of_their_samples() -> None:
    """Also where a resample has one truth alone: eleven of twelve stations read the same."""
    rng = np.random.default_rng(2)
    groups = [f"s{place % 12}" for place in range(240)]
    truth = np.where(np.arange(240) % 12 == 0, rng.normal(288, 9, 240), 290.1)
    a, b = (regression.score(truth + rng.normal(0, 2, 240), truth, unit="K", scale=9).statistics for _ in range(2))
    for name in a:
        for one in (a, b):
            slow = _bootstrap.statistic_interval(one[name].at, 240, 300, 0, groups)
            assert _bootstrap.statistic_interval(one[name], 240, 300, 0, groups) == pytest.approx(slow, rel=1e-9, nan_ok=True)
        slow = _bootstrap.paired_statistic_interval(a[name].at, b[name].at, 240, 300, 0, groups)
        assert _bootstrap.paired_statistic_interval(a[name], b[name], 240, 300, 0, groups) == pytest.approx(slow, rel=1e-9, nan_ok=True)
    undefined = _bootstrap.statistic_interval(a["r2"], 240, 300, 0, groups)
    assert math.isfinite(undefined[0])
    assert math.isnan(undefined[1]), "more than a tenth of the resamples have no variance"


def test_stations_are_drawn_whole() -> None:
    """Errors that a station shares make the interval wider than its samples alone would."""
    rng = np.random.default_rng(1)
    groups = [f"s{place % 20}" for place in range(400)]
    truth = rng.normal(288, 9, 400)
    answered = truth + np.tile(rng.normal(0, 3, 20), 20) + rng.normal(0, 0.5, 400)
    statistic = regression.score(answered, truth, unit="K", scale=9).statistics["rmse_kelvin"]
    value, low, high = _bootstrap.statistic_interval(statistic, 400, 300, 0, groups)
    _, alone_low, alone_high = _bootstrap.statistic_interval(statistic, 400, 300, 0)
    assert value == pytest.approx(root_mean_squared_error(truth, answered))
    assert high - low > 2 * (alone_high - alone_low)


@pytest.mark.parametrize(
    ("unit", "name"),
    [("K", "kelvin"), ("°C", "celsius"), ("m/s", "m_per_s"), ("hPa", "hpa"), ("%", "percent"), ("kg m-2", "kg_m_2"), ("", ""), (" ", "")],
)
def test_names_carry_the_unit(unit: str, name: str) -> None:
    assert regression.unit_name(unit) == name
    corpus = regression.score([1, 2], [1, 2], unit=unit, scale=1, intervals=[[0, 3], [0, 3]]).corpus
    tail = f"_{name}" if name else ""
    assert {f"rmse{tail}", f"mae{tail}", f"bias{tail}", f"interval_width{tail}", "r2", "rmse_norm"} < set(corpus)


def test_what_has_no_value() -> None:
    same = regression.score([1.0, 2.0, 3.0], [288.15] * 3, unit="", scale=1).corpus
    assert math.isnan(same["r2"])
    assert math.isnan(same["pearson"])
    assert math.isfinite(same["rmse"])
    blind = regression.score([288.15] * 3, [280.0, 290.0, 285.0], unit="", scale=1).corpus
    assert blind["pearson"] == 0, "who always says the same knows nothing"
    assert regression.score([285.0] * 3, [280.0, 290.0, 285.0], unit="", scale=1).corpus["r2"] == 0


def test_no_direction_where_none_is_better() -> None:
    scores = regression.score([1, 2], [1, 2], unit="K", scale=1, intervals=[[0, 3], [0, 3]])
    assert scores.undirected == {"bias_kelvin", "interval_coverage", "interval_width_kelvin"}
    assert {name for name, higher in scores.higher_is_better.items() if higher} == {"r2", "pearson"}
    assert scores.higher_is_better.keys() | scores.undirected == scores.corpus.keys()


def test_intervals_hold_their_ends() -> None:
    intervals = [[0, 1], [2, 4], [5.0, 9.0]]
    corpus = regression.score([0, 3, 7], [1.0, 1.9, 6.0], unit="K", scale=1, intervals=intervals).corpus
    assert corpus["interval_coverage"] == pytest.approx(2 / 3)
    assert corpus["interval_width_kelvin"] == pytest.approx(7 / 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"values": [], "targets": []}, "shape"),
        ({"values": [1, 2], "targets": [1]}, "shape"),
        ({"values": [1, math.nan], "targets": [1, 2]}, "answers: not so at index 1"),
        ({"values": [1, 2], "targets": [math.inf, 2]}, "targets: not so at index 0"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": math.nan}, "scale nan"),
        ({"intervals": [[0, 1]]}, "intervals of shape"),
        ({"intervals": [[0, 1], [1, 0]]}, "intervals: not so at index 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(given: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"values": [1, 2], "targets": [1, 2], "unit": "K", "scale": 1.0, **given}
    with pytest.raises(DataError, match=said):
        regression.score(**arguments)


# ── conformal intervals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("level", "size"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.1, 1)])
def test_the_fewest_samples_of_a_level(level: float, size: int) -> None:
    assert least(level) == size
    assert conformal_quantile(np.arange(size - 1), level) is None
    assert conformal_quantile(np.arange(size, 0, -1), level) == (size if level >= 0.5 else 1), "the largest error, or the smallest"


def test_the_quantile_is_counted_with_the_sample_that_is_still_to_come() -> None:
    assert conformal_quantile(np.random.default_rng(0).permutation(100) + 1.0, 0.9) == 91, "ceil(101 * 0.9)"
    assert conformal_quantile(np.arange(1.0, 20.0), 0.9) == 18, "20 * 0.9 is 18, whatever it is in floating point"
    assert conformal_quantile([3.0] * 50, 0.9) == 3
    for level in (0.0, 1.0):
        with pytest.raises(DataError, match="level"):
            conformal_quantile([1.0], level)
    with pytest.raises(DataError, match="index 1"):
        conformal_quantile([1.0, -1.0], 0.5)


def test_intervals_cover_new_samples_as_often_as_they_say() -> None:
    """Over many calibration sets of 30 heavy-tailed errors: at least the level, and at most 1 / 31 above it (Lei et al. 2018)."""
    rng = np.random.default_rng(2)
    for level in (0.8, 0.9):
        covered = [rng.standard_t(2, 100) for _ in range(1500)]
        shares = [(np.abs(new) <= conformal_quantile(np.abs(rng.standard_t(2, 30)), level)).mean() for new in covered]
        assert level - 0.006 < np.mean(shares) < level + 1 / 31 + 0.006
