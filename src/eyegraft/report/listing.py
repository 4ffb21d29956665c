"""`<split>_report.md`: the scores of a task of labels or numbers and its samples, to read in an editor or beside the code.

Of labels every sample stands there, with its picture by reference; of numbers, which come by the ten thousand, the largest errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eyegraft.files import write_atomically
from eyegraft.report import markdown as md
from eyegraft.report import words
from eyegraft.report.label_listing import label_lines
from eyegraft.report.labels import kind_of
from eyegraft.report.number_listing import number_lines
from eyegraft.report.numbers import is_of_numbers
from eyegraft.report.reading import Run, figure, mapping


def write_listings(run: Run) -> list[Path]:
    """Write `<split>_report.md` for every evaluated split of a task of labels or numbers; each in one move."""
    written = []
    for name, rows in run.samples.items():
        kind = kind_of(rows)
        if kind is None and not is_of_numbers(rows):
            continue
        own = number_lines(run, name) if kind is None else label_lines(run, name, kind)
        target = run.folder / f"{name}_report.md"
        write_atomically(target, "\n".join([*_head(run, name), *own]) + "\n")
        written.append(target)
    return written


def _head(run: Run, name: str) -> Iterator[str]:
    info = run.evaluations[name]
    title = str(run.info.get("title") or run.info.get("recipe") or run.folder.name)
    yield f"# {md.text(title)}: {md.text(name)}"
    if info.get("simulated") is True:
        yield "\nSimulated data: measured on what a simulation made, not on the world."
    held_out = f", held out as {md.text(info['held_out'])}" if info.get("held_out") else ""
    yield f"\n{words.counted(len(run.samples[name]), 'sample')}{held_out}."
    conclusions = info.get("conclusions")
    if isinstance(conclusions, list) and conclusions:
        yield "\n" + "\n".join(f"- {md.text(sentence)}" for sentence in conclusions)
    yield "\n## Metrics\n"
    yield from _metrics(info)


def _metrics(info: Mapping[str, Any]) -> Iterator[str]:
    systems = {name: mapping(values) for name, values in mapping(info.get("systems")).items()}
    others = [name for name in systems if name != "model"]
    yield md.row(["metric", "model", "95 % interval", *(md.text(words.system_label(name)) for name in others)])
    yield md.row(["---", "---:", "---:", *["---:"] * len(others)])
    for metric, value in systems.get("model", {}).items():
        direction = "" if not words.is_directed(metric, info) else " ↑" if words.higher_is_better(metric, info) else " ↓"
        entries = [figure(systems[name].get(metric)) for name in others]
        cells = [words.score(entry.value) for entry in entries]
        yield md.row([f"{md.text(words.plain(metric))}{direction}", words.score(figure(value).value), words.ends(figure(value)), *cells])
