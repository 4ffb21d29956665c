"""One linear layer on every token: [B, N, in] -> [B, N, out]."""

from __future__ import annotations

from torch import nn

from eyegraft.config import Strict
from eyegraft.types import Tokens


class Config(Strict):
    pass


class LinearConnector(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.layer = nn.Linear(in_dim, out_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.with_values(self.layer(tokens.values))


def build(config: Config, *, in_dim: int, out_dim: int) -> LinearConnector:
    return LinearConnector(in_dim, out_dim)
