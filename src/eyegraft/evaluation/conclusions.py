"""What a result says, in sentences: better than a baseline, worse, or not to be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIN_SAMPLES = 10
"""Fewer samples than this decide nothing: a bootstrap interval of so few is too narrow."""

_NAMES = {
    "blank_image": "the same model on blank images",
    "shuffled_image": "the same model on shuffled images",
    "shuffled_image_within": "the same model on images shuffled within evaluation.shuffle_within",
    "absent_image": "the same model without images",
    "shuffled_text": "the same model on shuffled texts",
    "absent_text": "the same model without texts",
    "shuffled_context": "the same model on shuffled time, place and further columns",
    "absent_context": "the same model without time, place and further columns",
    "most_frequent": "the best answer without looking",
    "nearest_neighbour": "nearest-neighbour retrieval",
    "climatology": "the climatology of season, hour and station",
    "elevation_linear": "the line in elevation and latitude",
    "ridge": "ridge regression on columns",
    "boosting": "boosted trees on columns",
}

Table = Mapping[str, Mapping[str, Any]]
"""System -> metric -> {value, low, high}."""


def is_damage(system: str) -> bool:
    """Whether a system is the model itself with an input damaged, and no baseline in its own right."""
    return system.split("_")[0] in ("blank", "shuffled", "absent")


def against_each(systems: Table, differences: Table, higher_is_better: Mapping[str, bool | None], num_samples: int) -> list[str]:
    """One sentence a baseline on the task's first metric with paired differences. A difference above 0 speaks for the model, whether the
    metric is better when high or when low."""
    metric = _metric(systems, differences)
    if metric is None:
        return []
    sentences = []
    for system, table in differences.items():
        gap = table[metric]
        value, low, high = (gap["value"], gap["low"], gap["high"])
        if not higher_is_better.get(metric, True):
            value, low, high = -value, -high, -low
        shown_gap = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
        name = _NAMES.get(system, system)
        if num_samples < MIN_SAMPLES:
            sentences.append(f"The model against {name} on {metric}: too few samples ({num_samples}) to tell; {shown_gap}.")
        elif low > 0:
            sentences.append(f"The model beats {name} on {metric} by {shown_gap}.")
        elif high < 0:
            sentences.append(f"The model loses to {name} on {metric}: {shown_gap}.")
        else:
            sentences.append(f"The model cannot be told apart from {name} on {metric}: {shown_gap}.")
    return sentences


def against_all(systems: Table, differences: Table, higher_is_better: Mapping[str, bool | None], num_samples: int) -> list[str]:
    """Whether the model beats every baseline on the first metric, in one sentence; nothing where too few samples say nothing."""
    metric, rivals = _metric(systems, differences), [system for system in differences if not is_damage(system)]
    if metric is None or not rivals or num_samples < MIN_SAMPLES:
        return []
    sign = 1 if higher_is_better.get(metric, True) else -1
    best = max(rivals, key=lambda system: sign * systems[system][metric]["value"])
    gaps = {system: differences[system][metric] for system in rivals}
    lost = [_NAMES.get(system, system) for system, gap in gaps.items() if (gap["high"] if sign > 0 else -gap["low"]) < 0]
    beaten = sum((gap["low"] if sign > 0 else -gap["high"]) > 0 for gap in gaps.values())
    values = f"{_range(systems['model'][metric])} against {_range(systems[best][metric])} of the best of them, {_NAMES.get(best, best)}"
    if beaten == len(rivals):
        return [f"The model beats every one of {len(rivals)} baselines on {metric}: {values}."]
    what = f"loses to {_listed(lost)}" if lost else "cannot be told apart from the others"
    rest = len(rivals) - beaten - len(lost)
    unclear = f", cannot be told apart from {rest} more" if lost and rest else ""
    return [f"The model does not beat every baseline on {metric}: it beats {beaten} of {len(rivals)}, {what}{unclear}; {values}."]


def of_intervals(model: Mapping[str, Any], level: float | None) -> list[str]:
    """How many samples the intervals beside the answers hold, against what they promise."""
    measured = model.get("interval_coverage")
    if level is None or measured is None or measured["value"] is None:
        return []
    verdict = ""
    if measured["low"] is not None:
        verdict = ": too narrow here" if measured["high"] < level else ": wider than need be" if measured["low"] > level else ""
    ends = f" [{100 * measured['low']:.1f}, {100 * measured['high']:.1f}]" if measured["low"] is not None else ""
    return [f"Intervals that are to cover {100 * level:g} % of new samples cover {100 * measured['value']:.1f} %{ends} of these{verdict}."]


def _metric(systems: Table, differences: Table) -> str | None:
    known = {name for name in systems["model"] if all(table.get(name, {}).get("low") is not None for table in differences.values())}
    return next((name for name in systems["model"] if name in known), None)


def _range(entry: Mapping[str, Any]) -> str:
    ends = f" [{entry['low']:.3f}, {entry['high']:.3f}]" if entry["low"] is not None else ""
    return f"{entry['value']:.3f}{ends}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
