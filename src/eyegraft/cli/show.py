"""`eyegraft show RECIPE`"""

from __future__ import annotations

import argparse

HELP = "print a recipe with every key, as `train` would run it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="+", metavar="RECIPE key=value", help="a recipe's name (or recipe=NAME), then overrides")


def run(arguments: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from eyegraft.composition import compose, to_plain, validate

    composed = compose(named(arguments.overrides))
    validate(to_plain(composed))
    print(OmegaConf.to_yaml(composed), end="")


def named(words: list[str]) -> list[str]:
    """`demo x=1` as `recipe=demo x=1`."""
    return [word if "=" in word or word[:1] in "+~-" else f"recipe={word}" for word in words]
