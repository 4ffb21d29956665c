"""The grid of each view averaged down to a smaller one: [B, V·(P + h·w), D] -> [B, V·h'·w', D].

Bins are those of adaptive average pooling (`torch.nn.AdaptiveAvgPool2d`). Class tokens and registers are left out: what comes out lies on
the grid, `size` tokens a view, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.connectors._by_view import pooled_directions, projection
from eyegraft.errors import PartError
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    size: (rows, columns) of what is left of each view's grid.
    """

    size: tuple[Positive, Positive] = (4, 4)


class SpatialPooling(nn.Module):
    """A cell whose tokens are all masked is masked."""

    def __init__(self, in_dim: int, out_dim: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.out_dim, self.size = out_dim, size
        self.idempotent = in_dim == out_dim  # applied to its own output it then changes nothing
        self.projection = projection(in_dim, out_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        shares = self._shares(tokens.grid).to(tokens.values.device)  # [K, h·w]
        values, mask = (part.unflatten(1, (tokens.num_views, -1))[:, :, tokens.num_prefix :] for part in (tokens.values, tokens.mask))
        directions = tokens.directions
        if directions is not None:
            on_grid = directions.unflatten(0, (tokens.num_views, -1))[:, tokens.num_prefix :].flatten(0, 1)
            directions = pooled_directions(on_grid, tokens.num_views, shares)
        if tokens.grid != self.size:
            real = mask.to(values.dtype)  # [B, V, h·w]
            shares = shares.to(values.dtype)
            number = real @ shares.T  # [B, V, K], how much of each cell is real
            values = shares @ (values * real.unsqueeze(-1)) / number.clamp(min=torch.finfo(values.dtype).tiny).unsqueeze(-1)
            mask = number > 0
        pooled = self.projection(values.flatten(1, 2))
        return Tokens(pooled, mask.flatten(1, 2), grid=self.size, num_views=tokens.num_views, directions=directions)

    def extra_repr(self) -> str:
        return f"size={self.size}"  # the feature cache tells poolings apart by it

    def _shares(self, grid: tuple[int, int] | None) -> Tensor:
        """[h'·w', h·w], 1 where a token lies in a cell's bin. Bins are blocks of rows and columns; a matrix is deterministic on a GPU
        too, whose own kernel is not."""
        fix = f"set size to at most the encoder's grid (here {self.size[0]} x {self.size[1]}), or use avg, which needs no grid"
        if grid is None:
            raise PartError("spatial_pool of tokens that lie on no grid", "one token a patch, row by row", "use avg, mean or attention")
        if grid[0] < self.size[0] or grid[1] < self.size[1]:
            given = f"spatial_pool.size={self.size[0]} x {self.size[1]}, but the encoder's grid has {grid[0]} x {grid[1]} cells"
            raise PartError(given, "no more rows and columns than there are", fix)
        rows, columns = (_bins(cells, bins) for cells, bins in zip(grid, self.size, strict=True))
        return torch.kron(rows, columns)


def _bins(cells: int, bins: int) -> Tensor:
    """[bins, cells]: bin i is from floor(i · cells / bins) to ceil((i + 1) · cells / bins)."""
    first = torch.arange(bins) * cells // bins
    end = -(-(torch.arange(bins) + 1) * cells // bins)
    place = torch.arange(cells)
    return ((place >= first[:, None]) & (place < end[:, None])).float()


def build(config: Config, *, in_dim: int, out_dim: int) -> SpatialPooling:
    return SpatialPooling(in_dim, out_dim, config.size)
