"""How likely a head finds each of the answers that are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eyegraft.errors import DataError
from eyegraft.types import IGNORE, Batch, TokenLogits, Tokens

SCORING = "mean log-likelihood of the tokens of a choice and of the one that ends it, after the prompt"
MAX_ROWS = 64
"""Choices that go through the head at once, at least; more where the batch itself is larger."""


@torch.no_grad()
def mean_log_likelihoods(head: Any, tokens: Tokens, batch: Batch, endings: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
    """Of every row its endings' log-likelihoods after the prompt, each divided by its number of tokens: a long one is no less likely.

    Args:
        tokens, batch: as `generate` takes them: prompts alone.
        endings: row -> the token ids of each ending; none for a row that is not asked for.

    Raises:
        DataError: prompt and ending are longer than the context of the language model.
    """
    rows = [(row, ending) for row, group in enumerate(endings) for ending in group]
    size, values = max(MAX_ROWS, len(batch)), list[float]()
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        places = torch.tensor([row for row, _ in some], device=batch.input_ids.device)
        prompts = [batch.input_ids[row][batch.text_mask[row]].tolist() for row, _ in some]
        input_ids, mask, labels = _texts(prompts, [ending for _, ending in some], batch.input_ids)
        asked = replace(batch, input_ids=input_ids, text_mask=mask, labels=labels, samples=[batch.samples[row] for row, _ in some])
        _stop_beyond_context(head, tokens, asked)
        logits, labels = head(replace(tokens, values=tokens.values[places], mask=tokens.mask[places], weights=None), asked)
        lengths = torch.tensor([len(ending) for _, ending in some], device=labels.device)
        values += (-_losses(logits, labels, len(some)) / lengths).tolist()
    found = iter(values)
    return [[next(found) for _ in group] for group in endings]


def _texts(prompts: Sequence[list[int]], endings: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, text_mask and labels [R, T], right-padded; the endings alone are labels."""
    width = max(len(prompt) + len(ending) for prompt, ending in zip(prompts, endings, strict=True))
    input_ids, labels = like.new_zeros(len(prompts), width), like.new_full((len(prompts), width), IGNORE)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (prompt, ending) in enumerate(zip(prompts, endings, strict=True)):
        start, stop = len(prompt), len(prompt) + len(ending)
        input_ids[row, :stop] = like.new_tensor([*prompt, *ending])
        labels[row, start:stop] = input_ids[row, start:stop]
        mask[row, :stop] = True
    return input_ids, mask, labels


def _losses(logits: Tensor | TokenLogits, labels: Tensor, count: int) -> Tensor:
    """[R], the summed cross-entropy of each row's labels in float32."""
    if isinstance(logits, TokenLogits):
        losses = F.cross_entropy(logits.all().float(), labels, reduction="none")  # [M]
        return losses.new_zeros(count).index_add(0, logits.rows, losses)
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none").sum(1)


def _stop_beyond_context(head: Any, tokens: Tokens, asked: Batch) -> None:
    before = tokens.mask.shape[1] if getattr(head, "tokens_in_context", True) else 0
    lengths = asked.text_mask.sum(1)
    if before + int(lengths.max()) > head.context_length:
        sample = asked.samples[int(lengths.argmax())]
        raise DataError(
            f"sample {sample.id}: {before} image tokens and {int(lengths.max())} text tokens with its longest choice",
            f"at most {head.context_length}, the context of the language model",
            "shorten the question or the choices",
        )
