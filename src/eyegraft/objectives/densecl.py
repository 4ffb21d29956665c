"""Dense contrast between the overlapping parts of neighbouring views of a panorama (DenseCL, Wang et al. 2021, arXiv 2011.09157).

A cell of one view must find the place that it looks at in the next view among the other places of the batch: InfoNCE over cosines, after a
projection head. Of the paper's loss this is the dense half. Where the paper takes the most similar cell of the other view as the match, the
match is known here by angle (see `_overlaps.py`). In place of a queue filled by a moving average, the negatives are the other places of the
batch that look elsewhere: none that looks nearly the same way in the same panorama, and none of another row of that panorama (another
question about it, perhaps turned by augmentation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Positive, Rate, Strict
from eyegraft.objectives._overlaps import Overlaps, overlaps_of, spread
from eyegraft.objectives._pixels import MODALITY, present
from eyegraft.types import Batch, Loss, Output, Sample


class Config(Strict):
    """Attributes:
    temperature: the lower, the more the hardest negatives count. The paper takes 0.2.
    hidden_dim, out_dim: of the projection head, which is left behind with the stage.
    cells_per_panorama: matches that are drawn of each panorama for a step; every one of them is compared with all of the batch. None: all.
    same_place_degrees: places of one panorama that look less than this apart are no negatives of each other; None: the distance of two
        neighbouring cells where they are farthest apart.
    """

    temperature: Rate = 0.07
    hidden_dim: Positive = 2048
    out_dim: Positive = 128
    cells_per_panorama: Annotated[int, Field(ge=2)] | None = 64
    same_place_degrees: Annotated[float, Field(ge=0, lt=180)] | None = None


class DenseCL(nn.Module):
    """- log of the share that the right place has among all places that a cell is compared with, mean over the cells of each panorama.

    A panorama counts 1, or 0 without a picture. What it is compared with are the panoramas of its own batch, also where several batches
    make a step (`gradient_accumulation`).
    """

    reads = (MODALITY,)
    statistics_of_batches = True
    overlaps: Overlaps
    head: nn.Sequential
    same_place_degrees: float

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def attach(self, model: Any) -> None:
        config, width = self.config, model.encoders[MODALITY].token_dim
        self.overlaps = overlaps_of(model, "densecl")
        self.head = nn.Sequential(nn.Linear(width, config.hidden_dim), nn.ReLU(), nn.Linear(config.hidden_dim, config.out_dim))
        chosen = config.same_place_degrees
        self.same_place_degrees = self.overlaps.cell_degrees if chosen is None else chosen

    def counts(self, batch: Batch) -> Tensor:
        return present(batch)

    def forward(self, output: Output, batch: Batch) -> Loss:
        there = present(batch)
        tokens = output.encoded[MODALITY]
        if not there.any():
            return Loss(tokens.values.float().sum((1, 2)) * 0, there)
        seen = there.bool()
        first, second = (cells[seen] for cells in self.overlaps(tokens))  # [B', P, D]
        chosen = self._chosen().to(first.device)
        asked, known = (self.head(cells[:, chosen]).float() for cells in (first, second))  # [B', S, d]
        same = same_panorama([sample for sample, here in zip(batch.samples, seen.tolist(), strict=True) if here]).to(first.device)
        with torch.autocast(first.device.type, enabled=False):
            losses = contrast(asked, known, self._excluded(same, chosen), self.config.temperature)
        notes = self.overlaps.likeness(first, second)
        return Loss(spread(losses, seen), there, {name: spread(values, seen) for name, values in notes.items()})

    def _chosen(self) -> Tensor:
        """The matches of this step, [S]: the same of every panorama."""
        number = self.config.cells_per_panorama
        return torch.arange(len(self.overlaps)) if number is None else torch.randperm(len(self.overlaps))[:number].sort().values

    def _excluded(self, same: Tensor, chosen: Tensor) -> Tensor:
        """Which places are no negatives of a cell, [B', S, B', S] bool, the match itself among them.

        Args:
            same: [B', B'] bool, rows of the same panorama.
        """
        looks = self.overlaps.directions[chosen]
        near = looks @ looks.mT > math.cos(math.radians(self.same_place_degrees))
        near = near | torch.eye(len(looks), dtype=torch.bool, device=looks.device)
        own = torch.eye(len(same), dtype=torch.bool, device=same.device)
        return torch.where(own[:, None, :, None], near[None, :, None, :], same[:, None, :, None])


def contrast(asked: Tensor, known: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    """InfoNCE of cells [B, S, d] and the places that they look at [B, S, d], mean over the cells of each panorama: [B].

    Args:
        excluded: [B, S, B, S] bool, what is no negative.
    """
    asked, known = F.normalize(asked, dim=-1), F.normalize(known, dim=-1)
    right = (asked * known).sum(-1) / temperature  # [B, S]
    logits = (asked.flatten(0, 1) @ known.flatten(0, 1).mT / temperature).view(excluded.shape)
    others = logits.masked_fill(excluded, -math.inf).flatten(2)
    every = torch.cat([right.unsqueeze(2), others], dim=2)  # the right one is never excluded
    return (every.logsumexp(2) - right).mean(1)


def same_panorama(samples: Sequence[Sample]) -> Tensor:
    """[B, B] bool, whether two rows are of the same picture."""
    names = [sample.sha256 or str(sample.image or sample.id) for sample in samples]
    numbers = torch.tensor([names.index(name) for name in names])
    return numbers[:, None] == numbers[None, :]


def build(config: Config) -> DenseCL:
    return DenseCL(config)
