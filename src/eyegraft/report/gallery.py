"""The gallery: samples with the worst errors first, each with its picture, its answers and its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from eyegraft.report.panorama import LEFT_OUT, Panorama, Pictures, layout_of, panorama
from eyegraft.report.pictures import picture_uri
from eyegraft.report.reading import finite, mapping
from eyegraft.report.words import SYSTEM_NOTES, answer_text, higher_is_better, is_directed, number, plain, system_label

MAX_CARDS = 240
"""Samples that a split shows; the rest stays in its samples file."""
OPEN_CARDS = 60
"""Samples shown before the reader asks for more."""
MAX_REFERENCES = 5
THUMBNAIL_PX = 160
PICTURE_BUDGET = 2_000_000
"""Characters of embedded pictures per split; later cards go without, so that the page can be sent by mail."""


@dataclass
class Card:
    """One sample as the page shows it.

    Attributes:
        right: whether the answer counts as right, None where no score of the sample is a plain yes or no.
        question: what the sample itself asks.
        picture: data URI, or None with the reason in `no_picture`.
        panorama: in place of it, where the model saw views of one.
        others: (label, answer) of the baselines.
        scores: (name, value) as text, the sorting metric first.
    """

    id: str
    answer: str
    references: list[str]
    right: bool | None
    others: list[tuple[str, str]]
    scores: list[tuple[str, str]]
    question: str = ""
    picture: str | None = None
    no_picture: str = ""
    panorama: Panorama | None = None


@dataclass
class Gallery:
    """The cards of a split and what was left out of them.

    Attributes:
        panoramas: the cards have panoramas in place of pictures.
        measure: what a view's worth is; empty where none was measured.
    """

    template: ClassVar[str] = "texts.html.j2"
    notes: ClassVar[Mapping[str, str]] = SYSTEM_NOTES

    metric: str = ""
    cards: list[Card] = field(default_factory=list)
    num_samples: int = 0
    num_wrong: int | None = None
    num_over_budget: int = 0
    panoramas: bool = False
    measure: str = ""

    @property
    def open_cards(self) -> list[Card]:
        return self.cards[:OPEN_CARDS]

    @property
    def more_cards(self) -> list[Card]:
        return self.cards[OPEN_CARDS:]


def build_gallery(
    rows: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any], metrics: Sequence[str], folder: Path, pictures: Pictures
) -> Gallery:
    """Order the samples from worst to best and embed the pictures of the first.

    Args:
        rows: lines of the samples file.
        metrics: names in the order of the evaluation; the first that the samples carry sorts them, the others break ties.
        folder: the run, to which relative picture paths refer.
        pictures: the panoramas of the page, to which these are added.
    """
    carried = list(dict.fromkeys(name for row in rows for name in mapping(row.get("scores"))))
    known = [name for name in metrics if name in carried] + [name for name in carried if name not in metrics]
    order = [name for name in known if is_directed(name, evaluation)]
    judge = _yes_or_no(rows, [name for name in order if higher_is_better(name, evaluation)])
    ranked = sorted(rows, key=lambda row: _badness(row, order, evaluation))
    gallery = Gallery(metric=order[0] if order else "", num_samples=len(rows))
    if judge is not None:
        gallery.num_wrong = sum(mapping(row.get("scores")).get(judge) == 0 for row in rows)
    spent, layout = 0, layout_of(evaluation)
    if layout:
        gallery.panoramas = True
        measured = any("views" in row for row in rows)
        gallery.measure = str(mapping(evaluation.get("views")).get("measure") or "") if measured else ""
    for row in ranked[:MAX_CARDS]:
        card = _card(row, order, judge)
        if gallery.panoramas:
            key, card.no_picture = pictures.add(row.get("image"))
            card.panorama = panorama(key, layout, row) if key is not None else None
            gallery.num_over_budget += card.no_picture == LEFT_OUT
        elif spent >= PICTURE_BUDGET:
            card.no_picture, gallery.num_over_budget = LEFT_OUT, gallery.num_over_budget + 1
        else:
            card.picture, card.no_picture = thumbnail(row.get("image"), folder)
            spent += len(card.picture or "")
        gallery.cards.append(card)
    return gallery


def thumbnail(image: Any, folder: Path) -> tuple[str | None, str]:
    """A picture of at most `THUMBNAIL_PX` a side as a data URI, or None and the reason."""
    return picture_uri(image, folder, (THUMBNAIL_PX, THUMBNAIL_PX), quality=72)


def _yes_or_no(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str | None:
    """The first metric whose values are all 0 or 1: it says right or wrong without a threshold of ours."""
    for name in order:
        if all(mapping(row.get("scores")).get(name) in (0, 1) for row in rows):
            return name
    return None


def _badness(row: Mapping[str, Any], order: Sequence[str], evaluation: Mapping[str, Any]) -> tuple[float, ...]:
    scores = mapping(row.get("scores"))
    values = ((finite(scores.get(name)), higher_is_better(name, evaluation)) for name in order)
    # a sample without a score comes first: it is the one to look at
    return tuple(-math.inf if value is None else value if higher else -value for value, higher in values)


def _card(row: Mapping[str, Any], order: Sequence[str], judge: str | None) -> Card:
    answers, scores = mapping(row.get("answers")), mapping(row.get("scores"))
    references = row.get("references")
    return Card(
        id=answer_text(row.get("id")),
        answer=answer_text(answers.get("model")),
        references=[answer_text(item) for item in (references[:MAX_REFERENCES] if isinstance(references, list) else [references])],
        right=None if judge is None else scores.get(judge) == 1,
        others=[(system_label(name).lower(), answer_text(value)) for name, value in answers.items() if name != "model"],
        scores=[(plain(name), number(scores[name])) for name in order if name in scores],
        question=answer_text(row.get("prompt") or ""),
    )
