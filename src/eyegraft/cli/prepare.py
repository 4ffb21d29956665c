"""`eyegraft prepare`"""

from __future__ import annotations

import argparse

HELP = "make the data set that a recipe reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="+", metavar="recipe=NAME key=value", help="a recipe, then overrides; step=NAME is short for prepare.step=NAME"
    )


def run(arguments: argparse.Namespace) -> None:
    from eyegraft.cli.show import named
    from eyegraft.composition import compose, to_plain, validate
    from eyegraft.prepare import prepare_data

    words = [f"prepare.{word}" if word.startswith("step=") else word for word in named(arguments.overrides)]
    print(prepare_data(validate(to_plain(compose(words)))))
