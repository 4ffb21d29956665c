"""Every objective in the folder that reads targets keeps the promises of `eyegraft.objectives.Objective`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.samples import cases, part, rejects_unknown_keys
from eyegraft.types import IGNORE, Batch, Output, Sample, Tokens

K = 11
NAN = float("nan")
OF_TEXT = ("cross_entropy",)
"""Kinds that read token labels; the others read the targets of label tasks."""
OF_TWO_NUMBERS = ("gaussian_nll",)
"""Kinds that read a mean and a spread for each target."""

pytestmark = pytest.mark.parametrize("case", cases("objectives", speaks="text"))


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("objectives", case, folders)
    torch.manual_seed(0)
    objective = module.build(config)
    if hasattr(objective, "fit"):
        objective.fit(torch.eye(3).repeat(2, 1)[:5])
    return objective


def given(case: tuple[str, str], dtype: torch.dtype = torch.float32) -> tuple[Output, Batch]:
    """Three rows: all to learn, some of it, and nothing."""
    return given_text(dtype) if case[0] in OF_TEXT else given_labels(dtype, outputs=6 if case[0] in OF_TWO_NUMBERS else 3)


def given_text(dtype: torch.dtype) -> tuple[Output, Batch]:
    """0 prompt tokens, some, and nothing to learn; the logits of a model that put 2 image tokens before the text."""
    labels = torch.tensor([[4, 5, 6, IGNORE], [IGNORE, IGNORE, 7, 8], [IGNORE, IGNORE, IGNORE, IGNORE]])
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, True, False, False]])
    joined = torch.cat([torch.full((3, 2), IGNORE), labels], 1)[:, 1:]
    return _output(joined, (*joined.shape, K), dtype), _batch(labels.clamp(min=0), mask, labels, torch.zeros(3, 0))


def given_labels(dtype: torch.dtype, outputs: int) -> tuple[Output, Batch]:
    """Three classes, one-hot, which are numbers too; of the second row one target is not known, of the third none."""
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    targets = torch.tensor([[0.0, 1, 0], [1, 0, NAN], [NAN, NAN, NAN]])
    return _output(targets, (3, outputs), dtype), _batch(nothing, nothing.bool(), nothing, targets)


def _output(labels: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Output:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, generator=generator).to(dtype)
    tokens = Tokens(torch.randn(3, 2, 4, generator=generator), torch.ones(3, 2, dtype=torch.bool))
    return Output({"image": tokens}, tokens, logits.requires_grad_(True), labels)


def _batch(input_ids: Tensor, mask: Tensor, labels: Tensor, targets: Tensor) -> Batch:
    samples = [Sample(str(n), None) for n in range(3)]
    return Batch({"image": torch.zeros(3, 3, 4, 4)}, input_ids, mask, labels, samples, targets)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("objectives", case, folders))


@pytest.mark.parametrize("training", [True, False])
def test_counts_are_known_before_the_forward(case: tuple[str, str], made: Any, training: bool) -> None:
    output, batch = given(case)
    loss = made.train(training)(output, batch)
    before = made.counts(batch)
    assert before.dtype == loss.counts.dtype == loss.sums.dtype == torch.float32
    assert before.shape == loss.counts.shape == loss.sums.shape == (3,)
    assert torch.equal(before, loss.counts), "accumulated batches would be weighted wrongly"
    assert before.any()


def test_half_precision_outputs_give_a_float32_loss(case: tuple[str, str], made: Any) -> None:
    """Sums over thousands of tokens overflow in half precision."""
    output, batch = given(case, torch.bfloat16)
    loss = made(output, batch)
    assert loss.sums.dtype == torch.float32
    assert loss.sums.isfinite().all()


def test_a_sample_with_nothing_to_learn_costs_nothing(case: tuple[str, str], made: Any) -> None:
    output, batch = given(case)
    loss = made(output, batch)
    if loss.counts[2] == 0:
        assert loss.sums[2] == 0


def test_the_loss_of_a_sample_is_its_own(case: tuple[str, str], made: Any) -> None:
    """Sums are per sample, so that a batch is the sum of its rows."""
    output, batch = given(case)
    together = made.eval()(output, batch).sums
    for number in range(len(batch)):
        rows = slice(number, number + 1)
        tensors = {name: getattr(batch, name)[rows] for name in ("input_ids", "text_mask", "labels", "targets", "samples")}
        one = replace(batch, inputs={"image": batch.inputs["image"][rows]}, **tensors)
        alone = made(replace(output, logits=output.logits[rows], labels=output.labels[rows]), one).sums
        torch.testing.assert_close(alone[0], together[number])


def test_it_has_a_gradient(case: tuple[str, str], made: Any) -> None:
    output, batch = given(case)
    made.train()(output, batch).sums.sum().backward()
    assert output.logits.grad is not None
    assert output.logits.grad.any()
    assert output.logits.grad.isfinite().all()
