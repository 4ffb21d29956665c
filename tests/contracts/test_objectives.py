"""Every objective in the folder keeps the promises of `eyegraft.objectives.Objective`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contracts.samples import cases, part, rejects_unknown_keys
from eyegraft.types import IGNORE, Batch, Output, Sample, Tokens

K = 11
pytestmark = pytest.mark.parametrize("case", cases("objectives"))


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("objectives", case, folders)
    torch.manual_seed(0)
    return module.build(config)


def given(dtype: torch.dtype = torch.float32) -> tuple[Output, Batch]:
    """Three rows of 0 prompt tokens, some, and nothing to learn; the logits of a model that put 2 image tokens before the text."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([[4, 5, 6, IGNORE], [IGNORE, IGNORE, 7, 8], [IGNORE, IGNORE, IGNORE, IGNORE]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, True, False, False]])
    samples = [Sample(str(n), __file__) for n in range(3)]  # type: ignore[arg-type]
    batch = Batch({"image": torch.zeros(3, 3, 4, 4)}, labels.clamp(min=0), mask, labels, samples)
    joined = torch.cat([torch.full((3, 2), IGNORE), labels], 1)[:, 1:]
    logits = torch.randn(3, joined.shape[1], K, generator=generator).to(dtype)
    tokens = Tokens(torch.randn(3, 2, 4, generator=generator), torch.ones(3, 2, dtype=torch.bool))
    return Output({"image": tokens}, logits.requires_grad_(True), joined), batch


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("objectives", case, folders))


@pytest.mark.parametrize("training", [True, False])
def test_counts_are_known_before_the_forward(made: Any, training: bool) -> None:
    output, batch = given()
    loss = made.train(training)(output, batch)
    before = made.counts(batch)
    assert before.dtype == loss.counts.dtype == loss.sums.dtype == torch.float32
    assert before.shape == loss.counts.shape == loss.sums.shape == (3,)
    assert torch.equal(before, loss.counts), "accumulated batches would be weighted wrongly"


def test_half_precision_outputs_give_a_float32_loss(made: Any) -> None:
    """Sums over thousands of tokens overflow in half precision."""
    output, batch = given(torch.bfloat16)
    loss = made(output, batch)
    assert loss.sums.dtype == torch.float32
    assert loss.sums.isfinite().all()


def test_a_sample_with_nothing_to_learn_costs_nothing(made: Any) -> None:
    output, batch = given()
    loss = made(output, batch)
    if loss.counts[2] == 0:
        assert loss.sums[2] == 0


def test_the_loss_of_a_sample_is_its_own(made: Any) -> None:
    """Sums are per sample, so that a batch is the sum of its rows."""
    output, batch = given()
    together = made.eval()(output, batch).sums
    for number in range(len(batch)):
        rows = slice(number, number + 1)
        one = Batch(
            {"image": batch.inputs["image"][rows]}, batch.input_ids[rows], batch.text_mask[rows], batch.labels[rows], batch.samples[rows]
        )
        alone = made(Output(output.encoded, output.logits[rows], output.labels[rows]), one).sums
        torch.testing.assert_close(alone[0], together[number])


def test_it_has_a_gradient(made: Any) -> None:
    output, batch = given()
    made.train()(output, batch).sums.sum().backward()
    assert output.logits.grad is not None
    assert output.logits.grad.any()
    assert output.logits.grad.isfinite().all()
