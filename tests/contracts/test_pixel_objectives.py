"""Every objective that reads encoder tokens keeps the promises of `eyegraft.objectives.Objective` and `Hooks`, before encoders of all sorts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.samples import SAMPLES, cases, part, rejects_unknown_keys
from eyegraft.training.loss_step import LossStep, Sealed
from eyegraft.types import Batch, Output
from objectives import toy

pytestmark = [
    pytest.mark.parametrize("case", cases("objectives", speaks="pixels")),
    pytest.mark.parametrize("encoder", ["clay", "patch_cnn", "pictures"]),
]


@pytest.fixture
def made(case: tuple[str, str], encoder: str, folders: Any) -> tuple[LossStep, Any]:
    kind, label = case
    return toy.stage(kind, encoder, **SAMPLES["objectives"][kind][label](folders))


@pytest.fixture
def given(encoder: str) -> Batch:
    """Five samples; the first has no picture, or nothing was measured of it."""
    made = toy.batch(5, pictures=encoder == "pictures")
    return replace(made, present={"image": torch.tensor([False, True, True, True, True])})


def run(step: LossStep, batch: Batch, seed: int = 0) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    return tuple(step(Sealed(batch)))


def test_config_is_strict(case: tuple[str, str], encoder: str, folders: Any) -> None:
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


def test_what_it_prepares_is_the_same_samples(made: tuple[LossStep, Any], given: Batch) -> None:
    prepared = made[0].objective.prepare(given)
    assert len(prepared) == len(given)
    assert prepared.samples is given.samples
    assert torch.equal(prepared.targets, given.targets)
    assert prepared.inputs["image"] is not given.inputs["image"]


def test_chance_comes_from_the_seed_alone(made: tuple[LossStep, Any], given: Batch) -> None:
    step, _ = made
    step.eval()
    with torch.no_grad():
        first, again, other = (run(step, given, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_loss_of_a_sample_is_its_own(made: tuple[LossStep, Any], given: Batch, encoder: str) -> None:
    """Other samples beside it change nothing, so that a batch is the sum of its rows."""
    step, _ = made
    step.eval()
    image, other = given.inputs["image"], toy.batch(5, 7, pictures=encoder == "pictures").inputs["image"]
    keep = torch.arange(5) < 3
    if isinstance(image, dict):
        mixed: Any = {key: torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value, other[key]) for key, value in image.items()}
    else:
        mixed = torch.where(keep.view(-1, 1, 1, 1), image, other)
    with torch.no_grad():
        one, two = run(step, given)[0], run(step, given.with_input("image", mixed))[0]
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.isclose(one[3:], two[3:]).any()


def test_every_tensor_that_trains_gets_a_gradient(made: tuple[LossStep, Any], given: Batch) -> None:
    step, plan = made
    held = {id(p) for group in plan.groups for p in group["params"]}
    assert held == {id(p) for p in step.parameters() if p.requires_grad}
    run(step, given)[0].sum().backward()
    without = [name for name, p in step.named_parameters() if id(p) in held and (p.grad is None or not p.grad.any())]
    zero_by_birth = [name for name in without if not dict(step.named_parameters())[name].any()]
    assert without == zero_by_birth
    assert all(p.grad.isfinite().all() for p in step.parameters() if p.grad is not None)
    assert all(p.grad is None for p in step.parameters() if id(p) not in held)


def test_no_part_of_the_model_is_its_own(made: tuple[LossStep, Any]) -> None:
    step, plan = made
    own = {id(tensor) for tensor in [*step.objective.parameters(), *step.objective.buffers()]}
    assert not own & {id(tensor) for tensor in [*step.model.parameters(), *step.model.buffers()]}
    assert plan.saved
    assert all(name.startswith("encoders.image") for name in plan.saved), "its own state is saved for itself"
    assert step.objective.state_dict()


def test_half_precision_gives_a_float32_loss(made: tuple[LossStep, Any], given: Batch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        sums, _, _, notes = run(made[0], given)
    assert sums.dtype == torch.float32
    assert {values.dtype for values in notes.values()} <= {torch.float32}
    assert sums.isfinite().all()


def test_nothing_behind_the_encoder_is_needed(made: tuple[LossStep, Any], given: Batch) -> None:
    step, _ = made
    prepared = step.objective.prepare(given)
    output = step._of_encoders(prepared)
    assert isinstance(output, Output)
    assert output.logits.numel() == 0
    step.model.head = step.model.fusion = None
    run(step, given)


def test_its_state_makes_another_equal(made: tuple[LossStep, Any], case: tuple[str, str], encoder: str, given: Batch, folders: Any) -> None:
    step, plan = made
    toy.train(step, plan, 2, lambda _: given)
    other, _ = toy.stage(case[0], encoder, model=step.model, **SAMPLES["objectives"][case[0]][case[1]](folders))
    other.objective.load_state_dict(step.objective.state_dict(), strict=True)
    step.eval()
    other.eval()
    with torch.no_grad():
        assert torch.equal(run(step, given)[0], run(other, given)[0])
