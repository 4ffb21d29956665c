"""Maps that belong to one of some known classes (what a weather map shows): the picture and the class that its row names."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from eyegraft.errors import DataError, nearest, shown
from eyegraft.types import UNKNOWN, ImageSpec, Inputs, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from eyegraft.data.inputs import ImageReader

log = logging.getLogger(__name__)
COLUMN = "condition"
"""The column of `data.columns.meta` that names a map's class."""
_PREFIX, _SUFFIX = "wqa:", "_cropped"


def class_of(sample: Sample, classes: Sequence[str]) -> int:
    """The number of the class that a row names, `UNKNOWN` where it names none.

    A prefix `wqa:` says nothing, and of radar and surface charts the archive's file names leave out the `_cropped` of its folders.

    Raises:
        DataError: no class is called that.
    """
    named = sample.meta.get(COLUMN)
    if named is None or named == "" or (isinstance(named, float) and math.isnan(named)):  # an empty cell, as each kind of table has it
        return UNKNOWN
    number = _numbers(tuple(classes)).get(str(named).removeprefix(_PREFIX))
    if number is None:
        raise DataError(
            f"sample {sample.id!r}: {COLUMN} {named!r}",
            f"one of {shown(list(classes), 30)}, or nothing where it is not known",
            nearest(str(named).removeprefix(_PREFIX), classes) or "correct the row, or list the class under vision_encoder.classes",
        )
    return number


def _numbers(classes: tuple[str, ...]) -> Mapping[str, int]:
    """Every form of a name -> its number; where two classes differ by the suffix alone, each has its own form alone."""
    other = {name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else name + _SUFFIX: number for number, name in enumerate(classes)}
    return {**other, **{name: number for number, name in enumerate(classes)}}


def check_classes(spec: ImageSpec, samples: Sequence[Sample], split: str) -> None:
    """Look over the classes that rows name before anything is trained.

    Raises:
        DataError: counts and names those that are no class.
    """
    faults: list[DataError] = []
    names: Counter[str] = Counter()
    ids: list[str] = []
    told = 0
    for sample in samples:
        try:
            told += class_of(sample, spec.classes) != UNKNOWN
        except DataError as error:
            faults.append(error)
            names[str(sample.meta[COLUMN])] += 1
            ids.append(sample.id)
    if faults:
        counted = shown([f"{name!r} {count} times" for name, count in names.most_common()])
        given = f"{split}: {len(faults)} rows name a class that there is not: {counted}; samples {shown(ids)}"
        raise DataError(given, faults[0].expected, faults[0].fix)
    if samples and not told:
        log.warning("%s: no row names the class of its map; where they do, data.columns.meta must list %s", split, COLUMN)


class MapReader:
    """Pictures as another reader gives them, and the class of each as its row names it: {pixels, condition}."""

    slow = True

    def __init__(self, pictures: ImageReader | _Blanks) -> None:
        self.pictures, self.random = pictures, pictures.random
        self.spec: ImageSpec = pictures.spec

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return self.pictures.present(samples)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        pixels = self.pictures.read(samples, seeds)
        return self._told(pixels, [class_of(sample, self.spec.classes) for sample in samples])

    def blank(self) -> Inputs:
        """The mean colour, of which no class is known."""
        return self._told(self.pictures.blank(), [UNKNOWN])

    def hidden(self) -> MapReader:
        """The mean colour in place of every map, whose class is still told: it is no part of what is seen."""
        return MapReader(_Blanks(self.pictures))

    def _told(self, pixels: Any, classes: list[int]) -> Inputs:
        return {"pixels": pixels, "condition": torch.tensor(classes)}


class _Blanks:
    """A blank picture for every sample."""

    slow = random = False

    def __init__(self, pictures: ImageReader | _Blanks) -> None:
        self.spec: ImageSpec = pictures.spec
        self._pixels: Any = pictures.blank()

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.ones(len(samples), dtype=torch.bool)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        pixels: Inputs = self._pixels.expand(len(samples), *self._pixels.shape[1:])
        return pixels

    def blank(self) -> Inputs:
        pixels: Inputs = self._pixels
        return pixels
