"""What the listing says of a label task beyond its metrics: thresholds, confusion, and every sample with its picture by reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from eyegraft.report import markdown as md
from eyegraft.report import words
from eyegraft.report.label_view import CUT_COUNTS, CUT_METRICS, Cut, cuts_of, threshold_note
from eyegraft.report.labels import Answered, Group, Kind, grouped
from eyegraft.report.reading import Run, mapping


def label_lines(run: Run, name: str, kind: Kind) -> Iterator[str]:
    """Of the evaluation `name`."""
    info = run.evaluations[name]
    details = mapping(info.get("details"))
    groups, folder = grouped(run.samples[name], kind), run.folder.resolve()
    cuts = cuts_of(details, info)
    if cuts:
        yield f"\n## Thresholds\n\n{md.text(threshold_note(details, str(info.get('split') or name)))}\n"
        yield from _thresholds(cuts)
    confusion = mapping(details.get("confusion"))
    if confusion:
        cell = {key: words.count(confusion.get(key)) for key in CUT_COUNTS}
        yield "\n## Confusion\n\n| | called true | called false |\n| --- | ---: | ---: |"
        yield f"| labelled true | {cell['tp']} TP | {cell['fn']} FN |\n| labelled false | {cell['fp']} FP | {cell['tn']} TN |"
    yield "\n## Samples\n\nThe largest errors first; right answers begin with those that were nearly wrong."
    for group in groups:
        yield f"\n### {group.title}: {words.count(len(group.answered))}\n\n{group.meaning[0].upper()}{group.meaning[1:]}."
        for answered in group.answered:
            yield from _sample(answered, group, folder)


def _thresholds(cuts: Sequence[Cut]) -> Iterator[str]:
    yield md.row(["threshold", "value", *(words.plain(name) for name in CUT_METRICS), *(name.upper() for name in CUT_COUNTS)])
    yield md.row(["---", *["---:"] * (1 + len(CUT_METRICS) + len(CUT_COUNTS))])
    for cut in cuts:
        name = f"{cut.name}{' (in use)' if cut.in_use else ''}"
        yield md.row([md.text(name), words.number(cut.threshold), *map(words.score, cut.values), *map(words.count, cut.counts)])


def _sample(answered: Answered, group: Group, folder: Path) -> Iterator[str]:
    yield f"\n#### {group.key} · {md.code(answered.id)}\n"
    if answered.image is not None:
        yield f"![{md.text(answered.id)}]({md.link(answered.image, folder)})\n"
        yield f"- path: {md.code(answered.image)}"
    else:
        yield "- path: none"
    yield f"- label: {md.text(answered.label)}"
    yield f"- pred: {md.text(answered.called)}"
    single = len(answered.probabilities) == 1
    numbers = [
        words.probability(value) if single else f"{md.text(name)} {words.probability(value)}" for name, value in answered.probabilities
    ]
    yield f"- prob: {', '.join(numbers) or '–'}"
    yield f"- text: {md.text(answered.text) or '(none)'}"
    if answered.shares:
        yield f"- weights: {', '.join(f'{md.text(name)} {share:.2f}' for name, share in answered.shares.items())}"
