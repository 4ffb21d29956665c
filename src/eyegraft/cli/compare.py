"""`eyegraft compare RUN…`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eyegraft.evaluation.compare import Comparison, Entry, Value

HELP = "put runs into one table, the best by validation first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folders, FOLDER@STAGE for a run after one of its stages, and folders of runs such as runs/EXPERIMENT",
    )
    parser.add_argument("--split", default="test", help="whose evaluation is shown beside the validation value (default: test)")
    parser.add_argument("--metric", help="of the split, for the paired differences; by default the first of the best run")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--csv", metavar="FILE", help="also write the table to a file")
    parser.add_argument("--html", metavar="FILE", help="also write a page: every metric with paired differences, answers side by side")


def run(arguments: argparse.Namespace) -> None:
    import json
    import sys

    from eyegraft.evaluation.compare import compare_runs
    from eyegraft.files import write_atomically

    comparison = compare_runs(arguments.runs, split=arguments.split, metric=arguments.metric, every_metric=bool(arguments.html))
    if arguments.csv:
        write_atomically(Path(arguments.csv).expanduser(), as_csv(comparison))
    if arguments.json:
        print(json.dumps(comparison.plain(), indent=1, ensure_ascii=False))
    else:
        print_comparison(comparison)
    if arguments.html:
        from eyegraft.report.comparison import write_comparison

        page = write_comparison(comparison, Path(arguments.html).expanduser(), arguments.metric)
        print(f"\npage: {page}", file=sys.stderr if arguments.json else sys.stdout)


def print_comparison(comparison: Comparison) -> None:
    """The table, and below it what must be said of it."""
    from rich.console import Console

    metrics = list(dict.fromkeys(name for entry in comparison.entries for name in entry.metrics))
    screen, console = Console(), Console(width=1000, markup=False, highlight=False)  # folded lines are read easier than folded cells
    table = _table(_columns(comparison, metrics))
    notes = list(comparison.notes)
    if screen.is_terminal and len(metrics) > 1 and console.measure(table).maximum > screen.width:
        kept = comparison.metric or metrics[0]
        table = _table(_columns(comparison, [kept]))
        notes.append(f"Of the results on {comparison.split} only {kept} fits here: --csv FILE or --json gives all {len(metrics)}.")
    console.print(table)
    for note in notes:
        console.print(note)


def _table(columns: dict[str, list[str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, cells in columns.items():
        if any(cells):
            table.add_column(name, justify="left" if name in ("run", "") else "right", no_wrap=True)
    for row in zip(*(cells for cells in columns.values() if any(cells)), strict=True):
        table.add_row(*row)
    return table


def _columns(comparison: Comparison, metrics: list[str]) -> dict[str, list[str]]:
    """Heading -> cells. The last column, without a heading, says what sets a run apart."""
    entries = comparison.entries
    watched = list(dict.fromkeys(entry.watched for entry in entries if entry.watched))
    columns = {"run": _names([entry.run for entry in entries])}
    for name, key in _headings(comparison).items():
        columns[name] = [_setting(entry.settings[key]) for entry in entries]
    columns["seed"] = [str(entry.seed) for entry in entries]
    columns["seconds"] = ["" if entry.seconds is None else f"{entry.seconds:.0f}" for entry in entries]
    columns["trained"] = ["" if entry.trained_parameters is None else f"{entry.trained_parameters:,}" for entry in entries]
    columns["epoch"] = ["" if entry.epoch is None else str(entry.epoch) for entry in entries]
    for name in watched:
        arrow = {True: " ↑", False: " ↓", None: ""}[comparison.higher_is_better]
        columns[name + arrow] = [f"{entry.best:.4f}" if entry.best is not None and entry.watched == name else "" for entry in entries]
    for name in metrics:
        columns[f"{comparison.split} {name}"] = [_value(entry.metrics.get(name), "{:.3f}") for entry in entries]
    held_against = "best" if comparison.ranked else "0"
    columns[f"Δ {comparison.metric}"] = [
        held_against if entry.run == comparison.reference else _value(entry.difference, "{:+.3f}") for entry in entries
    ]
    columns[""] = ["; ".join(entry.marks) for entry in entries]
    return columns


def _names(runs: list[str]) -> list[str]:
    """Folders without what they all begin with."""
    paths = [Path(run) for run in runs]
    if len({path.parent for path in paths}) == 1 and len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    return runs


def _headings(comparison: Comparison) -> dict[str, str]:
    """Heading -> key. Keys of one part that change together, as an option changes them, share the column of the first: `flip +8`."""
    together: dict[str, list[str]] = {}
    for key in comparison.keys:
        values = [repr(entry.settings[key]) for entry in comparison.entries]
        together.setdefault(f"{key.split('.')[0]} {[values.index(value) for value in values]}", []).append(key)
    short = dict(zip(comparison.keys, _short(comparison.keys), strict=True))
    return {short[keys[0]] + (f" +{len(keys) - 1}" if len(keys) > 1 else ""): keys[0] for keys in together.values()}


def _short(keys: tuple[str, ...]) -> list[str]:
    """Dotted keys by as few of their last steps as tell them apart; of a part's `kind` and `model`, the part too."""

    def last(key: str, count: int) -> str:
        return ".".join(key.split(".")[-count:])

    shortened = []
    for key in keys:
        count = 2 if key.split(".")[-1] in ("kind", "model") else 1
        while sum(last(other, count) == last(key, count) for other in keys) > 1 and count < key.count(".") + 1:
            count += 1
        shortened.append(last(key, count).removesuffix(".kind"))
    return shortened if len(set(shortened)) == len(shortened) else list(keys)


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(value: Value | None, form: str) -> str:
    if value is None or value.value is None:
        return ""
    if value.low is None or value.high is None:
        return form.format(value.value)
    return f"{form.format(value.value)} [{form.format(value.low)}, {form.format(value.high)}]"


def as_csv(comparison: Comparison) -> str:
    """One line a run, keys in full, an interval in three columns."""
    import csv
    from io import StringIO

    metrics = list(dict.fromkeys(name for entry in comparison.entries for name in entry.metrics))
    rows = [_csv_row(entry, comparison, metrics) for entry in comparison.entries]
    stream = StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _csv_row(entry: Entry, comparison: Comparison, metrics: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"run": entry.run, "recipe": entry.recipe, **entry.settings}
    for name in ("seed", "seconds", "trained_parameters", "stage", "epoch", "watched", "best"):
        row[name] = getattr(entry, name)
    for heading, value in [
        *((f"{comparison.split}.{name}", entry.metrics.get(name)) for name in metrics),
        (f"difference.{comparison.metric}", entry.difference),
    ]:
        row |= {heading: value and value.value, f"{heading}.low": value and value.low, f"{heading}.high": value and value.high}
    return row | {"marks": "; ".join(entry.marks)}
