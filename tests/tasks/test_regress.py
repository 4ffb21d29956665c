"""Numbers in the user's unit: which cells are numbers, what the training split alone says, what an interval is measured by."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from evaluation import weather
from eyegraft.data.patch_rows import PatchRows
from eyegraft.errors import DataError
from eyegraft.tasks import regress
from eyegraft.types import Sample


def task(*train: float, **options: Any) -> regress.RegressTask:
    made = regress.build("ta", regress.Config(**{"target": "ta", "unit": "K", **options}))
    made.learned = made.learn(samples(*train)) if train else {}
    return made


def samples(*cells: float | str) -> list[Sample]:
    return [Sample(f"s{place}", None, references=(str(cell),)) for place, cell in enumerate(cells)]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).unsqueeze(1)


@pytest.mark.parametrize(("cell", "value"), [("288.15", 288.15), (" 2e2 ", 200), ("-1", -1), ("+0.5", 0.5), ("7", 7)])
def test_cells_that_are_numbers(cell: str, value: float) -> None:
    assert task().truth(samples(cell)[0]) == value


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "inf", "-Infinity", "12,5", "1_000", "0x1F", "288 K", "1e999", "true"])
def test_cells_that_are_not(cell: str) -> None:
    with pytest.raises(DataError, match="sample s0: ta is ") as caught:
        task().check(samples(cell), "test")
    assert "rows have no usable number" in caught.value.given
    assert "decimal point" in caught.value.fix


def test_two_numbers_of_one_picture_are_refused() -> None:
    with pytest.raises(DataError, match="'1', '2'") as caught:
        task().check([Sample("s0", None, references=("1", "2"))], "val")
    assert caught.value.fix == "set data.merge_references=false"


def test_a_mixed_up_column_does_not_print_itself() -> None:
    with pytest.raises(DataError, match="120 of 120") as caught:
        task().check(samples(*["x"] * 120), "val")
    assert caught.value.given.endswith("and 70 more")


def test_one_number_teaches_nothing() -> None:
    with pytest.raises(DataError, match="one number only \\(3 times 288\\)"):
        task().check(samples(288, 288.0, "2.88e2"), "train")
    task().check(samples(288, 288), "test")
    task().check([], "val")


def test_the_training_split_sets_the_scale() -> None:
    made = task(280, 290, 300)
    assert made.learned == {"mean": 290, "std": pytest.approx(np.std([280, 290, 300])), "num_samples": 3}
    std = made.learned["std"]
    assert made.encode(samples(1290)[0], None, learn=True).target == ((1290 - 290) / std,), "however far a test sample lies"
    assert made.read(column(0.0, 1.0, -2.0)) == [
        {"value": pytest.approx(290 + z * std), "unit": "K", "std": None, "interval": None} for z in (0, 1, -2)
    ]


def test_without_a_training_split_there_is_no_scale() -> None:
    for use in (lambda made: made.read(column(0.0)), lambda made: made.encode(samples(1)[0], None, learn=True)):
        with pytest.raises(DataError, match=r"tasks\.ta: mean and standard deviation of ta are not known"):
            use(task())


def test_a_gaussian_says_how_sure_it_is() -> None:
    made = task(280, 290, 300, distribution="gaussian")
    assert regress.num_outputs(made.config) == 2
    assert made.objectives == ("gaussian_nll",)
    sure, unsure = made.read(torch.tensor([[0.0, -2.0], [0.0, 2.0]]))
    assert sure["value"] == unsure["value"] == pytest.approx(290)
    assert sure["std"] == pytest.approx(made.learned["std"] * np.exp(-1), rel=1e-3)
    assert unsure["std"] == pytest.approx(made.learned["std"] * np.exp(1), rel=1e-3)


def test_intervals_are_as_wide_as_the_errors_on_validation() -> None:
    made, truth = task(280, 290, 300), samples(*range(281, 300))
    answers = [{"value": made.truth(sample) + error, "std": None} for error, sample in enumerate(truth, start=1)]
    made.decision = made.settle(answers, truth)
    assert made.decision == {"intervals": {"level": 0.9, "quantile": 18.0, "num_samples": 19}}
    (answer,) = made.read(column(0.0))
    assert answer["interval"] == [290 - 18, 290 + 18]
    assert made.details([answer], truth[:1])["intervals"]["level"] == 0.9


def test_intervals_of_a_gaussian_are_narrow_where_it_is_sure() -> None:
    made, truth = task(280, 290, 300, distribution="gaussian"), samples(*range(281, 300))
    answers = [{"value": made.truth(sample) + 2.0, "std": 0.5} for sample in truth]
    made.decision = made.settle(answers, truth)
    assert made.decision["intervals"]["quantile"] == 4, "in standard deviations"
    sure, unsure = made.read(torch.tensor([[0.0, -2.0], [0.0, 2.0]]))
    for answer in (sure, unsure):
        low, high = answer["interval"]
        assert (high - low) / 2 == pytest.approx(4 * answer["std"])
        assert (high + low) / 2 == pytest.approx(290)
    scores = made.score([sure, unsure], samples(290, 290))
    assert scores.corpus["interval_coverage"] == 1


def test_too_little_validation_gives_no_interval_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made, truth = task(280, 290, 300), samples(*range(281, 289))
    answers = [{"value": 285.0, "std": None}] * 8
    with caplog.at_level(logging.WARNING):
        made.decision = made.settle(answers, truth)
    assert made.decision == {}
    assert "no intervals: 8 validation samples, tasks.ta.level=0.9 needs 9" in caplog.text
    assert made.read(column(0.0))[0]["interval"] is None
    assert made.details([], [])["intervals"] == {"level": 0.9, "none_because": "validation had fewer than 9 samples"}
    assert "interval_coverage" not in made.score(made.read(column(0.0)), samples(288)).corpus
    without = task(280, 290, level=None)
    assert without.settle(answers, truth) == {}
    assert without.details([], [])["intervals"] is None


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Broken(PatchRows):
    """Rows 3 and 8 have no target."""

    def _field(self, name: str) -> Any:
        found = super()._field(name)
        return np.where(np.isin(self.rows, [3, 8]), np.nan, found) if name == "y" else found

    def take(self, positions: Any) -> PatchRows:
        return Broken(self.store, self.rows[np.asarray(positions, dtype=np.int64)])


def test_patches_are_counted_without_making_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = weather.rows(tmp_path, "train", range(12), times=5)
    one_by_one = task().learn(list(rows))
    truth = [sample.references[0] for sample in rows]
    broken = Broken(rows.store)
    with pytest.raises(DataError, match="split train: 2 of 60 rows have no usable number") as caught:
        task().check(broken, "train")
    assert caught.value.given.count("\n  sample ") == 2
    with pytest.raises(DataError, match="ta is nothing"):
        task().learn(broken)
    monkeypatch.setattr(PatchRows, "_samples", None)
    made = task()
    made.check(rows, "train")
    made.learned = made.learn(rows)
    assert made.learned == one_by_one
    answers = made.from_values(float(value) + 1 for value in truth)
    assert answers[0] == {"value": float(truth[0]) + 1, "unit": "K", "std": None, "interval": None}
    assert made.score(answers, rows).corpus["bias_kelvin"] == pytest.approx(1)
    stations = made.details(answers, rows)["stations"]
    assert [entry["n"] for entry in stations] == [5] * 12
    assert {name for entry in stations for name in entry} == {"station", "lat", "lon", "n", "rmse_kelvin", "bias_kelvin", "mae_kelvin"}
    assert "stations" not in made.details([], [])


def test_coverage_stands_beside_the_level() -> None:
    made, truth = task(280, 290, 300), samples(*range(281, 300))
    made.decision = {"intervals": {"level": 0.9, "quantile": 3.0, "num_samples": 19}}
    details = made.details(made.read(column(*[0.0] * 19)), truth)
    assert details["intervals"] == {**made.decision["intervals"], "coverage": 7 / 19}
    assert "coverage" not in made.decision["intervals"], "what validation chose stays as it was"


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"level": 90}, {"distribution": "normal"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**options)
