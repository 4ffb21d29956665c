"""Which readings are held out: by station, by block of days, or both; a pure function of seed and names.

Stations and blocks are ordered by the hash of seed and name and dealt to the folds in turn, so that over all folds each is held out once.
Validation takes whole stations and blocks of what is left: what a model is chosen on is as new to it as what it is tested on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError

if TYPE_CHECKING:
    from eyegraft.prepare.raster_series import Held

SPLITS: dict[str, tuple[str, ...]] = {
    "block": ("train", "val", "test"),
    "station": ("train", "val", "test_new_station"),
    "both": ("train", "val", "test", "test_new_station", "test_new_both"),
}
ALL_SPLITS = SPLITS["both"]
SPOILT = "held out on one side, of validation on the other"


def blocks_of(times: NDArray[np.datetime64], origin: np.datetime64, block_days: float) -> NDArray[np.str_]:
    """The block of each time [N], named by the moment at which it begins."""
    length = np.timedelta64(round(block_days * 86_400), "s")
    begins = origin + (times - origin) // length * length
    return np.datetime_as_string(begins.astype("datetime64[s]")).astype(np.str_)


def assigned(stations: NDArray[np.str_], times: NDArray[np.datetime64], origin: np.datetime64, held: Held) -> NDArray[np.str_]:
    """The split of each reading [N]; "" where it belongs to none (`SPOILT`).

    Raises:
        DataError: fewer stations or blocks than folds and a validation need.
    """
    blocks = blocks_of(times, origin, held.block_days)
    none = np.zeros(len(times), dtype=bool)
    held_station, val_station = sides(stations, "station", held) if held.out != "block" else (none, none)
    held_block, val_block = sides(blocks, "block", held) if held.out != "station" else (none, none)
    split = np.full(len(times), "train", dtype="<U16")
    split[val_station | val_block] = "val"
    split[held_block] = "test"
    split[held_station] = "test_new_station"
    split[held_station & held_block] = "test_new_both"
    # on days of validation, or at a station of validation, neither "known" nor "unseen" is true
    split[(held_station & val_block) | (held_block & val_station)] = ""
    return split


def sides(names: NDArray[np.str_], what: str, held: Held) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each reading [N] is of a name that is held out, and whether of one for validation."""
    ordered = dealt(np.unique(names).tolist(), f"{held.seed}/{what}")
    if len(ordered) < held.folds or len(ordered) < 3:
        fix = "fewer held.folds" + (", or shorter held.block_days" if what == "block" else "")
        raise DataError(f"{len(ordered)} {what}s with readings, to be dealt to {held.folds} folds", f"{max(held.folds, 3)} or more", fix)
    test = ordered[held.fold :: held.folds]
    rest = dealt(set(ordered) - set(test), f"{held.seed}/{what}/{held.fold}/val")
    val = rest[: min(max(1, round(held.val_fraction * len(rest))), len(rest) - 1)]
    return np.isin(names, test), np.isin(names, val)


def dealt(names: Iterable[str], salt: str) -> Sequence[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())
