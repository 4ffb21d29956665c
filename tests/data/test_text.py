"""Prompt and target to ids and labels: what is learned is the target and its end, whole characters, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tiny
from eyegraft.data.text import encode_pair, encode_prompt
from eyegraft.errors import DataError
from eyegraft.types import IGNORE

PROMPT, TARGET = "What is drawn here?", "빨간 사각형, a red square"
TEMPLATES = ["chat", "plain"]
hangul = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3) | st.sampled_from(" .,a😀é中"), min_size=1, max_size=40)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def tokenizer(folders: Any) -> Any:
    return folders.tokenizer()


@pytest.fixture(scope="module")
def plain_tokenizer(folders: Any) -> Any:
    return folders.tokenizer(chat=False)


def learned(text: Any) -> list[int]:
    return [label for label in text.labels if label != IGNORE]


def pair(tokenizer: Any, prompt: str = PROMPT, target: str = TARGET, *, max_tokens: int = 256, **options: Any) -> Any:
    text = encode_pair(tokenizer, prompt, target, max_tokens=max_tokens, **options)
    assert len(text.input_ids) == len(text.labels) <= max_tokens
    assert all(label in (IGNORE, token) for label, token in zip(text.labels, text.input_ids, strict=True))
    start = text.labels.index(learned(text)[0])
    assert set(text.labels[:start]) <= {IGNORE}
    assert IGNORE not in text.labels[start:], "the learned tokens are one stretch at the end"
    return text


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("template", TEMPLATES)
def test_labels_are_exactly_the_target_and_one_end(tokenizer: Any, template: str) -> None:
    text = pair(tokenizer, template=template)
    assert tokenizer.decode(learned(text)[:-1]).removeprefix(" ") == TARGET
    assert learned(text)[-1] == tokenizer.eos_token_id == text.input_ids[-1], "nothing stands after the end"
    assert learned(text).count(tokenizer.eos_token_id) == 1
    assert not text.truncated


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_stands_before_it_as_when_asked(tokenizer: Any, template: str) -> None:
    asked, text = encode_prompt(tokenizer, PROMPT, template=template), pair(tokenizer, template=template)  # type: ignore[arg-type]
    assert text.input_ids[: len(asked.input_ids)] == asked.input_ids
    assert text.labels.index(learned(text)[0]) == len(asked.input_ids)


def test_a_chat_prompt_in_full(tokenizer: Any) -> None:
    whole = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>"
    assert tokenizer.decode(pair(tokenizer, "What?", "a dog", template="chat").input_ids) == whole


def test_a_plain_prompt_in_full(tokenizer: Any) -> None:
    assert tokenizer.decode(pair(tokenizer, "What?", "a dog", template="plain").input_ids) == "<|im_start|>What? a dog<|im_end|>"
    assert tokenizer.decode(pair(tokenizer, "What?\n", "a dog", template="plain").input_ids) == "<|im_start|>What?\na dog<|im_end|>"
    assert tokenizer.decode(pair(tokenizer, "", "a dog", template="plain").input_ids) == "<|im_start|>a dog<|im_end|>"


def test_auto_takes_what_there_is(tokenizer: Any, plain_tokenizer: Any) -> None:
    assert pair(tokenizer, template="auto") == pair(tokenizer, template="chat")
    assert pair(plain_tokenizer, template="auto") == pair(plain_tokenizer, template="plain")


def test_a_chat_without_a_template_is_refused(plain_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no chat template"):
        encode_pair(plain_tokenizer, PROMPT, TARGET, max_tokens=99, template="chat")


def test_special_tokens_are_not_added_a_second_time(folders: Any) -> None:
    """A tokenizer that puts a BOS before everything it is given must not put a second one before a template that has it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = folders.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert pair(tokenizer, template="plain").input_ids.count(tokenizer.bos_token_id) == 1


@given(prompt=hangul, target=hangul, template=st.sampled_from(TEMPLATES))
@relaxed
def test_labels_decode_back_to_the_target(tokenizer: Any, prompt: str, target: str, template: str) -> None:
    assume(target == target.strip())  # templates may trim
    text = pair(tokenizer, prompt, target, max_tokens=2000, template=template)
    decoded = tokenizer.decode(learned(text)[:-1])
    assert decoded in (target, f" {target}")


# ── a prompt that is no prefix ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_template_that_writes_the_prompt_differently_is_refused(folders: Any) -> None:
    """Some templates drop or change the question once it is answered; its labels would be wrong."""
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ messages|length }}]{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="not the first tokens"):
        encode_pair(tokenizer, PROMPT, TARGET, max_tokens=256, template="chat")


def test_a_generation_prompt_that_training_lacks_is_refused(folders: Any) -> None:
    """A template that opens the answer with words (thinking, say) that a whole conversation does not have."""
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("assistant\n' }}", "assistant\n<think>' }}")
    assert tokenizer.chat_template != tiny.CHAT_TEMPLATE
    with pytest.raises(DataError, match="not the first tokens"):
        encode_pair(tokenizer, PROMPT, TARGET, max_tokens=256, template="chat")


