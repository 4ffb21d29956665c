"""`eyegraft sweep recipe=NAME trials=N key=low..high`"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eyegraft.errors import RecipeError

if TYPE_CHECKING:
    from eyegraft.training.sweep import Choices, Range

HELP = "search numbers for the best validation value; the same command goes on with the remaining trials"
SYNTAX = "key=low..high, key=low..high:log or key=a,b,c"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="recipe=NAME trials=N key=low..high",
        help=f"a recipe, how many trials, what to search ({SYNTAX}), and overrides (key=value)",
    )


def run(arguments: argparse.Namespace) -> None:
    from eyegraft.cli.compare import print_comparison
    from eyegraft.composition import compose, to_plain, validate
    from eyegraft.config import Recipe
    from eyegraft.evaluation.compare import compare_runs
    from eyegraft.training.sweep import search

    overrides, space, num_trials = read_words(arguments.words)

    def recipe_of(parameters: dict[str, Any]) -> Recipe:
        return validate(to_plain(compose([*overrides, *typed(parameters)])))

    found = search(recipe_of, space, num_trials, debug=arguments.debug)
    best = found.best
    assert best is not None
    assert best.run is not None
    print_comparison(compare_runs(list(dict.fromkeys(trial.run for trial in found.trials if trial.run is not None))))
    for trial in found.trials:
        if trial.error is not None:
            print(f"failed: {' '.join(typed(trial.parameters))}: {trial.error}")
    print(f"\nbest of {len(found.trials)} trials by {found.metric} ({best.value:.4f}): {best.run}")
    print(shlex.join(["eyegraft", "train", *overrides, *typed(best.parameters)]))


def typed(parameters: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in parameters.items()]


def read_words(words: Sequence[str]) -> tuple[list[str], dict[str, Range | Choices], int]:
    """(overrides, what is searched, number of trials).

    Raises:
        RecipeError: a range or the number of trials cannot be used.
    """
    from eyegraft.cli.show import named

    overrides: list[str] = []
    space: dict[str, Range | Choices] = {}
    num_trials: int | None = None
    for word in named(list(words)):
        key, _, value = word.partition("=")
        if key == "trials":
            if not re.fullmatch(r"[1-9]\d*", value):
                raise RecipeError(word, "a whole number of 1 or more", "trials=20")
            num_trials = int(value)
            continue
        part = _range(word, value) or _choices(word)
        if part is None:
            overrides.append(word)
        elif key in ("seed", "recipe"):
            raise RecipeError(word, f"one {key}: the best of several would be luck or another question", f"{key}=… with one value")
        elif key in space:
            raise RecipeError(f"{key} is searched twice", "one range a key", f"keep one {key}=…")
        else:
            space[key] = part
    if num_trials is None:
        raise RecipeError("no number of trials", "trials=N", "trials=20")
    if not space:
        raise RecipeError("nothing to search", SYNTAX, "train.learning_rate=1e-5..1e-3:log")
    return overrides, space, num_trials


def _range(word: str, value: str) -> Range | None:
    """`1e-5..1e-3:log` as a range; None where it is none, such as `../folder`."""
    from eyegraft.training.sweep import Range

    match = re.fullmatch(r"(.+?)\.\.(.+?)(?::(.*))?", value)
    if match is None:
        return None
    low, high = _number(match[1]), _number(match[2])
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise RecipeError(word, "a number on either side of ..", SYNTAX)
    if match[3] not in (None, "log"):
        raise RecipeError(word, "nothing or :log behind the range", SYNTAX)
    if low >= high:
        raise RecipeError(word, "a low end below the high end", SYNTAX)
    if match[3] and low <= 0:
        raise RecipeError(word, "a low end above 0 on a logarithmic scale", "a small low end such as 1e-6, or no :log")
    return Range(low, high, log=match[3] == "log")


def _number(text: str) -> float | None:
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE) else None


def _choices(word: str) -> Choices | None:
    """`16,32,64` as choices, by the grammar that `train -m` reads; None where it is one value, such as a list in brackets."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from eyegraft.composition import hydra_overrides
    from eyegraft.training.sweep import Choices

    if word[:1] == "~" or "=" not in word:
        return None
    try:
        override = OverridesParser.create().parse_override(hydra_overrides([word])[0])
    except HydraException:
        return None  # composing says what is wrong with it
    if not override.is_sweep_override():
        return None
    if not override.is_discrete_sweep():
        raise RecipeError(word, SYNTAX, "write an interval as low..high")
    values = tuple(override.sweep_string_iterator())
    if len(set(values)) < len(values):
        raise RecipeError(word, "each choice once", SYNTAX)
    return Choices(values)
