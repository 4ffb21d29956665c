"""Which rows of a patch store come when, and having them in memory by then.

A random order over a store larger than memory reads many times the bytes that it uses. Here blocks of consecutive rows come in random
order, and rows are shuffled inside a window of 64 blocks: the disk sees long reads, and a batch holds rows from all over the window.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # rows; 1.6 MB of the usual patch of 19 x 9 x 9 floats
WINDOW = 64  # blocks
_SCATTERED = 32  # rows in a row, on average: below, nothing is gained by reading ahead
_QUEUE = 8  # batches that the reading thread may be ahead of what is waited for

POSSIBLE = hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise")
"""Whether the system can say what lies in memory (Linux)."""

Shuffle = Literal["none", "block", "full"]
Rows = NDArray[np.int64]


def epoch_order(num_rows: int, *, epoch: int, seed: int, shuffle: Shuffle, rank: int = 0, world: int = 1) -> Rows:
    """The rows that one rank reads in one epoch, in order: a pure function of its arguments, on every machine and in every version.

    Shuffled, all ranks get equally many rows, and the fewer than `world` rows left over are others in each epoch. Unshuffled, for
    evaluation, every row comes exactly once.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}")
    if shuffle == "none":
        return np.arange(rank * num_rows // world, (rank + 1) * num_rows // world, dtype=np.int64)
    share = num_rows // world
    mine = slice(rank * share, (rank + 1) * share)
    if shuffle == "full":
        return _permutation(num_rows, "rows", seed, epoch)[mine]
    blocks = _permutation(-(-num_rows // BLOCK), "blocks", seed, epoch)
    rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    rows = rows[rows < num_rows][mine]
    inside = _bits(share, "window", seed, epoch, rank)
    start = 0
    for end in window_ends(share).tolist():
        rows[start:end] = rows[start:end][np.argsort(inside[start:end], kind="stable")]
        start = end
    return rows


def _permutation(count: int, *seed: object) -> Rows:
    return np.argsort(_bits(count, *seed), kind="stable").astype(np.int64)


def _bits(count: int, *seed: object) -> NDArray[np.uint64]:
    """Random words to sort by: numpy promises never to change them; of `permutation` it promises nothing."""
    return np.random.PCG64(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest(), "big")).random_raw(count)


def window_ends(count: int) -> Rows:
    """Where the windows of an order end. The first ones are small, so that the first batch need not wait for 64 blocks."""
    sizes: list[int] = []
    total = 0
    while total < count:
        size = min(4 << min(len(sizes), 8), WINDOW) * BLOCK
        sizes.append(size)
        total += size
    return np.minimum(np.cumsum(sizes, dtype=np.int64), count)


class Run(NamedTuple):
    """Consecutive rows `low <= row < high`, needed together; `end` counts the rows of all runs up to this one."""

    low: int
    high: int
    end: int


def _runs(order: Rows, first: int) -> Iterator[Run]:
    """The rows of each window, from that of position `first` on, as runs of at most a block. Windows of single rows are left out."""
    start = 0
    for end in window_ends(len(order)).tolist():
        if end > first:
            rows = np.sort(order[start:end])
            cuts = np.flatnonzero((np.diff(rows) != 1) | (rows[1:] % BLOCK == 0)) + 1
            if len(rows) >= _SCATTERED * (len(cuts) + 1):
                total = start
                for part in np.split(rows, cuts):
                    total += len(part)
                    yield Run(int(part[0]), int(part[-1]) + 1, total)
        start = end


class ReadAhead:
    """Reads what the disk must give, run by run, in one thread, evenly: while one window is used the next one is fetched.

    What lies in memory already costs one look and wakes no thread. Without the system calls for this (outside Linux) nothing is done, and
    the system's own read-ahead must do.

    Args:
        order: rows by position.
        first: the position that reading starts from.
        cold: whether a run must be fetched.
        fetch: fetches it; called in the thread.
    """

    def __init__(self, order: Rows, first: int, cold: Callable[[Run], bool], fetch: Callable[[Run], None]) -> None:
        self._cold, self._fetch = cold, fetch
        ends = window_ends(len(order))
        self._runs = _runs(order, first) if POSSIBLE else iter(())
        self._next = next(self._runs, None)
        self._from, self._to = np.concatenate([[0], ends[:-1]]), ends
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="patches")
        self._pending: deque[tuple[int, Future[None]]] = deque()
        self._queue = 0

    def reach(self, position: int, batch_size: int, *, wait: bool = True) -> bool:
        """Return when all that the rows before `position` need has been fetched, and the next window in proportion; or at once, whether
        it has."""
        begun = self._due(position + self._queue * batch_size)
        self._queue = min(self._queue + 1, _QUEUE)  # the first batch does not wait until all of this has been looked at
        while self._next is not None and self._next.end <= begun:
            if self._cold(self._next):
                self._pending.append((self._next.end, self._pool.submit(self._fetch, self._next)))
            self._next = next(self._runs, None)
        done = self._due(position)
        while self._pending and self._pending[0][0] <= done:
            if not (wait or self._pending[0][1].done()):
                return False
            self._pending.popleft()[1].result()
        return True

    def _due(self, position: int) -> float:
        """A window's rows must all be there before its first batch: the line through (end of the window before, end of the window)."""
        return float(np.interp(position, self._from, self._to))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
