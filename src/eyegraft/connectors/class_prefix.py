"""A picture and its class before the text: [class token, N image tokens] of width in -> [N·n image tokens, class token] of width out.

Image tokens pass Linear(in, H·n) - GELU - Linear - view(n, H), as in ClipCap (Mokady et al. 2021). The class token passes a norm and one
linear layer: as it is one of K vectors, this is a table of K vectors of the new width. The class comes last, next to the text. Several
views come one after the other, each with its class token.
"""

from __future__ import annotations

import torch
from torch import nn

from eyegraft.config import Positive, Strict
from eyegraft.connectors._by_view import together
from eyegraft.connectors._class_token import class_and_others
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    num_tokens: n, soft tokens for each image token that comes in (one, behind pooling=class_mean).
    hidden_dim: None takes out_dim · num_tokens.
    """

    num_tokens: Positive = 4
    hidden_dim: Positive | None = None


class ClassPrefix(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.out_dim, self.num_tokens = out_dim, num_tokens
        self.image = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim * num_tokens))
        self.name = nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, out_dim))

    def forward(self, tokens: Tokens) -> Tokens:
        first, others = class_and_others("connector=class_prefix", tokens)
        images = self.image(others.values).unflatten(-1, (self.num_tokens, self.out_dim)).flatten(1, 2)  # [B, N·n, H]
        values = torch.cat([images, self.name(first.values)], dim=1)
        mask = torch.cat([others.mask.repeat_interleave(self.num_tokens, dim=1), first.mask], dim=1)
        return together(Tokens(values, mask), tokens)


def build(config: Config, *, in_dim: int, out_dim: int) -> ClassPrefix:
    return ClassPrefix(in_dim, config.hidden_dim or out_dim * config.num_tokens, out_dim, config.num_tokens)
