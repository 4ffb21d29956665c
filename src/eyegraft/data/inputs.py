"""What an encoder takes of a sample: one reader a modality, chosen by the encoder's own spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eyegraft.config import Augmentation
from eyegraft.data.augment import augment, is_random
from eyegraft.data.columns import ColumnReader, learn_columns
from eyegraft.data.features import FeatureStore
from eyegraft.data.images import open_image, to_pixels
from eyegraft.data.maps import MapReader
from eyegraft.data.panorama import fault_of, finest, refusal, render, shrunk
from eyegraft.data.patch_inputs import PatchReader, learn_patches, with_statistics
from eyegraft.data.patch_rows import STORE_DIGITS, PatchRows, row_of
from eyegraft.data.patches import to_patches
from eyegraft.data.words import has_words, pad_ids, to_ids
from eyegraft.errors import DataError, EyegraftError
from eyegraft.types import ColumnSpec, ImageSpec, Inputs, PatchSpec, Sample, TextSpec, Tokens
from eyegraft.views import Views

Fit = Literal["encoder", "crop", "squash", "pad"]


class Reader(Protocol):
    """Reads one modality of a batch.

    Attributes:
        slow: whether reading is worth a process of its own.
        random: whether what is read depends on the seeds.
    """

    slow: bool
    random: bool

    def present(self, samples: Sequence[Sample]) -> Tensor:
        """[B] bool, which samples have this modality."""

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        """What the encoder takes for these samples; something blank where one lacks the modality.

        Args:
            seeds: of each one's augmentation, None for none.

        Raises:
            DataError: names the sample that cannot be read.
        """

    def blank(self) -> Inputs:
        """The same for one sample without content."""


Spec = ImageSpec | TextSpec | PatchSpec | ColumnSpec


def reader(spec: Spec, *, fit: Fit = "encoder", augmentation: Augmentation | None = None) -> Reader:
    """The reader behind a spec.

    Args:
        fit: how a picture is brought to the encoder's size, where not as its weights say.
        augmentation: of pictures.
    """
    if isinstance(spec, PatchSpec):
        return PatchReader(spec)
    if isinstance(spec, ColumnSpec):
        return ColumnReader(spec)
    if isinstance(spec, TextSpec):
        return TextReader(spec)
    pictures = ImageReader(spec if fit == "encoder" else replace(spec, fit=fit), augmentation)
    return MapReader(pictures) if spec.classes else pictures


def _each(samples: Sequence[Sample], seeds: Sequence[int | None], read: Callable[[Sample, int | None], Any]) -> list[Any]:
    """Read sample by sample; an error names its sample."""
    items = []
    for sample, seed in zip(samples, seeds, strict=True):
        try:
            items.append(read(sample, seed))
        except EyegraftError as error:
            raise type(error)(f"sample {sample.id!r}: {error.given}", error.expected, error.fix) from error
        except OSError as error:
            given = f"sample {sample.id!r}: image {sample.image}: {error}"
            raise DataError(given, "a file that can be read", "restore the file") from error
    return items


class ImageReader:
    """Pictures from files, decoded, augmented and transformed.

    With `views` in the spec they are panoramas, and what is read gets V behind B. Each view is drawn at the size that the encoder takes, so
    that nothing is cropped or squashed a second time. Augmentation changes the panorama, so that all its views change alike.
    """

    slow = True

    def __init__(self, spec: ImageSpec, augmentation: Augmentation | None = None) -> None:
        self.spec = spec
        self.augmentation = augmentation if augmentation is not None and is_random(augmentation) else None
        self.random = self.augmentation is not None

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([sample.image is not None for sample in samples], dtype=torch.bool)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        return self._stacked(_each(samples, seeds, self._read))

    def _read(self, sample: Sample, seed: int | None) -> Any:
        if sample.record is not None:
            given, fix = (
                "a row of a patch store, and this encoder reads pictures",
                "give an encoder of patches, such as vision_encoder=patch_cnn",
            )
            raise DataError(given, "a picture file", fix)
        if self.spec.views is not None:
            return self._views(sample.image, self.spec.views, seed)
        if sample.image is None:
            return self._transformed(Image.new("RGB" if self.spec.channels == 3 else "L", (8, 8)))
        if self.augmentation is None or seed is None:
            return self._transformed(open_image(sample.image, self.spec.channels))
        side = math.ceil(max(self.spec.size) / self.spec.crop_fraction)  # what the transform needs of the short side
        picture = _shrunk(open_image(sample.image, self.spec.channels, target=(side, side)), 2 * side)
        return self._transformed(augment(picture, self.augmentation, seed))

    def _views(self, path: Path | None, views: Views, seed: int | None) -> Any:
        """[V, C, H, W], or of patches a mapping whose tensors start with V."""
        side = views.size
        size = self.spec.size if side is None else (side, side)
        if path is None:
            seen = np.zeros((views.num_views, *size, self.spec.channels), np.uint8)
        else:
            width = math.ceil(finest(views, size))  # a JPEG may be decoded smaller as long as it stays twice as fine as its finest view
            picture = open_image(path, self.spec.channels, target=(math.ceil(width / 2), width))
            if (wrong := fault_of(path))[0]:
                raise refusal(f"image {path}", wrong[1])
            if self.augmentation is not None and seed is not None:
                picture = augment(Image.fromarray(shrunk(picture, views, size)), self.augmentation, seed)
            seen = render(picture, views, size)
        exact = replace(self.spec, size=size, fit="squash")
        pictures = [Image.fromarray(view.squeeze(-1) if self.spec.channels == 1 else view) for view in seen]
        return self._stacked([self._transformed(picture, exact) for picture in pictures])

    def blank(self) -> Inputs:
        """Every pixel is the mean colour of the encoder's pretraining data (0 after normalisation)."""
        if self.spec.views is not None:
            item = self._views(None, self.spec.views, None)
        else:
            item = self._transformed(Image.new("RGB" if self.spec.channels == 3 else "L", tuple(reversed(self.spec.size))))
        return self._stacked([{**item, "pixels": torch.zeros_like(item["pixels"])} if isinstance(item, dict) else torch.zeros_like(item)])

    def _stacked(self, items: Sequence[Any]) -> Inputs:
        if isinstance(items[0], dict):
            return {key: torch.stack([item[key] for item in items]) for key in items[0]}  # patches: [B, N, P·P·C] and their mask
        return torch.stack(list(items))  # [B, C, H, W]

    def _transformed(self, picture: Image.Image, spec: ImageSpec | None = None) -> Any:
        spec = spec or self.spec
        return to_pixels(picture, spec) if spec.patch_size is None else to_patches(picture, spec)


