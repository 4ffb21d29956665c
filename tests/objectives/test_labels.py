"""Objectives of label tasks against hand-written formulas, torch, and the numbers of the focal loss paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from eyegraft.errors import DataError, PartError, TrainingError
from eyegraft.objectives import bce, focal, softmax
from eyegraft.types import Batch, Output, Sample, Tokens

NAN = math.nan
KINDS = [bce, focal, softmax]


def given(logits: Tensor, targets: Tensor) -> tuple[Output, Batch]:
    nothing = torch.zeros(len(targets), 0, dtype=torch.int64)
    samples = [Sample(str(n), None) for n in range(len(targets))]
    tokens = Tokens(torch.zeros(len(targets), 1, 1), torch.ones(len(targets), 1, dtype=torch.bool))
    return Output({}, tokens, logits, targets), Batch({}, nothing, nothing.bool(), nothing, samples, targets)


def loss_of(module: Any, logits: Tensor, targets: Tensor, *, training: bool = True, fit: Tensor | None = None, **options: Any) -> Tensor:
    """[B] the sums."""
    objective = module.build(module.Config.model_validate(options))
    if fit is not None:
        objective.fit(fit)
    sums: Tensor = objective.train(training)(*given(logits, targets)).sums
    return sums


def some(rows: int = 6, outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets of 0 and 1, one-hot targets."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, outputs, generator=generator)
    classes = torch.randint(0, outputs, (rows,), generator=generator)
    return logits, torch.randint(0, 2, (rows, outputs), generator=generator).float(), nn.functional.one_hot(classes, outputs).float()


def test_bce_is_that_of_torch() -> None:
    logits, targets, _ = some()
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    torch.testing.assert_close(loss_of(bce, logits, targets), expected)
    smooth = nn.functional.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none").sum(1)
    torch.testing.assert_close(loss_of(bce, logits, targets, label_smoothing=0.2), smooth)


def test_softmax_is_that_of_torch() -> None:
    logits, _, targets = some()
    weights = torch.tensor([0.5, 1.0, 3.0])
    for smoothing in (0.0, 0.2):
        expected = nn.functional.cross_entropy(logits, targets.argmax(1), weights, reduction="none", label_smoothing=smoothing)
        options = {"label_smoothing": smoothing, "class_weights": weights.tolist()}
        torch.testing.assert_close(loss_of(softmax, logits, targets, **options), expected)
    mixed = (targets + 1) / 4
    torch.testing.assert_close(loss_of(softmax, logits, mixed), nn.functional.cross_entropy(logits, mixed, reduction="none"))


def test_focal_gives_the_numbers_of_the_paper() -> None:
    """Section 3.2: with gamma 2 an example at p = 0.9 costs 100 times less than under cross-entropy, at 0.968 about 1000 times less."""
    p = torch.tensor([[0.9], [0.968], [0.5]])
    ones = torch.ones(3, 1)
    plain = loss_of(bce, p.logit(), ones)
    # alpha 0.5 halves both sides
    ratio = plain / (2 * loss_of(focal, p.logit(), ones, gamma=2, alpha=0.5))
    torch.testing.assert_close(ratio, torch.tensor([100.0, 976.5625, 4.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(2 * loss_of(focal, p.logit(), ones, gamma=0, alpha=0.5), plain)


def test_focal_by_hand() -> None:
    logits, targets, _ = some()
    p = logits.double().sigmoid()
    for smoothing in (0.0, 0.1):
        t = targets.double() * (1 - smoothing) + smoothing / 2
        expected = -(0.55 * t * (1 - p) ** 2 * p.log() + 0.45 * (1 - t) * p**2 * (1 - p).log()).sum(1)
        torch.testing.assert_close(loss_of(focal, logits, targets, label_smoothing=smoothing), expected.float())
    alpha = 0.55 * targets + 0.45 * (1 - targets)
    p_true = torch.where(targets == 1, p.float(), 1 - p.float())
    torch.testing.assert_close(loss_of(focal, logits, targets), (-alpha * (1 - p_true) ** 2 * p_true.log()).sum(1))


def test_focal_softmax_by_hand() -> None:
    logits, _, targets = some()
    p = logits.double().softmax(1)[targets.bool()]
    for gamma in (0.5, 1.0, 2.0):
        expected = (-((1 - p) ** gamma) * p.log()).float()
        torch.testing.assert_close(loss_of(softmax, logits, targets, gamma=gamma), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", KINDS)
def test_unknown_targets_count_nowhere(module: Any) -> None:
    logits, targets, one_hot = some()
    targets = one_hot.clone() if module is softmax else targets
    targets[1, 2] = NAN
    targets[3] = NAN
    objective = module.build(module.Config())
    loss = objective(*given(logits.requires_grad_(True), targets))
    whole = module is softmax
    assert loss.counts.tolist() == ([1, 0, 1, 0, 1, 1] if whole else [3, 2, 3, 0, 3, 3])
    loss.sums.sum().backward()
    assert loss.sums[3] == 0
    assert not logits.grad[3].any()  # type: ignore[index]
    assert not logits.grad[1, 2].any()  # type: ignore[index]
    if not whole:
        alone = objective(*given(logits[1:2, :2], targets[1:2, :2]))
        torch.testing.assert_close(alone.sums[0], loss.sums[1])


@pytest.mark.parametrize("module", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_have_finite_losses_and_gradients(module: Any, gamma: float, size: float) -> None:
    logits = torch.tensor([[size, -size], [-size, size], [size, size], [0.0, size]], requires_grad=True)
    targets = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    options = {"label_smoothing": 0.1} | ({} if module is bce else {"gamma": gamma})
    sums = loss_of(module, logits, targets, **options)
    sums.sum().backward()
    assert sums.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert sums[1] > 0.3 * size, "confident and wrong costs as much as the logit says"
    assert loss_of(module, logits.detach(), targets, training=False)[0] < 1e-30


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, targets, _ = some(2, 400)
    for module in KINDS:
        sums = loss_of(module, logits.bfloat16(), targets)
        assert sums.dtype == torch.float32
        torch.testing.assert_close(sums, loss_of(module, logits.bfloat16().float(), targets))


def test_class_weights_multiply_their_side() -> None:
    logits, targets, _ = some()
    for module in (bce, focal):
        positives = loss_of(module, logits, torch.where(targets == 1, 1.0, NAN))
        negatives = loss_of(module, logits, torch.where(targets == 0, 0.0, NAN))
        torch.testing.assert_close(loss_of(module, logits, targets, class_weights=[0.5, 4]), 0.5 * negatives + 4 * positives)


def test_balanced_weights_make_classes_cost_alike() -> None:
    """Logits of 0 cost the same everywhere, so each class's share of the loss is its share of the weight."""
    targets = torch.tensor([[1.0, 1], [0, 1], [0, 0], [0, NAN]])
    logits = torch.zeros(4, 2)
    sums = loss_of(bce, logits, targets, class_weights="balanced", fit=targets) / math.log(2)
    # output 0: positive 4 / (2·1), negatives 4 / (2·3); output 1: positives 3 / (2·2), negative 3 / (2·1)
    torch.testing.assert_close(sums, torch.tensor([2 + 0.75, 2 / 3 + 0.75, 2 / 3 + 1.5, 2 / 3]))
    one_hot = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [NAN, NAN, NAN]])
    sums = loss_of(softmax, torch.zeros(5, 3), one_hot, class_weights="balanced", fit=one_hot) / math.log(3)
    torch.testing.assert_close(sums, torch.tensor([2 / 3, 2 / 3, 4 / 3, 4 / 3, 0]))
    assert sums.sum() == pytest.approx(4), "the mean weight is 1"


