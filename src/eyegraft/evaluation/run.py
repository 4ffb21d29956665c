"""Answers of the model and of its baselines, scored alike, with paired intervals."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from eyegraft.answering import answer_samples, readers_of
from eyegraft.config import Data, Recipe, Settings
from eyegraft.data.batches import taken
from eyegraft.data.duplicates import alike_across
from eyegraft.data.inputs import Reader
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.samples import PreparedData, load_samples
from eyegraft.errors import DataError, RunError, nearest, shown
from eyegraft.evaluation import baselines
from eyegraft.evaluation.conclusions import MIN_SAMPLES as MIN_SAMPLES
from eyegraft.evaluation.conclusions import against_all, against_each, is_damage, of_intervals
from eyegraft.evaluation.drawing import Drawing
from eyegraft.evaluation.outputs import write_outputs
from eyegraft.evaluation.tabular import NAMES as COLUMN_BASELINES
from eyegraft.evaluation.tabular import NumberBaselines, columns_of
from eyegraft.evaluation.view_worth import worths_of_views
from eyegraft.files import file_sha256, write_atomically
from eyegraft.model import ENCODER_NAMES, Graft
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import each_task
from eyegraft.training.building import build_task
from eyegraft.training.checkpoints import read_config
from eyegraft.training.features import stored_readers
from eyegraft.training.runs import Run, read_run, versions
from eyegraft.training.trained import load_model
from eyegraft.types import Sample, Scores

log = logging.getLogger(__name__)
SCHEMA = 1
MAX_SLICES = 20
_NOT_HELD_OUT = {"train": "training saw these samples", "val": "these samples chose the checkpoint"}


def evaluate_run(run: Path | str, *, splits: Sequence[str] | None, stage: str | None, table: str | None) -> dict[str, dict[str, Any]]:
    """See `eyegraft.evaluation.evaluate`."""
    opened = read_run(run)
    recipe = opened.recipe
    _stop_without_answers(opened, stage)
    data = load_samples(recipe.data, read_images=recipe.reads_images, panoramas=recipe.views is not None)
    _stop_at_other_data(opened, data)
    wanted = splits or recipe.evaluation.splits
    if table is not None:
        data, name = _with_table(recipe, data, table)
        wanted = [name]
    for split in wanted:
        if split not in data.splits:
            raise DataError(f"no split {split!r}", f"one of {', '.join(data.splits)}", nearest(split, data.splits))
    model, task, checkpoint = load_model(opened, stage)
    suffix = f"@{stage}" if stage is not None and checkpoint != opened.checkpoint() else ""
    asked = [
        (asked, data.of_task(asked.name), split, f"{result_name(split, asked, task)}{suffix}")
        for split in wanted
        for asked in _asked_of(recipe, data, task, split)
    ]
    for one, rows, split, _ in asked:
        one.check(rows.splits[split], split)  # every fault of the labels, before an answer is made
    results = {}
    for one, rows, split, name in asked:
        train, numbers = rows.splits.get("train", []), hasattr(one, "from_values")
        columns = NumberBaselines(one, train, columns_of(recipe), recipe.seed) if numbers else None
        results[result_name(split, one, task)] = _evaluate_split(opened, model, one, checkpoint, rows, split, name, columns)
    return results


def result_name(split: str, asked: Task, task: Task) -> str:
    """What the result of a split is called: by the split alone, unless the stage learned several tasks."""
    return f"{split}.{asked.name}" if asked is not task else split


def _asked_of(recipe: Recipe, data: PreparedData, task: Task, split: str) -> list[Task]:
    """The tasks of a stage, and those that the recipe asks besides, of which a split has rows."""
    learned = each_task(task)
    beside = [build_task(recipe, Settings(task=name)) for name in recipe.evaluation.tasks if name not in learned]
    found = [asked for asked in (*learned.values(), *beside) if split in data.of_task(asked.name).splits]
    if not found:
        there = ", ".join(data.of_task(*each_task(task)).splits) or "none"
        raise DataError(f"split {split!r} has no row of task {task.name!r}", f"one of the splits that have: {there}", "name another")
    return found


def _stop_without_answers(run: Run, stage: str | None) -> None:
    """A stage that learns without labels gives no answers to score."""
    trained = read_config(run.checkpoint(stage))["stage"]
    tasks = {name: build_task(run.recipe, run.recipe.stage(name)) for name in run.recipe.stages}
    if not tasks[trained].directions:
        scored = [name for name, task in tasks.items() if task.directions]
        raise RunError(
            f"{run.folder}: stage {trained!r} learns by tasks.{tasks[trained].name}, which has no answers: nothing to score",
            f"a stage whose task answers: {shown(scored) or 'this recipe has none'}",
            f"train stage {scored[0]!r}, which starts from it, and evaluate that" if scored else "look at val_loss in its metrics.jsonl",
        )


def _stop_at_other_data(run: Run, data: PreparedData) -> None:
    """Rows that were trained on may otherwise stand in `test` by now."""
    before = run.facts.get("data", {}).get("splits")
    if before is None:
        return
    changed = [split for split in _seen(run.recipe) if before.get(split, {}).get("sha256") != data.split_sha256.get(split)]
    if changed:
        raise RunError(
            f"{run.folder}: {' and '.join(changed)} changed since this run was trained",
            "the rows and images of training: a sample that was trained on may be a test sample now",
            "restore the tables and images that the run was trained on, or train again",
        )


def _with_table(recipe: Recipe, data: PreparedData, table: str) -> tuple[PreparedData, str]:
    """The recipe's splits and the table's, and the table's name among them."""
    name = re.sub(r"[^\w.-]+", "_", Path(table).stem)
    if name in data.splits or name in _NOT_HELD_OUT:
        name += "-other"  # never over the result of the recipe's own split, nor under what is said of it
    place = table if table.startswith("hub:") else str(Path(table).expanduser().resolve())
    if recipe.data.satellite is not None:
        patches = recipe.data.satellite.model_copy(update={"patches": {**recipe.data.satellite.patches, name: place}})
        return load_samples(recipe.data.model_copy(update={"satellite": patches})), name
    other = recipe.data.model_copy(update={"tables": {name: place}, "split": None})
    new = load_samples(other, read_images=recipe.reads_images, panoramas=recipe.views is not None)
    _stop_at_shared(recipe.data, data, new, name)
    splits, hashes = {**data.splits, **new.splits}, {**data.split_sha256, **new.split_sha256}
    return replace(data, splits=splits, split_sha256=hashes), name


