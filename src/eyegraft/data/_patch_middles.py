"""The middle pixel of the patches of a store, remembered once it was read: height and sun of a station are asked for in every epoch."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from eyegraft.data._patch_order import Rows
from eyegraft.data.patch_store import PatchStore


class Middles:
    """Of each row of a store, as far as it was read.

    Attributes:
        values: [rows, C]; known: [rows], whether it is there.
    """

    def __init__(self, count: int, channels: int) -> None:
        self.values = np.empty((count, channels), np.float32)  # takes memory as it is filled
        self.known = np.zeros(count, dtype=bool)

    def keep(self, rows: Rows, x: NDArray[np.float32]) -> None:
        """Take it from patches [B, C, H, W]."""
        self.values[rows] = x[:, :, x.shape[2] // 2, x.shape[3] // 2]
        self.known[rows] = True


_KEPT: WeakKeyDictionary[PatchStore, Middles] = WeakKeyDictionary()


def middles_of(store: PatchStore) -> Middles:
    if store not in _KEPT:
        _KEPT[store] = Middles(len(store), store.schema.fields["x"].shape[0])
    return _KEPT[store]
