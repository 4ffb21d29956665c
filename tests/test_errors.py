"""Errors say what was given, what was expected and how to fix it, and survive the trip between processes."""

from __future__ import annotations

import pickle

import pytest

from eyegraft.errors import DataError, EyegraftError, PartError, RecipeError, RunError, TrainingError, nearest, shown

KINDS = [RecipeError, DataError, PartError, RunError, TrainingError]


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_parts_are_kept_apart_and_survive_a_process(kind: type[EyegraftError]) -> None:
    error = kind("a was 3", "a of 4", "set a=4")
    assert str(error) == "a was 3\n  expected: a of 4\n  fix: set a=4"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.given, again.expected, again.fix) == ("a was 3", "a of 4", "set a=4")


def test_what_is_not_known_is_left_out() -> None:
    assert str(RunError("gone")) == "gone"
    assert str(RunError("gone", fix="look again")) == "gone\n  fix: look again"


def test_exit_codes_differ() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(code > 1 for code in codes)


def test_nearest() -> None:
    assert nearest("conector", ["connector", "head"]) == "did you mean 'connector'?"
    assert nearest("xyz", ["connector", "head"]) == ""
    assert nearest("x", []) == ""


def test_shown() -> None:
    assert shown([1, 2, 3]) == "1, 2, 3"
    assert shown(list(range(9)), 2) == "0, 1 and 7 more"
    assert shown([]) == ""
