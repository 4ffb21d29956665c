"""Token cross-entropy in float32, summed over the learned tokens of each sample."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eyegraft.config import Strict
from eyegraft.types import IGNORE, Batch, Loss, Output, TokenLogits

CHUNK = 256
"""Tokens whose logits are there at once: 50 MB of 49,152 float32 each, and twice that for their gradient."""


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
        if isinstance(output.logits, TokenLogits):
            mine = output.logits.rows == torch.arange(len(batch), device=output.labels.device).unsqueeze(1)  # [B, M]
            losses = token_losses(output.logits, output.labels, smoothing)
            return Loss(torch.where(mine, losses, 0.0).sum(1), mine.sum(1).float())
        losses = _losses(output.logits.transpose(1, 2), output.labels, smoothing)  # [B, T']
        return Loss(losses.sum(1), (output.labels != IGNORE).sum(1).float())


def token_losses(logits: TokenLogits, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy [M] of each token, in float32. The logits of all but the last chunk are made again for the gradient, not kept."""

    def of(hidden: Tensor, wanted: Tensor) -> Tensor:
        return _losses(logits.layer(hidden), wanted, label_smoothing)

    hidden = logits.hidden
    chunks = list(zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True))
    kept = [checkpoint(of, *chunk, use_reentrant=False) if torch.is_grad_enabled() else of(*chunk) for chunk in chunks[:-1]]
    return torch.cat([*kept, of(*chunks[-1])])


def _losses(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing)


def build(config: Config) -> CrossEntropy:
    return CrossEntropy(config.label_smoothing)
