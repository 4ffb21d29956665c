"""Squared error in float32, summed over the known targets of each sample."""

from __future__ import annotations

from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.objectives._labels import known_logits
from eyegraft.types import Batch, Loss, Output


class Config(Strict):
    """Nothing to choose."""


class MSE(nn.Module):
    """Targets come standardised, so a loss of 1 is that of a model that always answers with the training mean."""

    def counts(self, batch: Batch) -> Tensor:
        return (~batch.targets.isnan()).sum(1).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        values, targets, known = known_logits(output, "mse")
        return Loss((values - targets).square().where(known, 0.0).sum(1), known.sum(1).float())


def build(config: Config) -> MSE:
    return MSE()
