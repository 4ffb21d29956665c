"""The command line in this process, where a second process adds nothing but seconds; and the words of the two test recipes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from eyegraft import composition, registry
from eyegraft.cli import main

TESTS = Path(__file__).parent.parent
TINY = ("--plugin", "tinyparts", "--config-dir", str(TESTS / "tinyparts" / "conf"))
SMALL = ("--config-dir", str(TESTS / "cli" / "conf"))


def run(*words: str, cwd: Path) -> CompletedProcess[str]:
    """`eyegraft WORDS` in a folder: exit code, standard output, and standard error with the log in it.

    An error that the command line would show as a traceback is raised here, so that a test fails by it.
    """
    out, err = StringIO(), StringIO()
    handler, logger, argv = logging.StreamHandler(err), logging.getLogger("eyegraft"), sys.argv
    logger.addHandler(handler)
    GlobalHydra.instance().clear()
    try:
        with kept_registry(), chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            code: Any = main(list(words))
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        logger.removeHandler(handler)
        sys.argv = argv
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())


@contextmanager
def kept_registry() -> Iterator[None]:
    """Forget afterwards which plugins and configuration folders were named within, as a process that ends does."""
    plugins, conf_dirs = list(registry._plugins), list(composition._conf_dirs)
    try:
        yield
    finally:
        registry._plugins[:], composition._conf_dirs[:] = plugins, conf_dirs


def tiny_run(verb: str, *words: str, cwd: Path) -> CompletedProcess[str]:
    """A verb with the torch-only parts of `tinyparts` at hand."""
    return run(verb, *words, *TINY, cwd=cwd)


def small_words(folders: Any, *overrides: str, lm: str = "llama", chat: bool = True) -> list[str]:
    """The recipe `small` on tiny folders in the hub's layout."""
    return ["recipe=small", f"vision_encoder.model={folders.vision('siglip')}", f"head.model={folders.lm(lm, chat=chat)}", *overrides]


class Interrupted(Exception):
    """What a test stops a training with."""


def stop_before(monkeypatch: pytest.MonkeyPatch, step: int, stage: str | None = None) -> None:
    """Let the trainer of a stage (None: of every one) raise where it would take this step, counted from 0."""
    from eyegraft.training.loop import StageTrainer

    whole: Callable[..., Any] = StageTrainer._step

    def counted(self: StageTrainer, group: Any) -> Any:
        if self.at.step == step and stage in (None, self.stage):
            raise Interrupted
        return whole(self, group)

    monkeypatch.setattr(StageTrainer, "_step", counted)


def trained(done: CompletedProcess[str]) -> Path:
    """The run folder that a `train` printed."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def refused(done: CompletedProcess[str], code: int, *words: str) -> str:
    """One clear error: the exit code of its kind, no traceback, and every word that a person needs."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1, done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in:\n{done.stderr}"
    return done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(run: Path) -> list[dict[str, Any]]:
    """All metrics of all stages, without the clock."""
    lines = [json.loads(line) for path in sorted(run.glob("*/metrics.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


def write_table(path: Path, table: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table), encoding="utf-8")
    return path


def read_table(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tensors(run: Path) -> dict[str, bytes]:
    """Every tensor file of the checkpoints of a run that are in use."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.rglob("*.safetensors")) if "previous" not in str(path)
    }
