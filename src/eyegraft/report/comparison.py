"""The page of a comparison: runs in one table with paired differences, and their answers to the same samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eyegraft.evaluation.compare import Comparison, answers_of
from eyegraft.files import write_atomically
from eyegraft.report import words
from eyegraft.report.gallery import MAX_CARDS, MAX_REFERENCES, OPEN_CARDS, thumbnail
from eyegraft.report.labels import kind_of
from eyegraft.report.numbers import is_of_numbers
from eyegraft.report.page import environment
from eyegraft.report.panorama import BUDGET, LEFT_OUT, Panorama, Pictures, layout_of, panorama
from eyegraft.report.reading import Figure, finite, mapping

FIRST_CHOICE = ("cider", "accuracy")
"""Scores by which answers are told apart, where nobody asks for another: the one that captions are ranked by, and that of short answers."""


@dataclass(frozen=True)
class Said:
    """One run's answer to a sample.

    Attributes:
        score: on the metric that orders the page, as text.
        best: no other run did better, and some did worse.
        seen: the panorama with this run's views, where it has any.
    """

    run: str
    answer: str
    score: str
    best: bool
    seen: Panorama | None


@dataclass(frozen=True)
class Sample:
    """A sample with every run's answer."""

    id: str
    question: str
    references: list[str]
    said: list[Said]
    panorama: Panorama | None
    picture: str | None
    no_picture: str


@dataclass
class Side:
    """A run of the comparison, for the page.

    Attributes:
        label: letter and name.
        figures: metric -> its value on the split.
        gaps: metric -> its difference from the reference.
    """

    label: str
    entry: Any
    figures: Mapping[str, Figure]
    gaps: Mapping[str, Figure]
    result: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_comparison(comparison: Comparison, file: Path, metric: str | None = None) -> Path:
    """Write a comparison as one page.

    Args:
        comparison: with differences in every metric.
        metric: by which samples are ordered; None takes CIDEr where the samples carry it.
    """
    sides = [_side(letter, comparison, place) for place, letter in enumerate(_letters(len(comparison.entries)))]
    pictures = Pictures(Path.cwd())
    answered = [side for side in sides if side.rows]
    judge = _judge(answered, metric)
    samples, count = _samples(answered, judge, pictures) if len(answered) > 1 else ([], 0)
    metrics = list(dict.fromkeys(name for side in sides for name in side.figures))
    about = next((side.result for side in answered), {})
    page = environment().get_template("comparison.html.j2")
    text = page.render(
        comparison=comparison,
        sides=sides,
        metrics=metrics,
        directions={name: words.higher_is_better(name, about) if words.is_directed(name, about) else None for name in metrics},
        best=_best(sides, metrics, about),
        judge=judge,
        samples=samples[:OPEN_CARDS],
        more=samples[OPEN_CARDS:],
        num_samples=count,
        left_out=sum(sample.no_picture == LEFT_OUT for sample in samples),
        measure=next((side.result["views"]["measure"] for side in answered if _is_measured(side)), ""),
        panoramas=pictures,
        about=about,
    )
    write_atomically(file, text)
    return file


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(count)]


def _side(letter: str, comparison: Comparison, place: int) -> Side:
    entry = comparison.entries[place]
    result, rows = answers_of(entry.run, comparison.split)
    figures = {name: Figure(value.value, value.low, value.high) for name, value in entry.metrics.items()}
    gaps = {name: Figure(value.value, value.low, value.high) for name, value in entry.differences.items()}
    if kind_of(list(rows.values())) is not None or is_of_numbers(list(rows.values())):
        rows = {}  # labels and numbers are told apart by the table; their pictures stand in each run's own report
    return Side(letter, entry, figures, gaps, result, rows)


def _is_measured(side: Side) -> bool:
    return any("views" in row for row in side.rows.values())


def _judge(sides: Sequence[Side], metric: str | None) -> str:
    """The score that orders the page: one that every run's samples carry."""
    rows = [row for side in sides for row in side.rows.values()]
    common = [name for name in (mapping(rows[0].get("scores")) if rows else {}) if all(name in mapping(row.get("scores")) for row in rows)]
    wished = [name for name in (metric, *FIRST_CHOICE) if name in common]
    return (wished + common + [""])[0]


def _best(sides: Sequence[Side], metrics: Sequence[str], about: Mapping[str, Any]) -> dict[str, str]:
    """Metric -> the letter of the run that stands best."""
    found = {}
    for name in metrics:
        known = {side.label: value for side in sides if name in side.figures and (value := side.figures[name].value) is not None}
        if len(known) > 1 and words.is_directed(name, about):
            sign = 1 if words.higher_is_better(name, about) else -1
            first, second = sorted(known, key=lambda label: -sign * known[label])[:2]
            if known[first] != known[second]:
                found[name] = first
    return found


def _samples(sides: Sequence[Side], judge: str, pictures: Pictures) -> tuple[list[Sample], int]:
    """The samples that all runs answered: first where they differ most, then the worst; and how many there are."""
    shared = [id_ for id_ in sides[0].rows if all(id_ in side.rows for side in sides)]
    sign = 1 if words.higher_is_better(judge, sides[0].result) else -1
    scores = {id_: [sign * (_score(side, id_, judge) or 0.0) for side in sides] for id_ in shared}
    order = sorted(shared, key=lambda id_: (min(scores[id_]) - max(scores[id_]), sum(scores[id_])))
    spent, samples = 0, []
    for id_ in order[:MAX_CARDS]:
        sample = _sample(sides, id_, judge, scores[id_], pictures, small=spent < BUDGET)
        spent += len(sample.picture or "")
        samples.append(sample)
    return samples, len(shared)


def _score(side: Side, id_: str, judge: str) -> float | None:
    return finite(mapping(side.rows[id_].get("scores")).get(judge))


def _sample(sides: Sequence[Side], id_: str, judge: str, scores: Sequence[float], pictures: Pictures, *, small: bool) -> Sample:
    row = sides[0].rows[id_]
    key, uri, reason = None, None, LEFT_OUT
    if any(layout_of(side.result) for side in sides):
        key, reason = pictures.add(row.get("image"))
    elif small:
        uri, reason = thumbnail(row.get("image"), pictures.folder)
    said = []
    for side, score in zip(sides, scores, strict=True):
        answer = words.answer_text(mapping(side.rows[id_].get("answers")).get("model"))
        seen = panorama(key, layout_of(side.result), side.rows[id_]) if key is not None and layout_of(side.result) else None
        best = score == max(scores) > min(scores)
        said.append(Said(side.label, answer, words.number(_score(side, id_, judge)), best, seen))
    references = row.get("references")
    seen_by_any = sorted((item.seen for item in said if item.seen is not None), key=lambda seen: not seen.measured)
    return Sample(
        id=words.answer_text(id_),
        question=words.answer_text(row.get("prompt") or ""),
        references=[words.answer_text(item) for item in (references[:MAX_REFERENCES] if isinstance(references, list) else [])],
        said=said,
        panorama=next(iter(seen_by_any), None),
        picture=uri,
        no_picture=reason,
    )
