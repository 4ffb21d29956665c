"""What is drawn together: stations, and weeks where stations are few."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation import weather
from eyegraft.data.patch_rows import PatchRows
from eyegraft.evaluation.drawing import Drawing

RECIPE: Any = SimpleNamespace(
    evaluation=SimpleNamespace(num_resamples=50), seed=0, data=SimpleNamespace(columns=SimpleNamespace(group=None))
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> PatchRows:
    return weather.rows(tmp_path_factory.mktemp("weather"), "test", range(12), times=30)


def test_stations_stay_whole(rows: PatchRows) -> None:
    drawing = Drawing.of(rows, RECIPE)
    assert drawing.unit == "12 stations, each with all its samples"
    assert list(drawing.groups or ()) == rows.column("station").tolist()


def test_a_part_of_few_stations_is_drawn_by_week(rows: PatchRows) -> None:
    where = np.flatnonzero(np.isin(rows.column("station"), ["3", "4"]))
    part = rows.take(where)
    drawing = Drawing.of(rows, RECIPE).some(where.tolist(), part)
    weeks = part.column("time").astype("datetime64[W]").astype(str)
    assert list(drawing.groups or ()) == weeks.tolist()
    assert drawing.size == len(part)
    assert drawing.unit == f"{len(set(weeks))} weeks, each with all its samples (only 2 stations)"


def test_a_few_days_of_one_station_say_so(rows: PatchRows, tmp_path: Path) -> None:
    drawing = Drawing.of(weather.rows(tmp_path, "test", range(3, 4), times=9, days=6), RECIPE)
    assert drawing.groups is None
    assert drawing.unit.startswith("9 samples, as if independent (only 1 station, ")