def _stop_at_shared(settings: Data, data: PreparedData, new: PreparedData, name: str) -> None:
    """The same rule as between the recipe's own splits (docs/data.md, Leaks)."""
    samples = new.splits[name]
    groups = {sample.group for sample in samples if sample.group is not None}
    pictures = {sample.sha256 for sample in samples if sample.sha256}
    faults = []
    for split in _NOT_HELD_OUT:
        there = data.splits.get(split, [])
        if shared := sorted({sample.group for sample in there if sample.group is not None} & groups):
            faults.append(f"{len(shared)} of the groups of {split}: {shown(shared)}")
        if alike := sorted({str(sample.image) for sample in there if sample.sha256 in pictures}):
            faults.append(f"{len(alike)} of the pictures of {split}: {shown(alike)}")
        near = alike_across(_looks(data, [sample for sample in there if sample.sha256 not in pictures]), _looks(new, samples))
        if near and settings.near_duplicates == "allow":
            log.warning("%s: %d pictures look like pictures of %s", name, len({other for _, other, _ in near}), split)
        elif near:
            copies = shown([f"{other} ~ {one} (misfit {misfit:.3f})" for one, other, misfit in near])
            faults.append(f"copies of {len({one for one, _, _ in near})} pictures of {split}: {copies}")
    if faults:
        raise DataError(
            f"leak between splits: {name} holds " + "; ".join(faults),
            "a table that shares no group and no picture, changed or not, with train and val",
            "leave these rows out of the table",
        )


