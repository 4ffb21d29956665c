"""Samples to batches. The order, and every random change of a picture, is a pure function of (seed, epoch, position in the data)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eyegraft.data.inputs import Reader, unreadable
from eyegraft.data.text import Encoded
from eyegraft.errors import EyegraftError
from eyegraft.types import IGNORE, Batch, Sample

Item = tuple[Sample, dict[str, Any], Encoded]


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on the process, the platform or the number of workers)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def batch_order(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The shuffled batches of one epoch, each a list of positions. The last one may be smaller.

    In the first epoch the batch with the longest sample comes first, so that memory runs out at once or never.
    """
    order = list(range(len(lengths)))
    random.Random(derived_seed("order", seed, epoch)).shuffle(order)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if epoch == 0 and len(batches) > 1:
        longest = max(range(len(batches)), key=lambda n: (len(batches[n]) == batch_size, max(lengths[i] for i in batches[n])))
        batches[0], batches[longest] = batches[longest], batches[0]
    return batches


def batches_in_order(count: int, batch_size: int) -> list[list[int]]:
    """Positions 0 to count - 1 in batches, as validation and evaluation read them."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


class Examples(Dataset[Item]):
    """Reads one sample at a time. A key is (position, seed of its augmentation or None).

    Args:
        readers: modality -> how it is read.
        encoded: what each sample asks and teaches, in the order of the samples.
    """

    def __init__(self, samples: Sequence[Sample], encoded: Sequence[Encoded], readers: Mapping[str, Reader]) -> None:
        self.samples, self.encoded, self.readers = samples, encoded, readers

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int | None]) -> Item:
        position, seed = key
        sample = self.samples[position]
        try:
            return sample, {modality: reading.read(sample, seed) for modality, reading in self.readers.items()}, self.encoded[position]
        except EyegraftError as error:
            raise type(error)(f"sample {sample.id!r}: {error.given}", error.expected, error.fix) from error
        except OSError as error:
            raise unreadable(sample, error) from error


class Collate:
    """Items to a batch, texts right-padded. A class so that loader workers can be sent it."""

    def __init__(self, readers: Mapping[str, Reader], pad_id: int) -> None:
        self.readers, self.pad_id = readers, pad_id

    def __call__(self, items: Sequence[Item]) -> Batch:
        samples = [sample for sample, _, _ in items]
        taught = [encoded for _, _, encoded in items]
        width = max(len(encoded.input_ids) for encoded in taught)
        input_ids = torch.full((len(items), width), self.pad_id)
        labels = torch.full((len(items), width), IGNORE)
        mask = torch.zeros((len(items), width), dtype=torch.bool)
        for row, encoded in enumerate(taught if width else ()):  # label tasks have no text: nothing to do for each row
            length = len(encoded.input_ids)
            input_ids[row, :length] = torch.tensor(encoded.input_ids, dtype=torch.long)
            labels[row, :length] = torch.tensor(encoded.labels, dtype=torch.long)
            mask[row, :length] = True
        inputs = {modality: reading.stack([read[modality] for _, read, _ in items]) for modality, reading in self.readers.items()}
        present = {modality: torch.tensor([reading.present(sample) for sample in samples]) for modality, reading in self.readers.items()}
        targets = torch.tensor([encoded.target for encoded in taught], dtype=torch.float32).view(len(items), -1)  # [B, K]
        return Batch(inputs, input_ids, mask, labels, samples, targets, present)


class _Batches(Dataset["Batch | EyegraftError"]):
    """Whole batches by the keys of their items. A fault is handed through as a value: the loader would rebuild an exception of a worker
    from its traceback as text, where the user finds neither the sample nor the fix.
    """

    def __init__(self, examples: Examples, collate: Collate) -> None:
        self.examples, self.collate = examples, collate

    def __getitem__(self, keys: Sequence[tuple[int, int | None]]) -> Batch | EyegraftError:
        try:
            return self.collate([self.examples[key] for key in keys])
        except EyegraftError as error:
            return error


def _as_is(batch: Any) -> Any:
    return batch


def load_batches(
    examples: Examples, batches: Sequence[Sequence[int]], *, pad_id: int, seed: tuple[object, ...] | None = None, num_workers: int = 0
) -> Iterator[Batch]:
    """The given batches, in order.

    Args:
        seed: what the augmentation of a sample depends on, besides its position; None turns augmentation off.
        num_workers: processes that decode ahead, where there is anything to decode; the batches are the same with any number.

    Raises:
        DataError: a picture vanished or was damaged since it was checked; names the sample, with any number of workers.
    """
    keys = [[(i, None if seed is None else derived_seed("augment", *seed, i)) for i in batch] for batch in batches]
    return load_keys(examples, keys, pad_id=pad_id, num_workers=num_workers)


def load_keys(
    examples: Examples, keys: Sequence[Sequence[tuple[int, int | None]]], *, pad_id: int, num_workers: int = 0
) -> Iterator[Batch]:
    """As `load_batches`, with the augmentation seed of every sample given: batches of (position, seed or None)."""
    slow = any(reading.slow for reading in examples.readers.values())
    loader: DataLoader[Any] = DataLoader(
        _Batches(examples, Collate(examples.readers, pad_id)),
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
