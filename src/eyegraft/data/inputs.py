"""What an encoder takes of a sample: one reader a modality, chosen by the encoder's own spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image

from eyegraft.config import Augmentation
from eyegraft.data.augment import augment, is_random
from eyegraft.data.features import FeatureStore
from eyegraft.data.images import open_image, to_pixels
from eyegraft.data.patches import to_patches
from eyegraft.data.words import has_words, pad_ids, to_ids
from eyegraft.errors import DataError
from eyegraft.types import ImageSpec, Inputs, Sample, TextSpec, Tokens

Fit = Literal["encoder", "crop", "squash", "pad"]


class Reader(Protocol):
    """Reads one modality.

    Attributes:
        slow: whether reading is worth a process of its own.
    """

    slow: bool

    def present(self, sample: Sample) -> bool:
        """Whether the sample has this modality."""

    def read(self, sample: Sample, seed: int | None) -> Any:
        """The item of one sample; something blank where it lacks the modality.

        Args:
            seed: of its augmentation; None for none.
        """

    def stack(self, items: Sequence[Any]) -> Inputs:
        """Items to what the encoder takes."""


def reader(spec: ImageSpec | TextSpec, *, fit: Fit = "encoder", augmentation: Augmentation | None = None) -> Reader:
    """The reader behind a spec.

    Args:
        fit: how a picture is brought to the encoder's size, where not as its weights say.
        augmentation: of pictures.
    """
    if isinstance(spec, TextSpec):
        return TextReader(spec)
    return ImageReader(spec if fit == "encoder" else replace(spec, fit=fit), augmentation)


class ImageReader:
    """Pictures from files, decoded, augmented and transformed."""

    slow = True

    def __init__(self, spec: ImageSpec, augmentation: Augmentation | None = None) -> None:
        self.spec = spec
        self.augmentation = augmentation if augmentation is not None and is_random(augmentation) else None

    def present(self, sample: Sample) -> bool:
        return sample.image is not None

    def read(self, sample: Sample, seed: int | None) -> Any:
        if sample.image is None:
            return self._transformed(Image.new("RGB" if self.spec.channels == 3 else "L", (8, 8)))
        if self.augmentation is None or seed is None:
            return self._transformed(open_image(sample.image, self.spec.channels))
        side = math.ceil(max(self.spec.size) / self.spec.crop_fraction)  # what the transform needs of the short side
        picture = _shrunk(open_image(sample.image, self.spec.channels, target=(side, side)), 2 * side)
        return self._transformed(augment(picture, self.augmentation, seed))

    def blank(self) -> Any:
        """An item whose every pixel is the mean colour of the encoder's pretraining data (0 after normalisation)."""
        item = self._transformed(Image.new("RGB" if self.spec.channels == 3 else "L", tuple(reversed(self.spec.size))))
        if isinstance(item, dict):
            return {**item, "pixels": torch.zeros_like(item["pixels"])}
        return torch.zeros_like(item)

    def stack(self, items: Sequence[Any]) -> Inputs:
        if isinstance(items[0], dict):
            return {key: torch.stack([item[key] for item in items]) for key in items[0]}  # patches: [B, N, P·P·C] and their mask
        return torch.stack(list(items))  # [B, C, H, W]

    def _transformed(self, picture: Image.Image) -> Any:
        return to_pixels(picture, self.spec) if self.spec.patch_size is None else to_patches(picture, self.spec)


def _shrunk(picture: Image.Image, short_side: int) -> Image.Image:
    """The picture with at most this short side: augmenting 12 megapixels takes a second, and the transform discards nearly all of them."""
    scale = short_side / min(picture.size)
    if scale >= 1:
        return picture
    size = (max(short_side, round(picture.width * scale)), max(short_side, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


class TextReader:
    """Words beside pictures, as token ids."""

    slow = False

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec

    def present(self, sample: Sample) -> bool:
        return has_words(sample.text)

    def read(self, sample: Sample, seed: int | None) -> Any:
        return to_ids(sample.text, self.spec)

    def blank(self) -> Any:
        return to_ids("", self.spec)

    def stack(self, items: Sequence[Any]) -> Inputs:
        return pad_ids(items, getattr(self.spec.tokenizer, "pad_token_id", None) or 0)


class StoredReader:
    """What an encoder gave before, from the feature cache.

    Args:
        rows: record -> its row in the store.
        layout: tokens [1, N, D] that say how the stored values lie.
        plain: the reader that the features were made with.
        record: (sample, number of the augmented copy or None) -> the record that stands for it.
        copies: augmented copies of each sample; 0: none.
    """

    slow = False

    def __init__(
        self,
        store: FeatureStore,
        rows: Mapping[str, int],
        layout: Tokens,
        plain: Reader,
        record: Callable[[Sample, int | None], str],
        copies: int,
    ) -> None:
        self.store, self.rows, self.layout, self.plain, self.record, self.copies = store, rows, layout, plain, record, copies

    def present(self, sample: Sample) -> bool:
        return self.plain.present(sample)

    def read(self, sample: Sample, seed: int | None) -> int:
        copy = (seed or 0) % self.copies if self.copies else None  # without a seed any of them serves: the first
        return self.rows[self.record(sample, copy)]

    def stack(self, items: Sequence[int]) -> Tokens:
        values = self.store.read(np.array(items, dtype=np.int64))  # [B, N, D]
        return replace(self.layout, values=values, mask=torch.ones(values.shape[:2], dtype=torch.bool))


class ConstantReader:
    """The same tokens for every sample: a blank picture, encoded once."""

    slow = False

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def present(self, sample: Sample) -> bool:
        return True

    def read(self, sample: Sample, seed: int | None) -> None:
        return None

    def stack(self, items: Sequence[None]) -> Tokens:
        values, mask = self.tokens.values, self.tokens.mask
        return replace(self.tokens, values=values.expand(len(items), -1, -1), mask=mask.expand(len(items), -1))


class AbsentReader(ConstantReader):
    """A modality that no sample has."""

    def present(self, sample: Sample) -> bool:
        return False


def one_blank(readers: Mapping[str, Any]) -> dict[str, Inputs]:
    """Blank inputs of one sample, as measurements of widths and token counts take them."""
    return {modality: reading.stack([reading.blank()]) for modality, reading in readers.items()}


def unreadable(sample: Sample, error: OSError) -> DataError:
    return DataError(f"sample {sample.id!r}: image {sample.image}: {error}", "a file that can be read", "restore the file")
