"""Further columns of a row (time, place, land cover, a price) as one vector of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from eyegraft.data.patch_rows import PatchRows
from eyegraft.errors import DataError, nearest
from eyegraft.types import ColumnSpec, Inputs, Sample


class ColumnReader:
    """Further columns of a row as one vector."""

    slow = random = False

    def __init__(self, spec: ColumnSpec) -> None:
        self.spec = spec

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
            given = np.asarray(columns[name])
            allowed = range(classes) if isinstance(classes, int) else classes
            parts += [given == one for one in allowed]
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
        return np.array([math.nan if cell is None or str(cell).strip() == "" else float(cell) for cell in given.tolist()])
    except (TypeError, ValueError) as error:
        fix = "mend the cell, or name the column under context_encoder.categories"
        raise DataError(f"column {name!r}: {error}", "numbers, or empty cells", fix) from error


def learn_columns(spec: ColumnSpec, train: Sequence[Sample]) -> dict[str, Any]:
    """Mean and standard deviation of each number, over the training rows that have it."""
    learned = {}
    for name in spec.numbers:
        values = numbers_of(name, column(train, name))
        known = values[~np.isnan(values)]
        learned[name] = [float(known.mean()), float(known.std())] if known.size else [0.0, 1.0]
    return {"statistics": learned}
