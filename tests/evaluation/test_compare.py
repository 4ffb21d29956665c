"""Runs in one table: what differs, who may be ranked against whom, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eyegraft.config import overlay
from eyegraft.errors import RunError
from eyegraft.evaluation.compare import Comparison, compare_runs
from eyegraft.metrics import captions
from eyegraft.metrics._bootstrap import paired_interval

IDS = [f"s{number}" for number in range(12)]
RECIPE = {
    "recipe": "r",
    "experiment_name": "e",
    "seed": 0,
    "vision_encoder": {"kind": "timm", "model": "a"},
    "head": {"kind": "classifier", "dropout": 0.1},
    "tasks": {"label": {"kind": "caption"}},
    "train": {"learning_rate": 0.001, "batch_size": 8, "early_stopping": {"metric": "val_f1"}},
    "stages": {"only": {}},
}


def make_run(
    folder: Path,
    best: float | None,
    *,
    recipe: dict[str, Any] | None = None,
    scores: list[float] | None = None,
    seed: int = 0,
    val: str = "v",
    test: str = "t",
    metric: str = "val_f1",
    finished: bool = True,
) -> Path:
    """A run folder as training and evaluation leave it."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(overlay({**RECIPE, "seed": seed}, recipe or {})), encoding="utf-8")
    stage = {
        "status": "finished" if finished else "running",
        "seconds": 3.0,
        "trainable": [{"part": "head", "trainable": 40}, {"part": "connector", "trainable": 2}],
        "best": {"epoch": 2, "step": 4, "metric": metric, "value": best, "higher_is_better": metric != "val_loss"},
    }
    facts = {"recipe": "r", "seed": seed, "finished": finished, "stages": {"only": stage}, "data": {"splits": {"val": {"sha256": val}}}}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    if scores is not None:
        result = {
            "task": "label",
            "num_samples": len(scores),
            "num_resamples": 200,
            "seed": 5,
            "data": {"sha256": test},
            "checkpoint": {"path": "only/best", "sha256": "x", "stage": "only"},
            "samples": "test.samples.jsonl",
            "higher_is_better": {"accuracy": True, "auroc": True},
            "systems": {
                "model": {
                    "accuracy": {"value": sum(scores) / len(scores), "low": 0.1, "high": 0.9},
                    "auroc": {"value": 0.5 + scores[0] / 4, "low": None, "high": None},
                }
            },
        }
        (folder / "evaluation" / "test.json").write_text(json.dumps(result), encoding="utf-8")
        rows = [
            {"id": id_, "references": ["a"], "answers": {"model": "a"}, "scores": {"accuracy": score}}
            for id_, score in zip(IDS, scores, strict=True)
        ]
        (folder / "evaluation" / "test.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def order(comparison: Comparison) -> list[str]:
    return [Path(entry.run).name for entry in comparison.entries]


def marks(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    return {Path(entry.run).name: entry.marks for entry in comparison.entries}


GOOD, FAIR = [1.0] * 9 + [0.0] * 3, [1.0] * 5 + [0.0] * 7


def test_best_by_validation_stands_first_whatever_the_test_says(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.7, scores=GOOD, recipe={"train": {"learning_rate": 0.01}})
    make_run(tmp_path / "b", 0.8, scores=FAIR, recipe={"head": {"dropout": 0.3}})
    make_run(tmp_path / "c", 0.6)
    found = compare_runs([tmp_path])
    assert order(found) == ["b", "a", "c"]
    assert (found.ranked, found.watched, found.higher_is_better) == (True, "val_f1", True)
    assert found.keys == ("head.dropout", "train.learning_rate"), "only what differs"
    first = found.entries[0]
    assert first.settings == {"head.dropout": 0.3, "train.learning_rate": 0.001}
    assert (first.seconds, first.trained_parameters, first.epoch, first.best) == (3.0, 42, 2, 0.8)
    assert "Nothing is chosen by test results." in found.notes[0]
    json.dumps(found.plain(), allow_nan=False)


def test_a_loss_is_better_when_lower(tmp_path: Path) -> None:
    for name, best in (("a", 0.7), ("b", 0.5)):
        make_run(tmp_path / name, best, metric="val_loss", recipe={"train": {"early_stopping": {"metric": "val_loss"}}})
    assert order(compare_runs([tmp_path])) == ["b", "a"]


def test_differences_are_paired_by_sample(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.7, scores=FAIR)
    make_run(tmp_path / "b", 0.8, scores=GOOD)
    file = tmp_path / "a" / "evaluation" / "test.samples.jsonl"
    file.write_text(
        "".join(reversed(file.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8"
    )  # order must not matter
    found = compare_runs([tmp_path])
    value, low, high = paired_interval(FAIR, GOOD, 200, 5)
    difference = found.entries[1].difference
    assert found.metric == "accuracy"
    assert Path(found.reference or "").name == "b"
    assert found.entries[0].difference is None
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((value, low, high))
    assert value == pytest.approx(-4 / 12)


def test_no_per_sample_score_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.7, scores=[0.0, *GOOD[1:]])
    make_run(tmp_path / "b", 0.8, scores=GOOD)
    found = compare_runs([tmp_path], metric="auroc")
    difference = found.entries[1].difference
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (pytest.approx(-0.25), None, None)
    assert any("no per-sample score, so the interval is unknown" in note for note in found.notes)


def test_a_statistic_is_scored_again_from_the_answers(tmp_path: Path, plain_recipe: Callable[..., dict[str, Any]]) -> None:
    """AUROC is no mean over samples: its paired interval comes from the probabilities that were written down."""
    labels = ["true", "false"] * 6
    sure = [0.9 if label == "true" else 0.1 for label in labels]
    unsure = [*sure[:6], 0.2, 0.8, 0.3, 0.6, 0.9, 0.1]
    recipe = plain_recipe(tasks={"label": {"kind": "classify"}}, head={"kind": "classifier"})
    for name, best, probabilities in (("a", 0.7, unsure), ("b", 0.8, sure)):
        run = make_run(tmp_path / name, best, scores=GOOD)
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        rows = [
            {"id": id_, "references": [label], "answers": {"model": {"label": "true", "probability": probability}}, "scores": {}}
            for id_, label, probability in zip(IDS, labels, probabilities, strict=True)
        ]
        (run / "evaluation" / "test.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    difference = compare_runs([tmp_path], metric="auroc").entries[1].difference
    assert difference is not None
    pairs = [
        (p, q) for p, x in zip(unsure, labels, strict=True) for q, y in zip(unsure, labels, strict=True) if (x, y) == ("true", "false")
    ]
    auroc = sum((p > q) + (p == q) / 2 for p, q in pairs) / len(pairs)
    assert difference.value == pytest.approx(auroc - 1)
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low <= auroc - 1 <= difference.high <= 0


def test_other_samples_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.7, scores=FAIR)
    make_run(tmp_path / "b", 0.8, scores=GOOD)
    (tmp_path / "a" / "evaluation" / "test.samples.jsonl").unlink()
    found = compare_runs([tmp_path])
    assert found.entries[1].difference is not None
    assert found.entries[1].difference.low is None
    assert any("no answers to the same samples" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "mark", "why"),
    [
        ({"val": "other"}, "other validation data", "validated on different data"),
        ({"test": "other"}, "other test data", "test results stand on different data"),
        ({"metric": "val_auroc"}, "another watched value", "watched different validation values"),
        ({"recipe": {"tasks": {"label": {"kind": "classify"}}}}, "another task", "learned different tasks"),
    ],
)
def test_what_cannot_be_compared_is_not_ranked(tmp_path: Path, change: dict[str, Any], mark: str, why: str) -> None:
    make_run(tmp_path / "a", 0.5, scores=FAIR)
    make_run(tmp_path / "b", 0.6, scores=GOOD)
    make_run(tmp_path / "c", 0.9, scores=GOOD, **change)
    found = compare_runs([tmp_path])
    assert not found.ranked
    assert order(found) == ["a", "b", "c"]
    assert marks(found) == {"a": (), "b": (), "c": (mark,)}
    assert any(note.startswith("Not ranked: ") and why in note for note in found.notes)
    assert (found.reference, [entry.difference for entry in found.entries]) == (None, [None] * 3)


def test_losses_of_different_objectives_are_not_ranked(tmp_path: Path) -> None:
    loss = {"early_stopping": {"metric": "val_loss"}}
    make_run(tmp_path / "a", 0.5, metric="val_loss", recipe={"train": loss})
    make_run(tmp_path / "b", 0.1, metric="val_loss", recipe={"train": {**loss, "loss_type": "focal"}})
    found = compare_runs([tmp_path])
    assert not found.ranked
    assert any("val_loss is of another objective" in note for note in found.notes)


def test_unfinished_runs_come_last(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.9, finished=False)
    make_run(tmp_path / "b", 0.2)
    found = compare_runs([tmp_path])
    assert order(found) == ["b", "a"]
    assert marks(found) == {"b": (), "a": ("unfinished: only",)}


def test_seeds_are_marked_only_where_they_confound(tmp_path: Path) -> None:
    slow = {"train": {"learning_rate": 0.0001}}
    for seed in (0, 1):
        make_run(tmp_path / f"a{seed}", 0.5, seed=seed)
        make_run(tmp_path / f"b{seed}", 0.5, seed=seed, recipe=slow)
    assert set(marks(compare_runs([tmp_path])).values()) == {()}
    found = compare_runs([tmp_path / "a0", tmp_path / "b0", tmp_path / "b1"])
    assert marks(found)["b1"] == ("another seed",)


def test_parts_of_different_kinds_differ_in_kind_and_model_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5)
    other = {"vision_encoder": {"kind": "huggingface", "model": "b", "revision": "main"}}
    make_run(tmp_path / "b", 0.6, recipe=other)
    assert compare_runs([tmp_path]).keys == ("vision_encoder.kind", "vision_encoder.model")


def test_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "runs" / "a", 0.5, scores=GOOD)
    with pytest.raises(RunError, match="no run in this folder"):
        compare_runs([tmp_path / "runs", tmp_path / "empty"])
    with pytest.raises(RunError, match="no such folder"):
        compare_runs([tmp_path / "nowhere"])
    with pytest.raises(RunError, match="did you mean 'accuracy'"):
        compare_runs([tmp_path / "runs"], metric="acuracy")
    assert order(compare_runs([tmp_path, tmp_path / "runs", tmp_path / "runs" / "a"])) == ["a"], "each run once"


