"""A two-layer MLP on every token: [B, N, in] -> [B, N, out] (Liu et al. 2023, LLaVA-1.5)."""

from __future__ import annotations

from torch import nn

from eyegraft.config import Positive, Strict
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    hidden_dim: None takes the output width.
    norm: a norm in front and one behind. A head that looks for tokens, as `cross_attention_lm` does, tells small ones badly apart.
    """

    hidden_dim: Positive | None = None
    norm: bool = False


class MLPConnector(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, norm: bool) -> None:
        super().__init__()
        self.out_dim = out_dim
        layers = [nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim)]
        self.layers = nn.Sequential(*([nn.LayerNorm(in_dim), *layers, nn.LayerNorm(out_dim)] if norm else layers))

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens.with_values(self.layers(tokens.values))


def build(config: Config, *, in_dim: int, out_dim: int) -> MLPConnector:
    return MLPConnector(in_dim, config.hidden_dim or out_dim, out_dim, config.norm)
