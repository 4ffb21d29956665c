"""The feature cache: what a frozen encoder gives for a record, computed once and read from a memory map ever after.

A store holds records of one shape [N, D] in fp16 or bf16. It knows nothing of models: whoever fills it hands over a callable, and the
facts that the numbers depend on (`weights_sha256` of the encoder, its image transform, the pooling, the precision it computed in, library
versions). Stores with equal facts are one folder, shared by runs, sweeps and processes; any other fact makes another store. Inside, a
record is found by a key that says what was encoded, such as `<sha256 of the image>-<number of the augmented copy>` or the hash of a text.

<root>/<24 digits of the facts' hash>/
    facts.json      what the store was made with; its time is when the store was last opened
    index.bin, values-0000.bin …    see `_shards`
    users/          a locked file for each process that has the store open; .filling is locked by the one that encodes

A kill loses the batch at work. Records whose checksum no longer fits are encoded again, with a warning. Least recently used stores that no
process has open are deleted to stay below the limit of bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn

from eyegraft.data import _shards
from eyegraft.errors import DataError, PartError, RunError, shown
from eyegraft.files import write_atomically

log = logging.getLogger(__name__)

Encode = Callable[[list[list[int]]], Iterable[Tensor]]
"""Batches of positions in the list of keys -> the features [b, N, D] of each batch, in order, on any device, of any float type."""

_FORMAT = 1
_COARSE = 2.0**-8  # bfloat16 loses less than this of any feature; float16 more below about 1e-5, where it runs out of digits
_SERIAL = 32_768  # numbers that torch converts in the calling thread; for more it wakes others and waits, up to 10 ms on a busy machine


class Uncached(RunError):
    """The features cannot be kept on disk. `given` is the reason; nothing keeps a caller from training without the cache."""


def store_key(facts: Mapping[str, Any]) -> str:
    """64 hexadecimal digits that change with every fact, whatever their order. Facts are plain JSON values; tuples count as lists."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """64 hexadecimal digits of everything in the state dict: names, types, shapes and bits, wherever the tensors lie."""

    def one(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return json.dumps([name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(bits.data).hexdigest()])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter's lock
        lines = list(pool.map(one, sorted(module.state_dict().items())))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class FeatureStore:
    """Features by record key. Use it as a context manager, or call `close`.

    Args:
        root: the folder of all stores; it is made where it is missing.
        facts: what the features depend on besides the record, as plain JSON values.
        shape: [N, D] of every record. A varying number of tokens is refused.
        dtype: float16 is the finer one and ends at 65,504; bfloat16 reaches as far as float32.
        max_bytes: that all stores under `root` may take together.

    Raises:
        Uncached: the folder cannot be written.
    """

    def __init__(
        self,
        root: Path,
        facts: Mapping[str, Any],
        *,
        shape: tuple[int, int],
        dtype: Literal["float16", "bfloat16"] = "float16",
        max_bytes: int,
    ) -> None:
        self.root, self.shape, self.max_bytes = root, shape, max_bytes
        self.dtype: torch.dtype = getattr(torch, dtype)
        num_words = -(-shape[0] * shape[1] // 4)
        rows_per_shard = max(1, _shards.SHARD_BYTES // (8 * num_words))
        layout = {"format": _FORMAT, "shape": list(shape), "dtype": dtype, "num_words": num_words, "rows_per_shard": rows_per_shard}
        self.facts = {"layout": layout, "facts": dict(facts)}
        self.folder = root / store_key(self.facts)[:24]
        with _disk_errors(self.folder):
            root.mkdir(parents=True, exist_ok=True)
            with self._root_lock():  # no store is deleted between its opening and its first lock
                (self.folder / "users").mkdir(parents=True, exist_ok=True)
                self._use = FileLock(self.folder / "users" / f"{uuid.uuid4().hex}.lock", thread_local=False)
                self._use.acquire()
                _dated(self.folder / "facts.json", self.facts)
                self._evict(0)
            self._shards = _shards.Shards(self.folder, num_words, rows_per_shard)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the store anew."""
        layout = self.facts["layout"]
        options = {"shape": self.shape, "dtype": layout["dtype"], "max_bytes": self.max_bytes}
        return partial(FeatureStore, **options), (self.root, self.facts["facts"])

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; from now on the store may be deleted to make room."""
        self._shards.close()
        self._use.release()
        with suppress(OSError):
            Path(self._use.lock_file).unlink(missing_ok=True)

    @property
    def record_bytes(self) -> int:
        """What one record takes on disk, its line in the index included."""
        return self._shards.row_bytes + _shards.INDEX_BYTES

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The positions of keys that are not stored, each key once. What is stored is checked against its checksum the first time that this
        object is asked for it, at the speed of memory; damaged records count as missing, with a warning."""
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            first.setdefault(_shards.digest(key), position)
        digests = list(first)
        damaged = self._shards.damaged(self._shards.find(digests))
        if len(damaged):
            log.warning("%s: %d records were changed or damaged on disk; they are encoded again", self.folder, len(damaged))
        rows = self._shards.find(digests)
        return [position for position, row in zip(first.values(), rows.tolist(), strict=True) if row < 0]

    def fill(self, keys: Sequence[str], encode: Encode, *, batch_size: int, progress: Callable[[int, int], object] | None = None) -> int:
        """Encode and store what is missing; gives how many records that were.

        Each batch is on disk before the next one is asked for. A second process that fills the same store waits, and encodes only what is
        missing then. After a kill the same keys in the same order are cut into the same batches.

        Args:
            keys: of the records that will be read, with any repeats.
            encode: is handed all batches at once, so that it can decode ahead of the encoder.
            progress: called as (done, total).

        Raises:
            Uncached: the records would exceed the limit or the disk, or features lie outside the range of float16.
            PartError: the encoder gave another shape, or numbers that are not finite.
        """
        if not self.missing(keys):
            return 0
        with self._filling():
            self._shards.reload()
            todo = self.missing(keys)
            self._make_room(len(todo))
            batches = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
            done = 0
            for batch, values in zip(batches, encode(batches), strict=True):
                names = [keys[position] for position in batch]
                words = self._words(values, names)
                with _disk_errors(self.folder):
                    self._shards.append([_shards.digest(name) for name in names], words)
                done += len(batch)
                if progress is not None:
                    progress(done, len(todo))
            self._shards.reload()
        return len(todo)

    def rows(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Where the records lie, for `read`: looked up and checked once, not in every epoch.

        Raises:
            DataError: a record is not stored.
        """
        absent = self.missing(keys)
        if absent:
            raise DataError(
                f"{self.folder}: {len(absent)} records are not stored: {shown([keys[position] for position in absent], 3)}",
                "keys that were filled in",
                "fill the store with the same keys first",
            )
        return self._shards.find([_shards.digest(key) for key in keys])

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Records at rows [B], in any order and with any repeats: [B, N, D] float32, by one gather from the memory map."""
        size = self.shape[0] * self.shape[1]
        numbers = self._shards.take(rows).view(np.int16)[:, :size]  # the last word may hold more
        rounded = torch.from_numpy(numbers).view(self.dtype)
        values = torch.empty(len(rows), size)
        step = max(1, _SERIAL // size)
        for start in range(0, len(rows), step):
            values[start : start + step] = rounded[start : start + step]
        return values.reshape(len(rows), *self.shape)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _words(self, values: Tensor, names: Sequence[str]) -> _shards.Words:
        """Features [b, N, D] rounded to the store's type, as rows of words [b, W]."""
        if tuple(values.shape) != (len(names), *self.shape):
            raise PartError(
                f"features of shape {list(values.shape)} for {len(names)} records",
                f"{[len(names), *self.shape]}: the cache holds records of one shape",
                "pool the tokens, or turn the feature cache off",
            )
        exact = values.detach().to("cpu", torch.float32).reshape(len(names), -1)
        rounded = exact.to(self.dtype)
        finite = rounded.isfinite().all(dim=1)
        if not finite.all():
            worst = int(finite.int().argmin())
            if not exact[worst].isfinite().all():
                fix = "encode in float32 or bfloat16"
                raise PartError(f"record {names[worst]}: the encoder gave NaN or infinity", "finite features", fix)
            reach = f"{float(exact[worst].abs().max()):,.0f}"
            raise Uncached(f"record {names[worst]}: a feature of size {reach} is beyond float16", "at most 65,504", "cache in bfloat16")
        size, lost = float(exact.norm()), float((exact - rounded).norm())
        if lost > _COARSE * size:
            given = f"records {names[0]} …: features as small as {size / exact.numel() ** 0.5:.0e} lose {lost / size:.1%} in float16"
            raise Uncached(given, "features that lose no more than in bfloat16", "cache in bfloat16")
        words = np.zeros((len(names), self._shards.num_words), dtype=np.uint64)
        words.view(np.int16)[:, : rounded.shape[1]] = rounded.view(torch.int16).numpy()
        return words

    @contextmanager
    def _filling(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".filling")
        with _disk_errors(self.folder):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("another process fills the feature cache %s: waiting for it", self.folder)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # ── the limit of bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _root_lock(self) -> FileLock:
        return FileLock(self.root / ".lock")

    def _make_room(self, num_records: int) -> None:
        """Take the space of this many further records, so that other processes count it from now on."""
        with _disk_errors(self.folder), self._root_lock():
            needed = self._shards.reserved(num_records)
            what = f"{num_records:,} more records of {self.record_bytes:,} bytes take {_readable(needed)}"
            limit = f"at most {_readable(self.max_bytes)} for all feature caches together"
            whole = _bytes_in(self.folder) + needed
            if whole > self.max_bytes:
                raise Uncached(
                    f"{what}, with which this cache alone has {_readable(whole)}", limit, "raise the limit, or cache pooled features"
                )
            over = self._evict(needed)
            if over > 0:
                raise Uncached(
                    f"{what}, {_readable(over)} more than the caches in use leave", limit, "raise the limit, or wait for other runs"
                )
            free = shutil.disk_usage(self.root).free
            if free < needed:
                fix = "free disk space, or set EYEGRAFT_CACHE to another disk"
                raise Uncached(f"{what}, and the disk of {self.root} has {_readable(free)} left", "room for them", fix)
            self._shards.reserve(num_records)

    def _evict(self, needed: int) -> int:
        """Delete least recently used stores that nobody has open until `needed` bytes fit; gives the bytes that are still too many."""
        others = sorted((folder for folder in self.root.iterdir() if folder.is_dir() and folder != self.folder), key=_last_used)
        sizes = {folder: _bytes_in(folder) for folder in others}
        over = sum(sizes.values()) + _bytes_in(self.folder) + needed - self.max_bytes
        for folder in others:
            if over > 0 and _delete_unused(folder):
                over -= sizes[folder]
                log.info("deleted the least recently used feature cache %s (%s)", folder, _readable(sizes[folder]))
        return over


def _last_used(folder: Path) -> int:
    """When a store was last opened; 0 for what a killed deletion left."""
    facts = folder / "facts.json"
    return facts.stat().st_mtime_ns if facts.exists() else 0


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


def _delete_unused(folder: Path) -> bool:
    """Delete a store unless a process has it open. The root lock is held, so nobody opens it meanwhile."""
    for path in folder.glob("users/*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return False
    doomed = folder.with_name(f"{uuid.uuid4().hex}.deleted")
    try:
        folder.rename(doomed)  # a kill in the middle must not leave half a store under its name
    except OSError:  # Windows: a file in it is open
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def _dated(path: Path, facts: Mapping[str, Any]) -> None:
    """Give a store's facts, written for whoever looks into the folder, the time of this opening."""
    if path.exists():
        os.utime(path)
    else:
        write_atomically(path, json.dumps(facts, indent=1, ensure_ascii=False), durable=False)


def _readable(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes} bytes"


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full or cannot be written is a reason to work without the cache, not to stop."""
    try:
        yield
    except Uncached:
        raise
    except (OSError, RunError) as error:
        raise Uncached(f"the feature cache {folder} cannot be written: {error}", "a folder with room", "set EYEGRAFT_CACHE") from error
