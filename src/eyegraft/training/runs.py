"""Run folders: `<root>/<experiment>/<timestamp>/`, found again, locked against a second process, described by `run.json`."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from eyegraft.composition import validate
from eyegraft.config import BESIDE_THE_RESULT, Recipe
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.samples import PreparedData
from eyegraft.errors import DataError, PartError, RecipeError, RunError, nearest
from eyegraft.files import write_atomically
from eyegraft.training.checkpoints import FINAL, checkpoints_of, find_checkpoint
from eyegraft.training.processes import first

log = logging.getLogger(__name__)
_PACKAGES = ("eyegraft", "torch", "transformers", "peft", "timm", "lightning-fabric", "safetensors", "numpy", "pillow", "sacrebleu")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class Run:
    """One run on disk.

    Attributes:
        folder: where it is kept.
        recipe: the resolved recipe that it was started with.
        facts: what `run.json` holds.
        new: whether this very command made it.
    """

    folder: Path
    recipe: Recipe
    facts: dict[str, Any] = field(default_factory=dict)
    new: bool = False

    def save(self) -> None:
        """Write `run.json`; of several processes the first one does."""
        if not first():
            return
        write_atomically(self.folder / "run.json", json.dumps(self.facts, indent=1, ensure_ascii=False))

    def note_stage(self, name: str, **facts: Any) -> None:
        self.facts["stages"].setdefault(name, {}).update(facts)
        self.save()

    def is_finished(self, stage: str) -> bool:
        return bool(self.facts["stages"].get(stage, {}).get("status") == "finished")

    def note_processes(self, number: int) -> None:
        """Write down how many processes train this run from now on."""
        before = self.facts.get("processes", 1)
        if number != before and self.facts["stages"]:
            log.warning(
                "this run was trained in %d processes and goes on in %d: the batches are the same, but sums are rounded otherwise and "
                "dropout is drawn otherwise",
                before,
                number,
            )
        self.facts["processes"] = number
        self.save()

    @property
    def needed(self) -> tuple[str, ...]:
        """See `needed_stages`."""
        return needed_stages(list(self.recipe.stages), self.facts["stages"])

    def log_file(self, name: str) -> Path:
        """Where what is said from now on is kept: `logs/<name>_<date>_<time>.log`."""
        return self.folder / "logs" / f"{name}_{datetime.now():%Y%m%d_%H%M%S}.log"

    def note_data(self, data: PreparedData) -> None:
        """Write down what the data are; on resume, refuse other ones.

        Raises:
            RunError: the data changed since the run began.
        """
        splits = {name: {"rows": len(samples), "sha256": data.split_sha256[name]} for name, samples in data.splits.items()}
        before = self.facts.get("data", {}).get("splits")
        if before is not None and before != splits:
            changed = [name for name in {*before, *splits} if before.get(name) != splits.get(name)]
            raise RunError(
                f"{self.folder}: the data of {', '.join(sorted(changed))} changed since this run began",
                "the same rows and images",
                "start anew with --fresh",
            )
        config = self.recipe.data
        self.facts["data"] = {"name": config.name, "about": config.about, "splits": splits}
        train = data.splits.get("train")
        if isinstance(train, PatchRows):  # what the patches say of themselves goes where the run goes: sensor, rasters, whether simulated
            self.facts["data"]["patches"] = dict(train.facts)
        self.facts["quarantined"] = dict(data.reasons)
        self.facts["quarantine_file"] = "quarantine.jsonl"
        self.save()

    def checkpoint(self, stage: str | None = None, which: str = "best") -> Path:
        """A whole checkpoint of a stage (by default of the last one that has any).

        Raises:
            RunError: there is none.
        """
        if stage is not None and stage not in self.recipe.stages:
            raise _no_stage(self, stage)
        for name in [stage] if stage else reversed(list(self.recipe.stages)):
            place = checkpoints_of(self.folder / name)
            found = find_checkpoint(place / which) or find_checkpoint(place / "latest")
            if found is not None:
                return found
        raise RunError(
            f"{self.folder} has no whole checkpoint" + (f" of stage {stage!r}" if stage else ""),
            f"a run that trained one of {', '.join(self.recipe.stages)}",
            "run `eyegraft train` again: it goes on where it stopped",
        )


def needed_stages(stages: Sequence[str], started: Collection[str]) -> tuple[str, ...]:
    """The stages that a run is to end with: all but those that a later one, which started from another run, has done without.

    Args:
        started: the stages that this run has begun.
    """
    last = max((place for place, name in enumerate(stages) if name in started), default=-1)
    return tuple(name for place, name in enumerate(stages) if name in started or place > last)


def read_run(folder: Path | str) -> Run:
    """Open a run folder.

    Raises:
        RunError: it is not one.
    """
    place = Path(folder).expanduser()
    try:
        facts = json.loads((place / "run.json").read_text(encoding="utf-8"))
        plain = yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        inside = sorted(str(path.parent) for path in place.glob("**/run.json"))[-3:] if place.is_dir() else []
        around = _around(place)
        fix = f"give one of {', '.join(inside)}" if inside else "give the folder that `eyegraft train` printed"
        fix = f"give {around}, which it is a part of" if around is not None else fix
        raise RunError(f"{place} is no run folder ({type(error).__name__})", "a folder with run.json and recipe.yaml", fix) from error
    return Run(place, validate(plain), facts)


def read_place(given: Path | str) -> tuple[Run, str | None, str]:
    """A run, the stage in it, and which of its checkpoints, from the path of a run, of a stage's folder (the same as its `best`,
    `checkpoints` or `model_final.safetensors`), or of a checkpoint. None for the stage: the last one that has a checkpoint.

    Raises:
        RunError: it is none of these.
    """
    place = Path(given).expanduser()
    folder = _around(place)
    if (place / "run.json").is_file() or folder is None:
        return read_run(place), None, "best"
    run = read_run(folder)
    stage, *rest = place.absolute().relative_to(folder).parts
    if stage not in run.recipe.stages:
        raise _no_stage(run, stage)
    kept = [part for part in rest if part != "checkpoints"] or ["best"]
    if kept not in (["best"], ["latest"], [FINAL]):
        raise RunError(
            f"{place} is no checkpoint of {folder}", "a run, a stage of it, or best or latest of a stage", f"give {folder / stage}"
        )
    return run, stage, "latest" if kept == ["latest"] else "best"


def _no_stage(run: Run, name: str) -> RunError:
    stages = list(run.recipe.stages)
    return RunError(
        f"{run.folder} has no stage {name!r}",
        f"one of {', '.join(stages)}",
        nearest(name, stages) or "name one, or the run alone for its last",
    )


def _around(place: Path) -> Path | None:
    """The run folder that a path leads into."""
    return next((folder for folder in place.absolute().parents[:3] if (folder / "run.json").is_file()), None)


def open_run(recipe: Recipe, *, resume: str | None = None, fresh: bool = False) -> Run:
    """The run to work in: the one named, else the newest unfinished one of the same recipe, else a new one.

    Raises:
        RunError: the run named was started with another recipe.
    """
    if resume is not None:
        run = read_run(resume)
        if run.recipe.fingerprint != recipe.fingerprint:
            differing = _differences(run.recipe.plain(), recipe.plain())
            raise RunError(
                f"--resume {resume}: the recipe differs in {', '.join(differing[:5])}",
                "the recipe that the run was started with",
                "drop the changed overrides, or start anew with --fresh",
            )
        return Run(run.folder, recipe, run.facts)
    for run in runs_of(recipe) if not fresh else ():
        if not run.facts["finished"]:
            log.info("going on with the unfinished run %s", run.folder)
            return run
    return _new_run(_home(recipe), recipe)


def runs_of(recipe: Recipe) -> Iterator[Run]:
    """The runs that were started with this very recipe, the newest first. A run.json that cannot be read is passed over with a message."""
    for file in sorted(_home(recipe).glob("*/run.json"), reverse=True):
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            same = facts["fingerprint"] == recipe.fingerprint
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("passing over %s: it cannot be read (%s)", file, type(error).__name__)
            continue
        if same:
            yield Run(file.parent, recipe, facts)


def _home(recipe: Recipe) -> Path:
    return Path(recipe.run_root).expanduser() / recipe.experiment_name


def _new_run(home: Path, recipe: Recipe) -> Run:
    while True:
        folder = home / datetime.now().strftime("%Y%m%d_%H%M%S")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            time.sleep(0.2)
        except OSError as error:
            raise RunError(f"cannot make the run folder {folder}: {error}", "a folder that can be written", "set run_root=PATH") from error
    facts = {
        "recipe": recipe.recipe,
        "title": recipe.title,
        "experiment": recipe.experiment_name,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "finished": False,
        "fingerprint": recipe.fingerprint,
        "seed": recipe.seed,
        "versions": versions(),
        "stages": {},
    }
    run = Run(folder, recipe, facts, new=True)
    resolved = yaml.safe_dump(recipe.plain(), allow_unicode=True, sort_keys=False)
    write_atomically(folder / "recipe.yaml", resolved)
    write_atomically(folder / ".hydra" / "config.yaml", resolved)  # where tools around Hydra look for it
    run.save()
    return run


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Keep a second process out of a run folder; the system lets go of the lock when the process ends, however it ends.

    Raises:
        RunError: another process is at work there.
    """
    lock = FileLock(run.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{run.folder} is in use by another process", "one process a run", "wait for it, or start a second run with --fresh"
        ) from error
    try:
        yield
    finally:
        lock.release()


