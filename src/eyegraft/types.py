"""The shared words of the house.

Shape legend, used everywhere:
    B batch, V views of one sample, C channels, H W pixels, N tokens, D width, T text length, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # `--help` and the data rooms read this file without paying for torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from eyegraft.views import Views

IGNORE = -100
"""The label of a position that is not learned (the convention of PyTorch's cross entropy)."""

UNKNOWN, UNTOLD = -1, -2
"""In place of a map's class: a row that names none, whose class an encoder may guess; and a class that the encoder must do without."""


@dataclass(frozen=True)
class Sample:
    """One row of a prepared data set, before any pixel is decoded.

    Attributes:
        id: unique within its split; every message about the row names it.
        image: path of the image file; None where the row has no picture.
        prompt: what is asked, or None where the task supplies it.
        references: acceptable answers, the first one the training target; of a label task, the labels. Empty at prediction time.
        group: rows of one group (case, panorama, advertiser, concept …) never cross splits.
        meta: further columns, kept for slices and reports.
        text: what stands beside the picture as a second input (words read from it, say); empty where there is none.
        sha256: of the image file's bytes; where pictures are not read, of the path as the table has it; empty where there is no picture.
        record: the row of the patch store `image` that stands in place of a picture file.
        turns: (question, answer) pairs of a conversation about the picture, in order. `prompt` is then the last question, and the last
            answer the first of `references`.
        choices: the only answers that are allowed.
        task: which of the recipe's tasks the row is of; None: any.
    """

    id: str
    image: Path | None
    prompt: str | None = None
    references: tuple[str, ...] = ()
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    sha256: str = ""
    record: int | None = None
    turns: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    task: str | None = None


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
        patch_size: side of a patch in pixels, for encoders that take a picture as a sequence of patches in its own aspect ratio (NaFlex,
            Tschannen et al. 2025); `max_patches` is then the length of that sequence, and `size` and `fit` are not used.
        views: the `eyegraft.views.Views` of a panorama that the encoder is to see, each as one picture; None: the picture itself.
        classes: names of the kinds of map that the encoder tells apart; then it is given {pixels, condition}, see `Inputs`.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    fit: Literal["crop", "squash", "pad"] = "crop"
    crop_fraction: float = 1.0
    patch_size: int | None = None
    max_patches: int | None = None
    views: Views | None = None
    classes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class TextSpec:
    """How words must be prepared for a text encoder. It belongs to the weights.

    Attributes:
        tokenizer: the encoder's own.
        max_tokens: longer texts are cut there.
        prefix: what stands before every text, such as "query: ".
    """

    tokenizer: Any
    max_tokens: int
    prefix: str = ""


@dataclass(frozen=True)
class PatchSpec:
    """How patches of many channels must be prepared for an encoder.

    Attributes:
        sensor: the `eyegraft.sensors.Sensor` whose bands, in order, are the channels of `pixels`; they are z-scored with its statistics,
            which the training split gives (see `eyegraft.data.inputs.learn_inputs`).
        size: (height, width) in pixels.
        extra_channels: further maps of that size that are no bands (sun zenith angle, elevation, land-sea mask), in order.
        extra_statistics: mean and standard deviation of those that are z-scored; the others are taken as they are.
        time_and_place: whether the encoder itself reads when and where a patch was seen.
    """

    sensor: Any
    size: tuple[int, int]
    extra_channels: tuple[str, ...] = ()
    extra_statistics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    time_and_place: bool = False


@dataclass(frozen=True)
class ColumnSpec:
    """How further columns of a row (time, place, land cover, a price) become the numbers of one vector, in this order.

    Attributes:
        numbers: each z-scored, and one more number that is 1 where it is missing.
        cyclic: name -> period; sine and cosine, both 0 where it is missing.
        categories: name -> how many there are (class numbers from 0) or their names; a one-hot vector, all 0 where it is none of them.
        statistics: of the numbers, from the training split.
    """

    numbers: tuple[str, ...] = ()
    cyclic: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, int | tuple[str, ...]] = field(default_factory=dict)
    statistics: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.numbers, *self.cyclic, *self.categories)

    @property
    def width(self) -> int:
        """K, the numbers that a row becomes."""
        counts = [classes if isinstance(classes, int) else len(classes) for classes in self.categories.values()]
        return 2 * len(self.numbers) + 2 * len(self.cyclic) + sum(counts)


