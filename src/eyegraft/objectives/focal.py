"""Focal loss (Lin et al. 2017, Focal loss for dense object detection, equation 5): a yes or no for each output, easy ones weigh little."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from eyegraft.config import Fraction, Rate, Strict
from eyegraft.objectives._labels import Balanced, ClassWeights, Smoothing, known_logits, sides
from eyegraft.types import Batch, Loss, Output


class Config(Strict):
    """Attributes:
    gamma: how fast the weight of an answer falls as it gets right: (1 - p)^gamma, p the probability of the truth. 0 gives cross-entropy.
    alpha: weight of positives; negatives weigh 1 - alpha.
    label_smoothing: s; a target t is learned as t (1 - s) + s / 2.
    class_weights: what (negatives, positives) weigh besides alpha; `balanced`: n / (2 n_negative) and n / (2 n_positive) of each output.
    """

    gamma: Annotated[float, Field(ge=0)] = 2.0
    alpha: Fraction = 0.55
    label_smoothing: Smoothing = 0.0
    class_weights: tuple[Rate, Rate] | Balanced | None = None


class Focal(nn.Module):
    """-t alpha (1 - p)^gamma log p - (1 - t) (1 - alpha) p^gamma log(1 - p), in float32, summed over the known targets of each sample.

    Smoothing and class weights act in training only, so that validation losses compare across them; gamma and alpha define the loss.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float = 0.55,
        label_smoothing: float = 0.0,
        class_weights: tuple[float, ...] | Balanced | None = None,
    ) -> None:
        super().__init__()
        self.gamma, self.alpha, self.label_smoothing = gamma, alpha, label_smoothing
        self.weights = ClassWeights(class_weights, 2)

    def fit(self, targets: Tensor) -> None:
        """Take what balanced weights need from the training targets [N, K]; call once, before the first step."""
        self.weights.balance(sides(targets))

    def counts(self, batch: Batch) -> Tensor:
        return (~batch.targets.isnan()).sum(1).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        logits, targets, known = known_logits(output, "focal")
        smoothing = self.label_smoothing if self.training else 0.0
        targets = targets * (1 - smoothing) + smoothing / 2
        negative, positive = self.weights()  # [K] or [1] each
        yes, no = logsigmoid(logits), logsigmoid(-logits)  # log p and log(1 - p): powers of p taken here keep finite gradients
        losses = (
            -self.alpha * positive * targets * (self.gamma * no).exp() * yes
            - (1 - self.alpha) * negative * (1 - targets) * (self.gamma * yes).exp() * no
        )  # [B, K]
        return Loss(losses.where(known, 0.0).sum(1), known.sum(1).float())


def build(config: Config) -> Focal:
    return Focal(config.gamma, config.alpha, config.label_smoothing, config.class_weights)
