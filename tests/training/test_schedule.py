"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eyegraft.config import Settings
from eyegraft.training.schedule import rate_factor

KINDS = ["cosine_warmup", "linear_warmup", "constant", "cosine"]


def test_the_schema_names_them_all() -> None:
    for kind in KINDS:
        assert Settings(scheduler_type=kind).scheduler_type == kind  # type: ignore[arg-type]


def test_cosine_with_warmup() -> None:
    """Loshchilov & Hutter 2017: 0.5 (1 + cos(π t / T)) behind a linear rise over 10 of 100 steps."""
    factors = [rate_factor("cosine_warmup", step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[10] == 1
    assert factors[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 90)) for t in range(90)])


def test_linear_with_warmup() -> None:
    factors = [rate_factor("linear_warmup", step, 10, 0.2) for step in range(10)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_constant_and_cosine_know_no_warmup() -> None:
    assert {rate_factor("constant", step, 10, 0.5) for step in range(10)} == {1.0}
    assert rate_factor("cosine", 0, 10, 0.5) == 1
    assert rate_factor("cosine", 5, 10, 0.5) == pytest.approx(0.5)


@given(st.sampled_from(KINDS), st.integers(1, 500), st.floats(0, 1), st.data())
def test_every_step_has_a_rate_between_0_and_1(kind: str, total: int, warmup: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 < rate_factor(kind, step, total, warmup) <= 1, "no step is wasted on a rate of 0"
    assert 0 <= rate_factor(kind, total + step, total, warmup) <= 1, "past the end nothing rises again"
