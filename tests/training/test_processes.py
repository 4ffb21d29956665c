"""Several processes, started by torchrun: the losses and weights of one process, one that writes, and the same bits after a kill.

One torchrun for many trainings, because starting it takes longer than they do.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import drawn
import tiny
from cli.running import SMALL, TESTS, TINY, rows, run, small_words, tensors, trained
from command_line import environment
from eyegraft.data.batches import share_of

PLAIN = ("train.tune.head.lora.dropout=0", "augmentation=none", "train.log_every=1", "num_threads=1")
CAPTION = "{kind: caption, template: plain, max_new_tokens: 4, prompt: 'Name it:'}"
TEXTS = ("train.learning_rate=1e-3", "train.gradient_accumulation=2", "train.batch_size=3", "stages.only.epochs=2")
PRETRAIN = (
    *("+tasks.own={kind: pretrain}", "stages.finetune.task=caption", "stages.warm.task=own", "stages.warm.epochs=2"),
    *("+stages.warm.tune={vision_encoder: full}", "augmentation=none", "data.columns.group=null", "run_stages=[warm]"),
    *("train.batch_size=3", "train.log_every=1"),
)
DRIFTING = ("cosine_overlap", "cosine_apart", "val_cosine_overlap", "val_cosine_apart")
FLAT = {"vicreg": (".bias",)}
"""Attention does not mind a shift of all keys, nor VICReg what all tokens share: there the gradient is rounding alone, of which Adam makes
steps."""
Words = list[str]


def write(folder: Path, split: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    table = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change(table)), encoding="utf-8")


def with_colours(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    colours = [{**row, "id": f"{row['id']}-colour", "task": "colour", "caption": row["caption"].split()[0]} for row in table[::2]]
    return [{**row, "task": "name"} for row in table] + colours


def panoramas(folder: Path) -> Path:
    """Of a few random waves: seven to learn from, so that one process has none of the last batch."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    longitude, latitude = np.meshgrid(np.linspace(-np.pi, np.pi, 64, endpoint=False), np.linspace(np.pi / 2, -np.pi / 2, 32))
    looks = np.stack([np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)], -1)
    for split, count in {"train": 7, "val": 4, "test": 1}.items():
        for number in range(count):
            waves = np.sin(looks @ chance.normal(scale=4, size=(3, 3)) + chance.uniform(0, 6, 3))
            Image.fromarray(np.uint8(127.5 + 127 * waves)).save(folder / f"{split}{number}.png")
        table = [{"id": f"{split}/{n}", "image": f"{split}{n}.png", "caption": f"waves {n}"} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return folder


def cases(root: Path, folders: Any) -> dict[str, Words]:
    """Name -> the words of a training; 11 and 7 samples, so that last batches are short."""
    lengths = random.Random(0)
    shapes = tiny.shapes(root / "shapes", {"train": 13, "val": 4, "test": 3})
    write(
        shapes, "train", lambda table: [{**row, "caption": " and ".join([row["caption"]] * lengths.choice([1, 2, 3, 6]))} for row in table]
    )
    mixture = tiny.shapes(root / "mixture", {"train": 10, "val": 3, "test": 3})
    for split in ("train", "val", "test"):
        write(mixture, split, with_colours)
    adverts, waves = drawn.adverts(root / "adverts", {"train": 22, "val": 9, "test": 6}), panoramas(root / "waves")
    small = ["train", *small_words(folders), *PLAIN, *TEXTS, *SMALL]
    tinyparts = ["train", "recipe=tiny", *PRETRAIN, f"data.base_dir={waves}", *TINY]
    ad = drawn.ad_words(folders, "pooling=mean", "evaluation.after_training=false", "augmentation=none", "train.log_every=1")
    overlap = [*tinyparts, "views=e2p"]
    return {
        "grouped": [*small, f"data.base_dir={shapes}"],
        "packed": [*small, f"data.base_dir={shapes}", "train.packing=70"],
        "mixture": [
            *(*small, f"data.base_dir={mixture}", "data.columns.task=task", f"tasks={{name: {CAPTION}, colour: {CAPTION}}}"),
            *("stages.only.tasks={name: 1, colour: 1}", "train.early_stopping.metric=val_name_token_f1"),
        ],
        "label": [
            "train",
            *ad,
            f"data.base_dir={adverts}",
            "run_root=runs",
            "+fusion.dropout=0",
            "+head.dropout=0",
            "train.epochs=2",
            "train.learning_rate=0.001",
            "train.batch_size=5",
            "train.early_stopping.metric=val_auroc",
        ],
        "vicreg": [*overlap, "+stages.warm.objective={kind: vicreg, expander: [8, 8]}"],
        "densecl": [*overlap, "+stages.warm.objective={kind: densecl, hidden_dim: 8, out_dim: 8, cells_per_panorama: null}"],
        "dino": [*tinyparts, "+stages.warm.objective={kind: dino, num_prototypes: 16, hidden_dim: 8, bottleneck_dim: 4}"],
    }


def together(root: Path, jobs: Sequence[tuple[Words, dict[str, int]]]) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(TESTS / "training" / "job.py")]
    return subprocess.run(
        [*start, json.dumps(jobs)],
        cwd=root,
        env=environment(OMP_NUM_THREADS="1", EYEGRAFT_CACHE=str(root / "cache")),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


def run_of(root: Path, name: str) -> Path:
    found = list((root / "runs" / name).iterdir())
    assert len(found) == 1, f"one run, by one process: {found}"
    return found[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def words(root: Path, folders: Any) -> dict[str, Words]:
    return cases(root, folders)


@pytest.fixture(scope="module")
def two(root: Path, words: dict[str, Words]) -> str:
    """Every case in two processes, then one with dropout and augmentation, and again until it is killed; gives what was said."""
    jobs: list[tuple[Words, dict[str, int]]] = [([*case, f"experiment_name={name}"], {}) for name, case in words.items()]
    jobs += [(chancy(words, "whole"), {}), (chancy(words, "killed"), {"kill_before": 5})]
    done = together(root, jobs)
    assert done.returncode != 0, done.stderr
    assert "Signal 9" in done.stderr, done.stderr
    return done.stdout + done.stderr


def chancy(words: dict[str, Words], name: str) -> Words:
    more = ("train.tune.head.lora.dropout=0.2", "augmentation=strong", "train.checkpoint_every=2", f"experiment_name={name}")
    return [*words["grouped"], *more]


@pytest.mark.parametrize("name", ["grouped", "packed", "mixture", "label", "vicreg", "densecl"])
def test_two_processes_are_one(two: str, root: Path, words: dict[str, Words], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loss of every step, of every task, in what validation says, and in the weights."""
    monkeypatch.setenv("EYEGRAFT_CACHE", str(root / "cache"))
    alone = root / trained(run(*words[name], f"experiment_name={name}_alone", cwd=root))
    both = run_of(root, name)
    mine, theirs = rows(both), rows(alone)
    assert len(mine) == len(theirs) >= 5
    for row, other in zip(mine, theirs, strict=True):
        for drifting in DRIFTING if name == "vicreg" else ():
            assert row.pop(drifting, 0) == pytest.approx(other.pop(drifting, 0), abs=0.05)
        assert row.pop("kind") == other.pop("kind")
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    for file in sorted(both.rglob("checkpoints/latest/**/*model.safetensors")):
        ours, other = load_file(file), load_file(alone / file.relative_to(both))
        assert set(ours) == set(other)
        for tensor, values in ours.items():
            if not any(part in tensor for part in FLAT.get(name, ("k_proj.bias",))):
                assert (values - other[tensor]).abs().max() < 2e-5, tensor
    facts = json.loads((both / "run.json").read_text(encoding="utf-8"))
    assert (facts["processes"], facts["finished"]) == (2, name in ("grouped", "packed", "mixture", "label"))


def test_an_objective_with_a_teacher_trains_in_two(two: str, root: Path) -> None:
    """Its state stays the same in both, else the stage would have stopped."""
    found = rows(run_of(root, "dino"))
    assert {row["kind"] for row in found} == {"train", "val"}
    assert all(row["val_feature_variance"] > 0 < row["val_teacher_entropy"] for row in found if row["kind"] == "val"), found


def test_one_of_them_speaks(two: str, words: dict[str, Words]) -> None:
    assert two.count("stage only is finished") == 4
    assert two.count("run folder") == two.count("2 processes on cpu") == len(words) + 2


@pytest.fixture(scope="module")
def again(two: str, root: Path, words: dict[str, Words]) -> subprocess.CompletedProcess[str]:
    """What cannot be shared; then what was killed, to its end; then a training of which one process fails."""
    shutil.copytree(root / "runs" / "killed", root / "one" / "killed")
    refused = [["train", "recipe=tiny", "train.batch_size=1", *TINY], ["train", "recipe=tiny", "-m", "seed=1,2", *TINY], ["evaluate", "it"]]
    failing = [*words["grouped"], "experiment_name=failing"]
    return together(
        root, [*((one, {"refused": 1}) for one in refused), (chancy(words, "killed"), {}), (failing, {"fail_before": 1, "rank": 1})]
    )


def test_one_error_is_said_whoever_fails(again: subprocess.CompletedProcess[str]) -> None:
    assert again.returncode != 0
    said = ("batch_size=1 with 2 processes", "eyegraft train -m in 2 processes", "eyegraft evaluate in 2 processes", "7.png has vanished")
    assert [again.stderr.count(f"error: {start}") for start in ("stages.warm.", "", "", "drawn/")] == [1, 4, 4, 1], again.stderr
    assert all(again.stderr.count(words) == 1 for words in said), again.stderr
    assert "another process" not in again.stderr


def test_killed_in_two_it_goes_on_in_two_or_in_one(
    again: subprocess.CompletedProcess[str], root: Path, words: dict[str, Words], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bits in two; in one, through the same batches."""
    monkeypatch.setenv("EYEGRAFT_CACHE", str(root / "cache"))
    assert "going on from" in again.stderr
    assert rows(run_of(root, "killed")) == rows(run_of(root, "whole"))
    assert tensors(run_of(root, "killed")) == tensors(run_of(root, "whole"))
    alone = run(*chancy(words, "killed"), f"run_root={root / 'one'}", cwd=root)
    assert "this run was trained in 2 processes and goes on in 1" in alone.stderr
    mine, theirs = rows(run_of(root, "whole")), rows(trained(alone))
    assert [(row["step"], row.get("tokens")) for row in mine] == [(row["step"], row.get("tokens")) for row in theirs]
    assert mine[:4] == theirs[:4]


def test_shares_are_even_and_in_order() -> None:
    for count in range(8):
        for world in (1, 2, 3, 5):
            parts = [share_of(range(count), rank, world) for rank in range(world)]
            assert [place for part in parts for place in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
