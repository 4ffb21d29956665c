"""Sigmoid cross-entropy: a yes or no for each output, in float32, summed over the known targets of each sample."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from eyegraft.config import Rate, Strict
from eyegraft.objectives._labels import Balanced, ClassWeights, Smoothing, known_logits, sides
from eyegraft.types import Batch, Loss, Output


class Config(Strict):
    """Attributes:
    label_smoothing: s; a target t is learned as t (1 - s) + s / 2.
    class_weights: what (negatives, positives) weigh; `balanced`: n / (2 n_negative) and n / (2 n_positive) of each output.
    """

    label_smoothing: Smoothing = 0.0
    class_weights: tuple[Rate, Rate] | Balanced | None = None


class BCE(nn.Module):
    """Smoothing and class weights act in training only, so that validation losses compare across settings."""

    def __init__(self, label_smoothing: float = 0.0, class_weights: tuple[float, ...] | Balanced | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weights = ClassWeights(class_weights, 2)

    def fit(self, targets: Tensor) -> None:
        """Take what balanced weights need from the training targets [N, K]; call once, before the first step."""
        self.weights.balance(sides(targets))

    def counts(self, batch: Batch) -> Tensor:
        return (~batch.targets.isnan()).sum(1).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        logits, targets, known = known_logits(output, "bce")
        smoothing = self.label_smoothing if self.training else 0.0
        targets = targets * (1 - smoothing) + smoothing / 2
        negative, positive = self.weights()  # [K] or [1] each
        losses = -positive * targets * logsigmoid(logits) - negative * (1 - targets) * logsigmoid(-logits)  # [B, K]
        return Loss(losses.where(known, 0.0).sum(1), known.sum(1).float())


def build(config: Config) -> BCE:
    return BCE(config.label_smoothing, config.class_weights)
