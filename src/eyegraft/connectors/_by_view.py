"""What connectors share that take the views of a picture one by one: [B, V·N, D] apart, together, and where pooled tokens look."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from eyegraft.types import Tokens


def apart(tokens: Tokens) -> Tokens:
    """Every view a row of its own: [B, V·N, D] -> [B·V, N, D], sample by sample. Directions are left out, for rows no longer share them."""
    values, mask = (part.unflatten(1, (tokens.num_views, -1)).flatten(0, 1) for part in (tokens.values, tokens.mask))
    return replace(tokens, values=values, mask=mask, num_views=1, directions=None)


def together(made: Tokens, given: Tokens) -> Tokens:
    """What was made of the views of `given`, [B·V, K, D], in rows of samples: [B, V·K, D]. All K of a view look where its tokens do on
    average."""
    views = given.num_views
    values, mask = (part.unflatten(0, (-1, views)).flatten(1, 2) for part in (made.values, made.mask))
    directions = given.directions
    if directions is not None:
        number = made.values.shape[1]
        everywhere = directions.new_ones(number, len(directions) // views)
        directions = pooled_directions(directions, views, everywhere)
    return replace(made, values=values, mask=mask, num_views=views, directions=directions)


def pooled_directions(directions: Tensor, num_views: int, shares: Tensor) -> Tensor:
    """[V·N, 7] -> [V·K, 7]: where K pooled tokens of each view look: on average, as unit vectors again.

    Places that lie all around have no direction in common; then it is that of their view's middle.

    Args:
        shares: [K, N] how much of each token went into a pooled one; masks are left aside, for all rows share their directions.
    """
    pooled = (shares / shares.sum(1, keepdim=True)) @ directions.unflatten(0, (num_views, -1))  # [V, K, 7]
    middle = nn.functional.normalize(pooled[..., 3:6], dim=-1)
    looks = pooled[..., :3]
    looks = torch.where(looks.norm(dim=-1, keepdim=True) > 1e-3, nn.functional.normalize(looks, dim=-1), middle)
    return torch.cat([looks, middle, pooled[..., 6:]], dim=-1).flatten(0, 1)


def projection(in_dim: int, out_dim: int) -> nn.Module:
    """A linear layer where the widths differ, else nothing: a pooling without parameters."""
    return nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim)