def _looks(prepared: PreparedData, samples: Sequence[Sample]) -> dict[str, Any]:
    """Picture -> its fingerprint, of those that were decoded."""
    return {str(sample.image): prepared.fingerprints[sample.sha256] for sample in samples if sample.sha256 in prepared.fingerprints}


def _evaluate_split(
    run: Run,
    model: Graft,
    task: Task,
    checkpoint: Path,
    data: PreparedData,
    split: str,
    file_name: str,
    columns: NumberBaselines | None,
) -> dict[str, Any]:
    started, recipe, samples = time.monotonic(), run.recipe, data.splits[split]
    config = read_config(checkpoint)
    answers = _all_answers(recipe, model, task, config, data, split, columns)
    scored = {system: task.score(given, samples) for system, given in answers.items()}
    drawing = Drawing.of(samples, recipe)
    differences = {system: drawing.differences(scored["model"], scores) for system, scores in scored.items() if system != "model"}
    systems = {system: drawing.table(scores) for system, scores in scored.items()}
    higher_is_better = {
        name: None if name in scored["model"].undirected else scored["model"].higher_is_better.get(name, True)
        for name in scored["model"].corpus
    }
    details, about = task.details(answers["model"], samples), _said_of(data, split)
    result_of = systems, differences, higher_is_better, len(samples)
    sentences = [*_cautions(run, config, split, about, drawing), *(against_all(*result_of) if columns is not None else [])]
    if about["noise_floor"] is not None:
        unit = f" {details['unit']}" if details.get("unit") else ""
        sentences.append(f"No model can be expected below the noise floor of these samples, {about['noise_floor']:g}{unit}.")
    sentences += against_each(*result_of)
    sentences += of_intervals(systems["model"], (details.get("intervals") or {}).get("level"))
    if config["metric"] != "val_loss" or task.decision:
        chosen = f"the checkpoint, by {config['metric']}" + (f", and {' and '.join(task.decision)}" if task.decision else "")
        sentences.append(f"Validation alone chose {chosen}.")
    views, worths = worths_of_views(model, task, samples, answers["model"], scored["model"], readers_of(model, recipe))
    result = {
        "schema": SCHEMA,
        "recipe": recipe.recipe,
        "task": task.name,
        "split": split,
        "held_out": _held_out(recipe, split),
        "num_samples": len(samples),
        "data": {"name": recipe.data.name, "about": recipe.data.about, "sha256": data.split_sha256[split]},
        **about,
        "checkpoint": {
            **{key: config[key] for key in ("stage", "epoch", "step", "lineage")},
            "path": checkpoint.relative_to(run.folder).as_posix(),
            "sha256": file_sha256(checkpoint / "manifest.json"),
        },
        "seed": recipe.seed,
        "prompt": task.prompt,
        "decoding": task.decoding,
        "decision": dict(task.decision),
        "signature": dict(scored["model"].signature),
        "higher_is_better": higher_is_better,
        "versions": versions(),
        "num_resamples": recipe.evaluation.num_resamples,
        "resampled": drawing.unit,
        "systems": systems,
        "differences": differences,
        "slices": _slices(recipe.evaluation.slices, task, answers, samples, drawing),
        "details": details,
        **({"views": views} if views is not None else {}),
        "conclusions": sentences,
        "samples": f"{file_name}.samples.jsonl",
        "seconds": round(time.monotonic() - started, 1),
    }
    folder = run.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{file_name}.samples.jsonl", _sample_lines(samples, answers, scored["model"], drawing, worths))
    write_atomically(folder / f"{file_name}.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False))
    write_outputs(run, task, file_name, result, answers["model"], samples)
    return result


def _said_of(data: PreparedData, split: str) -> dict[str, Any]:
    """What patches say of themselves: {simulated, noise_floor in the unit of the target}, both None where the data say nothing."""
    samples = data.splits[split]
    if not isinstance(samples, PatchRows):
        return {"simulated": None, "noise_floor": None}
    floors = samples.facts.get("noise_floor") or {}
    return {"simulated": bool(samples.facts.get("simulated")), "noise_floor": floors.get(split)}


def _cautions(run: Run, config: Mapping[str, Any], split: str, about: Mapping[str, Any], drawing: Drawing) -> Iterator[str]:
    """What must be known before any number is read."""
    if about["simulated"]:
        yield "Simulated data: these numbers say how the method works, and nothing of real measurements."
    if not run.is_finished(config["stage"]):
        left = "what validation settles at its end, such as a threshold, is not settled"
        yield f"Not finished: stage {config['stage']} has not trained to its end, and {left}."
    if split in (seen := _seen(run.recipe)):
        yield f"Not held out: {seen[split]}."
    if drawing.caution:
        yield drawing.caution


def _slices(
    columns: Sequence[str], task: Task, answers: Mapping[str, Sequence[Any]], samples: Sequence[Sample], drawing: Drawing
) -> dict[str, dict[str, Any]]:
    """Column -> value -> {num_samples, metrics}: the model on the samples of each value, the most frequent values first.

    Of numbers also {resampled, best_baseline: {system, metrics, differences}}. It is the best on these very samples, which favours it.
    """
    rivals = [system for system in answers if system != "model" and not is_damage(system)] if hasattr(task, "from_values") else []
    found: dict[str, dict[str, Any]] = {}
    for column in columns:
        places: dict[str, list[int]] = {}
        for place, value in enumerate(_values_of(column, samples)):
            places.setdefault(value, []).append(place)
        found[column] = {}
        for value, where in sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_SLICES]:
            part = taken(samples, where)
            some = drawing.some(where, part)
            scored = {system: task.score([answers[system][place] for place in where], part) for system in ("model", *rivals)}
            entry: dict[str, Any] = {"num_samples": len(where), "metrics": some.table(scored["model"])}
            if rivals:
                first = next(iter(scored["model"].corpus))
                best = min(rivals, key=lambda system: scored[system].corpus[first])
                differences = some.differences(scored["model"], scored[best])
                entry["resampled"] = some.unit
                entry["best_baseline"] = {"system": best, "metrics": some.table(scored[best]), "differences": differences}
            found[column][value] = entry
    return found


