"""Search: trials with numbers drawn from ranges, each a run of its own, the best by the validation value that its last stage watched.

What a trial is, is written down before it trains. Draws are a pure function of the seed, the trial's number and the trials before it
(the sampler is Optuna's TPE, Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization), so a search that was killed goes on to
the very trials that it would have made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eyegraft.config import Recipe
from eyegraft.console import progress
from eyegraft.data.samples import load_samples
from eyegraft.errors import EyegraftError, PartError, RecipeError, RunError, TrainingError
from eyegraft.files import write_atomically
from eyegraft.training import train
from eyegraft.training.runs import runs_of

log = logging.getLogger(__name__)
Parameters = dict[str, Any]
Hashes = dict[str, dict[str, str]]
"""Data, as JSON and whether their pictures are read -> split -> hash."""


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones if both are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def rounded(self, value: float) -> float:
        """Four digits are enough to search with, and can be typed again."""
        return value if self.whole else min(max(float(f"{value:.4g}"), self.low), self.high)

    def examples(self) -> list[Any]:
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [self.low, int(middle) if self.whole else self.rounded(middle), self.high]


@dataclass(frozen=True)
class Choices:
    """One of these, as typed."""

    values: tuple[str, ...]

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def rounded(self, value: str) -> str:
        return value

    def examples(self) -> list[Any]:
        return list(self.values)


Space = Mapping[str, Range | Choices]


@dataclass
class Trial:
    """One trial.

    Attributes:
        parameters: key -> value.
        state: `running` (or killed), `finished` or `failed`.
        run: its folder; value: its best watched validation value; error: why it failed.
    """

    number: int
    parameters: Parameters
    state: str = "running"
    run: str | None = None
    value: float | None = None
    error: str | None = None


@dataclass
class Search:
    """A search on disk: `<run_root>/<experiment>/sweep-<hash>/sweep.json`.

    Attributes:
        folder: where it is kept.
        metric: what is searched by.
        higher_is_better: None until the first trial has ended.
    """

    folder: Path
    space: Space
    seed: int
    metric: str
    higher_is_better: bool | None = None
    trials: list[Trial] = field(default_factory=list)

    def load(self) -> None:
        """Take over the trials that are on disk.

        Raises:
            RunError: the file is damaged.
        """
        file = self.folder / "sweep.json"
        if not file.exists():
            return
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            self.trials = [Trial(**trial) for trial in plain["trials"]]
            self.higher_is_better = plain["higher_is_better"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{file} cannot be read", "what `eyegraft sweep` wrote", "remove it: the trials' runs are found again"
            ) from error
        log.info("going on with %s", self.folder)

    def save(self) -> None:
        plain = {
            "space": {key: {"kind": type(part).__name__.lower(), **asdict(part)} for key, part in self.space.items()},
            "seed": self.seed,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "trials": [asdict(trial) for trial in self.trials],
        }
        write_atomically(self.folder / "sweep.json", json.dumps(plain, indent=1, ensure_ascii=False))

    @property
    def best(self) -> Trial | None:
        """The best finished trial; the earlier of two alike."""
        finished = [trial for trial in self.trials if trial.value is not None]
        return min(finished, key=self._cost, default=None)

    def _cost(self, trial: Trial) -> float:
        assert trial.value is not None
        return -trial.value if self.higher_is_better else trial.value

    def next_trial(self) -> Trial:
        """Draw the next trial, and write it down."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        number = len(self.trials)
        digest = hashlib.sha256(json.dumps(["trial", self.seed, number]).encode()).digest()
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4])))
        distributions = {key: part.distribution() for key, part in self.space.items()}
        for trial in self.trials:
            if trial.value is not None:
                study.add_trial(optuna.trial.create_trial(params=trial.parameters, distributions=distributions, value=self._cost(trial)))
        drawn = study.ask(distributions).params
        self.trials.append(Trial(number, {key: part.rounded(drawn[key]) for key, part in self.space.items()}))
        self.save()
        return self.trials[-1]


