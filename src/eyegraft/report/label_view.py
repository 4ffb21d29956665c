"""What the page says of a label task beyond its scores: thresholds, confusion, calibration, what each input is worth, gates, cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from eyegraft.report import charts, words
from eyegraft.report.gallery import MAX_CARDS, PICTURE_BUDGET, thumbnail
from eyegraft.report.labels import Answered, Group, Kind, grouped, names_of, truth_of
from eyegraft.report.reading import figure, finite, mapping
from eyegraft.report.worths import Worth, worths_of

NUM_METRICS = 3
"""Metrics of the chart, the slices and the worth of an input: the first that the task names."""
MAX_CLASSES = 40
OPEN_LABEL_CARDS = 24
"""Cards of an outcome that stand open."""


@dataclass(frozen=True)
class Cut:
    """Scores of a split at one threshold."""

    name: str
    threshold: float | None
    in_use: bool
    values: list[float | None]
    counts: list[Any]


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and diagrams, before and after division of the logits by `temperature`."""

    temperature: float | None
    ece: float | None
    ece_before: float | None
    wide: Markup
    narrow: Markup

    @property
    def note(self) -> str:
        said = "Expected calibration error (ECE, lower is better) is the gap between what is said and what is so, mean over the samples."
        if self.temperature is None or self.temperature == 1:
            return f"{said} The probabilities are those of training: no temperature was chosen."
        chosen = f"The temperature {words.number(self.temperature)} was chosen on validation"
        return f"{said} {chosen}; it changes no order, so AUROC stays as it is."


@dataclass(frozen=True)
class ClassRow:
    """One class: how many samples have it, how many are called it, how many of both, and what it is most often taken for."""

    name: str
    labelled: int
    called: int
    hits: int
    taken_for: str


@dataclass(frozen=True)
class Shares:
    """How a gate divides itself between two modalities."""

    modality: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True)
class Shown:
    """A sample with its picture, or the reason why there is none."""

    sample: Answered
    picture: str | None
    no_picture: str


@dataclass(frozen=True)
class Shelf:
    """The cards of one outcome."""

    group: Group
    cards: list[Shown]


@dataclass(frozen=True)
class LabelView:
    """Everything that stands on the page of a label task only. What does not apply is empty or None."""

    template: ClassVar[str] = "labels.html.j2"
    notes: ClassVar[Mapping[str, str]] = words.LABEL_NOTES

    kind: Kind
    worths: list[Worth]
    cuts: list[Cut]
    cuts_note: str
    confusion: Mapping[str, Any]
    calibration: Calibration | None
    shares: Shares | None
    classes: list[ClassRow]
    num_classes: int
    shelves: list[Shelf]
    reads_text: bool


def label_view(rows: Sequence[Mapping[str, Any]], info: Mapping[str, Any], metrics: Sequence[str], kind: Kind, folder: Path) -> LabelView:
    """Args:
    rows: lines of the samples file.
    info: the evaluation of the split.
    metrics: the first ones, by which inputs are compared.
    folder: the run, to which relative picture paths refer.
    """
    details = mapping(info.get("details"))
    groups = grouped(rows, kind)
    classes = [] if kind == "binary" else _classes(rows, kind)
    return LabelView(
        kind=kind,
        worths=worths_of(info, metrics),
        cuts=cuts_of(details, info),
        cuts_note=threshold_note(details, str(info.get("split") or "this split")),
        confusion=mapping(details.get("confusion")),
        calibration=_calibration(mapping(details.get("calibration"))),
        shares=_shares([answered for group in groups for answered in group.answered]),
        classes=classes[:MAX_CLASSES],
        num_classes=len(classes),
        shelves=_shelves(groups, folder),
        reads_text=any(answered.text.strip() for group in groups for answered in group.answered),
    )


CUT_METRICS, CUT_COUNTS = ("accuracy", "precision", "recall", "f1"), ("fp", "fn", "tp", "tn")


def threshold_note(details: Mapping[str, Any], split: str) -> str:
    """Who chose the thresholds: a result at a threshold that its own samples chose would look better than it is."""
    if not mapping(details.get("chosen_on_validation")):
        return "Validation chose no threshold."
    if split == "val":
        return "Chosen on these very samples: the scores at these thresholds look better than they are."
    return f"Chosen on validation alone and applied to {split}: no threshold was tried on these samples."


