"""The models behind `evaluation.tabular`: fitted on columns, in the unit of the target."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eyegraft.data.batches import derived_seed

log = logging.getLogger(__name__)

_DAY = 86_400.0  # seconds
_YEAR, _WEEK = 365.2425 * _DAY, 7 * _DAY
_FOLDS = 5
_TINY = 1e-3  # rows; curves that are nearly alike share their weight
_OWN_ROWS = 10.0  # a station's own offset counts half from so many rows on, its harmonics from 4 times, their products from 16 times
_ALPHAS = tuple(10.0**power for power in range(-2, 5))
_TREES, _PATIENCE = 1000, 20
_MIN_CATEGORY = 20  # rows of a category that has a weight of its own

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """What is known of each sample, by column; NaN, and "" of a category, where it is not known.

    Attributes:
        numbers: name -> [N] float64.
        categories: name -> [N] str.
        station: [N] str, None where rows name none.
        seconds: [N] float64 since 1970 UTC, None where rows have no time.
        latitude, longitude, elevation: [N] in degrees and metres, None where rows do not say.
        groups: [N] what is never cut across when something is chosen, beside the weeks.
    """

    numbers: Mapping[str, Floats]
    categories: Mapping[str, NDArray[np.str_]]
    station: NDArray[np.str_] | None
    seconds: Floats | None
    latitude: Floats | None
    longitude: Floats | None
    elevation: Floats | None
    groups: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.groups)


class Model(Protocol):
    def fit(self, table: Table, targets: Floats, seed: int) -> None: ...

    def predict(self, table: Table) -> Floats: ...


# ── seasons, hours, stations, elevation ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Course:
    """Curves of season and hour: [1, harmonics of the year] times [1, harmonics of the day], 25 of them with two harmonics each.

    The day is that of local solar time (UTC and 4 minutes for each degree east), so that noon is noon wherever the station lies. A k-th
    harmonic is had only where no k-th half of the year, or of the day, went by without a training row: what was measured in January alone
    says nothing of July, and a curve through it would say anything.
    """

    of_year: int
    of_day: int

    @classmethod
    def over(cls, table: Table) -> Course:
        """As many harmonics as the rows carry; none without times."""
        if table.seconds is None:
            return cls(0, 0)
        return cls(*(min(2, int(0.5 / max(_largest_gap(turns), 0.25))) for turns in _turns(table, table.seconds)))

    def curves(self, table: Table) -> Floats:
        """[N, (1 + 2 of_year) (1 + 2 of_day)], the first 1; NaN of a row without a time."""
        seconds = np.full(len(table), np.nan) if table.seconds is None else table.seconds
        one = np.ones((len(table), 1))
        year, day = (
            np.concatenate([one, *(part(2 * np.pi * k * turns)[:, None] for k in range(1, count + 1) for part in (np.cos, np.sin))], axis=1)
            for turns, count in zip(_turns(table, seconds), (self.of_year, self.of_day), strict=True)
        )
        found: Floats = (year[:, :, None] * day[:, None, :]).reshape(len(table), -1)
        return found

    def orders(self) -> Floats:
        """[curves] 1 of the constant, 4 of a harmonic, 16 of a product of two."""
        year, day = (np.array([1.0] + [4.0] * (2 * count)) for count in (self.of_year, self.of_day))
        return np.outer(year, day).ravel()


def _turns(table: Table, seconds: Floats) -> tuple[Floats, Floats]:
    """Years and local solar days since 1970."""
    east = np.nan_to_num(table.longitude) if table.longitude is not None else 0.0
    return seconds / _YEAR, seconds / _DAY + east / 360


def _largest_gap(turns: Floats) -> float:
    """The longest part of the circle without a value, between 0 and 1."""
    places = np.unique(turns[np.isfinite(turns)] % 1)
    return float(np.diff(places, append=places[:1] + 1).max()) if places.size else 1.0


def _least_squares(curves: Floats, targets: Floats, rows: Floats | float) -> Floats:
    """Weights, each shrunk as if so many further rows said that it is 0."""
    return np.asarray(np.linalg.solve(curves.T @ curves + rows * np.eye(curves.shape[1]), curves.T @ targets), dtype=np.float64)


class Climatology:
    """Least squares on the course over all stations; then for each station the same curves on what is left, shrunk towards nothing as far
    as its rows are few. A station that training has not seen gets the common course.
    """

    def fit(self, table: Table, targets: Floats, seed: int) -> None:
        self._course = Course.over(table)
        curves = self._course.curves(table)
        self._common = _least_squares(curves, targets, _TINY)
        self._own: dict[str, Floats] = {}
        if table.station is None:
            return
        left, stiff = targets - curves @ self._common, _OWN_ROWS * self._course.orders()
        order = np.argsort(table.station, kind="stable")
        names, starts = np.unique(table.station[order], return_index=True)
        for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
            self._own[name] = _least_squares(curves[rows], left[rows], stiff)

    def predict(self, table: Table) -> Floats:
        curves = self._course.curves(table)
        values = curves @ self._common
        if table.station is not None and self._own:
            nothing = np.zeros_like(self._common)
            names, places = np.unique(table.station, return_inverse=True)
            own = np.stack([self._own.get(name, nothing) for name in names.tolist()])  # [stations, curves]
            values = values + (curves * own[places]).sum(axis=1)
        return np.asarray(values, dtype=np.float64)


class ElevationLinear:
    """The course, and a term in elevation and in latitude; the standard atmosphere has -6.5 K a kilometre for the first. A row without one
    of them gets the mean of training.
    """

    def fit(self, table: Table, targets: Floats, seed: int) -> None:
        self._course = Course.over(table)
        self._means = [float(np.nanmean(values)) if values is not None else 0.0 for values in (table.elevation, table.latitude)]
        self._weights = _least_squares(self._columns(table), targets, _TINY)

    def predict(self, table: Table) -> Floats:
        return np.asarray(self._columns(table) @ self._weights, dtype=np.float64)

    def _columns(self, table: Table) -> Floats:
        """[N, curves + 2], elevation in kilometres and latitude in degrees, both less their mean."""
        elevation, latitude = (
            np.zeros(len(table)) if values is None else np.where(np.isfinite(values), values - mean, 0.0)
            for values, mean in zip((table.elevation, table.latitude), self._means, strict=True)
        )
        return np.concatenate([self._course.curves(table), elevation[:, None] / 1000, latitude[:, None]], axis=1)


# ── columns, linear and in trees ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Ridge:
    """scikit-learn's `RidgeCV` on z-scored columns; a missing number is the mean of training and says so in a column of its own."""

    def fit(self, table: Table, targets: Floats, seed: int) -> None:
        from sklearn.linear_model import RidgeCV

        numbers = _stacked(table)
        there = np.isfinite(numbers)
        count = np.maximum(there.sum(axis=0), 1)
        self._mean = np.where(there, numbers, 0).sum(axis=0) / count
        spread = np.sqrt((np.where(there, numbers - self._mean, 0) ** 2).sum(axis=0) / count)
        self._std = np.where(spread > 1e-9 * np.maximum(np.abs(self._mean), 1), spread, np.inf)  # a constant column says nothing
        self._gaps = np.flatnonzero(~there.all(axis=0) & there.any(axis=0))
        self._kinds, self._course = _kinds(table), Course.over(table)
        self._model = RidgeCV(alphas=_ALPHAS, cv=folds(table, seed), scoring="neg_mean_squared_error")
        self._model.fit(self._columns(table), targets)
        log.info("baseline ridge: penalty %g on %d rows", self._model.alpha_, len(table))

    def predict(self, table: Table) -> Floats:
        return np.asarray(self._model.predict(self._columns(table)), dtype=np.float64)

    def _columns(self, table: Table) -> Floats:
        numbers = _stacked(table)
        scaled = np.nan_to_num((numbers - self._mean) / self._std)
        gaps = np.isnan(numbers[:, self._gaps])
        one_hot = [table.categories[name] == kind for name, kinds in self._kinds.items() for kind in kinds]
        curves = np.nan_to_num(self._course.curves(table)[:, 1:])
        return np.concatenate([scaled, gaps, curves, *(column[:, None] for column in one_hot)], axis=1).astype(np.float64)


