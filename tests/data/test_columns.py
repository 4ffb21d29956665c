"""Further columns as numbers: cells as tables have them, and what says nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from eyegraft.data.columns import ColumnReader, check_columns, learn_columns
from eyegraft.errors import DataError
from eyegraft.types import ColumnSpec, Sample


def rows(*cells: Any, name: str = "kind") -> list[Sample]:
    return [Sample(str(number), None, meta={name: cell}) for number, cell in enumerate(cells)]


def read(spec: ColumnSpec, samples: Sequence[Sample]) -> list[list[float]]:
    values = ColumnReader(spec).read(samples, [None] * len(samples))
    assert isinstance(values, torch.Tensor)
    found: list[list[float]] = values.tolist()
    return found


def test_classes_are_known_in_text_tables_too() -> None:
    """A CSV file gives text alone, Parquet a float where a cell of the column is empty."""
    numbered = read(ColumnSpec(categories={"kind": 3}), rows("0", 1, 2.0, " 2 ", "7", "", None))
    assert numbered == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    named = read(ColumnSpec(categories={"kind": ("3", "b")}), rows("3", 3, 3.0, "b ", "c", None))
    assert named == [[1, 0], [1, 0], [1, 0], [0, 1], [0, 0], [0, 0]]


def test_a_numbered_class_is_a_number() -> None:
    with pytest.raises(DataError, match=r"'kind'.*forest"):
        read(ColumnSpec(categories={"kind": 3}), rows("0", "forest"))


def test_columns_without_spread_are_not_divided_by_what_rounding_left() -> None:
    spec = ColumnSpec(numbers=("height",))
    mean, std = learn_columns(spec, rows(*["37.57"] * 997, name="height"))["statistics"]["height"]
    told = ColumnSpec(numbers=("height",), statistics={"height": (mean, std)})
    assert read(told, rows("37.57", "38.57", name="height")) == [[pytest.approx(0, abs=1e-6), 0], [pytest.approx(1), 0]]
    small = learn_columns(spec, rows("1e-12", "3e-12", name="height"))["statistics"]["height"]
    assert small == pytest.approx([2e-12, 1e-12])


def test_an_infinite_number_is_refused() -> None:
    with pytest.raises(DataError, match="infinite"):
        learn_columns(ColumnSpec(numbers=("height",)), rows("1", "inf", name="height"))


def test_columns_that_say_nothing_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        learn_columns(ColumnSpec(categories={"kind": 3}), rows("5", "6"))
        assert "kind" in caplog.text
        caplog.clear()
        learn_columns(ColumnSpec(categories={"kind": 3}), rows("5", "2"))
        assert not caplog.text


def test_all_of_a_split_is_looked_at() -> None:
    spec = ColumnSpec(cyclic={"hour": 24.0})
    check_columns(spec, rows("1", "", "23", name="hour"), "val")
    with pytest.raises(DataError, match=r"split val: column 'hour'.*noon"):
        check_columns(spec, rows("1", "noon", name="hour"), "val")
    with pytest.raises(DataError, match=r"split val.*no column 'hour'"):
        check_columns(spec, rows("1"), "val")