def search(compose: Callable[[Parameters], Recipe], space: Space, num_trials: int, *, debug: bool = False) -> Search:
    """Run the trials that are still to be run of `num_trials`; gives the whole search.

    A trial that is finished stays as it is, one that was killed goes on in its run, one that failed is tried again.

    Args:
        compose: parameters -> recipe.
        debug: raise the error of a trial instead of going on to the next.

    Raises:
        RecipeError: some value of the space makes no valid recipe, or the recipe has no validation split to choose by.
        RunError: another process is at this search.
        TrainingError: every trial failed.
        PartError: Optuna is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise PartError("a search, but optuna is not installed", "the extra `sweep`", "pip install 'eyegraft[sweep]'") from error
    read: Hashes = {}
    opened = _open(compose, space, read)
    with _alone(opened.folder):
        opened.load()
        for number in range(num_trials):
            trial = opened.trials[number] if number < len(opened.trials) else opened.next_trial()
            if trial.state == "finished":
                log.info("trial %d of %d is finished: %s", number + 1, num_trials, trial.run)
                continue
            words = "  ".join(f"{key}={value}" for key, value in trial.parameters.items())
            log.info("trial %d of %d: %s", number + 1, num_trials, words)
            _attempt(opened, trial, compose(trial.parameters), read, debug)
    if opened.best is None:
        first = opened.trials[0].error or ""
        raise TrainingError(
            f"all {len(opened.trials)} trials failed; the first: {first}", "trials that train", "mend the first one's error"
        )
    return opened


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process out; the system lets go of the lock when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(f"{folder} is in use by another process", "one process a search", "wait for it, or search another space") from error
    try:
        yield
    finally:
        lock.release()


def _open(compose: Callable[[Parameters], Recipe], space: Space, read: Hashes) -> Search:
    """The search of this space, recipe and data. Every fault comes out here, before the first trial."""
    recipes = [compose(parameters) for parameters in _examples(space)]  # all of them: any may hold the fault
    recipe = recipes[0]
    data = recipe.data
    place, splits = ("split.fractions", dict[str, Any](data.split.fractions)) if data.split else ("tables", dict[str, Any](data.tables))
    if data.satellite is not None:
        place, splits = "satellite.patches", dict(data.satellite.patches)
    if "val" not in splits:
        raise RecipeError(f"the data have splits {', '.join(splits)}", "a split called val to choose by", f"set data.{place}.val")
    asked = [recipe.fingerprint, {key: [type(part).__name__, asdict(part)] for key, part in space.items()}, _data_sha256(recipe, read)]
    name = f"sweep-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]}"
    folder = Path(recipe.run_root).expanduser() / recipe.experiment_name / name
    return Search(folder, space, recipe.seed, recipe.stage(recipe.stage_names[-1]).early_stopping.metric)


def _examples(space: Space) -> list[Parameters]:
    """Every end, middle and choice of each key at least once."""
    examples = {key: part.examples() for key, part in space.items()}
    longest = max(len(values) for values in examples.values())
    return [{key: values[min(place, len(values) - 1)] for key, values in examples.items()} for place in range(longest)]


def _attempt(opened: Search, trial: Trial, recipe: Recipe, read: Hashes, debug: bool) -> None:
    trial.state, trial.error = "running", None
    opened.save()
    try:
        folder = train_or_reuse(recipe, read)
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        best = facts["stages"][recipe.stage_names[-1]]["best"]
        if best["value"] is None:
            raise RunError(f"{folder} has no validation value", "rows in the validation split", "check the split val of `data`")
        trial.state, trial.run, trial.value = "finished", str(folder), best["value"]
        opened.higher_is_better = best["higher_is_better"]
    except Exception as error:  # one trial that cannot train says nothing of the others
        if debug:
            raise
        if not isinstance(error, EyegraftError):  # such as a GPU without memory
            log.exception("trial %d", trial.number + 1)
        trial.state, trial.error = "failed", in_one_line(error)
        log.error("trial %d failed: %s", trial.number + 1, error)
    opened.save()


def in_one_line(error: Exception) -> str:
    """What was wrong, for a list."""
    return " ".join(error.given.split()) if isinstance(error, EyegraftError) else f"{type(error).__name__}: {error}".splitlines()[0]


# ── runs that are there already ──────────────────────────────────────────────────────────────────────────────────────────────────────


def train_or_reuse(recipe: Recipe, read: Hashes) -> Path:
    """Train a recipe, unless its newest run is finished and of the same data; gives the run.

    Args:
        read: hashes of data that were read already. Filled here: the runs of one command ask for the same data again and again.
    """
    for run in runs_of(recipe):
        if not run.facts["finished"]:
            break  # training goes on with it
        before = {name: split["sha256"] for name, split in run.facts.get("data", {}).get("splits", {}).items()}
        if before == _data_sha256(recipe, read):
            log.info("finished already: %s", run.folder)
            return run.folder
    return train(recipe)


def _data_sha256(recipe: Recipe, read: Hashes) -> dict[str, str]:
    """Of each split."""
    key = f"{recipe.reads_images} {recipe.views is not None} {recipe.data.model_dump_json()}"
    if key not in read:
        with progress("checking images", None) as advance:
            read[key] = load_samples(
                recipe.data, read_images=recipe.reads_images, panoramas=recipe.views is not None, progress=lambda done, total: advance()
            ).split_sha256
    return read[key]
