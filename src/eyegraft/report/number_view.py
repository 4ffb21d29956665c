"""What the page says of a task of numbers beyond its scores: where it errs, by how much, how wide its intervals are, maps and cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup

from eyegraft.evaluation.conclusions import is_damage
from eyegraft.report import words
from eyegraft.report.gallery import thumbnail
from eyegraft.report.number_charts import Panel, panels_of, slice_chart
from eyegraft.report.numbers import MODEL, Level, Numbers, Rows, Station, levels, read_numbers, station_of, stations, tenths
from eyegraft.report.patch_pictures import GRADIENT, PatchPictures, Picture, is_patch
from eyegraft.report.reading import Figure, Run, figure, finite, mapping
from eyegraft.report.slices import Slice, in_order, slices_of
from eyegraft.report.station_map import StationMap, station_maps
from eyegraft.report.worths import Worth, worths_of

NUM_WORST, NUM_OPEN, NUM_OTHERS = 24, 9, 6
"""Cards of the largest errors, those of them that stand open, and cards drawn at random or of the smallest errors."""
NUM_LISTED_STATIONS = 12
"""Stations of the table that stand open."""
MAX_STATIONS = 400
_MAX_META = 4


@dataclass(frozen=True)
class Card:
    """One sample. Numbers are texts already, in as many digits as mean something.

    Attributes:
        inside: whether the interval holds the truth; None without one.
        facts: station, time, ground and the like.
        others: (system, answer, error) of the baselines; those that are the model itself with an input damaged are left out.
    """

    id: str
    truth: str
    answer: str
    error: str
    interval: str
    inside: bool | None
    facts: list[str]
    text: str
    others: list[tuple[str, str, str]]
    pictures: list[Picture]
    no_picture: str


@dataclass(frozen=True)
class Shelf:
    """Cards that were chosen in one way."""

    anchor: str
    title: str
    meaning: str
    cards: list[Card]


@dataclass(frozen=True)
class SliceView:
    """A column with a row for each of its values, drawn where there is more than one."""

    column: str
    rows: list[Slice]
    wide: Markup | None
    narrow: Markup | None
    has_rivals: bool


@dataclass(frozen=True)
class NumberView:
    """Everything that stands on the page of a task of numbers only. What does not apply is empty or None."""

    template: ClassVar[str] = "numbers.html.j2"
    notes: ClassVar[Mapping[str, str]] = words.NUMBER_NOTES
    colours_of_heat: ClassVar[str] = GRADIENT
    num_open: ClassVar[int] = NUM_OPEN

    unit: str
    metric: str
    decimals: int
    num_unread: int
    panels: list[Panel]
    residuals_note: str
    rival: str
    levels: list[Level]
    levels_note: str
    maps: list[StationMap]
    stations: list[Station]
    slices: list[SliceView]
    worths: list[Worth]
    shelves: list[Shelf] = field(default_factory=list)

    @property
    def listed(self) -> list[Station]:
        return self.stations[:NUM_LISTED_STATIONS]

    @property
    def unlisted(self) -> list[Station]:
        return self.stations[NUM_LISTED_STATIONS:MAX_STATIONS]

    @property
    def has_coverage(self) -> bool:
        return any(station.coverage is not None for station in self.stations)

    @property
    def has_patches(self) -> bool:
        return any(picture.caption for shelf in self.shelves for card in shelf.cards for picture in card.pictures)


def number_view(run: Run, name: str, metrics: Sequence[str], rival: str | None) -> NumberView:
    """Args:
    name: of the evaluation.
    metrics: the first ones of the task; the first of all is what slices are drawn by.
    rival: the best baseline by it.
    """
    info, numbers = run.evaluations[name], read_numbers(run.samples[name])
    details = mapping(info.get("details"))
    known = levels_of(run, name, numbers)
    found = stations(numbers, details) if len(numbers) else []
    metric = metrics[0] if metrics else ""
    columns = slices_of(info, metrics)
    if found:
        columns.pop("station", None)  # the map and its table show them all
    return NumberView(
        unit=numbers.unit,
        metric=metric,
        decimals=numbers.decimals if len(numbers) else 2,
        num_unread=numbers.num_unread,
        panels=panels_of(numbers, tenths(numbers), known, rival) if len(numbers) else [],
        residuals_note=_residuals_note(numbers),
        rival=words.system_label(rival).lower() if rival else "",
        levels=known,
        levels_note=levels_note(details, known, figure(mapping(mapping(info.get("systems")).get(MODEL)).get("interval_coverage"))),
        maps=station_maps(found, numbers.unit),
        stations=found,
        slices=[_slice_view(column, rows, numbers.unit, metric) for column, rows in columns.items()],
        worths=worths_of(info, metrics),
        shelves=shelves_of(numbers, run.folder) if len(numbers) else [],
    )


def levels_of(run: Run, name: str, numbers: Numbers) -> list[Level]:
    """Coverage of the intervals, at several levels where the rows of validation lie in the run, answered by the same checkpoint."""
    if not len(numbers):
        return []
    info, val = run.evaluations[name], run.evaluations.get("val", {})
    same = mapping(info.get("checkpoint")).get("sha256") == mapping(val.get("checkpoint")).get("sha256")
    rows = run.samples.get("val", []) if same and info.get("split") != "val" and name != "val" else []
    calibration = read_numbers(rows) if rows else None
    nominal = finite(mapping(mapping(info.get("details")).get("intervals")).get("level"))
    return levels(numbers, nominal, calibration if calibration is not None and len(calibration) else None)


def levels_note(details: Mapping[str, Any], known: Sequence[Level], coverage: Figure) -> str:
    """Whether the intervals keep their word on this split, and what they are made of."""
    entry = mapping(details.get("intervals"))
    if entry.get("none_because"):
        return f"There are no intervals: {entry['none_because']}."
    used = next((level for level in known if level.in_use), None)
    if used is None:
        return ""
    said = f"Intervals of {percent(used.nominal)} hold the truth in {percent(used.measured)} of the samples"
    if coverage.low is not None and coverage.high is not None:
        said += f" (95 % interval {percent(coverage.low)} to {percent(coverage.high)})"
        if coverage.high < used.nominal:
            said += ", fewer than they say: rows of this kind are harder than those of validation"
        elif coverage.low > used.nominal:
            said += ", more than they say: they could be narrower here"
    source = words.counted(entry["num_samples"], "validation sample") if finite(entry.get("num_samples")) else "validation"
    return f"{said}. Their widths come from the errors on {source} (split conformal prediction)."


def percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _residuals_note(numbers: Numbers) -> str:
    if not len(numbers):
        return ""
    half, most, nearly = (words.fixed(value, numbers.decimals) for value in np.quantile(np.abs(numbers.errors), (0.5, 0.9, 0.99)))
    unit = f" {numbers.unit}" if numbers.unit else ""
    bias = words.fixed(float(numbers.errors.mean()), numbers.decimals + 1, signed=True)
    largest = words.fixed(float(np.abs(numbers.errors).max()), numbers.decimals)
    within = f"Half of the errors are within {half}{unit}, nine of ten within {most}, 99 of 100 within {nearly}; the largest is {largest}"
    return f"{within}. On average the answer less the truth is {bias}{unit}."


def _slice_view(column: str, rows: Sequence[Slice], unit: str, metric: str) -> SliceView:
    ordered = in_order(rows)
    drawn = [
        {"slice": row.value or "(empty)", **asdict(entry), "model": is_model}
        for row in ordered
        for entry, is_model in (*((found, True) for found in row.figures[:1]), (row.rival_figure, False))
        if entry.value is not None
    ]
    names = [row.value or "(empty)" for row in ordered]
    shown = len({row["slice"] for row in drawn}) > 1
    wide, narrow = (slice_chart(drawn, names, unit, words.bare(metric), *size) if shown else None for size in ((290, 180), (196, 120)))
    return SliceView(column, ordered, wide, narrow, any(row.rival_figure.value is not None for row in ordered))


# ── cards ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shelves_of(numbers: Numbers, folder: Path) -> list[Shelf]:
    """The largest errors, samples drawn at random from all, and the smallest errors: the first alone would mislead."""
    order = worst_first(numbers)
    drawn = np.sort(np.random.default_rng(0).permutation(len(numbers))[:NUM_OTHERS])
    worst = order[:NUM_WORST]
    places = len({station_of(numbers.rows[place]) for place in worst.tolist()} - {""})
    spread = f", at {words.counted(places, 'station')}" if places and mapping(numbers.rows[0].get("meta")).get("station") else ""
    chosen = (
        ("worst", "Largest errors", f"the {len(worst)} samples that it answers worst{spread}", worst),
        ("random", "Drawn at random", "what the samples of this split look like, in no order of error", drawn),
        ("best", "Smallest errors", "the samples that it answers best", order[: -NUM_OTHERS - 1 : -1]),
    )
    with PatchPictures(folder) as pictures:
        return [
            Shelf(anchor, title, meaning, [_card(numbers, place, folder, pictures) for place in found.tolist()])
            for anchor, title, meaning, found in chosen
        ]


def worst_first(numbers: Numbers) -> Rows:
    return np.argsort(-np.abs(numbers.errors), kind="stable")


def _card(numbers: Numbers, place: int, folder: Path, pictures: PatchPictures) -> Card:
    row, digits = numbers.rows[place], numbers.decimals
    truth, low, high = float(numbers.truth[place]), float(numbers.low[place]), float(numbers.high[place])
    has_interval = bool(np.isfinite(low) and np.isfinite(high))
    if is_patch(row):
        shown, reason = pictures.of(row, truth)
    else:
        uri, reason = thumbnail(row.get("image"), folder)
        shown = [Picture(uri, "")] if uri else []
    unit = f" {numbers.unit}" if numbers.unit else ""
    others = [
        (words.system_label(system).lower(), words.fixed(value, digits), words.fixed(value - truth, digits, signed=True))
        for system, values in numbers.others.items()
        if not is_damage(system) and np.isfinite(value := float(values[place]))
    ]
    return Card(
        id=words.answer_text(row.get("id")),
        truth=words.fixed(truth, digits) + unit,
        answer=words.fixed(float(numbers.answer[place]), digits) + unit,
        error=words.fixed(float(numbers.errors[place]), digits, signed=True) + unit,
        interval=f"{words.fixed(low, digits)} to {words.fixed(high, digits)}" if has_interval else "",
        inside=bool(low <= truth <= high) if has_interval else None,
        facts=facts_of(row),
        text=str(row.get("text") or ""),
        others=others,
        pictures=shown,
        no_picture=reason,
    )


def facts_of(row: Mapping[str, Any]) -> list[str]:
    """Where and when, and what the ground is, of a row of a patch store; of any other row its further columns."""
    meta = mapping(row.get("meta"))
    if not is_patch(row):
        told = [(words.plain(str(name)), words.answer_text(value)) for name, value in meta.items() if value not in (None, "")]
        return [f"{name}: {value}" for name, value in told[:_MAX_META]]
    lat, lon, height, sza = (finite(meta.get(name)) for name in ("lat", "lon", "elevation_m", "sza_deg"))
    place = (
        f"{abs(lat):.2f}°{'N' if lat >= 0 else 'S'} {abs(lon):.2f}°{'E' if lon >= 0 else 'W'}"
        if lat is not None and lon is not None
        else ""
    )
    return [
        fact
        for fact in (
            f"station {station_of(row)}" if station_of(row) else "",
            words.moment(meta["time"]) if meta.get("time") else "",
            place,
            str(meta.get("land_cover") or ""),
            f"{height:.0f} m" if height is not None else "",
            "" if sza is None else f"sun {90 - sza:.0f}° high" if sza < 90 else "night",
        )
        if fact
    ]