def test_what_acts_in_training_alone_makes_no_other_loss(tmp_path: Path) -> None:
    objectives: dict[str, dict[str, Any]] = {
        "a": {"kind": "focal"},
        "b": {"kind": "focal", "label_smoothing": 0.1, "class_weights": [1.0, 2.0]},
    }
    watched = {"early_stopping": {"metric": "val_loss"}}
    for name, objective in objectives.items():
        make_run(tmp_path / name, 0.5, metric="val_loss", recipe={"train": {**watched, "objective": objective}})
    found = compare_runs([tmp_path])
    assert (found.ranked, marks(found)) == (True, {"a": (), "b": ()})
    make_run(tmp_path / "c", 0.4, metric="val_loss", recipe={"train": {**watched, "objective": {"kind": "focal", "gamma": 1.0}}})
    found = compare_runs([tmp_path])
    assert (found.ranked, marks(found)["c"]) == (False, ("another loss",))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_run_names_no_file_outside_its_folder(tmp_path: Path, absolute: bool) -> None:
    make_run(tmp_path / "runs" / "a", 0.7, scores=FAIR)
    make_run(tmp_path / "runs" / "b", 0.8, scores=GOOD)
    outside, place = tmp_path / "outside.jsonl", tmp_path / "runs" / "a" / "evaluation" / "test.json"
    (tmp_path / "runs" / "a" / "evaluation" / "test.samples.jsonl").rename(outside)
    result = json.loads(place.read_text(encoding="utf-8"))
    result["samples"] = str(outside) if absolute else "../../../outside.jsonl"
    place.write_text(json.dumps(result), encoding="utf-8")
    difference = compare_runs([tmp_path / "runs"]).entries[1].difference
    assert difference is not None
    assert difference.low is None, "the rows outside were not read"
    result["checkpoint"]["path"] = str(tmp_path) if absolute else "../.."
    place.write_text(json.dumps(result), encoding="utf-8")
    with pytest.raises(RunError, match=r"test\.json cannot be read"):
        compare_runs([tmp_path / "runs"])


