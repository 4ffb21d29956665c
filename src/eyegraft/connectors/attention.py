"""Attention pooling by learned queries, over all views together: [B, N, D] -> [B, Q, D] (as in Lee et al. 2019, Set Transformer)."""

from __future__ import annotations

import torch
from torch import nn

from eyegraft.config import Positive, Strict
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    num_queries: Positive = 1
    num_heads: Positive = 8


class AttentionPooling(nn.Module):
    def __init__(self, dim: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tokens) -> Tokens:
        queries = self.queries.expand(len(tokens.values), -1, -1)  # [B, Q, D]
        there = tokens.mask.any(1, keepdim=True)  # [B, 1]
        unseen = ~tokens.mask & there  # a row without tokens sees all of them in place of nothing, which is no number; it is masked below
        pooled, _ = self.attention(queries, tokens.values, tokens.values, key_padding_mask=unseen, need_weights=False)
        return Tokens(self.norm(pooled), there.expand(-1, queries.shape[1]))


def build(config: Config, *, in_dim: int, out_dim: int) -> AttentionPooling:
    if in_dim % config.num_heads:
        raise PartError(
            f"pooling.num_heads={config.num_heads} does not divide the encoder's width {in_dim}", "a divisor", "set pooling.num_heads"
        )
    return AttentionPooling(in_dim, config.num_queries, config.num_heads)
