"""The patch store: written in parallel, whole after any kill, read in any order without a wrong row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eyegraft.data import _patch_order
from eyegraft.data._patch_order import BLOCK, WINDOW, ReadAhead, Run, epoch_order, window_ends
from eyegraft.data.patch_chunks import CHANNELS, convert_chunks, read_chunk
from eyegraft.data.patch_store import Field, PatchStore, Schema, one_hot, statistics
from eyegraft.data.patch_writer import grouped, write_shards
from eyegraft.errors import DataError, RunError

sys.path.insert(0, str(Path(__file__).parent))  # for this process and for workers

import patch_rows
from patch_rows import SCHEMA, produced


def jobs_of(*rows: int, **more: int) -> list[dict[str, int]]:
    firsts = np.cumsum([0, *rows]).tolist()
    return [{"first": first, "rows": count, **more} for first, count in zip(firsts, rows, strict=False)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("store")
    write_shards(target, SCHEMA, jobs_of(700, 0, 1300, 501), produced)
    return target


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fits(rows: np.ndarray, columns: dict[str, np.ndarray]) -> bool:
    expected, _ = produced({"first": 0, "rows": 2501})
    return all(np.array_equal(columns[name], expected[name][rows]) for name in columns)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 2500), max_size=300), ascending=st.booleans())
def test_any_rows_in_any_order_are_those_that_were_written(written: Path, rows: list[int], ascending: bool) -> None:
    asked = np.array(sorted(rows) if ascending else rows, dtype=np.int64)
    with PatchStore(written) as store:
        columns = store.read(asked)
    assert fits(asked, columns)
    assert {name: (values.dtype, values.shape[1:]) for name, values in columns.items()} == {
        name: (np.dtype(field.dtype), field.shape) for name, field in SCHEMA.fields.items()
    }


@pytest.mark.parametrize("shuffle", ["none", "block", "full"])
@pytest.mark.parametrize("batch_size", [64, 100, 1024])
def test_an_epoch_gives_every_row_once_and_goes_on_at_any_step(written: Path, shuffle: Any, batch_size: int) -> None:
    with PatchStore(written) as store:
        order = store.order(3, seed=1, shuffle=shuffle)
        batches = list(store.batches(order, batch_size))
        assert sorted(np.concatenate([rows for rows, _ in batches]).tolist()) == list(range(2501))
        assert all(fits(rows, columns) for rows, columns in batches)
        later = list(store.batches(order, batch_size, start=2, fields=["y"]))
        assert [rows.tolist() for rows, _ in later] == [rows.tolist() for rows, _ in batches[2:]]
        assert all(list(columns) == ["y"] for _, columns in later)


def test_rows_and_fields_that_are_not_there(written: Path) -> None:
    with PatchStore(written) as store:
        for row in (-1, 2501):
            with pytest.raises(IndexError, match="2501"):
                store.read(np.array([0, row]))
        with pytest.raises(DataError, match="did you mean 'pixel'"):
            store.read(np.array([0]), ["pixl"])


def test_counts_and_the_schema_are_in_the_manifest(written: Path) -> None:
    with PatchStore(written) as store:
        assert len(store) == 2501
        assert store.manifest.counts == {"NaN": 0 + 1 + 1 + 2, "outside the grid": 4}
        assert store.schema == SCHEMA
        assert store.row_bytes == 1200 + 4 + 8 + 4


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shuffle", ["block", "full"])
@pytest.mark.parametrize("count", [1, 255, 5000, 40_001])
@pytest.mark.parametrize("world", [1, 3])
def test_ranks_share_the_rows_evenly(shuffle: Any, count: int, world: int) -> None:
    parts = [epoch_order(count, epoch=0, seed=5, shuffle=shuffle, rank=rank, world=world) for rank in range(world)]
    assert {len(part) for part in parts} == {count // world}
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows) == count // world * world
    if count > 255:
        again = epoch_order(count, epoch=0, seed=5, shuffle=shuffle, rank=world - 1, world=world)
        other = epoch_order(count, epoch=1, seed=5, shuffle=shuffle, rank=world - 1, world=world)
        assert np.array_equal(again, parts[-1])
        assert not np.array_equal(other, parts[-1])


def test_unshuffled_ranks_see_every_row_once() -> None:
    parts = [epoch_order(10, epoch=0, seed=0, shuffle="none", rank=rank, world=4) for rank in range(4)]
    assert np.concatenate(parts).tolist() == list(range(10))


def test_the_order_never_changes_between_versions() -> None:
    """Runs that go on after an upgrade read the rows they had left."""
    assert epoch_order(600, epoch=1, seed=0, shuffle="block")[:6].tolist() == [546, 419, 455, 562, 234, 83]
    assert epoch_order(600, epoch=1, seed=0, shuffle="full")[:6].tolist() == [445, 455, 493, 394, 238, 285]


def test_a_window_mixes_64_blocks_and_a_batch_comes_from_all_over_it() -> None:
    order = epoch_order(BLOCK * 1000, epoch=0, seed=0, shuffle="block")
    ends = window_ends(len(order)).tolist()
    start, end = ends[5], ends[6]
    assert end - start == BLOCK * WINDOW
    assert len(np.unique(order[start:end] // BLOCK)) == WINDOW
    assert len(np.unique(order[start : start + 1024] // BLOCK)) == WINDOW  # 16 rows a block on average


def test_reading_ahead_is_in_time_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patch_order, "POSSIBLE", True)
    monkeypatch.setattr(_patch_order, "_QUEUE", 0)
    order = epoch_order(BLOCK * 1000 - 77, epoch=0, seed=0, shuffle="block")
    fetched: set[int] = set()
    counts = []
    ahead = ReadAhead(order, 0, lambda run: True, lambda run: fetched.update(range(run.low, run.high)))
    for begin in range(0, len(order), 1024):
        before = len(fetched)
        batch = order[begin : begin + 1024]
        ahead.reach(begin + len(batch), 1024)
        assert fetched.issuperset(batch.tolist())
        counts.append(len(fetched) - before)
    ahead.close()
    assert len(fetched) == len(order)
    assert max(counts) <= 3.1 * np.median(counts)


def test_only_what_is_not_in_memory_is_fetched_and_random_rows_never() -> None:
    seen: list[Run] = []

    def never(run: Run) -> bool:
        seen.append(run)
        return False

    order = epoch_order(20_000, epoch=0, seed=0, shuffle="full")
    ReadAhead(order, 0, never, lambda run: pytest.fail("nothing is cold")).reach(20_000, 1024)
    assert not seen
    ReadAhead(np.arange(20_000), 0, never, lambda run: pytest.fail("nothing is cold")).reach(20_000, 1024)
    assert len(seen) == (79 if _patch_order.POSSIBLE else 0)


@pytest.mark.skipif(not _patch_order.POSSIBLE, reason="needs Linux to drop files from memory")
def test_a_store_that_is_not_in_memory_reads_the_same(written: Path) -> None:
    os.sync()
    for path in written.rglob("*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    with PatchStore(written) as store:
        assert all(fits(rows, columns) for rows, columns in store.batches(store.order(0, seed=0), 256))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    jobs = jobs_of(*[60] * 10, milliseconds=40)
    alone = tmp_path / "alone"
    write_shards(alone, SCHEMA, jobs, produced)
    target = tmp_path / "killed"
    kills = 0
    for wanted in (1, 4, 7):
        child = subprocess.Popen([sys.executable, patch_rows.__file__, str(target), json.dumps(jobs)])
        while child.poll() is None and len(list(target.glob("shard-*"))) < wanted:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL) if os.name == "posix" else child.kill()
        kills += child.wait() != 0
        with pytest.raises(DataError, match="unfinished"):
            PatchStore(target)
    assert kills == 3
    (target / ".shard-00009.1.tmp").mkdir()  # what a power cut may leave
    made = []
    write_shards(target, SCHEMA, jobs, lambda job: (made.append(job), produced(job))[1])
    assert 0 < len(made) < 9
    assert contents(target) == contents(alone)
    assert not list(target.glob(".shard*"))


def test_workers_write_the_same_bytes(tmp_path: Path) -> None:
    jobs = jobs_of(50, 60, 70)
    write_shards(tmp_path / "one", SCHEMA, jobs, produced)
    seen: list[tuple[int, int]] = []
    write_shards(tmp_path / "two", SCHEMA, jobs, produced, workers=2, progress=lambda *args: seen.append(args))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_damaged_and_changed_shards_are_made_again_and_no_other(tmp_path: Path) -> None:
    jobs = jobs_of(50, 60, 70)
    write_shards(tmp_path, SCHEMA, jobs, produced)
    good = contents(tmp_path)
    with PatchStore(tmp_path) as store:
        store.verify()
    path = tmp_path / "shard-00001" / "y.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with PatchStore(tmp_path) as store, pytest.raises(DataError, match=r"shard-00001/y\.npy"):
        store.verify()
    made: list[int] = []

    def counted(job: dict[str, int]) -> Any:
        made.append(job["rows"])
        return produced(job)

    write_shards(tmp_path, SCHEMA, jobs, counted)
    assert made == [60]
    assert contents(tmp_path) == good
    write_shards(tmp_path, SCHEMA, [jobs[0], {**jobs[1], "milliseconds": 1}], counted)  # another job, and one fewer
    assert made == [60, 60]
    with PatchStore(tmp_path) as store:
        assert len(store) == 110


def test_files_cut_short_are_refused_before_a_row_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path, SCHEMA, jobs_of(50), produced)
    path = tmp_path / "shard-00000" / "x.npy"
    os.truncate(path, 5000)
    with pytest.raises(DataError, match=r"x\.npy"):
        PatchStore(tmp_path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    def writes_again(job: Any) -> Any:
        with pytest.raises(RunError, match="another process"):
            write_shards(tmp_path, SCHEMA, jobs_of(5), produced)
        return produced(job)

    write_shards(tmp_path, SCHEMA, jobs_of(5), writes_again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(4, np.float64)}, "y is float64"),
        ({"pixel": np.zeros((4, 3), np.int16)}, r"pixel is int16 \[3\]"),
        ({"y": np.zeros(3, np.float32)}, "3, 4 rows"),
        ({"z": np.zeros(4, np.float32)}, "fields pixel, row, x, y, z"),
    ],
)
def test_rows_that_do_not_fit_the_schema_leave_no_shard(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_shards(tmp_path, SCHEMA, jobs_of(4), lambda job: (produced(job)[0] | change, {}))
    assert not list(tmp_path.glob("*shard*"))


def test_scenes_are_grouped_in_order() -> None:
    assert grouped("abcdef", [40, 50, 20, 300, 1, 1], 100) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


# ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_statistics_are_those_of_all_values_without_nan(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal([[[300]], [[0.2]], [[5]]], [[[20]], [[0.1]], [[0]]], (700, 3, 10, 10)).astype(np.float32)
    values[::3, 0, :5] = np.nan
    values[:600, 2] = np.nan
    schema = Schema(fields={"x": SCHEMA.fields["x"], "empty": Field(dtype="float32")}, split="train")
    none = np.full(350, np.nan, np.float32)
    write_shards(tmp_path, schema, [0, 350], lambda first: ({"x": values[first : first + 350], "empty": none}, {}))
    with PatchStore(tmp_path) as store:
        found = statistics(store, "x", batch_size=64)
        assert found.mean == pytest.approx(np.nanmean(values.astype(float), axis=(0, 2, 3)), rel=1e-12)
        assert found.std == pytest.approx(np.nanstd(values.astype(float), axis=(0, 2, 3)), rel=1e-9)
        assert found.count.tolist() == (~np.isnan(values)).sum(axis=(0, 2, 3)).tolist()
        nothing = statistics(store, "empty")
        assert np.isnan(nothing.mean).all()
        assert np.isnan(nothing.std).all()


def test_statistics_of_other_splits_and_infinite_values_are_refused(tmp_path: Path) -> None:
    bad = np.array([1, np.inf, 2], np.float32)
    for split in ("val", "train"):
        schema = Schema(fields={"y": Field(dtype="float32")}, split=split)
        write_shards(tmp_path / split, schema, [0], lambda job: ({"y": bad}, {}))
    with PatchStore(tmp_path / "val") as store, pytest.raises(DataError, match="must stay unseen"):
        statistics(store, "y")
    with PatchStore(tmp_path / "train") as store, pytest.raises(DataError, match="row 1"):
        statistics(store, "y")


def test_class_numbers_become_vectors() -> None:
    assert one_hot(np.array([0, 2, 255], np.uint8), 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


# ── old chunks ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

MOMENTS = {name: {"mean": 250.0 + number, "std": 10.0 + number} for number, name in enumerate(CHANNELS[:-1])}
TARGET = {"TA": {"mean": 285.0, "std": 9.5}}


def chunk_of(count: int, meta: Any) -> dict[str, Any]:
    random = torch.Generator().manual_seed(count)
    return {
        "x": torch.randn(count, 19, 9, 9, generator=random),
        "y": torch.randn(count, generator=random),
        "time7": torch.randn(count, 7, generator=random),
        "loc": torch.randn(count, 3, generator=random),
        "landcover_onehot": torch.eye(17)[torch.arange(count) % 17],
        "meta": meta,
    }


def old_folder(folder: Path) -> Path:
    folder.mkdir()
    times = ["2022-01-01 09:00:00", "2022-07-01T00:00:00+09:00", "2022-01-01", "1970-01-01 00:00:01"]
    first = chunk_of(4, [{"timestamp": time, "stn": 108, "pixel_x": 491, "pixel_y": 472 + n} for n, time in enumerate(times)])
    first["x"][1, 3, 4, 4] = torch.nan
    first["landcover_onehot"][2] = 0
    torch.save(first, folder / "train_chunk_00000.pt")
    torch.save(chunk_of(3, [(1_640_995_200 + n, "90", (n, 7)) for n in range(3)]), folder / "train_chunk_00001.pt")
    (folder / "input.json").write_text(json.dumps(MOMENTS | {"more": 1}))
    (folder / "target.json").write_text(json.dumps(TARGET))
    return folder


def test_old_chunks_become_a_store_in_physical_units(tmp_path: Path) -> None:
    source = old_folder(tmp_path / "old")
    paths = {"input_statistics": source / "input.json", "target_statistics": source / "target.json"}
    manifest = convert_chunks(source, tmp_path / "new", split="train", **paths, facts={"sensor": "GK-2A"})
    assert manifest.counts == {"land cover class": 1, "not finite": 1}
    assert manifest.data.facts["statistics"]["inputs"]["bt_03"] == {"mean": 253.0, "std": 13.0}
    with PatchStore(tmp_path / "new") as store:
        columns = store.read(np.arange(5))
    old = [read_chunk(path) for path in sorted(source.glob("*.pt"))]
    x, y = (np.concatenate([old[0][name][[0, 3]], old[1][name]]) for name in ("x", "y"))
    for channel, name in enumerate(CHANNELS[:-1]):
        assert columns["x"][:, channel] == pytest.approx(x[:, channel] * MOMENTS[name]["std"] + MOMENTS[name]["mean"], rel=1e-5)
    assert np.array_equal(columns["x"][:, -1], x[:, -1])
    assert columns["y"] == pytest.approx(y * 9.5 + 285, rel=1e-6)
    assert columns["timestamp"].tolist() == [1_641_027_600, 1, 1_640_995_200, 1_640_995_201, 1_640_995_202]
    assert columns["stn"].tolist() == [108, 108, 90, 90, 90]
    assert columns["pixel"].tolist() == [[491, 472], [491, 475], [0, 7], [1, 7], [2, 7]]
    assert columns["landcover"].tolist() == [0, 3, 0, 1, 2]


def test_zones_and_numpy_numbers_in_meta_are_read(tmp_path: Path) -> None:
    source = old_folder(tmp_path / "old")
    assert read_chunk(source / "train_chunk_00000.pt")["timestamp"][1] == 1_656_601_200  # 15:00 UTC of the day before
    meta = [{"timestamp_utc": "2022-01-01", "stn": np.int64(108), "pixel": (np.int32(1), np.float64(2))}]
    torch.save(chunk_of(1, meta), tmp_path / "numpy.pt")
    assert read_chunk(tmp_path / "numpy.pt")["stn"].tolist() == [108]


class Harmful:
    """Pickled, it makes a file when it is read without care."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def test_objects_in_meta_are_refused_with_the_way_out(tmp_path: Path) -> None:
    import pandas as pd

    torch.save(chunk_of(1, [Harmful(str(tmp_path / "made"))]), tmp_path / "bad.pt")
    with pytest.raises(DataError, match="mkdir"):
        read_chunk(tmp_path / "bad.pt")
    assert not (tmp_path / "made").exists()
    torch.save(chunk_of(1, [{"timestamp": pd.Timestamp("2022-01-01"), "stn": 1}]), tmp_path / "stamp.pt")
    with pytest.raises(DataError, match=r"imestamp[\s\S]*torch\.save\(chunk, path\)"):
        read_chunk(tmp_path / "stamp.pt")


def test_chunks_that_cannot_be_converted(tmp_path: Path) -> None:
    source = old_folder(tmp_path / "old")
    convert = partial(convert_chunks, source, tmp_path / "new", target_statistics=source / "target.json")
    with pytest.raises(DataError, match=r"input_statistics_2022\.json"):
        convert(split="train", input_statistics=None)
    with pytest.raises(DataError, match="none for bt_00"):
        convert(split="train", input_statistics=source / "target.json")
    with pytest.raises(DataError, match=r"no val_chunk"):
        convert(split="val", input_statistics=source / "input.json")
    (source / "train_chunk_00000.pt").write_bytes(b"PK no")
    with pytest.raises(DataError, match="a whole file"):
        convert(split="train", input_statistics=source / "input.json")
    torch.save({"x": torch.zeros(1)}, source / "train_chunk_00000.pt")
    with pytest.raises(DataError, match="no y, time7"):
        read_chunk(source / "train_chunk_00000.pt")
    torch.save(chunk_of(2, [("2022-01-01", 1)] * 2), source / "train_chunk_00000.pt")
    with pytest.raises(DataError, match="meta such as"):
        read_chunk(source / "train_chunk_00000.pt")
