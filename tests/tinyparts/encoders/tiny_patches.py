"""Patches of 8 pixels through one linear layer and a batch norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.types import ImageSpec, Tokens


class Config(Strict):
    width: Positive = 16


class TinyPatches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_dim = width
        self.spec = ImageSpec(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="squash")
        self.backbone = nn.ModuleDict(
            {"patch": nn.Conv2d(3, width, 8, stride=8), "norm": nn.BatchNorm2d(width), "mix": nn.Linear(width, width)}
        )

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return [list(self.backbone["patch"].parameters()), [*self.backbone["norm"].parameters(), *self.backbone["mix"].parameters()]]

    def forward(self, inputs: Tensor) -> Tokens:
        features = self.backbone["norm"](self.backbone["patch"](inputs))
        values = self.backbone["mix"](features.flatten(2).transpose(1, 2))
        return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device), grid=tuple(features.shape[2:]))


def build(config: Config) -> TinyPatches:
    return TinyPatches(config.width)