def staged_run(folder: Path, plain_recipe: Callable[..., dict[str, Any]], answers: dict[str, list[str]], tasks: tuple[str, str]) -> Path:
    """A run of captions with stages `warm` and `fine`, both evaluated; answers by stage."""
    make_run(folder, 0.5, metric="val_loss")
    kinds = {name: {"kind": "caption"} for name in tasks}
    recipe = plain_recipe(tasks=kinds, stages={"warm": {"task": tasks[0]}, "fine": {"task": tasks[1]}})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    stage = facts["stages"].pop("only")
    for name, value in (("warm", 0.9), ("fine", 0.7)):
        facts["stages"][name] = {**stage, "best": {**stage["best"], "value": value}}
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    references = [f"a house by lake number {number}" for number in range(12)]
    for name, file, task in (("warm", "test@warm", tasks[0]), ("fine", "test", tasks[1])):
        scored = captions.score(answers[name], [[text] for text in references])
        result = {
            "task": task,
            "num_samples": 12,
            "num_resamples": 200,
            "seed": 5,
            "data": {"sha256": "t"},
            "checkpoint": {"path": f"{name}/best", "sha256": "x", "stage": name},
            "samples": f"{file}.samples.jsonl",
            "signature": dict(scored.signature),
            "systems": {"model": {metric: {"value": value, "low": None, "high": None} for metric, value in scored.corpus.items()}},
        }
        (folder / "evaluation" / f"{file}.json").write_text(json.dumps(result), encoding="utf-8")
        rows = [
            {
                "id": IDS[number],
                "references": [references[number]],
                "answers": {"model": answers[name][number]},
                "scores": {metric: values[number] for metric, values in scored.per_sample.items()},
            }
            for number in range(12)
        ]
        (folder / "evaluation" / f"{file}.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


WARM, FINE = ["a house"] * 12, [f"a house by lake number {number % 7}" for number in range(12)]


def test_stages_of_one_run_are_told_apart(tmp_path: Path, plain_recipe: Callable[..., dict[str, Any]]) -> None:
    run = staged_run(tmp_path / "run", plain_recipe, {"warm": WARM, "fine": FINE}, ("say", "say"))
    found = compare_runs([f"{run}@warm", f"{run}@fine"], every_metric=True)
    assert order(found) == ["run@fine", "run@warm"], "by validation"
    assert [(entry.stage, entry.best) for entry in found.entries] == [("fine", 0.7), ("warm", 0.9)]
    gaps = found.entries[1].differences
    assert {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"} <= set(gaps)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider"):
        gap, values = gaps[name], [entry.metrics[name].value or 0.0 for entry in found.entries]
        assert gap.value == pytest.approx(values[1] - values[0])
        assert gap.low is not None
        assert gap.high is not None
        assert gap.low <= gap.value <= gap.high < 0
    assert gaps["chrf"].low is None


def test_runs_that_are_not_ranked_are_held_against_the_first(tmp_path: Path, plain_recipe: Callable[..., dict[str, Any]]) -> None:
    """Two tasks may cut texts at different lengths, so their losses are two; their answers to the same samples are not."""
    run = staged_run(tmp_path / "run", plain_recipe, {"warm": WARM, "fine": FINE}, ("align", "describe"))
    found = compare_runs([f"{run}@warm", f"{run}@fine"], every_metric=True)
    assert (found.ranked, found.reference) == (False, f"{run}@warm")
    gap = found.entries[1].differences["bleu_4"].low
    assert gap is not None
    assert gap > 0
    assert any("against the first run, for the runs are not ranked" in note for note in found.notes)
    assert compare_runs([f"{run}@warm", f"{run}@fine"]).reference is None


def test_a_stage_that_is_missing_or_not_evaluated(tmp_path: Path, plain_recipe: Callable[..., dict[str, Any]]) -> None:
    run = staged_run(tmp_path / "run", plain_recipe, {"warm": WARM, "fine": FINE}, ("say", "say"))
    with pytest.raises(RunError, match="has no stage 'fin'") as caught:
        compare_runs([f"{run}@fin"])
    assert "fine" in str(caught.value)
    (run / "evaluation" / "test@warm.json").unlink()
    assert marks(compare_runs([f"{run}@warm"]))["run@warm"] == (f"no test results: eyegraft evaluate {run} --stage warm",)
    odd = make_run(tmp_path / "a@b", 0.5)
    assert order(compare_runs([odd])) == ["a@b"], "a folder of that very name is itself"
