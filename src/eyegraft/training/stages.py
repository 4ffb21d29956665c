"""From a recipe to a finished run: data, model, plan and trainer of each stage in turn."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from eyegraft.answering import answer_samples, num_tokens
from eyegraft.config import Recipe, Settings
from eyegraft.console import log_to, progress
from eyegraft.data.batches import derived_seed
from eyegraft.data.samples import PreparedData, load_samples
from eyegraft.data.text import Encoded
from eyegraft.errors import RecipeError
from eyegraft.files import disk_errors
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.training import processes
from eyegraft.training.building import build_model, build_objective, build_task, fit_objective, make_fabric
from eyegraft.training.checkpoints import checkpoints_of, find_checkpoint, keep_final, load_objective, load_weights, read_config, settle
from eyegraft.training.early_stopping import watched_direction
from eyegraft.training.features import read_from_cache
from eyegraft.training.inputs import teach_inputs
from eyegraft.training.loop import StageTrainer
from eyegraft.training.perturbation import blind_spots
from eyegraft.training.runs import Run, locked, open_run, plan_rows, removed_if_empty
from eyegraft.training.stage_data import StageData, encode_splits, prepare_task, rows_of, stage_data, stop_at_split, stop_without_train
from eyegraft.training.starts import stages_to_train, start_of, stop_at_other_inputs
from eyegraft.training.trackers import open_trackers
from eyegraft.tuning import make_plan

log = logging.getLogger(__name__)


def train_stages(recipe: Recipe, *, resume: str | None, fresh: bool) -> Path:
    """See `eyegraft.training.train`."""
    with processes.joined(recipe.device), ExitStack() as closing:
        for stage in recipe.stage_names:
            _stop_at_small_batches(recipe.stage(stage), stage)

        def opened() -> Run:
            found = open_run(recipe, resume=resume, fresh=fresh)
            closing.enter_context(removed_if_empty(found))
            closing.enter_context(locked(found))
            return found

        run = processes.from_first(opened)
        with _kept_log(run, "train"), disk_errors(run.folder):
            log.info("run folder %s", run.folder)
            run.note_processes(processes.world())
            _train_stages(run)
    return run.folder


def _train_stages(run: Run) -> None:
    recipe = run.recipe
    todo = stages_to_train(run)
    quarantine = run.folder / "quarantine.jsonl"

    def loaded() -> PreparedData:
        with progress("checking images", None) as advance:
            return load_samples(
                recipe.data,
                read_images=recipe.reads_images,
                panoramas=recipe.views is not None,
                quarantine_file=quarantine if processes.first() else None,
                progress=lambda done, total: advance(),
            )

    data = processes.first_then_others(loaded)
    stop_without_train(data)
    run.note_data(data)
    if data.quarantined:
        log.warning("%d rows are not used, see %s: %s", len(data.quarantined), quarantine, dict(data.reasons))
    read: dict[str, dict[str, Sequence[Encoded]]] = {}
    for stage in todo:
        with _kept_log(run, stage):
            _train_stage(run, stage, data, read)
    run.facts["finished"] = all(run.is_finished(stage) for stage in run.needed)
    run.save()


def _kept_log(run: Run, name: str) -> AbstractContextManager[None]:
    return log_to(run.log_file(name)) if processes.first() else nullcontext()


def _train_stage(run: Run, stage: str, data: PreparedData, read: dict[str, dict[str, Sequence[Encoded]]]) -> None:
    """Train one stage to its end.

    Args:
        read: see `_look_ahead`.
    """
    recipe, settings, folder = run.recipe, run.recipe.stage(stage), run.folder / stage
    folder.mkdir(exist_ok=True)
    started, fabric = time.monotonic(), make_fabric(recipe, settings.precision)
    latest = processes.from_first(lambda: _latest(folder))
    model = build_model(recipe)
    task = build_task(recipe, settings)
    objective = build_objective(task, settings)
    start, lineage = (latest, read_config(latest)["lineage"][:-1]) if latest is not None else start_of(run, stage)
    saved = load_weights(start, model) if start is not None else set()
    torch.manual_seed(derived_seed("plan", recipe.seed, stage))
    plan = make_plan(model, settings, objective=objective, saved=saved)
    if latest is not None:
        load_objective(latest, objective)  # what an objective learned belongs to its stage
    log.info("stage %s%s\n%s", stage, f" from {start}" if start is not None and latest is None else "", plan.table())
    run.facts["device"] = str(fabric.device)
    run.note_stage(stage, status="running", trainable=plan_rows(plan.rows))
    _look_ahead(recipe, stage, task, data, model, read)
    inputs = teach_inputs(recipe, model, data)
    stop_at_other_inputs(start, inputs)
    run.facts["inputs"] = inputs
    run.note_stage(stage, learned=dict(task.learned))
    encoded = read[f"{task.name} of {settings.split}"]
    examples = stage_data(recipe, settings, model, rows_of(data, task), encoded, inputs)
    fit_objective(objective, encoded[settings.split])
    with ExitStack() as closing:
        trackers = closing.enter_context(open_trackers(recipe, run.folder, stage)) if processes.first() else []
        model.to(fabric.device)
        num_tokens(model)  # parts that do not fit each other say so here, before every sample is encoded
        unseen = blind_spots(model, examples)
        for line in unseen:
            log.warning("%s does not see: %s", stage, line)
        run.note_stage(stage, unseen=unseen)
        processes.first_then_others(lambda: read_from_cache(recipe, settings, model, examples, closing))
        trainer = StageTrainer(recipe, stage, folder, fabric, model, objective, task, plan, examples, trackers, lineage)
        log.info(
            "%d steps, %s, %s; %.0f s to get ready", trainer.total_steps, _where(fabric), settings.precision, time.monotonic() - started
        )
        at = trainer.run(latest)
        decision = processes.from_first(lambda: _settle(run, stage, model, task, examples))
    final = find_checkpoint(checkpoints_of(folder) / "best")
    if final is not None and processes.first():
        keep_final(folder, final)
    best = {
        "epoch": at.best_epoch + 1,
        "step": at.best_step,
        "metric": settings.early_stopping.metric,
        "value": at.best,
        "higher_is_better": trainer.higher_is_better,
    }
    run.note_stage(stage, status="finished", seconds=round(at.seconds, 1), steps=at.step, best=best, decision=decision)
    log.info("stage %s is finished: %d steps in %.0f s; the best is of epoch %d, in %s", stage, at.step, at.seconds, best["epoch"], final)


def _look_ahead(
    recipe: Recipe, stage: str, task: Task, data: PreparedData, model: Graft, read: dict[str, dict[str, Sequence[Encoded]]]
) -> None:
    """Read what this stage and all that are still to come ask and teach, so that a fault in the last one's texts, labels or early stopping
    is found before the first one trains.

    Args:
        task: of this stage.
        read: task and split -> what the samples ask and teach; filled.
    """
    for later in recipe.stage_names[recipe.stage_names.index(stage) :]:
        its_task = task if later == stage else build_task(recipe, recipe.stage(later))
        build_objective(its_task, recipe.stage(later))
        stop_at_split(recipe, later, data)
        its_data = rows_of(data, its_task)
        prepare_task(recipe, its_task, its_data)
        key = f"{its_task.name} of {recipe.stage(later).split}"
        if key not in read:
            read[key] = encode_splits(its_task, recipe.stage(later), its_data, model)
        watched_direction(recipe.stage(later), later, its_task, its_data.splits.get("val", []))


def _where(fabric: Any) -> str:
    return f"{processes.world()} processes on {fabric.device.type}" if processes.several() else str(fabric.device)


def _latest(folder: Path) -> Path | None:
    """Where a stage goes on from, once what a kill left half-way is settled."""
    kept = checkpoints_of(folder)
    for name in ("best", "latest"):
        settle(kept / name)
    return find_checkpoint(kept / "latest")


def _stop_at_small_batches(settings: Settings, stage: str) -> None:
    if settings.batch_size < processes.world():
        raise RecipeError(
            f"stages.{stage}.batch_size={settings.batch_size} with {processes.world()} processes, which share every batch",
            "at least one sample for each of them",
            f"set train.batch_size={processes.world()} or more, or start fewer processes",
        )


def _settle(run: Run, stage: str, model: Graft, task: Task, examples: StageData) -> dict[str, Any]:
    """What the task chooses on validation data, such as a threshold, with the best weights of the stage."""
    best = find_checkpoint(checkpoints_of(run.folder / stage) / "best")
    if examples.val is None or best is None or not task.reads_logits:
        return {}
    load_weights(best, model)
    size, workers = run.recipe.evaluation.batch_size, examples.num_workers
    answers = answer_samples(
        model, task, examples.val_samples, examples.val.readers, batch_size=size, num_workers=workers, label="settling on validation"
    )
    return task.settle(answers, examples.val_samples)
