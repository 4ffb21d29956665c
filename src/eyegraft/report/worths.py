"""What each input is worth to the model: its score with one input taken away or exchanged, and what the true input adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eyegraft.evaluation.conclusions import MIN_SAMPLES
from eyegraft.report import words
from eyegraft.report.reading import Figure, figure, finite, mapping

ABLATIONS: Mapping[str, tuple[str, str, str]] = {
    "absent_text": ("The texts help.", "No clear sign that the texts help.", "It does better without the texts."),
    "absent_image": ("The images help.", "No clear sign that the images help.", "It does better without the images."),
    "absent_context": ("Time and place help.", "No clear sign that time and place help.", "It does better without time and place."),
    "shuffled_text": (
        "It reads the texts: those of other samples mislead it.",
        "No clear sign that it matters whose text it reads.",
        "It does better with the texts of other samples.",
    ),
    "shuffled_image": (
        "It looks at the images: those of other samples mislead it.",
        "No clear sign that it matters whose image it sees.",
        "It does better with the images of other samples.",
    ),
    "shuffled_context": (
        "It reads time and place: those of other samples mislead it.",
        "No clear sign that it matters whose time and place it reads.",
        "It does better with the time and place of other samples.",
    ),
    "blank_image": ("It uses the picture.", "No clear sign that it uses the picture.", "It does better with a blank picture."),
}
"""Damaged input -> what to say where the model is better with the true one, where that is unclear, and where it is worse."""


@dataclass(frozen=True)
class Worth:
    """The model with one input damaged: its score, and how much the true input adds to each of the first metrics."""

    system: str
    alone: Figure
    gains: list[Figure]
    tone: str
    reading: str


def worths_of(info: Mapping[str, Any], metrics: Sequence[str]) -> list[Worth]:
    """A reading for each damaged input that was evaluated.

    Args:
        metrics: the first ones of the task; the first of all decides.
    """
    systems, differences = mapping(info.get("systems")), mapping(info.get("differences"))
    few = (finite(info.get("num_samples")) or 0) < MIN_SAMPLES
    found = []
    for system, (good, unclear, bad) in ABLATIONS.items():
        if system not in systems or not metrics:
            continue
        gains = [figure(mapping(differences.get(system)).get(name)) for name in metrics]
        low, high = gains[0].low, gains[0].high
        if low is not None and high is not None and not words.higher_is_better(metrics[0], info):
            low, high = -high, -low
        tone, reading = "unclear", unclear
        if few:
            reading = "Too few samples to tell."
        elif low is not None and low > 0:
            tone, reading = "good", good
        elif high is not None and high < 0:
            tone, reading = "bad", bad
        found.append(Worth(system, figure(mapping(systems[system]).get(metrics[0])), gains, tone, reading))
    return found
