"""Tokens to outputs. Each file has `Config`, `input_dim(config)` and `build(config, in_dim=…, num_outputs=…) -> Head`.

`input_dim` is the width that it reads, None where any will do.
`num_outputs` is how many numbers an answer of the recipe's tasks has, 0 where it is a text.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from eyegraft.types import Batch, TokenLogits, Tokens


class Head(Protocol):
    """What every head offers. A head with a pretrained `backbone` is frozen unless the recipe tunes it."""

    backbone: nn.Module | None

    def __call__(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, in_dim] -> (logits [B, T', K], labels [B, T'] aligned with them), or of labels (logits [B, K], targets [B, K])."""


class TextHead(Head, Protocol):
    """A head that writes text.

    Attributes:
        tokenizer: the language model's own.
        context_length: tokens that it can take, image tokens included where they stand in the text (see `tokens_in_context`).

    A head whose image tokens take up no room in the text says `tokens_in_context = False`. A pretrained one with `new_parameters` may name
    the mode of `train.tune` that it trains in where a recipe names none, as `default_mode`.
    """

    tokenizer: Any
    context_length: int

    def generate(self, tokens: Tokens, batch: Batch, *, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        """One text a sample, after its prompt. Deterministic."""


class LearningHead(TextHead, Protocol):
    """What a head that writes text may offer besides."""

    def learned(self, tokens: Tokens, batch: Batch) -> tuple[TokenLogits, Tensor]:
        """As `__call__`, at the learned tokens alone: (logits, labels [M]). It is what training calls, and heeds `batch.packed`."""
