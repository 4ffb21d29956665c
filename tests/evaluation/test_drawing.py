"""What is drawn together: stations, and weeks where stations are few; of maps whole hours, and cases where hours are few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation import weather
from eyegraft.config import Columns
from eyegraft.data.patch_rows import PatchRows
from eyegraft.evaluation.drawing import Drawing
from eyegraft.types import Sample, Scores

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


# ── maps of cases of hours ───────────────────────────────────────────────────────────────────────────────────────────────────────

BY_HOUR: Any = SimpleNamespace(
    evaluation=SimpleNamespace(num_resamples=400),
    seed=0,
    data=SimpleNamespace(columns=Columns(group="case", meta=("hour",), drawn_with="hour")),
)


def maps_of(num_hours: int, cases: int = 3, maps: int = 4) -> list[Sample]:
    return [
        Sample(f"{hour}/{case}/{number}", None, group=f"case {hour}-{case}", meta={"hour": f"hour {hour}"})
        for hour in range(num_hours)
        for case in range(cases)
        for number in range(maps)
    ]


def test_maps_of_an_hour_are_drawn_together() -> None:
    samples = maps_of(12)
    drawing = Drawing.of(samples, BY_HOUR)
    assert list(drawing.groups or ()) == [sample.meta["hour"] for sample in samples]
    assert (drawing.unit, drawing.caution) == ("12 of hour, each with all its samples", "")
    right = [float(sample.meta["hour"] in ("hour 1", "hour 2", "hour 3")) for sample in samples]  # all or none of an hour
    scores = Scores({"right": 0.25}, {"right": right}, {})
    alone = Drawing(len(samples), None, "", 400, 0)
    widths = [entry["high"] - entry["low"] for entry in (found.table(scores)["right"] for found in (drawing, alone))]
    assert widths[0] > 2.5 * widths[1], "144 maps are 12 hours: an interval of them alone is far too narrow"


def test_few_hours_are_said_and_cases_stay_whole() -> None:
    samples = maps_of(2)
    drawing = Drawing.of(samples, BY_HOUR)
    assert drawing.groups == tuple(sample.group for sample in samples), "of 6 cases, few as they are"
    assert drawing.unit == "6 of case, each with all its samples (only 2 of hour)"
    assert drawing.caution.startswith("The intervals are too narrow: these samples are of 2 of hour only")


def test_one_row_a_case_of_few_hours() -> None:
    drawing = Drawing.of(maps_of(9, cases=3, maps=1), BY_HOUR)
    assert drawing.groups is None
    assert drawing.unit == "27 samples, as if independent (only 9 of hour)"
    assert "9 of hour only" in drawing.caution


def test_a_case_of_two_hours_or_of_none_stays_together() -> None:
    samples = maps_of(11, cases=1, maps=2)
    samples[1] = replace(samples[1], meta={"hour": "hour 5"})
    samples[2:4] = [replace(sample, meta={"hour": None}) for sample in samples[2:4]]
    groups = Drawing.of(samples, BY_HOUR).groups or ()
    assert groups[0] == groups[1] == "hour 0"
    assert groups[2] == groups[3] == "case 1-0"
