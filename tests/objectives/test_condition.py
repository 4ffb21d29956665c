"""The class of a map: asked of the classifier alone, and of the encoder in masked autoencoding, where it was not told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

import maps
from eyegraft.config import Part, Settings
from eyegraft.errors import DataError, PartError, RecipeError
from eyegraft.fusion import concat
from eyegraft.heads import regressor
from eyegraft.model import Graft
from eyegraft.objectives.mae import Config
from eyegraft.registry import configured
from eyegraft.training.loss_step import LossStep, Sealed
from eyegraft.tuning import make_plan, prove, set_training_mode
from eyegraft.types import UNKNOWN, UNTOLD, Batch, Sample
from objectives import toy


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return maps.classifier_weights(tmp_path_factory.mktemp("classifier"))


def graft(**options: Any) -> Graft:
    encoder = maps.encoder(**options)
    fused = concat.build(concat.Config(), dims={"image": encoder.token_dim})
    head = regressor.build(regressor.Config(hidden_dim=4), in_dim=fused.out_dim, num_outputs=1)
    module, chosen = configured("connectors", Part(kind="mean"))
    return Graft({"image": encoder}, {"image": {"pooling": module.build(chosen, in_dim=8, out_dim=8)}}, fused, head)


def stage(kind: str, tune: dict[str, Any], *, model: Graft | None = None, **options: Any) -> tuple[LossStep, Any]:
    model = model or graft()
    module, config = configured("objectives", Part.model_validate({"kind": kind, **options}))
    objective = module.build(config)
    torch.manual_seed(1)
    plan = make_plan(model, Settings.model_validate({"tune": tune}), objective=objective)
    step = LossStep(model, objective)
    set_training_mode(step)
    return step, plan


CLASSES = torch.tensor([0, 1, 2, UNKNOWN, 1, 2])


def batch(classes: Tensor = CLASSES, seed: int = 0) -> Batch:
    """Maps whose colours say their class, of which the first has no picture."""
    count = len(classes)
    lean = F.one_hot(classes.clamp(min=0), 3).float()[:, :, None, None] * 2 - 1
    given = {"pixels": lean + 0.3 * toy.fields(count, seed, side=16), "condition": classes}
    nothing, samples = torch.zeros(count, 0), [Sample(str(place), None) for place in range(count)]
    there = {"image": torch.arange(count) > 0}
    return Batch({"image": given}, nothing.long(), nothing.bool(), nothing.long(), samples, nothing, present=there)


def run(step: LossStep, given: Batch, seed: int = 3) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    return tuple(step(Sealed(given)))


# ── the objective `condition` ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_classifier_alone_learns(classifier: str, smoothing: float) -> None:
    model = graft(classifier=classifier)
    step, plan = stage("condition", {"condition_classifier": "full"}, model=model, label_smoothing=smoothing)
    image: Any = model.encoders["image"]
    image.perceiver.forward = None  # whoever asks it fails
    assert {name.split(".")[2] for group in plan.groups for name in group["names"]} == {"classifier"}
    before = step.objective.counts(batch())
    sums, counts, _, notes = run(step, batch())
    assert before.tolist() == counts.tolist() == [0, 1, 1, 0, 1, 1], "no picture, and no class"
    logits = image.classifier(batch().inputs["image"]["pixels"])
    expected = F.cross_entropy(logits, CLASSES.clamp(min=0), reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(sums, expected * counts)
    assert torch.equal(notes["accuracy"], (logits.argmax(1) == CLASSES).float() * counts)
    assert set(notes) == {"accuracy"}, "no balance of experts that do not train"
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = toy.train(step, plan, 25, lambda number: batch(seed=number), 1e-3)
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    assert sum(entry["accuracy"] for entry in losses[-5:]) > 4
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, first[name])}
    assert changed == {name for name, _ in model.named_parameters() if name.startswith("encoders.image.classifier.")}


def test_validation_knows_no_smoothing(classifier: str) -> None:
    steps = [
        stage("condition", {"condition_classifier": "full"}, model=graft(classifier=classifier), label_smoothing=s)[0] for s in (0.0, 0.2)
    ]
    assert torch.equal(*(run(step.eval(), batch())[0] for step in steps))


def test_only_the_last_blocks_of_the_classifier(classifier: str) -> None:
    model = graft(classifier=classifier)
    _, plan = stage("condition", {"condition_classifier": {"mode": "last_n", "last_n": 1, "learning_rate": 0.01}}, model=model)
    blocks = model.parts()["condition_classifier"].blocks
    wanted = {id(parameter) for parameter in blocks[-1]} | {id(p) for p in model.parts()["condition_classifier"].new_parameters}  # type: ignore[attr-defined]
    assert {id(parameter) for group in plan.groups for parameter in group["params"]} == wanted
    assert {group["lr"] for group in plan.groups} == {0.01}


def test_what_it_does_not_fit(classifier: str) -> None:
    with pytest.raises(RecipeError, match=r"objective condition trains condition_classifier, but the model has"):
        stage("condition", {})
    with pytest.raises(RecipeError, match=r"condition_classifier is frozen: nothing that it learns") as caught:
        stage("condition", {}, model=graft(classifier=classifier))
    assert "tune.condition_classifier=full" in caught.value.fix
    with pytest.raises(RecipeError, match=r"tune.vision_encoder=full under objective condition"):
        stage("condition", {"vision_encoder": "full", "condition_classifier": "full"}, model=graft(classifier=classifier))
    step, _ = stage("condition", {"condition_classifier": "full"}, model=graft(classifier=classifier))
    with pytest.raises(DataError, match=r"no row of a batch names the class of its map \(0, 1"):
        run(step, batch(torch.full((6,), UNKNOWN)))


# ── masked autoencoding ──────────────────────────────────────────────────────────────────────────────────────────────────────────

MAE = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5}


def mae(**options: Any) -> tuple[LossStep, Any]:
    model = options.pop("model", None)
    return stage("mae", {"vision_encoder": "full"}, model=model, **MAE, **options)


def prepared(step: LossStep, given: Batch, seed: int = 3) -> Batch:
    torch.manual_seed(seed)
    made: Batch = step.objective.prepare(given)
    return made


def test_no_latent_knows_what_was_hidden() -> None:
    step, _ = mae()
    one = prepared(step, batch())
    hidden = one.inputs["mae"]["hidden"]
    assert hidden.sum(1).tolist() == [0, 8, 8, 8, 8, 8], "half of 16, and nothing of no picture"
    unseen = step.objective.cells.spread(hidden)
    image = batch().inputs["image"]
    other = {**image, "pixels": torch.where(unseen, image["pixels"] + 7, image["pixels"])}
    two = prepared(step, batch().with_input("image", other))
    with torch.no_grad():
        first, second = (step.model.encode(made)["image"].values for made in (one, two))
    assert torch.equal(first, second)
    assert not torch.equal(one.inputs["mae"]["pixels"], two.inputs["mae"]["pixels"])


def test_the_class_that_is_asked_was_not_told() -> None:
    """Another true class changes nothing of what the encoder says of those that are asked, and does of those that are told."""
    step, _ = mae(condition_weight=0.3)
    image = batch().inputs["image"]
    one, two = (prepared(step, batch().with_input("image", {**image, "condition": classes})) for classes in (CLASSES, (CLASSES + 1) % 3))
    asked = one.inputs["mae"]["class"] != UNTOLD
    assert asked.sum() == 3
    assert torch.equal(one.inputs["image"]["condition"], CLASSES.where(~asked, UNTOLD))
    assert torch.equal(one.inputs["mae"]["class"], CLASSES.where(asked, UNTOLD))
    with torch.no_grad():
        first, second = (step.model.encode(made)["image"].values for made in (one, two))
    assert torch.equal(first[asked], second[asked])
    assert not (first == second).flatten(1).all(1)[~asked].any()


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_by_hand(loss: str, training: bool) -> None:
    step, _ = mae(condition_weight=0.3, loss=loss, normalise_targets=False)
    step.train(training)
    made = prepared(step, batch())
    aside, counts = made.inputs["mae"], torch.tensor([0.0, 1, 1, 1, 1, 1])
    with torch.no_grad():
        tokens = step.model.encode(made)["image"]
        answered = step.objective.decoder(tokens, aside["hidden"])
        logits = step.objective.classes(tokens.values[:, 1:].mean(1))
        sums, found, _, notes = run(step, batch())
    assert torch.equal(found, counts)
    for place in range(1, 6):
        cells = aside["hidden"][place].nonzero().flatten().tolist()
        true = torch.stack(
            [aside["pixels"][place][:, 4 * (n // 4) : 4 * (n // 4) + 4, 4 * (n % 4) : 4 * (n % 4) + 4].flatten() for n in cells]
        )
        away = (answered[place, cells] - true).abs()
        pixels = (away if loss == "l1" else away**2).mean()
        number = int(aside["class"][place])
        share = 0.5 if training else 1.0
        told = F.cross_entropy(logits[place][None], torch.tensor([number])) / share if number >= 0 else torch.tensor(0.0)
        torch.testing.assert_close(sums[place], 0.7 * pixels + 0.3 * told)
        torch.testing.assert_close(notes["condition_loss"][place], told)
    assert sums[0] == 0
    if not training:
        assert torch.equal(aside["class"], CLASSES), "all are asked"


def test_a_single_map_is_asked() -> None:
    step, _ = mae(condition_weight=0.3)
    assert prepared(step, batch(CLASSES[1:2])).inputs["mae"]["class"].tolist() == [1]


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_every_tensor_gets_its_gradient_and_it_learns(weight: float) -> None:
    step, plan = mae(condition_weight=weight, normalise_targets=False)
    planned = [parameter for group in plan.groups for parameter in group["params"]]
    prove(step, step, [Sealed(batch())], lambda loss: loss.backward(), planned)
    held = {name for group in plan.groups for name in group["names"]}
    assert {name for name, _ in step.model.encoders.named_parameters(prefix="encoders")} <= held
    before = {name: parameter.clone() for name, parameter in step.model.encoders.named_parameters()}
    losses = toy.train(step, plan, 40, lambda number: batch(torch.arange(12) % 3, number), 1e-2)
    assert losses[-1]["loss"] < 0.8 * losses[0]["loss"]
    assert all(not torch.equal(parameter, before[name]) for name, parameter in step.model.encoders.named_parameters())
    if weight:
        assert sum(entry["condition_accuracy"] for entry in losses[-5:]) > 4


def test_the_balance_is_part_of_the_training_loss_alone() -> None:
    losses = {}
    for weight in (0.0, 0.5):
        step, _ = mae(model=graft(balance_weight=weight))
        losses[weight] = run(step, batch()), run(step.eval(), batch())
    (trained, counts, _, notes), validated = losses[0.5]
    with torch.no_grad():
        given = prepared(mae(model=graft(balance_weight=0.5))[0], batch())
        own = graft(balance_weight=0.5).encode(given)["image"].auxiliary
    assert own is not None
    torch.testing.assert_close(notes["auxiliary_loss"], own * counts)
    torch.testing.assert_close(trained, losses[0.0][0][0] + own * counts)
    assert torch.equal(validated[0], losses[0.0][1][0])
    assert "auxiliary_loss" not in validated[3]


def test_the_balance_reaches_the_router_of_trained_blocks_alone() -> None:
    model = graft(balance_weight=0.5)
    step, _ = stage("mae", {"vision_encoder": {"mode": "last_n", "last_n": 1}}, model=model, **MAE)
    sums, _, _, notes = run(step, batch())
    assert notes["auxiliary_loss"][1:].all()
    sums.sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got
    assert all(name.startswith(("encoders.image.perceiver.backbone.blocks.1.", "encoders.image.perceiver.backbone.norm.")) for name in got)


def test_mae_without_classes() -> None:
    with pytest.raises(PartError, match=r"condition_weight=0.3 and an encoder that knows no classes"):
        toy.stage("mae", "patch_cnn", condition_weight=0.3)
    with pytest.raises(ValidationError, match="no question"):
        Config(condition_weight=0.3, untold=0)
    with pytest.raises(PartError, match="objective dino with an encoder that is told the class"):
        stage("dino", {"vision_encoder": "full"})


def test_a_plain_batch_has_no_classes(tmp_path: Path) -> None:
    step, _ = mae()
    plain = replace(batch(), inputs={"image": batch().inputs["image"]["pixels"]})
    assert run(step, plain)[0][1:].isfinite().all()
