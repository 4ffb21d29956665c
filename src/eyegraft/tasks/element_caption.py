"""A weather map to four sentences: what it shows, the dominant pattern, what that means, the broader context."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from eyegraft.data.sentences import sentences_of
from eyegraft.tasks._weather import Asking, Limits, WeatherTask, checked_prompt, condition_of
from eyegraft.tasks._weather import num_outputs as num_outputs
from eyegraft.types import Sample

MATERIALS = {"condition": condition_of}
NUM_SENTENCES = (4, 4)
FACTS = ("variable", "place", "sign", "level")


class Config(Limits):
    """What every task about weather maps takes, and:

    Attributes:
        prompt: what is asked of every map, `{condition}` in it being the map's class; a row's own prompt comes before it.
    """

    prompt: Annotated[str, AfterValidator(lambda prompt: checked_prompt(prompt, MATERIALS))] = (
        "Describe this weather map in four sentences. First, which variables the color fill and the contours show. Second, the dominant "
        "pattern: where it lies and from where the wind flows. Third, what that means physically. Fourth, what it says about the broader "
        "weather situation."
    )


def build(name: str, config: Config) -> WeatherTask:
    return WeatherTask(name, config, Asking(config.prompt, MATERIALS, NUM_SENTENCES, FACTS, fault))


def fault(sample: Sample) -> str | None:
    if len(sentences_of(sample.references[0])) < 2:
        return f"a caption of one sentence: {sample.references[0]!r:.60}"
    return None
