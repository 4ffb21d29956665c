"""One modality after the other along N: the sequence that a language model reads."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    pass


class SequenceFusion(nn.Module):
    fills = ()

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def forward(self, tokens: Mapping[str, Tokens]) -> Tokens:
        if len(tokens) == 1:
            return next(iter(tokens.values()))
        values = torch.cat([item.values for item in tokens.values()], dim=1)  # [B, ΣN, D]
        return Tokens(values, torch.cat([item.mask for item in tokens.values()], dim=1))


def build(config: Config, *, dims: Mapping[str, int]) -> SequenceFusion:
    if len(set(dims.values())) != 1:
        raise PartError(
            f"fusion=sequence over widths {dict(dims)}", "one width for all modalities", "give each modality a connector to the same width"
        )
    return SequenceFusion(next(iter(dims.values())))
