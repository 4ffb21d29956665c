"""Every objective that compares views of a panorama keeps the promises of `eyegraft.objectives.Objective` and `Hooks`.

Its samples are compared with each other, so the loss of one is not its own, as it is elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.samples import SAMPLES, cases, part, rejects_unknown_keys
from eyegraft.training.loss_step import LossStep, Sealed
from eyegraft.types import Batch
from objectives import spheres, toy

pytestmark = pytest.mark.parametrize("case", cases("objectives", speaks="views"))


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> tuple[LossStep, Any]:
    return spheres.stage(case[0], **SAMPLES["objectives"][case[0]][case[1]](folders))


@pytest.fixture
def given() -> Batch:
    """Five samples; the first has no picture."""
    return replace(spheres.panoramas(5), present={"image": torch.tensor([False, True, True, True, True])})


def run(step: LossStep, batch: Batch, seed: int = 0) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    return tuple(step(Sealed(batch)))


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("objectives", case, folders))


def test_counts_are_known_before_the_forward(made: tuple[LossStep, Any], given: Batch) -> None:
    step, _ = made
    before, (sums, counts, _, notes) = step.objective.counts(given), run(step, given)
    assert before.dtype == counts.dtype == sums.dtype == torch.float32
    assert before.shape == counts.shape == sums.shape == (5,)
    assert torch.equal(before, counts), "accumulated batches would be weighted wrongly"
    assert counts.tolist() == [0, 1, 1, 1, 1]
    assert sums[0] == 0
    assert all(len(values) == 5 and not values[0].any() and not values.requires_grad for values in notes.values())
    assert {"cosine_overlap", "cosine_apart", "feature_std"} <= set(notes)


def test_it_says_that_samples_are_compared(made: tuple[LossStep, Any], given: Batch) -> None:
    step, _ = made
    assert step.objective.statistics_of_batches
    with torch.no_grad():
        whole, few = run(step, given)[0], run(step, given.take([0, 1, 2]))[0]
    assert not torch.isclose(whole[1:3], few[1:]).any()


def test_chance_comes_from_the_seed_alone(made: tuple[LossStep, Any], given: Batch) -> None:
    with torch.no_grad():
        first, again = (run(made[0], given)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_every_tensor_that_trains_gets_a_gradient(made: tuple[LossStep, Any], given: Batch) -> None:
    step, plan = made
    held = {id(p) for group in plan.groups for p in group["params"]}
    assert held == {id(p) for p in step.parameters() if p.requires_grad}
    run(step, given)[0].sum().backward()
    without = {name for name, p in step.named_parameters() if id(p) in held and (p.grad is None or not p.grad.any())}
    assert without == {"model.encoders.image.class_token"}, "which looks nowhere"
    assert all(p.grad.isfinite().all() for p in step.parameters() if p.grad is not None)


def test_no_part_of_the_model_is_its_own(made: tuple[LossStep, Any]) -> None:
    step, plan = made
    own = {id(tensor) for tensor in [*step.objective.parameters(), *step.objective.buffers()]}
    assert not own & {id(tensor) for tensor in [*step.model.parameters(), *step.model.buffers()]}
    assert all(name.startswith("encoders.image") for name in plan.saved), "its own state is saved for itself"


def test_half_precision_gives_a_float32_loss(made: tuple[LossStep, Any], given: Batch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        sums, _, _, notes = run(made[0], given)
    assert sums.dtype == torch.float32
    assert {values.dtype for values in notes.values()} == {torch.float32}
    assert sums.isfinite().all()


def test_its_state_makes_another_equal(made: tuple[LossStep, Any], case: tuple[str, str], given: Batch, folders: Any) -> None:
    step, plan = made
    toy.train(step, plan, 2, lambda _: given)
    other, _ = spheres.stage(case[0], **SAMPLES["objectives"][case[0]][case[1]](folders))
    other.objective.load_state_dict(step.objective.state_dict(), strict=True)
    other.model.load_state_dict(step.model.state_dict())
    with torch.no_grad():
        assert torch.equal(run(step, given)[0], run(other, given)[0])
