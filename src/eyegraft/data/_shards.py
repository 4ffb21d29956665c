"""Records of one fixed shape on disk: raw shards that are mapped into memory, and an index of keys and checksums.

values-0000.bin …    rows of little-endian 64-bit words: the fp16 or bf16 numbers of one record [N, D], row by row, zeros behind the last
index.bin            for each row in order: 16 bytes of the SHA-256 of its key, 8 bytes of checksum over its words

Rows are only added behind the last one, values first. A row counts when its checksum fits, so nothing need be flushed in a special order:
whatever a kill, a power cut or another hand leaves torn is simply not there. Files may be longer than what is written (reserved space).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 24
_NEW, _GOOD, _BAD = 0, 1, 2
INDEX_BYTES = 24

Words = NDArray[np.uint64]


def digest(key: str) -> bytes:
    """The 16 bytes that stand for a key in the index."""
    return hashlib.sha256(key.encode()).digest()[:16]


def _checksums(words: Words) -> Words:
    """[B, W] -> [B]: the words times fixed odd numbers, added modulo 2^64. It runs at the speed of memory, and no change of one word, such
    as a flipped bit, leaves it as it was, for odd numbers have inverses there."""
    odd = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(words @ odd, dtype=np.uint64)


class Shards:
    """The files of one folder.

    Args:
        folder: exists; the files are made by `reserve`.
        num_words: 64-bit words of a record.
        rows_per_shard: rows that one file of values holds.
    """

    def __init__(self, folder: Path, num_words: int, rows_per_shard: int) -> None:
        self.folder, self.num_words, self.rows_per_shard = folder, num_words, rows_per_shard
        self.row_bytes = 8 * num_words
        self._state = np.zeros(0, dtype=np.int8)  # of each row: _NEW, _GOOD or _BAD
        self._rows: dict[bytes, int] = {}
        self._count = 0
        self._sums: Words = np.zeros(0, dtype=np.uint64)
        self._maps: list[Words] = []
        self.reload()

    def reload(self) -> None:
        """See what this or another process has added."""
        index = self._index()
        used: NDArray[np.intp] = np.flatnonzero(index[:, 0] | index[:, 1])
        self._count = int(used[-1]) + 1 if len(used) else 0
        self._sums = index[: self._count, 2].copy()
        self._maps = [self._map(path) for path, _ in self._files(self._count)]
        self._state = np.pad(self._state, (0, max(0, self._count - len(self._state))))
        lengths = np.array([len(words) for words in self._maps], dtype=np.int64)
        shard, local = np.divmod(used, self.rows_per_shard)
        there = used[(local < lengths[shard]) & (self._state[used] != _BAD)]
        names = np.ascontiguousarray(index[there, :2]).view("V16").ravel().tolist()
        self._rows = dict(zip(names, there.tolist(), strict=True))  # of two rows with one key the later one replaced a damaged one

    def find(self, digests: Sequence[bytes]) -> NDArray[np.int64]:
        """The row of each record, -1 where there is none."""
        return np.array([self._rows.get(name, -1) for name in digests], dtype=np.int64)

    def damaged(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these rows are not what was written. They are forgotten. A row is looked at once in the life of this object, and in the
        order of the files: what was not in memory is read at the disk's full speed, before batches ask for it at random."""
        new = np.unique(rows)
        new = new[new >= 0]
        new = new[self._state[new] == _NEW]
        step = max(1, _CHUNK_BYTES // self.row_bytes)
        for chunk in (new[start : start + step] for start in range(0, len(new), step)):
            fits = _checksums(self.take(chunk)) == self._sums[chunk]
            self._state[chunk] = np.where(fits, _GOOD, _BAD)
        bad: NDArray[np.int64] = new[self._state[new] == _BAD]
        if len(bad):
            self._rows = {name: row for name, row in self._rows.items() if self._state[row] != _BAD}
        return bad

    def take(self, rows: NDArray[np.int64]) -> Words:
        """[B] -> [B, W], one gather for each shard touched."""
        if len(self._maps) == 1:
            return np.take(self._maps[0], rows, axis=0)
        shard, local = np.divmod(rows, self.rows_per_shard)
        out = np.empty((len(rows), self.num_words), dtype=np.uint64)
        for number in np.unique(shard):
            here = shard == number
            out[here] = self._maps[number][local[here]]
        return out

    def reserved(self, num_more: int) -> int:
        """Bytes by which `reserve` would lengthen the files."""
        return sum(max(0, size - _size(path)) for path, size in self._plan(num_more))

    def reserve(self, num_more: int) -> None:
        """Lengthen the files so that this many further rows fit: every process that adds up sizes sees them at once."""
        for path, size in self._plan(num_more):
            with path.open("ab") as file:
                file.truncate(max(size, _size(path)))

    def append(self, digests: Sequence[bytes], words: Words) -> None:
        """Write rows for which space is reserved; readers see them after `reload`. One process at a time may do this."""
        written = 0
        while written < len(words):
            shard, local = divmod(self._count + written, self.rows_per_shard)
            part = words[written : written + self.rows_per_shard - local]
            _write(self._path(shard), local * self.row_bytes, part)
            written += len(part)
        names = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
        _write(self.folder / "index.bin", self._count * INDEX_BYTES, np.column_stack([names, _checksums(words)]))
        self._count += len(words)

    def close(self) -> None:
        self._maps = []

    def _index(self) -> Words:
        path = self.folder / "index.bin"
        values = np.fromfile(path, dtype="<u8", count=_size(path) // INDEX_BYTES * 3) if path.exists() else np.zeros(0, dtype="<u8")
        return values.reshape(-1, 3)

    def _map(self, path: Path) -> Words:
        rows = _size(path) // self.row_bytes
        if not rows:
            return np.zeros((0, self.num_words), dtype=np.uint64)
        return np.memmap(path, dtype="<u8", mode="r", shape=(rows, self.num_words)).view(np.ndarray)

    def _path(self, shard: int) -> Path:
        return self.folder / f"values-{shard:04d}.bin"

    def _files(self, num_rows: int) -> Iterator[tuple[Path, int]]:
        for shard, first in enumerate(range(0, num_rows, self.rows_per_shard)):
            yield self._path(shard), min(self.rows_per_shard, num_rows - first) * self.row_bytes

    def _plan(self, num_more: int) -> list[tuple[Path, int]]:
        total = self._count + num_more
        return [(self.folder / "index.bin", total * INDEX_BYTES), *self._files(total)]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _write(path: Path, offset: int, words: Words) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(words, dtype="<u8").data)
