"""What the objectives of label tasks share: which targets are known, smoothing, class weights."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eyegraft.errors import DataError, PartError, TrainingError, shown
from eyegraft.types import Output, TokenLogits

Smoothing = Annotated[float, Field(ge=0, lt=1)]
Balanced = Literal["balanced"]


class ClassWeights(nn.Module):
    """What each class of each output weighs in training, [C, K] or [C, 1] for all outputs alike; 1 in evaluation.

    Validation losses stay comparable between runs with and without weights. Losses are divided by the number of targets, not by the sum of
    their weights. Balanced weights come from the training targets, so they are no state of a checkpoint.

    Args:
        given: one weight a class, `balanced`, or None for none.
        num_classes: C where none is given; 1 stands for any number.
    """

    values: Tensor

    def __init__(self, given: tuple[float, ...] | Balanced | None, num_classes: int) -> None:
        super().__init__()
        self.balanced, self.missing = given == "balanced", given == "balanced"
        values = torch.tensor(given)[:, None] if isinstance(given, tuple) else torch.ones(num_classes, 1)
        self.register_buffer("values", values, persistent=False)

    def balance(self, counts: Tensor) -> None:
        """Weigh every class n / (C · n_c), so that all of an output's classes count alike and the mean weight of a target is 1.

        Args:
            counts: [C, K] how often each class occurs. Nothing happens unless the weights are `balanced`.

        Raises:
            DataError: a class that never occurs.
        """
        if not self.balanced:
            return
        if not counts.all():
            absent = [f"class {c} of output {k}" for c, k in (counts == 0).nonzero().tolist()]
            raise DataError(
                f"class_weights=balanced: no training row has {shown(absent)}",
                "rows of every class",
                "set class_weights to numbers or null, or leave out what never occurs",
            )
        self.values = (counts.sum(0) / (len(counts) * counts)).float().to(self.values.device)
        self.missing = False

    def forward(self) -> Tensor:
        if not self.training:
            return torch.ones_like(self.values)
        if self.missing:
            raise TrainingError(
                "class_weights=balanced without training targets", "a call of fit(targets) before the first step", "report this as a bug"
            )
        return self.values


def known_logits(output: Output, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, K] in float32, targets [B, K] with 0 where not known, and where they are known [B, K] bool."""
    if isinstance(output.logits, TokenLogits) or output.logits.dim() != 2 or output.logits.shape != output.labels.shape:
        given = "of tokens" if isinstance(output.logits, TokenLogits) else str(tuple(output.logits.shape))
        raise PartError(
            f"objective={objective}: logits {given}, targets {tuple(output.labels.shape)}",
            "one logit for each target, [B, K] of both",
            "give a label task a label head (head=classifier), or a text task objective=cross_entropy",
        )
    known = ~output.labels.isnan()
    return output.logits.float(), torch.where(known, output.labels, 0.0).float(), known


def sides(targets: Tensor) -> Tensor:
    """[2, K]: how many negatives and positives are known in targets [N, K]."""
    return torch.stack([(1 - targets).nansum(0), targets.nansum(0)])