def _values_of(column: str, samples: Sequence[Sample]) -> Sequence[str]:
    if isinstance(samples, PatchRows):
        return [str(value) for value in samples.column(column)]
    return [str(sample.meta.get(column, "")) for sample in samples]


def _seen(recipe: Recipe) -> dict[str, str]:
    """Split -> why it is not held out."""
    learned = (recipe.stage(name).split for name in recipe.stages)
    return {**_NOT_HELD_OUT, **dict.fromkeys(learned, _NOT_HELD_OUT["train"])}


def _held_out(recipe: Recipe, split: str) -> str:
    said, seen = recipe.data.held_out.get(split, ""), _seen(recipe)
    if split == "val" and said:
        return f"{said}; but {seen[split]}"
    return f"none: {seen[split]}" if split in seen else said


def _all_answers(
    recipe: Recipe,
    model: Graft,
    task: Task,
    config: Mapping[str, Any],
    data: PreparedData,
    split: str,
    columns: NumberBaselines | None,
) -> dict[str, list[Any]]:
    """System -> one answer a sample, the model's own first. Encoders that the run left as they were are read from the feature cache."""
    samples, train = data.splits[split], baselines.retrieval_set(data.splits.get("train", []), recipe.seed)
    searched = train if "nearest_neighbour" in recipe.evaluation.baselines else []
    cache = recipe.stage(config["stage"]).feature_cache
    with ExitStack() as closing:
        readers = stored_readers(
            recipe,
            cache,
            model,
            [samples, searched],
            readers_of(model, recipe),
            frozen=_untouched(model, config),
            augmented=False,
            closing=closing,
        )
        return _answers_from(recipe, model, task, data, split, train, readers, columns)


def _untouched(model: Graft, config: Mapping[str, Any]) -> set[str]:
    """The modalities whose encoders hold nothing that the run trained."""
    adapted = {modality for modality, part in ENCODER_NAMES.items() if part in config["adapters"]}
    return {
        modality
        for modality in model.encoders
        if modality not in adapted and not any(name.startswith(f"encoders.{modality}.") for name in config["tensors"])
    }


