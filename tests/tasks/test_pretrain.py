"""A task without answers: rows need no labels, and whoever asks for answers is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from eyegraft.config import Part, Settings
from eyegraft.errors import RecipeError
from eyegraft.registry import configured, kinds
from eyegraft.tasks import pretrain
from eyegraft.training.early_stopping import watched_direction
from eyegraft.types import Sample

ROWS = [Sample("labelled", None, references=("281.5",)), Sample("unknown", None, references=("nan",)), Sample("without", None)]


@pytest.fixture
def task() -> Any:
    return pretrain.build("look", pretrain.Config())


def test_it_learns_by_objectives_that_read_encoders(task: Any) -> None:
    assert set(task.objectives) <= set(kinds("objectives"))
    for kind in task.objectives:
        module, config = configured("objectives", Part(kind=kind))
        assert module.build(config).reads == ("image",)
    assert not task.reads_logits


def test_labels_are_not_looked_at(task: Any) -> None:
    task.check(ROWS, "train")
    task.check([], "val")
    assert task.learn(ROWS) == {}
    assert [task.encode(row, None, learn=True) for row in ROWS] == [task.encode(ROWS[2], None, learn=False)] * 3
    assert task.encode(ROWS[0], None, learn=True).target == ()
    assert task.encode_rows(ROWS).values.shape == (3, 0)
    assert task.settle([], ROWS) == {}


@pytest.mark.parametrize(
    "ask",
    [
        lambda task: task.answer(None, None, None),
        lambda task: task.read(Tensor()),
        lambda task: task.score([], ROWS),
        lambda task: task.prior(ROWS),
        lambda task: task.from_neighbours(ROWS),
        lambda task: task.truth(ROWS[0]),
        lambda task: task.details([], ROWS),
    ],
)
def test_whoever_asks_for_an_answer_is_told(task: Any, ask: Callable[[Any], object]) -> None:
    with pytest.raises(RecipeError, match=r"tasks\.look has no answers: nothing to score") as caught:
        ask(task)
    assert "--stage NAME" in caught.value.fix


def test_validation_gives_a_loss_alone(task: Any) -> None:
    assert watched_direction(Settings(), "first", task, ROWS) is False
    with pytest.raises(RecipeError, match=r"stages\.first\.early_stopping\.metric='val_rmse'") as caught:
        watched_direction(Settings.model_validate({"early_stopping": {"metric": "val_rmse"}}), "first", task, ROWS)
    assert caught.value.expected == "one of val_loss"


def test_the_head_is_made_for_the_tasks_that_answer(make_graft: Callable[..., Any]) -> None:
    plain: dict[str, Any] = {"pooling": {"kind": "mean"}, "connector": None, "fusion": {"kind": "concat"}}
    tasks = {"look": {"kind": "pretrain"}, "ta": {"kind": "regress", "distribution": "gaussian"}}
    stages = {"look": {"task": "look"}, "ta": {"task": "ta"}}
    _, model = make_graft(**plain, head={"kind": "regressor"}, tasks=tasks, stages=stages)
    assert model.head.last.out_features == 2
    make_graft(tasks={"look": {"kind": "pretrain"}, "caption": {"kind": "caption"}}, stages={"look": {"task": "caption"}})
    with pytest.raises(RecipeError, match="tasks look have no answers") as caught:
        make_graft(tasks={"look": {"kind": "pretrain"}})
    assert "run_stages" in caught.value.fix