def cuts_of(details: Mapping[str, Any], info: Mapping[str, Any]) -> list[Cut]:
    """The threshold in use, then those that validation chose."""
    used, model = finite(details.get("threshold")), mapping(mapping(info.get("systems")).get("model"))
    chosen = {name: mapping(entry) for name, entry in mapping(details.get("chosen_on_validation")).items()}
    found = [
        Cut(f"best {words.plain(name)} on validation", finite(entry.get("threshold")), finite(entry.get("threshold")) == used,
            [finite(entry.get(metric)) for metric in CUT_METRICS], [entry.get(count) for count in CUT_COUNTS])
        for name, entry in chosen.items()
    ]  # fmt: skip
    if used is not None and not any(cut.in_use for cut in found):
        values = [figure(model.get(metric)).value for metric in CUT_METRICS]
        name = "default until validation chooses" if isinstance(details.get("threshold_by"), str) else "set in the recipe"
        found.insert(0, Cut(name, used, True, values, [mapping(details.get("confusion")).get(count) for count in CUT_COUNTS]))
    return found


def _calibration(entry: Mapping[str, Any]) -> Calibration | None:
    after, before = (_bins(entry.get(name)) for name in ("reliability", "reliability_before"))
    if not after:
        return None
    temperature, ece, ece_before = (finite(entry.get(name)) for name in ("temperature", "ece", "ece_before"))
    panels = [("model", f"ECE {words.number(ece)}", after)]
    if temperature not in (None, 1.0) and before:
        named = f"temperature {words.number(temperature)}: ECE {words.number(ece)}"
        panels = [("raw", f"as trained: ECE {words.number(ece_before)}", before), ("model", named, after)]
    return Calibration(
        temperature, ece, ece_before, charts.reliability_chart(panels, 400, columns=2), charts.reliability_chart(panels, 285, columns=1)
    )


def _bins(value: Any) -> list[dict[str, float | None]]:
    rows = [mapping(row) for row in value] if isinstance(value, list) else []
    names = ("low", "high", "count", "mean_probability", "frequency", "low_ci", "high_ci")
    return [{name: finite(row.get(name)) for name in names} for row in rows if finite(row.get("frequency")) is not None]


def _shares(answered: Sequence[Answered]) -> Shares | None:
    weighed = [sample for sample in answered if len(sample.shares) > 1]
    if not weighed:
        return None
    modality = next(iter(weighed[0].shares))
    parts = {
        "right": [sample for sample in weighed if sample.right],
        "wrong": [sample for sample in weighed if sample.right is False],
        "with a text": [sample for sample in weighed if sample.text.strip()],
        "without a text": [sample for sample in weighed if not sample.text.strip()],
    }
    if not parts["without a text"] or not parts["with a text"]:  # one of them is everything
        parts = {name: parts[name] for name in ("right", "wrong")}
    series = {name: [sample.shares.get(modality, 0.0) for sample in part] for name, part in parts.items() if part}
    return Shares(modality, charts.share_chart(series, modality, 400, columns=2), charts.share_chart(series, modality, 285, columns=1))


def _classes(rows: Sequence[Mapping[str, Any]], kind: Kind) -> list[ClassRow]:
    """The classes that are found least first. What a class is taken for is asked only where there is one answer a sample."""
    labelled, called, hits, mistaken = Counter[str](), Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    models = [mapping(mapping(row.get("answers")).get("model")) for row in rows]
    known = {name for model in models for name in mapping(model.get("probabilities"))}
    no_class = {"none"} - known if kind == "multi_label" else set()  # a row without a readable answer does not say its classes
    for row, model in zip(rows, models, strict=True):
        answers = set(names_of(model.get("label")))
        truth = set(truth_of(row, kind)) - no_class
        labelled.update(truth)
        called.update(answers)
        hits.update(truth & answers)
        if kind == "multi_class" and len(truth) == len(answers) == 1 and truth != answers:
            mistaken[next(iter(truth)), next(iter(answers))] += 1
    taken: dict[str, str] = {}
    for (name, other), count in mistaken.most_common():
        taken.setdefault(name, f"{other} ({count})")
    names = dict.fromkeys([*labelled, *called])
    found = [ClassRow(name, labelled[name], called[name], hits[name], taken.get(name, "")) for name in names]
    return sorted(found, key=lambda row: (row.hits / row.labelled if row.labelled else 1.0, row.name))


def _shelves(groups: Sequence[Group], folder: Path) -> list[Shelf]:
    """The first samples of every group, with pictures as long as the budget lasts: errors come first, so they have them."""
    spent, shelves = 0, []
    for group in groups:
        cards = []
        for sample in group.answered[: MAX_CARDS // len(groups)]:
            if spent >= PICTURE_BUDGET:
                cards.append(Shown(sample, None, "picture left out"))
                continue
            picture, reason = thumbnail(sample.image, folder)
            spent += len(picture or "")
            cards.append(Shown(sample, picture, reason))
        shelves.append(Shelf(group, cards))
    return shelves
