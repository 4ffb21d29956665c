"""`eyegraft predict RUN IMAGE…`, of a run that reads no pictures `--text WORDS`, of one that reads patches `--patches STORE`, and of one
that learned weather maps a whole case, `--case FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = "answer about images with a trained run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files; none where the run reads text alone")
    parser.add_argument("--prompt", help="what to ask; by default what the model was trained with")
    parser.add_argument("--choice", action="append", default=[], help="an answer that is allowed, in place of any text (once each)")
    parser.add_argument("--text", action="append", help="words beside the image, for models that read them (once an image, in order)")
    parser.add_argument("--patches", metavar="STORE", help="the folder of a patch store, in place of images")
    parser.add_argument("--rows", type=_rows, metavar="0,1,2", help="which rows of the store; all by default")
    parser.add_argument(
        "--case",
        nargs="+",
        metavar="CASE",
        help="a case of weather maps, asked whole: a JSON file of cases, or its maps as IMAGE=condition (IMAGE where the run can tell)",
    )
    parser.add_argument("--case-id", metavar="ID", help="which case of the file")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="where the paths in the file start; its own folder by default")
    parser.add_argument("--html", type=Path, metavar="FILE", help="the report of the case as a page, with the maps beside the texts")
    parser.add_argument("--stage", help="the stage whose best checkpoint is used; the last by default")
    parser.add_argument("--task", help="which of the tasks that the stage learned at once; the first by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line; of a case, one in all")


def run(arguments: argparse.Namespace) -> None:
    import json

    from eyegraft.errors import DataError
    from eyegraft.serving import load_run

    if arguments.case:
        _report_case(arguments)
        return
    if arguments.case_id or arguments.image_root or arguments.html:
        raise DataError("--case-id, --image-root or --html without --case", "a case that they are about", "give --case FILE too")
    if arguments.patches:
        _predict_patches(arguments)
        return
    if arguments.rows:
        raise DataError("--rows without --patches", "the patch store that the rows are of", "give --patches STORE too")
    if not (arguments.images or arguments.text):
        expected = "image files, --text for a run that reads text alone, or --patches STORE for a run on patches"
        raise DataError("neither an image nor a text nor patches", expected, "name what is asked about")
    answers = load_run(arguments.run, stage=arguments.stage, task=arguments.task).predict(
        arguments.images, prompt=arguments.prompt, texts=arguments.text, choices=arguments.choice
    )
    kind, asked = ("image", arguments.images) if arguments.images else ("text", arguments.text)
    for item, answer in zip(asked, answers, strict=True):
        if arguments.json:
            print(json.dumps({kind: item, "answer": answer}, ensure_ascii=False))
        else:
            print(f"{' '.join(item.split()) if kind == 'text' else item}\t{answer if isinstance(answer, str) else _in_words(answer)}")


def _predict_patches(arguments: argparse.Namespace) -> None:
    """Station and time of each row, the answer, and what was measured where that is known."""
    import json

    from eyegraft.errors import DataError
    from eyegraft.serving import load_run

    if arguments.images or arguments.text or arguments.prompt or arguments.choice:
        raise DataError("--patches beside images, --text, --choice or --prompt", "one kind of input", "leave the others out")
    rows, answers = load_run(arguments.run, stage=arguments.stage, task=arguments.task).predict_patches(arguments.patches, arguments.rows)
    for sample, answer in zip(rows, answers, strict=True):
        measured = float(sample.references[0]) if sample.references else None
        if arguments.json:
            print(json.dumps({"patch": sample.id, "row": sample.record, "answer": answer, "measured": measured}, ensure_ascii=False))
        else:
            said = "" if measured is None else f"\tmeasured {measured:.6g}"
            print(f"{sample.id}\t{_in_words(answer)}{said}")


def _report_case(arguments: argparse.Namespace) -> None:
    """The report of a case, as text or as one JSON object, and its page."""
    import json

    from eyegraft.errors import DataError
    from eyegraft.serving._cases import case_of_words, read_case

    given = ("images", "text", "patches", "rows", "prompt", "choice", "task")
    if others := [name for name in given if getattr(arguments, name)]:
        said = ", ".join("IMAGE" if name == "images" else f"--{name}" for name in others)
        raise DataError(f"--case beside {said}", "a case alone: all of its tasks are asked, each with its own prompt", "leave it out")
    words, of_file = arguments.case, arguments.case_id is not None or arguments.image_root is not None
    if len(words) == 1 and words[0].lower().endswith(".json"):
        case = read_case(Path(words[0]).expanduser(), image_root=arguments.image_root, case_id=arguments.case_id)
    elif of_file:
        raise DataError("--case-id or --image-root beside images", "one JSON file of cases", "leave them out, or give --case FILE.json")
    else:
        case = case_of_words(words)
    from eyegraft.serving.case_report import report_case

    report = report_case(arguments.run, case, stage=arguments.stage)
    if arguments.html:
        from eyegraft.report.case import write_case_page

        write_case_page(report, case.root, arguments.html)
    print(json.dumps(report, ensure_ascii=False) if arguments.json else _case_in_words(report))


def _case_in_words(report: Mapping[str, Any]) -> str:
    """Class, caption and link of each map, the summary, what was left out, and what must be known of all of it."""
    lines = [f"case {report['case']}", ""] if report["case"] else []
    for element in report["elements"]:
        kind = f"  {element['condition']} ({element['condition_from']})" if element["condition"] else ""
        lines += [f"{element['image']}{kind}"]
        lines += [f"  {name}: {' '.join(element[name].split())}" for name in ("caption", "link") if element[name] is not None]
    if summary := report["summary"]:
        lines += ["", f"summary, from {summary['made_of']}: {' '.join(summary['text'].split())}"]
    lines += ["", *(f"{left['task']} left out{_at(left)}: {left['why']}" for left in report["left_out"])]
    return "\n".join([*lines, *report["notices"]])


def _at(left: Mapping[str, Any]) -> str:
    return f" of map {left['element'] + 1}" if "element" in left else ""


def _rows(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of rows such as 0,1,2") from None


def _in_words(answer: Mapping[str, Any]) -> str:
    """`true (0.93)`, `cat (0.81)`, `291.3 K (289.6 to 293.1)`, `red (of red, blue; says: a red one)`."""
    if "generated" in answer:
        return f"{answer['answer']} (of {', '.join(answer['scores'])}; says: {answer['generated']})"
    if "value" in answer:
        between = f" ({answer['interval'][0]:.6g} to {answer['interval'][1]:.6g})" if answer["interval"] else ""
        return f"{answer['value']:.6g} {answer['unit']}".strip() + between
    label, known = answer["label"], answer.get("probabilities", {})
    if isinstance(label, list):
        return ", ".join(f"{name} ({known[name]:.2f})" for name in label) or "none"
    return f"{label} ({known[label] if known else answer['probability']:.2f})"
