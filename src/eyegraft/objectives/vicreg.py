"""VICReg between the overlapping parts of neighbouring views of a panorama (Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906).

Two views see the same place from two angles: what the encoder says of it in one should be what it says in the other (invariance), features
should differ between places (variance) and not repeat each other (covariance). With x, y [N, D] the N matched cells of a batch, expanded,

    invariance = mean (x - y)²
    variance   = mean over D of relu(1 - sqrt(var x + 1e-4)), mean of both branches
    covariance = sum of the squared off-diagonal covariances / D, mean of both branches
    loss       = 25 invariance + 25 variance + covariance

all of it in float32. The two means over the branches are those of the authors' own version for the cells of feature maps (VICRegL, arXiv
2210.01571). Algorithm 1 of the first paper sums over the branches (`variance_weight=50 covariance_weight=2` gives that), and its published
code sums the covariance alone (`covariance_weight=2`).

Cells are matched by angle (see `_overlaps.py`), and their tokens are resampled before they are expanded. Class tokens are not used.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyegraft.config import Positive, Rate, Strict
from eyegraft.objectives._overlaps import Overlaps, overlaps_of, spread
from eyegraft.objectives._pixels import MODALITY, present
from eyegraft.types import Batch, Loss, Output


class Config(Strict):
    """Attributes:
    invariance_weight, variance_weight, covariance_weight: of the three terms.
    expander: widths of the layers behind the encoder, the last of them D; none: the encoder's tokens themselves. It is left behind with the
        stage. The paper has three of 8192 for one vector a picture, VICRegL three of 512 for cells; here a batch has hundreds of cells a
        panorama.
    """

    invariance_weight: Rate = 25.0
    variance_weight: Rate = 25.0
    covariance_weight: Rate = 1.0
    expander: tuple[Positive, ...] = (2048, 2048, 2048)


def expander_of(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear, batch norm and ReLU for each layer, the last one linear alone: widths[0] -> widths[-1].

    Batch norms take the statistics of the batch in validation too, as the loss itself does: there are no running ones to lag behind. The
    layers before them have no bias, which a batch norm would take away again.
    """
    layers: list[nn.Module] = []
    for before, width in pairwise(widths[:-1]):
        layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width, track_running_stats=False), nn.ReLU()]
    if len(widths) > 1:
        layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    return nn.Sequential(*layers)


class VICReg(nn.Module):
    """The loss of a batch, which every panorama of it is given; a panorama counts 1, or 0 without a picture.

    Variance and covariance are those of all matched cells of one batch, and no sum over samples. So each row of `Loss.sums` is the whole
    loss, with the panorama's own share of the invariance, and their mean is the formula's value. Over the batches of a step
    (`gradient_accumulation`) and of a validation it is the mean of the losses of batches, weighted by their panoramas: each batch has
    statistics of its own, as with batch norm. A panorama gives two matches at least (else `attach` refuses), so no variance is undefined.
    """

    reads = (MODALITY,)
    statistics_of_batches = True
    overlaps: Overlaps
    expander: nn.Sequential

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def attach(self, model: Any) -> None:
        self.overlaps = overlaps_of(model, "vicreg")
        self.expander = expander_of((model.encoders[MODALITY].token_dim, *self.config.expander))

    def counts(self, batch: Batch) -> Tensor:
        return present(batch)

    def forward(self, output: Output, batch: Batch) -> Loss:
        there = present(batch)
        tokens = output.encoded[MODALITY]
        if not there.any():  # nothing to take statistics of
            return Loss(tokens.values.float().sum((1, 2)) * 0, there)
        seen = there.bool()
        first, second = (cells[seen] for cells in self.overlaps(tokens))  # [B', P, D]
        one, other = (self.expander(cells.flatten(0, 1)) for cells in (first, second))
        with torch.autocast(first.device.type, enabled=False):
            invariance, variance, covariance = terms(one.float(), other.float())
        weights, shape = self.config, (len(first), -1)
        invariances = invariance.view(shape).mean(1)  # [B']
        losses = weights.invariance_weight * invariances + weights.variance_weight * variance + weights.covariance_weight * covariance
        notes = {"invariance": invariances, "variance": variance.expand(len(first)), "covariance": covariance.expand(len(first))}
        notes |= self.overlaps.likeness(first, second)
        return Loss(spread(losses, seen), there, {name: spread(values, seen) for name, values in notes.items()})


def terms(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(invariance of each vector [N], variance [], covariance []) of two branches [N, D] float32."""
    return (one - other).square().mean(1), (_variance(one) + _variance(other)) / 2, (_covariance(one) + _covariance(other)) / 2


def _variance(values: Tensor) -> Tensor:
    """How far the standard deviations of the features of [N, D] are below 1."""
    return F.relu(1 - (values.var(0) + 1e-4).sqrt()).mean()


def _covariance(values: Tensor) -> Tensor:
    """Squared covariances of different features of [N, D], summed and divided by D."""
    centred = values - values.mean(0)
    found = centred.mT @ centred / (len(values) - 1)  # [D, D]
    return (found.square().sum() - found.diagonal().square().sum()) / values.shape[1]


def build(config: Config) -> VICReg:
    return VICReg(config)
