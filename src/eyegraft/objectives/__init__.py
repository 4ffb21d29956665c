"""Outputs to a loss. Each file has `Config` and `build(config) -> Objective`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from eyegraft.types import Batch, Loss, Output


class Objective(Protocol):
    """What every objective offers. It may be a module with parameters of its own; the trainable plan then lists and saves them."""

    def counts(self, batch: Batch) -> Tensor:
        """[B] float32: what each sample's loss will be summed over, known before the forward so that accumulation can weight by it."""

    def __call__(self, output: Output, batch: Batch) -> Loss: ...


class Hooks(Protocol):
    """What an objective may offer besides, each of it or none. Its state (a decoder, a teacher, a running mean) is saved with the
    checkpoints of its stage, put back when that stage goes on, and not carried into the next one.

    Attributes:
        reads: modalities whose encoders' tokens it reads, in place of logits. Nothing behind the encoders is then computed: `Output` has
            `encoded` alone, and the trainable plan freezes every other part.
        trains: parts that its loss reaches, where these are not the encoders that it reads, whole.
        statistics_of_batches: whether the samples of a batch are compared with each other, so that several batches of a step
            (`gradient_accumulation`) are not one large batch. Where several processes train, it is given the tokens and samples that all
            of them have of a batch, without inputs and targets; so it cannot `prepare`.
    """

    reads: tuple[str, ...]

    def fit(self, targets: Tensor) -> None:
        """Called once with all training targets [N, K] before the first step, to balance classes by them."""

    def attach(self, model: Any) -> None:
        """Called once by the trainable plan, when the model's parts are as they will train (adapters put in, `requires_grad` set) and
        before the objective's own parameters are listed: the place to build what needs widths, or a teacher. No part of the model may
        become a submodule. Own parameters without `requires_grad` are not trained."""

    def prepare(self, batch: Batch) -> Batch:
        """Called before each forward, on the model's device: hide or multiply what the encoders read (`Batch.with_input`), and keep
        aside, under a name that no encoder has, what the loss will need. `len(batch)` stays the number of samples. Chance comes from
        torch's global generator, which is seeded for each step and each validation. `counts` is asked of the batch as it was before."""

    def after_step(self, done: float, means: Mapping[str, Tensor]) -> None:
        """Called after each step of the optimiser, as for a moving average.

        Args:
            done: share of the stage's steps.
            means: of the step's `Loss.notes`.
        """
