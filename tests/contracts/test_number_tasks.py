"""Every task that answers in numbers keeps the promises of `eyegraft.tasks.Task`."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from contracts.samples import cases, part, rejects_unknown_keys
from eyegraft.errors import DataError
from eyegraft.registry import kinds
from eyegraft.types import Sample, Tokens

pytestmark = pytest.mark.parametrize("case", cases("tasks", speaks="numbers"))


@pytest.fixture
def samples() -> list[Sample]:
    return [Sample(f"row-{place}", None, references=(str(280 + 1.5 * place),)) for place in range(12)]


@pytest.fixture
def built(case: tuple[str, str], folders: Any, samples: list[Sample]) -> tuple[Any, int]:
    module, config = part("tasks", case, folders)
    task = module.build("NAMED", config)
    task.learned = task.learn(samples)
    return task, module.num_outputs(config)


@pytest.fixture
def made(built: tuple[Any, int]) -> Any:
    return built[0]


def logits_of(built: tuple[Any, int], samples: list[Sample], noise: float = 0.0) -> torch.Tensor:
    """[B, outputs] that answer rightly, but for the noise."""
    task, num_outputs = built
    targets = torch.tensor([task.encode(sample, None, learn=True).target for sample in samples])
    targets = targets + noise * torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([targets, torch.zeros(len(samples), num_outputs - 1)], dim=1)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("tasks", case, folders))


def test_it_says_what_it_is(built: tuple[Any, int], samples: list[Sample]) -> None:
    made, _ = built
    assert made.name == "NAMED"
    assert set(made.objectives) <= set(kinds("objectives"))
    assert made.decoding["do_sample"] is False
    scores = made.score(made.read(logits_of(built, samples)), samples)
    assert set(made.directions) == set(scores.corpus) - scores.undirected, "early stopping may watch any of them"
    assert all(scores.higher_is_better[name] is higher for name, higher in made.directions.items())


def test_what_is_learned_of_the_training_split_is_json(made: Any, samples: list[Sample]) -> None:
    assert json.loads(json.dumps(made.learned, allow_nan=False)) == made.learned


def test_targets_are_known_when_learned_and_unknown_when_asked(made: Any, samples: list[Sample]) -> None:
    targets = torch.tensor([made.encode(sample, None, learn=True).target for sample in samples])
    assert float(targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(targets.std(correction=0)) == pytest.approx(1, abs=1e-6)
    asked = made.encode(Sample("asked", None), None, learn=False)
    assert len(asked.target) == targets.shape[1]
    assert all(math.isnan(value) for value in asked.target)


def test_answers_are_json_in_the_users_unit_and_in_order(built: tuple[Any, int], samples: list[Sample]) -> None:
    answers = built[0].read(logits_of(built, samples))
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers
    assert [answer["value"] for answer in answers] == pytest.approx([built[0].truth(sample) for sample in samples], abs=1e-4)
    assert {answer["unit"] for answer in answers} == {built[0].config.unit}


def test_the_head_is_asked_once_and_shares_are_kept(built: tuple[Any, int], samples: list[Sample]) -> None:
    made, logits = built[0], logits_of(built, samples)
    plain = Tokens(torch.zeros(len(samples), 1, 2), torch.ones(len(samples), 1, dtype=torch.bool))
    assert made.answer(lambda tokens, batch: (logits, None), plain, None) == made.read(logits)
    weighted = Tokens(plain.values, plain.mask, weights={"image": torch.linspace(0, 1, len(samples))})
    answers = made.answer(lambda tokens, batch: (logits, None), weighted, None)
    assert answers[-1] == {**made.read(logits)[-1], "weights": {"image": 1.0}}


def test_better_answers_score_better(built: tuple[Any, int], samples: list[Sample]) -> None:
    good, bad = (built[0].score(built[0].read(logits_of(built, samples, noise)), samples) for noise in (0.1, 1.0))
    for name, higher in built[0].directions.items():
        assert (good.corpus[name] > bad.corpus[name]) is higher, name
    assert all(len(values) == len(samples) for values in good.per_sample.values())
    assert set(good.signature) >= set(good.corpus) == set(good.per_sample) | set(good.statistics)


def test_blind_answers_can_be_scored(made: Any, samples: list[Sample]) -> None:
    prior = made.prior(samples)
    assert prior["value"] == made.learned["mean"]
    assert made.from_neighbours(samples[:3])["value"] == 281.5
    scores = made.score([prior] * len(samples), samples)
    assert scores.corpus["r2"] == pytest.approx(0)
    assert scores.corpus["rmse_norm"] == pytest.approx(1)


def test_what_validation_chooses_is_json_and_changes_no_value(built: tuple[Any, int], samples: list[Sample]) -> None:
    made, logits = built[0], logits_of(built, samples, noise=0.5)
    before = made.read(logits)
    made.decision = made.settle(before, samples)
    assert json.loads(json.dumps(made.decision, allow_nan=False)) == made.decision
    assert [answer["value"] for answer in made.read(logits)] == [answer["value"] for answer in before]
    assert json.dumps(made.details(made.read(logits), samples), allow_nan=False)


def test_every_unusable_number_is_named(made: Any, samples: list[Sample]) -> None:
    bad = [Sample("row-x", None, references=("warm",)), Sample("row-y", None), Sample("row-z", None, references=("1", "2"))]
    with pytest.raises(DataError, match=r"row-x: .* is 'warm'"):
        made.encode(bad[0], None, learn=True)
    with pytest.raises(DataError, match="split test: 3 of 15 rows have no usable number") as caught:
        made.check([*samples[:5], *bad, *samples[5:]], "test")
    assert [name in caught.value.given for name in ("row-x", "row-y", "row-z")] == [True] * 3
    assert "row-3" not in caught.value.given
    for split in ("train", "val", "test"):
        made.check(samples, split)
