"""Classical answers to tasks of numbers: what season, hour, place and single columns say, without an encoder.

climatology       mean course of the year and of the day, which each station bends as far as its rows carry it
elevation_linear  the same course for all, and a straight line in elevation and in latitude (the lapse-rate regression)
ridge             all channels at the middle pixel and the further columns, linear, penalised as grouped cross-validation chooses
boosting          the same columns in gradient-boosted trees (Ke et al. 2017, as scikit-learn has them)

They are fitted on the training split alone, on at most `MAX_ROWS` rows of it, and whatever they choose is chosen by folds of whole stations
and whole weeks: neighbouring hours and neighbouring stations see the same weather, and random rows would make every choice look better.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eyegraft.config import Recipe
from eyegraft.data.patch_rows import PatchRows
from eyegraft.evaluation._number_models import Boosting, Climatology, ElevationLinear, Floats, Model, Ridge, Table
from eyegraft.evaluation.baselines import drawn
from eyegraft.registry import configured
from eyegraft.tasks import Task
from eyegraft.types import ColumnSpec, Sample

log = logging.getLogger(__name__)

Found = TypeVar("Found")

_MODELS: dict[str, Callable[[], Model]] = {
    "climatology": Climatology,
    "elevation_linear": ElevationLinear,
    "ridge": Ridge,
    "boosting": Boosting,
}
NAMES = tuple(_MODELS)
MAX_ROWS = 200_000
"""Training rows that they are fitted on at most; a seeded draw of a larger set."""


class NumberBaselines:
    """The baselines of one recipe, each fitted when it is first asked for.

    Args:
        task: one that makes answers of numbers (`from_values`).
        columns: further columns, as the recipe's context encoder names them; patches bring their own.
    """

    def __init__(self, task: Task, train: Sequence[Sample], columns: ColumnSpec | None, seed: int) -> None:
        self._task, self._columns, self._seed = task, columns, seed
        self._train = train
        self._known: tuple[Table, Floats] | None = None
        self._asked: tuple[Sequence[Sample], Table] | None = None
        self._models: dict[str, Model] = {}

    def missing(self, name: str, samples: Sequence[Sample]) -> str:
        """Why a baseline cannot be had, in words; empty where it can."""
        if name in ("ridge", "boosting") and importlib.util.find_spec("sklearn") is None:
            return "scikit-learn is not installed: pip install 'eyegraft[satellite]'"
        return _lacking(name, self._fitted_on()[0]) or _lacking(name, self._table(samples))

    def answers(self, name: str, samples: Sequence[Sample]) -> list[Any]:
        """One answer a sample, without intervals."""
        if name not in self._models:
            table, targets = self._fitted_on()
            model = _MODELS[name]()
            model.fit(table, targets, self._seed)
            self._models[name] = model
        task: Any = self._task
        found: list[Any] = task.from_values(self._models[name].predict(self._table(samples)).tolist())
        return found

    def _fitted_on(self) -> tuple[Table, Floats]:
        if self._known is None:
            rows = drawn(self._train, MAX_ROWS, "tabular", self._seed)
            self._known = table_of(rows, self._columns), truth_of(self._task, rows)
        return self._known

    def _table(self, samples: Sequence[Sample]) -> Table:
        if self._asked is None or self._asked[0] is not samples:
            self._asked = samples, table_of(samples, self._columns)
        return self._asked[1]


def columns_of(recipe: Recipe) -> ColumnSpec | None:
    """The further columns that the recipe's context encoder names, whether or not the model has that encoder."""
    if recipe.context_encoder is None:
        return None
    config: Any = configured("encoders", recipe.context_encoder)[1]
    return ColumnSpec(tuple(config.numbers), dict(config.cyclic), dict(config.categories))


def truth_of(task: Task, samples: Sequence[Sample]) -> Floats:
    """[N] in the unit of the target."""
    if isinstance(samples, PatchRows):
        return np.asarray(samples.targets, dtype=np.float64)
    return np.array([task.truth(sample) for sample in samples], dtype=np.float64)


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def table_of(samples: Sequence[Sample], columns: ColumnSpec | None) -> Table:
    """The columns of samples: of patches their own, else those of `Sample.meta` that the recipe's context encoder reads."""
    return _of_patches(samples) if isinstance(samples, PatchRows) else _of_meta(samples, columns or ColumnSpec())


