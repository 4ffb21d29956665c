"""Label recipes from training to what a script, a report and a person read, through the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import drawn
from cli.running import run, stop_before, trained
from eyegraft.evaluation.outputs import _written
from eyegraft.files import file_sha256

FLAT = {"experiment", "best_epoch", "loss", "accuracy", "precision", "recall", "f1", "tp", "tn", "fp", "fn", "auroc", "pr_auc"}
AT = {
    f"{metric}_at_best_{wanted}"
    for wanted in ("f1", "accuracy")
    for metric in ("accuracy", "precision", "recall", "f1", "tp", "tn", "fp", "fn")
}
MORE = {"num_samples", "balanced_accuracy", "brier", "ece", "log_loss", "temperature"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    drawn.adverts(folder / "data")
    return folder


@pytest.fixture(scope="module")
def finished(place: Path, folders: Any) -> Callable[..., Path]:
    """The run of some overrides, trained and evaluated by one command, once for all tests."""
    runs: dict[tuple[str, ...], Path] = {}

    def made(*words: str) -> Path:
        if words not in runs:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EYEGRAFT_CACHE", str(place / "cache"))
                patch.delenv("DATA_DIR", raising=False)
                runs[words] = place / trained(run("train", *drawn.ad_words(folders, "pooling=mean", *words), "--fresh", cwd=place))
        return runs[words]

    return made


@pytest.fixture(autouse=True)
def _cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(place / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    return read(folder / "results.json"), read(folder / "test_predictions.json"), read(folder / "evaluation" / "test.json")


def test_all_that_a_script_reads(finished: Any) -> None:
    folder = finished()
    results, predictions, _ = outputs(folder)
    assert set(results) == FLAT | AT | MORE | {"best_threshold_f1", "best_threshold_accuracy"}
    assert results["experiment"] == "ad_classifier"
    assert results["num_samples"] == sum(results[name] for name in ("tp", "tn", "fp", "fn")) == 12
    assert results["loss"] == results["log_loss"]
    assert all(isinstance(value, int | float | str) for value in results.values()), "flat"
    assert yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8")) == yaml.safe_load(
        (folder / "recipe.yaml").read_text(encoding="utf-8")
    )
    right = 0
    for place, row in enumerate(predictions):
        assert list(row) == ["id", "path", "gt", "pred", "prob", "logits", "weights"]
        assert Path(row["path"]).is_file()
        assert row["gt"] == ("true" if place % 3 == 0 else "false"), "in the words of pred, however the cell was spelled"
        assert row["pred"] == ("true" if row["prob"] >= 0.5 else "false")
        assert row["prob"] == pytest.approx(1 / (1 + math.exp(-row["logits"][0] / results["temperature"])))
        assert sum(row["weights"].values()) == pytest.approx(1)
        right += row["gt"] == row["pred"]
    assert results["accuracy"] == right / 12


def test_the_best_epoch_is_the_one_that_validation_liked_best(finished: Any) -> None:
    """Counted from 1, as the log counts."""
    folder = finished("train.early_stopping.metric=val_log_loss", "train.epochs=4")
    lines = [json.loads(line) for line in (folder / "label" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    values = [row["val_log_loss"] for row in lines if row["kind"] == "val"]
    assert len(values) == 4
    assert outputs(folder)[0]["best_epoch"] == 1 + min(range(4), key=values.__getitem__)


def test_metrics_at_the_chosen_thresholds_are_of_the_test_rows(finished: Any) -> None:
    results, predictions, result = outputs(finished())
    for wanted in ("f1", "accuracy"):
        threshold = results[f"best_threshold_{wanted}"]
        assert threshold == result["decision"]["thresholds"][wanted]
        called = [row["prob"] >= threshold for row in predictions]
        truth = [row["gt"] == "true" for row in predictions]
        assert results[f"tp_at_best_{wanted}"] == sum(a and b for a, b in zip(called, truth, strict=True))
        assert results[f"fp_at_best_{wanted}"] == sum(a and not b for a, b in zip(called, truth, strict=True))
        assert results[f"accuracy_at_best_{wanted}"] == pytest.approx(sum(a == b for a, b in zip(called, truth, strict=True)) / 12)


@pytest.mark.parametrize(
    ("words", "parts", "systems"),
    [
        ((), {"vision_encoder", "text_encoder", "fusion", "head"}, {"absent_text", "absent_image", "shuffled_text", "blank_image"}),
        (("train.modality=vision_only",), {"vision_encoder", "fusion", "head"}, {"blank_image", "shuffled_image"}),
        (("train.modality=text_only",), {"text_encoder", "fusion", "head"}, {"shuffled_text"}),
        (("text_encoder=none", "fusion=concat"), {"vision_encoder", "fusion", "head"}, {"blank_image", "shuffled_image"}),
    ],
)
def test_every_kind_of_model(finished: Any, words: tuple[str, ...], parts: set[str], systems: set[str]) -> None:
    folder = finished(*words)
    results, predictions, result = outputs(folder)
    rows = read(folder / "run.json")["stages"]["label"]["trainable"]
    assert {row["part"] for row in rows} == parts
    there = set(result["systems"])
    assert systems | {"model", "most_frequent", "nearest_neighbour"} <= there
    if len(parts) == 3:
        assert not {"absent_text", "absent_image"} & there, "nothing would be left"
    assert ("weights" in predictions[0]) is (words == ())
    assert results["auroc"] is not None
    assert (folder / "report.html").is_file()


def test_side_by_side(finished: Any) -> None:
    results, predictions, _ = outputs(finished("fusion=concat"))
    assert "weights" not in predictions[0]
    assert set(results) >= FLAT


def test_one_of_several(finished: Any) -> None:
    folder = finished(
        "tasks.label.classes=[red,blue,green]",
        "data.columns.references=colour",
        "train.loss_type=softmax",
        "train.early_stopping.metric=val_auroc",
    )
    results, predictions, result = outputs(folder)
    assert set(results) >= {"accuracy", "macro_f1", "auroc", "temperature", "loss", "best_epoch"}
    assert not {"tp", "best_threshold_f1"} & set(results)
    for row in predictions:
        assert set(row["probs"]) == {"red", "blue", "green"}
        assert sum(row["probs"].values()) == pytest.approx(1)
        assert row["pred"] == max(row["probs"], key=row["probs"].__getitem__)
    assert results["accuracy"] == sum(row["gt"] == row["pred"] for row in predictions) / 12
    assert result["decoding"]["classes"] == ["red", "blue", "green"]


def test_several_at_once(finished: Any) -> None:
    folder = finished(
        "tasks.label={kind: classify, classes: [red, blue, green, circle, triangle], multi_label: true}",
        "data.tables={train: both-train.jsonl, val: both-val.jsonl, test: both-test.jsonl}",
        "train.loss_type=bce",
        "train.early_stopping.metric=val_mean_average_precision",
    )
    results, predictions, _ = outputs(folder)
    assert set(results) >= {"macro_f1", "micro_f1", "mean_average_precision", "exact_match"}
    assert predictions[0]["gt"] == [], "a row of none of them"
    assert predictions[3]["gt"] == ["red", "circle"]
    assert all(row["pred"] == [name for name, p in row["probs"].items() if p >= 0.5] for row in predictions)
    assert results["exact_match"] == sum(row["gt"] == row["pred"] for row in predictions) / 12


def test_evaluated_again_it_is_the_same(finished: Any, place: Path) -> None:
    folder = finished()
    before, result = (folder / "results.json").read_bytes(), outputs(folder)[2]
    predictions = (folder / "test_predictions.json").read_bytes()
    done = run("evaluate", str(folder), "--split", "test", "--split", "val", cwd=place)
    assert done.returncode == 0, done.stderr
    after = read(folder / "results.json")
    splits = after.pop("splits")
    assert after == json.loads(before)
    assert set(splits) == {"val"}
    assert set(splits["val"]) == set(after)
    assert (folder / "test_predictions.json").read_bytes() == predictions
    again = outputs(folder)[2]
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in result.items() if key != "seconds"
    }
    assert read(folder / "evaluation" / "val.json")["conclusions"][0].startswith("Not held out")


def test_a_split_may_have_the_name_of_a_metric(finished: Any, place: Path) -> None:
    folder = finished()
    before = outputs(folder)[0]
    drawn.picture(place / "data" / "other.png", 901, "red", "square")
    rows = [{"id": f"o/{n}", "local_image_path": "other.png", "label": label, "text_info": ""} for n, label in enumerate(("1", "0"))]
    assert run("evaluate", str(folder), "--data", str(drawn.write_csv(place / "f1.csv", rows)), cwd=place).returncode == 0
    after = outputs(folder)[0]
    assert after["f1"] == before["f1"]
    assert after["splits"]["f1"]["num_samples"] == 2
    assert run("evaluate", str(folder), cwd=place).returncode == 0
    assert outputs(folder)[0] == after, "test anew, the other splits as they were"


@pytest.mark.parametrize("damaged", ["", '{"f1": ', "[]", '{"splits": 1}'])
def test_damaged_numbers_are_begun_anew(tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "results.json"
    place.write_text(damaged, encoding="utf-8")
    assert _written(place) == {}
    assert "results.json is damaged and is begun anew" in caplog.text


def test_predict_says_what_evaluation_said(finished: Any, place: Path) -> None:
    folder = finished()
    rows = outputs(folder)[1]
    texts = [row["text_info"] for row in drawn.read_csv(place / "data" / "test.csv")]
    words = [word for text in texts for word in ("--text", text)]
    done = run("predict", str(folder), *(row["path"] for row in rows), *words, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["answer"] for line in done.stdout.splitlines()]
    assert [answer["probability"] for answer in answers] == pytest.approx([row["prob"] for row in rows], abs=5e-3), "fp16 features there"
    other = run("predict", str(folder), rows[0]["path"], "--text", "a blue circle", "--json", cwd=place)
    assert json.loads(other.stdout)["answer"]["logits"] != pytest.approx(answers[0]["logits"], abs=1e-4), "the words are read"


def test_the_test_rows_choose_nothing(finished: Any, place: Path, folders: Any) -> None:
    """Other test labels: the same weights, threshold and temperature, and so the same answers; other scores."""
    table = drawn.read_csv(place / "data" / "test.csv")
    names = ("true", "false")
    drawn.write_csv(place / "data" / "flipped.csv", [{**row, "label": names[row["colour"] == "red"]} for row in table])
    one, other = finished("tasks.label.threshold=f1"), finished("tasks.label.threshold=f1", "data.tables.test=flipped.csv")
    (results, rows, result), (flipped, flipped_rows, flipped_result) = outputs(one), outputs(other)
    assert result["decision"] == flipped_result["decision"]
    assert result["decoding"]["threshold"] == result["decision"]["thresholds"]["f1"] == result["details"]["threshold"]
    assert [row["prob"] for row in rows] == [row["prob"] for row in flipped_rows]
    assert [row["pred"] for row in rows] == [row["pred"] for row in flipped_rows]
    assert flipped["auroc"] == pytest.approx(1 - results["auroc"])
    assert (flipped["tp"], flipped["fn"]) == (results["fp"], results["tn"])


def test_what_a_kill_or_an_earlier_look_left_is_evaluated_again(place: Path, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was evaluated half-way through, finished, and killed before its outputs were whole."""
    words = drawn.ad_words(folders, "pooling=mean", "experiment_name=halted", "run_root=runs")
    with monkeypatch.context() as patch:
        stop_before(patch, 6)
        assert run("train", *words, cwd=place).returncode != 0
    (folder,) = (place / "runs" / "halted").iterdir()
    assert run("evaluate", str(folder), cwd=place).returncode == 0
    assert outputs(folder)[0]["best_epoch"] == 2
    assert outputs(folder)[2]["conclusions"][0].startswith("Not finished: stage label")
    assert place / trained(run("train", *words, cwd=place)) == folder
    results, _, result = outputs(folder)
    assert "best_threshold_f1" in results
    assert not any("Not finished" in sentence for sentence in result["conclusions"])
    assert result["checkpoint"]["sha256"] == file_sha256(folder / "label" / "checkpoints" / "best" / "manifest.json")
    (folder / "report.html").unlink()
    (folder / "results.json").unlink()
    assert "finished already" in run("train", *words, "-m", cwd=place).stderr
    assert outputs(folder)[0] == results
    assert (folder / "test_report.md").is_file()
    before = (folder / "results.json").stat().st_mtime_ns
    run("train", *words, "-m", cwd=place)
    assert (folder / "results.json").stat().st_mtime_ns == before, "what is whole is left alone"


