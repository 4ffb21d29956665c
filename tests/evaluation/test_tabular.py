"""Baselines of columns: each knows what it says it knows, and no more."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evaluation import weather
from eyegraft.data.patch_rows import PatchRows
from eyegraft.evaluation import tabular
from eyegraft.evaluation._number_models import Course, folds
from eyegraft.evaluation.tabular import NAMES, NumberBaselines, table_of
from eyegraft.tasks import regress
from eyegraft.types import ColumnSpec, Sample

Splits = dict[str, PatchRows]
TASK = regress.build("ta", regress.Config(target="ta", unit="K"))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder = tmp_path_factory.mktemp("weather")
    return {
        "train": weather.rows(folder, "train", range(40)),
        "test": weather.rows(folder, "test", range(40), times=20, first_day=365, seed=1),
        "test_new_station": weather.rows(folder, "test_new_station", range(100, 130), times=20, seed=2),
        "january": weather.rows(folder, "january", range(40), days=31, seed=3),
    }


@pytest.fixture(scope="module")
def fitted(splits: Splits) -> NumberBaselines:
    return NumberBaselines(TASK, splits["train"], None, 0)


def values(made: NumberBaselines, name: str, rows: Any) -> np.ndarray[Any, Any]:
    assert made.missing(name, rows) == ""
    answers = made.answers(name, rows)
    assert {answer["interval"] for answer in answers} == {None}
    return np.array([answer["value"] for answer in answers])


def rmse(made: NumberBaselines, name: str, rows: PatchRows) -> float:
    return float(np.sqrt(((values(made, name, rows) - rows.targets) ** 2).mean()))


def test_each_knows_what_it_says(fitted: NumberBaselines, splits: Splits) -> None:
    """The weather has a standard deviation of 3.5 K and no season, stations one of 1 K that no channel shows."""
    error = {name: {split: rmse(fitted, name, rows) for split, rows in splits.items()} for name in NAMES}
    plain = {split: float(rows.targets.std()) for split, rows in splits.items()}
    for split in ("test", "test_new_station"):
        assert error["climatology"][split] < 4.5 < 0.5 * plain[split], "the weather and, of new stations, height are left"
        assert error["elevation_linear"][split] < 4.5
        assert error["ridge"][split] < 1.6, "the first channel shows the weather"
        assert error["boosting"][split] < 1.6
    assert error["elevation_linear"]["test_new_station"] < error["climatology"]["test_new_station"], "which does not know heights"
    assert error["boosting"]["test"] < error["ridge"]["test"], "which has no station's offset"


def test_a_station_bends_the_course_as_far_as_its_rows_carry_it(splits: Splits) -> None:
    rows, test = splits["train"], splits["test"]
    seven = rows.column("station") == "7"
    there = test.take(np.flatnonzero(test.column("station") == "7"))
    without = rows.take(np.flatnonzero(~seven))
    few = rows.take(np.concatenate([np.flatnonzero(~seven), np.flatnonzero(seven)[:2]]))
    all_, some, none = (values(NumberBaselines(TASK, given, None, 0), "climatology", there) for given in (rows, few, without))
    assert 0 < np.abs(some - none).mean() < 0.5 * np.abs(all_ - none).mean()

    def offsets(split: PatchRows) -> float:
        """Spread of the stations' mean errors."""
        errors = values(NumberBaselines(TASK, rows, None, 0), "climatology", split) - split.targets
        stations = split.column("station")
        return float(np.std([errors[stations == name].mean() for name in np.unique(stations)]))

    assert offsets(test) < 0.7 * offsets(splits["test_new_station"])


def test_what_was_measured_in_january_says_nothing_of_july(splits: Splits) -> None:
    table = table_of(splits["january"], None)
    assert Course.over(table) == Course(0, 2)
    assert Course.over(table_of(splits["train"], None)) == Course(2, 2)
    assert table.seconds is not None
    half = np.flatnonzero(splits["train"].column("month") <= 7)
    assert Course.over(table_of(splits["train"].take(half), None)).of_year == 1, "five months are missing"
    noon = replace(table, seconds=np.floor(table.seconds / 86_400) * 86_400 + 43_200, longitude=None)
    assert Course.over(noon).of_day == 0
    year = values(NumberBaselines(TASK, splits["january"], None, 0), "climatology", splits["train"])
    assert np.ptp(year) < 2 * np.ptp(splits["january"].targets), "no curve goes where nothing was measured"


