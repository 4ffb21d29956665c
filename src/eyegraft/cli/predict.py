"""`eyegraft predict RUN IMAGE…`"""

from __future__ import annotations

import argparse

HELP = "answer about images with a trained run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--prompt", help="what to ask; by default what the model was trained with")
    parser.add_argument("--stage", help="the stage whose best checkpoint is used; the last by default")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> None:
    import json

    from eyegraft.serving import load_run

    answers = load_run(arguments.run, stage=arguments.stage).predict(arguments.images, prompt=arguments.prompt)
    for image, answer in zip(arguments.images, answers, strict=True):
        print(json.dumps({"image": image, "answer": answer}, ensure_ascii=False) if arguments.json else f"{image}\t{answer}")
