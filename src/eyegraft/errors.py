"""The exception tree. Every message says what was given, what was expected and how to fix it.

    EyegraftError
    ├── RecipeError      a recipe cannot be used: every fault in it is listed, each with its config path
    ├── DataError        rows, images or text that cannot be used; names the samples
    ├── PartError        a pretrained part is missing, or does not fit where it was put
    ├── RunError         a run folder is missing, busy, damaged or finished
    └── TrainingError    the optimisation itself went wrong (loss not finite, a tensor that never trains)

The command line prints these without a traceback and exits with `exit_code`; anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""The system's error numbers for a disk, a quota or a file that is full. Windows knows no quota."""


class EyegraftError(Exception):
    """Base of all errors that a user can mend.

    Args:
        given: what was found, with its place (config path, file, sample id).
        expected: what would have been right.
        fix: what to do now.
    """

    exit_code = 1

    def __init__(self, given: str, expected: str = "", fix: str = "") -> None:
        self.given, self.expected, self.fix = given, expected, fix
        lines = [given]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[EyegraftError], tuple[str, str, str]]:
        """Survive the trip out of a loader worker, where exceptions are sent between processes."""
        return type(self), (self.given, self.expected, self.fix)


class RecipeError(EyegraftError):
    exit_code = 2


class DataError(EyegraftError):
    exit_code = 3


class PartError(EyegraftError):
    exit_code = 4


class RunError(EyegraftError):
    exit_code = 5


class TrainingError(EyegraftError):
    exit_code = 6


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`did you mean 'x'?` when a candidate lies near `name`, else an empty string."""
    close = get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def shown(items: Sequence[object], limit: int = 5) -> str:
    """The first few items and how many more there are: `a, b, c and 12 more`."""
    head = ", ".join(str(item) for item in items[:limit])
    return head if len(items) <= limit else f"{head} and {len(items) - limit} more"
