"""What the listing says of a task of numbers beyond its metrics: intervals, parts of the split, stations, the largest errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from eyegraft.evaluation.conclusions import is_damage
from eyegraft.report import markdown as md
from eyegraft.report import words
from eyegraft.report.number_view import facts_of, levels_note, levels_of, percent, worst_first
from eyegraft.report.numbers import MODEL, Numbers, Station, read_numbers, stations
from eyegraft.report.reading import Run, figure, finite, mapping
from eyegraft.report.slices import Slice, in_order, slices_of

NUM_ROWS = 100
"""Samples that the listing names."""


def number_lines(run: Run, name: str) -> Iterator[str]:
    """Of the evaluation `name`."""
    info, numbers = run.evaluations[name], read_numbers(run.samples[name])
    details = mapping(info.get("details"))
    if not len(numbers):
        yield "\nNo sample has a readable number."
        return
    unit = f" ({md.text(numbers.unit)})" if numbers.unit else ""
    if (floor := finite(info.get("noise_floor"))) is not None:
        yield f"\nNoise floor {words.number(floor)}{unit}: the noise that the simulation put on these rows."
    known = levels_of(run, name, numbers)
    note = levels_note(details, known, figure(mapping(mapping(info.get("systems")).get(MODEL)).get("interval_coverage")))
    if note:
        yield f"\n## Intervals\n\n{md.text(note)}\n"
    if known:
        yield from md.table(
            ["level", "holds the truth", f"mean width{unit}"],
            [[percent(level.nominal), percent(level.measured), words.fixed(level.width, numbers.decimals)] for level in known],
        )
    found = stations(numbers, details)
    if found:
        yield f"\n## Stations\n\n{words.counted(len(found), 'station')}, the largest RMSE first.\n"
        yield from md.table(
            ["station", "samples", f"RMSE{unit}", f"bias{unit}", f"MAE{unit}", "inside the interval", "°N", "°E"],
            [_station(station, numbers.decimals + 1) for station in found],
        )
    yield from _slices(info, drop="station" if found else "")
    yield f"\n## Largest errors\n\n{_chosen(len(numbers))} Errors are answer less truth{unit}.\n"
    yield from _rows(numbers)


def _chosen(count: int) -> str:
    return f"The {NUM_ROWS} largest of {words.counted(count, 'sample')}." if count > NUM_ROWS else "Every sample, the largest error first."


def _station(station: Station, digits: int) -> list[str]:
    errors = [words.fixed(station.rmse, digits), words.fixed(station.bias, digits, signed=True), words.fixed(station.mae, digits)]
    inside = "–" if station.coverage is None else percent(station.coverage)
    return [md.text(station.station), words.count(station.count), *errors, inside, words.fixed(station.lat, 3), words.fixed(station.lon, 3)]


def _slices(info: Mapping[str, Any], drop: str) -> Iterator[str]:
    metric = next(iter(mapping(mapping(info.get("systems")).get(MODEL))), None)
    if metric is None:
        return
    for column, rows in slices_of(info, [metric]).items():
        if column == drop:
            continue
        yield f"\n## By {md.text(words.plain(column))}\n"
        yield from md.table(
            [md.text(words.plain(column)), "samples", md.text(words.plain(metric)), "95 % interval", "best baseline", "its value"],
            [_part(row) for row in in_order(rows)],
        )


def _part(row: Slice) -> list[str]:
    model = row.figures[0]
    rival = [md.text(row.rival) or "–", words.score(row.rival_figure.value)]
    return [md.text(row.value or "(empty)"), words.count(row.num_samples), words.score(model.value), words.ends(model), *rival]


def _rows(numbers: Numbers) -> Iterator[str]:
    systems, digits = [system for system in numbers.others if not is_damage(system)], numbers.decimals
    rows = []
    for place in worst_first(numbers)[:NUM_ROWS].tolist():
        row, low, high = numbers.rows[place], float(numbers.low[place]), float(numbers.high[place])
        interval = f"{words.fixed(low, digits)} to {words.fixed(high, digits)}" if np.isfinite(low) and np.isfinite(high) else "–"
        rows.append(
            [
                md.text(words.answer_text(row.get("id"))),
                words.fixed(float(numbers.errors[place]), digits, signed=True),
                words.fixed(float(numbers.truth[place]), digits),
                words.fixed(float(numbers.answer[place]), digits),
                interval,
                *(words.fixed(float(numbers.others[system][place]), digits) for system in systems),
                md.text(", ".join(facts_of(row))),
            ]
        )
    heads = [md.text(words.system_label(system).lower()) for system in systems]
    yield from md.table(["sample", "error", "truth", "answer", "interval", *heads, "where and when"], rows, left_last=True)
