"""The loss of tokens whose logits are made a few at a time is that of all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eyegraft.objectives import cross_entropy
from eyegraft.objectives.cross_entropy import CrossEntropy, token_losses
from eyegraft.types import IGNORE, Batch, Output, Sample, TokenLogits, Tokens

K, D = 50, 8
COUNTS = (3, 0, 5, 1)


class Noted(nn.Linear):
    """An output layer that notes how many tokens it was given."""

    sizes: list[int]

    def forward(self, hidden: Tensor) -> Tensor:
        self.sizes.append(len(hidden))
        return super().forward(hidden)


def layer(dtype: torch.dtype = torch.float32) -> Noted:
    torch.manual_seed(0)
    made = Noted(D, K, dtype=dtype)
    made.sizes = []
    return made


def given(dtype: torch.dtype = torch.float32) -> tuple[TokenLogits, Tensor, Batch]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.full((len(COUNTS), max(COUNTS) + 2), IGNORE)
    for row, count in enumerate(COUNTS):
        labels[row, 2 : 2 + count] = torch.randint(K, (count,), generator=generator)
    learned = labels != IGNORE
    hidden = torch.randn(int(learned.sum()), D, generator=generator).to(dtype).requires_grad_(True)
    samples = [Sample(str(row), None) for row in range(len(COUNTS))]
    batch = Batch({}, labels.clamp(min=0), learned, labels, samples, torch.zeros(len(COUNTS), 0))
    return TokenLogits(hidden, learned.nonzero()[:, 0], layer(dtype)), labels[learned], batch


def output(logits: Any, labels: Tensor) -> Output:
    tokens = Tokens(torch.zeros(len(COUNTS), 1, D), torch.ones(len(COUNTS), 1, dtype=torch.bool))
    return Output({}, tokens, logits, labels)


@pytest.mark.parametrize("chunk", [1, 4, 9, 256])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int, smoothing: float, training: bool) -> None:
    """Sums and counts of each sample, gradients of hidden states and of the output layer, against logits [B, T', K]."""
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    objective = CrossEntropy(smoothing).train(training)
    logits, labels, batch = given()
    ours = objective(output(logits, labels), batch)
    ours.sums.sum().backward()
    found = [logits.hidden.grad, *(parameter.grad for parameter in logits.layer.parameters())]
    same, _, _ = given()
    dense = torch.zeros(*batch.labels.shape, K)
    dense[batch.labels != IGNORE] = same.all()
    theirs = objective(output(dense, batch.labels), batch)
    theirs.sums.sum().backward()
    torch.testing.assert_close(ours.sums, theirs.sums, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.counts, theirs.counts)
    assert ours.counts.tolist() == list(COUNTS)
    for mine, other in zip(found, [same.hidden.grad, *(parameter.grad for parameter in same.layer.parameters())], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_no_more_logits_than_a_chunk_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither made nor kept for the gradient; only the last chunk is made once and not twice."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    logits, labels, _ = given()
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.shape[-1:] == (K,) and len(tensor) != D:  # the weights are no logits
            kept.append(len(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = token_losses(logits, labels)
    assert logits.layer.sizes == [4, 4, 1]
    assert set(kept) == {1}
    losses.sum().backward()
    assert sorted(logits.layer.sizes[3:]) == [4, 4]
    with torch.no_grad():
        token_losses(logits, labels)
    assert logits.layer.sizes[5:] == [4, 4, 1]


def test_half_precision_logits_give_float32_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    logits, labels, batch = given(torch.bfloat16)
    loss = CrossEntropy()(output(logits, labels), batch)
    assert loss.sums.dtype == loss.counts.dtype == torch.float32
    loss.sums.sum().backward()
    assert logits.hidden.grad.dtype == torch.bfloat16
    assert logits.hidden.grad.any()


def test_under_autocast_the_gradient_is_made_as_the_loss_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    gradients = []
    for chunk in (4, 256):
        monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
        logits, labels, batch = given()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = CrossEntropy()(output(logits, labels), batch).sums.sum()
        loss.backward()
        gradients.append(logits.hidden.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


def test_dropout_in_the_output_layer_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters on an output layer may have dropout: the gradient must see the draw that the loss saw."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 2)
    logits, labels, _ = given()
    dropped = TokenLogits(logits.hidden, logits.rows, lambda hidden: logits.layer(nn.functional.dropout(hidden, 0.5)))
    torch.manual_seed(4)
    losses = token_losses(dropped, labels)
    losses.sum().backward()
    step, hidden = 1e-3, logits.hidden
    with torch.no_grad():
        hidden -= step * hidden.grad
        torch.manual_seed(4)
        after = token_losses(dropped, labels)
    expected = -step * float(hidden.grad.square().sum())
    assert float((after - losses.detach()).sum()) == pytest.approx(expected, rel=0.05)


def test_a_batch_without_labels_has_a_loss_of_nothing() -> None:
    logits, labels, batch = given()
    nothing = TokenLogits(logits.hidden[:0], logits.rows[:0], logits.layer)
    loss = CrossEntropy()(output(nothing, labels[:0]), batch)
    assert not loss.sums.any()
    assert not loss.counts.any()