_BEGUN = ("run.json", "recipe.yaml", ".hydra", ".lock", "logs")
"""What stands in a run's folder before anything is done."""
_LISTS = ("quarantine.jsonl", "near_duplicates.jsonl")
"""What is written there of the data; an error may name one of them."""


@contextmanager
def removed_if_empty(run: Run) -> Iterator[None]:
    """Take away a new run that cannot begin, of which there is nothing to keep: no list that the error names, no metrics, no weights. The
    error says it all; what went wrong in training, and a bug of ours, have their traceback in a log that stays."""
    try:
        yield
    except (RecipeError, DataError, PartError, RunError, KeyboardInterrupt) as error:
        unsaid = (*_BEGUN, *(name for name in _LISTS if str(run.folder / name) not in str(error)))
        files = (path for path in run.folder.rglob("*") if path.is_file() and path.relative_to(run.folder).parts[0] not in unsaid)
        if run.new and not any(path.stat().st_size for path in files):
            log.info("%s is taken away: there is nothing in it to go on from", run.folder)
            shutil.rmtree(run.folder, ignore_errors=True)
            with suppress(OSError):
                run.folder.parent.rmdir()  # of an experiment that has no other run
        raise


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b and key not in BESIDE_THE_RESULT:
            found.append(f"{prefix}{key} ({a!r} there, {b!r} here)")
    return found


def plan_rows(rows: list[Any]) -> list[dict[str, Any]]:
    """The trainable table as plain data."""
    return [asdict(row) for row in rows]