@pytest.mark.parametrize("module", KINDS)
def test_validation_losses_know_no_weights_and_no_smoothing(module: Any) -> None:
    logits, _, one_hot = some()
    tuned = {"label_smoothing": 0.3, "class_weights": "balanced"}
    plain = loss_of(module, logits, one_hot, training=False)
    torch.testing.assert_close(loss_of(module, logits, one_hot, training=False, fit=one_hot, **tuned), plain)
    assert not torch.allclose(loss_of(module, logits, one_hot, fit=one_hot, **tuned), plain)


@pytest.mark.parametrize("module", KINDS)
def test_balanced_weights_are_taken_once_and_never_saved(module: Any) -> None:
    logits, _, one_hot = some()
    objective = module.build(module.Config(class_weights="balanced"))
    with pytest.raises(TrainingError, match="fit"):
        objective(*given(logits, one_hot))
    objective.eval()(*given(logits, one_hot))
    objective.fit(one_hot)
    objective.train()(*given(logits, one_hot))
    assert objective.state_dict() == {}
    assert not list(objective.parameters())
    with pytest.raises(DataError, match="class_weights=balanced: no training row has class"):
        objective.fit(torch.tensor([[1.0, 0, 0]] * 3))
    unweighted = module.build(module.Config())
    unweighted.fit(torch.tensor([[1.0, 0, 0]] * 3))
    assert unweighted.weights().unique().tolist() == [1]


def test_a_class_that_never_occurs_is_named() -> None:
    objective = softmax.build(softmax.Config(class_weights="balanced"))
    with pytest.raises(DataError, match=r"class 1 of output 0, class 2 of output 0"):
        objective.fit(torch.tensor([[1.0, 0, 0]]))
    sided = bce.build(bce.Config(class_weights="balanced"))
    with pytest.raises(DataError, match=r"class 0 of output 0, class 1 of output 1\n"):
        sided.fit(torch.tensor([[1.0, 0], [1, 0]]))


def test_what_does_not_fit_is_refused() -> None:
    logits, targets, _ = some()
    for module in KINDS:
        with pytest.raises(PartError, match=rf"{module.__name__.split('.')[-1]}: logits \(6, 3\), targets \(6, 1\)"):
            loss_of(module, logits, targets[:, :1])
        with pytest.raises(PartError, match="head=classifier"):
            loss_of(module, torch.zeros(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64))
        with pytest.raises(ValidationError):
            module.Config(class_weights="even")
        with pytest.raises(ValidationError):
            module.Config(class_weights=(1.0, 0.0))
    with pytest.raises(ValidationError):
        bce.Config(class_weights=(1.0, 2.0, 3.0))  # type: ignore[arg-type]
    with pytest.raises(PartError, match="3 classes, 2 class weights"):
        loss_of(softmax, logits, targets, class_weights=[1, 2])
    with pytest.raises(PartError, match="1 classes"):
        loss_of(softmax, logits[:, :1], targets[:, :1])