def _shrunk(picture: Image.Image, short_side: int) -> Image.Image:
    """The picture with at most this short side: augmenting 12 megapixels takes a second, and the transform discards nearly all of them."""
    scale = short_side / min(picture.size)
    if scale >= 1:
        return picture
    size = (max(short_side, round(picture.width * scale)), max(short_side, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


class TextReader:
    """Words beside pictures, as token ids."""

    slow = random = False

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([has_words(sample.text) for sample in samples], dtype=torch.bool)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        return self._padded(_each(samples, seeds, lambda sample, _: to_ids(sample.text, self.spec)))

    def blank(self) -> Inputs:
        return self._padded([to_ids("", self.spec)])

    def _padded(self, items: Sequence[Any]) -> Inputs:
        return pad_ids(items, getattr(self.spec.tokenizer, "pad_token_id", None) or 0)


# ── what an encoder must know of the training split ──────────────────────────────────────────────────────────────────────────────


def learn_inputs(spec: Spec, train: Sequence[Sample], statistics_file: Path | None = None) -> dict[str, Any]:
    """What a spec must know of the training split, as plain data for `with_learned`; empty where that is nothing.

    Args:
        statistics_file: of the channels of patches (see `patch_statistics`); they are computed where there is none.

    Raises:
        PartError: the patches are another sensor's.
        DataError: patches of another size or with other maps, or statistics that are not this training split's.
    """
    if isinstance(spec, PatchSpec):
        return learn_patches(spec, train, statistics_file)
    return learn_columns(spec, train) if isinstance(spec, ColumnSpec) else {}


def with_learned(spec: Spec, learned: Mapping[str, Any]) -> Spec:
    """The spec with what `learn_inputs` found."""
    if isinstance(spec, PatchSpec) and learned:
        return with_statistics(spec, learned)
    if isinstance(spec, ColumnSpec) and learned:
        return replace(spec, statistics={name: tuple(pair) for name, pair in learned["statistics"].items()})
    return spec


# ── what stands in the place of an input ─────────────────────────────────────────────────────────────────────────────────────────


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
        self.store, self.rows, self.layout, self.plain, self.record, self.copies = store, dict(rows), layout, plain, record, copies
        self.random = copies > 0
        self._by_patch: dict[str, NDArray[np.int64]] = {}  # first digits of a patch store's identity -> the row here of each of its rows

    @property
    def num_records(self) -> int:
        return len(self.rows) + sum(int((places >= 0).sum()) for places in self._by_patch.values())

    def add(self, records: Sequence[str], rows: NDArray[np.int64], samples: Sequence[Sample]) -> None:
        """Further records, and where they lie. Those of patches are kept as one array: a name for each of millions takes a gigabyte."""
        if isinstance(samples, PatchRows):
            places = self._by_patch.setdefault(samples.store.identity[:STORE_DIGITS], np.full(len(samples.store), -1, dtype=np.int64))
            places[samples.rows] = rows
        else:
            self.rows.update(zip(records, rows.tolist(), strict=True))

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return self.plain.present(samples)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Tokens:
        values = self.store.read(self._rows(samples, seeds))  # [B, N, D]
        mask = torch.ones(values.shape[:2], dtype=torch.bool)
        return replace(self.layout, values=values, mask=mask, condition=None, auxiliary=None)  # those are of the blank one

    def _rows(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> NDArray[np.int64]:
        patches = self._by_patch.get(samples.store.identity[:STORE_DIGITS]) if isinstance(samples, PatchRows) else None
        if patches is not None and isinstance(samples, PatchRows):
            return _there(patches[samples.rows])
        # without a seed any of the copies serves: the first
        copies = [(seed or 0) % self.copies if self.copies else None for seed in seeds]
        return np.array([self._row(self.record(sample, copy)) for sample, copy in zip(samples, copies, strict=True)], dtype=np.int64)

    def _row(self, record: str) -> int:
        patches = self._by_patch.get(record[:STORE_DIGITS])
        return self.rows[record] if patches is None else int(_there(patches[row_of(record)]))

    def blank(self) -> Tokens:
        return self.layout.with_values(torch.zeros_like(self.layout.values))


def _there(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row -1, which stands for none, would be read as the last one."""
    if (rows < 0).any():
        raise KeyError(f"{int((rows < 0).sum())} rows of a patch store whose features were not stored")
    return rows


class ConstantReader:
    """The same tokens for every sample: a blank picture, encoded once."""

    slow = random = False

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.ones(len(samples), dtype=torch.bool)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Tokens:
        values, mask = self.tokens.values.expand(len(samples), -1, -1), self.tokens.mask.expand(len(samples), -1)
        return replace(self.tokens, values=values, mask=mask, condition=None, auxiliary=None)

    def blank(self) -> Tokens:
        return self.tokens


class AbsentReader(ConstantReader):
    """A modality that no sample has."""

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.zeros(len(samples), dtype=torch.bool)


def one_blank(readers: Mapping[str, Reader]) -> dict[str, Inputs]:
    """Blank inputs of one sample, as measurements of widths and token counts take them."""
    return {modality: reading.blank() for modality, reading in readers.items()}
