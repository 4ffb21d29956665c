"""Cross-entropy over classes of which one is true, in float32; targets are one-hot or a distribution, and all K or none are known."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Rate, Strict
from eyegraft.errors import PartError
from eyegraft.objectives._labels import Balanced, ClassWeights, Smoothing, known_logits
from eyegraft.types import Batch, Loss, Output


class Config(Strict):
    """Attributes:
    label_smoothing: s; a target t is learned as t (1 - s) + s / K.
    gamma: of the focal weight (1 - p)^gamma (Lin et al. 2017); 0 is plain cross-entropy.
    class_weights: one of each class; `balanced`: n / (K n_k).
    """

    label_smoothing: Smoothing = 0.0
    gamma: Annotated[float, Field(ge=0)] = 0.0
    class_weights: Annotated[tuple[Rate, ...], Field(min_length=2)] | Balanced | None = None


class Softmax(nn.Module):
    """- sum over k of w_k t_k (1 - p_k)^gamma log p_k. A sample counts 1, or 0 where a target of it is not known.

    Smoothing and class weights act in training only, so that validation losses compare across them; gamma defines the loss.
    """

    def __init__(self, label_smoothing: float = 0.0, gamma: float = 0.0, class_weights: tuple[float, ...] | Balanced | None = None) -> None:
        super().__init__()
        self.label_smoothing, self.gamma = label_smoothing, gamma
        self.weights = ClassWeights(class_weights, 1)

    def fit(self, targets: Tensor) -> None:
        """Take what balanced weights need from the training targets [N, K]; call once, before the first step."""
        self.weights.balance(targets[~targets.isnan().any(1)].sum(0)[:, None])

    def counts(self, batch: Batch) -> Tensor:
        return (~batch.targets.isnan().any(1)).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        logits, targets, known = known_logits(output, "softmax")
        weights, num_classes = self.weights()[:, 0], logits.shape[1]  # [K] or [1]
        if num_classes < 2 or len(weights) not in (1, num_classes):
            raise PartError(
                f"objective=softmax: {num_classes} classes, {len(weights)} class weights",
                "two classes or more, and one weight for each",
                "set as many class_weights as there are classes, or objective=bce for a single output",
            )
        smoothing = self.label_smoothing if self.training else 0.0
        targets = targets * (1 - smoothing) + smoothing / num_classes
        log_p = logits.log_softmax(1)
        # Away from 0, where a power below 1 has no gradient
        missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)  # [B, K] 1 - p
        losses = -(weights * targets * missing**self.gamma * log_p).sum(1)  # [B]
        whole = known.all(1)
        return Loss(losses.where(whole, 0.0), whole.float())


def build(config: Config) -> Softmax:
    return Softmax(config.label_smoothing, config.gamma, config.class_weights)
