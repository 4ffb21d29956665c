"""Runs at work: the predictor behind `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eyegraft.serving.predictor import Predictor


def load_run(run: Path | str, *, stage: str | None = None, task: str | None = None) -> Predictor:
    """A run's best checkpoint, ready to answer: `load_run("runs/demo/…").predict(["cat.png"])`."""
    from eyegraft.serving.predictor import Predictor

    return Predictor(run, stage=stage, task=task)
