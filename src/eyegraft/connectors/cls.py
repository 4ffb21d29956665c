"""The class token: [B, N, D] -> [B, 1, D]."""

from __future__ import annotations

from torch import nn

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    pass


class ClassTokenPooling(nn.Module):
    idempotent = True  # applied to its own output it changes nothing

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, tokens: Tokens) -> Tokens:
        if tokens.num_prefix < 1:
            raise PartError(
                "pooling=cls, but the encoder gives no class token",
                "an encoder with a class token",
                "use pooling=mean or pooling=attention",
            )
        return Tokens(tokens.values[:, :1], tokens.mask[:, :1], num_prefix=1)


def build(config: Config, *, in_dim: int, out_dim: int) -> ClassTokenPooling:
    return ClassTokenPooling(in_dim)
