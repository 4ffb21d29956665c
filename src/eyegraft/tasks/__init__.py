"""What is asked and what is answered. Each file has `Config` and `build(name, config) -> Task`.

A task is the only place that knows prompts and targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from eyegraft.data.text import EncodedText
from eyegraft.types import Batch, Sample, Scores, Tokens


class Task(Protocol):
    """What every task offers.

    Attributes:
        name: its key in the recipe.
        objective: kind of the loss that it trains with, unless the stage names another.
        prompt: the prompt where a sample brings none.
        decoding: how answers are made, written beside every result.
    """

    name: str
    objective: str
    prompt: str
    decoding: dict[str, Any]

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> EncodedText:
        """Prompt and target (learn) or the prompt alone."""

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[str]:
        """One answer a sample, in the user's units."""

    def score(self, answers: Sequence[str], samples: Sequence[Sample]) -> Scores:
        """The task's metrics over answers."""
