"""Outputs to a loss. Each file has `Config` and `build(config) -> Objective`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from eyegraft.types import Batch, Loss, Output


class Objective(Protocol):
    """What every objective offers. It may be a module with parameters of its own; the trainable plan then lists and saves them.

    It may offer `fit(targets [N, K])`, called once with all training targets before the first step, to balance classes by them.
    """

    def counts(self, batch: Batch) -> Tensor:
        """[B] float32: what each sample's loss will be summed over, known before the forward so that accumulation can weight by it."""

    def __call__(self, output: Output, batch: Batch) -> Loss: ...
