"""Texts beside a picture to token ids: nothing slips in, nothing is lost, and very long ones cost nothing."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from eyegraft.data.words import has_words, pad_ids, to_ids
from eyegraft.pretrained import ready
from eyegraft.types import TextSpec


def tokenizer_of(folders: Any, family: str) -> Any:
    ready()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders.text(family))


@pytest.fixture(params=["bert", "xlm-roberta"])
def spec(request: pytest.FixtureRequest, folders: Any) -> TextSpec:
    return TextSpec(tokenizer_of(folders, request.param), 16)


def test_a_text_stands_between_the_special_tokens(spec: TextSpec) -> None:
    ids = to_ids("a red square", spec)
    assert (ids[0], ids[-1]) == (spec.tokenizer.cls_token_id, spec.tokenizer.sep_token_id)
    assert spec.tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red square"
    assert to_ids("빨간 사각형", spec) != to_ids("파란 동그라미", spec)
    assert len(to_ids("🙂", spec)) >= 3


@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "\u3000\u00a0", "\u200b\u200d\ufeff", "\x00\x07"])
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_a_text_without_a_visible_character_is_empty(spec: TextSpec, text: str, prefix: str) -> None:
    assert to_ids(text, TextSpec(spec.tokenizer, 16, prefix)) == []
    assert not has_words(text)
    assert has_words(text + "a")


def test_white_space_counts_once(spec: TextSpec) -> None:
    assert to_ids("  a red\n\n \tsquare ", spec) == to_ids("a red square", spec)


def test_special_tokens_cannot_be_spelled(spec: TextSpec) -> None:
    tokenizer = spec.tokenizer
    words = [tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token, tokenizer.mask_token]
    wide = "".join(chr(ord(character) + 0xFEE0) for character in tokenizer.sep_token)  # full-width letters, which NFKC makes plain
    special = {tokenizer.convert_tokens_to_ids(word) for word in words}
    for text in (*words, wide, "".join(words), f"a{tokenizer.sep_token}red {tokenizer.cls_token} square", f"{tokenizer.pad_token} red"):
        ids = to_ids(text, spec)
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
        assert not special & set(ids[1:-1]), f"{text} gives {tokenizer.convert_ids_to_tokens(ids)}"
    assert set(tokenizer(tokenizer.sep_token, add_special_tokens=False)["input_ids"]) & special, "the tokenizer alone would take it"


def test_what_is_spelled_is_read_as_words(folders: Any) -> None:
    """WordPiece cuts at brackets, and so has words for it."""
    spec = TextSpec(tokenizer_of(folders, "bert"), 16)
    assert to_ids("[SEP] red", spec) == to_ids("[ SEP ] red", spec)


def test_words_beside_a_spelled_special_token_stay(spec: TextSpec) -> None:
    ids = to_ids(f"red {spec.tokenizer.sep_token} square", spec)
    inside = {*to_ids("red", spec), *to_ids("square", spec)}
    assert inside - set(spec.tokenizer.all_special_ids) <= set(ids)


def test_a_long_text_is_cut_and_keeps_its_end_token(spec: TextSpec) -> None:
    text = "a red square and a blue circle " * 9
    ids, whole = to_ids(text, spec), to_ids(text, TextSpec(spec.tokenizer, 9999))
    assert len(ids) == 16
    assert ids[:-1] == whole[:15]
    assert ids[-1] == spec.tokenizer.sep_token_id
    prefixed = to_ids(text, TextSpec(spec.tokenizer, 16, "빨간 "))
    assert len(prefixed) == 16
    assert prefixed[1] == to_ids("빨간", spec)[1]


class Recorder:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.most = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.most = max(self.most, len(text))
        return self._tokenizer(text, **options)


def test_of_a_megabyte_only_the_beginning_is_tokenised(spec: TextSpec) -> None:
    """Whole, it would take seconds."""
    recorder = Recorder(spec.tokenizer)
    noted = TextSpec(recorder, spec.max_tokens, "a red ")
    short = "a red square, 초록 삼각형 " * 40
    for text in (short * 1000, short + "square" * 200_000, short + " \n" * 500_000):
        assert to_ids(text, noted) == to_ids(short, noted)
    assert 3 <= len(to_ids("가" * 1_000_000, noted)) <= 16
    assert recorder.most < 1000


def test_the_prefix_comes_first(spec: TextSpec) -> None:
    assert to_ids("square", TextSpec(spec.tokenizer, 16, "a red ")) == to_ids("a red square", spec)


def test_a_spec_travels_to_loader_workers(spec: TextSpec) -> None:
    assert to_ids("a red square", pickle.loads(pickle.dumps(spec))) == to_ids("a red square", spec)


def test_padding() -> None:
    made = pad_ids([[5, 6, 7], [], [8]], 1)
    assert made["input_ids"].tolist() == [[5, 6, 7], [1, 1, 1], [8, 1, 1]]
    assert made["mask"].tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert (made["input_ids"].dtype, made["mask"].dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_batch_of_empty_texts_has_one_column(count: int) -> None:
    made = pad_ids([[]] * count, 1)
    assert made["input_ids"].shape == made["mask"].shape == (count, 1)
    assert (made["input_ids"] == 1).all()
    assert not made["mask"].any()
