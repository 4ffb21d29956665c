"""Yes or no, one of several, several at once: what labels mean, and what validation alone may choose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eyegraft.errors import DataError
from eyegraft.tasks import classify
from eyegraft.types import Sample


def task(**options: Any) -> classify.ClassifyTask:
    return classify.build("label", classify.Config(**options))


def samples(*labels: str | tuple[str, ...]) -> list[Sample]:
    return [Sample(f"s{place}", None, references=(name,) if isinstance(name, str) else name) for place, name in enumerate(labels)]


def column(*logits: float) -> torch.Tensor:
    return torch.tensor(logits).unsqueeze(1)


@pytest.mark.parametrize(
    ("label", "target"),
    [(word, 1.0) for word in ("true", "True", "TRUE", "tRuE", " true ", "1", "1.0")]
    + [(word, 0.0) for word in ("false", "False", "FALSE", "0", "0.0")],
)
def test_spellings_of_yes_and_no(label: str, target: float) -> None:
    (sample,) = samples(label)
    assert task().encode(sample, None, learn=True).target == (target,)
    assert task().truth(sample) == ("true" if target else "false")


@pytest.mark.parametrize("label", ["yes", "2", "-1", "0.5", "10", "t", "", "nan", "Ture", ("1", "0"), ()])
def test_other_spellings_are_no_label(label: str | tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="sample s0: label") as caught:
        task().encode(samples(label)[0], None, learn=True)
    assert caught.value.expected == "true, false, 1 or 0, in any case"


def test_classes_are_told_apart_by_every_letter() -> None:
    made = task(classes=("cat", "Cat", "새"))
    assert [made.encode(sample, None, learn=True).target for sample in samples("cat", "Cat", "새")] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    with pytest.raises(DataError, match="s0: label 'car'") as caught:
        made.encode(samples("car")[0], None, learn=True)
    assert caught.value.fix == "did you mean 'cat'?"
    with pytest.raises(DataError, match="'cat', 'Cat'"):
        made.encode(samples(("cat", "Cat"))[0], None, learn=True)


def test_classes_may_be_called_true_and_false() -> None:
    """As YAML reads `[true,false]`."""
    made = task(classes=(True, False))
    assert made.decoding["classes"] == ["true", "false"]
    assert made.encode(samples("false")[0], None, learn=True).target == (0, 1)


def test_classes_may_be_numbers() -> None:
    made = task(classes=(0, 1, 2))
    assert made.encode(samples("2")[0], None, learn=True).target == (0, 0, 1)
    assert made.decoding["classes"] == ["0", "1", "2"]


def test_a_row_of_no_class_says_so() -> None:
    made = task(classes=("cat", "dog"), multi_label=True)
    rows = samples("none", ("dog", "cat"), "dog")
    assert [made.encode(sample, None, learn=True).target for sample in rows] == [(0, 0), (1, 1), (0, 1)]
    assert [made.truth(sample) for sample in rows] == [[], ["cat", "dog"], ["dog"]]
    for wrong in ((), ("none", "cat")):
        with pytest.raises(DataError, match="s0: label"):
            made.encode(samples(wrong)[0], None, learn=True)
    own = task(classes=("none", "cat"), multi_label=True)
    assert own.encode(samples("none")[0], None, learn=True).target == (1, 0), "a class of that name is that class"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"classes": ("one",)}, "two or more"),
        ({"classes": ("a", "b", "a")}, "two or more different names"),
        ({"multi_label": True}, "without classes"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"threshold": "recall"}, "f1"),
        ({"classes": ("a", "b"), "threshold": 0.4}, "the most probable one is taken"),
        ({"classes": ("a", "b"), "threshold": "f1"}, "the most probable one is taken"),
        ({"classes": ("a", "b"), "multi_label": True, "threshold": "f1"}, "yes or no alone"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        classify.Config(**options)


def test_probabilities_are_those_of_the_logits() -> None:
    (answer,) = task().read(column(2.0))
    assert answer == {"label": "true", "probability": pytest.approx(1 / (1 + math.exp(-2))), "logits": [2.0]}
    (answer,) = task(classes=("a", "b")).read(torch.tensor([[0.0, math.log(3)]]))
    assert answer["probabilities"] == pytest.approx({"a": 0.25, "b": 0.75})
    assert answer["label"] == "b"
    (answer,) = task(classes=("a", "b"), multi_label=True, threshold=0.6).read(torch.tensor([[0.2, 3.0]]))
    assert answer["label"] == ["b"]
    assert answer["probabilities"]["a"] == pytest.approx(1 / (1 + math.exp(-0.2)))


def test_sure_answers_are_still_ranked() -> None:
    """In float32 the sigmoid of 18 and of 25 is 1."""
    made, rows = task(), samples("0", "1", "0", "1")
    scores = made.score(made.read(column(18.0, 25.0, -1.0, 20.0)), rows)
    assert scores.corpus["auroc"] == 1.0


def test_the_threshold_divides_yes_from_no() -> None:
    made = task(threshold=0.7)
    assert [made.read(column(math.log(p / (1 - p))))[0]["label"] for p in (0.69, 0.71)] == ["false", "true"]
    assert made.decoding["threshold"] == 0.7


def test_validation_chooses_what_the_recipe_asks_for() -> None:
    made, rows = task(threshold="f1"), samples("0", "0", "0", "1", "0", "1", "1")
    logits = column(-6.0, -5.0, -4.0, -3.0, -3.5, -2.0, -2.5)  # right in order, wrong about one half
    assert made.threshold == 0.5, "before it was chosen"
    assert {answer["label"] for answer in made.read(logits)} == {"false"}
    made.decision = made.settle(made.read(logits), rows)
    assert set(made.decision) == {"temperature", "thresholds"}
    assert made.threshold == made.decision["thresholds"]["f1"] != 0.5
    assert [answer["label"] for answer in made.read(logits)] == [made.truth(row) for row in rows]
    details = made.details(made.read(logits), rows)
    assert details["threshold"] == made.threshold
    assert details["threshold_by"] == "f1"
    assert details["confusion"] == {"tp": 3, "tn": 4, "fp": 0, "fn": 0}
    assert details["chosen_on_validation"]["f1"]["f1"] == 1.0
    assert set(details["chosen_on_validation"]["accuracy"]) == {
        "threshold",
        "accuracy",
        "precision",
        "recall",
        "f1",
        "tp",
        "tn",
        "fp",
        "fn",
    }


def test_the_temperature_softens_and_changes_no_answer() -> None:
    made, rows = task(), samples("0", "1", "0", "1", "1", "0")
    logits = column(-9.0, 9.0, 8.0, 9.5, -7.0, -9.5)  # sure, and wrong a third of the time
    before = made.read(logits)
    made.decision = made.settle(before, rows)
    after = made.read(logits)
    assert made.decision["temperature"] > 3
    assert [answer["label"] for answer in after] == [answer["label"] for answer in before]
    assert [answer["logits"] for answer in after] == [answer["logits"] for answer in before], "raw ones are kept"
    calibration = made.details(after, rows)["calibration"]
    assert calibration["temperature"] == made.decision["temperature"]
    assert calibration["ece"] < calibration["ece_before"] == pytest.approx(1 / 3, abs=0.01)


def test_one_class_chooses_nothing_and_can_be_scored() -> None:
    made, rows = task(), samples("0", "0", "0")
    answers = made.read(column(-1.0, 2.0, -3.0))
    assert made.settle(answers, rows) == {}
    scores = made.score(answers, rows)
    assert math.isnan(scores.corpus["auroc"])
    assert scores.corpus["accuracy"] == pytest.approx(2 / 3)
    assert made.details(answers, rows)["confusion"] == {"tp": 0, "tn": 2, "fp": 1, "fn": 0}


def test_a_threshold_needs_a_validation_that_can_choose_it() -> None:
    made = task(threshold="accuracy")
    with pytest.raises(DataError, match=r"split val: one class only \(2 of '0'\)") as caught:
        made.check(samples("0", "0"), "val")
    assert "tasks.label.threshold=accuracy" in caught.value.expected
    with pytest.raises(DataError, match="split val: one class only \\(it has no samples\\)"):
        made.check([], "val")
    made.check(samples("0", "1"), "val")
    task().check([], "val")


def test_answers_without_looking() -> None:
    made = task()
    assert made.prior(samples("1", "0", "0", "0")) == {"label": "false", "probability": 0.25}
    assert made.from_neighbours(samples("1", "1", "0"))["probability"] == pytest.approx(2 / 3)
    assert task(classes=("a", "b", "c")).prior(samples("a", "b", "b", "b"))["probabilities"] == {"a": 0.25, "b": 0.75, "c": 0.0}
    both = task(classes=("a", "b"), multi_label=True)
    assert both.prior(samples("a", ("a", "b"), "none", "a")) == {"label": ["a"], "probabilities": {"a": 0.75, "b": 0.25}}
