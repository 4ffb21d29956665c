"""Samples to batches. The order, and every random change of a picture, is a pure function of (seed, epoch, position in the data)."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from eyegraft.config import Augmentation
from eyegraft.data.augment import augment, is_random
from eyegraft.data.images import open_image, to_pixels
from eyegraft.data.text import EncodedText
from eyegraft.errors import DataError, EyegraftError
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
        try:
            return sample, self._pixels(sample, seed), self.texts[position]
        except EyegraftError as error:
            raise type(error)(f"sample {sample.id!r}: {error.given}", error.expected, error.fix) from error
        except OSError as error:
            raise DataError(
                f"sample {sample.id!r}: image {sample.image}: {error}", "a file that can be read", "restore the file"
            ) from error

    def _pixels(self, sample: Sample, seed: int | None) -> torch.Tensor:
        if self.augmentation is None or seed is None:
            return to_pixels(open_image(sample.image, self.image.channels), self.image)
        side = math.ceil(max(self.image.size) / self.image.crop_fraction)  # what the transform needs of the short side
        picture = _shrunk(open_image(sample.image, self.image.channels, target=(side, side)), 2 * side)
        return to_pixels(augment(picture, self.augmentation, seed), self.image)


def _shrunk(picture: Image.Image, short_side: int) -> Image.Image:
    """The picture with at most this short side: augmenting 12 megapixels takes a second, and the transform discards nearly all of them."""
    scale = short_side / min(picture.size)
    if scale >= 1:
        return picture
    size = (max(short_side, round(picture.width * scale)), max(short_side, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


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
        num_workers: processes that decode ahead; the batches are the same with any number.

    Raises:
        DataError: a picture vanished or was damaged since it was checked; names the sample, with any number of workers.
    """
    keys = [[(i, None if seed is None else derived_seed("augment", *seed, i)) for i in batch] for batch in batches]
    loader: DataLoader[Any] = DataLoader(
        _Batches(examples, Collate(pad_id)),
        batch_size=None,  # the items of this data set are batches
        sampler=keys,
        collate_fn=_as_is,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(0),  # else the loader draws its workers' seed from the global generator
    )
    for batch in loader:
        if isinstance(batch, EyegraftError):
            raise batch
        yield batch
