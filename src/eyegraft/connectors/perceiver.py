"""Perceiver resampler: [B, N, in] -> [B, L, out], however many tokens come in (Alayrac et al. 2022, Flamingo).

In each block learned latents attend to the tokens and to themselves at once, then pass a feed-forward layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.connectors._by_view import apart, together
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    num_latents: L, tokens that come out; of each view, if `per_view`.
    depth: blocks; num_heads: of each block's attention, a divisor of the encoder's width.
    per_view: each view of a picture by itself, its tokens one after another, in place of all views at once.
    """

    num_latents: Positive = 64
    depth: Positive = 6
    num_heads: Positive = 8
    per_view: bool = False


class PerceiverBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_tokens, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
        )

    def forward(self, latents: Tensor, tokens: Tensor, seen: Tensor) -> Tensor:
        """Latents [B, L, D] and tokens [B, N, D] -> latents; `seen` [B, 1, 1, N + L] is False at what must not be looked at."""
        own = self.norm_latents(latents)
        query = self.query(own)
        key, value = self.key_value(torch.cat([self.norm_tokens(tokens), own], dim=1)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)  # [B, heads, L, D / heads]
        latents = latents + self.out(found.transpose(1, 2).flatten(2))
        changed: Tensor = latents + self.feed_forward(latents)
        return changed


class PerceiverResampler(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, num_latents: int, depth: int, num_heads: int, per_view: bool) -> None:
        super().__init__()
        self.out_dim, self.per_view = out_dim, per_view
        self.latents = nn.Parameter(torch.randn(num_latents, in_dim) * 0.02)
        self.blocks = nn.ModuleList(PerceiverBlock(in_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(in_dim)
        self.projection = nn.Linear(in_dim, out_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        return together(self._resampled(apart(tokens)), tokens) if self.per_view else self._resampled(tokens)

    def _resampled(self, tokens: Tokens) -> Tokens:
        latents = self.latents.to(tokens.values.dtype).expand(len(tokens.values), -1, -1)  # [B, L, D]
        # a latent always sees the latents, so a row without tokens is no division by zero
        seen = F.pad(tokens.mask, (0, latents.shape[1]), value=True)[:, None, None, :]
        for block in self.blocks:
            latents = block(latents, tokens.values, seen)
        mask = tokens.mask.any(1, keepdim=True).expand(-1, latents.shape[1])
        return Tokens(self.projection(self.norm(latents)), mask)


def build(config: Config, *, in_dim: int, out_dim: int) -> PerceiverResampler:
    if in_dim % config.num_heads:
        raise PartError(
            f"connector.num_heads={config.num_heads} does not divide the encoder's width {in_dim}", "a divisor", "set connector.num_heads"
        )
    return PerceiverResampler(in_dim, out_dim, **config.model_dump())
