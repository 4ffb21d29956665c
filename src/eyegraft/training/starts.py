"""Which stages a command trains, and what each of them starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eyegraft.errors import PartError, RunError, shown
from eyegraft.sensors import Sensor
from eyegraft.training.checkpoints import checkpoints_of, find_checkpoint, read_config
from eyegraft.training.runs import Run, read_place

log = logging.getLogger(__name__)


def stages_to_train(run: Run) -> list[str]:
    """The stages of this command that are not finished, in their order. Where each starts is known now, or known to come.

    Raises:
        RunError: a stage would start from one that this run has not trained, or from a run that is not there.
    """
    recipe = run.recipe
    found: list[str] = []
    for stage in recipe.stage_names:
        if stage not in run.needed:
            log.warning("stage %s is left out: a later stage of this run started from another run (--fresh trains them all anew)", stage)
        elif not run.is_finished(stage):
            if stage not in run.facts["stages"]:  # once begun it goes on by itself
                start_of(run, stage, to_come=found)
            found.append(stage)
    return found


def start_of(run: Run, stage: str, to_come: Sequence[str] = ()) -> tuple[Path | None, list[str]]:
    """The checkpoint that a stage starts from, and the stages behind it: the run that the stage names itself; or the stage before it; or,
    where no stage before it was begun in this run, the run that `train` names; or nothing, of the recipe's first stage.

    Args:
        to_come: stages that will have been trained by then; what starts from them is looked for later.

    Raises:
        RunError: the stage before it has not been trained in this run, or the run that is named is none.
    """
    stages = list(run.recipe.stages)
    before = stages[: stages.index(stage)]
    named, key = run.recipe.stages[stage].get("init_from"), f"stages.{stage}.init_from"
    if named is None and not any(name in run.facts["stages"] or name in to_come for name in before):
        named, key = run.recipe.train.init_from, "train.init_from"
    if named is not None:
        return start_elsewhere(named, key)
    if not before or before[-1] in to_come:
        return None, []
    found = find_checkpoint(checkpoints_of(run.folder / before[-1]) / "best")
    if found is None or not run.is_finished(before[-1]):
        raise RunError(
            f"stage {stage!r} starts from {before[-1]!r}, which this run has not trained",
            "the stages in their order, or a run to start from",
            f"run_stages=[{before[-1]}] first, or run_stages=[{stage}] train.init_from=RUN, or +stages.{stage}.init_from=RUN",
        )
    return found, read_config(found)["lineage"]


def start_elsewhere(named: str, key: str) -> tuple[Path, list[str]]:
    """The checkpoint that a path names, and the stages behind it: of a run, the last stage that has one.

    Args:
        key: where the recipe names it.

    Raises:
        RunError: it names none.
    """
    try:
        other, stage, which = read_place(named)
        path = other.checkpoint(stage, which)
    except RunError as error:
        raise RunError(f"{key}: {error.given}", error.expected, error.fix) from error
    return path, [f"{other.folder.parent.name}/{other.folder.name}/{name}" for name in read_config(path)["lineage"]]


def stop_at_other_inputs(start: Path | None, inputs: Mapping[str, Any]) -> None:
    """Weights that saw the same sensor or map under other statistics saw other numbers. Of further columns it is said, not refused: another
    table has other means, and learning from it is what starting from a run is for.

    Raises:
        PartError: the checkpoint that a stage starts from was trained on patches of another sensor, or scaled otherwise.
    """
    before = (read_config(start).get("inputs") or {}) if start is not None else {}
    if "sensor" in before.get("image", {}) and "sensor" in inputs.get("image", {}):
        mine, theirs = (Sensor.model_validate(facts["image"]["sensor"]) for facts in (inputs, before))
        mine.require_same(theirs, here="these patches", there=f"the checkpoint {start}")
    maps = _scaled_otherwise(inputs, before, "image", "extra_statistics")
    if maps:
        given, fix = (
            f"extra_channels {shown(maps)} with other statistics than in {start}",
            "give the statistics.json that it was trained with",
        )
        raise PartError(given, "one mean and standard deviation of each map", fix)
    columns = _scaled_otherwise(inputs, before, "context", "statistics")
    if columns:
        log.warning("context_encoder starts from %s, which saw %s scaled by other means", start, shown(columns))


def _scaled_otherwise(inputs: Mapping[str, Any], before: Mapping[str, Any], modality: str, key: str) -> list[str]:
    mine, theirs = (facts.get(modality, {}).get(key) or {} for facts in (inputs, before))
    return [name for name in mine if name in theirs and not np.allclose(mine[name], theirs[name], rtol=1e-6, atol=0)]
