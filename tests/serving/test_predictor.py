"""Answers of a trained run about images that lie anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import TESTS, contents, kept_registry, read_table, small_words
from eyegraft import evaluate, load_recipe, load_run, train
from eyegraft.composition import use_config_dir
from eyegraft.errors import DataError, RunError
from eyegraft.registry import use_plugin
from eyegraft.tasks.caption import CaptionTask
from eyegraft.types import Sample


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.shapes(tmp_path_factory.mktemp("predict") / "data", {"train": 9, "val": 3, "test": 7})


@pytest.fixture(scope="module")
def small_run(folders: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters on a language model, and a connector and an encoder block that train: all must come back."""
    words = ("train.tune.head.learning_rate=0.05", f"data.base_dir={data}", f"run_root={tmp_path_factory.mktemp('small')}")
    with kept_registry():
        use_config_dir(str(TESTS / "cli" / "conf"))
        return train(load_recipe("small", *small_words(folders)[1:], *words))


@pytest.fixture(scope="module")
def tiny_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("stages.finetune.epochs=2", f"data.base_dir={data}", f"run_root={tmp_path_factory.mktemp('tiny')}")
    with kept_registry():
        use_plugin("tinyparts")
        use_config_dir(str(TESTS / "tinyparts" / "conf"))
        return train(load_recipe("tiny", *words))


@pytest.fixture
def images(data: Path) -> list[Path]:
    return sorted((data / "images").iterdir())[:7]


def test_several_at_once_equal_one_at_a_time(small_run: Path, images: list[Path]) -> None:
    """More images than one batch holds."""
    predictor = load_run(small_run)
    together = predictor.predict(images)
    assert len(together) == 7
    assert together == [predictor.predict([image])[0] for image in images]
    assert together == [answer for image in images for answer in predictor.predict([str(image)])], "a path may be text"
    assert predictor.predict(images[::-1]) == together[::-1]


def test_reload_gives_the_same_text(small_run: Path, images: list[Path]) -> None:
    before = contents(small_run)
    assert load_run(small_run).predict(images) == load_run(str(small_run)).predict(images)
    assert contents(small_run) == before, "answering leaves a run as it is"


def test_answers_are_those_of_evaluation(small_run: Path, images: list[Path]) -> None:
    evaluate(small_run, splits=["train"])
    table = read_table(small_run / "evaluation" / "train.samples.jsonl")
    assert load_run(small_run).predict([row["image"] for row in table]) == [row["answers"]["model"] for row in table]


def test_prompt_comes_before_the_trained_one(tiny_run: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    use_plugin("tinyparts")
    asked: list[str | None] = []
    encode = CaptionTask.encode

    def heard(self: CaptionTask, sample: Sample, *args: Any, **options: Any) -> Any:
        asked.append(sample.prompt)
        return encode(self, sample, *args, **options)

    monkeypatch.setattr(CaptionTask, "encode", heard)
    predictor = load_run(tiny_run)
    usual = predictor.predict(images)
    other = predictor.predict(images, prompt="What is the opposite of this?")
    assert asked == [None] * 7 + ["What is the opposite of this?"] * 7
    assert other != usual
    assert predictor.predict(images, prompt="Shape:") == usual, "the trained prompt, typed out, is the same question"


def test_stage(tiny_run: Path, images: list[Path]) -> None:
    use_plugin("tinyparts")
    assert load_run(tiny_run).checkpoint == tiny_run / "finetune" / "checkpoints" / "best"
    assert load_run(tiny_run, stage="warm").checkpoint == tiny_run / "warm" / "checkpoints" / "best"
    with pytest.raises(RunError, match="stage 'cold'"):
        load_run(tiny_run, stage="cold")


def test_nothing_asked_nothing_answered(tiny_run: Path) -> None:
    use_plugin("tinyparts")
    assert load_run(tiny_run).predict([]) == []


def test_images_of_every_kind(tiny_run: Path, tmp_path: Path) -> None:
    """Grey, palette, transparent, 16 bit, lying on its side: all are answered."""
    from PIL import Image

    use_plugin("tinyparts")
    picture = Image.open(tiny.picture(tmp_path / "plain.png"))
    for mode, suffix in (("L", "png"), ("P", "gif"), ("RGBA", "webp"), ("I;16", "tif"), ("RGB", "jpg")):
        (picture.convert("L") if mode == "I;16" else picture).convert(mode).save(tmp_path / f"{mode.replace(';', '')}.{suffix}")
    with chdir(tmp_path):
        assert len(load_run(tiny_run).predict(sorted(path.name for path in tmp_path.iterdir()))) == 6


def test_bad_image_is_named(tiny_run: Path, images: list[Path], tmp_path: Path) -> None:
    use_plugin("tinyparts")
    with pytest.raises(DataError, match=r"gone\.png: missing file"):
        load_run(tiny_run).predict([*images, tmp_path / "gone.png"])
