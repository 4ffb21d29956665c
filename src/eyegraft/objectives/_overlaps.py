"""Which cells of neighbouring views look the same way, and what the tokens of such cells have in common.

Cells are matched by the angle at which they look, along both axes. Equal columns of two perspective views do not see the same place: with a
field of view of 90 degrees and 45 degrees between two views, columns 7 to 13 of a grid of 14 meet 0.43, 1.97, 3.18, 4.17, 4.98, 5.66 and
6.24 of the next one, and rows move towards the horizon or away from it on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from eyegraft.errors import PartError
from eyegraft.objectives._pixels import MODALITY, layout
from eyegraft.types import Tokens
from eyegraft.views import View, Views

Floats = NDArray[np.float64]

_EDGE = 1e-6
"""How far outside the hull of cell middles, in cells, a place may be by rounding alone."""


class Overlaps(nn.Module):
    """The P matches of a set of views: cells of one view whose direction lies between the cell middles of the next, and the four cells of
    that one around it, with bilinear weights.

    Cells are numbered view by view and row by row, from 0 to V·h·w. All of it is computed from the recipe, so no checkpoint holds it.

    Attributes:
        cells: [P] int64. indices: [P, 4] int64, weights: [P, 4] float32, what each of `cells` meets.
        directions: [P, 3] float32, where each of `cells` looks.
        sizes: how many matches each pair of neighbours has, in order; A pairs.
        apart: [A, A] float32, share in a mean over all couples of a cell of the first view of one pair and a place in the second view of
            another whose views see nothing in common; all 0 where there are none.
        cell_degrees: distance of two neighbouring cells of a view where they are farthest apart.
    """

    cells: Tensor
    indices: Tensor
    weights: Tensor
    directions: Tensor
    apart: Tensor

    def __init__(self, views: Views, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_views, self.grid = views.num_views, grid
        self.cell_degrees = max((_cell_degrees(views.views[first].cells(*grid)) for first, _ in views.neighbours()), default=0.0)
        found = [(pair, *_matches(views.views, pair, grid)) for pair in views.neighbours()]
        found = [match for match in found if len(match[1])]
        pairs = [match[0] for match in found]
        self.sizes = [len(match[1]) for match in found]
        cells, indices, weights = (np.concatenate(parts) for parts in zip(*(match[1:] for match in found), strict=True)) if found else _NONE
        looks = np.stack([view.cells(*grid).reshape(-1, 3) for view in views.views]).reshape(-1, 3)[cells]
        self.register_buffer("cells", torch.from_numpy(cells), persistent=False)
        self.register_buffer("indices", torch.from_numpy(indices), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights).float(), persistent=False)
        self.register_buffer("directions", torch.from_numpy(looks).float(), persistent=False)
        self.register_buffer("apart", torch.from_numpy(_apart(views.views, pairs, self.sizes)).float(), persistent=False)

    def __len__(self) -> int:
        return len(self.cells)

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """What the tokens say of each match, seen from either view: [B, P, D] and [B, P, D] float32."""
        height, width = self.grid
        values = tokens.values.unflatten(1, (self.num_views, -1))[:, :, -height * width :].flatten(1, 2)  # [B, V·h·w, D], no class tokens
        met = values[:, self.indices[:, 0]] * self.weights[:, 0, None]
        for corner in range(1, 4):  # one at a time: four copies at once would be the largest tensor of the step
            met = met + values[:, self.indices[:, corner]] * self.weights[:, corner, None]
        return values[:, self.cells].float(), met

    @torch.no_grad()
    def likeness(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """How alike the matches [B, P, D] of encoder tokens are, each number [B].

        `cosine_overlap` is the mean cosine of matched cells, `cosine_apart` that of cells of views that see nothing in common, where there
        are such. What all cells share raises both: they are given once more `_centred`, less the mean of all matched cells of the batch.
        `feature_std` is the standard deviation over all matched cells of the batch, mean over features: 0 where the encoder says the same
        of everything, as `cosine_apart` is then 1.
        """
        middle = torch.cat([first, second]).mean((0, 1))
        spread = first.flatten(0, 1).std(0, correction=0).mean()
        centred = self._cosines(first - middle, second - middle)
        return {
            **self._cosines(first, second),
            **{f"{name}_centred": values for name, values in centred.items()},
            "feature_std": spread.expand(len(first)),
        }

    def _cosines(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        one, other = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
        found = {"cosine_overlap": (one * other).sum(-1).mean(1)}
        if self.apart.any():  # a mean of cosines is the product of mean unit vectors
            means = [torch.stack([part.mean(1) for part in unit.split(self.sizes, 1)], 1) for unit in (one, other)]  # [B, A, D]
            with torch.autocast(first.device.type, enabled=False):
                found["cosine_apart"] = (means[0] @ means[1].mT * self.apart).sum((1, 2))
        return found


def spread(values: Tensor, seen: Tensor) -> Tensor:
    """Numbers of the samples that were seen, [B'] -> [B], 0 for the others."""
    return torch.zeros(len(seen), device=values.device).masked_scatter(seen, values)


def overlaps_of(model: Any, objective: str) -> Overlaps:
    """The matches between the views that a model's image encoder is given.

    Raises:
        PartError: there are no views, no two of them overlap, or the encoder's grid is too coarse for their overlap.
    """
    views: Views | None = getattr(model.encoders[MODALITY].spec, "views", None)
    expected, way = "views that overlap: it learns from what two of them see", "set views=anyres_e2p (or views=e2p), with views.overlap=0.5"
    if views is None:
        raise PartError(f"objective {objective} in a recipe without views of panoramas", expected, way)
    if not views.neighbours():
        given = f"strategy={views.strategy}, fov_degrees={views.fov_degrees:g}, overlap={views.overlap:g}"
        raise PartError(
            f"objective {objective} with views of which no two overlap ({given})",
            expected,
            f"{way}, or leave the stage out: stages.NAME=null",
        )
    grid = layout(model, objective, reads_views=True).grid
    if grid is None:
        given = f"objective {objective} with an encoder that gives no grid of tokens"
        raise PartError(given, "a token for each cell of a view", "choose another vision_encoder")
    found = Overlaps(views, grid)
    if len(found) < 2:
        raise PartError(
            f"objective {objective}: {len(found)} cells of a {grid[0]}x{grid[1]} grid look between the cells of the next view",
            "two or more, to compare what both views see",
            "raise views.overlap (0.5 is usual), or choose an encoder with a finer grid",
        )
    return found


def places_in(view: View, directions: Floats, grid: tuple[int, int]) -> tuple[Floats, Floats]:
    """Unit vectors [..., 3] -> row and column [...] among the cells of a view, 0 the middle of the first; NaN behind the camera."""
    x, y = view.places(directions)
    return (y + 1) * grid[0] / 2 - 0.5, (x + 1) * grid[1] / 2 - 0.5


def _cell_degrees(cells: Floats) -> float:
    """The widest angle between two cells [h, w, 3] side by side, or one above the other; 0 of a single cell."""
    beside, above = (cells[:, :-1] * cells[:, 1:]).sum(-1), (cells[:-1] * cells[1:]).sum(-1)
    return float(np.degrees(np.arccos(np.clip(min(beside.min(initial=1), above.min(initial=1)), -1, 1))))


_NONE = (np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros((0, 4)))


def _matches(views: tuple[View, ...], pair: tuple[int, int], grid: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Cells [M] of the first view of a pair that look between the cell middles of the second, and which four [M, 4] they meet, how much."""
    first, second = pair
    (height, width), per_view = grid, grid[0] * grid[1]
    row, column = (place.ravel() for place in places_in(views[second], views[first].cells(*grid), grid))
    inside = (row >= -_EDGE) & (row <= height - 1 + _EDGE) & (column >= -_EDGE) & (column <= width - 1 + _EDGE)  # False for NaN
    rows, down = _between(row[inside], height)
    columns, across = _between(column[inside], width)
    indices = np.stack([line * width + place for line in rows for place in columns], axis=1)
    weights = np.stack([one * other for one in down for other in across], axis=1)
    return first * per_view + np.flatnonzero(inside), second * per_view + indices, weights


def _between(place: Floats, count: int) -> tuple[list[NDArray[np.int64]], list[Floats]]:
    """The two cells around each place along a side of `count`, and the share of either."""
    place = np.clip(place, 0, count - 1)
    before = np.minimum(place.astype(np.int64), max(count - 2, 0))
    return [before, np.minimum(before + 1, count - 1)], [1 - (place - before), place - before]


def _apart(views: tuple[View, ...], pairs: list[tuple[int, int]], sizes: list[int]) -> Floats:
    """See `Overlaps.apart`."""
    couples: Floats = np.outer(sizes, sizes).astype(np.float64)
    for row, (one, _) in enumerate(pairs):
        for column, (_, other) in enumerate(pairs):
            couples[row, column] *= not _share(views[one], views[other])
    return couples / max(float(couples.sum()), 1.0)


def _share(one: View, other: View) -> bool:
    """Whether two views see a direction in common, looked up on a fine grid of either."""
    return any(_sees(seer, seen) for seer, seen in ((one, other), (other, one)))


def _sees(seer: View, seen: View) -> bool:
    x, y = seer.places(seen.cells(65, 65))
    return bool(((np.abs(x) < 1) & (np.abs(y) < 1)).any())
