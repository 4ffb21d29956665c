"""The pixels of a scene in the form of a patch store: what reads stored patches reads them, so that no feature is computed a second way.

A patch is cut when it is asked for. Those of a whole Korea grid, 810,000 of 19 x 9 x 9 numbers, would take five gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.data.patch_store import Columns, Field, Schema
from eyegraft.errors import DataError

Floats = NDArray[np.float32]


class ScenePixels:
    """Record n is the patch around the n-th pixel that was chosen, with the place, time and land cover of that pixel, and no target.

    It offers what `PatchRows` asks of a `PatchStore`: `path`, `identity`, `schema`, `read`, `read_ahead` and a length.

    Args:
        channels: [C, H, W] physical units, NaN where nothing was measured.
        lon, lat: [H, W] degrees. landcover: [H, W] class numbers; None where patches have none.
        row, column: [N] pixels in the middle of a patch; all of the patch must lie inside.
        side: of a patch, odd.
        first: column and row of pixel (0, 0) in the whole grid.
        facts: those of a store of the same source.
        path: what messages call the scene.
    """

    def __init__(
        self,
        channels: Floats,
        *,
        lon: NDArray[np.float64],
        lat: NDArray[np.float64],
        landcover: NDArray[np.uint8] | None,
        row: NDArray[np.int64],
        column: NDArray[np.int64],
        side: int,
        gsd_m: float,
        time: datetime,
        first: tuple[int, int],
        facts: Mapping[str, Any],
        path: Path,
    ) -> None:
        half = side // 2
        self.path, self.identity = path, "0" * 64  # nothing is cached of what is looked at once
        self._views = np.lib.stride_tricks.sliding_window_view(channels, (side, side), axis=(1, 2))  # [C, H', W', side, side]
        self._top, self._left = row - half, column - half
        fields = {
            "x": Field(dtype="float32", shape=(len(channels), side, side)),
            "y": Field(dtype="float32"),
            "timestamp": Field(dtype="int64"),
            "loc": Field(dtype="float32", shape=(3,)),
            "stn": Field(dtype="int32"),
            "pixel": Field(dtype="int16", shape=(2,)),
        }
        if landcover is not None:
            fields["landcover"] = Field(dtype="uint8", categories=17)
        self.schema = Schema(fields=fields, split="map", facts=dict(facts))
        self._small: Columns = {
            "y": np.full(len(row), np.nan, np.float32),
            "timestamp": np.full(len(row), int(time.timestamp()), np.int64),
            "loc": np.stack([lat[row, column], lon[row, column], np.full(len(row), gsd_m)], axis=1).astype(np.float32),
            "stn": np.full(len(row), -1, np.int32),
            "pixel": np.stack([column + first[0], row + first[1]], axis=1).astype(np.int16),
        }
        if landcover is not None:
            self._small["landcover"] = landcover[row, column]

    def __len__(self) -> int:
        return len(self._top)

    def read(self, rows: NDArray[np.int64], fields: Sequence[str] | None = None) -> Columns:
        """As `PatchStore.read`."""
        names = list(self.schema.fields) if fields is None else fields
        unknown = [name for name in names if name not in self.schema.fields]
        if unknown:
            raise DataError(f"{self.path}: no field {unknown[0]!r}", f"one of {', '.join(self.schema.fields)}")
        return {name: self._patches(rows) if name == "x" else self._small[name][rows] for name in names}

    @contextmanager
    def read_ahead(self, order: NDArray[np.int64], begin: int = 0) -> Iterator[Callable[[int, int], None]]:
        """As `PatchStore.read_ahead`: nothing to fetch, all of it is in memory."""
        yield lambda place, size: None

    def _patches(self, rows: NDArray[np.int64]) -> Floats:
        found: Floats = np.ascontiguousarray(self._views[:, self._top[rows], self._left[rows]].swapaxes(0, 1))  # [N, C, side, side]
        return found
