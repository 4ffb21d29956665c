"""The class token, and the mean over the other real tokens: [B, 1 + N, D] -> [B, 2, D]; of several views, of each."""

from __future__ import annotations

import torch
from torch import nn

from eyegraft.config import Strict
from eyegraft.connectors._by_view import together
from eyegraft.connectors._class_token import class_and_others
from eyegraft.types import Tokens


class Config(Strict):
    pass


class ClassMeanPooling(nn.Module):
    """Further tokens of the prefix (registers) are left out."""

    idempotent = True  # applied to its own output it changes nothing

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim

    def forward(self, tokens: Tokens) -> Tokens:
        first, others = class_and_others("pooling=class_mean", tokens)
        weight = others.mask.unsqueeze(-1).to(others.values.dtype)  # [B, N, 1]
        mean = (others.values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        mask = torch.cat([first.mask, others.mask.any(1, keepdim=True)], dim=1)
        return together(Tokens(torch.cat([first.values, mean], dim=1), mask, num_prefix=1), tokens)


def build(config: Config, *, in_dim: int, out_dim: int) -> ClassMeanPooling:
    return ClassMeanPooling(in_dim)
