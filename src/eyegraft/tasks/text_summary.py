"""The captions of all maps of a case, and the first map, to the summary of the case."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from eyegraft.config import Positive
from eyegraft.errors import DataError
from eyegraft.tasks._weather import SUMMARY_FACTS, Asking, Limits, Materials, WeatherTask, checked_prompt, list_of
from eyegraft.tasks._weather import num_outputs as num_outputs
from eyegraft.types import Sample


class Config(Limits):
    """What every task about weather maps takes, and:

    Attributes:
        prompt: what is asked, `{captions}` in it being the captions of the case, numbered; a row's own prompt comes before it. They stand
            last, for what is too long is cut at its end.
        max_captions: the first so many of a case.
    """

    prompt: Annotated[str, AfterValidator(lambda prompt: checked_prompt(prompt, _materials(1)))] = (
        "Write the summary of a mesoscale discussion, in the style of the Storm Prediction Center, for the weather situation that these "
        "maps describe.\n{captions}"
    )
    max_captions: Positive = 10


def build(name: str, config: Config) -> WeatherTask:
    return WeatherTask(name, config, Asking(config.prompt, _materials(config.max_captions), None, SUMMARY_FACTS))


def _materials(max_captions: int) -> Materials:
    return {"captions": partial(numbered, limit=max_captions)}


def numbered(sample: Sample, limit: int) -> str:
    """`1. CLASS: caption`, a line each; the class where the row names it."""
    lines = []
    for number, item in enumerate(list_of(sample, "captions")[:limit], 1):
        caption, kind = (item.get("caption"), item.get("condition")) if isinstance(item, Mapping) else (item, None)
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(f"caption {number} of its case is {caption!r:.60}", "a text", "mend the column 'captions'")
        lines.append(f"{number}. {f'{kind}: ' if kind else ''}{caption.strip()}")
    return "\n".join(lines)
