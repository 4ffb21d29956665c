"""Trainings one after another, as a script that torchrun starts: each is (words of `eyegraft train`, what befalls it)."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from eyegraft.cli import main
from eyegraft.errors import DataError
from eyegraft.training.loop import StageTrainer

whole = StageTrainer._step


def befall(event: dict[str, Any]) -> Any:
    """A step that kills this process, or that one process alone cannot take."""

    def step(self: StageTrainer, group: Any) -> Any:
        if self.at.step == event.get("kill_before"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.at.step == event.get("fail_before") and int(os.environ["RANK"]) == event["rank"]:
            raise DataError("drawn/7.png has vanished", "the picture", "bring it back")
        return whole(self, group)

    return step


if __name__ == "__main__":
    for words, event in json.loads(sys.argv[1]):
        StageTrainer._step = befall(event)  # type: ignore[method-assign]
        try:
            code = main(words)
        except SystemExit as stop:  # of Hydra's own entry
            code = stop.code
        if code and "refused" not in event:
            sys.exit(code)
