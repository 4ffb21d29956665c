"""Stages, the loop, checkpoints and run folders."""

from __future__ import annotations

from pathlib import Path

from eyegraft.config import Recipe


def train(recipe: Recipe, *, resume: str | None = None, fresh: bool = False) -> Path:
    """Train all stages of a recipe; gives the run folder.

    The same call goes on with the newest unfinished run of the same recipe; a finished one is never overwritten.

    Args:
        resume: a run folder to go on with.
        fresh: start a new run even where an unfinished one lies.
    """
    from eyegraft.training.stages import train_stages

    return train_stages(recipe, resume=resume, fresh=fresh)
