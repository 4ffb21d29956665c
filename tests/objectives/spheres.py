"""A sphere of smooth colours, seen through views: what is right about it is known exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eyegraft.config import Part, Settings
from eyegraft.fusion import concat
from eyegraft.heads import regressor
from eyegraft.model import Graft
from eyegraft.registry import configured
from eyegraft.training.loss_step import LossStep
from eyegraft.tuning import make_plan, set_training_mode
from eyegraft.types import Batch, ImageSpec, Output, Sample, Tokens
from eyegraft.views import Views

E2P = Views(strategy="e2p")
ANYRES = Views(strategy="anyres_e2p")


class Eyes(nn.Module):
    """Square patches through two layers, behind a class token that sees nothing."""

    def __init__(self, views: Views | None, *, cells: int, side: int = 4, width: int = 8) -> None:
        super().__init__()
        self.token_dim, self.cells = width, cells
        self.spec = ImageSpec(size=(cells * side, cells * side), mean=(0.5,) * 3, std=(0.5,) * 3, fit="squash", views=views)
        self.patch, self.mix = nn.Conv2d(3, width, side, stride=side), nn.Linear(width, width)
        self.class_token = nn.Parameter(torch.randn(width))

    def forward(self, inputs: Tensor) -> Tokens:
        values = self.mix(self.patch(inputs).flatten(2).transpose(1, 2).tanh())
        values = torch.cat([self.class_token.expand(len(values), 1, -1), values], 1)
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool), grid=(self.cells, self.cells), num_prefix=1)


def graft(views: Views | None = ANYRES, *, cells: int = 7, width: int = 8) -> Graft:
    torch.manual_seed(0)
    pooling, chosen = configured("connectors", Part(kind="mean"))
    encoder = Eyes(views, cells=cells, width=width)
    fused = concat.build(concat.Config(), dims={"image": width})
    head = regressor.build(regressor.Config(hidden_dim=4), in_dim=fused.out_dim, num_outputs=1)
    return Graft({"image": encoder}, {"image": {"pooling": pooling.build(chosen, in_dim=width, out_dim=width)}}, fused, head)


def stage(kind: str, views: Views | None = ANYRES, *, cells: int = 7, width: int = 8, **options: Any) -> tuple[LossStep, Any]:
    """(model and objective as they train, their plan) of a stage that trains the encoder alone."""
    model = graft(views, cells=cells, width=width)
    module, config = configured("objectives", Part.model_validate({"kind": kind, **options}))
    objective = module.build(config)
    torch.manual_seed(1)
    plan = make_plan(model, Settings.model_validate({"tune": {"vision_encoder": "full"}}), objective=objective)
    step = LossStep(model, objective)
    set_training_mode(step)
    return step, plan


def colours(directions: np.ndarray, count: int, features: int, seed: int = 0, pitch: float = 4.0) -> Tensor:
    """[..., 3] -> [B, ..., F]: smooth functions of direction, other ones for each of B spheres; the larger `pitch`, the finer."""
    generator = torch.Generator().manual_seed(seed)
    slopes, phases = (
        torch.randn(count, 3, features, generator=generator) * pitch,
        torch.rand(count, 1, features, generator=generator) * 6.28,
    )
    given = torch.from_numpy(np.ascontiguousarray(directions)).float()
    flat = (given.reshape(1, -1, 3) @ slopes + phases).sin()  # [B, M, F]
    return flat.view(count, *given.shape[:-1], features)


def panoramas(count: int, views: Views = ANYRES, side: int = 28, seed: int = 0) -> Batch:
    """Spheres of three colours each as a batch of views, [B, V, 3, side, side]."""
    looks = np.stack([view.cells(side, side) for view in views.views])  # [V, side, side, 3]
    pixels = colours(looks, count, 3, seed).permute(0, 1, 4, 2, 3)
    nothing = torch.zeros(count, 0)
    samples = [Sample(f"{seed}/{place}", None) for place in range(count)]
    return Batch({"image": pixels}, nothing.long(), nothing.bool(), nothing.long(), samples, nothing)


def known(views: Views, grid: tuple[int, int], count: int, features: int, seed: int = 0) -> tuple[Output, Batch]:
    """The tokens of an encoder that says of every cell what is there."""
    looks = np.concatenate([view.cells(*grid).reshape(-1, 3) for view in views.views])
    values = colours(looks, count, features, seed)
    tokens = Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool), grid=grid, num_views=views.num_views)
    batch = panoramas(count, views, side=1, seed=seed)
    return Output({"image": tokens}, tokens, batch.targets, batch.targets), batch


def by_index(objective: Any, *, shift: int = 0) -> None:
    """Let an objective on `E2P` match columns of the right half of a view with the left half of the next by their number.

    Args:
        shift: columns that are added.
    """
    overlaps = objective.overlaps
    height, width = overlaps.grid
    row, column = np.divmod(np.arange(height * width), width)
    chosen = column >= width - width // 2
    views = range(overlaps.num_views)
    cells = np.concatenate([view * height * width + np.flatnonzero(chosen) for view in views])
    other = row * width + np.clip(column - (width - width // 2) + shift, 0, width - 1)
    met = np.concatenate([(view + 1) % len(views) * height * width + other[chosen] for view in views])
    _replace(overlaps, cells, np.stack([met] * 4, 1), np.tile([1.0, 0, 0, 0], (len(met), 1)))


def shifted(objective: Any, columns: int) -> None:
    """Let an objective look this many columns beside each match, where the next view still has them."""
    overlaps = objective.overlaps
    width = overlaps.grid[1]
    place = overlaps.indices % width + columns
    inside = ((place >= 0) & (place < width)).all(1)
    _replace(overlaps, overlaps.cells[inside], overlaps.indices[inside] + columns, overlaps.weights[inside])


def _replace(overlaps: Any, cells: Any, indices: Any, weights: Any) -> None:
    cells = torch.as_tensor(cells)
    looks = np.concatenate([view.cells(*overlaps.grid).reshape(-1, 3) for view in E2P.views])
    overlaps.cells, overlaps.indices, overlaps.weights = cells, torch.as_tensor(indices), torch.as_tensor(weights).float()
    overlaps.directions = torch.from_numpy(looks[cells.numpy()]).float()
    per_view = overlaps.grid[0] * overlaps.grid[1]
    overlaps.sizes = torch.bincount(cells // per_view, minlength=overlaps.num_views).tolist()
