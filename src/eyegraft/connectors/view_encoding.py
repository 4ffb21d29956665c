"""Where each token of a panorama looks, added to it: [B, N, D] -> [B, N, D].

Fourier features (Mildenhall et al. 2020; Tancik et al. 2020) of the token's direction and of its view's middle, with the logarithm of the
view's width, go through one linear layer that starts at zero: at first nothing changes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    num_bands: sines and cosines of each coordinate; the k-th has a period of 2^(1-k). With 5 the last tells directions apart that are
        4 degrees from each other, the cells of a view of 90 degrees on a grid of 24.
    """

    num_bands: Positive = 5


class ViewEncoding(nn.Module):
    def __init__(self, dim: int, num_bands: int) -> None:
        super().__init__()
        self.out_dim, self.num_bands = dim, num_bands
        self.layer = nn.Linear(6 + 12 * num_bands + 1, dim, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, tokens: Tokens) -> Tokens:
        if tokens.directions is None:
            raise PartError(
                "views.encode_positions=true, but the tokens no longer say where they look",
                "the tokens of the encoder, or a pooling that keeps their places",
                "use pooling=avg, pooling=spatial_pool or pooling=none, or set views.encode_positions=false",
            )
        places = self.layer(self._features(tokens.directions))  # [N, D]
        return replace(tokens, values=tokens.values + places.to(tokens.values.dtype))

    def _features(self, directions: Tensor) -> Tensor:
        """[N, 7] -> [N, 6 + 12 · bands + 1]"""
        looks = directions[:, :6]
        frequencies = math.pi * 2.0 ** torch.arange(self.num_bands, device=looks.device)
        angles = (looks.unsqueeze(-1) * frequencies).flatten(1)  # [N, 6 · bands]
        return torch.cat([looks, angles.sin(), angles.cos(), directions[:, 6:]], dim=1)


def build(config: Config, *, in_dim: int, out_dim: int) -> ViewEncoding:
    return ViewEncoding(in_dim, config.num_bands)
