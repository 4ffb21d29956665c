"""`eyegraft evaluate RUN`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "evaluate a run beside its baselines, and write its report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--split", action="append", help="a split (again for more); the recipe's by default")
    parser.add_argument(
        "--stage", help="the stage whose best checkpoint is used; the last by default, and another one writes SPLIT@STAGE.json"
    )
    parser.add_argument(
        "--data",
        metavar="TABLE",
        help="another table with the same columns, in place of the recipe's splits; it may share nothing with train or val",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> None:
    import json

    from eyegraft.evaluation import evaluate
    from eyegraft.report import write_report

    results = evaluate(arguments.run, splits=arguments.split, stage=arguments.stage, table=arguments.data)
    if arguments.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
        return
    for result in results.values():
        _print(result)
        _print_samples(Path(arguments.run).expanduser() / "evaluation" / result["samples"])
    print(f"\nreport: {write_report(arguments.run)}")


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = list(result["systems"]["model"])
    table = Table(title=f"{result['split']}: {result['num_samples']} samples. {result['held_out']}", title_justify="left")
    table.add_column("")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for system, values in result["systems"].items():
        table.add_row(system, *(_cell(values[metric]) for metric in metrics))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    for sentence in result["conclusions"]:
        console.print(sentence, markup=False, highlight=False)
    used = result["checkpoint"]
    console.print(f"checkpoint: stage {used['stage']}, epoch {used['epoch']}, step {used['step']}", markup=False, highlight=False)


def _print_samples(file: Path, count: int = 8) -> None:
    """Some answers beside their references, evenly spread over the split."""
    import json

    with file.open(encoding="utf-8") as stream:  # str.splitlines also cuts at U+2028, which JSON leaves as it is
        lines = list(stream)
    for line in lines[:: max(1, len(lines) // count)][:count]:
        row = json.loads(line)
        mark = "=" if row["scores"].get("exact_match") == 1 else "≠"
        print(f"  {row['id']:<28} {row['answers']['model']!r} {mark} {row['references'][0]!r}")


def _cell(entry: dict[str, Any]) -> str:
    value = f"{entry['value']:.3f}"
    return value if entry["low"] is None else f"{value} [{entry['low']:.2f}, {entry['high']:.2f}]"
