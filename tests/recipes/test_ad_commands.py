"""What users of the advertisement classifier type: every command line composes to the model that it names, and takes a step in miniature."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from cli.running import refused, run
from eyegraft import load_recipe, train
from eyegraft.composition import validate
from eyegraft.config import Recipe, overlay
from eyegraft.encoders import huggingface, sentence, timm
from eyegraft.errors import RecipeError
from eyegraft.model import assemble
from eyegraft.tuning import make_plan

FULL = "directFT_lightning_1_allLayers_mean"
BASE = "directFT_lightning_base"


@dataclass(frozen=True)
class Line:
    """A command line behind `eyegraft train recipe=ad_classifier`, and what it stands for.

    Attributes:
        dims: widths of picture and words; None: no such encoder.
        tune: mode, trained numbers and learning rate of the vision encoder at its full size.
        changed: resolved keys that differ from those of the bare command, besides those of options that the line names.
    """

    words: str
    dims: tuple[int | None, int | None] = (1152, 768)
    tune: tuple[str, int, float | None] = ("frozen", 0, None)
    changed: dict[str, Any] = field(default_factory=dict)


SO400M_BLOCK = 4 * (1152 * 1152 + 1152) + 2 * 2 * 1152 + (2 * 1152 * 4304 + 4304 + 1152)
TOP_SIX = {"train.freeze_backbone": False, "train.finetune_layers": 6}
ALL = {"train.freeze_backbone": False, "train.finetune_layers": -1}
ADAPTERS = {"train.lora.enabled": True, "train.lora.rank": 32, "train.lora.alpha": 32}
LINES = [
    Line(""),
    Line("vision_encoder=resnet50", (2048, 768)),
    Line("vision_encoder=vit", (1024, 768)),
    Line("vision_encoder=vit_base", (768, 768)),
    Line("vision_encoder=siglip2_base", (768, 768)),
    Line("vision_encoder=siglip2_naflex_base", (768, 768)),
    Line("vision_encoder=efficientnet", (1280, 768)),
    Line("text_encoder=bge_m3", (1152, 1024)),
    Line("text_encoder=e5_large", (1152, 1024)),
    Line("text_encoder=none", (1152, None)),
    Line("pooling=mean fusion=concat"),
    Line("pooling=attention fusion=gated"),
    Line(f"+experiment={BASE}", tune=("last_n", 6 * SO400M_BLOCK + 2 * 1152, 1e-5), changed={**TOP_SIX, "experiment_name": BASE}),
    Line(f"+experiment={FULL}", tune=("full", 412_987_248, 1e-5), changed={**ALL, "experiment_name": FULL, "pooling.kind": "mean"}),
    Line("train.batch_size=32 train.epochs=100 train.learning_rate=1e-4", changed={"train.epochs": 100}),  # the others are the defaults
    Line(
        "train.lora.enabled=true train.lora.rank=32 train.lora.alpha=32",
        tune=("lora", 6 * 3 * 2 * 32 * 1152, 1e-4),  # q, k and v of the last six layers
        changed=ADAPTERS,
    ),
    Line(
        "train.freeze_backbone=false train.finetune_layers=6 train.backbone_lr=1e-5",
        tune=("last_n", 6 * SO400M_BLOCK + 2 * 1152, 1e-5),
        changed=TOP_SIX,
    ),
    Line("train.modality=vision_only", (1152, None), changed={"train.modality": "vision_only"}),
    Line("train.modality=text_only", (None, 768), changed={"train.modality": "text_only"}),
]
ids = [line.words or "bare" for line in LINES]


@pytest.fixture(scope="module")
def adverts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables as the users have them, one a split and one of all rows."""
    folder, random = tmp_path_factory.mktemp("adverts"), np.random.default_rng(0)
    words = ["지금 구매하시면 50% 할인", "무료 배송 이벤트", "", "오늘만 특가!", "신제품 출시", "가을 풍경", "", "우리 동네 지도"]
    whole: list[dict[str, Any]] = []
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        rows = []
        for number in range(count):
            place = folder / "images" / f"{split}{number}.png"
            place.parent.mkdir(exist_ok=True)
            blocks = random.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((60, 40), Image.Resampling.NEAREST).save(place)
            label = str(number % 2 == 0)
            rows.append({"local_image_path": str(place), "label": label, "text_info": words[number]})
            whole.append({**rows[-1], "advertiser": f"{split}-{number}"})
        write(folder / f"{split}.csv", rows)
    write(folder / "ads.csv", whole)
    return folder


