"""A weather map to the summary of its case, in the style of a mesoscale discussion."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from eyegraft.tasks._weather import SUMMARY_FACTS, Asking, Limits, WeatherTask, checked_prompt, condition_of
from eyegraft.tasks._weather import num_outputs as num_outputs

MATERIALS = {"condition": condition_of}


class Config(Limits):
    """What every task about weather maps takes, and:

    Attributes:
        prompt: what is asked of every map, `{condition}` in it being the map's class; a row's own prompt comes before it.
    """

    prompt: Annotated[str, AfterValidator(lambda prompt: checked_prompt(prompt, MATERIALS))] = (
        "Write the summary of a mesoscale discussion, in the style of the Storm Prediction Center, for the weather situation that this map "
        "belongs to."
    )


def build(name: str, config: Config) -> WeatherTask:
    return WeatherTask(name, config, Asking(config.prompt, MATERIALS, None, SUMMARY_FACTS))
