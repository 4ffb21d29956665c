"""Token cross-entropy in float32, summed over the learned tokens of each sample."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.types import IGNORE, Batch, Loss, Output


class Config(Strict):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class CrossEntropy(nn.Module):
    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def counts(self, batch: Batch) -> Tensor:
        return (batch.labels != IGNORE).sum(1).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        smoothing = self.label_smoothing if self.training else 0.0  # validation losses stay comparable across settings
        losses = nn.functional.cross_entropy(
            output.logits.float().transpose(1, 2), output.labels, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing
        )  # [B, T']
        return Loss(losses.sum(1), (output.labels != IGNORE).sum(1).float())


def build(config: Config) -> CrossEntropy:
    return CrossEntropy(config.label_smoothing)