@dataclass(frozen=True)
class Tokens:
    """What encoders, connectors and fusions hand on.

    Attributes:
        values: [B, N, D].
        mask: [B, N] bool, True where the token is real.
        grid: (h, w) when the last h·w tokens, of each view, lie on a grid, row by row.
        num_prefix: leading tokens, of each view, that lie on no grid (class token, registers). Pooling by `cls` takes the first.
        num_views: V when N runs over views of equal length, view by view.
        directions: of views, [N, 7] float32, the same for every sample: where each token looks (see `eyegraft.views.token_places`).
        weights: of a gated fusion: modality -> [B] its share, between 0 and 1.
        condition: [B, K] logits of the class of map that the encoder itself sees in the picture, where its classifier was asked.
        auxiliary: [B] float32, a loss of the encoder's own, weighted, that training adds to any objective's (the balance of experts).
    """

    values: Tensor
    mask: Tensor
    grid: tuple[int, int] | None = None
    num_prefix: int = 0
    num_views: int = 1
    directions: Tensor | None = None
    weights: Mapping[str, Tensor] | None = None
    condition: Tensor | None = None
    auxiliary: Tensor | None = None

    def with_values(self, values: Tensor) -> Tokens:
        """The same layout around values [B, N, D'] of another width."""
        return replace(self, values=values)

    def take(self, places: Sequence[int]) -> Tokens:
        """The tokens of the samples at these places alone."""
        taken: Tokens = taken_from(self, list(places))
        return taken


Inputs = Any
"""What one encoder takes for a batch: a tensor, a mapping of tensors, or `Tokens` that were encoded before and only need passing on.

An image is [B, C, H, W] float, normalised as the encoder's `ImageSpec` says, or, of patches, {pixels: [B, N, P·P·C], mask: [B, N] bool,
grid: [B, 2] int64 (h, w)}. Of a panorama's views each of these has V behind B. Of a map of known classes it is {pixels: [B, C, H, W],
condition: [B] int64, the class that the row names, `UNKNOWN` where it names none, `UNTOLD` where the encoder must do without; mask:
[B, C, H, W] bool, True where it may look, everywhere without it}.

A text is {input_ids: [B, T] int64, mask: [B, T] bool}. A patch of many channels is
{pixels: [B, C, H, W] float32, z-scored; mask: [B, C, H, W] bool, True where a pixel was measured; extra: [B, E, H, W] float32; time: [B, 4]
and latlon: [B, 4] float32, as `eyegraft.sensors` makes them}. Without `mask` all was measured; without `time` or `latlon` they are unknown.
Columns are [B, K] float32, as the encoder's `ColumnSpec` says.
"""


@dataclass(frozen=True)
class Batch:
    """One step's worth of samples as tensors.

    Attributes:
        inputs: modality -> what its encoder takes (see `Inputs`).
        input_ids: [B, T] int64; prompt and target of text tasks for training, the prompt alone for generation; right-padded. T = 0 without.
        text_mask: [B, T] bool, True where `input_ids` is real.
        labels: [B, T] int64, `IGNORE` where nothing is learned.
        samples: the rows that the tensors came from, in order.
        targets: [B, K] float32, the classes or numbers of label tasks, NaN where unknown. K = 0 without.
        present: modality -> [B] bool, False where the sample lacks it; a modality not named is there in every row.
        packed: whether all texts share one row of the language model, where none sees another.
    """

    inputs: Mapping[str, Inputs]
    input_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    samples: Sequence[Sample]
    targets: Tensor
    present: Mapping[str, Tensor] = field(default_factory=dict)
    packed: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: Any) -> Batch:
        moved = {
            name: moved_to(getattr(self, name), device) for name in ("inputs", "present", "input_ids", "text_mask", "labels", "targets")
        }
        return replace(self, **moved)

    def take(self, places: Sequence[int]) -> Batch:
        """The samples at these places alone."""
        tensors = {
            name: taken_from(getattr(self, name), list(places))
            for name in ("inputs", "present", "input_ids", "text_mask", "labels", "targets")
        }
        return replace(self, samples=[self.samples[place] for place in places], **tensors)

    def with_input(self, modality: str, values: Inputs) -> Batch:
        """The same samples with another input (blank, shuffled, occluded)."""
        return replace(self, inputs={**self.inputs, modality: values})

    def without(self, modality: str) -> Batch:
        """The same samples, none of which has this modality."""
        absent = self.targets.new_zeros(len(self)).bool()
        return replace(self, present={**self.present, modality: absent})


