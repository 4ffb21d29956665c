"""Whatever is wrong with labels, a person reads which rows, what was expected and how to mend it, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import drawn
from cli.running import refused, run
from command_line import eyegraft

RECIPE, DATA = 2, 3


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    drawn.adverts(tmp_path / "data", {"train": 9, "val": 6, "test": 6})


def train(cwd: Path, folders: Any, *words: str) -> CompletedProcess[str]:
    return run("train", *drawn.ad_words(folders, "pooling=mean", *words), cwd=cwd)


def changed(folder: Path, split: str, **labels: str) -> None:
    """Write other labels into rows: `_3="yes"` for the fourth."""
    table = drawn.read_csv(folder / "data" / f"{split}.csv")
    for place, label in labels.items():
        table[int(place[1:])]["label"] = label
    drawn.write_csv(folder / "data" / f"{split}.csv", table)


def untouched(folder: Path) -> None:
    assert not list(folder.rglob("model*.safetensors")), "nothing was trained"


def test_every_offending_row_in_a_real_process(tmp_path: Path, folders: Any) -> None:
    changed(tmp_path, "train", _1="yes", _4="2", _7="Flase", _8="TRUE")
    done = eyegraft("train", *drawn.ad_words(folders, "pooling=mean"), cwd=tmp_path)
    said = refused(
        done,
        DATA,
        "split train: 3 of 9 rows have no usable label",
        "sample train/1: label 'yes'",
        "sample train/4: label '2'",
        "sample train/7: label 'Flase'",
        "true, false, 1 or 0, in any case",
        "tasks.label.classes",
    )
    assert "train/8" not in said
    untouched(tmp_path)


def test_other_splits_are_looked_at_before_the_training(tmp_path: Path, folders: Any) -> None:
    changed(tmp_path, "val", _0="ja", _5="-1")
    changed(tmp_path, "test", _2="oui")
    said = (
        "split val: 2 of 6 rows",
        "sample val/0: label 'ja'",
        "sample val/5: label '-1'",
        "split test: 1 of 6 rows",
        "sample test/2: label 'oui'",
    )
    refused(train(tmp_path, folders), DATA, *said)
    untouched(tmp_path)


def test_doctor_says_the_same(tmp_path: Path, folders: Any) -> None:
    changed(tmp_path, "test", _2="perhaps")
    done = run("doctor", *drawn.ad_words(folders, "pooling=mean"), cwd=tmp_path)
    refused(done, DATA, "split test: 1 of 6 rows", "sample test/2: label 'perhaps'")


def test_an_empty_label_is_a_bad_row(tmp_path: Path, folders: Any) -> None:
    changed(tmp_path, "train", _3="")
    refused(train(tmp_path, folders), DATA, "train/3", "empty text", "the cell of column 'label' holds no text")


def test_one_class_only(tmp_path: Path, folders: Any) -> None:
    changed(tmp_path, "train", **{f"_{place}": "False" for place in range(9)})
    refused(
        train(tmp_path, folders),
        DATA,
        "split train: one class only (9 of 'False')",
        "samples of two classes or more",
        "data.columns.references",
    )
    untouched(tmp_path)


def test_validation_of_one_class_cannot_choose_by_auroc(tmp_path: Path, folders: Any) -> None:
    changed(tmp_path, "val", **{f"_{place}": "1" for place in range(6)})
    refused(train(tmp_path, folders), DATA, "early_stopping.metric=val_auroc", "6 samples of one class", "early_stopping.metric=val_loss")
    untouched(tmp_path)
    refused(
        train(tmp_path, folders, "train.early_stopping.metric=val_loss", "tasks.label.threshold=accuracy"),
        DATA,
        "split val: one class only (6 of '1')",
        "tasks.label.threshold=accuracy",
    )
    untouched(tmp_path)


def test_a_misspelt_class(tmp_path: Path, folders: Any) -> None:
    words = ("tasks.label.classes=[red,blue,gren]", "data.columns.references=colour", "train.loss_type=softmax")
    refused(
        train(tmp_path, folders, *words),
        DATA,
        "3 of 9 rows",
        "sample train/2: label 'green'",
        "one of red, blue, gren",
        "did you mean 'gren'?",
    )
    untouched(tmp_path)


def test_focal_loss_among_several_classes(tmp_path: Path, folders: Any) -> None:
    words = ("tasks.label.classes=[red,blue,green]", "data.columns.references=colour")
    refused(
        train(tmp_path, folders, *words), RECIPE, "train.loss_type=focal with tasks.label", "one of softmax", "set train.loss_type=softmax"
    )
    untouched(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tasks.label.classes=[one]",), "two or more different names"),
        (("tasks.label.multi_label=true",), "multi_label=true without classes"),
        (("tasks.label.threshold=1.5",), "a probability between 0 and 1"),
        (("tasks.label={kind: classify, classes: [a, b], multi_label: true, threshold: f1}",), "yes or no alone"),
        (("train.finetune_layers=2",), "finetune_layers=2 of a frozen backbone"),
    ],
)
def test_a_recipe_that_makes_no_sense(tmp_path: Path, folders: Any, words: tuple[str, ...], said: str) -> None:
    refused(train(tmp_path, folders, *words), RECIPE, said)
    assert not (tmp_path / "whole_finetune").exists()


def test_balanced_weights_of_a_class_that_never_occurs(tmp_path: Path, folders: Any) -> None:
    words = (
        "tasks.label.classes=[red,blue,green,black]",
        "data.columns.references=colour",
        "train.loss_type=null",
        "train.objective={kind: softmax, class_weights: balanced}",
    )
    refused(train(tmp_path, folders, *words), DATA, "class_weights=balanced: no training row has class 3")
    untouched(tmp_path)