class Boosting:
    """scikit-learn's `HistGradientBoostingRegressor`. The first fold's held-out rows say how many trees; then it is fitted on all rows."""

    def fit(self, table: Table, targets: Floats, seed: int) -> None:
        self._kinds, self._course = _kinds(table), Course.over(table)
        columns, ((fit, held), *_) = self._columns(table), folds(table, seed)
        model = self._made(_TREES, columns, seed, early_stopping=True, n_iter_no_change=_PATIENCE, scoring="loss")
        model.fit(columns[fit], targets[fit], X_val=columns[held], y_val=targets[held])
        trees = max(1, int(np.argmax(model.validation_score_)))  # the first score is that of no tree
        self._model = self._made(trees, columns, seed, early_stopping=False).fit(columns, targets)
        log.info("baseline boosting: %d trees on %d rows", trees, len(table))

    def predict(self, table: Table) -> Floats:
        return np.asarray(self._model.predict(self._columns(table)), dtype=np.float64)

    def _made(self, trees: int, columns: Floats, seed: int, **stopping: Any) -> Any:
        from sklearn.ensemble import HistGradientBoostingRegressor

        coded = [columns.shape[1] - 1 - place for place in range(len(self._kinds))]
        return HistGradientBoostingRegressor(
            max_iter=trees, categorical_features=coded, random_state=derived_seed("boosting", seed) % 2**32, **stopping
        )

    def _columns(self, table: Table) -> Floats:
        """Numbers as they are, the course, and last the class number of each category, NaN where it is none."""
        curves = self._course.curves(table)[:, 1:]
        coded = [np.full(len(table), np.nan) for _ in self._kinds]
        for codes, (name, kinds) in zip(coded, self._kinds.items(), strict=True):
            for code, kind in enumerate(kinds):
                codes[table.categories[name] == kind] = code
        return np.concatenate([_stacked(table), curves, *(codes[:, None] for codes in coded)], axis=1)


