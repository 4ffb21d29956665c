"""A module as the average of what it was over the last steps: the teacher of self-distillation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Average(nn.Module):
    """The exponential moving average of a module's trained parameters; those that are frozen are shared with it.

    The averages are buffers, so that they are saved and no optimiser holds them. The module itself stays a part of the model.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._of = [module]  # in a list, else its parameters would count as ours
        for name, parameter in self._trained():
            self.register_buffer(_key(name), parameter.detach().clone())

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._of[0].named_parameters() if parameter.requires_grad)

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """average <- momentum · average + (1 - momentum) · parameter."""
        for name, parameter in self._trained():
            average: Tensor = getattr(self, _key(name))
            average.mul_(momentum).add_(parameter.detach(), alpha=1 - momentum)

    @torch.no_grad()
    def forward(self, *given: Any) -> Any:
        """What the module would answer with the averages in place of its parameters, in evaluation mode."""
        module = self._of[0]
        averages = {name: getattr(self, _key(name)) for name, _ in self._trained()}
        with _evaluating(module):
            return functional_call(module, averages, given)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a buffer's name holds no dot


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training
