"""The shared words of the house.

Shape legend, used everywhere:
    B batch, V views of one sample, C channels, H W pixels, N tokens, D width, T text length, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # `--help` and the data rooms read this file without paying for torch
    from torch import Tensor

IGNORE = -100
"""The label of a position that is not learned (the convention of PyTorch's cross entropy)."""


@dataclass(frozen=True)
class Sample:
    """One row of a prepared data set, before any pixel is decoded.

    Attributes:
        id: unique within its split; every message about the row names it.
        image: path of the image file.
        prompt: what is asked, or None where the task supplies it.
        references: acceptable answers; the first one is the training target. Empty at prediction time.
        group: rows of one group (case, panorama, advertiser, concept …) never cross splits.
        meta: further columns, kept for slices and reports.
    """

    id: str
    image: Path
    prompt: str | None = None
    references: tuple[str, ...] = ()
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSpec:
    """How pixels must be prepared for an encoder. It belongs to the weights and is never typed into a recipe.

    Attributes:
        size: (height, width) in pixels that the encoder takes.
        mean, std: per channel, for pixels scaled to [0, 1].
        interpolation: resampling filter.
        fit: `crop` resizes the short side to size / crop_fraction and cuts the centre, `squash` ignores the aspect ratio,
            `pad` keeps the whole image on a grey-128 ground.
        crop_fraction: used by `crop` only.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    fit: Literal["crop", "squash", "pad"] = "crop"
    crop_fraction: float = 1.0

    @property
    def channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class Tokens:
    """What encoders, connectors and fusions hand on.

    Attributes:
        values: [B, N, D].
        mask: [B, N] bool, True where the token is real.
        grid: (h, w) when the last h·w tokens lie on a grid, row by row.
        num_prefix: leading tokens that lie on no grid (class token, registers). Pooling by `cls` takes token 0.
        num_views: V when N runs over views of equal length, view by view.
    """

    values: Tensor
    mask: Tensor
    grid: tuple[int, int] | None = None
    num_prefix: int = 0
    num_views: int = 1

    def with_values(self, values: Tensor) -> Tokens:
        """The same layout around values [B, N, D'] of another width."""
        return replace(self, values=values)


@dataclass(frozen=True)
class Batch:
    """One step's worth of samples as tensors.

    Attributes:
        inputs: modality -> what its encoder takes; `image` is [B, C, H, W] float, normalised as the encoder's `ImageSpec` says.
        input_ids: [B, T] int64; prompt and target of text tasks for training, the prompt alone for generation; right-padded.
        text_mask: [B, T] bool, True where `input_ids` is real.
        labels: [B, T] int64, `IGNORE` where nothing is learned.
        samples: the rows that the tensors came from, in order.
    """

    inputs: Mapping[str, Tensor]
    input_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: Any) -> Batch:
        return replace(
            self,
            inputs={name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            input_ids=self.input_ids.to(device, non_blocking=True),
            text_mask=self.text_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

    def with_input(self, modality: str, values: Tensor) -> Batch:
        """The same samples with another input (blank, shuffled, occluded)."""
        return replace(self, inputs={**self.inputs, modality: values})


@dataclass(frozen=True)
class Output:
    """What a forward gives to objectives and tasks.

    Attributes:
        encoded: encoder tokens by modality, for objectives that read them.
        logits: [B, T', K], at the positions that `labels` covers.
        labels: [B, T'] int64 aligned with `logits` (already shifted: logits[t] predicts labels[t]).
    """

    encoded: Mapping[str, Tokens]
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Loss:
    """What an objective gives: the loss of step = sum(sums) / sum(counts), over all batches and processes of that step.

    Attributes:
        sums: [B] float32, the summed loss of each sample.
        counts: [B] float32, what it was summed over (learned tokens, or 1).
    """

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Scores:
    """The result of a metric room function.

    Attributes:
        corpus: name -> value over all samples (the number to report).
        per_sample: name -> one value per sample, for intervals and for finding the worst.
        signature: name -> how it was computed (version, tokenisation, smoothing).
        higher_is_better: name -> direction; a metric not named is better when higher.
    """

    corpus: Mapping[str, float]
    per_sample: Mapping[str, Sequence[float]]
    signature: Mapping[str, str]
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
