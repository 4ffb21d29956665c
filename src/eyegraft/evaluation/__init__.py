"""What a run is worth: its answers beside dumb baselines and damaged inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def evaluate(
    run: Path | str, *, splits: Sequence[str] | None = None, stage: str | None = None, table: str | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluate a run on held-out splits; gives split -> result, as written to `<run>/evaluation/<split>.json`. A stage that learned several
    tasks has a result for each that the split has rows of, `<split>.<task>`.

    Args:
        splits: None takes the recipe's `evaluation.splits`.
        stage: which stage's best checkpoint; None the last. What another one gives is written to `<split>@<stage>.json`.
        table: another table of the same columns, evaluated in place of the recipe's splits.

    Raises:
        RunError: `train` or `val` are no longer what the run was trained on.
        DataError: there is no such split, or `table` shares a group or a byte-identical picture with `train` or `val`.
    """
    from eyegraft.evaluation.run import evaluate_run

    return evaluate_run(run, splits=splits, stage=stage, table=table)
