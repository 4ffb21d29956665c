"""The class token of each view: [B, V·N, D] -> [B, V, D]; of a picture without views it is one."""

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
                "use pooling=mean, pooling=avg or pooling=attention",
            )
        views = tokens.num_views
        values, mask = (part.unflatten(1, (views, -1))[:, :, 0] for part in (tokens.values, tokens.mask))  # [B, V, D], [B, V]
        directions = tokens.directions.unflatten(0, (views, -1))[:, 0] if tokens.directions is not None else None
        return Tokens(values, mask, num_prefix=1, num_views=views, directions=directions)


def build(config: Config, *, in_dim: int, out_dim: int) -> ClassTokenPooling:
    return ClassTokenPooling(in_dim)
