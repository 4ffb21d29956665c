"""`eyegraft evaluate RUN`"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eyegraft.training.runs import Run

HELP = "evaluate a run beside its baselines, and write its report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--split", action="append", help="a split (again for more); the recipe's by default")
    parser.add_argument(
        "--stage", help="the stage whose best checkpoint is used; the last by default, and another one writes SPLIT@STAGE.json"
    )
    either.add_argument(
        "--data",
        metavar="TABLE",
        help="another table with the same columns, in place of the recipe's splits; it may share nothing with train or val",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> None:
    import json

    from eyegraft.evaluation import evaluate

    results = evaluate(arguments.run, splits=arguments.split, stage=arguments.stage, table=arguments.data)
    if arguments.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
        return
    _show(Path(arguments.run).expanduser(), results)


def evaluate_once(run: Path) -> None:
    """Evaluate a run that was just trained, unless that was done before and to the end: a finished run does not change."""
    from eyegraft.evaluation import evaluate
    from eyegraft.training.runs import read_run

    opened = read_run(run)
    if opened.facts["finished"] and not all(_is_whole(opened, split) for split in opened.recipe.evaluation.splits):
        _show(run, evaluate(run))


def _is_whole(run: Run, split: str) -> bool:
    """Whether a split's result is of the checkpoint that counts now (a run may have been evaluated before it was finished), and the report,
    which is written last, is there and not older."""
    import json

    from eyegraft.files import file_sha256

    recipe, folder = run.recipe, run.folder / "evaluation"
    tasks = recipe.tasks_of(recipe.stage(list(recipe.stages)[-1]))
    names = [f"{split}.{task}" for task in tasks] if len(tasks) > 1 else [split]
    try:
        written = [folder / f"{name}.json" for name in names if len(names) == 1 or (folder / f"{name}.json").exists()]
        used = {json.loads(result.read_text(encoding="utf-8"))["checkpoint"]["sha256"] for result in written}
        later = all((run.folder / "report.html").stat().st_mtime_ns >= result.stat().st_mtime_ns for result in written)
    except (OSError, ValueError, KeyError):
        return False
    return later and used == {file_sha256(run.checkpoint() / "manifest.json")}


def _show(run: Path, results: Mapping[str, dict[str, Any]]) -> None:
    from eyegraft.report import write_report

    for name, result in results.items():
        _print(name, result)
        _print_samples(run / "evaluation" / result["samples"])
    print(f"\nreport: {write_report(run)}")


def _print(name: str, result: dict[str, Any]) -> None:
    """Metrics down, systems across; the interval of the model alone, for the sentences below give those of the differences."""
    from rich.console import Console
    from rich.table import Table

    systems = result["systems"]
    table = Table(title=f"{name}: {result['num_samples']} samples. {result['held_out']}", title_justify="left")
    table.add_column("")
    for system in systems:
        table.add_column(system.replace("_", "\n"), justify="right")
    for metric, entry in systems["model"].items():
        others = (values.get(metric) for system, values in systems.items() if system != "model")
        table.add_row(metric, _with_interval(entry), *(_number(other) if other is not None else "" for other in others))
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
        answer, truth = row["answers"]["model"], ", ".join(row["references"])
        if isinstance(answer, Mapping) and "value" in answer:
            print(f"  {row['id']:<28} {answer['value']:.2f} {answer['unit']} for {float(truth):.2f}{_interval(answer['interval'])}")
            continue
        if isinstance(answer, Mapping) and "generated" in answer:
            mark = "=" if row["scores"].get("accuracy") == 1 else "≠"
            print(f"  {row['id']:<28} {answer['answer']!r} {mark} {row['references'][0]!r}, says {answer['generated']!r}")
            continue
        if isinstance(answer, Mapping):
            print(
                f"  {row['id']:<28} {answer['label']!r} for {truth!r}"
                + (f", {answer['probability']:.3f}" if "probability" in answer else "")
            )
            continue
        mark = "=" if row["scores"].get("exact_match") == 1 else "≠"
        print(f"  {row['id']:<28} {answer!r} {mark} {row['references'][0]!r}")


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"  [{ends[0]:.2f}, {ends[1]:.2f}]"


def _number(entry: dict[str, Any]) -> str:
    return "undefined" if entry["value"] is None else f"{entry['value']:.3f}"


def _with_interval(entry: dict[str, Any]) -> str:
    return _number(entry) + ("" if entry["low"] is None else f" [{entry['low']:.2f}, {entry['high']:.2f}]")
