"""What is asked and what is answered. Each file has `Config`, `num_outputs(config) -> int` and `build(name, config) -> Task`.

A task is the only place that knows prompts and targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from eyegraft.data.text import Encoded
from eyegraft.types import Batch, Sample, Scores, Tokens


class Task(Protocol):
    """What every task offers. An answer is a text, or of a label task a mapping that JSON can hold.

    Attributes:
        name: its key in the recipe.
        objectives: kinds of loss that it can be trained with; the first unless the stage names another.
        directions: metric -> whether higher is better, for every metric of `score`.
        prompt: the prompt where a sample brings none.
        decoding: how answers are made, written beside every result.
        decision: what validation chose (see `settle`); empty before.
        learned: what it must know of the training split (see `learn`); empty before, and where that is nothing.
        num_neighbours: how many training samples retrieval answers from.
        reads_logits: answers come straight from a forward (`read`); else they are generated, which costs far more.
    """

    name: str
    objectives: tuple[str, ...]
    directions: Mapping[str, bool]
    prompt: str
    decoding: dict[str, Any]
    decision: Mapping[str, Any]
    learned: Mapping[str, Any]
    num_neighbours: int
    reads_logits: bool

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        """What must be known of the training split, and of no other, before any sample is encoded: mean and spread of a number."""

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        """Prompt and target (learn) or the prompt alone.

        Args:
            tokenizer: the head's; None where it writes no text.
        """

    def check(self, samples: Sequence[Sample], split: str) -> None:
        """Raise a `DataError` that lists whatever of a split cannot be used: of every split, and of `val` also where it is empty."""

    def read(self, logits: Tensor) -> list[Any]:
        """Answers straight from a forward's logits. Only where `reads_logits`."""

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[Any]:
        """One answer a sample, in the user's units."""

    def settle(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        """What must be chosen on validation data, such as a threshold. Nothing else may choose it."""

    def prior(self, train: Sequence[Sample]) -> Any:
        """The best answer without looking: the most frequent one, the share of each class."""

    def from_neighbours(self, neighbours: Sequence[Sample]) -> Any:
        """The answer that similar training samples suggest, the most similar first."""

    def truth(self, sample: Sample) -> Any:
        """What would be right, in the words of an answer: the label or labels; of a text all that are acceptable."""

    def score(self, answers: Sequence[Any], samples: Sequence[Sample]) -> Scores:
        """The task's metrics over answers."""

    def details(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        """What else is worth knowing of the model's answers, as plain data: a confusion table, calibration. May be empty."""
