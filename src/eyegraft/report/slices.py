"""Results on parts of a split: by column and value, the best baseline of each part beside the model where the evaluation names it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eyegraft.evaluation.conclusions import MIN_SAMPLES
from eyegraft.report import words
from eyegraft.report.reading import Figure, figure, finite, mapping

_SEASONS = ("DJF", "MAM", "JJA", "SON")


@dataclass(frozen=True)
class Slice:
    """Attributes:
    few: fewer samples than say anything.
    figures: one for each of the metrics that were asked for.
    rival, rival_figure: the best baseline on this part by the first metric, empty where the evaluation names none.
    """

    value: str
    num_samples: float
    few: bool
    figures: list[Figure]
    rival: str
    rival_figure: Figure


def slices_of(info: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, list[Slice]]:
    """Column -> a row for each of its values."""
    return {
        str(column): [_slice(str(value), mapping(entry), metrics) for value, entry in mapping(values).items()]
        for column, values in mapping(info.get("slices")).items()
    }


def in_order(rows: Sequence[Slice]) -> list[Slice]:
    """Values that begin with a number by it, seasons through the year, values that `above` begins last; the rest as it was."""

    def place(row: Slice) -> tuple[int, float]:
        number = re.match(r"\D{0,6}?(\d+(?:\.\d+)?)", row.value)
        if row.value in _SEASONS:
            return 0, _SEASONS.index(row.value)
        return (0, float(number[1])) if number else (1, 0.0)

    return sorted(rows, key=place)


def _slice(value: str, entry: Mapping[str, Any], metrics: Sequence[str]) -> Slice:
    samples, found = finite(entry.get("num_samples")) or 0, mapping(entry.get("metrics"))
    rival = mapping(entry.get("best_baseline"))
    of_rival = mapping(rival.get("metrics")).get(metrics[0]) if metrics else None
    name = words.system_label(str(rival["system"])) if rival.get("system") else ""
    return Slice(value, samples, samples < MIN_SAMPLES, [figure(found.get(metric)) for metric in metrics], name, figure(of_rival))