def test_a_test_split_of_one_class(finished: Any, place: Path) -> None:
    """AUROC has no value there; all else has."""
    drawn.write_csv(place / "data" / "no-reds.csv", [row for row in drawn.read_csv(place / "data" / "test.csv") if row["colour"] != "red"])
    folder = finished("data.tables.test=no-reds.csv")
    results, _, result = outputs(folder)
    assert results["auroc"] is None
    assert results["pr_auc"] is None
    assert results["num_samples"] == results["tn"] + results["fp"] == 8
    assert result["systems"]["model"]["auroc"] == {"value": None, "low": None, "high": None}
    assert result["systems"]["model"]["accuracy"]["low"] is not None
    assert any("on accuracy" in sentence for sentence in result["conclusions"])
    shown = run("evaluate", str(folder), cwd=place)
    assert "undefined" in next(line for line in shown.stdout.splitlines() if "auroc" in line)


def test_a_bad_label_in_an_outside_table_is_named_before_anything_is_answered(finished: Any, place: Path) -> None:
    folder = finished()
    drawn.picture(place / "data" / "new.png", 900, "red", "square")
    rows = [
        {"id": f"new/{n}", "local_image_path": "new.png", "label": label, "text_info": ""} for n, label in enumerate(("1", "maybe", "nein"))
    ]
    outside = drawn.write_csv(place / "outside.csv", rows)
    done = run("evaluate", str(folder), "--data", str(outside), cwd=place)
    assert done.returncode == 3
    assert "sample new/1: label 'maybe'" in done.stderr
    assert "sample new/2: label 'nein'" in done.stderr
    assert not (folder / "evaluation" / "outside.json").exists()


def test_the_same_command_twice_gives_the_same_numbers(finished: Any) -> None:
    words = ("deterministic=true", "augmentation=weak", "evaluation.baselines=[]")
    once, again = finished(*words), finished(*words, "trackers.tensorboard=false")
    assert once != again
    for name in ("results.json", "test_predictions.json"):
        assert (once / name).read_bytes() == (again / name).read_bytes()