def _answers_from(
    recipe: Recipe,
    model: Graft,
    task: Task,
    data: PreparedData,
    split: str,
    searched: Sequence[Sample],
    readers: Mapping[str, Reader],
    columns: NumberBaselines | None,
) -> dict[str, list[Any]]:
    samples, train, settings = data.splits[split], data.splits.get("train", []), recipe.evaluation
    batch_size, workers = settings.batch_size, recipe.data.num_workers

    def answers(of: Sequence[Sample], label: str, **instead: Reader) -> list[Any]:
        return answer_samples(
            model, task, of, {**readers, **instead}, batch_size=batch_size, num_workers=workers, label=f"{split}: {label}"
        )

    found = {"model": answers(samples, "samples")}
    for name in _applicable(settings.baselines, model, samples, train, split, columns):
        how, _, modality = name.partition("_")
        if how == "blank":
            found[name] = answers(samples, f"blank {modality}s", **{modality: baselines.blank(model, modality)})
        elif how == "shuffled":
            given, instead = baselines.shuffled(modality, model, samples, readers, recipe.seed)
            found[name] = answers(given, f"shuffled {modality}", **instead)
            alike = settings.shuffle_within if modality == "image" and not instead else ()
            if alike and (given := baselines.shuffled_within(samples, alike, recipe.seed)):
                found[f"{name}_within"] = answers(given, "shuffled among alike")
        elif how == "absent":
            found[name] = answers(samples, f"no {modality}", **{modality: baselines.absent(model, modality)})
        elif columns is not None and name in COLUMN_BASELINES:
            found[name] = columns.answers(name, samples)
        elif name == "most_frequent":
            found[name] = task.priors(train, samples) if hasattr(task, "priors") else [task.prior(train)] * len(samples)
        else:
            found[name] = baselines.nearest_neighbours(model, task, searched, samples, readers, batch_size=batch_size, num_workers=workers)
    return found


def _applicable(
    names: Sequence[str], model: Graft, samples: Sequence[Sample], train: Sequence[Sample], split: str, columns: NumberBaselines | None
) -> Iterator[str]:
    """The baselines that mean something here; what the data are too few for is said."""
    for name in names:
        how, _, modality = name.partition("_")
        if how in ("blank", "shuffled", "absent"):
            if modality not in model.encoders or (how == "absent" and len(model.encoders) < 2):
                continue
            if how == "shuffled" and not baselines.can_be_shuffled(modality, model, samples):
                log.warning("%s: fewer than two %ss, so no baseline %s", split, modality, name)
                continue
        elif name in COLUMN_BASELINES and columns is None:
            continue
        elif not train:
            log.warning("%s: no training split, so no baseline %s", split, name)
            continue
        elif columns is not None and name in COLUMN_BASELINES and (missing := columns.missing(name, samples)):
            log.info("%s: no baseline %s: %s", split, name, missing)
            continue
        yield name


def _sample_lines(
    samples: Sequence[Sample],
    answers: Mapping[str, Sequence[Any]],
    scores: Scores,
    drawing: Drawing,
    worths: Mapping[int, Sequence[float]] = {},
) -> Iterator[str]:
    places: dict[Path, str] = {}
    for place, sample in enumerate(samples):
        if sample.image is not None and sample.image not in places:
            places[sample.image] = str(sample.image.resolve())
        row = {
            "id": sample.id,
            "image": places[sample.image] if sample.image is not None else None,
            **({"record": sample.record} if sample.record is not None else {}),
            "text": sample.text,
            "group": sample.group,
            **({"drawn_with": drawing.groups[place]} if drawing.groups is not None else {}),
            "prompt": sample.prompt,
            "references": list(sample.references),
            "answers": {system: given[place] for system, given in answers.items()},
            "scores": {name: values[place] for name, values in scores.per_sample.items()},
            **({"views": {"worth": list(worths[place])}} if place in worths else {}),
            "meta": {name: None if value != value else value for name, value in sample.meta.items()},  # JSON knows no NaN
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"
