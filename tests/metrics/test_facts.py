"""Facts in texts: each is right or wrong where it is known, has no part where it is not, and always has an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from eyegraft.errors import DataError
from eyegraft.metrics import facts
from eyegraft.metrics._bootstrap import interval, statistic_interval


def told(expected: Mapping[str, Any], text: str) -> dict[str, float]:
    return {name: float(str(value) in text) for name, value in expected.items()}


NAMES = ("place", "sign")


def test_where_every_sample_has_facts_each_score_is_a_mean() -> None:
    expected = [{"place": "north", "sign": "warm"}, {"place": "south", "sign": "cold"}]
    found = facts.score(["warm in the north", "warm in the south"], expected, NAMES, told)
    assert found.corpus == {"fact_score": 0.75, "fact_place": 1.0, "fact_sign": 0.5}
    assert found.per_sample == {"fact_score": [1.0, 0.5], "fact_place": [1.0, 1.0], "fact_sign": [1.0, 0.0]}
    assert not found.statistics
    assert set(found.signature) == set(found.higher_is_better) == set(found.corpus)


def test_a_sample_without_facts_is_neither_right_nor_wrong() -> None:
    expected = [{"place": "north", "sign": "warm"}, None, {}, {"place": "south", "sign": None, "over": "the sea"}]
    answers = ["in the north", "", "x", "in the south"]
    found = facts.score(answers, expected, NAMES, told)
    assert found.corpus == {"fact_score": 0.75, "fact_place": 1.0, "fact_sign": 0.0}
    assert not found.per_sample, "a mean over all samples would say something else"
    everything = np.arange(4)
    assert {name: statistic(everything) for name, statistic in found.statistics.items()} == found.corpus
    assert math.isnan(found.statistics["fact_sign"](np.array([1, 2])))
    value, low, high = statistic_interval(found.statistics["fact_score"], 4, 500, 1)
    assert (value, low, high) == (0.75, 0.5, 1.0)


def test_the_interval_of_some_is_that_of_these_alone() -> None:
    rng = np.random.default_rng(1)
    right = rng.random(60) < 0.4
    alone = facts.score(["north" if here else "" for here in right], [{"place": "north"}] * 60, ("place",), told)
    answers = [text for here in right for text in ("north" if here else "", "whatever")]
    mixed = facts.score(answers, [{"place": "north"}, None] * 60, ("place",), told)
    assert mixed.corpus == alone.corpus
    _, low, high = interval(alone.per_sample["fact_place"], 2000, 3)
    _, some_low, some_high = statistic_interval(mixed.statistics["fact_place"], 120, 2000, 3)
    assert (some_low, some_high) == pytest.approx((low, high), abs=0.03)


def test_nothing_is_scored_where_nobody_knows() -> None:
    found = facts.score(["a", "b"], [None, {"over": "the sea"}], NAMES, told)
    assert not found.corpus
    assert not found.per_sample
    with pytest.raises(DataError, match="2 answers and facts of 1 samples"):
        facts.score(["a", "b"], [None], NAMES, told)
