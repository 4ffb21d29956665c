"""What `train -m` does around its jobs: goes on after one that failed, and ends with one table."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from eyegraft.errors import EyegraftError
from eyegraft.files import write_atomically


@dataclass(frozen=True)
class Outcome:
    """How one job ended: with a run, or with an error."""

    overrides: tuple[str, ...]
    run: Path | None = None
    error: str = ""
    exit_code: int = 0


def attempt(overrides: Sequence[str], job: Callable[[], Path], *, debug: bool) -> Outcome:
    """Run one job. Its error is printed at once, and does not keep the next job from running; with `debug` it is raised."""
    words = tuple(word.lstrip("+") for word in overrides)
    try:
        return Outcome(words, job())
    except Exception as error:  # a GPU without memory among them: the other jobs may be smaller
        if debug:
            raise
        if isinstance(error, EyegraftError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        from eyegraft.training.sweep import in_one_line

        return Outcome(words, error=in_one_line(error), exit_code=error.exit_code if isinstance(error, EyegraftError) else 1)


def note(folder: Path, number: int, outcome: Outcome) -> None:
    """Leave a job's outcome in a folder: a launcher may have run the job in another process."""
    plain = {**asdict(outcome), "run": str(outcome.run) if outcome.run is not None else None}
    write_atomically(folder / f"{number:06d}.json", json.dumps(plain), durable=False)


def noted(folder: Path) -> list[Outcome]:
    """What the jobs left there, in the order of their numbers."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("[0-9]*.json"))]
    return [
        Outcome(tuple(plain["overrides"]), Path(plain["run"]) if plain["run"] is not None else None, plain["error"], plain["exit_code"])
        for plain in found
    ]


def conclude(outcomes: Sequence[Outcome]) -> int:
    """Print one table of all runs, and the jobs that failed; gives the exit code: that of the first failure."""
    from eyegraft.cli.compare import print_comparison
    from eyegraft.evaluation.compare import compare_runs

    runs = [outcome.run for outcome in outcomes if outcome.run is not None]
    if runs:
        print()
        print_comparison(compare_runs(runs))
    shared = set.intersection(*(set(outcome.overrides) for outcome in outcomes)) if len(outcomes) > 1 else set()
    failed = [outcome for outcome in outcomes if outcome.run is None]
    for outcome in failed:
        print(f"failed: {' '.join(word for word in outcome.overrides if word not in shared)}: {outcome.error}")
    return failed[0].exit_code if failed else 0
