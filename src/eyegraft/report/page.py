"""The page of a run: one HTML file with its pictures and charts inside, readable offline and safe to send on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from eyegraft.evaluation.conclusions import MIN_SAMPLES, is_damage
from eyegraft.files import write_atomically
from eyegraft.report import charts, panorama, words
from eyegraft.report.gallery import MAX_CARDS, THUMBNAIL_PX, Gallery, build_gallery
from eyegraft.report.label_view import CUT_COUNTS, CUT_METRICS, NUM_METRICS, OPEN_LABEL_CARDS, LabelView, label_view
from eyegraft.report.labels import kind_of
from eyegraft.report.number_view import NumberView, number_view
from eyegraft.report.numbers import is_of_numbers
from eyegraft.report.reading import Figure, Run, figure, finite, mapping
from eyegraft.report.slices import Slice, slices_of
from eyegraft.report.stages import LIKENESS, stage_view

MODEL = "model"
_INPUTS = {
    "blank_image": (
        "It uses the picture: better than with a blank one",
        "Worse than with a blank picture",
        "No clear sign that it uses the picture",
    ),
    "absent_text": ("It uses the text: better than without", "Worse than without the text", "No clear sign that it uses the text"),
    "absent_context": (
        "It uses time and place: better than without",
        "Worse than without time and place",
        "No clear sign that it uses time and place",
    ),
}

Part = Gallery | LabelView | NumberView
"""What a split has beyond scores and slices, by the kind of its answers: texts, labels, numbers."""


@dataclass(frozen=True)
class Verdict:
    """A sentence with a colour and a sign.

    Attributes:
        tone: `good`, `unclear` or `bad`.
    """

    tone: str
    text: str


@dataclass(frozen=True)
class SplitView:
    """All that the page says about one evaluated split."""

    name: str
    info: Mapping[str, Any]
    metric: str
    higher: bool
    headline: Figure
    verdicts: list[Verdict]
    metrics: list[str]
    directions: dict[str, bool | None]
    systems: list[str]
    table: dict[str, dict[str, Figure]]
    best: dict[str, str]
    wide: Markup | None
    narrow: Markup | None
    part: Part
    slices: dict[str, list[Slice]]
    first_metrics: list[str]

    @property
    def tone(self) -> str:
        tones = {verdict.tone for verdict in self.verdicts}
        return next((tone for tone in ("bad", "unclear", "good") if tone in tones), "none")


def write_page(run: Run) -> Path:
    """Write `report.html` into a run's folder, in one move, so that a reader never meets half a page."""
    page = environment().get_template("page.html.j2").render(_context(run))
    target = run.folder / "report.html"
    write_atomically(target, page)
    return target


def environment() -> Environment:
    """What every page is written with."""
    # chainable: a key that an older or unfinished run does not have leaves a gap, not an exception
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    spoken = (
        words.plain,
        words.system_label,
        words.number,
        words.fixed,
        words.bare,
        words.score,
        words.probability,
        words.count,
        words.duration,
        words.moment,
        words.answer_text,
    )
    made.filters.update({function.__name__: function for function in (*spoken, mapping)})
    made.globals.update(
        counted=words.counted,
        share=words.share,
        script_hash=panorama.script_hash,
        panorama_script=panorama.script,
        panorama_style=panorama.style,
        colours=charts.COLOURS,
        font=Markup(charts.FONT),  # a constant of ours, with quotes that belong into the style sheet
    )
    return made


def _context(run: Run) -> dict[str, Any]:
    data = mapping(run.info.get("data"))
    pictures = panorama.Pictures(run.folder)
    splits = [_split_view(run, name, pictures) for name in _split_order(run)]
    return {
        "info": run.info,
        "title": str(run.info.get("title") or run.info.get("recipe") or run.folder.name),
        "data": data,
        "data_splits": {name: mapping(row) for name, row in mapping(data.get("splits")).items()},
        "quarantined": mapping(data.get("quarantined")),
        "versions": mapping(run.info.get("versions")),
        "remarks": run.remarks,
        "recipe": run.recipe,
        "stages": [stage_view(stage) for stage in run.stages],
        "simulated": any(info.get("simulated") is True for info in run.evaluations.values()),
        "splits": splits,
        "panoramas": pictures,
        "likeness": LIKENESS,
        "cut_metrics": CUT_METRICS,
        "cut_counts": CUT_COUNTS,
        "max_cards": MAX_CARDS,
        "thumbnail_px": THUMBNAIL_PX,
        "open_cards": OPEN_LABEL_CARDS,
        "min_samples": MIN_SAMPLES,
    }


def _split_order(run: Run) -> list[str]:
    """Test splits first: they carry the result."""
    return sorted(run.evaluations, key=lambda name: (not name.startswith("test"), name))