def write(place: Path, rows: list[dict[str, Any]]) -> None:
    with place.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, adverts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(adverts))
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def rebuilt(monkeypatch: pytest.MonkeyPatch, module: Any, change: Callable[[Any], dict[str, Any]], device: str = "cpu") -> None:
    """Let the recipe name what it names, and build random weights of other sizes in its place."""
    whole = module.build

    def build(config: Any) -> Any:
        changed = overlay(config.model_dump(), {"pretrained": False, **change(config)})
        with torch.device(device):
            return whole(module.Config.model_validate(changed))

    monkeypatch.setattr(module, "build", build)


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vision encoders at their full size, without memory; text encoders at their full width."""
    rebuilt(monkeypatch, huggingface, lambda config: {}, "meta")
    rebuilt(monkeypatch, timm, lambda config: {}, "meta")
    rebuilt(monkeypatch, sentence, lambda config: {"architecture": {"num_hidden_layers": 1, "vocab_size": 300}})


@pytest.fixture
def in_miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of the same kind and depth enough to choose layers from, narrow and for small pictures."""
    narrow = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    minis = {"resnet50": "test_resnet", "tf_efficientnetv2_l": "test_efficientnet"}

    def eye(config: Any) -> dict[str, Any]:
        tower = config.architecture.get("vision_config", config.architecture)
        side = 2 * tower["patch_size"]
        if "num_patches" in tower:
            return {
                "architecture": {"vision_config": {**narrow, "num_hidden_layers": 7, "num_patches": 16}},
                "preprocessor": {"max_num_patches": 16},
            }
        smaller = {**narrow, "num_hidden_layers": 7, "image_size": side}
        nested = "vision_config" in config.architecture
        return {
            "architecture": {"vision_config": smaller} if nested else smaller,
            "preprocessor": {"size": {"height": side, "width": side}},
        }

    rebuilt(monkeypatch, huggingface, eye)
    rebuilt(monkeypatch, timm, lambda config: {"model": minis[config.model.split(".")[0]]})
    rebuilt(monkeypatch, sentence, lambda config: {"architecture": {**narrow, "num_hidden_layers": 1, "vocab_size": 300}})


def composed(words: str) -> Recipe:
    return _composed(words, os.environ.get("DATA_DIR"))


@cache
def _composed(words: str, data_dir: str | None) -> Recipe:
    return load_recipe("ad_classifier", *words.split())


def for_one_step(recipe: Recipe) -> Recipe:
    return validate(overlay(recipe.plain(), {"train": {"max_steps": 1}, "num_threads": 1}))


def flat(plain: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict) or not plain:
        return {prefix.rstrip("."): plain}
    return {key: value for name, item in plain.items() for key, value in flat(item, f"{prefix}{name}.").items()}


# ── what a line stands for ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_override_at_all() -> None:
    """SigLIP2 SO400M + LaBSE + attention pooling + GMU, focal loss, everything pretrained frozen."""
    recipe = composed("")
    parts = {name: getattr(recipe, name) for name in ("vision_encoder", "text_encoder", "pooling", "connector", "fusion", "head")}
    assert {name: part and part.kind for name, part in parts.items()} == {
        "vision_encoder": "huggingface",
        "text_encoder": "sentence",
        "pooling": "attention",
        "connector": None,
        "fusion": "gated",
        "head": "classifier",
    }
    assert recipe.vision_encoder is not None
    assert recipe.vision_encoder.options["model"] == "google/siglip2-so400m-patch14-384"
    assert recipe.text_encoder is not None
    assert recipe.text_encoder.options["model"] == "sentence-transformers/LaBSE"
    settings = recipe.stage("label")
    assert settings.objective_of("bce").kind == "focal"
    assert (settings.scheduler_type, settings.warmup_ratio) == ("cosine_warmup", 0.1)
    assert (settings.early_stopping.metric, settings.early_stopping.patience) == ("val_auroc", 3)
    assert (settings.freeze_backbone, settings.finetune_layers, settings.modality) == (True, 0, "multimodal")
    lora = settings.lora
    assert (lora.enabled, lora.rank, lora.alpha, lora.target_layers) == (False, 16, 8, 6)
    assert recipe.evaluation.after_training
    assert (recipe.data.fit, recipe.data.merge_references) == ("pad", False)
    assert recipe.augmentation.flip == 0


@pytest.mark.parametrize("line", LINES, ids=ids)
def test_resolved(line: Line, on_paper: None) -> None:
    """The keys that the line names and no others; the widths and the trained numbers of the model at its full size."""
    recipe, bare = composed(line.words), flat(composed("").plain())
    keys = flat(recipe.plain())
    for key, value in line.changed.items():
        assert keys[key] == value, key
    chosen = {word.split("=")[0] for word in line.words.split() if "." not in word.split("=")[0]}
    if line.changed.get("pooling.kind"):
        chosen.add("pooling")
    unexpected = {
        key
        for key in keys.keys() | bare.keys()
        if keys.get(key) != bare.get(key) and key not in line.changed and key.split(".")[0] not in chosen
    }
    assert not unexpected

    model = assemble(recipe)
    widths = {modality: encoder.token_dim for modality, encoder in model.encoders.items()}
    assert widths == {modality: width for modality, width in zip(("image", "text"), line.dims, strict=True) if width is not None}
    rows = {row.part: (row.mode, row.trainable, row.learning_rate) for row in make_plan(model, recipe.stage("label")).rows}
    if line.dims[0] is not None:
        assert rows["vision_encoder"] == line.tune
    if line.dims[1] is not None:
        assert rows["text_encoder"] == ("frozen", 0, None)
    assert all(mode == "full" and rate == 1e-4 for part, (mode, _, rate) in rows.items() if "encoder" not in part)
    fused = {"gated": 512, "concat": sum(width for width in line.dims if width)}[recipe.fusion.kind]
    assert model.head.layers[0].in_features == fused
    assert model.head.layers[-1].out_features == 1


