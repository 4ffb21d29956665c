"""How many of the facts that a text should state it states: the right variable, place and sign.

What the facts are, and how they are read from a text, belongs to the data: the reader is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError
from eyegraft.metrics._bootstrap import OfSums
from eyegraft.types import Scores

VERSION = "eyegraft-facts-1"
SCORE = "fact_score"

Agreement = Callable[[Mapping[str, Any], str], Mapping[str, float]]
"""(expected facts, text) -> of each fact how far the text states it, between 0 and 1."""


def names_of(facts: Sequence[str]) -> tuple[str, ...]:
    """The metrics of these facts: their mean, and each of them."""
    return (SCORE, *(f"fact_{name}" for name in facts))


def score(answers: Sequence[str], expected: Sequence[Mapping[str, Any] | None], facts: Sequence[str], agreement: Agreement) -> Scores:
    """The share of each fact that answers state, over the samples of which it is known, and their mean within each sample.

    A sample without facts has no part in it: it counts neither as right nor as wrong. A metric that no sample has is left out. One that
    all have stands in `per_sample`, one that some have in `statistics`: either way it has an interval.

    Args:
        answers: a text each.
        expected: what the text of each sample should state; None or empty where nobody knows.
        facts: the names that are scored.
        agreement: reads a text and compares.

    Raises:
        DataError: lists of different length.
    """
    if len(answers) != len(expected):
        given = f"{len(answers)} answers and facts of {len(expected)} samples"
        raise DataError(given, "the facts of each answer's sample", "pass answers and samples in the same order")
    values: dict[str, list[float]] = {name: [] for name in names_of(facts)}
    for text, known in zip(answers, expected, strict=True):
        wanted = {name: known[name] for name in facts if known and known.get(name) is not None}
        found = agreement(wanted, text) if wanted else {}
        values[SCORE].append(math.fsum(found.values()) / len(found) if found else math.nan)
        for name in facts:
            values[f"fact_{name}"].append(float(found.get(name, math.nan)))
    columns = {name: np.array(column) for name, column in values.items()}
    columns = {name: column for name, column in columns.items() if not np.isnan(column).all()}
    whole = {name: column.tolist() for name, column in columns.items() if not np.isnan(column).any()}
    some = {name: _mean_where_known(column) for name, column in columns.items() if name not in whole}
    return Scores(
        corpus={name: float(np.nanmean(column)) for name, column in columns.items()},
        per_sample=whole,
        signature={name: _signature(name, facts) for name in columns},
        higher_is_better=dict.fromkeys(columns, True),
        statistics=some,
    )


def _signature(name: str, facts: Sequence[str]) -> str:
    what = f"mean over those of {', '.join(facts)} that a sample has" if name == SCORE else f"{name.removeprefix('fact_')} as expected"
    return f"{VERSION}: {what}; samples without facts have no part; 0 to 1"


def _mean_where_known(column: NDArray[np.float64]) -> OfSums:
    known = ~np.isnan(column)
    terms = np.stack([np.where(known, column, 0.0), known.astype(np.float64)], axis=1)  # [N, 2]

    def of(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        there = sums[:, 1]
        return np.where(there > 0, sums[:, 0] / np.maximum(there, 1.0), np.nan)

    def at(rows: NDArray[np.int64]) -> float:
        return float(of(terms[rows].sum(axis=0, keepdims=True), np.array([float(len(rows))]))[0])

    return OfSums(at, terms, of)
