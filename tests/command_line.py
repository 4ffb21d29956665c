"""The real command line in a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def arguments(*words: str, tiny: bool = False) -> list[str]:
    """The command; `tiny` names the package and recipes of `tinyparts`."""
    options = ["--plugin", "tinyparts", "--config-dir", str(TESTS / "tinyparts" / "conf")] if tiny else []
    return [sys.executable, "-m", "eyegraft", *words, *options]


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", **changes}


def eyegraft(
    *words: str, cwd: Path, tiny: bool = False, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run to the end; gives the exit code and what was printed."""
    command = arguments(*words, tiny=tiny)
    return subprocess.run(
        command, cwd=cwd, env=environment(**(env or {})), capture_output=True, text=True, encoding="utf-8", timeout=240, **options
    )
