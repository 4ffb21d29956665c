"""Rows of a task of numbers as columns: truth, answers of all systems, intervals, stations; and what is measured on them.

Errors are answer less truth throughout: above zero the answer was too high.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.metrics._conformal import conformal_quantile
from eyegraft.report.reading import finite, mapping

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

MODEL = "model"
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
NUM_TENTHS = 10
MIN_PER_TENTH = 5


@dataclass(frozen=True)
class Numbers:
    """The rows that have a truth and an answer, as columns of one length.

    Attributes:
        rows: lines of the samples file.
        truth, answer: [N].
        std, low, high: [N], NaN where the answer has none.
        others: system -> [N], NaN where it gave no number.
        num_unread: rows that are left out here for want of a number.
    """

    rows: Sequence[Mapping[str, Any]]
    truth: Floats
    answer: Floats
    std: Floats
    low: Floats
    high: Floats
    others: Mapping[str, Floats]
    unit: str
    num_unread: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def errors(self) -> Floats:
        return self.answer - self.truth

    @property
    def rmse(self) -> float:
        return math.sqrt(float((self.errors**2).mean()))

    @property
    def has_intervals(self) -> bool:
        return bool(np.isfinite(self.low).all())

    @property
    def inside(self) -> NDArray[np.bool_]:
        """[N] whether the interval holds the truth."""
        return (self.low <= self.truth) & (self.truth <= self.high)

    @property
    def decimals(self) -> int:
        """Digits behind the point that mean something: two figures of a typical error."""
        return min(6, max(0, 1 - math.floor(math.log10(self.rmse)))) if self.rmse > 0 else 2


@dataclass(frozen=True)
class Tenth:
    """A tenth of the rows by truth: its ends, the mean error, and where the middle 80 % and the middle half of the errors lie."""

    low: float
    high: float
    centre: float
    count: int
    bias: float
    p10: float
    p25: float
    p75: float
    p90: float


@dataclass(frozen=True)
class Level:
    """What intervals of a nominal level cover on these rows, and how wide they are on average."""

    nominal: float
    measured: float
    width: float
    in_use: bool


@dataclass(frozen=True)
class Station:
    """Errors of one station in the target's unit. `coverage` is the share of its intervals that hold the truth."""

    station: str
    lat: float | None
    lon: float | None
    count: float
    rmse: float
    bias: float | None
    mae: float | None
    coverage: float | None = None


@dataclass
class _Columns:
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    values: list[tuple[float, float, float, float, float]] = field(default_factory=list)


