"""A model that was trained, ready to answer."""

from __future__ import annotations

from pathlib import Path

from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.training.building import build_model, build_task, make_fabric
from eyegraft.training.checkpoints import load_weights, read_config
from eyegraft.training.inputs import restore_inputs
from eyegraft.training.runs import Run


def load_model(run: Run, stage: str | None = None, which: str = "best") -> tuple[Graft, Task, Path]:
    """The model, task and checkpoint of a run's stage (by default its last), on the run's device, ready to answer."""
    path = run.checkpoint(stage, which)
    config = read_config(path)
    model = build_model(run.recipe)
    load_weights(path, model)
    restore_inputs(model, config.get("inputs") or {})
    task = build_task(run.recipe, run.recipe.stage(config["stage"]))
    facts = run.facts["stages"].get(config["stage"], {})
    task.learned, task.decision = facts.get("learned") or {}, facts.get("decision") or {}
    return model.to(make_fabric(run.recipe, "32-true").device).eval(), task, path
