"""What a recipe names, built for a stage: device, model, task and objective."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from eyegraft.config import Recipe, Settings
from eyegraft.data.batches import derived_seed
from eyegraft.data.text import Encoded
from eyegraft.errors import RecipeError, nearest
from eyegraft.model import Graft, assemble
from eyegraft.registry import configured
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture
from eyegraft.training import processes


def make_fabric(recipe: Recipe, precision: str) -> Any:
    """Lightning Fabric on the recipe's device."""
    from lightning_fabric import Fabric

    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first handle is made; without it CUDA's sums may differ
    torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    try:
        return Fabric(accelerator=recipe.device, devices=processes.devices(recipe.device), precision=precision)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"device={recipe.device}: {error}", "a device that this machine has", "set device=auto or device=cpu") from error


def build_model(recipe: Recipe) -> Graft:
    """Assemble a recipe's model; new parts get the same random weights for the same seed."""
    torch.manual_seed(derived_seed("init", recipe.seed))
    return assemble(recipe)


def build_task(recipe: Recipe, settings: Settings) -> Task:
    """The task that a stage learns; of several, their mixture."""
    tasks: dict[str, Task] = {}
    for name in recipe.tasks_of(settings):
        module, config = configured("tasks", recipe.tasks[name])
        tasks[name] = module.build(name, config)
    return Mixture(tasks) if len(tasks) > 1 else next(iter(tasks.values()))


def build_objective(task: Task, settings: Settings) -> Any:
    """The objective of a stage.

    Raises:
        RecipeError: the task's outputs mean nothing to it.
    """
    part = settings.objective_of(task.objectives[0])
    if part.kind not in task.objectives:
        key, own = "loss_type" if settings.objective is None else "objective.kind", task.objectives[0]
        way = f"set train.{key}={own}"
        if (part.kind, own) == ("focal", "softmax"):
            way += ", or its focal form: train.loss_type=null train.objective='{kind: softmax, gamma: 2}'"
        raise RecipeError(
            f"train.{key}={part.kind} with tasks.{task.name}",
            f"one of {', '.join(task.objectives)}",
            nearest(part.kind, task.objectives) or way,
        )
    module, config = configured("objectives", part)
    return module.build(config)


def fit_objective(objective: Any, encoded: Sequence[Encoded]) -> None:
    """Show an objective that balances classes the training targets."""
    if hasattr(objective, "fit"):
        objective.fit(torch.tensor([found.target for found in encoded]))  # [N, K]
