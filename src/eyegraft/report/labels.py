"""Rows of a label task: what was called against the label, how sure the model was, and in which order samples are shown.

The same order stands on the page and in the listing: false positives, false negatives, true positives, true negatives, or, of several
classes, wrong before right. The largest errors come first, so right answers start with those that were nearly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eyegraft.report.reading import finite, mapping
from eyegraft.report.words import answer_text, probability, system_label

Kind = Literal["binary", "multi_class", "multi_label"]

POSITIVE = "true"
"""What a yes-or-no task calls the class that its probability is of."""

UNSCORED = "?"

_GROUPS: Mapping[Kind, Mapping[str, tuple[str, str]]] = {
    "binary": {
        "FP": ("False positives", "called true, labelled false"),
        "FN": ("False negatives", "called false, labelled true"),
        "TP": ("True positives", "called true, rightly"),
        "TN": ("True negatives", "called false, rightly"),
    },
    "multi_class": {"wrong": ("Wrong", "another class was called"), "right": ("Right", "the class of the label was called")},
    "multi_label": {"wrong": ("Wrong", "a label is missing or too many"), "right": ("Right", "exactly the labels were called")},
}


@dataclass(frozen=True)
class Answered:
    """One sample of a label task.

    Attributes:
        image: path as the evaluation wrote it, None where the row has no picture.
        label, called: in words; of several labels, all of them.
        probabilities: (class, probability) of the classes that matter here: of `true`, or of those called and those labelled.
        error: how wrong it is, in [0, 1]: the distance from the label, or the certainty of a wrong class.
        shares: modality -> share of a gated fusion, empty without one.
        alone: (system, what it said) of the model with one modality only.
    """

    id: str
    image: str | None
    text: str
    label: str
    called: str
    probabilities: list[tuple[str, float]]
    right: bool | None
    error: float
    shares: Mapping[str, float]
    alone: list[tuple[str, str]]


@dataclass(frozen=True)
class Group:
    """Samples with the same outcome, the largest error first."""

    key: str
    title: str
    meaning: str
    answered: list[Answered]

    @property
    def anchor(self) -> str:
        return "unscored" if self.key == UNSCORED else self.key.lower()

    @property
    def is_error(self) -> bool:
        return bool(self.answered) and self.key in ("FP", "FN", "wrong", UNSCORED)


def kind_of(rows: Sequence[Mapping[str, Any]]) -> Kind | None:
    """Which kind of label task wrote these rows; None for any other task."""
    for row in rows:
        answer = mapping(mapping(row.get("answers")).get("model"))
        if "label" in answer:
            if "probability" in answer:
                return "binary"
            return "multi_label" if isinstance(answer["label"], list) else "multi_class"
    return None


def grouped(rows: Sequence[Mapping[str, Any]], kind: Kind) -> list[Group]:
    """All samples by outcome. A group without samples stays, so that its zero is said; unscored rows, if any, come first."""
    found: dict[str, list[Answered]] = {key: [] for key in (UNSCORED, *_GROUPS[kind])}
    for row in rows:
        answered = read_answer(row, kind)
        found[_outcome(answered, kind)].append(answered)
    unscored = {UNSCORED: ("Not scored", "no readable answer or score")} if found[UNSCORED] else {}
    return [
        Group(key, title, meaning, sorted(found[key], key=lambda answered: -answered.error))
        for key, (title, meaning) in {**unscored, **_GROUPS[kind]}.items()
    ]


def read_answer(row: Mapping[str, Any], kind: Kind) -> Answered:
    """A row of the samples file. Whether it is right is what the metrics of the task said, so no label is read a second time here."""
    answers, scores = mapping(row.get("answers")), mapping(row.get("scores"))
    answer = mapping(answers.get("model"))
    truth, called = truth_of(row, kind), names_of(answer.get("label"))
    judged = finite(scores.get("exact_match" if kind == "multi_label" else "accuracy"))
    right = None if judged is None or not answer else judged == 1
    alone = [(system_label(name), _in_short(mapping(answers[name]))) for name in ("absent_text", "absent_image") if name in answers]
    image = row.get("image")
    return Answered(
        id=answer_text(row.get("id")),
        image=image if isinstance(image, str) and image else None,
        text=str(row.get("text") or ""),
        label=", ".join(truth) or "none",
        called=", ".join(called) or ("none" if answer else "–"),
        probabilities=_probabilities(answer, [*called, *truth]),
        right=right,
        error=_error(answer, truth, called, right, kind),
        shares={str(name): share for name, value in mapping(answer.get("weights")).items() if (share := finite(value)) is not None},
        alone=alone,
    )


def truth_of(row: Mapping[str, Any], kind: Kind) -> list[str]:
    """The labels of a row. Of several, `none` is no label unless a class has that name."""
    names = names_of(row.get("references"))
    classes = mapping(mapping(mapping(row.get("answers")).get("model")).get("probabilities"))
    return [name for name in names if name in classes] if kind == "multi_label" and classes else names


def names_of(value: Any) -> list[str]:
    """A label, or a list of them, as a list."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return [] if value is None else [str(value)]


def _outcome(answered: Answered, kind: Kind) -> str:
    if answered.right is None:
        return UNSCORED
    if kind != "binary":
        return "right" if answered.right else "wrong"
    return ("T" if answered.right else "F") + ("P" if answered.called == POSITIVE else "N")


def _probabilities(answer: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, float]]:
    if (single := finite(answer.get("probability"))) is not None:
        return [(POSITIVE, single)]
    table = mapping(answer.get("probabilities"))
    return [(name, value) for name in dict.fromkeys(names) if (value := finite(table.get(name))) is not None]


def _error(answer: Mapping[str, Any], truth: Sequence[str], called: Sequence[str], right: bool | None, kind: Kind) -> float:
    if right is None:
        return 0.0
    if kind == "binary":
        positive = finite(answer.get("probability")) or 0.0
        return positive if (called == [POSITIVE]) != right else 1 - positive
    table = {name: number for name, value in mapping(answer.get("probabilities")).items() if (number := finite(value)) is not None}
    if kind == "multi_class":
        certainty = table.get(called[0], 0.0) if called else 0.0
        return 1 - certainty if right else certainty
    judged = table if right else set(truth) ^ set(called)
    return max((abs(table.get(name, 0.0) - (name in truth)) for name in judged), default=0.0)


def _in_short(answer: Mapping[str, Any]) -> str:
    """The probability of `true`, or what was called with its own."""
    if "probability" in answer:
        return f"p({POSITIVE}) {probability(answer['probability'])}"
    called = names_of(answer.get("label"))
    return ", ".join(f"{name} {probability(value)}" for name, value in _probabilities(answer, called)) or "none"
