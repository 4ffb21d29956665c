"""A picture is read and encoded once however many questions it has, and the answers are those of one question at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from eyegraft.answering import answer_samples, num_tokens, readers_of
from eyegraft.data.inputs import ImageReader
from eyegraft.errors import DataError
from eyegraft.evaluation.baselines import blank
from eyegraft.tasks.vqa import Config, VqaTask, build
from eyegraft.types import Sample, Tokens

QUESTIONS = ["What is drawn here?", "무슨 색?", "What?", "Is it a red square?", "Which shape is it, and why?"]


class Padder(torch.nn.Module):
    """Pads every second batch of pictures further than the others, as encoders of pictures in their own size do."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.spec, self.token_dim, self.calls = encoder, encoder.spec, encoder.token_dim, 0

    def forward(self, inputs: Any) -> Tokens:
        self.calls += 1
        tokens = self.encoder(inputs)
        more = 3 * (self.calls % 2)
        values, mask = torch.nn.functional.pad(tokens.values, (0, 0, 0, more), value=7.0), torch.nn.functional.pad(tokens.mask, (0, more))
        return replace(tokens, values=values, mask=mask, grid=None)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Six pictures with one to twelve questions each, in any order."""
    rows = []
    for number, count in enumerate((1, 5, 2, 12, 1, 4)):
        picture = tiny.picture(
            tmp_path / f"{number}.png", ("red", "blue", "green")[number % 3], ("square", "circle")[number % 2], 40 + number
        )
        rows += [Sample(f"{number}/{ask}", picture, prompt=QUESTIONS[ask % len(QUESTIONS)]) for ask in range(count)]
    random.Random(0).shuffle(rows)
    return rows


def ask(**options: Any) -> VqaTask:
    return build("ask", Config.model_validate({"max_new_tokens": 6, **options}))


def made(make_graft: Callable[..., Any], **changes: Any) -> tuple[Any, Any]:
    recipe, model = make_graft(**changes)
    tiny.lively(model.head, scale=3.0)
    tiny.lively(model.connectors, scale=8.0)
    return recipe, model.eval()


def one_at_a_time(model: Any, task: VqaTask, samples: list[Sample], readers: Any) -> list[Any]:
    return [answer_samples(model, task, [sample], readers, batch_size=1)[0] for sample in samples]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that were read, in order."""
    found: list[str] = []
    plain = ImageReader.read
    monkeypatch.setattr(
        ImageReader,
        "read",
        lambda self, samples, seeds: found.extend(sample.image.name for sample in samples) or plain(self, samples, seeds),
    )
    return found


def encoded(model: Any) -> list[int]:
    """How many pictures each call of the image encoder was given from now on."""
    sizes: list[int] = []
    model.encoders["image"].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("head", ["prefix_lm", "cross_attention_lm"])
def test_a_picture_is_encoded_once(
    make_graft: Callable[..., Any], folders: Any, samples: list[Sample], read: list[str], head: str, batch_size: int
) -> None:
    extra = {"gate": "none", "num_layers": 2} if head == "cross_attention_lm" else {}
    recipe, model = made(make_graft, head={"kind": head, "model": folders.lm(), **extra})
    readers, task = readers_of(model, recipe), ask()
    expected = one_at_a_time(model, task, samples, readers)
    assert len(set(expected)) > 6, "else any order would do"
    read.clear()
    sizes = encoded(model)
    assert answer_samples(model, task, samples, readers, batch_size=batch_size) == expected
    assert sorted(read) == [f"{number}.png" for number in range(6)]
    assert sum(sizes) == 6 + 1, "and once a blank one, whose tokens are counted"


def test_choices_share_the_picture_too(make_graft: Callable[..., Any], samples: list[Sample], read: list[str]) -> None:
    recipe, model = made(make_graft)
    readers, task = readers_of(model, recipe), ask(choices=["red", "blue", "a green triangle"])
    expected = one_at_a_time(model, task, samples, readers)
    read.clear()
    answers = answer_samples(model, task, samples, readers, batch_size=5)
    assert len(read) == 6
    for answer, other in zip(answers, expected, strict=True):
        assert (answer["answer"], answer["generated"]) == (other["answer"], other["generated"])
        assert answer["scores"] == pytest.approx(other["scores"], abs=1e-3)


def test_batches_of_fewer_tokens_are_joined(make_graft: Callable[..., Any], samples: list[Sample]) -> None:
    """A picture whose questions fill more than one batch stands beside pictures that were encoded later, to another number of tokens."""
    recipe, model = made(make_graft)
    readers, task = readers_of(model, recipe), ask()
    expected = one_at_a_time(model, task, samples, readers)
    model.encoders["image"] = Padder(model.encoders["image"])
    assert answer_samples(model, task, samples, readers, batch_size=4) == expected
    assert model.encoders["image"].calls > 3


def test_a_blank_picture_stays_the_same_for_all(make_graft: Callable[..., Any], samples: list[Sample], read: list[str]) -> None:
    recipe, model = made(make_graft)
    readers = {**readers_of(model, recipe), "image": blank(model, "image")}
    read.clear()
    answers = answer_samples(model, ask(), samples, readers, batch_size=5)
    assert read == []
    by_question = {sample.prompt: answer for sample, answer in zip(samples, answers, strict=True)}
    assert answers == [by_question[sample.prompt] for sample in samples]


def test_a_broken_picture_names_its_sample(make_graft: Callable[..., Any], samples: list[Sample], tmp_path: Path) -> None:
    recipe, model = made(make_graft)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="sample '3/"):
        answer_samples(model, ask(), samples, readers_of(model, recipe), batch_size=5)


def test_image_tokens_that_are_attended_to_take_no_room(make_graft: Callable[..., Any], folders: Any, samples: list[Sample]) -> None:
    _, before = made(make_graft)
    recipe, beside = made(make_graft, head={"kind": "cross_attention_lm", "model": folders.lm(), "num_layers": 1})
    assert num_tokens(before) == 16
    assert num_tokens(beside) == 0
    asked = [replace(samples[0], prompt="What? " * 78)]
    text = ask().encode(asked[0], beside.head.tokenizer, learn=False)
    assert 256 - 16 <= len(text.input_ids) < 256
    assert len(answer_samples(beside, ask(), asked, readers_of(beside, recipe), batch_size=1)) == 1
    with pytest.raises(DataError, match="leave no room for an answer"):
        answer_samples(before, ask(), asked, readers_of(before, recipe), batch_size=1)
