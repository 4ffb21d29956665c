"""Answers of the model and of its baselines, scored alike, with paired intervals."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eyegraft.answering import answer_samples
from eyegraft.config import Data, Recipe
from eyegraft.data.samples import PreparedData, load_samples
from eyegraft.errors import DataError, nearest
from eyegraft.evaluation import baselines
from eyegraft.metrics._bootstrap import interval, paired_interval
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.training.checkpoints import file_sha256, read_config, write_atomically
from eyegraft.training.runs import Run, read_run, versions
from eyegraft.training.stages import load_model
from eyegraft.types import Sample, Scores

log = logging.getLogger(__name__)
SCHEMA = 1
_NAMES = {
    "blank_image": "the same model on blank images",
    "shuffled_image": "the same model on shuffled images",
    "most_frequent": "the most frequent training answer",
    "nearest_neighbour": "nearest-neighbour retrieval",
}


def evaluate_run(run: Path | str, *, splits: Sequence[str] | None, stage: str | None, table: str | None) -> dict[str, dict[str, Any]]:
    """See `eyegraft.evaluation.evaluate`."""
    opened = read_run(run)
    recipe = opened.recipe
    config, wanted = _asked(recipe, splits, table)
    data = load_samples(config)
    for split in wanted:
        if split not in data.splits:
            raise DataError(f"no split {split!r}", f"one of {', '.join(data.splits)}", nearest(split, data.splits))
    model, task, checkpoint = load_model(opened, stage)
    results = {}
    for split in wanted:
        results[split] = _evaluate_split(opened, model, task, checkpoint, data, split)
    return results


def _asked(recipe: Recipe, splits: Sequence[str] | None, table: str | None) -> tuple[Data, Sequence[str]]:
    if table is None:
        return recipe.data, splits or recipe.evaluation.splits
    name = re.sub(r"[^\w.-]+", "_", Path(table).stem)
    if name in recipe.data.tables or (recipe.data.split is not None and name in recipe.data.split.fractions):
        name += "-other"  # never over the result of the recipe's own split, nor under what is said of it
    tables = {key: value for key, value in recipe.data.tables.items() if key == "train"}
    tables[name] = table if table.startswith("hub:") else str(Path(table).expanduser().resolve())
    return recipe.data.model_copy(update={"tables": tables, "split": None}), [name]


def _evaluate_split(run: Run, model: Graft, task: Task, checkpoint: Path, data: PreparedData, split: str) -> dict[str, Any]:
    started, recipe, samples = time.monotonic(), run.recipe, data.splits[split]
    answers = _all_answers(recipe, model, task, data, split)
    scored = {system: task.score(given, samples) for system, given in answers.items()}
    resamples, seed = recipe.evaluation.num_resamples, recipe.seed
    systems = {system: _with_intervals(scores, resamples, seed) for system, scores in scored.items()}
    differences = {
        system: {
            name: dict(
                zip(
                    ("value", "low", "high"),
                    paired_interval(scored["model"].per_sample[name], scores.per_sample[name], resamples, seed),
                    strict=True,
                )
            )
            for name in scores.per_sample
        }
        for system, scores in scored.items()
        if system != "model"
    }
    config = read_config(checkpoint)
    result = {
        "schema": SCHEMA,
        "recipe": recipe.recipe,
        "task": task.name,
        "split": split,
        "held_out": recipe.data.held_out.get(split, ""),
        "num_samples": len(samples),
        "data": {"name": recipe.data.name, "about": recipe.data.about, "sha256": data.split_sha256[split]},
        "checkpoint": {
            **{key: config[key] for key in ("stage", "epoch", "step", "lineage")},
            "path": checkpoint.relative_to(run.folder).as_posix(),
            "sha256": file_sha256(checkpoint / "manifest.json"),
        },
        "seed": recipe.seed,
        "prompt": task.prompt,
        "decoding": task.decoding,
        "signature": dict(scored["model"].signature),
        "higher_is_better": {name: scored["model"].higher_is_better.get(name, True) for name in scored["model"].corpus},
        "versions": versions(),
        "num_resamples": resamples,
        "systems": systems,
        "differences": differences,
        "conclusions": _conclusions(systems, differences),
        "samples": f"{split}.samples.jsonl",
        "seconds": round(time.monotonic() - started, 1),
    }
    folder = run.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{split}.samples.jsonl", "".join(_sample_lines(samples, answers, scored["model"])))
    write_atomically(folder / f"{split}.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _all_answers(recipe: Recipe, model: Graft, task: Task, data: PreparedData, split: str) -> dict[str, list[str]]:
    samples, train, settings = data.splits[split], data.splits.get("train", []), recipe.evaluation
    workers = recipe.data.num_workers

    def answers(of: Sequence[Sample], label: str, change: Any = None) -> list[str]:
        return answer_samples(
            model, task, of, batch_size=settings.batch_size, num_workers=workers, change=change, label=f"{split}: {label}"
        )

    found = {"model": answers(samples, "images")}
    for name in settings.baselines:
        if name == "blank_image":
            found[name] = answers(samples, "blank images", baselines.blank)
        elif name == "shuffled_image":
            found[name] = answers(baselines.shuffled(samples, recipe.seed), "shuffled images")
        elif not train:
            log.warning("%s: no training split, so no baseline %s", split, name)
        elif name == "most_frequent":
            found[name] = baselines.most_frequent(train, len(samples))
        else:
            found[name] = baselines.nearest_neighbour(
                model, train, samples, batch_size=settings.batch_size, num_workers=workers, seed=recipe.seed
            )
    return found


def _with_intervals(scores: Scores, resamples: int, seed: int) -> dict[str, dict[str, float | None]]:
    """The corpus value of each metric, with the bootstrap interval of the mean where the metric is a mean over samples."""
    table: dict[str, dict[str, float | None]] = {}
    for name, value in scores.corpus.items():
        low = high = None
        if name in scores.per_sample:
            _, low, high = interval(scores.per_sample[name], resamples, seed)
        table[name] = {"value": value, "low": low, "high": high}
    return table


def _conclusions(systems: Mapping[str, Any], differences: Mapping[str, Any]) -> list[str]:
    """One sentence a baseline on the task's first metric: better, worse, or not to be told apart."""
    metric = next(iter(systems["model"]))
    sentences = []
    for system, table in differences.items():
        gap = table[metric]
        shown = f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        name = _NAMES.get(system, system)
        if gap["low"] > 0:
            sentences.append(f"The model beats {name} on {metric} by {shown}.")
        elif gap["high"] < 0:
            sentences.append(f"The model loses to {name} on {metric}: {shown}.")
        else:
            sentences.append(f"The model cannot be told apart from {name} on {metric}: {shown}.")
    return sentences


def _sample_lines(samples: Sequence[Sample], answers: Mapping[str, Sequence[str]], scores: Scores) -> list[str]:
    lines = []
    for place, sample in enumerate(samples):
        row = {
            "id": sample.id,
            "image": str(sample.image.resolve()),
            "prompt": sample.prompt,
            "references": list(sample.references),
            "answers": {system: given[place] for system, given in answers.items()},
            "scores": {name: values[place] for name, values in scores.per_sample.items()},
            "meta": dict(sample.meta),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines
