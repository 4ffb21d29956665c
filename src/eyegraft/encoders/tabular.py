"""Columns of a row as one token, by a small network: [B, K] -> [B, 1, D]. Time, place and land cover join a patch here, late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.types import ColumnSpec, Tokens

Period = Annotated[float, Field(gt=0)]


class Config(Strict):
    """Of the columns that `data.columns.meta` names, or those of `eyegraft.data.patch_rows.PatchRows.column`:

    Attributes:
        numbers: z-scored with the training split's statistics; an empty cell is told apart.
        cyclic: name -> period, in the column's unit: {hour_utc: 24}.
        categories: name -> how many classes there are, numbered from 0, or their names.
        width: D of the token.
        hidden_dim: of the layer between.
    """

    numbers: tuple[str, ...] = ()
    cyclic: dict[str, Period] = {}
    categories: dict[str, Positive | tuple[str, ...]] = {}
    width: Positive = 32
    hidden_dim: Positive = 64

    @model_validator(mode="after")
    def _some(self) -> Config:
        names = [*self.numbers, *self.cyclic, *self.categories]
        if not names:
            raise ValueError("no column: name some under numbers, cyclic or categories")
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice: {', '.join(sorted({name for name in names if names.count(name) > 1}))}")
        return self


class Tabular(nn.Module):
    backbone = None
    gives_one_token = True

    def __init__(self, spec: ColumnSpec, in_dim: int, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.token_dim = width
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, width))

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return [list(layer.parameters()) for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, values: Tensor) -> Tokens:
        token = self.layers(values).unsqueeze(1)  # [B, 1, D]
        return Tokens(token, torch.ones(token.shape[:2], dtype=torch.bool, device=token.device))


def build(config: Config) -> Tabular:
    spec = ColumnSpec(config.numbers, dict(config.cyclic), dict(config.categories))
    return Tabular(spec, spec.width, config.width, config.hidden_dim)
