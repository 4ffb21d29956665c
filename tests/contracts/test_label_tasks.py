"""Every task that answers in labels keeps the promises of `eyegraft.tasks.Task`."""

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

pytestmark = pytest.mark.parametrize("case", cases("tasks", speaks="labels"))


@pytest.fixture
def built(case: tuple[str, str], folders: Any) -> tuple[Any, int]:
    module, config = part("tasks", case, folders)
    return module.build("NAMED", config), module.num_outputs(config)


@pytest.fixture
def made(built: tuple[Any, int]) -> Any:
    return built[0]


@pytest.fixture
def samples(made: Any) -> list[Sample]:
    names = made.config.classes or ("False", "1")
    wanted = [(names[place % len(names)],) for place in range(12)]
    if made.config.multi_label:
        wanted[3:6] = [names[:2], (names[2], names[0]), ("none",)]
    return [Sample(f"row-{place}", None, references=labels) for place, labels in enumerate(wanted)]


def logits_of(made: Any, samples: list[Sample], size: float = 3.0, noise: float = 0.0) -> torch.Tensor:
    """[B, K] that answer rightly, but for the noise."""
    targets = torch.tensor([made.encode(sample, None, learn=True).target for sample in samples])
    return (2 * targets - 1) * size + noise * torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("tasks", case, folders))


def test_it_says_what_it_is(made: Any, samples: list[Sample]) -> None:
    assert made.name == "NAMED"
    assert set(made.objectives) <= set(kinds("objectives"))
    assert made.decoding["do_sample"] is False
    scores = made.score(made.read(logits_of(made, samples)), samples)
    assert set(made.directions) == set(scores.corpus), "early stopping may watch any of them"
    assert dict(made.directions) == {name: scores.higher_is_better.get(name, True) for name in scores.corpus}


def test_targets_are_known_when_learned_and_unknown_when_asked(built: tuple[Any, int], samples: list[Sample]) -> None:
    made, num_outputs = built
    for sample in samples:
        learned, asked = (made.encode(sample, None, learn=learn) for learn in (True, False))
        assert learned.input_ids == asked.input_ids == ()
        assert len(learned.target) == len(asked.target) == num_outputs
        assert set(learned.target) <= {0.0, 1.0}
        assert all(math.isnan(value) for value in asked.target)
    assert made.encode(Sample("asked", None), None, learn=False).target, "what is predicted has no label"


def test_answers_are_json_and_in_order(made: Any, samples: list[Sample]) -> None:
    answers = made.read(logits_of(made, samples))
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers
    assert [answer["label"] for answer in answers] == [made.truth(sample) for sample in samples]


def test_the_head_is_asked_once_and_shares_are_kept(made: Any, samples: list[Sample]) -> None:
    logits = logits_of(made, samples, noise=1.0)
    plain = Tokens(torch.zeros(len(samples), 1, 2), torch.ones(len(samples), 1, dtype=torch.bool))
    assert made.answer(lambda tokens, batch: (logits, None), plain, None) == made.read(logits)
    share = torch.linspace(0, 1, len(samples))
    weighted = Tokens(plain.values, plain.mask, weights={"image": share, "text": 1 - share})
    answers = made.answer(lambda tokens, batch: (logits, None), weighted, None)
    assert [answer["weights"]["image"] for answer in answers] == share.tolist()
    assert [{name: value for name, value in answer.items() if name != "weights"} for answer in answers] == made.read(logits)


def test_better_answers_score_better(made: Any, samples: list[Sample]) -> None:
    right, wrong = (made.score(made.read(sign * logits_of(made, samples)), samples) for sign in (1, -1))
    for name, higher in made.directions.items():
        assert (right.corpus[name] > wrong.corpus[name]) is higher, name
    assert all(len(values) == len(samples) for values in right.per_sample.values())
    assert set(right.signature) >= set(right.corpus) == set(right.per_sample) | set(right.statistics)


def test_blind_answers_can_be_scored(made: Any, samples: list[Sample]) -> None:
    prior = made.prior(samples)
    assert json.loads(json.dumps(prior)) == prior
    assert made.from_neighbours(samples[:1])["label"] == made.truth(samples[0])
    scores = made.score([prior] * len(samples), samples)
    assert scores.corpus["auroc"] == pytest.approx(0.5), "who does not look cannot rank"


def test_what_validation_chooses_is_json_and_changes_no_ranking(made: Any, samples: list[Sample]) -> None:
    logits = logits_of(made, samples, size=0.5, noise=1.0)
    before = made.score(made.read(logits), samples)
    made.decision = made.settle(made.read(logits), samples)
    assert json.loads(json.dumps(made.decision, allow_nan=False)) == made.decision
    after = made.score(made.read(logits), samples)
    if not made.config.exclusive:  # a softmax of scaled logits ranks samples of one class anew
        assert after.corpus["auroc"] == pytest.approx(before.corpus["auroc"])
    if "log_loss" in before.corpus:
        assert after.corpus["log_loss"] <= before.corpus["log_loss"] + 1e-9, "on what it was fitted to, calibration does no harm"
    assert json.dumps(made.details(made.read(logits), samples), allow_nan=False)


def test_every_unusable_label_is_named(made: Any, samples: list[Sample]) -> None:
    bad = [Sample("row-x", None, references=("ca",)), Sample("row-y", None), Sample("row-z", None, references=("ja", "nein"))]
    with pytest.raises(DataError, match="row-x: label 'ca'") as alone:
        made.encode(bad[0], None, learn=True)
    assert "NAMED" in alone.value.fix or "did you mean 'cat'" in alone.value.fix
    with pytest.raises(DataError, match="split test: 3 of 15 rows have no usable label") as caught:
        made.check([*samples[:5], *bad, *samples[5:]], "test")
    assert [name in caught.value.given for name in ("row-x", "row-y: label nothing", "row-z: label 'ja', 'nein'")] == [True] * 3
    assert "row-3" not in caught.value.given


def test_one_kind_of_label_teaches_nothing(made: Any, samples: list[Sample]) -> None:
    same = [Sample(f"row-{place}", None, references=samples[0].references) for place in range(4)]
    with pytest.raises(DataError, match=f"split train: one class only \\(4 of {samples[0].references[0]!r}\\)"):
        made.check(same, "train")
    for split in ("val", "test"):
        made.check(same, split)
    made.check(samples, "train")
