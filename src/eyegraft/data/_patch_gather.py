"""Rows of a patch store on their way from its memory maps into the arrays of a batch.

A row of some kilobytes anywhere in memory is mostly waited for: one thread gathers rows at two thirds of the speed of a copy in order, and
two threads wait at the same time. So a batch is cut into pieces, and whoever has time takes the next one: a helper thread while the caller
works on the batch before, and the caller too as soon as it asks for this one.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.data._patch_order import Rows

_PIECE = 1 << 20  # bytes taken at once: less than a tenth of a millisecond
_CACHED = 64  # rows gathered at once when shards alternate: what is copied twice stays in the processor's cache

Shards = Sequence[NDArray[Any]]
"""One field of all shards, each [rows, numbers of a row]."""


class Gather:
    """Rows [B] of shards that start at rows `starts` [S + 1]. `add` says which fields go where, `work` gathers."""

    def __init__(self, starts: Rows, rows: Rows) -> None:
        self._shard = np.searchsorted(starts, rows, side="right") - 1
        self._local = rows - starts[self._shard]
        cuts = (np.flatnonzero(self._shard[1:] != self._shard[:-1]) + 1).tolist()
        self._spans = list(pairwise([0, *cuts, len(rows)])) if len(rows) else []
        self._pieces: deque[tuple[NDArray[Any], Rows, NDArray[Any]]] = deque()
        self._lock = threading.Lock()  # held by the helper while it works on this
        self._fault: BaseException | None = None

    def add(self, shards: Shards, out: NDArray[Any]) -> None:
        """A field goes into `out` [B, …], one block of memory."""
        flat = out.reshape(len(out), shards[0].shape[1]) if shards else out
        if len(self._spans) > len(shards):
            self._alternate(shards, flat)
            return
        step = max(1, _PIECE // max(1, flat.strides[0]))
        for begin, end in self._spans:
            source = shards[self._shard[begin]]
            for start in range(begin, end, step):
                stop = min(start + step, end)
                self._pieces.append((source, self._local[start:stop], flat[start:stop]))

    def _alternate(self, shards: Shards, flat: NDArray[Any]) -> None:
        """Rows jump between shards: gather each one's, at once, and put them where they belong."""
        for number in np.unique(self._shard).tolist():
            here = np.flatnonzero(self._shard == number)
            for start in range(0, len(here), _CACHED):
                piece = here[start : start + _CACHED]
                flat[piece] = np.take(shards[number], self._local[piece], axis=0)

    def work(self) -> None:
        """Take pieces until none is left; two threads may."""
        while self._pieces:
            try:
                source, local, out = self._pieces.popleft()
            except IndexError:  # the other thread was faster
                return
            np.take(source, local, axis=0, out=out, mode="clip")  # "clip" writes into `out` without a buffer; the rows are inside

    def help(self) -> None:
        """What the helper does: `work`, keeping a fault for who asked."""
        with self._lock:
            try:
                self.work()
            except BaseException as fault:
                self._fault = fault

    def finish(self) -> None:
        """Return when all is there."""
        self.work()
        with self._lock:  # the helper's last piece
            if self._fault is not None:
                raise self._fault


class Helper:
    """A thread that works on gathers, in the order in which they were begun. It starts with the first one and ends with this object."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, gather: Gather) -> None:
        if self._thread is None or not self._thread.is_alive():  # a forked process has neither thread nor a queue that works
            self._queue: SimpleQueue[Gather | None] = SimpleQueue()
            self._thread = threading.Thread(target=_help, args=(self._queue,), name="gather", daemon=True)
            self._thread.start()
            self._end = weakref.finalize(self, self._queue.put, None)
        self._queue.put(gather)

    def close(self) -> None:
        if self._thread is not None:
            self._end()


def _help(queue: SimpleQueue[Gather | None]) -> None:
    while (gather := queue.get()) is not None:
        gather.help()
        del gather  # its arrays are the caller's


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
