"""Tokens as they are: [B, N, D] -> [B, N, D]."""

from __future__ import annotations

from torch import nn

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    pass


class IdentityConnector(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens


def build(config: Config, *, in_dim: int, out_dim: int) -> IdentityConnector:
    if in_dim != out_dim:
        raise PartError(
            f"connector=identity between tokens of width {in_dim} and a part that reads width {out_dim}",
            "one width",
            "use connector=linear",
        )
    return IdentityConnector(in_dim)
