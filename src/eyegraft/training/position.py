"""Where a stage stands between two steps, and the state of its optimiser: what resuming needs besides the model's weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from eyegraft.tuning import TrainablePlan, canonical


@dataclass
class Position:
    """Where a stage stands: all that resuming needs besides tensors."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    window_loss: float = 0.0
    window_count: float = 0.0
    window_notes: dict[str, float] = field(default_factory=dict)
    window_tasks: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens: int = 0
    task_tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    rows: int = 0
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int = -1
    best_step: int = -1
    epochs_without_better: int = 0
    scaler: dict[str, Any] | None = None


def optimizer_tensors(optimizer: Optimizer, plan: TrainablePlan) -> dict[str, Tensor]:
    """`<parameter>|<slot>` -> tensor, on the CPU."""
    return {
        f"{name}|{key}": value.detach().cpu().contiguous()
        for name, parameter in _named_parameters(plan)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: Optimizer, plan: TrainablePlan, file: Path) -> None:
    """Put back what `optimizer_tensors` gave, from the safetensors file that holds it."""
    parameters = dict(_named_parameters(plan))
    for key, value in load_file(file).items():
        name, slot = key.rsplit("|", 1)
        parameter = parameters[name]
        kept = value.clone() if slot == "step" else value.to(parameter.device, copy=True)  # not a view of the file
        optimizer.state[parameter][slot] = kept


def _named_parameters(plan: TrainablePlan) -> list[tuple[str, nn.Parameter]]:
    return [
        (canonical(name), parameter) for planned in plan.groups for name, parameter in zip(planned["names"], planned["params"], strict=True)
    ]
