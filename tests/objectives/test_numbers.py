"""Objectives of numbers against torch and against the formulas, where targets are missing and where outputs run away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from eyegraft.errors import PartError
from eyegraft.objectives import gaussian_nll, huber, mse
from eyegraft.types import Batch, Output, Sample, Tokens

NAN = math.nan


def loss_of(module: Any, logits: Tensor, targets: Tensor, **options: Any) -> Any:
    nothing = torch.zeros(len(targets), 0, dtype=torch.int64)
    samples = [Sample(str(n), None) for n in range(len(targets))]
    tokens = Tokens(torch.zeros(len(targets), 1, 1), torch.ones(len(targets), 1, dtype=torch.bool))
    objective = module.build(module.Config.model_validate(options))
    return objective(Output({}, tokens, logits, targets), Batch({}, nothing, nothing.bool(), nothing, samples, targets))


def some(rows: int = 6, outputs: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(rows, outputs, generator=generator), torch.randn(rows, outputs, generator=generator)


def test_they_are_those_of_torch() -> None:
    values, targets = some()
    torch.testing.assert_close(loss_of(mse, values, targets).sums, nn.functional.mse_loss(values, targets, reduction="none").sum(1))
    for delta in (0.2, 1.0, 5.0):
        expected = nn.functional.huber_loss(values, targets, reduction="none", delta=delta).sum(1)
        torch.testing.assert_close(loss_of(huber, values, targets, delta=delta).sums, expected)
    spread = some(outputs=4)[0][:, :2]
    expected = nn.functional.gaussian_nll_loss(values, targets, spread.exp(), reduction="none").sum(1)
    torch.testing.assert_close(loss_of(gaussian_nll, torch.cat([values, spread], 1), targets).sums, expected, atol=5e-3, rtol=5e-3)


def test_huber_is_half_a_square_and_then_a_line() -> None:
    sums = loss_of(huber, torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1), delta=2.0).sums
    assert sums.tolist() == [0.125, 2 * (3 - 1)]
    for wrong in (0, -1, NAN):
        with pytest.raises(ValidationError):
            huber.Config.model_validate({"delta": wrong})


@pytest.mark.parametrize(("module", "outputs"), [(mse, 3), (huber, 3), (gaussian_nll, 6)])
def test_missing_targets_count_nowhere(module: Any, outputs: int) -> None:
    logits = some(outputs=outputs)[0].requires_grad_(True)
    targets = some(outputs=3)[1]
    targets[1, 0] = targets[2, :] = NAN
    loss = loss_of(module, logits, targets)
    assert loss.counts.tolist() == [3, 2, 0, 3, 3, 3]
    loss.sums.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all(), "a NaN behind a mask still poisons gradients"
    missing = targets.isnan().repeat(1, outputs // 3)
    assert not logits.grad[missing].any()
    assert logits.grad[~missing].all()
    full = loss_of(module, logits[:1], targets[:1]).sums
    torch.testing.assert_close(full[0], loss.sums[0])


def test_the_spread_that_is_learned_is_that_of_the_errors() -> None:
    """What is least likely to be wrong: the mean of the targets and their standard deviation."""
    targets = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.7
    answered = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([answered], max_iter=50)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = loss_of(gaussian_nll, answered.expand(4000, 2), targets).sums.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    mean, log_variance = gaussian_nll.mean_and_log_variance(answered.detach())
    assert float(mean) == pytest.approx(float(targets.mean()), abs=1e-3)
    assert float((log_variance / 2).exp()) == pytest.approx(float(targets.std()), rel=1e-3)


def test_outputs_that_run_away_keep_a_finite_loss_and_a_way_back() -> None:
    for raw in (-300.0, -12.0, 12.0, 300.0):
        logits = torch.tensor([[0.0, raw]], requires_grad=True)
        loss = loss_of(gaussian_nll, logits, torch.ones(1, 1)).sums
        assert loss.isfinite()
        loss.sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
    logits = torch.tensor([[0.0, -14.0]], requires_grad=True)
    loss_of(gaussian_nll, logits, torch.ones(1, 1)).sums.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] < -1, "far too sure: the spread must grow"
    _, bent = gaussian_nll.mean_and_log_variance(torch.tensor([[0.0, -3.0], [0.0, 0.0], [0.0, 3.0]]))
    torch.testing.assert_close(bent[:, 0], torch.tensor([-3.0, 0.0, 3.0]), atol=2e-3, rtol=0)


def test_outputs_of_another_number_are_refused() -> None:
    for module, logits, fix in ((mse, torch.zeros(2, 2), "head"), (gaussian_nll, torch.zeros(2, 1), "distribution=gaussian")):
        with pytest.raises(PartError, match=r"\(2, .\), targets \(2, 1\)") as caught:
            loss_of(module, logits, torch.zeros(2, 1))
        assert fix in caught.value.fix
