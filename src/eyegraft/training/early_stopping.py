"""Which validation value chooses the best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eyegraft.config import EarlyStopping, Settings
from eyegraft.errors import DataError, RecipeError, nearest
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture
from eyegraft.types import Sample


def watched_direction(settings: Settings, stage: str, task: Task, val_samples: Sequence[Sample]) -> bool:
    """Whether the value that chooses the best checkpoint is better when higher. Asked before the first step, not after the first epoch.

    Raises:
        RecipeError: early stopping watches what validation does not give.
    """
    rule, place = settings.early_stopping, f"stages.{stage}.early_stopping"
    if not val_samples:
        if rule != EarlyStopping():
            raise RecipeError(f"{place} without validation data", "a split called val", "set data.tables.val or data.split.fractions.val")
        return False
    directions = {"val_loss": False, **{f"val_{name}": higher for name, higher in task.directions.items()}}
    if isinstance(task, Mixture):
        directions |= {f"val_loss_{name}": False for name in task.tasks}
    if rule.metric not in directions:
        raise RecipeError(f"{place}.metric={rule.metric!r}", f"one of {', '.join(directions)}", nearest(rule.metric, directions))
    if rule.metric != "val_loss":
        _stop_if_undefined(rule.metric, place, task, val_samples)
    return directions[rule.metric] if rule.mode == "auto" else rule.mode == "max"


def _stop_if_undefined(metric: str, place: str, task: Task, val_samples: Sequence[Sample]) -> None:
    """Raises:
    DataError: the samples of validation give no such value: they are of one class, state no facts, or none is of the task.
    """
    losses = {f"loss_{name}": 0.0 for name in task.places(val_samples)} if isinstance(task, Mixture) else {}
    corpus = {"loss": 0.0, **losses, **task.score([task.prior(val_samples)] * len(val_samples), val_samples).corpus}
    name = metric.removeprefix("val_")
    if name not in corpus:
        given = f"{place}.metric={metric}, which these {len(val_samples)} samples of the validation split do not give"
        there = ", ".join(f"val_{name}" for name, value in corpus.items() if math.isfinite(value))
        raise DataError(given, f"one of {there}", "name one of these, or give validation rows that state what the metric reads")
    if not math.isfinite(corpus[name]):
        raise DataError(
            f"{place}.metric={metric}, which the validation split leaves undefined ({len(val_samples)} samples of one class)",
            "validation samples of two classes or more",
            "another split, or early_stopping.metric=val_loss",
        )
