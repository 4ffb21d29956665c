"""`eyegraft predict RUN IMAGE…`, of a run that reads no pictures `eyegraft predict RUN --text WORDS`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

HELP = "answer about images with a trained run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files; none where the run reads text alone")
    parser.add_argument("--prompt", help="what to ask; by default what the model was trained with")
    parser.add_argument("--text", action="append", help="words beside the image, for models that read them (once an image, in order)")
    parser.add_argument("--stage", help="the stage whose best checkpoint is used; the last by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> None:
    import json

    from eyegraft.errors import DataError
    from eyegraft.serving import load_run

    if not (arguments.images or arguments.text):
        raise DataError("neither an image nor a text", "image files, or --text for a run that reads text alone", "name what is asked about")
    answers = load_run(arguments.run, stage=arguments.stage).predict(arguments.images, prompt=arguments.prompt, texts=arguments.text)
    kind, asked = ("image", arguments.images) if arguments.images else ("text", arguments.text)
    for item, answer in zip(asked, answers, strict=True):
        if arguments.json:
            print(json.dumps({kind: item, "answer": answer}, ensure_ascii=False))
        else:
            print(f"{' '.join(item.split()) if kind == 'text' else item}\t{answer if isinstance(answer, str) else _in_words(answer)}")


def _in_words(answer: Mapping[str, Any]) -> str:
    """`true (0.93)`, `cat (0.81)`, `291.3 K (289.6 to 293.1)`."""
    if "value" in answer:
        between = f" ({answer['interval'][0]:.6g} to {answer['interval'][1]:.6g})" if answer["interval"] else ""
        return f"{answer['value']:.6g} {answer['unit']}".strip() + between
    label, known = answer["label"], answer.get("probabilities", {})
    if isinstance(label, list):
        return ", ".join(f"{name} ({known[name]:.2f})" for name in label) or "none"
    return f"{label} ({known[label] if known else answer['probability']:.2f})"
