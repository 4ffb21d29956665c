"""Whole runs on grouped and on packed texts: the same losses, and the same bits where a run goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import TESTS, Interrupted, rows, small_words, stop_before, tensors
from eyegraft import load_recipe, train
from eyegraft.composition import use_config_dir
from eyegraft.errors import RecipeError
from eyegraft.registry import use_plugin
from eyegraft.training.checkup import check_recipe

Made = Callable[..., Any]
QUIET = ("train.tune.head.lora.dropout=0", "augmentation=none", "train.learning_rate=1e-3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions of many lengths."""
    folder = tiny.shapes(tmp_path_factory.mktemp("texts") / "data", {"train": 40, "val": 6, "test": 3})
    drawn = random.Random(0)
    for split in ("train", "val", "test"):
        table = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for row in table:
            row["caption"] = " and ".join([row["caption"]] * drawn.choice([1, 1, 1, 2, 3, 8]))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return folder


@pytest.fixture
def made(folders: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))

    def recipe(name: str, *words: str) -> Any:
        use_config_dir(str(TESTS / "cli" / "conf"))
        where = (f"data.base_dir={data}", f"run_root={tmp_path / name}", "stages.only.epochs=1")
        return load_recipe("small", *small_words(folders)[1:], *where, *words)

    return recipe


@pytest.mark.parametrize("head", ["prefix_lm", "cross_attention_lm"])
def test_a_packed_run_is_the_unpacked_one(made: Made, head: str) -> None:
    """In the loss of every step, each on what the steps before it learned, and of validation."""
    words = [*QUIET, f"head.kind={head}", *(["+head.num_layers=2"] if head == "cross_attention_lm" else [])]
    apart, packed = (
        train(made(name, *words, "train.group_by_length=false", f"train.packing={size}")) for name, size in (("a", "null"), ("b", "70"))
    )
    mine, theirs = rows(packed), rows(apart)
    assert len(mine) == 11
    for row, other in zip(mine, theirs, strict=True):
        assert row.get("tokens") == other.get("tokens")
        for key in ("loss", "val_loss"):
            assert row.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-4)


@pytest.mark.parametrize("packing", ["null", "70"])
def test_a_run_goes_on_to_the_same_bits(made: Made, monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    """With dropout and augmentation, in the middle of an epoch."""
    words = (f"train.packing={packing}", "train.checkpoint_every=3")
    whole = train(made("whole", *words))
    with monkeypatch.context() as patch:
        stop_before(patch, 7)
        with pytest.raises(Interrupted):
            train(made("parts", *words))
    parts = train(made("parts", *words))
    assert rows(parts) == rows(whole)
    assert tensors(parts) == tensors(whole)


def test_grouped_texts_are_padded_less(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, and with all samples in every epoch."""
    from eyegraft.data.batches import Examples

    seen: dict[str, list[Any]] = {"true": [], "false": []}
    batch = Examples.batch
    for grouped, found in seen.items():
        monkeypatch.setattr(Examples, "batch", lambda *given, found=found: found.append(batch(*given)) or found[-1])
        train(made(grouped, *(["train.group_by_length=false"] if grouped == "false" else []), "train.batch_size=2"))
    shares = {}
    for grouped, found in seen.items():
        real = [(int(batch.text_mask.sum()), batch.text_mask.numel()) for batch in found if len(batch) == 2]
        shares[grouped] = sum(count for count, _ in real) / sum(size for _, size in real)
    assert 1 - shares["true"] < 0.6 * (1 - shares["false"]), shares


def test_a_head_that_packs_no_text_is_refused(made: Made) -> None:
    small = made("refused")
    use_plugin("tinyparts")
    use_config_dir(str(TESTS / "tinyparts" / "conf"))
    recipe = load_recipe(
        "tiny",
        f"data.base_dir={small.data.base_dir}",
        f"run_root={small.run_root}",
        "train.packing=64",
        "tasks.caption.max_text_tokens=256",
    )
    with pytest.raises(RecipeError, match=r"train\.packing=64 with a TinyGRU, which packs no texts"):
        train(recipe)


def test_the_check_up_takes_a_step_of_rows(made: Made) -> None:
    lines = list(check_recipe(made("check", "train.packing=70")))
    assert any(line.startswith(("dry step: 4 samples in", "dry step: 5 samples in")) for line in lines), lines
