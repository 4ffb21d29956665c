"""A recipe looked over before it is run: rows, texts with their learned tokens, the trainable plan, one dry step and its memory."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch

from eyegraft.answering import tokenizer_of
from eyegraft.config import Recipe, Settings
from eyegraft.data.batches import load_batches
from eyegraft.data.images import opened, upright_size
from eyegraft.data.samples import PreparedData, load_samples
from eyegraft.data.text import Encoded
from eyegraft.training.building import build_model, build_objective, build_task, fit_objective, make_fabric
from eyegraft.training.checkpoints import load_weights
from eyegraft.training.early_stopping import watched_direction
from eyegraft.training.features import frozen_modalities, why_not
from eyegraft.training.inputs import teach_inputs
from eyegraft.training.loss_step import LossStep, Sealed
from eyegraft.training.perturbation import blind_spots
from eyegraft.training.room import room_of
from eyegraft.training.stage_data import (
    StageData,
    encode_splits,
    prepare_task,
    rows_of,
    stage_data,
    stop_at_split,
    stop_without_train,
    with_each_modality,
)
from eyegraft.training.starts import start_elsewhere
from eyegraft.tuning import TrainablePlan, make_plan, prove, set_training_mode
from eyegraft.types import IGNORE

GIB = 2**30


def check_recipe(recipe: Recipe, *, colour: bool = False, num_samples: int = 3) -> Iterator[str]:
    """Lines of the check-up, as they become known. Nothing is written.

    Args:
        colour: mark learned tokens by ANSI colour in place of brackets.
        num_samples: decoded samples to show.

    Raises:
        EyegraftError: whatever training itself would raise before its first step.
    """
    data = load_samples(recipe.data, read_images=recipe.reads_images, panoramas=recipe.views is not None)
    yield from _rows(data)
    stop_without_train(data)
    if recipe.views is not None:
        yield from _panoramas(data)
    model = build_model(recipe)
    room = room_of(model)
    if room is not None:
        yield f"before the text: {room}, of {room.context} that the language model takes ({room.tokens / room.context:.0%})"
        room.stop_if_full()
    if recipe.train.init_from is not None:
        start, _ = start_elsewhere(recipe.train.init_from, "train.init_from")
        load_weights(start, model)
        yield f"the first stage starts from {start}"
    for name in recipe.stage_names:
        settings = recipe.stage(name)
        task = build_task(recipe, settings)
        objective = build_objective(task, settings)
        stop_at_split(recipe, name, data)
        rows = rows_of(data, task)
        prepare_task(recipe, task, rows)
        encoded = encode_splits(task, settings, rows, model)
        watched_direction(settings, name, task, rows.splits.get("val", []))
        yield f"\nstage {name}: task {task.name}, objective {type(objective).__name__}"
        torch.manual_seed(recipe.seed)
        plan = make_plan(model, settings, objective=objective)
        yield plan.table()
        read = stage_data(recipe, settings, model, rows, encoded, teach_inputs(recipe, model, data))
        fit_objective(objective, encoded[settings.split])
        yield from (f"does not see: {line}" for line in blind_spots(model, read))
        for modality in model.encoders:
            reason = why_not(recipe, settings.feature_cache, model, modality, frozen_modalities(model), augmented=True)
            yield f"feature cache of {modality}: " + (f"no, {reason}" if reason else "yes, encoded once")
        tokenizer = tokenizer_of(model)
        yield from _labels(read, task.learned) if tokenizer is None else _texts(read, tokenizer, colour, num_samples)
        fabric = make_fabric(recipe, settings.precision)
        step = fabric.setup(LossStep(model, objective, packing=settings.packing))
        yield from _dry_step(step, fabric, read, plan, settings, recipe.seed)


def _labels(read: StageData, learned: Mapping[str, Any]) -> Iterator[str]:
    """How often each label stands in the training rows, or what was learned of their numbers, and how many rows lack a modality."""
    samples = read.train.samples
    if learned:
        yield "training targets: " + ", ".join(f"{name} {value:.6g}" for name, value in learned.items())
    else:
        tally = Counter(", ".join(sample.references) or "none" for sample in samples)
        yield "labels: " + ", ".join(f"{count} {label}" for label, count in tally.most_common(12)) + (" …" if len(tally) > 12 else "")
    for modality, reading in read.train.readers.items():
        missing = int((~reading.present(samples)).sum())
        yield f"{modality}: {missing} of {len(samples)} training rows have none"


def _rows(data: PreparedData) -> Iterator[str]:
    for split, samples in data.splits.items():
        yield f"{split:<16}{len(samples):>8} samples  sha256 {data.split_sha256[split][:12]}"
    if data.reasons:
        for reason, count in data.reasons.most_common():
            yield f"quarantined     {count:>8} rows: {reason}"
    else:
        yield "quarantined            0 rows"


def _panoramas(data: PreparedData) -> Iterator[str]:
    """How many panoramas each split has, and of how many pixels."""
    for split, samples in data.splits.items():
        pictures = {sample.image for sample in samples if sample.image is not None}
        sizes: Counter[str] = Counter()
        for picture in pictures:
            with opened(picture) as image:
                sizes["{} x {}".format(*upright_size(image))] += 1
        common = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3)) + (" …" if len(sizes) > 3 else "")
        yield f"{split:<16}{len(pictures):>8} panoramas: {common} pixels"


def _texts(read: StageData, tokenizer: Any, colour: bool, num_samples: int) -> Iterator[str]:
    lengths = sorted(len(text.input_ids) for text in read.train.encoded)
    learned = [sum(label != IGNORE for label in text.labels) for text in read.train.encoded]
    yield (
        f"text tokens: shortest {lengths[0]}, median {statistics.median(lengths):g}, longest {lengths[-1]}; "
        f"learned {statistics.mean(learned):.1f} a sample; {sum(text.truncated for text in read.train.encoded)} cut"
    )
    yield "learned tokens are " + ("green" if colour else "in ⟦ ⟧") + ":"
    for sample, text in list(zip(read.train.samples, read.train.encoded, strict=True))[:num_samples]:
        yield f"  {sample.id}: {marked(tokenizer, text, colour)}"


def marked(tokenizer: Any, text: Encoded, colour: bool = False) -> str:
    """The decoded text with its learned stretches marked."""
    opening, closing = ("\033[32m", "\033[0m") if colour else ("⟦", "⟧")
    pieces: list[tuple[bool, list[int]]] = []
    for token, label in zip(text.input_ids, text.labels, strict=True):
        learned = label != IGNORE
        if not pieces or pieces[-1][0] != learned:
            pieces.append((learned, []))
        pieces[-1][1].append(token)
    shown = [(learned, str(tokenizer.decode(ids))) for learned, ids in pieces]
    return "".join(f"{opening}{words}{closing}" if learned else words for learned, words in shown).replace("\n", "⏎")


def _dry_step(step: Any, fabric: Any, read: StageData, plan: TrainablePlan, settings: Settings, seed: int) -> Iterator[str]:
    """Forward and backward of the batch that takes the most memory, twice: once as the probe of the plan, once for time and memory."""
    grouped = settings.group_by_length and settings.packing is None
    order = read.train.order(settings.batch_size, seed=seed, epoch=0, grouped=grouped)
    first = list(dict.fromkeys([*map(int, order[0]), *with_each_modality(read.train)]))
    batch = next(load_batches(read.train, [first], pad_id=read.pad_id)).to(fabric.device)
    set_training_mode(step)
    step.model.fusion.eval()  # hides no modality by chance
    parts = step.parts(batch)
    probes = [Sealed(probe) for part in parts for probe in step.probes(part)]
    prove(step, step, probes, fabric.backward, [parameter for group in plan.groups for parameter in group["params"]])
    started = time.monotonic()
    loss, total = 0.0, float(step.objective.counts(batch).sum())
    for part in parts:
        sums, *_ = step(Sealed(part))
        fabric.backward(sums.sum() / total)
        loss += float(sums.detach().sum()) / total
    seconds = time.monotonic() - started
    step.zero_grad(set_to_none=True)
    trainable = sum(row.trainable for row in plan.rows)
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    yield f"dry step: {len(batch)} samples in {seconds:.2f} s, loss {loss:.3f}; every trainable tensor got a gradient"
    yield (
        f"memory: weights {weights / GIB:.2f} GiB, gradients and Adam of {trainable:,} numbers {trainable * 12 / GIB:.2f} GiB, "
        f"peak so far {peak_memory(fabric.device) / GIB:.2f} GiB on {fabric.device}"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point so far: of the device's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
