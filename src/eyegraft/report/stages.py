"""A stage on the page: its curves, those of each of its tasks, what a pretraining changed in the features, and how its texts changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from eyegraft.report import charts
from eyegraft.report.reading import Stage, finite, mapping
from eyegraft.report.words import answer_text

MAX_TELLINGS = 6
"""Answers of one sample that the page shows; of more that differ, the first, the last and some between."""
MAX_SAMPLES = 40
"""Samples of one stage whose answers it shows."""
LIKENESS = {
    "val_cosine_overlap": "cosine of what two views see of the same place",
    "val_cosine_apart": "cosine of views that see nothing in common",
    "val_cosine_overlap_centred": "the first, less what all places share",
    "val_cosine_apart_centred": "the second, less what all places share",
    "val_feature_std": "spread of the features; 0: all places look alike",
}
"""Validation values of objectives over views -> what each is."""


@dataclass(frozen=True)
class Change:
    """One validation value before the first step and at the best checkpoint (or the last one known)."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Told:
    """What a sample was answered over the epochs.

    Attributes:
        answers: (`epoch 3`, `epochs 4 to 9`, answer).
    """

    id: str
    task: str
    prompt: str
    reference: str
    answers: list[tuple[str, str]]


@dataclass(frozen=True)
class StageView:
    """Curves and the trainable table of one stage, the charts in two widths."""

    name: str
    info: Mapping[str, Any]
    best: Mapping[str, Any]
    trainable: list[Mapping[str, Any]]
    loss_wide: Markup | None
    loss_narrow: Markup | None
    rate_wide: Markup | None
    rate_narrow: Markup | None
    tasks_wide: Markup | None
    tasks_narrow: Markup | None
    likeness: list[Change]
    told: list[Told]


def stage_view(stage: Stage) -> StageView:
    rows = stage.info.get("trainable")
    return StageView(
        name=stage.name,
        info=stage.info,
        best=mapping(stage.info.get("best")),
        trainable=[mapping(row) for row in rows] if isinstance(rows, list) else [],
        loss_wide=charts.loss_chart(stage, 660),
        loss_narrow=charts.loss_chart(stage, 330, 220),
        rate_wide=charts.learning_rate_chart(stage, 280),
        rate_narrow=charts.learning_rate_chart(stage, 330, 110),
        tasks_wide=charts.task_loss_chart(stage, tasks_of(stage), width=440, columns=2),
        tasks_narrow=charts.task_loss_chart(stage, tasks_of(stage), width=285, columns=1),
        likeness=likeness_of(stage),
        told=told_by(stage.samples),
    )


def tasks_of(stage: Stage) -> list[str]:
    """The tasks that the stage's rows give a loss of, in their order: more than one, or none."""
    found = [key.removeprefix("loss_") for row in stage.train for key in row if key.startswith("loss_")]
    found += [key.removeprefix("val_loss_") for row in stage.val for key in row if key.startswith("val_loss_")]
    names = list(dict.fromkeys(found))
    return names if len(names) > 1 else []


def likeness_of(stage: Stage) -> list[Change]:
    """Of a stage over views that was validated before its first step."""
    first = stage.val[0] if stage.val and stage.val[0]["step"] == 0 else {}
    best = finite(mapping(stage.info.get("best")).get("step"))
    last = next((row for row in stage.val if row["step"] == best), stage.val[-1] if stage.val else {})
    pairs = {name: (finite(first.get(name)), finite(last.get(name))) for name in LIKENESS} if last is not first else {}
    return [Change(name, before, after) for name, (before, after) in pairs.items() if before is not None and after is not None]


def told_by(rows: Sequence[Mapping[str, Any]]) -> list[Told]:
    """The sampled texts, sample by sample; an answer that stayed stands once."""
    by_sample: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_sample.setdefault((str(row.get("task")), str(row.get("id"))), []).append(row)
    return [_told(task, name, of_sample) for (task, name), of_sample in list(by_sample.items())[:MAX_SAMPLES]]


def _told(task: str, name: str, rows: Sequence[Mapping[str, Any]]) -> Told:
    runs: list[tuple[int, int, str]] = []  # first epoch, last epoch, answer
    for place, row in enumerate(rows):
        number = finite(row.get("epoch"))
        epoch, answer = place + 1 if number is None else round(number) + 1, answer_text(row.get("answer"))
        if runs and runs[-1][2] == answer:
            runs[-1] = (runs[-1][0], epoch, answer)
        else:
            runs.append((epoch, epoch, answer))
    shown = min(len(runs), MAX_TELLINGS)
    kept = [runs[round(place * (len(runs) - 1) / max(shown - 1, 1))] for place in range(shown)]
    answers = [(f"epoch {first}" if first == last else f"epochs {first} to {last}", answer) for first, last, answer in kept]
    return Told(name, task, answer_text(rows[-1].get("prompt") or ""), answer_text(rows[-1].get("reference")), answers)
