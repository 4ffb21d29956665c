"""Training on labels: what trains and at which rate, missing inputs, class weights, objectives, the same numbers twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import drawn
import eyegraft.training
from cli.running import rows, tensors
from drawn import logged
from eyegraft.composition import load_recipe
from eyegraft.config import Recipe
from eyegraft.errors import DataError, EyegraftError, RecipeError, TrainingError
from eyegraft.training.building import build_model, build_objective, build_task
from eyegraft.tuning import make_plan

SHORT = ("pooling=mean", "evaluation.after_training=false", "train.epochs=1", "train.max_steps=2")
COLOURS = (
    "tasks.label.classes=[red,blue,green]",
    "data.columns.references=colour",
    "train.loss_type=softmax",
    "train.early_stopping.metric=val_accuracy",
)
BOTH = (
    "tasks.label={kind: classify, classes: [red, blue, green, circle, triangle], multi_label: true}",
    "data.tables={train: both-train.jsonl, val: both-val.jsonl, test: both-test.jsonl}",
    "train.early_stopping.metric=val_macro_f1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def recipe(place: Path, folders: Any) -> Callable[..., Recipe]:
    data = drawn.adverts(place / "data")

    def made(*words: str, vision: str = "siglip") -> Recipe:
        name, *rest = drawn.ad_words(folders, *SHORT, f"data.base_dir={data}", f"run_root={place / 'runs'}", *words, vision=vision)
        return load_recipe(name.removeprefix("recipe="), *rest)

    return made


@pytest.fixture
def train(recipe: Callable[..., Recipe], place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, str]]:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(place / "cache"))

    def made(*words: str) -> tuple[Path, str]:
        with logged() as log:
            return eyegraft.training.train(recipe(*words), fresh=True), log.getvalue()

    return made


def saved(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "label" / "checkpoints" / "best" / "model.safetensors")


def table(run: Path) -> dict[str, dict[str, Any]]:
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {row["part"]: row for row in facts["stages"]["label"]["trainable"]}


# ── what trains ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frozen_backbone_stays_as_it_was(train: Any) -> None:
    run, log = train()
    assert table(run)["vision_encoder"]["trainable"] == table(run)["text_encoder"]["trainable"] == 0
    assert not [name for name in saved(run) if name.startswith("encoders.")]
    assert "image: 24 records" in log


def test_the_last_blocks_train_and_no_other(train: Any, recipe: Any) -> None:
    words = ("train.freeze_backbone=false", "train.finetune_layers=1", "train.backbone_lr=0.002")
    run, log = train(*words)
    before = build_model(recipe(*words)).state_dict()
    after = saved(run)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    inside = {name for name in after if name.startswith("encoders.image.")}
    assert inside, "the trained block is in the checkpoint"
    assert all(".layers.1." in name or "post_layernorm" in name for name in inside), "the last of two, and the norm behind it"
    assert moved >= {name for name in inside if "weight" in name}
    assert table(run)["vision_encoder"] == {**table(run)["vision_encoder"], "mode": "last_n", "learning_rate": 0.002}
    assert table(run)["head"]["learning_rate"] == 0.01
    assert "not for image: the encoder is trained" in log


def test_minus_one_trains_all_of_it(train: Any) -> None:
    run, log = train("train.freeze_backbone=false", "train.finetune_layers=-1")
    row = table(run)["vision_encoder"]
    assert row["trainable"] == row["parameters"] > 0
    assert row["learning_rate"] == 1e-5, "backbone_lr of the recipe"
    assert table(run)["text_encoder"]["trainable"] == 0
    assert "not for image: the encoder is trained" in log
    assert "text: 7 records" in log


def test_adapters_sit_on_the_last_layers_alone(train: Any) -> None:
    words = ("train.lora.enabled=true", "train.lora.target_layers=1", "train.lora.rank=2", "train.lora_lr=0.003")
    run, log = train(*words)
    names = list(load_file(run / "label" / "checkpoints" / "best" / "adapter" / "vision_encoder" / "adapter_model.safetensors"))
    assert {name.split(".")[-3] for name in names} == {"q_proj", "k_proj", "v_proj"}
    assert len(names) == 6
    assert all(".layers.1." in name for name in names)
    assert table(run)["vision_encoder"]["trainable"] == 3 * 2 * (32 + 32)
    assert table(run)["vision_encoder"]["learning_rate"] == 0.003
    assert not [name for name in saved(run) if name.startswith("encoders.")], "the backbone itself is not saved"
    assert "not for image: the encoder is trained" in log


def test_each_part_has_its_rate(recipe: Any) -> None:
    made = recipe("train.lora.enabled=true", "train.lora_lr=0.003", "train.learning_rate=0.02")
    plan = make_plan(build_model(made), made.stage("label"))
    rates = {group["name"].split("/")[0]: group["lr"] for group in plan.groups}
    assert rates == {"vision_encoder": 0.003, "fusion": 0.02, "head": 0.02}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.finetune_layers=2",), "finetune_layers=2 of a frozen backbone: set freeze_backbone=false"),
        (("train.freeze_backbone=false",), "nothing of it trains: set finetune_layers=N"),
        (
            ("train.freeze_backbone=false", "train.finetune_layers=1", "train.lora.enabled=true"),
            "finetune_layers and lora.enabled together",
        ),
        (("train.tune.vision_encoder=full",), "tune.vision_encoder beside freeze_backbone"),
        (("train.finetune_layers=-2", "train.freeze_backbone=false"), "train.finetune_layers: given -2"),
        (("train.objective={kind: bce}",), "loss_type=focal and objective.kind=bce: keep one"),
    ],
)
def test_keys_that_contradict_each_other(recipe: Any, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(*words)
    assert said in str(caught.value)


def test_more_layers_than_there_are(train: Any) -> None:
    with pytest.raises(RecipeError, match="last_n=4") as caught:
        train("train.freeze_backbone=false", "train.finetune_layers=4")
    assert caught.value.expected == "at most 3 blocks", "two layers, and the patches below them"


# ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_without_a_picture_or_without_words(train: Any, place: Path) -> None:
    """Both stand-ins are learned, whatever the fusion; the row with neither is named."""
    for split in ("train", "val", "test"):
        table = drawn.read_csv(place / "data" / f"{split}.csv")
        for row in table[::4]:
            row["local_image_path"] = ""
            row["text_info"] = row["text_info"] or "a green thing"
        drawn.write_csv(place / "data" / f"holes-{split}.csv", table)
    tables = "data.tables={train: holes-train.csv, val: holes-val.csv, test: holes-test.csv}"
    for fusion in ("gated", "concat"):
        run, log = train(tables, "data.image_optional=true", f"fusion={fusion}", "train.max_steps=3", "train.learning_rate=0.001")
        assert "image: 19 records" in log, "18 pictures and one that stands for none"
        after, before = saved(run), build_model(Recipe.model_validate(_plain(run))).state_dict()
        for name in ("fusion.modalities.absent.image", "fusion.modalities.absent.text", "head.layers.0.weight"):
            moved = (after[name] - before[name]).abs()
            assert 1e-4 < moved.max() < 1e-2, f"{fusion}: {name} takes ordinary steps of Adam"
    with pytest.raises(DataError, match=r"if rows may have none, set data\.image_optional"):
        train(tables)


def _plain(run: Path) -> dict[str, Any]:
    import yaml

    plain: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    return plain


def test_hidden_modalities_are_the_same_twice(train: Any) -> None:
    words = ("fusion.modality_dropout={image: 0.3, text: 0.5}", "train.max_steps=3")
    once, again = train(*words)[0], train(*words)[0]
    assert rows(once) == rows(again)
    assert tensors(once) == tensors(again)
    assert tensors(once) != tensors(train("train.max_steps=3")[0])


def test_a_text_encoder_trains_where_few_rows_have_words(train: Any, place: Path) -> None:
    """The proof of the trainable plan looks at a row that has some, and nothing is hidden from it by chance."""
    given = drawn.read_csv(place / "data" / "train.csv")
    drawn.write_csv(
        place / "data" / "rare.csv", [{**row, "text_info": row["text_info"] if row["id"] == "train/7" else ""} for row in given]
    )
    words = ("train.tune={text_encoder: full}", "data.tables.train=rare.csv", "fusion.modality_dropout={text: 0.95}")
    run, log = train(*words)
    assert [name for name in saved(run) if name.startswith("encoders.text.")]
    assert "not for text: the encoder is trained" in log


@pytest.mark.parametrize("fusion", ["gated", "concat"])
@pytest.mark.parametrize("modality", ["multimodal", "vision_only"])
def test_what_stands_for_nothing_has_a_gradient_of_ordinary_size(recipe: Any, fusion: str, modality: str) -> None:
    """At zero, scaling to length 1 would multiply it by 1e12, and clipping would then silence all other tensors."""
    from eyegraft.types import Tokens

    made = build_model(recipe(f"fusion={fusion}", f"train.modality={modality}")).fusion
    tokens = {name: Tokens(torch.randn(4, 1, 32), torch.zeros(4, 1, dtype=torch.bool)) for name in made.fills}
    made(tokens).values.square().sum().mul(0.5).add(made(tokens).values.sum()).backward()
    for name in made.fills:
        assert 1e-3 < made.modalities.absent[name].grad.norm() < 1e3


# ── objectives ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_balanced_class_weights_come_from_the_training_rows(recipe: Any, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from eyegraft.objectives.bce import BCE

    seen = []
    whole = BCE.fit
    monkeypatch.setattr(BCE, "fit", lambda self, targets: (whole(self, targets), seen.append(self.weights.values.flatten().tolist())))
    balanced, _ = train("train.loss_type=null", "train.objective={kind: bce, class_weights: balanced}")
    assert seen == [pytest.approx([24 / (2 * 16), 24 / (2 * 8)])], "16 times no and 8 times yes"
    plain, _ = train("train.loss_type=bce")
    first, other = rows(balanced)[0], rows(plain)[0]
    assert first["kind"] == other["kind"] == "val" or first["loss"] != other["loss"]
    assert tensors(balanced) != tensors(plain)


def test_one_of_several(train: Any) -> None:
    run, _ = train(*COLOURS, "train.max_steps=9", "train.epochs=3")
    values = [row for row in rows(run) if row["kind"] == "val"]
    assert values[-1]["val_accuracy"] > 0.5, "three colours, twenty-four pictures and the words"
    assert set(values[-1]) >= {"val_macro_f1", "val_auroc", "val_log_loss"}
    decision = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["label"]["decision"]
    assert set(decision) == {"temperature"}


def test_several_at_once(train: Any) -> None:
    run, _ = train(*BOTH)
    (values,) = [row for row in rows(run) if row["kind"] == "val"]
    assert set(values) >= {"val_macro_f1", "val_micro_f1", "val_mean_average_precision", "val_exact_match"}
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["label"]["decision"] == {}


def test_focal_among_several_shows_the_way_out(recipe: Any) -> None:
    made = recipe(*COLOURS[:2])
    settings = made.stage("label")
    with pytest.raises(RecipeError, match=r"train\.loss_type=focal with tasks\.label") as caught:
        build_objective(build_task(made, settings), settings)
    assert caught.value.expected == "one of softmax"
    assert "set train.loss_type=softmax" in caught.value.fix
    assert "train.objective='{kind: softmax, gamma: 2}'" in caught.value.fix
    taken = recipe(*COLOURS[:2], "train.loss_type=null", "train.objective={kind: softmax, gamma: 2}").stage("label")
    assert build_objective(build_task(made, taken), taken).gamma == 2
    own = recipe(*COLOURS[:2], "train.loss_type=null").stage("label")
    assert type(build_objective(build_task(made, own), own)).__name__ == "Softmax", "without a word the task's own"


def test_softmax_of_a_single_number_is_refused(recipe: Any) -> None:
    settings = recipe("train.loss_type=softmax").stage("label")
    with pytest.raises(RecipeError, match=r"train\.loss_type=softmax with tasks\.label") as caught:
        build_objective(build_task(recipe(), settings), settings)
    assert caught.value.fix == "set train.loss_type=bce"


def test_a_diverged_training_says_so(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from eyegraft.heads.classifier import Classifier

    whole: Callable[..., Any] = Classifier.forward

    def broken(self: Classifier, tokens: Any, batch: Any) -> Any:
        logits, targets = whole(self, tokens, batch)
        return (logits if self.training else logits * math.nan), targets

    monkeypatch.setattr(Classifier, "forward", broken)
    with pytest.raises(TrainingError, match="the validation loss of stage 'label' is nan"):
        train()


# ── the same twice ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_deterministic_runs_are_the_same(train: Any) -> None:
    words = ("deterministic=true", "augmentation=strong", "train.freeze_backbone=false", "train.finetune_layers=1")
    once, again = train(*words)[0], train(*words)[0]
    assert torch.are_deterministic_algorithms_enabled()
    assert once != again
    assert rows(once) == rows(again)
    assert tensors(once) == tensors(again)
    other, _ = train(*words[1:], "seed=1")
    assert not torch.are_deterministic_algorithms_enabled(), "the next run of a sweep decides for itself"
    assert rows(other) != rows(once)


def test_faults_are_found_before_the_first_step(train: Any, place: Path) -> None:
    table = [row for row in drawn.read_csv(place / "data" / "val.csv") if row["colour"] != "red"]
    drawn.write_csv(place / "data" / "val-one.csv", table)
    ready = len(list((place / "runs").glob("*/*/*/checkpoints/latest")))
    one = "data.tables.val=val-one.csv"
    without_val = ("~data.tables.val", "train.early_stopping.metric=val_loss", "train.early_stopping.patience=null")
    for words, said in (
        ((one,), "val_auroc, which the validation split leaves undefined"),
        ((one, "tasks.label.threshold=f1", "train.early_stopping.metric=val_loss"), "split val: one class only"),
        ((*without_val, "tasks.label.threshold=f1"), "it has no samples"),
        (("train.early_stopping.metric=val_macro_f1",), "val_auroc"),
    ):
        with pytest.raises(EyegraftError) as caught:
            train(*words)
        assert said in str(caught.value)
    assert len(list((place / "runs").glob("*/*/*/checkpoints/latest"))) == ready
