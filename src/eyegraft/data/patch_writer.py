"""Writes a patch store, in parallel and so that a kill at any moment costs the shards at work and nothing else.

Every shard is a pure function of its job (a list of scenes, a file to convert). It is written under a temporary name, flushed to the disk
and renamed. Written again, whole shards are kept and the rest is made, and the store ends with the same bytes as one that was never killed.

Workers are processes, by dask: producing a shard means decoding HDF5, whose library lets one thread of a process work at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from eyegraft.data.patch_store import Columns, Manifest, Schema, Shard, merged_counts
from eyegraft.errors import DataError, PartError, RunError, shown
from eyegraft.files import disk_errors, file_sha256, write_atomically

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Produced = tuple[Columns, Mapping[str, int]]
"""The rows of one shard by field, and how many rows were left out by reason."""

Produce = Callable[[Any], Produced]


def grouped(items: Sequence[Item], rows: Sequence[int], rows_per_shard: int) -> list[list[Item]]:
    """Items in order, cut into shards of at most `rows_per_shard` rows; an item with more has a shard of its own.

    Args:
        rows: how many each item may give. What is dropped later makes a shard smaller, never moves a row to another one.
    """
    groups: list[list[Item]] = []
    filled = 0
    for item, count in zip(items, rows, strict=True):
        if not groups or filled + count > rows_per_shard:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += count
    return groups


def write_shards(
    target: Path,
    schema: Schema,
    jobs: Sequence[Any],
    produce: Produce,
    *,
    workers: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Manifest:
    """Make the store's shards, one a job, and then its manifest; what is whole already is kept.

    Args:
        jobs: plain JSON values that say all that a shard depends on (with the hash or date of its sources, where those may change).
        produce: job -> rows and counts. With more than one worker it must be importable: a function of a module, or a `partial` of one.
        workers: processes. One works in this process and needs no dask.
        progress: called as (done, total).

    Raises:
        RunError: another process writes this store, or the disk is full.
        DataError: `produce` gave other fields, types or shapes than the schema.
        PartError: dask is not installed.
    """
    target.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target / ".writing")
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{target} is being written by another process", "one writer", "wait for it, or end it") from error
    with held:  # not `with lock`, which would take it a second time and give it back once
        for draft in target.glob(".shard-*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)
        plan = {f"shard-{number:05d}": (job, _digest(job, schema)) for number, job in enumerate(jobs)}
        whole = {name: shard for name, (_, digest) in plan.items() if (shard := _kept(target / name, digest, schema)) is not None}
        todo = [(name, job, digest) for name, (job, digest) in plan.items() if name not in whole]
        if todo:
            (target / "manifest.json").unlink(missing_ok=True)  # until all is there again it would be wrong
        for path in target.glob("shard-*"):
            if path.name not in whole:
                log.warning("%s: damaged, or made from something else; it is made again", path) if path.name in plan else None
                shutil.rmtree(path)
        report = _Progress(len(whole), len(jobs), progress)
        for shard in _make(target, schema, produce, todo, workers, report):
            whole[shard.name] = shard
        shards = tuple(whole[name] for name in plan)
        counts = merged_counts([shard.counts for shard in shards])
        manifest = Manifest(data=schema, rows=sum(shard.rows for shard in shards), counts=counts, shards=shards)
        _write_json(target / "manifest.json", manifest.model_dump(mode="json"))
    return manifest


class _Progress:
    def __init__(self, done: int, total: int, tell: Callable[[int, int], object] | None) -> None:
        self._done, self._total, self._tell = done, total, tell

    def __call__(self, *_: object) -> None:
        self._done += 1
        if self._tell is not None:
            self._tell(self._done, self._total)


def _make(
    target: Path, schema: Schema, produce: Produce, todo: Sequence[tuple[str, Any, str]], workers: int, report: _Progress
) -> Sequence[Shard]:
    make = partial(_write_shard, target, schema, produce)
    if workers <= 1 or len(todo) <= 1:
        made = []
        for name, job, digest in todo:
            made.append(make(name, job, digest))
            report()
        return made
    try:
        import dask
        from dask.callbacks import Callback
    except ImportError as error:
        raise PartError(f"{workers} workers without dask", "dask", "pip install 'eyegraft[satellite]', or ask for one worker") from error
    tasks = [dask.delayed(_in_worker, pure=False)(make, *one) for one in todo]
    with Callback(posttask=report):
        return list(dask.compute(*tasks, scheduler="processes", num_workers=min(workers, len(todo)), chunksize=1))


_watching: list[threading.Thread] = []


def _in_worker(make: Callable[[str, Any, str], Shard], name: str, job: Any, digest: str) -> Shard:
    """Make a shard in a process that ends when its parent is killed; it would wait for work for ever."""
    owner = multiprocessing.parent_process()
    if owner is not None and not _watching:

        def wait() -> None:
            owner.join()
            os._exit(1)  # nothing is lost: what counts is renamed, the rest is a draft

        _watching.append(threading.Thread(target=wait, daemon=True))
        _watching[0].start()
    return make(name, job, digest)


def _digest(job: Any, schema: Schema) -> str:
    text = json.dumps([job, schema.model_dump(mode="json")], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path, digest: str, schema: Schema) -> Shard | None:
    """A shard that is there, was made from this job, and has the bytes that were written."""
    try:
        shard = Shard.model_validate_json((path / "shard.json").read_bytes())
        if shard.job != digest or set(shard.sha256) != set(schema.fields):
            return None
        whole = all(file_sha256(path / f"{name}.npy") == expected for name, expected in shard.sha256.items())
    except (OSError, ValueError):
        return None
    return shard if whole else None


def _write_shard(target: Path, schema: Schema, produce: Produce, name: str, job: Any, digest: str) -> Shard:
    columns, counts = produce(job)
    rows = _checked(columns, schema, name)
    draft = target / f".{name}.{os.getpid()}.tmp"
    with disk_errors(target):
        try:
            draft.mkdir()
            hashes = {field: _write_array(draft / f"{field}.npy", columns[field], schema.fields[field].on_disk) for field in schema.fields}
            shard = Shard(name=name, rows=rows, counts=merged_counts([counts]), sha256=hashes, job=digest)
            _write_json(draft / "shard.json", shard.model_dump(mode="json"))
            _flush_folder(draft)
            draft.rename(target / name)
            _flush_folder(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return shard


def _checked(columns: Columns, schema: Schema, name: str) -> int:
    if set(columns) != set(schema.fields):
        raise DataError(f"{name}: fields {shown(sorted(columns), 20)}", f"{shown(sorted(schema.fields), 20)}", "give what the schema names")
    rows = {len(values) for values in columns.values()}
    if len(rows) != 1:
        raise DataError(f"{name}: fields of {shown(sorted(rows))} rows", "as many rows in every field", "cut all fields by the same mask")
    for field, values in columns.items():
        expected = schema.fields[field]
        if values.shape[1:] != expected.shape or values.dtype != expected.on_disk:
            given = f"{name}: {field} is {values.dtype} {list(values.shape[1:])}"
            raise DataError(given, f"{expected.dtype} {list(expected.shape)}", "convert it, or change the schema")
    return rows.pop()


def _write_array(path: Path, values: NDArray[Any], dtype: np.dtype[Any]) -> str:
    """A field's file, on the disk when this returns; gives its hash. Whole arrays are written: filling a memory map takes twice as long."""
    values = np.ascontiguousarray(values, dtype=dtype)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    hashing = hashlib.sha256(header.getvalue())
    with path.open("wb") as stream:
        stream.write(header.getvalue())
        if values.size:
            content = values.reshape(-1).view(np.uint8).data
            hashing.update(content)
            stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return hashing.hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _flush_folder(path: Path) -> None:
    """Names are on the disk only when their folder is."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
