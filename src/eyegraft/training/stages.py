"""From a recipe to a finished run: data, model, plan and trainer of each stage in turn."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eyegraft.answering import answer_samples, num_tokens, pad_id_of, readers_of, tokenizer_of
from eyegraft.config import Recipe, Settings
from eyegraft.console import log_to, progress, track
from eyegraft.data.batches import Examples, derived_seed, load_batches
from eyegraft.data.columns import check_columns
from eyegraft.data.inputs import learn_inputs, with_learned
from eyegraft.data.maps import check_classes
from eyegraft.data.patch_rows import PatchRows, stop_at_shared_readings
from eyegraft.data.samples import PreparedData, base_folder, load_samples
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import DataError, RecipeError, nearest, shown
from eyegraft.files import disk_errors
from eyegraft.model import Graft, assemble
from eyegraft.registry import configured
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture, each_task
from eyegraft.training import processes
from eyegraft.training.checkpoints import checkpoints_of, find_checkpoint, keep_final, load_objective, load_weights, read_config, settle
from eyegraft.training.features import frozen_modalities, stored_readers
from eyegraft.training.loop import StageData, StageTrainer, watched_direction
from eyegraft.training.perturbation import effects_of
from eyegraft.training.room import Room, room_of
from eyegraft.training.runs import Run, locked, open_run, plan_rows
from eyegraft.training.starts import stages_to_train, start_of, stop_at_other_inputs
from eyegraft.training.trackers import open_trackers
from eyegraft.tuning import make_plan
from eyegraft.types import ColumnSpec, ImageSpec, PatchSpec, Sample

log = logging.getLogger(__name__)
MAX_NAMED = 20
"""Samples that one message names."""


def train_stages(recipe: Recipe, *, resume: str | None, fresh: bool) -> Path:
    """See `eyegraft.training.train`."""
    with processes.joined(recipe.device), ExitStack() as closing:
        for stage in recipe.stage_names:
            _stop_at_small_batches(recipe.stage(stage), stage)

        def opened() -> Run:
            found = open_run(recipe, resume=resume, fresh=fresh)
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


def stop_without_train(data: PreparedData) -> None:
    if "train" not in data.splits:
        given = f"the data have splits {', '.join(data.splits)}"
        raise DataError(given, "a split called train", "set data.tables.train or data.split.fractions.train")


def stop_at_split(recipe: Recipe, stage: str, data: PreparedData) -> None:
    """A stage learns from a split that is there, and never from one that chooses the checkpoint or is reported as held out.

    Raises:
        RecipeError: another split.
        DataError: a further split to learn from shares readings with others.
    """
    wanted = recipe.stage(stage).split
    given = f"stages.{stage}.split={wanted!r}"
    if wanted not in data.splits:
        raise RecipeError(given, f"one of {', '.join(data.splits)}", nearest(wanted, data.splits) or "name one of the data's splits")
    if wanted == "val" or (wanted != "train" and wanted in recipe.evaluation.splits):
        what = "which chooses the checkpoint" if wanted == "val" else "which evaluation.splits reports as held out"
        raise RecipeError(f"{given}, {what}", "train, or a split for learning alone", f"set stages.{stage}.split=train")
    patches = {split: samples for split, samples in data.splits.items() if isinstance(samples, PatchRows)}
    if wanted in patches and wanted != "train":
        stop_at_shared_readings({split: rows for split, rows in patches.items() if split != "train"}, (wanted,))


def make_fabric(recipe: Recipe, precision: str) -> Any:
    """Lightning Fabric on the recipe's device."""
    from lightning_fabric import Fabric

    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first handle is made; without it CUDA's sums may differ
    torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    try:
        return Fabric(accelerator=recipe.device, devices=processes.devices(recipe.device), precision=precision)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"device={recipe.device}: {error}", "a device that this machine has", "set device=auto or device=cpu") from error


def build_model(recipe: Recipe) -> Graft:
    """Assemble a recipe's model; new parts get the same random weights for the same seed."""
    torch.manual_seed(derived_seed("init", recipe.seed))
    return assemble(recipe)


def build_task(recipe: Recipe, settings: Settings) -> Task:
    """The task that a stage learns; of several, their mixture."""
    tasks: dict[str, Task] = {}
    for name in recipe.tasks_of(settings):
        module, config = configured("tasks", recipe.tasks[name])
        tasks[name] = module.build(name, config)
    return Mixture(tasks) if len(tasks) > 1 else next(iter(tasks.values()))


