"""What each view of a panorama is worth to an answer: against the loss itself, and 0 where a view has nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eyegraft.answering import pad_id_of, readers_of
from eyegraft.data.batches import Examples, load_batches
from eyegraft.evaluation import view_worth
from eyegraft.evaluation.view_worth import worst_first, worths_of_views
from eyegraft.model import Graft
from eyegraft.tasks.caption import CaptionTask, Config
from eyegraft.types import Batch, Sample, Scores, Tokens

ANSWERS = ["a red square", "파란 동그라미"]


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    for number, colour in enumerate(("red", "blue")):
        picture = Image.new("RGB", (96, 48), "white")
        picture.paste(colour, (10, 10, 40, 30))
        picture.save(tmp_path / f"{number}.png")
    asked = ["What is drawn here?", "무엇이 그려져 있나요?"]
    return [Sample(str(n), tmp_path / f"{n}.png", prompt=asked[n], references=("else",)) for n in range(2)]


@pytest.fixture
def build(make_graft: Callable[..., Any]) -> Callable[..., tuple[Any, Graft, CaptionTask]]:
    def built(strategy: str | None = "anyres_e2p", connector: str = "mlp") -> tuple[Any, Graft, CaptionTask]:
        views = {"strategy": strategy, "fov_degrees": 90, "overlap": 0} if strategy else None
        recipe, model = make_graft(views=views, connector={"kind": connector})
        return recipe, model.eval(), CaptionTask("caption", Config())

    return built


def scores(values: list[float]) -> Scores:
    return Scores({"cider": 0.0}, {"cider": values}, {})


def measured(recipe: Any, model: Graft, task: CaptionTask, samples: list[Sample]) -> tuple[Any, dict[int, list[float]]]:
    return worths_of_views(model, task, samples, ANSWERS, scores([0.5, 0.1]), readers_of(model, recipe))


@pytest.mark.parametrize("connector", ["mlp", "perceiver"])
def test_a_worth_is_what_the_loss_of_the_own_answer_rises_by(build: Any, samples: list[Sample], connector: str) -> None:
    recipe, model, task = build(connector=connector)
    info, found = measured(recipe, model, task, samples)
    assert (info["num_samples"], len(info["layout"]), set(found)) == (2, 5, {0, 1})
    for place, sample in enumerate(samples):
        own = replace(sample, references=(ANSWERS[place],))
        encoded = task.encode(own, model.head.tokenizer, learn=True)
        batch = next(load_batches(Examples([own], [encoded], readers_of(model, recipe)), [[0]], pad_id=pad_id_of(model)))
        with torch.no_grad():
            image = model.encode(batch)["image"]
            per_view = image.mask.shape[1] // 5

            def loss(hidden: int | None, image: Tokens = image, batch: Batch = batch, per_view: int = per_view) -> float:
                mask = image.mask.clone()
                if hidden is not None:
                    mask[:, hidden * per_view : (hidden + 1) * per_view] = False
                logits, labels = model.head(model.connect({"image": replace(image, mask=mask)}), batch)
                return float(torch.nn.functional.cross_entropy(logits[0].float(), labels[0]))

            expected = [loss(view) - loss(None) for view in range(5)]
        assert found[place] == pytest.approx(expected, abs=2e-4)
    assert max(map(abs, found[0])) > 1e-4


def test_a_view_that_says_nothing_is_worth_nothing(build: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """View 2 never reaches the answer, whatever it shows."""
    recipe, model, task = build("cubemap", "perceiver")
    encode = model.encode

    def deaf(batch: Batch) -> dict[str, Tokens]:
        image = encode(batch)["image"]
        mask = image.mask.clone()
        mask.unflatten(1, (4, -1))[:, 2] = False
        return {"image": replace(image, mask=mask)}

    monkeypatch.setattr(model, "encode", deaf)
    _, found = measured(recipe, model, task, samples)
    assert [worths[2] for worths in found.values()] == [0.0, 0.0]
    assert any(worths[0] != 0 for worths in found.values())


def test_only_the_worst_are_measured(build: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_worth, "MAX_SAMPLES", 1)
    info, found = measured(*build(), samples)
    assert (info["num_samples"], set(found)) == (1, {1})


def test_order_is_by_metric_after_metric() -> None:
    several = Scores({"exact": 0, "wer": 0, "bias": 0}, {"exact": [1, 0, 0], "wer": [0, 2, 3], "bias": [9, 9, 9]}, {}, {"wer": False})
    assert worst_first(replace(several, undirected=frozenset({"bias"})), 3) == [2, 1, 0]


def test_an_answer_that_was_cut_to_nothing_is_measured_too_and_one_that_does_not_fit_is_left_out(build: Any, samples: list[Sample]) -> None:
    recipe, model, task = build()
    found = worths_of_views(model, task, samples, ["", "red " * 400], scores([0, 0]), readers_of(model, recipe))[1]
    assert set(found) == {0}, "of an empty answer, the token that ends it"


def test_without_views_there_is_nothing_to_say(build: Any, samples: list[Sample]) -> None:
    assert measured(*build(None), samples) == (None, {})
    info, found = measured(*build("resize"), samples)
    assert (len(info["layout"]), found) == (1, {}), "one view cannot be taken away"
