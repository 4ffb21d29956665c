"""Samples to batches. The order, and every random change of a picture, is a pure function of (seed, epoch, position in the data)."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eyegraft.data.inputs import Reader
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import EyegraftError
from eyegraft.types import IGNORE, Batch, Sample

T = TypeVar("T")
Key = tuple[Sequence[int], Sequence[int | None]]
"""The positions of a batch, and the seed of each one's augmentation."""


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on the process, the platform or the number of workers)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


MEGABATCH = 50
"""Batches that are sorted by length together: the more, the less padding, and the less random their company."""


def batch_order(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, grouped: bool = False) -> list[list[int]]:
    """The shuffled batches of one epoch, each a list of positions. One of them may be smaller.

    In the first epoch the batch with the longest sample comes first, so that memory runs out at once or never.

    Args:
        grouped: samples of about the same length share a batch: shuffled samples are sorted within some `MEGABATCH` batches, and the
            batches shuffled. Of equal lengths nothing is grouped.
    """
    order = list(range(len(lengths)))
    drawing = random.Random(derived_seed("order", seed, epoch))
    drawing.shuffle(order)
    grouped = grouped and len(set(lengths)) > 1
    if grouped:
        span = batch_size * max(1, min(MEGABATCH, len(order) // (4 * batch_size)))  # of few samples, groups differ from epoch to epoch
        order = [place for start in range(0, len(order), span) for place in sorted(order[start : start + span], key=lambda i: -lengths[i])]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if grouped:
        drawing.shuffle(batches)
    if epoch == 0 and len(batches) > 1:
        longest = max(range(len(batches)), key=lambda n: (len(batches[n]) == batch_size, max(lengths[i] for i in batches[n])))
        batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def shares_of(counts: Mapping[str, int], weights: Mapping[str, float], temperature: float | None) -> dict[str, int]:
    """How many of the samples of an epoch are of each task; together as many as there are rows.

    Args:
        counts: rows of each task; one without rows gives none.
        weights: of those that are learned.
        temperature: None: by weight alone; T: by weight · rows^(1 / T) (Arivazhagan et al. 2019, arXiv 1907.05019).
    """
    scaled = {name: weight * (counts[name] ** (1 / temperature) if temperature else 1) for name, weight in weights.items() if counts[name]}
    total, rows = sum(scaled.values()), sum(counts[name] for name in scaled)
    exact = {name: rows * value / total for name, value in scaled.items()}
    found = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[: rows - sum(found.values())]:  # what rounding down left over
        found[name] += 1
    return found


def mixed(places: Mapping[str, Sequence[int]], shares: Mapping[str, int], *, seed: int, epoch: int) -> list[int]:
    """The positions of one epoch of several tasks: each goes through its rows in a fresh shuffle, again where it has too few of them.

    Args:
        places: task -> the positions of its rows.
        shares: task -> how many samples it gives.
    """
    order: list[int] = []
    for name, count in shares.items():
        drawing, drawn = random.Random(derived_seed("mixture", seed, epoch, name)), list[int]()
        while len(drawn) < count:
            rows = list(places[name])
            drawing.shuffle(rows)
            drawn += rows
        order += drawn[:count]
    return order


def batches_in_order(count: int, batch_size: int) -> list[list[int]]:
    """Positions 0 to count - 1 in batches, as validation and evaluation read them."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def share_of(batch: Sequence[T], rank: int, world: int) -> Sequence[T]:
    """What one of several processes takes of a batch: shares lie side by side, as even as they can be; of a small batch some are empty."""
    return batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]


def rows_of(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """As few rows of at most `limit` tokens as texts of these lengths fit in; a longer text has a row to itself.

    Each text, the longest first, goes to the row with the fewest tokens: rows come out about equally long, where first fit would fill all
    but the last.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for count in range(max(1, math.ceil(sum(lengths) / limit)), len(lengths)):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for place in order:
            emptiest = filled.index(min(filled))
            rows[emptiest].append(place)
            filled[emptiest] += lengths[place]
        if all(size <= limit or len(row) == 1 for row, size in zip(rows, filled, strict=True)):
            return rows
    return [[place] for place in order]


def packed(batch: Batch, limit: int, *, image_tokens: int) -> list[Batch]:
    """A batch in parts, the texts of each of which share a row of at most `limit` tokens; together they cost what the batch does.

    Args:
        image_tokens: that stand before each text in its row.
    """
    lengths = (batch.text_mask.sum(1) + image_tokens).tolist()
    return [replace(batch.take(row), packed=True) for row in rows_of(lengths, limit)]


def taken(rows: Sequence[Any], positions: Sequence[int]) -> Sequence[Any]:
    """The items at these positions; of rows that are made when asked for, a selection that still is."""
    return rows.take(positions) if hasattr(rows, "take") else [rows[place] for place in positions]


class Examples:
    """Samples, what each of them asks and teaches, and how they are read.

    Args:
        encoded: in the order of the samples.
        readers: modality -> how it is read.
        weights, temperature: of several tasks that share an epoch (see `shares_of`).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoded: Sequence[Encoded],
        readers: Mapping[str, Reader],
        *,
        weights: Mapping[str, float] | None = None,
        temperature: float | None = None,
    ) -> None:
        self.samples, self.encoded, self.readers = samples, encoded, readers
        self._places: dict[str, list[int]] = {name: [] for name in weights or ()}
        for place, sample in enumerate(samples if weights else ()):
            self._places[str(sample.task)].append(place)
        counts = {name: len(places) for name, places in self._places.items()}
        self.shares = shares_of(counts, weights, temperature) if weights else {}

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, batch_size: int, *, seed: int, epoch: int, grouped: bool = False) -> Sequence[Any]:
        """The shuffled batches of one epoch, each a list of positions: see `batch_order`, and of rows of patch stores `PatchRows.order`."""
        if isinstance(self.samples, PatchRows):
            return self.samples.order(batch_size, seed=seed, epoch=epoch)
        lengths = [len(text.input_ids) for text in self.encoded]
        if not self.shares:
            return batch_order(lengths, batch_size, seed=seed, epoch=epoch, grouped=grouped)
        drawn = mixed(self._places, self.shares, seed=seed, epoch=epoch)
        batches = batch_order([lengths[place] for place in drawn], batch_size, seed=seed, epoch=epoch, grouped=grouped)
        return [[drawn[number] for number in batch] for batch in batches]

    def batch(self, positions: Sequence[int], seeds: Sequence[int | None], pad_id: int) -> Batch:
        """The samples at these positions, texts right-padded.

        Args:
            seeds: of the augmentation of each, None for none.
        """
        samples = taken(self.samples, positions)
        input_ids, mask, labels, targets = _padded(taken(self.encoded, positions), pad_id)
        inputs = {modality: reading.read(samples, seeds) for modality, reading in self.readers.items()}
        present = {modality: reading.present(samples) for modality, reading in self.readers.items()}
        return Batch(inputs, input_ids, mask, labels, samples, targets, present)


def _padded(taught: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input ids, mask and labels [B, T], targets [B, K]."""
    if isinstance(taught, Targets):
        nothing = torch.zeros((len(taught), 0), dtype=torch.long)
        return nothing, nothing.bool(), nothing, torch.from_numpy(taught.values)
    width = max(len(encoded.input_ids) for encoded in taught)
    input_ids = torch.full((len(taught), width), pad_id)
    labels = torch.full((len(taught), width), IGNORE)
    mask = torch.zeros((len(taught), width), dtype=torch.bool)
    for row, encoded in enumerate(taught if width else ()):  # label tasks have no text: nothing to do for each row
        length = len(encoded.input_ids)
        input_ids[row, :length] = torch.tensor(encoded.input_ids, dtype=torch.long)
        labels[row, :length] = torch.tensor(encoded.labels, dtype=torch.long)
        mask[row, :length] = True
    return input_ids, mask, labels, torch.tensor([encoded.target for encoded in taught], dtype=torch.float32).view(len(taught), -1)


class _Batches(Dataset["Batch | EyegraftError"]):
    """Whole batches by (positions, seeds). A fault is handed through as a value: the loader would rebuild an exception of a worker from its
    traceback as text, where the user finds neither the sample nor the fix.
    """

    def __init__(self, examples: Examples, pad_id: int) -> None:
        self.examples, self.pad_id = examples, pad_id

    def __getitem__(self, key: Key) -> Batch | EyegraftError:
        try:
            return self.examples.batch(*key, self.pad_id)
        except EyegraftError as error:
            return error


def _as_is(batch: Any) -> Any:
    return batch


def load_batches(
    examples: Examples,
    batches: Sequence[Sequence[int]],
    *,
    pad_id: int,
    seed: tuple[object, ...] | None = None,
    start: int = 0,
    num_workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The given batches, in order.

    Args:
        seed: what the augmentation of a sample depends on, besides its position; None turns augmentation off.
        start: the batches before it are passed over.
        num_workers: processes that decode ahead, where there is anything to decode; the batches are the same with any number.
        share: (number of this process, how many train together): of each batch that process's share alone (see `share_of`); a batch of
            which it has none is left out.

    Raises:
        DataError: a picture vanished or was damaged since it was checked; names the sample, with any number of workers.
    """
    random = seed is not None and any(reading.random for reading in examples.readers.values())

    def seeds(batch: Sequence[int]) -> Sequence[int | None]:
        return [derived_seed("augment", *(seed or ()), place) for place in batch] if random else [None] * len(batch)

    mine = [share_of(batch, *share) for batch in batches]
    keys = [(batch, seeds(batch)) for batch in mine[start:] if len(batch)]
    if not isinstance(examples.samples, PatchRows):
        yield from load_keys(examples, keys, pad_id=pad_id, num_workers=num_workers)
        return
    if not any(reads_patches(reading, examples.samples) for reading in examples.readers.values()):
        yield from (examples.batch(*key, pad_id) for key in keys)  # nothing large: all of it comes from a cache, or is the same for all
        return
    with examples.samples.ahead(batches, start) as reach:  # of all processes: they share the memory that the system reads into
        known = iter(keys)
        for number, batch in enumerate(mine[start:], start):
            reach(number)
            if len(batch):
                yield examples.batch(*next(known), pad_id)


def reads_patches(reading: Reader, rows: PatchRows) -> bool:
    """Whether a reader takes these rows' patches from the disk, and not only a few numbers beside them."""
    asked = getattr(reading, "reads_patches", None)
    return asked is not None and bool(asked(rows))


def load_keys(examples: Examples, keys: Sequence[Key], *, pad_id: int, num_workers: int = 0) -> Iterator[Batch]:
    """As `load_batches`, with the augmentation seed of every sample given: batches of (positions, seeds)."""
    slow = any(reading.slow for reading in examples.readers.values())
    loader: DataLoader[Any] = DataLoader(
        _Batches(examples, pad_id),
        batch_size=None,  # the items of this data set are batches
        sampler=keys,
        collate_fn=_as_is,
        num_workers=num_workers if slow else 0,  # what needs no decoding is slower through another process
        generator=torch.Generator().manual_seed(0),  # else the loader draws its workers' seed from the global generator
    )
    for batch in loader:
        if isinstance(batch, EyegraftError):
            raise batch
        yield batch
