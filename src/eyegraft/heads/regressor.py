"""One fused vector to K numbers: [B, 1, D] -> [B, K], the last layer in float32 whatever the precision of the rest.

Half precision would answer in steps: eight bits of a temperature that varies by 10 K are steps of 0.1 K.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.errors import PartError
from eyegraft.types import Batch, Tokens


class Config(Strict):
    hidden_dim: Positive = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Regressor(nn.Module):
    backbone = None

    def __init__(self, in_dim: int, hidden_dim: int, dropout: float, num_outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout))
        self.last = nn.Linear(hidden_dim, num_outputs)

    def forward(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        if tokens.values.shape[1] != 1:
            raise PartError(
                f"head=regressor reads one vector a sample, {tokens.values.shape[1]} tokens came",
                "pooled tokens",
                "set pooling=mean or pooling=attention, with fusion=gated or fusion=concat",
            )
        hidden = self.hidden(tokens.values[:, 0])
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.last.weight.float(), self.last.bias.float()), batch.targets


def input_dim(config: Config) -> None:
    """None: it takes whatever width comes."""


def build(config: Config, *, in_dim: int, num_outputs: int) -> Regressor:
    if num_outputs < 1:
        raise PartError(
            "head=regressor under a task that answers in text",
            "a label task or one of numbers",
            "set tasks.NAME.kind=regress, or another head",
        )
    return Regressor(in_dim, config.hidden_dim, config.dropout, num_outputs)
