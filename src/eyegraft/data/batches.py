"""Samples to batches. The order, and every random change of a picture, is a pure function of (seed, epoch, position in the data)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eyegraft.config import Augmentation
from eyegraft.data.augment import augment, is_random
from eyegraft.data.images import open_image, to_pixels
from eyegraft.data.text import EncodedText
from eyegraft.types import IGNORE, Batch, ImageSpec, Sample

Item = tuple[Sample, torch.Tensor, EncodedText]


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
    """Decodes and transforms one sample at a time. A key is (position, seed of its augmentation or None)."""

    def __init__(
        self, samples: Sequence[Sample], texts: Sequence[EncodedText], image: ImageSpec, augmentation: Augmentation | None = None
    ) -> None:
        self.samples, self.texts, self.image = samples, texts, image
        self.augmentation = augmentation if augmentation is not None and is_random(augmentation) else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int | None]) -> Item:
        position, seed = key
        sample = self.samples[position]
        picture = open_image(sample.image, self.image.channels)
        if self.augmentation is not None and seed is not None:
            picture = augment(picture, self.augmentation, seed)
        return sample, to_pixels(picture, self.image), self.texts[position]


class Collate:
    """Items to a batch, texts right-padded. A class so that loader workers can be sent it."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Item]) -> Batch:
        width = max(len(text.input_ids) for _, _, text in items)
        input_ids = torch.full((len(items), width), self.pad_id)
        labels = torch.full((len(items), width), IGNORE)
        mask = torch.zeros((len(items), width), dtype=torch.bool)
        for row, (_, _, text) in enumerate(items):
            length = len(text.input_ids)
            input_ids[row, :length] = torch.tensor(text.input_ids)
            labels[row, :length] = torch.tensor(text.labels)
            mask[row, :length] = True
        pixels = torch.stack([pixels for _, pixels, _ in items])  # [B, C, H, W]
        return Batch({"image": pixels}, input_ids, mask, labels, [sample for sample, _, _ in items])


def load_batches(
    examples: Examples, batches: Sequence[Sequence[int]], *, pad_id: int, seed: tuple[object, ...] | None = None, num_workers: int = 0
) -> Iterator[Batch]:
    """The given batches, in order.

    Args:
        seed: what the augmentation of a sample depends on, besides its position; None turns augmentation off.
        num_workers: processes that decode ahead; the batches are the same with any number.
    """
    keys = [[(i, None if seed is None else derived_seed("augment", *seed, i)) for i in batch] for batch in batches]
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=keys,
        collate_fn=Collate(pad_id),
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),  # else the loader draws its workers' seed from the global generator
    )
    yield from loader
