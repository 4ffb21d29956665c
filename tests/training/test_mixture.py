"""Several tasks in one stage: how they share an epoch, what is logged, and how each is scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import TESTS, Interrupted, rows, small_words, stop_before, tensors
from eyegraft import load_recipe, train
from eyegraft.composition import use_config_dir
from eyegraft.data.batches import Examples, mixed, shares_of
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError, RecipeError, RunError
from eyegraft.evaluation import evaluate
from eyegraft.serving import load_run
from eyegraft.types import Sample

Made = Callable[..., Any]
ROWS = {"name": 30, "colour": 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with two questions: their name, and of a third of them their colour."""
    folder = tiny.shapes(tmp_path_factory.mktemp("mixture") / "data", {"train": 30, "val": 6, "test": 3})
    for split in ("train", "val", "test"):
        table = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        both = [{**row, "task": "name"} for row in table]
        both += [{**row, "id": f"{row['id']}-colour", "task": "colour", "caption": row["caption"].split()[0]} for row in table[::3]]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both), encoding="utf-8")
    return folder


@pytest.fixture
def made(folders: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))

    def recipe(name: str, *words: str) -> Any:
        use_config_dir(str(TESTS / "cli" / "conf"))
        task = "{kind: caption, template: plain, max_new_tokens: 4, prompt: 'Name it:'}"
        where = (f"data.base_dir={data}", f"run_root={tmp_path / name}", "stages.only.epochs=2", "data.columns.task=task")
        asked = (f"tasks={{name: {task}, colour: {task}}}", "stages.only.tasks={name: 1, colour: 1}", "train.learning_rate=1e-3")
        return load_recipe("small", *small_words(folders)[1:], *where, *asked, *words)

    return recipe


def test_shares_follow_weight_rows_and_temperature() -> None:
    assert shares_of(ROWS, {"name": 1, "colour": 1}, None) == {"name": 20, "colour": 20}
    assert shares_of(ROWS, {"name": 0.3, "colour": 0.7}, None) == {"name": 12, "colour": 28}
    assert shares_of(ROWS, {"name": 1, "colour": 1}, 1.0) == ROWS
    assert shares_of(ROWS, {"name": 1, "colour": 1}, 2.0) == {"name": 25, "colour": 15}  # the roots of 3 and 1 are as 1.73 to 1
    assert shares_of({"a": 5, "b": 0}, {"a": 1, "b": 1}, None) == {"a": 5}, "a task without rows gives none"
    assert sum(shares_of({"a": 7, "b": 7, "c": 7}, {"a": 1, "b": 1, "c": 1.5}, None).values()) == 21


def test_a_task_goes_through_its_rows_before_any_comes_again() -> None:
    places = {"name": list(range(30)), "colour": list(range(30, 40))}
    first, again = (mixed(places, {"name": 20, "colour": 25}, seed=0, epoch=epoch) for epoch in (0, 1))
    tally = Counter(first)
    assert {tally[place] for place in places["colour"]} == {2, 3}
    assert max(tally[place] for place in places["name"]) == 1
    assert first == mixed(places, {"name": 20, "colour": 25}, seed=0, epoch=0) != again


def test_batches_of_a_mixture_have_the_shares_that_were_asked_for() -> None:
    samples = [Sample(f"{task}{n}", None, task=task) for task, count in ROWS.items() for n in range(count)]
    examples = Examples(samples, [Encoded((1,) * (n % 5 + 1), (1,) * (n % 5 + 1)) for n in range(40)], {}, weights={"name": 1, "colour": 3})
    order = examples.order(8, seed=0, epoch=0, grouped=True)
    assert Counter(samples[place].task for batch in order for place in batch) == {"name": 10, "colour": 30}


def test_each_task_is_logged_scored_and_asked_by_itself(made: Made, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(made("a", "evaluation.baselines=[most_frequent]"))
    found = rows(run)
    last, val = found[-2], found[-1]
    assert last["kind"] == "train"
    assert val["kind"] == "val"
    first = found[0]
    assert (first["kind"], first["step"]) == ("val", 0), "what the stage starts from"
    assert all(val[f"val_loss{of}"] < first[f"val_loss{of}"] for of in ("", "_name", "_colour"))
    assert last["tokens_name"] + last["tokens_colour"] == last["tokens"]
    for row in (row for row in found if row["kind"] == "train"):
        losses = [row[key] for key in ("loss_name", "loss_colour") if key in row]  # of the tasks of these steps
        assert losses
        assert min(losses) - 1e-6 <= row["loss"] <= max(losses) + 1e-6
    assert {key for row in found for key in row if key.startswith("loss_")} == {"loss_name", "loss_colour"}
    assert min(val["val_loss_name"], val["val_loss_colour"]) <= val["val_loss"] <= max(val["val_loss_name"], val["val_loss_colour"])
    results = evaluate(run)
    assert {name: result["num_samples"] for name, result in results.items()} == {"test.name": 3, "test.colour": 1}
    assert json.loads((run / "evaluation" / "test.colour.json").read_text(encoding="utf-8"))["task"] == "colour"
    picture = next(data.glob("**/*.png"))
    assert [len(load_run(run, task=task).predict([picture])) for task in (None, "name", "colour")] == [1, 1, 1]
    with pytest.raises(RunError, match="did you mean 'colour'"):
        load_run(run, task="color")


def test_a_mixture_goes_on_to_the_same_bits(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train.checkpoint_every=1", "stages.only.tasks.colour=3")
    whole = train(made("whole", *words))
    with monkeypatch.context() as patched:
        stop_before(patched, 7)
        with pytest.raises(Interrupted):
            train(made("cut", *words))
    cut = train(made("cut", *words))
    timeless = [[{key: value for key, value in row.items() if key != "seconds"} for row in rows(run)] for run in (whole, cut)]
    assert timeless[0] == timeless[1]
    assert tensors(whole) == tensors(cut)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.only.tasks={name: 0, colour: 0}"], "weights of tasks sum to 0"),
        (["stages.only.tasks={name: 1, color: 1}"], "did you mean 'colour'"),
        (["stages.only.task=name"], "beside tasks"),
        (["data.columns.task=null"], "data.columns.task names no column"),
        (["stages.only.tasks=null", "stages.only.task=name", "stages.only.temperature=2"], "name them in `tasks`"),
    ],
)
def test_what_cannot_be_mixed_is_said_at_once(made: Made, words: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        made("never", *words)


def test_a_weight_of_0_leaves_a_task_out(made: Made) -> None:
    run = train(made("one", "stages.only.tasks.colour=0", "stages.only.epochs=1"))
    assert not any(key.startswith("loss_") for row in rows(run) for key in row)
    assert set(evaluate(run)) == {"test"}


def test_a_task_without_training_rows_is_named(made: Made, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "train.jsonl"
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    other.write_text("".join(line.replace('"task": "colour"', '"task": "name"') for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match="no row of the training split is of task colour"):
        train(made("none", f"data.tables.train={other}"))


def test_a_task_that_was_not_learned_can_be_asked_too(made: Made) -> None:
    few = ("evaluation.baselines=[most_frequent]", "stages.only.epochs=1", "stages.only.tasks={name: 1, colour: 0}")
    results = evaluate(train(made("beside", *few, "evaluation.tasks=[colour]")))
    assert {name: result["num_samples"] for name, result in results.items()} == {"test": 3, "test.colour": 1}
    with pytest.raises(RecipeError, match=r"evaluation.tasks: given 'color'; expected caption, name, colour"):
        made("beside", *few, "evaluation.tasks=[color]")
