"""Two threads gather a batch: every row is there when it is handed out, and no fault of the other thread is lost."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eyegraft.data import _patch_gather, patch_store
from eyegraft.data._patch_gather import Gather, Helper
from eyegraft.data.patch_store import PatchStore
from eyegraft.data.patch_writer import write_shards

sys.path.insert(0, str(Path(__file__).parent))

from patch_rows import SCHEMA, produced

STARTS = np.array([0, 300, 700])
SHARDS = [np.arange(300 * 50, dtype=np.float32).reshape(300, 50), -np.arange(400 * 50, dtype=np.float32).reshape(400, 50)]
EVERYTHING = np.concatenate(SHARDS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("store")
    jobs = [{"first": first, "rows": rows} for first, rows in ((0, 700), (700, 1300), (2000, 501))]
    write_shards(target, SCHEMA, jobs, produced)
    return target


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a batch and however many cores: in pieces, by two threads."""
    monkeypatch.setattr(patch_store, "_WORTH", 0)
    monkeypatch.setattr(patch_store, "cores", lambda: 2)
    monkeypatch.setattr(_patch_gather, "_PIECE", 10_000)


def until(true: Any) -> bool:
    stop = time.monotonic() + 5
    while not true() and time.monotonic() < stop:
        time.sleep(0.001)
    return bool(true())


def fits(rows: np.ndarray, columns: dict[str, np.ndarray]) -> bool:
    expected, _ = produced({"first": 0, "rows": 2501})
    return set(columns) == set(expected) and all(np.array_equal(columns[name], expected[name][rows]) for name in columns)


@pytest.mark.parametrize("shuffle", ["none", "block", "full"])
def test_batches_that_are_kept_stay_what_they_were(written: Path, shuffle: Any) -> None:
    with PatchStore(written) as store:
        kept = [batch for epoch in range(3) for batch in store.batches(store.order(epoch, seed=0, shuffle=shuffle), 300)]
    assert len(kept) == 3 * 9
    assert all(fits(rows, columns) for rows, columns in kept)
    addresses = [columns["x"].ctypes.data for _, columns in kept]
    assert len(set(addresses)) == len(kept)


def test_the_next_batch_is_gathered_while_the_caller_works(written: Path) -> None:
    begun: list[Gather] = []
    with PatchStore(written) as store:
        assert store._helper is not None
        begin = store._helper.begin
        store._helper.begin = lambda gather: (begun.append(gather), begin(gather))[1]  # type: ignore[method-assign]
        batches = store.batches(store.order(0, seed=0), 300, fields=["x"])
        next(batches)
        assert until(lambda: not begun[1]._pieces)  # nobody asked for it yet
        batches.close()
        assert fits(np.arange(40), store.read(np.arange(40)))


def test_the_helper_alone_gathers_what_the_caller_would() -> None:
    helper, rows = Helper(), np.array([0, 5, 299, 300, 302, 699])
    gather, out = Gather(STARTS, rows), np.zeros((6, 5, 10), np.float32)
    gather.add(SHARDS, out)
    helper.begin(gather)
    assert until(lambda: not gather._pieces)
    gather.finish()
    assert np.array_equal(out.reshape(6, 50), EVERYTHING[rows])
    helper.close()


def test_rows_that_jump_between_shards_and_no_rows() -> None:
    for rows in (np.tile([699, 0, 300, 299], 100), np.array([], np.int64)):
        gather, out = Gather(STARTS, rows), np.zeros((len(rows), 50), np.float32)
        gather.add(SHARDS, out)
        gather.finish()
        assert np.array_equal(out, EVERYTHING[rows])


def test_a_fault_of_the_helper_is_raised_where_the_batch_is_asked_for() -> None:
    helper, gather = Helper(), Gather(STARTS, np.arange(3))
    gather.add(SHARDS, np.zeros((3, 50), np.float64))  # numpy refuses to write there
    helper.begin(gather)
    assert until(lambda: not gather._pieces)
    with pytest.raises(TypeError, match="cast"):
        gather.finish()
    after = Gather(STARTS, np.arange(3))
    out = np.zeros((3, 50), np.float32)
    after.add(SHARDS, out)
    helper.begin(after)
    assert until(lambda: not after._pieces)  # the thread lives
    helper.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_helper_of_its_own(written: Path) -> None:
    with PatchStore(written) as store:
        store.read(np.arange(500))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
            child = os.fork()
        if not child:
            good = fits(np.arange(500), store.read(np.arange(500)))
            os._exit(0 if good and until(lambda: not store._helper._queue.qsize()) else 1)  # type: ignore[union-attr]
        assert os.waitpid(child, 0)[1] == 0


def test_the_thread_ends_with_the_store(written: Path) -> None:
    def thread_of(store: PatchStore) -> threading.Thread:
        store.read(np.arange(500))
        assert store._helper is not None
        assert store._helper._thread is not None
        assert store._helper._thread.is_alive()
        return store._helper._thread

    with PatchStore(written) as store:
        thread = thread_of(store)
    assert until(lambda: not thread.is_alive())
    dropped = thread_of(PatchStore(written))  # not even closed
    assert until(lambda: not dropped.is_alive())
