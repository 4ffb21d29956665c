"""Every token becomes several soft tokens: [B, N, in] -> [B, N·n, out] (Mokady et al. 2021, ClipCap's MLP mapping)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from eyegraft.config import Positive, Strict
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    num_tokens: soft tokens for each token that comes in (one, behind a pooling).
    hidden_dim: None takes out_dim · num_tokens.
    """

    num_tokens: Positive = 4
    hidden_dim: Positive | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class PrefixConnector(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_tokens: int, dropout: float) -> None:
        super().__init__()
        self.out_dim, self.num_tokens = out_dim, num_tokens
        self.layers = nn.Sequential(
            nn.LayerNorm(in_dim), nn.Dropout(dropout), nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim * num_tokens)
        )

    def forward(self, tokens: Tokens) -> Tokens:
        batch, count, _ = tokens.values.shape
        values = self.layers(tokens.values).view(batch, count * self.num_tokens, self.out_dim)
        directions = tokens.directions.repeat_interleave(self.num_tokens, dim=0) if tokens.directions is not None else None
        mask = tokens.mask.repeat_interleave(self.num_tokens, dim=1)
        return Tokens(values, mask, num_views=tokens.num_views, directions=directions)


def build(config: Config, *, in_dim: int, out_dim: int) -> PrefixConnector:
    return PrefixConnector(in_dim, config.hidden_dim or out_dim * config.num_tokens, out_dim, config.num_tokens, config.dropout)
