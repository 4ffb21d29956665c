"""An image and a prompt to a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eyegraft.config import Positive, Strict
from eyegraft.data.text import Encoded, Overflow, Template, encode_pair, encode_prompt, said_of
from eyegraft.errors import DataError
from eyegraft.metrics import captions
from eyegraft.types import Batch, Sample, Scores, Tokens


class Config(Strict):
    """Attributes:
    prompt: what is asked of every image; a sample's own prompt comes before it.
    template: `chat` uses the tokenizer's chat template, `plain` puts prompt and answer side by side, `auto` takes what there is.
    max_text_tokens: prompt and answer together; image tokens are counted apart and never cut.
    overflow: what happens to a longer text.
    metric_unit: what the metrics count: `words`, or the `characters` of Korean and of scripts without spaces.
    """

    prompt: str = "Describe the image."
    template: Template = "auto"
    max_text_tokens: Positive = 128
    overflow: Overflow = "error"
    max_new_tokens: Positive = 64
    num_beams: Positive = 1
    metric_unit: captions.Unit = "words"


class CaptionTask:
    objectives = ("cross_entropy",)
    directions = captions.HIGHER_IS_BETTER
    num_neighbours = 1
    reads_logits = False

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.prompt = config.prompt
        self.decoding = {
            "max_new_tokens": config.max_new_tokens,
            "num_beams": config.num_beams,
            "do_sample": False,
            "template": config.template,
        }
        self.decision: dict[str, Any] = {}
        self.learned: dict[str, Any] = {}
        self._config = config

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def check(self, samples: Sequence[Sample], split: str) -> None:
        return None

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        config, prompt = self._config, sample.prompt or self.prompt
        try:
            if not learn:
                return encode_prompt(tokenizer, prompt, template=config.template)
            if not sample.references:
                raise DataError("no text to learn", "a reference in data.columns.references", "name the column that holds the text")
            target = sample.references[0]
            return encode_pair(
                tokenizer, prompt, target, max_tokens=config.max_text_tokens, template=config.template, overflow=config.overflow
            )
        except DataError as error:
            raise said_of(error, sample.id, self.name) from error

    def read(self, logits: Tensor) -> list[str]:
        raise NotImplementedError("a text is generated, token by token")

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[str]:
        return list(head.generate(tokens, batch, max_new_tokens=self._config.max_new_tokens, num_beams=self._config.num_beams))

    def settle(self, answers: Sequence[str], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def prior(self, train: Sequence[Sample]) -> str:
        tally = Counter(reference for sample in train for reference in sample.references)
        return min(tally, key=lambda text: (-tally[text], text))  # the first in order of the alphabet among equals

    def from_neighbours(self, neighbours: Sequence[Sample]) -> str:
        return neighbours[0].references[0]

    def truth(self, sample: Sample) -> list[str]:
        return list(sample.references)

    def score(self, answers: Sequence[str], samples: Sequence[Sample]) -> Scores:
        return captions.score(answers, [sample.references for sample in samples], self._config.metric_unit)

    def details(self, answers: Sequence[str], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}


def num_outputs(config: Config) -> int:
    return 0


def build(name: str, config: Config) -> CaptionTask:
    return CaptionTask(name, config)
