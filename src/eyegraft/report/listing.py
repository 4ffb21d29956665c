"""`<split>_report.md`: the scores of a label task, then every sample with its picture, to read in an editor or beside the code.

Pictures stand by reference, so the file stays small however many samples there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from eyegraft.files import write_atomically
from eyegraft.report import words
from eyegraft.report.label_view import CUT_COUNTS, CUT_METRICS, Cut, cuts_of, threshold_note
from eyegraft.report.labels import Answered, Group, Kind, grouped, kind_of
from eyegraft.report.reading import Figure, Run, figure, mapping


def write_listings(run: Run) -> list[Path]:
    """Write `<split>_report.md` for every evaluated split of a label task; each in one move."""
    written = []
    for name, rows in run.samples.items():
        kind = kind_of(rows)
        if kind is not None:
            target = run.folder / f"{name}_report.md"
            write_atomically(target, "\n".join(_lines(run, name, rows, kind)) + "\n")
            written.append(target)
    return written


def _lines(run: Run, name: str, rows: Sequence[Mapping[str, Any]], kind: Kind) -> Iterator[str]:
    info = run.evaluations[name]
    details = mapping(info.get("details"))
    groups, folder = grouped(rows, kind), run.folder.resolve()
    title = str(run.info.get("title") or run.info.get("recipe") or run.folder.name)
    yield f"# {_text(title)}: {_text(name)}"
    held_out = f", held out as {_text(info['held_out'])}" if info.get("held_out") else ""
    yield f"\n{words.counted(len(rows), 'sample')}{held_out}."
    conclusions = info.get("conclusions")
    if isinstance(conclusions, list) and conclusions:
        yield "\n" + "\n".join(f"- {_text(sentence)}" for sentence in conclusions)
    yield "\n## Metrics\n"
    yield from _metrics(info)
    cuts = cuts_of(details, info)
    if cuts:
        yield f"\n## Thresholds\n\n{_text(threshold_note(details, str(info.get('split') or name)))}\n"
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


def _metrics(info: Mapping[str, Any]) -> Iterator[str]:
    systems = {name: mapping(values) for name, values in mapping(info.get("systems")).items()}
    others = [name for name in systems if name != "model"]
    yield _row(["metric", "model", "95 % interval", *(_text(words.system_label(name)) for name in others)])
    yield _row(["---", "---:", "---:", *["---:"] * len(others)])
    for metric, value in systems.get("model", {}).items():
        direction = "↑" if words.higher_is_better(metric, info) else "↓"
        entries = [figure(systems[name].get(metric)) for name in others]
        cells = [words.score(entry.value) for entry in entries]
        yield _row([f"{_text(words.plain(metric))} {direction}", words.score(figure(value).value), _ends(figure(value)), *cells])


def _ends(entry: Figure) -> str:
    return f"{words.number(entry.low)} to {words.number(entry.high)}" if entry.known else "–"


def _thresholds(cuts: Sequence[Cut]) -> Iterator[str]:
    yield _row(["threshold", "value", *(words.plain(name) for name in CUT_METRICS), *(name.upper() for name in CUT_COUNTS)])
    yield _row(["---", *["---:"] * (1 + len(CUT_METRICS) + len(CUT_COUNTS))])
    for cut in cuts:
        name = f"{cut.name}{' (in use)' if cut.in_use else ''}"
        yield _row([_text(name), words.number(cut.threshold), *map(words.score, cut.values), *map(words.count, cut.counts)])


def _sample(answered: Answered, group: Group, folder: Path) -> Iterator[str]:
    yield f"\n#### {group.key} · {_code(answered.id)}\n"
    if answered.image is not None:
        yield f"![{_text(answered.id)}]({_link(answered.image, folder)})\n"
        yield f"- path: {_code(answered.image)}"
    else:
        yield "- path: none"
    yield f"- label: {_text(answered.label)}"
    yield f"- pred: {_text(answered.called)}"
    single = len(answered.probabilities) == 1
    numbers = [
        words.probability(value) if single else f"{_text(name)} {words.probability(value)}" for name, value in answered.probabilities
    ]
    yield f"- prob: {', '.join(numbers) or '–'}"
    yield f"- text: {_text(answered.text) or '(none)'}"
    if answered.shares:
        yield f"- weights: {', '.join(f'{_text(name)} {share:.2f}' for name, share in answered.shares.items())}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    """One line in which nothing is markup: what stands in a table or was read from a picture may look like Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|~$&])", r"\\\1", " ".join(str(value).split()))


def _code(value: str) -> str:
    """The text as code, within more backticks than it holds in a row."""
    line = " ".join(value.split("\n"))
    fence = "`" * (1 + max((len(found) for found in re.findall(r"`+", line)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _link(image: str, folder: Path) -> str:
    """A picture's address from the run folder (resolved), or a `file:` address where no relative path leads there (another Windows drive).

    Letters of every script stay readable; what Markdown or an address would trip over is percent-encoded.
    """
    path = folder / image  # an absolute path stands on its own
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_uri()
    return re.sub(r"[^\w/.~-]", lambda found: quote(found[0]), relative)
