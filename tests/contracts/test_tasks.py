"""Every task that answers in text keeps the promises of `eyegraft.tasks.Task`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.samples import cases, part, rejects_unknown_keys
from eyegraft.errors import DataError
from eyegraft.registry import kinds
from eyegraft.types import IGNORE, Sample

pytestmark = pytest.mark.parametrize("case", cases("tasks", speaks="text"))
TARGET = "초록 삼각형, a green triangle"
META = {
    "condition": "thea",
    "sentences": ["The colors show warmth.", "It lies in the north.", "So it is warm there."],
    "summary": "It warms.",
    "captions": [{"condition": "thea", "caption": "It is warm."}, {"condition": "mcon", "caption": "It is moist."}],
}
"""What tasks about weather maps fill their prompts from."""


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("tasks", case, folders)
    return module.build("NAMED", config)


@pytest.fixture
def tokenizer(folders: Any) -> Any:
    return folders.tokenizer()


def sample(**changes: Any) -> Sample:
    return Sample(**{"id": "row-17", "image": Path("a.png"), "references": (TARGET, "another"), "meta": META, **changes})


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("tasks", case, folders))


def test_it_says_what_it_is(made: Any) -> None:
    assert made.name == "NAMED"
    assert set(made.objectives) <= set(kinds("objectives"))
    assert made.objectives
    assert isinstance(made.prompt, str)
    assert made.decoding["do_sample"] is False, "results must be the same twice"


@pytest.mark.parametrize("own", [None, "Which colour?"])
def test_the_prompt_is_not_learned_and_the_end_is(made: Any, tokenizer: Any, own: str | None) -> None:
    text = made.encode(sample(prompt=own), tokenizer, learn=True)
    learned = [label for label in text.labels if label != IGNORE]
    assert len(text.input_ids) == len(text.labels)
    assert learned[-1] == tokenizer.eos_token_id
    assert learned.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(learned[:-1]).strip() == TARGET
    assert all(label in (IGNORE, token) for label, token in zip(text.labels, text.input_ids, strict=True))
    before = tokenizer.decode([token for token, label in zip(text.input_ids, text.labels, strict=True) if label == IGNORE])
    assert (own or made.prompt.partition("{")[0]) in before
    assert TARGET not in before


def test_what_is_asked_is_what_was_learned_after(made: Any, tokenizer: Any) -> None:
    """Generation starts from exactly the tokens that stand before the first label in training."""
    asked = made.encode(sample(references=()), tokenizer, learn=False)
    learned = made.encode(sample(), tokenizer, learn=True)
    start = next(place for place, label in enumerate(learned.labels) if label != IGNORE)
    assert asked.input_ids == learned.input_ids[:start]
    assert set(asked.labels) <= {IGNORE}


def test_an_error_names_the_sample(made: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="row-17") as caught:
        made.encode(sample(references=("a very long text " * 400,)), tokenizer, learn=True)
    assert "NAME." not in str(caught.value)
    assert "tasks.NAMED." in caught.value.fix


def test_a_perfect_answer_has_the_best_score(made: Any) -> None:
    rows = [sample(id=str(n), references=(text,)) for n, text in enumerate(("a red square", "a blue circle", "a green triangle"))]
    right, wrong = made.score([row.references[0] for row in rows], rows), made.score(["nothing of that"] * 3, rows)
    assert set(right.corpus) == set(right.per_sample) | (set(right.corpus) - set(right.per_sample))
    assert all(len(values) == 3 for values in right.per_sample.values())
    assert set(right.signature) >= set(right.corpus)
    assert any(right.corpus[name] > wrong.corpus[name] for name in right.corpus)
