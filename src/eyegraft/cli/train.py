"""`eyegraft train`"""

from __future__ import annotations

import argparse

HELP = "train a recipe's stages; the same command goes on with an unfinished run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="recipe=NAME key=value", help="a recipe, overrides, and Hydra's own flags (-m, --cfg job …)"
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    parser.add_argument("--fresh", action="store_true", help="start a new run even where an unfinished one lies")


def run(arguments: argparse.Namespace) -> None:
    from eyegraft.cli._hydra import run_hydra
    from eyegraft.cli.show import named
    from eyegraft.composition import compose, to_plain, validate

    words = named(arguments.overrides)
    if not any(word.startswith("-") for word in words):
        validate(to_plain(compose(words)))  # every fault at once, before Hydra takes over
    run_hydra(words, resume=arguments.resume, fresh=arguments.fresh, debug=arguments.debug)
