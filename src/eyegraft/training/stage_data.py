"""What a stage reads: the rows of its task, looked over before anything is trained, and what each of them asks and teaches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eyegraft.answering import pad_id_of, readers_of, tokenizer_of
from eyegraft.config import Recipe, Settings
from eyegraft.console import track
from eyegraft.data.batches import Examples
from eyegraft.data.patch_rows import PatchRows, stop_at_shared_readings
from eyegraft.data.samples import PreparedData
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import DataError, RecipeError, nearest, shown
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import each_task
from eyegraft.training.room import Room, room_of
from eyegraft.types import Sample

log = logging.getLogger(__name__)
MAX_NAMED = 20
"""Samples that one message names."""


@dataclass
class StageData:
    """What a stage reads.

    Attributes:
        inputs: modality -> what its encoder knows of the training split (see `eyegraft.data.inputs.learn_inputs`).
    """

    train: Examples
    val: Examples | None
    val_samples: Sequence[Sample]
    pad_id: int
    num_workers: int
    inputs: Mapping[str, Any] = field(default_factory=dict)


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


def with_each_modality(examples: Examples) -> list[int]:
    """The first sample that has each modality, by position: most may lack one, and an encoder shows its gradient only where it is used."""
    found = []
    for reading in examples.readers.values():
        found += reading.present(examples.samples).nonzero().flatten()[:1].tolist()
    return found
