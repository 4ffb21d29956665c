"""The mean over the real tokens of each view: [B, V·N, D] -> [B, V, D]. Class tokens count like any other, as in `mean`."""

from __future__ import annotations

from torch import nn

from eyegraft.config import Strict
from eyegraft.connectors._by_view import apart, projection, together
from eyegraft.types import Tokens


class Config(Strict):
    pass


class ViewAverage(nn.Module):
    """One token a view, so that their order is kept; of a picture without views it is one token a picture."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.idempotent = in_dim == out_dim  # applied to its own output it then changes nothing
        self.projection = projection(in_dim, out_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        views = apart(tokens)
        weight = views.mask.unsqueeze(-1).to(views.values.dtype)  # [B·V, N, 1]
        number = weight.sum(1, keepdim=True)
        mean = (views.values * weight).sum(1, keepdim=True) / number.clamp(min=1)  # [B·V, 1, D]
        return together(Tokens(self.projection(mean), number[..., 0] > 0), tokens)


def build(config: Config, *, in_dim: int, out_dim: int) -> ViewAverage:
    return ViewAverage(in_dim, out_dim)
