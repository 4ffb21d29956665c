"""Further columns of a row (time, place, land cover, a price) as one vector of numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from eyegraft.data.patch_rows import PatchRows
from eyegraft.errors import DataError, nearest, shown
from eyegraft.types import ColumnSpec, Inputs, Sample

log = logging.getLogger(__name__)
_FLAT = 1e-9
"""A standard deviation below this share of the mean is no spread."""


class ColumnReader:
    """Further columns of a row as one vector."""

    slow = random = False

    def __init__(self, spec: ColumnSpec) -> None:
        self.spec = spec

    def reads_patches(self, rows: PatchRows) -> bool:
        return rows.reads_patches(self.spec.names)

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.ones(len(samples), dtype=torch.bool)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        return self.values({name: column(samples, name) for name in self.spec.names})

    def blank(self) -> Inputs:
        return torch.zeros(1, self.spec.width)

    def values(self, columns: Mapping[str, ArrayLike]) -> Tensor:
        """Columns [B] by name -> [B, K], in the order of the spec.

        Raises:
            DataError: a column holds what is no number where one is wanted.
        """
        parts = []
        for name in self.spec.numbers:
            mean, std = self.spec.statistics.get(name, (0.0, 1.0))
            found = numbers_of(name, columns[name])
            missing = np.isnan(found)
            parts += [np.where(missing, 0, (found - mean) / (std or 1.0)), missing]
        for name, period in self.spec.cyclic.items():
            angle = numbers_of(name, columns[name]) * (2 * np.pi / period)
            parts += [np.nan_to_num(np.sin(angle)), np.nan_to_num(np.cos(angle))]
        for name, classes in self.spec.categories.items():
            parts += one_hot(name, columns[name], classes)
        return torch.from_numpy(np.stack([np.asarray(part, dtype=np.float32) for part in parts], axis=1))


def column(samples: Sequence[Sample], name: str) -> NDArray[Any]:
    """[B] one further column of the samples, as it stands.

    Raises:
        DataError: the rows have no such column.
    """
    if isinstance(samples, PatchRows):
        return samples.column(name)
    absent = next((sample for sample in samples if name not in sample.meta), None)
    if absent is not None:
        there = ", ".join(absent.meta) or "none"
        raise DataError(
            f"context_encoder: sample {absent.id!r} has no column {name!r}; its further columns: {there}",
            "columns of data.columns.meta",
            nearest(name, absent.meta) or f"add {name} to data.columns.meta",
        )
    return np.array([sample.meta[name] for sample in samples], dtype=object)


def numbers_of(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """[B] a column as numbers, NaN where a cell is empty.

    Raises:
        DataError: a cell holds something else.
    """
    given = np.asarray(values)
    if given.dtype != object:
        return given.astype(np.float64)
    try:
        found = np.array([math.nan if cell is None or str(cell).strip() == "" else float(cell) for cell in given.tolist()], np.float64)
        if np.isinf(found).any():
            raise ValueError("a cell is infinite")
    except (TypeError, ValueError) as error:
        fix = "mend the cell, or name the column and its classes under context_encoder.categories"
        raise DataError(f"column {name!r}: {error}", "numbers, or empty cells", fix) from error
    return found


def one_hot(name: str, values: ArrayLike, classes: int | Sequence[str]) -> list[NDArray[np.bool_]]:
    """Of each class, numbered from 0 or named, which rows [B] are of it. Cells of text tables spell numbers, and are read as such.

    Raises:
        DataError: classes are numbered, and a cell holds no number.
    """
    if isinstance(classes, int):
        numbers = numbers_of(name, values)
        return [numbers == one for one in range(classes)]
    texts = np.array([_text(cell) for cell in np.asarray(values, dtype=object).tolist()], dtype=object)
    return [texts == one for one in classes]


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def check_columns(spec: ColumnSpec, samples: Sequence[Sample], split: str) -> None:
    """Read all that a spec names of a split, so that a fault is not found in the middle of training. Those of patches are numbers already.

    Raises:
        DataError: a column is not there, or holds what is no number where one is wanted.
    """
    if isinstance(samples, PatchRows):
        return
    try:
        ColumnReader(spec).read(samples, ())
    except DataError as error:
        raise DataError(f"split {split}: {error.given}", error.expected, error.fix) from error


def learn_columns(spec: ColumnSpec, train: Sequence[Sample]) -> dict[str, Any]:
    """Mean and standard deviation of each number, over the training rows that have it. What says nothing of any row is warned of."""
    learned, silent = {}, []
    for name in spec.numbers:
        values = numbers_of(name, column(train, name))
        known = values[~np.isnan(values)]
        mean, std = (float(known.mean()), float(known.std())) if known.size else (0.0, 1.0)
        learned[name] = [mean, std if std > _FLAT * abs(mean) else 0.0]  # of one value alone only rounding is left
        silent += [name] * (not known.size)
    for name, classes in spec.categories.items():
        if not np.any(one_hot(name, column(train, name), classes)):
            silent.append(name)
    if silent:
        log.warning("context_encoder: no training row says anything in %s: no such number, or none of the classes", shown(silent))
    return {"statistics": learned}
