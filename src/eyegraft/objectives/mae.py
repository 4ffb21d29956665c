"""Masked autoencoding (He et al. 2022): most of a picture is hidden, and what is seen must tell what was there. Needs no labels.

Cells, one for each token of the encoder's grid, are hidden at random. A light transformer reads the tokens of the cells that are seen, a
learned token in place of each that is hidden, and the class token; it answers with the pixels of every cell. How pixels are hidden:

| encoder           | what it is given in place of a hidden cell                | what the tokens of other cells know of it |
|-------------------|-----------------------------------------------------------|-------------------------------------------|
| `clay`            | nothing was measured there: no token looks at it          | nothing                                   |
| `patch_cnn`       | nothing was measured there: each band's mean              | that it is hidden                         |
| `patch_perceiver` | nothing may be read there: no latent looks at it          | nothing                                   |
| of plain pictures | the mean colour (SimMIM, Xie et al. 2022)                 | that it is of the mean colour             |

Where an encoder's tokens lie on no grid, as latents do not, the decoder asks them for each of the cells that it reads. An encoder of maps
of known classes may be asked for the class too (`condition_weight`), of maps whose class it was not told.

Encoders see as many cells as before: what is saved is labels, not time. Extra maps (elevation, sun zenith angle), time and place are known
everywhere, are not hidden, and are not to be answered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from eyegraft.config import Fraction, Positive, Strict
from eyegraft.errors import PartError
from eyegraft.objectives._classes import asked, classes_of
from eyegraft.objectives._pixels import MODALITY, layout, measured_pixels
from eyegraft.types import UNTOLD, Batch, Loss, Output, Tokens

_ASIDE = "mae"
"""Where a batch keeps what the encoders must not see, beside their inputs."""


class Config(Strict):
    """Attributes:
    mask_ratio: share of the cells with anything measured that is hidden; at least one is hidden and one is seen.
    normalise_targets: pixels of each cell less their mean, divided by their standard deviation, as the paper found best for pictures. It
        takes away how bright or warm a cell is as a whole: set it to false where levels are what is learned afterwards.
    loss: of a pixel: its squared error, or the absolute one.
    decoder_dim, decoder_depth, decoder_heads: of the transformer that answers; it is left behind with the stage.
    condition_weight: w; the loss is (1 - w) times that of the pixels and w times the cross-entropy of the map's class. 0 asks for no class.
    untold: share of a batch's maps whose class is hidden from the encoder, rounded up; these alone are asked, and count so much the more.
        The others are told their class, and teach the encoder what it means. In validation all are asked.
    """

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    normalise_targets: bool = True
    loss: Literal["l2", "l1"] = "l2"
    decoder_dim: Positive = 128
    decoder_depth: Positive = 2
    decoder_heads: Positive = 4
    condition_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    untold: Fraction = 0.5

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Config:
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_heads={self.decoder_heads} does not divide decoder_dim={self.decoder_dim}")
        if self.condition_weight and not self.untold:
            raise ValueError("condition_weight with untold=0: a class that the encoder was told is no question")
        return self


class Cells:
    """A picture of `size` cut into `grid` cells as even as they can be: pixel row r belongs to row floor(r · h / H) of cells."""

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        self.size, self.grid = size, grid
        (rows, self.real_rows), (columns, self.real_columns) = (_lines(*axis) for axis in zip(size, grid, strict=True))
        self.rows, self.columns = rows, columns  # [h, kh] and [w, kw]

    def __len__(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_pixels(self) -> int:
        """Of the largest cell."""
        return self.rows.shape[1] * self.columns.shape[1]

    def of(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, C·kh·kw], smaller cells filled up with pixels that `real` knows."""
        found = maps[:, :, self.rows.to(maps.device)][..., self.columns.to(maps.device)]  # [B, C, h, kh, w, kw]
        cells: Tensor = found.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
        return cells

    def real(self, measured: Tensor) -> Tensor:
        """Where a pixel was measured, [B, C, H, W] bool -> [B, N, C·kh·kw], without those that only fill up."""
        inside = self.real_rows[:, None, :, None] & self.real_columns[None, :, None, :]  # [h, w, kh, kw]
        inside = inside.flatten(0, 1).flatten(1).repeat(1, measured.shape[1])  # [N, C·kh·kw]
        return self.of(measured) & inside.to(measured.device)

    def spread(self, chosen: Tensor) -> Tensor:
        """[B, N] of cells -> [B, 1, H, W] of their pixels."""
        axes = zip(self.size, self.grid, strict=True)
        rows, columns = (torch.arange(side, device=chosen.device) * count // side for side, count in axes)
        return chosen.view(-1, 1, *self.grid)[:, :, rows][..., columns]


def _lines(side: int, count: int) -> tuple[Tensor, Tensor]:
    """The pixel lines of each cell along one side, [count, longest], and which of them are its own."""
    starts = -(-torch.arange(count + 1) * side // count)  # rounded up
    lengths = starts.diff()
    steps = torch.arange(max(int(lengths.max()), 1))
    return (starts[:-1, None] + steps).clamp(max=side - 1), steps < lengths[:, None]


class Decoder(nn.Module):
    """Tokens [B, P + N, in_dim] and which cells are hidden [B, N] -> what the pixels of every cell are, [B, N, out_dim].

    Args:
        num_prefix: P, tokens that lie on no grid.
    """

    def __init__(self, in_dim: int, out_dim: int, num_prefix: int, num_cells: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.project = nn.Linear(in_dim, dim)
        self.hidden_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(num_prefix + num_cells, dim) * 0.02)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.norm, self.last = nn.LayerNorm(dim), nn.Linear(dim, out_dim)

    def forward(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        seen = tokens.mask & ~nn.functional.pad(hidden, (self.num_prefix, 0))  # [B, P + N]
        values = torch.where(seen.unsqueeze(-1), self.project(tokens.values), self.hidden_token) + self.positions
        answered: Tensor = self.last(self.norm(self.layers(values)[:, self.num_prefix :]))
        return answered


class LatentDecoder(nn.Module):
    """Tokens [B, M, in_dim] that lie on no grid -> what the pixels of every cell are, [B, N, out_dim]. Each cell asks them by its place."""

    def __init__(self, in_dim: int, out_dim: int, num_cells: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(in_dim, dim)
        self.positions = nn.Parameter(torch.randn(num_cells, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.last = nn.LayerNorm(dim), nn.Linear(dim, out_dim)

    def forward(self, tokens: Tokens, hidden: Tensor) -> Tensor:
        """Which cells were hidden the tokens know, and are not told again."""
        read = self.project(tokens.values)
        real = tokens.mask | ~tokens.mask.any(1, keepdim=True)  # of a sample without a picture all, for attention to nothing is not finite
        values = self.positions.expand(len(read), -1, -1)
        for layer in self.layers:
            values = layer(values, read, memory_key_padding_mask=~real)
        answered: Tensor = self.last(self.norm(values))
        return answered


class MAE(nn.Module):
    """Mean error over the hidden pixels that were measured, in float32, and the class of maps. A sample counts 1, or 0 where fewer than two
    cells of it have anything measured: then nothing can be hidden and something seen."""

    reads = (MODALITY,)
    cells: Cells
    decoder: Decoder | LatentDecoder
    classes: nn.Linear

    def __init__(
        self,
        mask_ratio: float,
        normalise_targets: bool,
        loss: str,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        condition_weight: float,
        untold: float,
    ) -> None:
        super().__init__()
        self.mask_ratio, self.normalise_targets, self.loss = mask_ratio, normalise_targets, loss
        self.condition_weight, self.untold = condition_weight, untold
        self._decoder = {"dim": decoder_dim, "depth": decoder_depth, "heads": decoder_heads}

    def attach(self, model: Any) -> None:
        encoder, tokens = model.encoders[MODALITY], layout(model, "mae")
        grid = tokens.grid or getattr(encoder, "cells", None)
        if grid is None or grid[0] * grid[1] < 2:
            raise PartError(
                f"objective mae with an encoder that gives {grid or 'no'} cells a picture",
                "a grid of two cells or more: some are hidden, some are seen",
                "choose a finer grid (vision_encoder.grid=kernel3 or resize72 of Clay), or another encoder",
            )
        spec = encoder.spec
        self.cells = Cells(spec.size, grid)
        channels = spec.channels if hasattr(spec, "channels") else len(spec.sensor.bands)
        out_dim = channels * self.cells.num_pixels
        if tokens.grid is not None:
            self.decoder = Decoder(encoder.token_dim, out_dim, tokens.num_prefix, len(self.cells), **self._decoder)
        else:
            self.decoder = LatentDecoder(encoder.token_dim, out_dim, len(self.cells), **self._decoder)
        if self.condition_weight:
            self._attach_classes(encoder)

    def _attach_classes(self, encoder: Any) -> None:
        known = getattr(encoder.spec, "classes", ())
        if not known:
            raise PartError(
                f"objective mae with condition_weight={self.condition_weight:g} and an encoder that knows no classes of pictures",
                "an encoder of maps of known classes",
                "set objective.condition_weight=0, or vision_encoder=patch_perceiver",
            )
        self.classes = nn.Linear(encoder.token_dim, len(known))

    def counts(self, batch: Batch) -> Tensor:
        return (self._cells_with_pixels(measured_pixels(batch)[1]).sum(1) > 1).float()

    def _cells_with_pixels(self, measured: Tensor) -> Tensor:
        """[B, N]"""
        return self.cells.real(measured).any(2)

    def prepare(self, batch: Batch) -> Batch:
        """Hide cells from the encoder."""
        pixels, measured = measured_pixels(batch)
        hidden = self._hidden(self._cells_with_pixels(measured))  # [B, N]
        unseen = self.cells.spread(hidden)  # [B, 1, H, W]
        given = batch.inputs[MODALITY]
        seen = {**given, "mask": measured & ~unseen} if isinstance(given, Mapping) else torch.where(unseen, 0, given)
        aside = {"pixels": pixels, "measured": measured, "hidden": hidden}
        if self.condition_weight:
            classes, told = classes_of(batch), self._told(len(batch), hidden.device)
            seen = {**dict(seen), "condition": classes.where(told, UNTOLD)}
            aside |= {"class": classes.where(~told, UNTOLD), "share": (~told).float().mean()}
        return batch.with_input(MODALITY, seen).with_input(_ASIDE, aside)

    def _told(self, count: int, device: Any) -> Tensor:
        """[B] bool, by chance; at least one is not told, so that every batch asks something."""
        asked_of = math.ceil(self.untold * count) if self.training else count
        return torch.rand(count, device=device).argsort().argsort() >= asked_of

    def _hidden(self, cells: Tensor) -> Tensor:
        """Which of the cells [B, N] that have pixels to hide: the share `mask_ratio` of them, by chance."""
        there = cells.sum(1)  # [B]
        number = torch.minimum((there * self.mask_ratio).round().clamp(min=1), there - 1)
        rank = torch.rand(cells.shape, device=cells.device).masked_fill(~cells, 2.0).argsort(1).argsort(1)
        return rank < number.unsqueeze(1)

    def forward(self, output: Output, batch: Batch) -> Loss:
        aside = batch.inputs[_ASIDE]
        hidden, measured = aside["hidden"], self.cells.real(aside["measured"])
        targets = self.cells.of(aside["pixels"]).float().where(measured, 0.0)  # [B, N, P]
        if self.normalise_targets:
            targets = _normalised(targets, measured)
        answered = self.decoder(output.encoded[MODALITY], hidden).float()
        wanted = measured & hidden.unsqueeze(-1)
        away = answered - targets
        errors = (away.square() if self.loss == "l2" else away.abs()).where(wanted, 0.0).sum((1, 2))
        pixels, counts = errors / wanted.sum((1, 2)).clamp(min=1), hidden.any(1).float()
        return self._with_classes(pixels, counts, output.encoded[MODALITY], aside) if self.condition_weight else Loss(pixels, counts)

    def _with_classes(self, pixels: Tensor, counts: Tensor, tokens: Tokens, aside: Mapping[str, Tensor]) -> Loss:
        """(1 - w) pixels + w classes. Each map that is asked stands for those of its batch that were told their class."""
        latents = tokens.values[:, tokens.num_prefix :].mean(1)  # what the prefix holds is the class itself
        losses, right = (found * counts / aside["share"] for found in asked(self.classes(latents), aside["class"]))
        weight = self.condition_weight
        notes = {"pixel_loss": pixels, "condition_loss": losses, "condition_accuracy": right}
        return Loss((1 - weight) * pixels + weight * losses, counts, notes)


def _normalised(targets: Tensor, measured: Tensor) -> Tensor:
    """Pixels of each cell [B, N, P] less their mean, by their standard deviation, over what was measured of it."""
    number = measured.sum(2, keepdim=True).clamp(min=1)
    centred = (targets - targets.sum(2, keepdim=True) / number).where(measured, 0.0)
    return centred / (centred.square().sum(2, keepdim=True) / number + 1e-6).sqrt()


def build(config: Config) -> MAE:
    return MAE(**config.model_dump())
