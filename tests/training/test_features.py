"""Training from the feature cache: the same as without it, whatever happens in between; and where it would not be the same, it says why not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import drawn
import eyegraft.training
from cli.running import Interrupted, rows, run, stop_before, tensors
from drawn import logged
from eyegraft.composition import load_recipe
from eyegraft.data.features import weights_sha256
from eyegraft.errors import PartError
from eyegraft.training.building import build_model
from eyegraft.training.features import _adapters
from eyegraft.tuning import make_plan

MEAN = ("pooling=mean", "evaluation.after_training=false", "train.early_stopping.patience=null")
COARSE = {"float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.adverts(tmp_path_factory.mktemp("adverts"))


@pytest.fixture(scope="module")
def train(data: Path, folders: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, str]]:
    """Train in a folder of its own; gives the run and the log, as far as it came. `cache` names a cache and `place` a folder to share."""
    root = tmp_path_factory.mktemp("runs")

    def made(*words: str, vision: str = "siglip", cache: str | None = None, place: Path | None = None) -> tuple[Path, str]:
        folder = place or root / str(len(list(root.iterdir())))
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, logged() as log:
            patch.setenv("EYEGRAFT_CACHE", str(root.parent / f"{root.name}-{cache}" if cache else folder / "cache"))
            patch.setenv("DATA_DIR", str(data))
            name, *rest = drawn.ad_words(folders, *MEAN, f"run_root={folder / 'runs'}", *words, vision=vision)
            return eyegraft.training.train(load_recipe(name.removeprefix("recipe="), *rest)), log.getvalue()

    return made


@pytest.fixture(scope="module")
def first(train: Callable[..., tuple[Path, str]]) -> tuple[Path, str]:
    """A run that fills the cache."""
    return train(cache="shared")


def val(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows(folder) if row["kind"] == "val"]


def alike(one: Path, other: Path, dtype: str = "float16") -> None:
    """The same losses within rounding; every metric of the ranking the same where it hangs on no rounding."""
    assert len(val(one)) == len(val(other)) == 3
    for a, b in zip(val(one), val(other), strict=True):
        assert set(a) == set(b)
        for name in ("val_loss", "val_log_loss", "val_brier"):
            assert a[name] == pytest.approx(b[name], abs=COARSE[dtype]), name


def identical(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert tensors(one) == tensors(other)


def lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("feature cache")]


def test_cached_training_is_uncached_training_within_rounding(first: tuple[Path, str], train: Any) -> None:
    cached, log = first
    assert any("image: 24 records" in line and "24 of them encoded now" in line for line in lines(log)), log
    assert any("image: 9 records" in line and "9 of them encoded now" in line for line in lines(log)), log
    assert any("text: 7 records" in line for line in lines(log)), "six texts and the empty one, each once"
    uncached, log = train("train.feature_cache.mode=off")
    assert sum("train.feature_cache.mode=off" in line for line in lines(log)) == len(lines(log)) > 0
    alike(cached, uncached)
    assert tensors(cached) != tensors(uncached), "the rounding is there, so the cache was read"


def test_the_next_run_encodes_nothing(first: tuple[Path, str], train: Any) -> None:
    again, log = train(cache="shared")
    assert all(", 0 of them encoded now" in line for line in lines(log)), log
    assert lines(log)
    identical(again, first[0])


def test_a_sweep_shares_the_cache(data: Path, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DATA_DIR", str(data))
    words = drawn.ad_words(folders, *MEAN, "train.epochs=1", "train.learning_rate=0.01,0.003", "-m")
    log = run("train", *words, cwd=tmp_path).stderr
    assert len(list(tmp_path.glob("whole_finetune/ad_classifier/*/run.json"))) == 2, log
    encoded = [line for line in dict.fromkeys(lines(log)) if "image" in line]
    assert [", 0 of them" in line for line in encoded] == [False, False, True, True], "train and val of the first, then of the second"


def test_stopped_anywhere_it_ends_with_the_same_bits(
    first: tuple[Path, str], train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eyegraft.training import features

    whole: Callable[..., Any] = features._encoding
    asked = []

    def stopping(*given: Any) -> Any:
        encoded, calls = whole(*given), []

        def counted(inputs: Any) -> Any:
            calls.append(inputs)
            asked.append(inputs)
            if len(asked) == 5:  # train and val of both modalities are measured and filled one after the other
                raise Interrupted
            return encoded(inputs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(features, "_encoding", stopping)
        with pytest.raises(Interrupted):
            train(place=tmp_path)
    for step in (4, 7):
        with monkeypatch.context() as patch:
            stop_before(patch, step)
            with pytest.raises(Interrupted):
                train(place=tmp_path)
    ended, log = train(place=tmp_path)
    assert "going on with the unfinished run" in log
    assert all(", 0 of them encoded now" in line for line in lines(log))
    assert len(list(tmp_path.glob("runs/ad_classifier/*"))) == 1
    identical(ended, first[0])


def test_a_lost_cache_is_made_again(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: tuple[Path, str]) -> None:
    with monkeypatch.context() as patch:
        stop_before(patch, 5)
        with pytest.raises(Interrupted):
            train(place=tmp_path)
    shutil.rmtree(tmp_path / "cache" / "features")
    ended, log = train(place=tmp_path)
    assert "24 of them encoded now" in log
    identical(ended, first[0])


def test_random_augmentation_is_encoded_anew_and_validation_is_not(train: Any) -> None:
    _, log = train("augmentation=weak", "train.epochs=1")
    assert any("not for image: random augmentation" in line and "augmented_copies=K" in line for line in lines(log)), log
    assert any("image: 9 records" in line for line in lines(log)), "validation sees no augmentation"
    assert not any("image: 24 records" in line for line in lines(log))
    assert any("text: 7 records" in line for line in lines(log))


def test_stored_words_beside_pictures_from_other_processes(train: Any) -> None:
    words = ("augmentation=weak", "train.epochs=1")
    identical(train(*words, "data.num_workers=2")[0], train(*words)[0])


def test_fixed_copies_stand_for_random_ones(train: Any, first: tuple[Path, str]) -> None:
    words = ("augmentation=strong", "train.feature_cache.augmented_copies=3")
    once, log = train(*words)
    assert any("image: 72 records" in line for line in lines(log)), log
    assert any("image: 9 records" in line for line in lines(log)), log
    again, _ = train(*words)
    identical(once, again)
    assert rows(once) != rows(first[0]), "the pictures were changed"


def test_whole_token_sequences(train: Any, first: tuple[Path, str]) -> None:
    words = ("pooling=attention", "pooling.num_heads=4")
    uncached, log = train(*words)
    assert any("not for image: " in line and "tokens=true" in line for line in lines(log)), log
    cached, log = train(*words, "train.feature_cache.tokens=true")
    (record,) = {line.split(" bytes")[0].split()[-1] for line in lines(log) if "image: 24 records" in line}
    assert int(record.replace(",", "")) == 16 * 32 * 2 + 24, "16 tokens of 32 numbers in float16, and the index"
    alike(cached, uncached)
    assert rows(cached) != rows(first[0])


def test_pictures_of_any_aspect(train: Any) -> None:
    cached, log = train(vision="naflex")
    assert any("image: 24 records" in line for line in lines(log)), log
    uncached, _ = train("train.feature_cache.mode=off", vision="naflex")
    alike(cached, uncached)
    _, log = train("pooling=attention", "pooling.num_heads=4", "train.feature_cache.tokens=true", "train.epochs=1", vision="naflex")
    assert any("not for image: pictures of a varying number of image tokens" in line for line in lines(log)), log


def test_bfloat16(train: Any, first: tuple[Path, str]) -> None:
    coarse, _ = train("train.feature_cache.dtype=bfloat16")
    alike(coarse, first[0], "bfloat16")
    assert tensors(coarse) != tensors(first[0])


def test_half_precision_trains_from_float32_features(train: Any, first: tuple[Path, str]) -> None:
    """What is stored was encoded in float32, whatever the rest computes in."""
    half, log = train("train.precision=bf16-mixed", cache="shared")
    assert all(", 0 of them encoded now" in line for line in lines(log)), log
    alike(half, first[0], "bfloat16")
    trained, _ = train("train.precision=bf16-mixed", "train.lora.enabled=true", "fusion=concat", "train.epochs=1")
    assert val(trained)


def test_a_full_disk_share_only_costs_time(train: Any, first: tuple[Path, str]) -> None:
    uncached, log = train("train.feature_cache.max_gib=1e-7")
    assert any("not for image: " in line and "for all feature caches together" in line for line in lines(log)), log
    alike(uncached, first[0])


def test_what_decides_the_features_decides_the_store(train: Any, first: tuple[Path, str]) -> None:
    """Another fit of the picture, in the same cache: nothing of the first run is taken for it."""
    _, log = train("data.fit=crop", "train.epochs=1", cache="shared")
    assert any("image: 24 records" in line and "24 of them encoded now" in line for line in lines(log)), log
    assert all("0 of them encoded now" in line for line in lines(log) if "text" in line), log
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in first[0].parents[4].glob("*-shared/features/*/facts.json")]
    assert {fact["facts"]["transform"].get("fit") for fact in facts} == {None, "pad", "crop"}
    assert {(fact["facts"]["device"], str(fact["facts"]["adapters"])) for fact in facts} == {("cpu", "{}")}


def test_the_scale_of_adapters_decides_the_store(data: Path, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors under another alpha give other features."""
    monkeypatch.setenv("DATA_DIR", str(data))
    encoders = []
    for alpha in (2, 32):
        name, *rest = drawn.ad_words(folders, *MEAN, "train.lora.enabled=true", f"train.lora.alpha={alpha}")
        recipe = load_recipe(name.removeprefix("recipe="), *rest)
        model = build_model(recipe)
        make_plan(model, recipe.stage("label"))
        encoders.append(model.encoders["image"])
        assert _adapters(model.encoders["text"]) == {}
    one, other = map(_adapters, encoders)
    assert weights_sha256(encoders[0]) == weights_sha256(encoders[1])
    assert (one["default"].pop("lora_alpha"), other["default"].pop("lora_alpha")) == (2, 32)
    assert one == other
    assert json.loads(json.dumps(one)) == one


@pytest.mark.parametrize(
    ("words", "count"), [(("pooling=attention", "pooling.num_heads=4", "pooling.num_queries=2"), 2), (("pooling=none",), 16)]
)
def test_tokens_that_a_fusion_cannot_take_are_told_before_anything_is_encoded(
    train: Any, tmp_path: Path, words: tuple[str, ...], count: int
) -> None:
    with pytest.raises(PartError, match=rf"{count} image tokens a sample (.|\n)*{re.escape('pooling.num_queries=1')}"):
        train(*words, "train.feature_cache.tokens=true", place=tmp_path)
    assert not list(tmp_path.glob("cache/features/*"))
