"""A stage that learns from the overlaps of views, through the real trainer and from files: what it writes, keeps and passes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cli.running import refused, rows, stop_before, tensors, tiny_run, trained

OBJECTIVES = {
    "vicreg": "{kind: vicreg, expander: [8, 8]}",
    "densecl": "{kind: densecl, hidden_dim: 8, out_dim: 8, cells_per_panorama: 12}",
}
STAGES = ("+tasks.overlap={kind: pretrain}", "stages.finetune.task=caption", "stages.warm.task=overlap", "stages.warm.epochs=2")
WORDS = (*STAGES, "+stages.warm.tune={vision_encoder: full}", "augmentation=none", "data.columns.group=null", "run_stages=[warm]")
NOTES = {"vicreg": {"invariance", "variance", "covariance"}, "densecl": set()}
LIKENESS = {"cosine_overlap", "cosine_apart", "cosine_overlap_centred", "cosine_apart_centred", "feature_std"}


def words(kind: str, *more: str) -> list[str]:
    return ["train", "recipe=tiny", "views=e2p", *WORDS, f"+stages.warm.objective={OBJECTIVES[kind]}", *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Panoramas of a few random waves: four to learn from, three to validate."""
    root = tmp_path_factory.mktemp("panoramas")
    (root / "data").mkdir()
    chance = np.random.default_rng(0)
    longitude, latitude = np.meshgrid(np.linspace(-np.pi, np.pi, 128, endpoint=False), np.linspace(np.pi / 2, -np.pi / 2, 64))
    looks = np.stack([np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)], -1)
    for split, count in {"train": 4, "val": 3, "test": 2}.items():
        table = []
        for number in range(count):
            name = f"{split}{number}.png"
            waves = np.sin(looks @ chance.normal(scale=4, size=(3, 3)) + chance.uniform(0, 6, 3))
            Image.fromarray(np.uint8(127.5 + 127 * waves)).save(root / "data" / name)
            table.append({"id": f"{split}/{number}", "image": name, "caption": f"waves {number}"})
        (root / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return root


@pytest.fixture(scope="module", params=list(OBJECTIVES))
def finished(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    done = tiny_run(*words(request.param, "experiment_name=whole"), cwd=folder)
    assert "before the first step: val_loss" in done.stderr
    assert "gradient_accumulation=2: this objective compares the samples of one batch of 2" in done.stderr
    assert all(f"val_{name} " in done.stderr for name in LIKENESS)
    return request.param, folder / trained(done)


def test_cosines_before_and_after_stand_in_the_metrics(finished: tuple[str, Path]) -> None:
    kind, run = finished
    checks = [row for row in rows(run) if row["kind"] == "val"]
    assert [(row["epoch"], row["step"]) for row in checks] == [(0, 0), (0, 1), (1, 2)]
    assert all(set(row) == {"kind", "epoch", "step", "val_loss"} | {f"val_{name}" for name in LIKENESS | NOTES[kind]} for row in checks)
    assert all(-1 <= row[f"val_{name}"] <= 1 for row in checks for name in ("cosine_overlap", "cosine_apart"))
    assert len({row["val_cosine_overlap"] for row in checks}) == 3
    best = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["warm"]["best"]
    assert best["step"] == min(checks[1:], key=lambda row: row["val_loss"])["step"], "what it began with is no candidate"


def test_its_own_layers_are_trained_and_kept(finished: tuple[str, Path]) -> None:
    kind, run = finished
    saved = load_file(next(run.rglob("best/model.safetensors")))
    own = {name.split(".")[1] for name in saved if name.startswith("objective.")}
    assert own == {"vicreg": {"expander"}, "densecl": {"head"}}[kind]
    assert {name.split(".")[0] for name in saved} == {"encoders", "objective"}
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_a_stage_that_was_killed_ends_with_the_same_bits(finished: tuple[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on from a checkpoint, and does not validate what it began with a second time."""
    kind, whole = finished
    told = words(kind, f"experiment_name=killed_{kind}")
    with monkeypatch.context() as patched:
        stop_before(patched, 1, "warm")
        done = tiny_run(*told, cwd=folder)
        assert done.returncode != 0
        assert "before the first step" in done.stderr
    done = tiny_run(*told, cwd=folder)
    assert "going on from" in done.stderr
    assert "before the first step" not in done.stderr
    again = folder / trained(done)
    assert len(list(again.parent.iterdir())) == 1
    assert rows(again) == rows(whole)
    assert tensors(again) == tensors(whole)


def test_no_overlap_is_said_before_anything_is_trained(folder: Path) -> None:
    done = tiny_run(*words("vicreg", "experiment_name=apart", "views=cubemap"), cwd=folder)
    refused(done, done.returncode, "objective vicreg with views of which no two overlap (strategy=cubemap", "fix: set views=anyres_e2p")
    assert done.returncode
    assert not list((folder / "runs" / "apart").glob("*/warm/metrics.jsonl"))


def test_the_next_stage_starts_from_its_encoder(folder: Path) -> None:
    both = ["run_stages=[warm,finetune]", "stages.finetune.epochs=1", "+stages.finetune.max_steps=1", "experiment_name=both"]
    run = folder / trained(tiny_run(*words("vicreg", "stages.finetune.tune.vision_encoder=frozen", *both), cwd=folder))
    before, after = (load_file(next((run / stage).rglob("best/model.safetensors"))) for stage in ("warm", "finetune"))
    encoder = {name for name in before if name.startswith("encoders.image")}
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not [name for name in after if name.startswith("objective.")]
