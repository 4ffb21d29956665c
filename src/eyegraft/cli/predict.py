"""`eyegraft predict RUN IMAGE…`, of a run that reads no pictures `--text WORDS`, and of one that reads patches `--patches STORE`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
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
    parser.add_argument("--stage", help="the stage whose best checkpoint is used; the last by default")
    parser.add_argument("--task", help="which of the tasks that the stage learned at once; the first by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> None:
    import json

    from eyegraft.errors import DataError
    from eyegraft.serving import load_run

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
