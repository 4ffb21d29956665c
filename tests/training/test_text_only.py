"""Models that read words alone, by the command line: nothing of theirs depends on pictures that are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import drawn
from cli.running import refused, run, trained
from eyegraft import load_run
from eyegraft.errors import DataError

QUICK = ("train.epochs=1", "pooling=mean", "data.columns.group=id")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_only")
    drawn.adverts(folder / "data")
    return folder


@pytest.fixture(autouse=True)
def _cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(place / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def pictured(place: Path, folders: Any) -> Path:
    """A run on words and pictures, from before the pictures were lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EYEGRAFT_CACHE", str(place / "cache"))
        patch.delenv("DATA_DIR", raising=False)
        words = drawn.ad_words(folders, *QUICK, "evaluation.after_training=false")
        return place / trained(run("train", *words, "--fresh", cwd=place))


@pytest.fixture(scope="module")
def written(place: Path, folders: Any, pictured: Path) -> Path:
    """A run on the words, with the pictures gone."""
    shutil.rmtree(place / "data" / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EYEGRAFT_CACHE", str(place / "cache"))
        patch.delenv("DATA_DIR", raising=False)
        return place / trained(run("train", *drawn.ad_words(folders, *QUICK, "train.modality=text_only"), "--fresh", cwd=place))


def test_it_trains_and_is_evaluated_without_pictures(written: Path, place: Path) -> None:
    facts = json.loads((written / "run.json").read_text(encoding="utf-8"))
    assert facts["quarantined"] == {}
    assert {name: split["rows"] for name, split in facts["data"]["splits"].items()} == drawn.COUNTS
    before = json.loads((written / "evaluation" / "test.json").read_text(encoding="utf-8"))["data"]
    done = run("evaluate", str(written), "--split", "test", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads((written / "evaluation" / "test.json").read_text(encoding="utf-8"))["data"] == before


def test_the_check_up_and_a_table_without_a_column_of_pictures(written: Path, place: Path, folders: Any) -> None:
    for split in drawn.COUNTS:
        table = drawn.read_csv(place / "data" / f"{split}.csv")
        for row in table:
            del row["local_image_path"]
            row["text_info"] = row["text_info"] or "a thing"
        drawn.write_csv(place / "data" / f"words-{split}.csv", table)
    words = drawn.ad_words(
        folders,
        *QUICK,
        "data.columns.image=null",
        "data.tables={train: words-train.csv, val: words-val.csv, test: words-test.csv}",
    )
    done = run("doctor", *words, "train.modality=text_only", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "24 samples" in done.stdout
    refused(run("doctor", *words, cwd=place), 2, "data.columns.image", "train.modality=text_only")


def test_words_are_answered_without_an_image(written: Path, place: Path) -> None:
    done = run("predict", str(written), "--text", "a red circle", "--text", "a blue\nsquare", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["a red circle", "a blue\nsquare"]
    assert [line["answer"] for line in lines] == load_run(written).predict([], texts=["a red circle", "a blue\nsquare"])
    plain = run("predict", str(written), "--text", "a blue\nsquare", cwd=place).stdout
    assert plain.startswith("a blue square\t")
    beside = run("predict", str(written), "--text", "a red circle", "gone.png", "--json", cwd=place)
    assert json.loads(beside.stdout) == {"image": "gone.png", "answer": lines[0]["answer"]}
    assert load_run(written).predict([]) == []
    refused(run("predict", str(written), cwd=place), 3, "neither an image nor a text")


def test_a_model_that_reads_pictures_asks_for_them(pictured: Path, place: Path) -> None:
    refused(run("predict", str(pictured), "--text", "a red circle", cwd=place), 3, "no image beside 1 text", "the model reads pictures")
    with pytest.raises(DataError, match="no image beside 2 texts"):
        load_run(pictured).predict([], texts=["a", "b"])
    path = drawn.picture(place / "new.png", 99, "red", "circle")
    done = run("predict", str(pictured), "--text", "a red circle", str(path), "--json", cwd=place)
    assert json.loads(done.stdout)["image"] == str(path), "images may stand behind an option"