def moved_to(value: Any, device: Any) -> Any:
    """Tensors, mappings of them and `Tokens` on another device."""
    if isinstance(value, Mapping):
        return {name: moved_to(item, device) for name, item in value.items()}
    if isinstance(value, Tokens):
        names = ("directions", "condition", "auxiliary")
        others = {name: moved_to(item, device) for name in names if (item := getattr(value, name)) is not None}
        return replace(value, values=moved_to(value.values, device), mask=moved_to(value.mask, device), **others)
    return value.to(device, non_blocking=True)


def taken_from(value: Any, places: list[int]) -> Any:
    """These rows of tensors, mappings of them and `Tokens`."""
    if isinstance(value, Mapping):
        return {name: taken_from(item, places) for name, item in value.items()}
    if isinstance(value, Tokens):
        names = ("weights", "condition", "auxiliary")
        others = {name: taken_from(item, places) for name in names if (item := getattr(value, name)) is not None}
        return replace(value, values=value.values[places], mask=value.mask[places], **others)
    return value[places]


@dataclass(frozen=True)
class TokenLogits:
    """Logits [M, K] at the M learned tokens of a batch, made a few at a time: with a large vocabulary they would fill the memory.

    Attributes:
        hidden: [M, D], what the output layer reads there, sample by sample.
        rows: [M] int64, the sample of each.
        layer: [m, D] -> [m, K].
    """

    hidden: Tensor
    rows: Tensor
    layer: Callable[[Tensor], Tensor]

    def all(self) -> Tensor:
        """[M, K] at once."""
        return self.layer(self.hidden)


@dataclass(frozen=True)
class Output:
    """What a forward gives to objectives and tasks.

    Attributes:
        encoded: encoder tokens by modality, for objectives that read them.
        tokens: what the head read, after connectors and fusion.
        logits: [B, T', K] or `TokenLogits` at the positions that `labels` covers, or [B, K] of a label head.
        labels: [B, T'] or [M] int64 aligned with `logits` (already shifted: logits[t] predicts labels[t]), or [B, K] float32 targets.
    """

    encoded: Mapping[str, Tokens]
    tokens: Tokens
    logits: Tensor | TokenLogits
    labels: Tensor


@dataclass(frozen=True)
class Loss:
    """What an objective gives: the loss of step = sum(sums) / sum(counts), over all batches and processes of that step.

    Attributes:
        sums: [B] float32, the summed loss of each sample.
        counts: [B] float32, what it was summed over (learned tokens, or 1).
        notes: name -> [B] or [B, …] float32, what else is worth knowing of each sample, summed and divided as the loss is. Single numbers
            are written beside it; an objective's `after_step` is given all.
    """

    sums: Tensor
    counts: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """The result of a metric room function.

    Attributes:
        corpus: name -> value over all samples (the number to report).
        per_sample: name -> one value per sample, for intervals and for finding the worst.
        signature: name -> how it was computed (version, tokenisation, smoothing).
        higher_is_better: name -> direction; a metric not named is better when higher.
        statistics: of corpus values that are no mean over samples (AUROC, F1): name -> the value over the samples at these indices, repeats
            allowed, NaN where it is undefined. Intervals are drawn from it.
        undirected: names that are better neither high nor low: a bias is best at zero.
    """

    corpus: Mapping[str, float]
    per_sample: Mapping[str, Sequence[float]]
    signature: Mapping[str, str]
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    statistics: Mapping[str, Callable[[NDArray[np.int64]], float]] = field(default_factory=dict)
    undirected: frozenset[str] = frozenset()