def _split_view(run: Run, name: str, pictures: panorama.Pictures) -> SplitView:
    info = run.evaluations[name]
    written = mapping(info.get("systems"))
    table = {system: {metric: figure(value) for metric, value in mapping(values).items()} for system, values in written.items()}
    systems = sorted(table, key=lambda system: system != MODEL)  # stable: the model first, the rest as written
    metrics = list(dict.fromkeys(metric for system in systems for metric in table[system]))
    directions = {metric: words.higher_is_better(metric, info) if words.is_directed(metric, info) else None for metric in metrics}
    metric = _main_metric(table.get(MODEL, {}), metrics)
    first = [name for name in metrics if table.get(MODEL, {}).get(name, Figure()).value is not None][:NUM_METRICS]
    part = _part(run, name, metrics, first, _rival(table, metric, directions.get(metric) is not False), pictures)
    # labels and numbers have a dozen metrics: the table holds them all, a chart of them all would bury the rest
    rows = _chart_rows(table, systems, metrics if isinstance(part, Gallery) else first)
    labels = [words.system_label(system) for system in systems]
    return SplitView(
        name=name,
        info=info,
        metric=metric,
        higher=directions.get(metric) is not False,
        headline=table.get(MODEL, {}).get(metric, Figure()),
        verdicts=_verdicts(info, table, metric, directions.get(metric) is not False),
        metrics=metrics,
        directions=directions,
        systems=systems,
        table=table,
        best={
            name: system
            for name, higher in directions.items()
            if higher is not None and (system := _best_system(table, list(table), name, higher))
        },
        wide=charts.interval_chart(rows, labels, columns=3, panel_width=245),
        narrow=charts.interval_chart(rows, labels, columns=1, panel_width=186),
        part=part,
        slices=slices_of(info, first),
        first_metrics=first,
    )


def _part(run: Run, name: str, metrics: Sequence[str], first: Sequence[str], rival: str | None, pictures: panorama.Pictures) -> Part:
    info, samples = run.evaluations[name], run.samples.get(name, [])
    kind = kind_of(samples)
    if kind is not None:
        return label_view(samples, info, first, kind, run.folder)
    if is_of_numbers(samples):
        return number_view(run, name, first, rival)
    return build_gallery(samples, info, metrics, run.folder, pictures)


def _main_metric(model: Mapping[str, Figure], metrics: Sequence[str]) -> str:
    """The first that has a value: AUROC has none where all labels are of one class."""
    known = (name for name, found in model.items() if found.value is not None)
    return next(known, None) or next(iter(model), metrics[0] if metrics else "")


def _chart_rows(table: Mapping[str, Mapping[str, Figure]], systems: Sequence[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    cells = [(metric, system, table[system].get(metric, Figure())) for metric in metrics for system in systems]
    return [
        {
            "metric": words.plain(metric),
            "system": words.system_label(system),
            "value": figure.value,
            "low": figure.low,
            "high": figure.high,
            "model": system == MODEL,
        }
        for metric, system, figure in cells
        if figure.value is not None
    ]


def _rival(table: Mapping[str, Mapping[str, Figure]], metric: str, higher: bool) -> str | None:
    """The best baseline; the model itself with an input damaged is one only where there is no other."""
    others = [system for system in table if system != MODEL]
    return _best_system(table, [system for system in others if not is_damage(system)] or others, metric, higher)


def _best_system(table: Mapping[str, Mapping[str, Figure]], systems: Sequence[str], metric: str, higher: bool) -> str | None:
    known = {system: value for system in systems if (value := table[system].get(metric, Figure()).value) is not None}
    if not known:
        return None
    return max(known, key=lambda system: known[system] if higher else -known[system])


def _verdicts(info: Mapping[str, Any], table: Mapping[str, Mapping[str, Figure]], metric: str, higher: bool) -> list[Verdict]:
    """Against the best baseline, and against the model that sees nothing: the two questions that decide whether a result is one."""
    value = table.get(MODEL, {}).get(metric, Figure()).value
    if value is None:
        return []
    rival = _rival(table, metric, higher)
    if rival is None:
        return [Verdict("unclear", "There is no baseline to compare with.")]
    samples = finite(info.get("num_samples"))
    if samples is not None and samples < MIN_SAMPLES:
        return [Verdict("unclear", f"Too few samples ({words.count(samples)}) to tell it from a baseline.")]
    differences = mapping(info.get("differences"))

    def difference(system: str) -> Figure:
        found = figure(mapping(differences.get(system)).get(metric))
        other = table[system][metric].value
        return found if found.value is not None or other is None else Figure(value - other)

    named = f"the best baseline, {words.system_label(rival).lower()} ({_range(table[rival][metric])})"
    verdicts = [_verdict(difference(rival), higher, f"Better than {named}", f"Worse than {named}", f"No clear lead over {named}")]
    for system, seen in _INPUTS.items():
        if rival != system and table.get(system, {}).get(metric, Figure()).value is not None:
            verdicts.append(_verdict(difference(system), higher, *seen))
    return verdicts


def _verdict(difference: Figure, higher: bool, better: str, worse: str, unclear: str) -> Verdict:
    """A lead counts when its whole interval lies on one side of zero. Above zero it speaks for the model, as in the sentences below it."""
    lead = (difference.value or 0.0) * (1 if higher else -1)
    amount = f"lead {words.number(lead, signed=True)}"
    if difference.low is None or difference.high is None:
        text = better if lead > 0 else worse if lead < 0 else unclear
        return Verdict("bad" if lead < 0 else "unclear", f"{text}: {amount}, interval unknown.")
    low, high = (difference.low, difference.high) if higher else (-difference.high, -difference.low)
    ends = f"{amount}, from {words.number(low, signed=True)} to {words.number(high, signed=True)}."
    if low > 0:
        return Verdict("good", f"{better}: {ends}")
    return Verdict("bad", f"{worse}: {ends}") if high < 0 else Verdict("unclear", f"{unclear}: {ends}")


def _range(figure: Figure) -> str:
    value = words.number(figure.value)
    return f"{value}, {words.number(figure.low)} to {words.number(figure.high)}" if figure.known else value