def build_objective(task: Task, settings: Settings) -> Any:
    """The objective of a stage.

    Raises:
        RecipeError: the task's outputs mean nothing to it.
    """
    part = settings.objective_of(task.objectives[0])
    if part.kind not in task.objectives:
        key, own = "loss_type" if settings.objective is None else "objective.kind", task.objectives[0]
        way = f"set train.{key}={own}"
        if (part.kind, own) == ("focal", "softmax"):
            way += ", or its focal form: train.loss_type=null train.objective='{kind: softmax, gamma: 2}'"
        raise RecipeError(
            f"train.{key}={part.kind} with tasks.{task.name}",
            f"one of {', '.join(task.objectives)}",
            nearest(part.kind, task.objectives) or way,
        )
    module, config = configured("objectives", part)
    return module.build(config)


def fit_objective(objective: Any, encoded: Sequence[Encoded]) -> None:
    """Show an objective that balances classes the training targets."""
    if hasattr(objective, "fit"):
        objective.fit(torch.tensor([found.target for found in encoded]))  # [N, K]


def encode_samples(task: Task, samples: Sequence[Sample], model: Graft, room: Room | None) -> Sequence[Encoded]:
    """What all samples ask and teach, every one with something to learn and none longer than the model can take.

    A task that can take rows of a patch store at once has `encode_rows`.

    Args:
        room: of the language model's context, see `room_of`.

    Raises:
        DataError: counts and names the samples that cannot be learned from.
    """
    if isinstance(samples, PatchRows) and hasattr(task, "encode_rows"):
        taught: Targets = task.encode_rows(samples)
        return taught
    tokenizer = tokenizer_of(model)
    encoded: list[Encoded] = []
    faults: list[DataError] = []
    for sample in track(samples, "reading texts and labels"):
        try:
            found = task.encode(sample, tokenizer, learn=True)
        except DataError as error:
            faults.append(error)
            continue
        if room is not None and len(found.input_ids) + room.tokens > room.context:
            faults.append(
                DataError(
                    f"sample {sample.id}: {room} and {len(found.input_ids)} text tokens",
                    f"at most {room.context}, the context of the language model",
                    f"{room.fix}, or a lower tasks.{task.name}.max_text_tokens with overflow=truncate",
                )
            )
            continue
        encoded.append(found)
    if faults:
        lines = [f"\n  {fault.given}" for fault in faults[:MAX_NAMED]]
        lines += [f"\n  and {len(faults) - MAX_NAMED} more"] if len(faults) > MAX_NAMED else []
        given = f"{len(faults)} of {len(samples)} samples cannot be learned from:{''.join(lines)}"
        raise DataError(given, faults[0].expected, faults[0].fix)
    cut = sum(found.truncated for found in encoded)
    if cut:
        log.warning("%d of %d texts were cut to the limit (overflow=truncate)", cut, len(encoded))
    return encoded


def rows_of(data: PreparedData, task: Task) -> PreparedData:
    """The rows that a task is asked about, where the data say so; of one without answers, each picture once, its own where rows name it.

    Raises:
        DataError: none to learn from.
    """
    found = data.of_task(*each_task(task))
    there = {sample.task for sample in found.splits.get("train", [])}
    if not task.directions:
        return (found if there else data).each_picture_once()
    missing = [name for name in each_task(task) if name not in there and None not in there] if data.several_tasks else []
    if missing:
        named = sorted({str(sample.task) for sample in data.splits["train"]})
        given = f"no row of the training split is of task {shown(missing)}; its rows name {shown(named)}"
        raise DataError(given, "rows of each task that a stage learns", "name the tasks of the recipe as data.columns.task does")
    return found


def prepare_task(recipe: Recipe, task: Task, data: PreparedData) -> None:
    """Look over what the task reads of every split, then let it learn what it must know of the training split.

    Raises:
        DataError: lists what cannot be used of any split.
    """
    faults: list[DataError] = []
    settings = {name: recipe.stage(name) for name in recipe.stages}
    elsewhere = [found for found in settings.values() if set(recipe.tasks_of(found)).isdisjoint(each_task(task))]
    others = {found.split for found in elsewhere} - {"train"}  # such as one without labels
    read = {"train", "val", *recipe.evaluation.splits, *(found.split for found in settings.values())}
    others |= {split for split, samples in data.splits.items() if split not in read and _unlabelled(samples)}  # of a stage that is left out
    for split in dict.fromkeys([*data.splits, "val"]):  # all of them: a fault in `test` is not for the end of the training
        if split in others:
            continue
        try:
            task.check(data.splits.get(split, []), split)
        except DataError as error:
            faults.append(error)
    if faults:
        raise DataError("\n".join(fault.given for fault in faults), faults[0].expected, faults[0].fix)
    task.learned = task.learn(data.splits["train"])


def _unlabelled(samples: Sequence[Sample]) -> bool:
    return isinstance(samples, PatchRows) and bool(np.isnan(samples.targets).all())


