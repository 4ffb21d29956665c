"""Tokens to outputs. Each file has `Config`, `input_dim(config)` and `build(config, in_dim=…, num_outputs=…) -> Head`.

`input_dim` is the width that it reads, None where any will do.
`num_outputs` is how many numbers an answer of the recipe's tasks has, 0 where it is a text.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from eyegraft.types import Batch, Tokens


class Head(Protocol):
    """What every head offers. A head with a pretrained `backbone` is frozen unless the recipe tunes it."""

    backbone: nn.Module | None

    def __call__(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, in_dim] -> (logits [B, T', K], labels [B, T'] aligned with them), or of labels (logits [B, K], targets [B, K])."""


class TextHead(Head, Protocol):
    """A head that writes text.

    Attributes:
        tokenizer: the language model's own.
        context_length: tokens that it can take, image tokens included.
    """

    tokenizer: Any
    context_length: int

    def generate(self, tokens: Tokens, batch: Batch, *, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        """One text a sample, after its prompt. Deterministic."""