def _stacked(table: Table) -> Floats:
    """[N, names]"""
    return np.stack(list(table.numbers.values()), axis=1) if table.numbers else np.zeros((len(table), 0))


def _kinds(table: Table) -> dict[str, list[str]]:
    """Category -> its values with enough rows, the most frequent first, at most 50."""
    found = {}
    for name, values in table.categories.items():
        kinds, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:50]
        found[name] = [str(kinds[place]) for place in order if counts[place] >= _MIN_CATEGORY and kinds[place]]
    return found


def folds(table: Table, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows to fit, rows held out) of each fold: whole groups and whole weeks are held out, and neither appears among the rows to fit.

    Where there are fewer than five groups, or weeks, they are not cut by; with neither, rows are.
    """
    rng = np.random.default_rng(derived_seed("folds", seed))
    named: list[NDArray[Any]] = [table.groups]
    if table.seconds is not None:
        named.append(np.floor(np.nan_to_num(table.seconds) / _WEEK))
    parts = []
    for names in named:
        different, places = np.unique(names, return_inverse=True)
        if len(different) >= _FOLDS:
            parts.append((rng.permutation(len(different)) % _FOLDS)[places])
    if not parts:
        parts = [rng.permutation(len(table)) % _FOLDS]
    held = [np.logical_or.reduce([part == fold for part in parts]) for fold in range(_FOLDS)]
    cut = [(np.flatnonzero(~rows), np.flatnonzero(rows)) for rows in held if rows.any() and not rows.all()]
    everything = np.arange(len(table))
    return cut or [(everything, everything)]