def _of_patches(rows: PatchRows) -> Table:
    centre = rows.centre().astype(np.float64)  # [N, C]
    latitude, longitude = (rows.column(name).astype(np.float64) for name in ("lat", "lon"))
    numbers = {str(name): centre[:, place] for place, name in enumerate(rows.facts["channels"])}
    numbers |= {"latitude": latitude, "longitude": longitude, "gsd_m": rows.column("gsd_m").astype(np.float64)}
    cover, station = rows.column("igbp"), rows.column("station").astype(str)
    return Table(
        numbers=numbers,
        categories={"land cover": np.where(cover < 0, "", cover.astype(str))},
        station=station,
        seconds=rows.column("time").astype("datetime64[s]").astype(np.float64),
        latitude=latitude,
        longitude=longitude,
        elevation=_if_known(rows.column("elevation_m").astype(np.float64)),
        groups=station,
    )


def _of_meta(samples: Sequence[Sample], columns: ColumnSpec) -> Table:
    numbers = {name: _numbers(samples, name) for name in columns.numbers}
    for name, period in columns.cyclic.items():
        angle = 2 * np.pi * _numbers(samples, name) / period
        numbers |= {f"{name} sine": np.sin(angle), f"{name} cosine": np.cos(angle)}
    return Table(
        numbers=numbers,
        categories={name: np.array([_text(sample, name) for sample in samples], dtype=str) for name in columns.categories},
        station=_first(_texts, samples, "station", "stn"),
        seconds=_first(_times, samples, "time", "timestamp", "timestamp_utc"),
        latitude=_first(_known_numbers, samples, "lat", "latitude"),
        longitude=_first(_known_numbers, samples, "lon", "longitude"),
        elevation=_first(_known_numbers, samples, "elevation_m", "elevation", "altitude"),
        groups=np.array([sample.group or sample.id for sample in samples], dtype=str),
    )


def _text(sample: Sample, name: str) -> str:
    value = sample.meta.get(name)
    return "" if value is None else str(value).strip()


def _texts(samples: Sequence[Sample], name: str) -> NDArray[np.str_] | None:
    found = np.array([_text(sample, name) for sample in samples], dtype=str)
    return found if found.size and (found != "").any() else None


def _numbers(samples: Sequence[Sample], name: str) -> Floats:
    found = np.full(len(samples), np.nan)
    for place, sample in enumerate(samples):
        try:
            found[place] = float(_text(sample, name))
        except ValueError:
            continue
    found[~np.isfinite(found)] = np.nan
    return found


def _times(samples: Sequence[Sample], name: str) -> Floats | None:
    """Seconds since 1970; text without a zone is UTC."""
    import pandas as pd

    texts = _texts(samples, name)
    if texts is None:
        return None
    parsed = pd.to_datetime(pd.Series(texts), utc=True, format="ISO8601", errors="coerce").dt.tz_localize(None)
    seconds = parsed.to_numpy("datetime64[s]")
    return _if_known(np.where(np.isnat(seconds), np.nan, seconds.astype(np.float64)))


def _known_numbers(samples: Sequence[Sample], name: str) -> Floats | None:
    return _if_known(_numbers(samples, name))


def _first(read: Callable[[Sequence[Sample], str], Found | None], samples: Sequence[Sample], *names: str) -> Found | None:
    """The first of these columns that says anything."""
    return next((found for name in names if (found := read(samples, name)) is not None), None)


def _if_known(values: Floats) -> Floats | None:
    return values if np.isfinite(values).any() else None


def _lacking(name: str, table: Table) -> str:
    """What a table lacks for a baseline."""
    if not len(table):
        return "no samples"
    if name in ("ridge", "boosting"):
        return "" if table.numbers or table.categories or table.seconds is not None else "no column beside the input"
    if table.seconds is None or not np.isfinite(table.seconds).all():
        return "no time in every row"
    return "no elevation" if name == "elevation_linear" and table.elevation is None else ""
