"""Hydra's own entry, imported by `train` alone: sweeps (`-m`), launchers and `--cfg job` are Hydra's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra

from eyegraft.cli import tell
from eyegraft.cli._multirun import attempt, conclude, note, noted
from eyegraft.composition import hydra_overrides, register_defaults, stop_at_hydra_settings, stop_at_unknown_recipe, to_plain, validate
from eyegraft.errors import EyegraftError, RecipeError, RunError
from eyegraft.registry import named_plugins, use_plugin
from eyegraft.training.processes import launched, stop_if_several

_options: dict[str, Any] = {}
"""Of this command. A launcher that runs `_job` in other processes takes them along; what the jobs give back goes through files."""
_hashes: dict[str, dict[str, str]] = {}
"""Of the data that they read (see `train_or_reuse`)."""


def run_hydra(words: Sequence[str], *, resume: str | None, fresh: bool, debug: bool) -> None:
    """Hand the arguments to Hydra, which calls `_job` once, or once a combination of a sweep."""
    for word in words:
        if word.startswith(("--config-", "-cd", "-cp", "-cn")):  # a folder that Hydra would read unseen by `stop_at_hydra_settings`
            raise RecipeError(word, "folders of recipes by --config-dir alone", "--config-dir FOLDER recipe=NAME")
    stop_at_hydra_settings(words)
    register_defaults()
    flags = [word for word in words if word.startswith("-")]
    if any(flag.split("=")[0] in ("-m", "--multirun") for flag in flags):
        stop_if_several("eyegraft train -m")
    values = {"job", "hydra", "all"}  # what may follow --cfg; everything else is an override
    plain = [word for word in words if not word.startswith("-")]
    after = [word.removeprefix("recipe=") for word in plain if word.removeprefix("recipe=") in values]
    overrides = hydra_overrides([word for word in plain if word.removeprefix("recipe=") not in values])
    names = {flag.split("=")[0] for flag in flags}
    several = bool(names & {"-m", "--multirun"})
    if several or names & {"--cfg", "-c"}:
        stop_at_unknown_recipe(overrides)
    argv = ["eyegraft train", *_interleaved(flags, after), *overrides]
    _hashes.clear()
    with TemporaryDirectory(prefix="eyegraft-", ignore_cleanup_errors=True) as outcomes:
        _options.update(resume=resume, fresh=fresh, debug=debug, plugins=named_plugins(), outcomes=outcomes)
        with _as_hydra_reads_it(argv, debug):
            _job()
        found = noted(Path(outcomes))
    if several and not found and not names & {"--cfg", "-c", "--info", "-i"}:
        raise RunError(
            "no job of the sweep reported back", "a launcher whose jobs share this machine's temporary folder", "drop hydra/launcher=…"
        )
    if found and (code := conclude(found)):
        raise SystemExit(code)


@contextmanager
def _as_hydra_reads_it(argv: list[str], debug: bool) -> Iterator[None]:
    """Hydra reads `sys.argv`, and the environment for its tracebacks; both are put back, for a process may train twice."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = argv
    if debug:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if debug and full is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _interleaved(flags: Sequence[str], values: Sequence[str]) -> list[str]:
    found = list(values)
    words: list[str] = []
    for flag in flags:
        words.append(flag)
        if flag in ("--cfg", "-c", "--info", "-i") and found:
            words.append(found.pop(0))
    return words


@hydra.main(version_base="1.3", config_path="pkg://eyegraft.conf", config_name="config")  # type: ignore[untyped-decorator]  # Hydra is not typed
def _job(composed: Any) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    setting = HydraConfig.get()
    options = dict(_options)
    for package in options["plugins"]:
        use_plugin(package)
    if setting.mode == RunMode.MULTIRUN:
        reuse = not options["fresh"] and options["resume"] is None
        outcome = attempt(setting.overrides.task, lambda: _train(composed, options, reuse=reuse), debug=options["debug"])
        note(Path(options["outcomes"]), setting.job.num, outcome)
        return
    try:
        _train(composed, options, reuse=False)
    except EyegraftError as error:
        if options["debug"]:
            raise
        tell(error)
        raise SystemExit(error.exit_code) from error


def _train(composed: Any, options: Mapping[str, Any], *, reuse: bool) -> Path:
    """Train one recipe and print its run, which of several processes the first one does. With `reuse`, one that is finished already is
    taken as it is."""
    from eyegraft.training import train
    from eyegraft.training.sweep import train_or_reuse

    recipe = validate(to_plain(composed))
    run = train_or_reuse(recipe, _hashes) if reuse else train(recipe, resume=options["resume"], fresh=options["fresh"])
    if launched().rank:
        return run  # the first process goes on alone
    if recipe.evaluation.after_training:
        from eyegraft.cli.evaluate import evaluate_once

        evaluate_once(run)
    print(run, flush=True)
    return run