def encode_splits(task: Task, settings: Settings, data: PreparedData, model: Graft) -> dict[str, Sequence[Encoded]]:
    """What the splits that a stage reads ask and teach, of a task that was prepared.

    Raises:
        PartError: what the model sees leaves no room for text.
    """
    splits = {split: data.splits[split] for split in (settings.split, "val") if split in data.splits}
    room = room_of(model)
    if room is not None:
        room.stop_if_full()
    return {split: encode_samples(task, samples, model, room) for split, samples in splits.items()}


def stage_data(
    recipe: Recipe,
    settings: Settings,
    model: Graft,
    data: PreparedData,
    encoded: Mapping[str, Sequence[Encoded]],
    inputs: Mapping[str, Any],
) -> StageData:
    """Examples of the splits that a stage reads."""
    val_samples = data.splits.get("val", [])
    weights = recipe.tasks_of(settings)
    train = Examples(
        data.splits[settings.split],
        encoded[settings.split],
        readers_of(model, recipe, augmented=True),
        weights=weights if len(weights) > 1 else None,
        temperature=settings.temperature,
    )
    val = Examples(val_samples, encoded["val"], readers_of(model, recipe)) if len(val_samples) else None
    return StageData(train, val, val_samples, pad_id_of(model), recipe.data.num_workers, inputs)


def teach_inputs(recipe: Recipe, model: Graft, data: PreparedData) -> dict[str, Any]:
    """Let every encoder know what it must of the training split: means and standard deviations of its inputs. Gives them by modality.

    Raises:
        DataError: a further column of any split cannot be used, or a map is of no class that there is.
    """
    for encoder in model.encoders.values():
        if isinstance(encoder.spec, ColumnSpec):
            for split, samples in data.splits.items():
                check_columns(encoder.spec, samples, split)
        elif isinstance(encoder.spec, ImageSpec) and encoder.spec.classes:
            for split, samples in data.splits.items():
                check_classes(encoder.spec, samples, split)
    satellite = recipe.data.satellite
    file = base_folder(recipe.data.base_dir) / satellite.statistics if satellite is not None else None
    found = {modality: learn_inputs(encoder.spec, data.splits["train"], file) for modality, encoder in model.encoders.items()}  # type: ignore[arg-type]
    learned = {modality: facts for modality, facts in found.items() if facts}
    restore_inputs(model, learned)
    return learned


def restore_inputs(model: Graft, learned: Mapping[str, Any]) -> None:
    """Put what `teach_inputs` found back, as a checkpoint holds it."""
    for modality, facts in learned.items():
        encoder: Any = model.encoders[modality]
        encoder.spec = with_learned(encoder.spec, facts)


def blind_spots(model: Graft, examples: StageData) -> list[str]:
    """What an encoder of patches does not see of a few training samples: unused pixels and inert inputs, in words."""
    if not isinstance(getattr(dict(model.encoders.items()).get("image"), "spec", None), PatchSpec):
        return []
    few = range(min(4, len(examples.train)))
    batch = next(load_batches(examples.train, [few], pad_id=examples.pad_id))
    return effects_of(model, batch.to(next(model.parameters()).device)).lines()


def read_from_cache(recipe: Recipe, settings: Settings, model: Graft, data: StageData, closing: ExitStack) -> None:
    """Let both splits read the features of frozen encoders from the cache, wherever that gives the same."""
    frozen = frozen_modalities(model)
    for examples, augmented in ((data.train, True), (data.val, False)):
        if examples is not None:
            examples.readers = stored_readers(
                recipe,
                settings.feature_cache,
                model,
                [examples.samples],
                examples.readers,
                frozen=frozen,
                augmented=augmented,
                closing=closing,
            )


def _train_stage(run: Run, stage: str, data: PreparedData, read: dict[str, dict[str, Sequence[Encoded]]]) -> None:
    """Train one stage to its end.

    Args:
        read: task and split -> what the samples ask and teach. Filled for all stages that are still to come, so that a fault in the last
            one's texts, labels or early stopping is found before the first one trains.
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


def load_model(run: Run, stage: str | None = None, which: str = "best") -> tuple[Graft, Task, Path]:
    """The model, task and checkpoint of a run's stage (by default its last), on the run's device, ready to answer."""
    path = run.checkpoint(stage, which)
    config = read_config(path)
    model = build_model(run.recipe)
    load_weights(path, model)
    restore_inputs(model, config.get("inputs") or {})
    task = build_task(run.recipe, run.recipe.stage(config["stage"]))
    facts = run.facts["stages"].get(config["stage"], {})
    task.learned, task.decision = facts.get("learned") or {}, facts.get("decision") or {}
    return model.to(make_fabric(run.recipe, "32-true").device).eval(), task, path