def is_of_numbers(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a task of numbers wrote these rows."""
    answers = (mapping(mapping(row.get("answers")).get(MODEL)) for row in rows)
    return "value" in next((answer for answer in answers if answer), {})


def read_numbers(rows: Sequence[Mapping[str, Any]]) -> Numbers:
    """Rows without a readable truth or answer are counted, not guessed."""
    found, unit = _Columns(), ""
    for row in rows:
        answer = mapping(mapping(row.get("answers")).get(MODEL))
        expected, value = truth_of(row), finite(answer.get("value"))
        if expected is None or value is None:
            continue
        unit = unit or str(answer.get("unit") or "")
        found.rows.append(row)
        found.values.append((expected, value, _or_nan(answer.get("std")), *interval_of(answer)))
    columns = np.array(found.values, dtype=np.float64).reshape(-1, 5)
    systems = dict.fromkeys(name for row in found.rows for name in mapping(row.get("answers")) if name != MODEL)
    others = {name: np.array([_or_nan(mapping(row["answers"].get(name)).get("value")) for row in found.rows]) for name in systems}
    truth, given, std, low, high = (columns[:, place] for place in range(5))
    return Numbers(found.rows, truth, given, std, low, high, others, unit, len(rows) - len(found.rows))


def truth_of(row: Mapping[str, Any]) -> float | None:
    references = row.get("references")
    first = references[0] if isinstance(references, list) and references else None
    try:
        return finite(float(first)) if isinstance(first, (str, int, float)) else None
    except ValueError:
        return None


def interval_of(answer: Mapping[str, Any]) -> tuple[float, float]:
    """Low and high end, NaN where there is none."""
    ends = answer.get("interval")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return _or_nan(low), _or_nan(high)


def station_of(row: Mapping[str, Any]) -> str:
    station = mapping(row.get("meta")).get("station")
    return str(station) if station not in (None, "") else str(row.get("group") or "")


def tenths(numbers: Numbers) -> list[Tenth]:
    """Rows in order of their truth, cut into ten parts of one size; fewer where a part would hold too few."""
    parts = min(NUM_TENTHS, len(numbers) // MIN_PER_TENTH)
    if parts < 2:
        return []
    found = []
    for places in np.array_split(np.argsort(numbers.truth, kind="stable"), parts):
        truth, errors = numbers.truth[places], numbers.errors[places]
        ends = (float(value) for value in np.quantile(errors, (0.1, 0.25, 0.75, 0.9)))
        found.append(Tenth(float(truth[0]), float(truth[-1]), float(truth.mean()), len(places), float(errors.mean()), *ends))
    return found


def levels(numbers: Numbers, nominal: float | None, calibration: Numbers | None) -> list[Level]:
    """Measured coverage at the level in use and, where rows of validation are at hand, at the levels that they give.

    Args:
        nominal: the level of the intervals that the answers carry.
        calibration: rows of validation that the same checkpoint answered: the intervals of other levels are made of their errors, as
            those in use were made.
    """
    found = {}
    if calibration is not None:
        of_std = np.isfinite(calibration.std).all() and (calibration.std > 0).all()
        spread = numbers.std if of_std else np.ones(len(numbers))
        misses = np.abs(calibration.errors) / (calibration.std if of_std else 1.0)
        for level in LEVELS:
            quantile = conformal_quantile(misses, level)
            if quantile is not None:
                measured = float((np.abs(numbers.errors) <= quantile * spread).mean())
                found[level] = Level(level, measured, float(2 * quantile * spread.mean()), False)
    if nominal is not None and numbers.has_intervals and len(numbers):
        width = float((numbers.high - numbers.low).mean())
        found[nominal] = Level(nominal, float(numbers.inside.mean()), width, True)
    return [found[level] for level in sorted(found)]


def stations(numbers: Numbers, details: Mapping[str, Any]) -> list[Station]:
    """Every station, the largest RMSE first: as the evaluation wrote them, else from the rows."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(numbers.rows):
        places.setdefault(station_of(row), []).append(place)
    written = details.get("stations")
    listed = [mapping(entry) for entry in written] if isinstance(written, list) else []
    found = [_written(entry) for entry in listed] if listed else [_measured(numbers, name, where) for name, where in places.items()]
    known = [station for station in found if station is not None and station.station]
    if len(known) < 2 and not listed:
        return []
    covered = {}
    if numbers.has_intervals:
        inside = numbers.inside
        covered = {name: float(inside[where].mean()) for name, where in places.items()}
    whole = [replace(station, coverage=covered.get(station.station)) for station in known]
    return sorted(whole, key=lambda station: (-station.rmse, station.station))


def _written(entry: Mapping[str, Any]) -> Station | None:
    def amount(word: str) -> float | None:
        """`rmse_kelvin` of `rmse`: the unit stands in the name."""
        keys = [key for key in entry if key == word or key.startswith(f"{word}_")]
        return finite(entry[keys[0]]) if keys else None

    rmse, count = amount("rmse"), finite(entry.get("n", entry.get("num_samples")))
    station = str(entry.get("station", ""))
    if rmse is None:
        return None
    place = finite(entry.get("lat")), finite(entry.get("lon"))
    return Station(station, *place, count or 0, rmse, amount("bias"), amount("mae"))


def _measured(numbers: Numbers, name: str, where: Sequence[int]) -> Station:
    errors, meta = numbers.errors[list(where)], mapping(numbers.rows[where[0]].get("meta"))
    rmse, bias, mae = math.sqrt(float((errors**2).mean())), float(errors.mean()), float(np.abs(errors).mean())
    return Station(name, finite(meta.get("lat")), finite(meta.get("lon")), len(where), rmse, bias, mae)


def _or_nan(value: Any) -> float:
    number = finite(value)
    return math.nan if number is None else number
