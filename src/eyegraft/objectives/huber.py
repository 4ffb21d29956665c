"""Squared error near the target and absolute error far from it (Huber 1964), in float32, summed over the known targets of each sample."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import huber_loss

from eyegraft.config import Rate, Strict
from eyegraft.objectives._labels import known_logits
from eyegraft.types import Batch, Loss, Output


class Config(Strict):
    """`delta`: errors up to it count half their square, larger ones delta (|error| - delta / 2); in standard deviations of the target."""

    delta: Rate = 1.0


class Huber(nn.Module):
    def __init__(self, delta: float) -> None:
        super().__init__()
        self.delta = delta

    def counts(self, batch: Batch) -> Tensor:
        return (~batch.targets.isnan()).sum(1).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        values, targets, known = known_logits(output, "huber")
        losses = huber_loss(values, targets, reduction="none", delta=self.delta)  # [B, K]
        return Loss(losses.where(known, 0.0).sum(1), known.sum(1).float())


def build(config: Config) -> Huber:
    return Huber(config.delta)
