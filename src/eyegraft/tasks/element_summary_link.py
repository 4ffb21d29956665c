"""A weather map, what its caption says but for the end, and the summary of its case, to that end: how the map bears on the summary.

The end is the caption's last sentence, or the last two where the last has fewer than four words. Nothing in the prompt holds it: a sentence
of the caption or of the summary that repeats it is left out too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

from eyegraft.config import Positive
from eyegraft.data.sentences import SHORT, parted, sentences_of
from eyegraft.errors import DataError
from eyegraft.metrics.captions import tokens
from eyegraft.tasks._weather import Asking, Limits, WeatherTask, checked_prompt, condition_of, list_of, summary_of
from eyegraft.tasks._weather import num_outputs as num_outputs
from eyegraft.types import Sample

NUM_SENTENCES = (1, 2)
FACTS = ("relation", "concern")


def description_of(sample: Sample) -> str:
    """The caption's sentences before its end, without any that repeats the end.

    Raises:
        DataError: none is left.
    """
    sentences = _sentences(sample)
    kept = _without(parted(sentences)[0], _end_of(sample))
    if not kept:
        given = f"a caption of {len(sentences)} sentence{'s' if len(sentences) != 1 else ''} leaves none before its end"
        raise DataError(
            given, "a sentence or more before the end, and other words in it", "leave the row out, or mend its column 'sentences'"
        )
    return " ".join(kept)


def summary_before(sample: Sample) -> str:
    """The summary of the case, without any sentence that repeats the caption's end.

    Raises:
        DataError: there is none, or nothing is left of it.
    """
    summary = summary_of(sample)
    sentences = sentences_of(summary)
    kept = _without(sentences, _end_of(sample))
    if not kept:
        raise DataError("its summary says the answer and nothing else", "a summary of its own", "leave the row out, or mend its columns")
    return summary if len(kept) == len(sentences) else " ".join(kept)


MATERIALS = {"condition": condition_of, "description": description_of, "summary": summary_before}


class Config(Limits):
    """What every task about weather maps takes, and:

    Attributes:
        prompt: what is asked, `{description}` in it being the map's caption but for its end, `{summary}` that of the case, `{condition}`
            the map's class; a row's own prompt comes before it. They stand last, for what is too long is cut at its end.
    """

    prompt: Annotated[str, AfterValidator(lambda prompt: checked_prompt(prompt, MATERIALS))] = (
        "In one or two sentences, say how this weather map supports, refines or contradicts the forecast summary.\n"
        "The map: {description}\nForecast summary: {summary}"
    )
    max_new_tokens: Positive = 96


def build(name: str, config: Config) -> WeatherTask:
    return WeatherTask(name, config, Asking(config.prompt, MATERIALS, NUM_SENTENCES, FACTS, gives_away=gives_away))


def gives_away(sample: Sample, prompt: str) -> bool:
    """Whether a prompt, the row's own or one that a recipe spells out, holds the caption's end."""
    return _repeats(prompt, _end_of(sample))


def _sentences(sample: Sample) -> list[str]:
    value = sample.meta.get("sentences")
    return sentences_of(value) if isinstance(value, str) else [str(sentence) for sentence in list_of(sample, "sentences")]


def _end_of(sample: Sample) -> list[str]:
    """The sentences that must not be told: the caption's end, and what else the row wants learned."""
    end = parted(_sentences(sample))[1] if sample.meta.get("sentences") else []
    return end + [sentence for text in sample.references for sentence in sentences_of(text)]


def _without(sentences: Sequence[str], end: Sequence[str]) -> list[str]:
    return [sentence for sentence in sentences if not _repeats(sentence, end)]


def _repeats(text: str, end: Sequence[str]) -> bool:
    """Whether a text is one of these sentences, or holds one of four words or more; case and punctuation make no difference."""
    words = _plain(text)
    return any(words == told or (told in words and told.count(" ") > SHORT) for told in map(_plain, end) if told.strip())


@lru_cache(maxsize=1024)  # a row asks for each of its sentences several times
def _plain(text: str) -> str:
    return f" {' '.join(tokens(text))} "