def test_typed_after_a_preset_wins() -> None:
    recipe = composed(f"+experiment={FULL} pooling=attention train.finetune_layers=2 vision_encoder=vit")
    assert recipe.pooling is not None
    assert recipe.pooling.kind == "attention"
    tune = recipe.stage("label").tune_of("vision_encoder")
    assert tune is not None
    assert (tune.mode, tune.last_n) == ("last_n", 2)


@pytest.mark.parametrize("words", ["train.loss_type=bce", "train.loss_type=focal"])
def test_loss(words: str) -> None:
    assert composed(words).stage("label").objective_of("bce").kind == words.split("=")[1]


def test_adapters_on_a_convolutional_network(on_paper: None) -> None:
    recipe = composed("vision_encoder=resnet50 train.lora.enabled=true")
    with pytest.raises(RecipeError, match="which has no linear layer") as caught:
        make_plan(assemble(recipe), recipe.stage("label"))
    assert "train.finetune_layers=N" in str(caught.value)


def test_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment, or typed, which goes first."""
    monkeypatch.setenv("DATA_DIR", "/from/environment")
    assert composed("").data.base_dir == "/from/environment"
    assert composed("data.base_dir=/typed").data.base_dir == "/typed"
    monkeypatch.delenv("DATA_DIR")
    assert composed("").data.base_dir == "data"


# ── one step ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("line", LINES, ids=ids)
def test_one_step(line: Line, in_miniature: None) -> None:
    recipe = for_one_step(composed(line.words))
    folder = train(recipe)
    assert folder.parts[:2] == ("whole_finetune", recipe.experiment_name)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    stage = facts["stages"]["label"]
    assert (facts["finished"], stage["steps"], facts["quarantined"]) == (True, 1, {})
    assert stage["best"]["metric"] == "val_auroc"
    assert 0 <= stage["best"]["value"] <= 1
    assert set(stage["decision"]["thresholds"]) == {"f1", "accuracy"}
    tuned = {row["part"]: (row["mode"], row["learning_rate"]) for row in stage["trainable"]}
    assert tuned.get("vision_encoder") == (None if line.dims[0] is None else (line.tune[0], line.tune[2]))
    written = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    assert written == yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) == recipe.plain()

    best = folder / "label" / "checkpoints" / "best"
    saved = [name for name in load_file(best / "model.safetensors") if name.startswith("encoders.")]
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in saved if "layers." in name}
    assert layers == {"frozen": set(), "lora": set(), "last_n": {1, 2, 3, 4, 5, 6}, "full": set(range(7))}[line.tune[0]]
    assert not any(name.startswith("encoders.text") for name in saved)
    assert (best / "adapter" / "vision_encoder").exists() == (line.tune[0] == "lora")
    if line.tune[0] == "lora":
        adapters = load_file(best / "adapter" / "vision_encoder" / "adapter_model.safetensors")
        assert {name.split("layers.")[1].split(".")[0] for name in adapters} == {"1", "2", "3", "4", "5", "6"}
        assert {name.split("self_attn.")[1].split(".")[0] for name in adapters} == {"q_proj", "k_proj", "v_proj"}


def test_one_table_cut_by_advertiser(adverts: Path, in_miniature: None) -> None:
    words = f"data=ads_one_table data.split.table=ads.csv data.columns.group=advertiser data.base_dir={adverts}"
    folder = train(for_one_step(composed(words)))
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = {split: found["rows"] for split, found in facts["data"]["splits"].items()}
    assert set(rows) == {"train", "val", "test"}
    assert sum(rows.values()) == 16


def test_table_of_one_split_is_not_there(tmp_path: Path) -> None:
    done = run("train", "recipe=ad_classifier", "data.base_dir=.", cwd=tmp_path)
    refused(done, 3, "train.csv", "no such file")


# ── the command line itself ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sweep(tmp_path: Path, in_miniature: None) -> None:
    typed = ("-m", "vision_encoder=siglip2_so400m,resnet50", "pooling=mean,attention")
    done = run(
        "train", "recipe=ad_classifier", *typed, "train.max_steps=1", "evaluation.after_training=false", "num_threads=1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    printed, table = done.stdout.split("\n\n", 1)
    runs = [tmp_path / line for line in printed.split()]
    recipes = [yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) for folder in runs]
    found = {(recipe["vision_encoder"]["model"], recipe["pooling"]["kind"]) for recipe in recipes}
    models = ("google/siglip2-so400m-patch14-384", "resnet50.a1_in1k")
    assert found == {(model, pooling) for model in models for pooling in ("mean", "attention")}
    assert all(folder.name in table for folder in runs)
    assert "val_auroc" in table


def test_cfg_job(tmp_path: Path) -> None:
    done = run("train", "recipe=ad_classifier", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["train"]["loss_type"] == "focal"
    assert list(tmp_path.iterdir()) == [], "nothing is run"
