"""An image and a prompt to a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eyegraft.config import Positive, Strict
from eyegraft.data.text import EncodedText, Overflow, Template, encode_pair, encode_prompt
from eyegraft.errors import DataError
from eyegraft.metrics import captions
from eyegraft.types import Batch, Sample, Scores, Tokens


class Config(Strict):
    """Attributes:
    prompt: what is asked of every image; a sample's own prompt comes before it.
    template: `chat` uses the tokenizer's chat template, `plain` puts prompt and answer side by side, `auto` takes what there is.
    max_text_tokens: prompt and answer together; image tokens are counted apart and never cut.
    overflow: what happens to a longer text.
    """

    prompt: str = "Describe the image."
    template: Template = "auto"
    max_text_tokens: Positive = 128
    overflow: Overflow = "error"
    max_new_tokens: Positive = 64
    num_beams: Positive = 1


class CaptionTask:
    objective = "cross_entropy"

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.prompt = config.prompt
        self.decoding = {
            "max_new_tokens": config.max_new_tokens,
            "num_beams": config.num_beams,
            "do_sample": False,
            "template": config.template,
        }
        self._config = config

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> EncodedText:
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
            raise DataError(f"sample {sample.id}: {error.given}", error.expected, error.fix.replace("NAME", self.name)) from error

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[str]:
        return list(head.generate(tokens, batch, max_new_tokens=self._config.max_new_tokens, num_beams=self._config.num_beams))

    def score(self, answers: Sequence[str], samples: Sequence[Sample]) -> Scores:
        return captions.score(answers, [sample.references for sample in samples])


def build(name: str, config: Config) -> CaptionTask:
    return CaptionTask(name, config)