def test_a_prompt_whose_last_token_merges_with_the_target_is_refused_or_right(tmp_path: Path) -> None:
    """`a re` + `d` may become one token: then the prompt is no token prefix of the whole."""
    tokenizer = tiny.tokenizer(tmp_path, chat=False)
    tokenizer.bos_token = None
    whole = tokenizer("a red", add_special_tokens=False)["input_ids"]
    assert len(whole) < len([*tokenizer("a re", add_special_tokens=False)["input_ids"], 0])  # they merge
    text = pair(tokenizer, "a re", "d", template="plain")  # the gap keeps them apart
    assert tokenizer.decode(text.input_ids) == "a re d<|im_end|>"


# ── too long ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_too_long_is_refused_with_its_numbers(tokenizer: Any) -> None:
    length = len(pair(tokenizer).input_ids)
    assert len(pair(tokenizer, max_tokens=length).input_ids) == length
    with pytest.raises(DataError, match=rf"a text of {length} tokens \(prompt \d+, target \d+\)\n.*max_text_tokens={length - 1}") as caught:
        pair(tokenizer, max_tokens=length - 1)
    assert "overflow=truncate" in caught.value.fix


@given(prompt=hangul, target=hangul, limit=st.integers(1, 120), template=st.sampled_from(TEMPLATES))
@relaxed
def test_a_cut_never_falls_inside_a_character(tokenizer: Any, prompt: str, target: str, limit: int, template: str) -> None:
    """Byte-level tokens: a Korean syllable is several of them."""
    assume(target == target.strip())
    try:
        text = pair(tokenizer, prompt, target, max_tokens=limit, template=template, overflow="truncate")
    except DataError as error:
        assert "max_text_tokens" in str(error)
        return
    words = [token for token in learned(text) if token != tokenizer.eos_token_id]
    decoded = tokenizer.decode(words)
    assert "\ufffd" not in tokenizer.decode(text.input_ids)
    assert target.startswith(decoded.removeprefix(" ")) or f" {target}".startswith(decoded)
    assert text.truncated == (learned(text)[-1] != tokenizer.eos_token_id or not _whole(tokenizer, prompt, text, template))


def _whole(tokenizer: Any, prompt: str, text: Any, template: str) -> bool:
    asked = encode_prompt(tokenizer, prompt, template=template)  # type: ignore[arg-type]
    return text.input_ids[: len(asked.input_ids)] == asked.input_ids and learned(text)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_cut_target_does_not_learn_to_end_there(tokenizer: Any, template: str) -> None:
    text = pair(tokenizer, "What?", TARGET * 20, max_tokens=60, template=template, overflow="truncate")
    assert text.truncated
    assert tokenizer.eos_token_id not in learned(text)
    asked = encode_prompt(tokenizer, "What?", template=template)  # type: ignore[arg-type]
    assert text.input_ids[: len(asked.input_ids)] == asked.input_ids, "a short prompt is not cut"


def test_a_long_prompt_gives_way_but_its_template_stays(tokenizer: Any) -> None:
    text = pair(tokenizer, "왜 " * 200, "a red square", max_tokens=80, template="chat", overflow="truncate")
    assert text.truncated
    assert learned(text) == learned(pair(tokenizer, "왜", "a red square", template="chat")), "the target is whole"
    start = tokenizer.decode(text.input_ids)
    assert start.startswith("<|im_start|>user\n왜 왜")
    assert start.endswith("<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_room_for_a_label_is_refused(tokenizer: Any, limit: int) -> None:
    with pytest.raises(DataError, match="max_text_tokens"):
        pair(tokenizer, PROMPT, TARGET, max_tokens=limit, template="chat", overflow="truncate")


def test_the_task_names_the_sample(tokenizer: Any) -> None:
    from eyegraft.tasks.caption import Config, build
    from eyegraft.types import Sample

    task = build("caption", Config(max_text_tokens=4))
    with pytest.raises(DataError, match=r"sample row-9: a text of \d+ tokens") as caught:
        task.encode(Sample("row-9", Path("a.png"), references=(TARGET,)), tokenizer, learn=True)
    assert caught.value.fix.startswith("raise tasks.caption.max_text_tokens")


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>"])
def test_a_special_token_in_a_text_is_refused(folders: Any, token: str) -> None:
    """It would end the answer early, or open another turn, and nobody would see."""
    tokenizer = folders.tokenizer()
    with pytest.raises(DataError, match="special token"):
        encode_pair(tokenizer, "What is drawn here?", f"a cat {token} on a mat", max_tokens=64)
    with pytest.raises(DataError, match="special token"):
        encode_prompt(tokenizer, f"What {token} is drawn here?")