def test_noon_is_noon_wherever_the_station_lies(splits: Splits) -> None:
    table = table_of(splits["train"], None)
    assert table.longitude is not None
    assert table.seconds is not None
    moved = replace(table, longitude=table.longitude - 90, seconds=table.seconds + 6 * 3600)
    curves = Course(0, 2)
    assert curves.curves(moved) == pytest.approx(curves.curves(table), abs=1e-6)


def test_choices_are_made_on_other_stations_and_other_weeks(splits: Splits) -> None:
    table = table_of(splits["train"], None)
    assert table.station is not None
    assert table.seconds is not None
    weeks = np.floor(table.seconds / (7 * 86_400))
    cut = folds(table, 0)
    assert len(cut) == 5
    for fit, held in cut:
        assert sorted([*fit.tolist(), *held.tolist()]) == list(range(len(table)))
        new = ~np.isin(table.station[held], table.station[fit]) | ~np.isin(weeks[held], weeks[fit])
        assert new.all(), "no row of the same station in the same week as one to fit"
    for (first, _), (second, _) in zip(cut, folds(table, 0), strict=True):
        assert np.array_equal(first, second)


def test_a_large_training_set_is_drawn_from(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "MAX_ROWS", 500)
    made = NumberBaselines(TASK, splits["train"], None, 0)
    table, targets = made._fitted_on()
    assert len(table) == len(targets) == 500
    assert rmse(made, "ridge", splits["test"]) < 2.5
    other, _ = NumberBaselines(TASK, splits["train"], None, 1)._fitted_on()
    assert not np.array_equal(other.numbers["bt_00"], table.numbers["bt_00"])


# ── rows of tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def samples(count: int, **more: Any) -> list[Sample]:
    rng = np.random.default_rng(0)
    found = []
    for place in range(count):
        size, kind, month = float(rng.normal(10, 3)), "ab"[place % 2], place % 12
        truth = 2 * size + 5 * (kind == "a") + 3 * np.sin(2 * np.pi * month / 12)
        meta = {"size": "" if place % 10 == 0 else f"{size:.4f}", "kind": kind, "month": month, **more}
        found.append(Sample(f"s{place}", None, references=(f"{truth:.4f}",), group=f"g{place // 4}", meta=meta))
    return found


SPEC = ColumnSpec(numbers=("size",), cyclic={"month": 12.0}, categories={"kind": ("a", "b")})


def test_columns_of_tables_are_those_of_the_context_encoder() -> None:
    made, asked = NumberBaselines(TASK, samples(400), SPEC, 0), samples(40)[1:10]
    for name in ("ridge", "boosting"):
        errors = values(made, name, asked) - [float(sample.references[0]) for sample in asked]
        assert np.abs(errors).max() < (0.5 if name == "ridge" else 3), "an empty cell elsewhere spoils nothing"
    assert made.missing("climatology", asked) == "no time in every row"
    assert made.missing("elevation_linear", asked) == "no time in every row"
    assert NumberBaselines(TASK, samples(40), None, 0).missing("ridge", asked) == "no column beside the input"


def test_what_is_not_there_is_said(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = samples(40, time="2022-05-01T00:00:00+09:00")
    made = NumberBaselines(TASK, timed, SPEC, 0)
    assert made.missing("climatology", timed) == ""
    assert made.missing("elevation_linear", timed) == "no elevation"
    assert table_of(timed, SPEC).seconds == pytest.approx([1651330800.0] * 40)
    assert made.missing("climatology", [*timed[:5], *samples(1)]) == "no time in every row"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'eyegraft[satellite]'" in made.missing("boosting", timed)
