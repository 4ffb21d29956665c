"""Pictures, panoramas or patches to nothing: an encoder learns from what it reads alone, and a later stage starts from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from eyegraft.config import Strict
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import RecipeError
from eyegraft.types import Batch, Sample, Scores, Tokens


class Config(Strict):
    """Nothing to choose: what is learned is the stage's objective, `mae` unless it names another."""


class PretrainTask:
    """Rows need no labels, and those that they have are not looked at. Validation gives a loss and no metric."""

    objectives = ("mae", "dino", "vicreg", "densecl", "condition")
    prompt = ""
    num_neighbours = 1
    reads_logits = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.directions: Mapping[str, bool] = {}
        self.decoding: dict[str, Any] = {"do_sample": False}
        self.decision: Mapping[str, Any] = {}
        self.learned: Mapping[str, Any] = {}

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        return Encoded()

    def encode_rows(self, rows: Sequence[Sample]) -> Targets:
        return Targets(np.empty((len(rows), 0), dtype=np.float32))

    def check(self, samples: Sequence[Sample], split: str) -> None:
        """Whatever the labels are, they are not used."""

    def settle(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}

    # ── what it has not ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _nothing(self) -> NoReturn:
        raise RecipeError(
            f"tasks.{self.name} has no answers: nothing to score, show or serve",
            "a stage whose task answers, which starts from this one",
            "train the next stage and name it: --stage NAME",
        )

    def read(self, logits: Tensor) -> list[Any]:
        self._nothing()

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[Any]:
        self._nothing()

    def prior(self, train: Sequence[Sample]) -> Any:
        self._nothing()

    def from_neighbours(self, neighbours: Sequence[Sample]) -> Any:
        self._nothing()

    def truth(self, sample: Sample) -> Any:
        self._nothing()

    def score(self, answers: Sequence[Any], samples: Sequence[Sample]) -> Scores:
        self._nothing()

    def details(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        self._nothing()


def num_outputs(config: Config) -> None:
    """None: the head is made for the other tasks of the recipe."""


def build(name: str, config: Config) -> PretrainTask:
    return PretrainTask(name)
