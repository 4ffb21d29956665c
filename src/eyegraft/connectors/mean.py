"""The mean over real tokens, of all views together: [B, N, D] -> [B, 1, D]."""

from __future__ import annotations

from torch import nn

from eyegraft.config import Strict
from eyegraft.types import Tokens


class Config(Strict):
    pass


class MeanPooling(nn.Module):
    idempotent = True  # applied to its own output it changes nothing

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, tokens: Tokens) -> Tokens:
        weight = tokens.mask.unsqueeze(-1).to(tokens.values.dtype)  # [B, N, 1]
        total = weight.sum(1, keepdim=True)
        mean = (tokens.values * weight).sum(1, keepdim=True) / total.clamp(min=1)  # [B, 1, D]
        return Tokens(mean, total[..., 0] > 0)


def build(config: Config, *, in_dim: int, out_dim: int) -> MeanPooling:
    return MeanPooling(in_dim)
