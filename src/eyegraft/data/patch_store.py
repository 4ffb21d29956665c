"""The patch store: millions of small fixed records, memory-mapped and read in batches.

<store>/
    manifest.json       schema, rows, counts by reason and hashes of all shards; it is written last, so a store that has one is whole
    shard-00000/        64 to 128 thousand rows
        x.npy …         one array a field, [rows, …], as `numpy.load` reads it
        shard.json      its part of the manifest, and the hash of the job that it was made from

Records are columns: text or Python objects in them cost more to read than all numbers together. Missing measurements are NaN, missing
categories a number outside the range; which rows are left out, and why, is counted by whoever produces them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import sys
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from eyegraft.config import NonNegative, Strict
from eyegraft.data._patch_gather import Gather, Helper, cores
from eyegraft.data._patch_order import POSSIBLE, ReadAhead, Rows, Run, Shuffle, epoch_order
from eyegraft.errors import DataError, nearest, shown
from eyegraft.files import file_sha256, write_atomically

FORMAT: Literal[1] = 1
_LARGE = 1024  # bytes of a row: such fields are fetched block by block, smaller ones by the system's own read-ahead
_STRETCH = 1 << 14  # rows whose small fields are read at once, in the order of the disk: batch by batch it takes twice as long
_WORTH = 1 << 21  # bytes: less is gathered faster than another thread wakes up

Columns = dict[str, NDArray[Any]]


class Field(Strict):
    """One column.

    Attributes:
        dtype: of numpy, little-endian on disk.
        shape: of one record; () is one number.
        unit: of the values as they are stored.
        categories: the number of classes, where the values are class numbers.
    """

    dtype: Literal["float16", "float32", "float64", "uint8", "uint16", "int8", "int16", "int32", "int64"]
    shape: tuple[NonNegative, ...] = ()
    unit: str = ""
    categories: NonNegative = 0

    @property
    def on_disk(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.on_disk.itemsize


class Schema(Strict):
    """What every record of a store holds.

    Attributes:
        fields: by name, which is a file's name too.
        split: `train`, `val`, `test`, or what else the rows are.
        facts: what the numbers depend on, as plain JSON: the sensor, grid, sources, statistics that were applied, whether it is simulated.
    """

    fields: dict[str, Field]
    split: str
    facts: dict[str, Any] = {}


class Shard(Strict):
    """One shard as the manifest knows it. `counts` holds the rows left out, by reason; `sha256` the hash of each field's file."""

    name: str
    rows: NonNegative
    counts: dict[str, NonNegative]
    sha256: dict[str, str]
    job: str


class Manifest(Strict):
    format: Literal[1] = FORMAT
    data: Schema
    rows: NonNegative
    counts: dict[str, NonNegative]
    shards: tuple[Shard, ...]


