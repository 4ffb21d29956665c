"""Answers on the pixels of a satellite's grid, and why some pixels have none."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eyegraft.prepare.gk2a import gather
from eyegraft.prepare.gk2a.grid import BEYOND_DISK, OUTSIDE_GRID, Grid

Floats = NDArray[np.float32]

HAS_VALUE: Final = "has a value"
REASONS: Final = (
    HAS_VALUE,
    OUTSIDE_GRID,
    BEYOND_DISK,
    gather.LAND_COVER,
    gather.QUALITY,
    gather.NOT_FINITE,
    gather.NO_GROUND,
    gather.NOTHING,
)
"""What the numbers of `Field.quality` say: the words that count the patches which preparation leaves out."""


@dataclass(frozen=True)
class Field:
    """Answers on pixels of a grid.

    Attributes:
        grid: the part of the satellite's grid that was asked for; rows, columns: those of its pixels that were answered [h], [w].
        time: nominal, of the scene, UTC.
        name, unit: of the target.
        values: [h, w] in that unit, NaN where there is none.
        std: [h, w] of a model that says how sure it is, else None.
        half_width: [h, w] half of the interval that covers the share `level` of new samples, None where validation gave none.
        quality: [h, w] which of `REASONS`.
        scene_simulated, training_simulated: whether the scene, and whether what the model learned from, says of itself that it is.
        facts: who answered: run, checkpoint, data, sensor.
        seconds: that the model took.
    """

    grid: Grid
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    time: datetime
    name: str
    unit: str
    values: Floats
    std: Floats | None
    half_width: Floats | None
    level: float | None
    quality: NDArray[np.uint8]
    scene_simulated: bool
    training_simulated: bool
    facts: dict[str, Any]
    seconds: float

    @property
    def stride(self) -> int:
        return int(self.rows[1] - self.rows[0]) if len(self.rows) > 1 else 1

    def lonlats(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Degrees east and north of the pixels, each [h, w]; NaN in space."""
        column, row = np.meshgrid(self.columns, self.rows)
        return self.grid.to_lonlat(column, row)

    @property
    def long_name(self) -> str:
        return {"ta": "air temperature near the ground"}.get(self.name, self.name)

    @property
    def warning(self) -> str:
        """What must be said beside the field: empty, or that it is simulated, and what of it."""
        parts = ["the scene"] * self.scene_simulated + ["what the model learned from"] * self.training_simulated
        return f"SIMULATED: {' and '.join(parts)}" if parts else ""

    def at(self, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N] the values at places in degrees, of the nearest pixel that was answered; NaN off the field."""
        column, row = self.grid.to_pixel(lon, lat)
        found = np.full(len(column), np.nan)
        place = np.stack([(row - self.rows[0]) / self.stride, (column - self.columns[0]) / self.stride])
        there = np.isfinite(place).all(0)
        near = np.where(there, np.floor(np.where(there, place, 0) + 0.5), -1).astype(np.int64)
        there &= ((near >= 0) & (near < np.array(self.values.shape)[:, None])).all(0)
        found[there] = self.values[near[0][there], near[1][there]]
        return found

    def counts(self) -> dict[str, int]:
        """How many pixels have a value, and how many have none for which reason."""
        found = np.bincount(self.quality.ravel(), minlength=len(REASONS)).tolist()
        return {reason: count for reason, count in zip(REASONS, found, strict=True) if count or reason == HAS_VALUE}
