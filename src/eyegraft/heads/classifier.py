"""One fused vector to K numbers: [B, 1, D] -> [B, K]. One for yes or no, one a class for the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.errors import PartError
from eyegraft.types import Batch, Tokens


class Config(Strict):
    hidden_dim: Positive = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Classifier(nn.Module):
    backbone = None

    def __init__(self, in_dim: int, hidden_dim: int, dropout: float, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden_dim, num_outputs))

    def forward(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        if tokens.values.shape[1] != 1:
            raise PartError(
                f"head=classifier reads one vector a sample, {tokens.values.shape[1]} tokens came",
                "pooled tokens",
                "set pooling=mean or pooling=attention, with fusion=gated or fusion=concat",
            )
        return self.layers(tokens.values[:, 0]), batch.targets


def input_dim(config: Config) -> None:
    """None: it takes whatever width comes."""


def build(config: Config, *, in_dim: int, num_outputs: int) -> Classifier:
    if num_outputs < 1:
        raise PartError(
            "head=classifier under a task that answers in text", "a label task", "set tasks.NAME.kind=classify, or another head"
        )
    return Classifier(in_dim, config.hidden_dim, config.dropout, num_outputs)