class PatchStore:
    """A finished store, opened for reading. Use it as a context manager, or call `close`.

    Opening compares the sizes of all files with the manifest; `verify` compares their hashes.

    Raises:
        DataError: no store, an unfinished one, or files of another size than written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _manifest(path)
        self.schema = self.manifest.data
        self._shards = [shard for shard in self.manifest.shards if shard.rows]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._begins: list[int] = self._starts.tolist()
        self._maps: dict[str, list[NDArray[Any]]] = {name: [] for name in self.schema.fields}
        self._descriptors: dict[str, list[tuple[int, int]]] = {}  # of large fields, for each shard: the open file, and where row 0 begins
        self._helper = Helper() if cores() > 1 else None
        weakref.finalize(self, _close, self._descriptors)  # of a store that nobody closed
        _allow_files(2 * len(self._shards) * len(self.schema.fields))
        try:
            for name, field in self.schema.fields.items():
                self._open(name, field)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PatchStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def row_bytes(self) -> int:
        return sum(field.row_bytes for field in self.schema.fields.values())

    @cached_property
    def identity(self) -> str:
        """64 hexadecimal digits that change with every bit of the data and its schema, and with nothing else: made again from the same
        sources, a store is the same."""
        held = [[shard.rows, shard.sha256] for shard in self._shards]
        text = json.dumps([self.schema.model_dump(mode="json"), held], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, rows: Rows, fields: Sequence[str] | None = None) -> Columns:
        """Records at rows [B], in any order and with any repeats: each field as a new array [B, …]. Ascending rows are read fastest.

        Raises:
            IndexError: a row outside the store.
            DataError: a field that the store does not have.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store with {len(self)}")
        columns, gather = self._begun(rows, self._named(fields))
        gather.finish()
        return columns

    def order(self, epoch: int, *, seed: int, shuffle: Shuffle = "block", rank: int = 0, world: int = 1) -> Rows:
        """The rows of one rank in one epoch: see `epoch_order`. A run that goes on needs no more than the epoch and the step."""
        return epoch_order(len(self), epoch=epoch, seed=seed, shuffle=shuffle, rank=rank, world=world)

    def batches(
        self, order: Rows, batch_size: int, *, start: int = 0, fields: Sequence[str] | None = None
    ) -> Iterator[tuple[Rows, Columns]]:
        """The batches of an order from step `start` on: (rows [B], their records). The last one may be smaller.

        Inside a batch rows ascend: a loss that is a mean does not see it, and they are read faster. No process stands between store and
        caller. One thread fetches what is not in memory; another one gathers the next batch while the caller works on this one.
        """
        names = self._named(fields)
        small = [name for name in names if self.schema.fields[name].row_bytes < _LARGE]
        large = [name for name in names if name not in small]
        stretched = self._stretched(order, batch_size, start, small)
        ends = [min(end, len(order)) for end in range((start + 1) * batch_size, len(order) + batch_size, batch_size)]

        def begun() -> tuple[Rows, Columns, Gather]:
            rows, columns = next(stretched)
            more, gather = self._begun(rows, large)
            return rows, {name: more[name] if name in more else columns[name] for name in names}, gather

        coming: tuple[Rows, Columns, Gather] | None = None
        ahead = self._ahead(order, start * batch_size, names)
        try:
            for number, end in enumerate(ends):
                if coming is None:
                    ahead.reach(end, batch_size)
                    coming = begun()
                rows, columns, gather = coming
                ready = number + 1 < len(ends) and ahead.reach(ends[number + 1], batch_size, wait=False)
                coming = begun() if ready else None
                gather.finish()
                yield rows, columns
        finally:
            ahead.close()

    @contextmanager
    def read_ahead(self, order: Rows, first: int = 0, fields: Sequence[str] | None = None) -> Iterator[Callable[[int, int], None]]:
        """Have the rows of an order in memory by the time they are read, from position `first` on. Gives `reach(end, batch_size)`: call it
        before the rows up to position `end` are read."""
        ahead = self._ahead(order, first, self._named(fields))

        def reach(end: int, batch_size: int) -> None:
            ahead.reach(end, batch_size)

        try:
            yield reach
        finally:
            ahead.close()

    def _ahead(self, order: Rows, first: int, names: Sequence[str]) -> ReadAhead:
        large = [name for name in names if name in self._descriptors]
        return ReadAhead(order, first, lambda run: self._cold(run, large), lambda run: self._fetch(run, large))

    def verify(self) -> None:
        """Compare every file with its hash, as fast as the disk goes, once: the next call for unchanged files returns at once.

        Raises:
            DataError: names the damaged files.
        """
        files = {f"{shard.name}/{name}.npy": digest for shard in self.manifest.shards for name, digest in shard.sha256.items()}
        seen = {file: [(stat := (self.path / file).stat()).st_size, stat.st_mtime_ns] for file in files}
        note = self.path / ".verified"
        known = json.dumps([self.identity, seen])
        if note.exists() and note.read_text(encoding="utf-8") == known:
            return
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            found = dict(zip(files, pool.map(file_sha256, [self.path / file for file in files]), strict=True))
        bad = [file for file in files if found[file] != files[file]]
        if bad:
            fix = "prepare the data again: shards that are whole are kept"
            raise DataError(f"{self.path}: {len(bad)} files are not what was written: {shown(bad)}", "files with their hashes", fix)
        try:
            write_atomically(note, known, durable=False)
        except OSError:  # a store that is only read from
            return

    def close(self) -> None:
        self._maps = {}
        if self._helper is not None:
            self._helper.close()
        _close(self._descriptors)

    # ── gathering ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begun(self, rows: Rows, names: Sequence[str]) -> tuple[Columns, Gather]:
        """Arrays that are filled when the gather has finished."""
        gather = Gather(self._starts, rows)
        columns: Columns = {}
        for name in names:
            field = self.schema.fields[name]
            columns[name] = np.empty((len(rows), *field.shape), field.on_disk)
            gather.add(self._maps[name], columns[name])
        if self._helper is not None and sum(column.nbytes for column in columns.values()) >= _WORTH:
            self._helper.begin(gather)
        return columns, gather

    def _stretched(self, order: Rows, batch_size: int, start: int, names: Sequence[str]) -> Iterator[tuple[Rows, Columns]]:
        """The rows of each batch, ascending, and their small fields, which are read for many batches at once."""
        begin, count = start * batch_size, 1
        while begin < len(order):
            rows = order[begin : begin + count * batch_size].copy()
            parts = [slice(at, at + batch_size) for at in range(0, len(rows), batch_size)]
            for part in parts:
                rows[part].sort()
            columns: Columns = {}
            if names:
                ascending = np.argsort(rows)
                back = np.empty_like(ascending)
                back[ascending] = np.arange(len(rows))
                found = self.read(rows[ascending], names)
                columns = {name: np.take(found[name], back, axis=0) for name in names}
            for part in parts:
                yield rows[part], {name: values[part] for name, values in columns.items()}
            begin += len(rows)
            count = min(2 * count, max(1, _STRETCH // batch_size))  # the first batch does not wait for others

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, name: str, field: Field) -> None:
        for shard in self._shards:
            path = self.path / shard.name / f"{name}.npy"
            try:
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                what = error.strerror or str(error) if isinstance(error, OSError) else f"cut short or damaged ({error})"
                raise DataError(f"{path}: {what}", "a field of a whole store", "prepare the data again: whole shards are kept") from error
            expected = (shard.rows, *field.shape)
            if mapped.shape != expected or mapped.dtype != field.on_disk:
                given = f"{path}: {mapped.dtype} {list(mapped.shape)}"
                raise DataError(given, f"{field.dtype} {list(expected)}", "prepare the data again: whole shards are kept")
            if field.row_bytes >= _LARGE and POSSIBLE:
                mapped._mmap.madvise(mmap.MADV_RANDOM)  # what is read ahead is known better here
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                self._descriptors.setdefault(name, []).append((descriptor, mapped.offset))
            self._maps[name].append(mapped.reshape(shard.rows, field.row_bytes // mapped.itemsize).view(np.ndarray))

    def _named(self, fields: Sequence[str] | None) -> list[str]:
        names = list(self.schema.fields) if fields is None else list(fields)
        for name in names:
            if name not in self.schema.fields:
                raise DataError(
                    f"{self.path}: no field {name!r}", f"one of {', '.join(self.schema.fields)}", nearest(name, self.schema.fields)
                )
        return names

    def _places(self, run: Run, names: Sequence[str]) -> Iterator[tuple[int, int, int]]:
        """Where a run lies: (open file, offset, bytes) of each large field in each shard that it touches."""
        for number in range(bisect_right(self._begins, run.low) - 1, bisect_right(self._begins, run.high - 1)):
            begin, end = self._begins[number], self._begins[number + 1]
            low, high = max(run.low, begin) - begin, min(run.high, end) - begin
            for name in names:
                descriptor, offset = self._descriptors[name][number]
                size = self.schema.fields[name].row_bytes
                yield descriptor, offset + low * size, (high - low) * size

    def _cold(self, run: Run, names: Sequence[str]) -> bool:
        """One byte in the middle tells: the ends share pages with their neighbours."""
        try:
            for descriptor, offset, size in self._places(run, names):
                os.preadv(descriptor, [bytearray(1)], offset + size // 2, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            return True
        return False

    def _fetch(self, run: Run, names: Sequence[str]) -> None:
        for descriptor, offset, size in self._places(run, names):
            buffer = memoryview(bytearray(size))
            while buffer:
                count = os.preadv(descriptor, [buffer], offset)
                if not count:
                    raise DataError(f"{self.path}: a file became shorter while it was read", "files that stay", "prepare the data again")
                buffer, offset = buffer[count:], offset + count


def _close(descriptors: dict[str, list[tuple[int, int]]]) -> None:
    for opened in descriptors.values():
        for descriptor, _ in opened:
            os.close(descriptor)
    descriptors.clear()


def _allow_files(count: int) -> None:
    """Let this process have so many more files open, as far as its user may: 25 shards are some 250 files, and macOS allows 256 unasked."""
    if sys.platform == "win32":  # where maps take no descriptors
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    inside = sorted(found.parent for pattern in ("*", "patches/*") for found in path.glob(f"{pattern}/manifest.json"))
    if inside:
        raise DataError(f"{path}: no patch store, but a folder of {len(inside)}", "one of them", f"give {inside[0]}, for one")
    if not file.exists():
        begun = len(list(path.glob("shard-*"))) if path.is_dir() else 0
        given = f"{path}: an unfinished patch store of {begun} shards" if begun else f"{path}: no patch store"
        fix = "run prepare: it goes on where it stopped" if begun else "check the path, or run `eyegraft prepare` first"
        if path.name == "unlabelled" and not begun:
            fix = "run `eyegraft prepare` with prepare.unlabelled_per_scene=200, for one: what is there is kept"
        raise DataError(given, "a folder with manifest.json", fix)
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file}: {place}: {first['msg']}", f"a manifest of format {FORMAT}", "prepare the data again") from error


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation (of the population) and number of values that are not NaN, each [C] float64; NaN where there was none."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: NDArray[np.int64]


def statistics(store: PatchStore, field: str, *, batch_size: int = 4096) -> Statistics:
    """Statistics of each channel (the first axis of a record; a single number is one channel) in one pass over a training split.

    Sums of squares are taken about each batch's own mean and joined exactly (Chan, Golub, LeVeque 1979), in float64.

    Raises:
        DataError: a split that is not `train`, or an infinite value.
    """
    if store.schema.split != "train":
        given = f"{store.path}: statistics of split {store.schema.split!r}"
        raise DataError(given, "the split 'train': others must stay unseen", "open the store of the train split")
    shape = store.schema.fields[store._named([field])[0]].shape
    channels = shape[0] if shape else 1
    count, mean, spread = np.zeros(channels, np.int64), np.zeros(channels), np.zeros(channels)
    for rows, columns in store.batches(store.order(0, seed=0, shuffle="none"), batch_size, fields=[field]):
        values = columns[field].astype(np.float64).reshape(len(rows), channels, -1)  # [B, C, HW]
        if np.isinf(values).any():
            row, channel, _ = np.argwhere(np.isinf(values))[0]
            raise DataError(
                f"{store.path}: row {rows[row]}, {field}[{channel}] is infinite", "finite values or NaN", "prepare the data again"
            )
        there = ~np.isnan(values)
        new = there.sum(axis=(0, 2))
        here = np.where(there, values, 0).sum(axis=(0, 2)) / np.maximum(new, 1)
        about = np.where(there, values - here[:, None], 0)
        total = count + new
        shift = np.where(new > 0, here - mean, 0)
        share = new / np.maximum(total, 1)
        spread += (about**2).sum(axis=(0, 2)) + shift**2 * count * share
        mean += shift * share
        count = total
    none = count == 0
    mean[none], spread[none] = np.nan, np.nan
    return Statistics(mean, np.sqrt(spread / np.maximum(count, 1)), count)


def one_hot(index: NDArray[Any], categories: int) -> NDArray[np.float32]:
    """Class numbers [B] -> [B, categories]; a row of zeros where the number is outside."""
    vectors: NDArray[np.float32] = (np.asarray(index)[:, None] == np.arange(categories)).astype(np.float32)
    return vectors


def merged_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts by reason."""
    return {reason: sum(part.get(reason, 0) for part in counts) for reason in sorted({reason for part in counts for reason in part})}
