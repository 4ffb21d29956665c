"""Prompt and target to ids and labels: what is learned is the target and its end, whole characters, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tiny
from eyegraft.data.text import Encoded, answer_tokens, encode_pair, encode_prompt, encode_question, encode_turns
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
    assume(template != "plain" or not prompt[-1:].isspace())  # a blank may join the first letter in one token, which is refused
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


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

TURNS = [("What is drawn here?", "a red square"), ("무슨 색?", "빨간 색"), ("Is it big?", "no")]
PHI3 = (  # ends a turn by another token than the whole conversation
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
FORGETS = "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}[{{ m['content'] }}]{% endif %}{% endfor %}"
ALTERNATES = "{% if messages[0]['content'] == 'Is it big?' %}{{ raise_exception('not that') }}{% endif %}" + tiny.CHAT_TEMPLATE


def turns_of(tokenizer: Any, turns: Any = TURNS, *, max_tokens: int = 512, max_question_tokens: int = 256, **options: Any) -> Encoded:
    text = encode_turns(tokenizer, turns, max_tokens=max_tokens, max_question_tokens=max_question_tokens, **options)
    assert len(text.input_ids) == len(text.labels) <= max_tokens
    assert all(label in (IGNORE, token) for label, token in zip(text.labels, text.input_ids, strict=True))
    return text


def question_of(tokenizer: Any, turns: Any = TURNS, *, max_tokens: int = 512, max_question_tokens: int = 256, **options: Any) -> Encoded:
    before, (question, _) = turns[:-1], turns[-1]
    return encode_question(tokenizer, question, before=before, max_tokens=max_tokens, max_question_tokens=max_question_tokens, **options)


def stretches(tokenizer: Any, text: Encoded) -> list[str]:
    """What is learned, stretch by stretch."""
    found: list[list[int]] = [[]]
    for label in text.labels:
        if label != IGNORE:
            found[-1].append(label)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(ids).removeprefix(" ") for ids in found if ids]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_answer_and_its_end_is_learned_and_nothing_else(tokenizer: Any, template: str) -> None:
    text = turns_of(tokenizer, template=template)
    assert stretches(tokenizer, text) == [f"{answer}<|im_end|>" for _, answer in TURNS]
    assert not text.truncated


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_turn_is_asked_as_it_was_learned(tokenizer: Any, template: str) -> None:
    whole = turns_of(tokenizer, template=template)
    for count in range(1, len(TURNS) + 1):
        asked = question_of(tokenizer, TURNS[:count], template=template)
        length = len(asked.input_ids)
        assert whole.input_ids[:length] == asked.input_ids
        answer = answer_tokens(tokenizer, *TURNS[count - 1], template=template)  # type: ignore[arg-type]
        assert whole.labels[length - 1 : length + len(answer)] == (IGNORE, *answer)


def test_a_plain_conversation_in_full(tokenizer: Any) -> None:
    assert tokenizer.decode(turns_of(tokenizer, template="plain").input_ids) == (
        "<|im_start|>Question: What is drawn here?\nAnswer: a red square<|im_end|>Question: 무슨 색?\nAnswer: 빨간 색<|im_end|>"
        "Question: Is it big?\nAnswer: no<|im_end|>"
    )


def test_one_turn_is_a_pair(tokenizer: Any) -> None:
    assert turns_of(tokenizer, TURNS[:1], template="chat") == pair(tokenizer, *TURNS[0], template="chat")


def test_a_template_that_ends_turns_and_conversations_differently(folders: Any) -> None:
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = PHI3
    text = turns_of(tokenizer, template="chat")
    assert stretches(tokenizer, text) == [
        "a red square<pad>\n",
        "빨간 색<pad>\n",
        "no<pad>\n<|im_end|>",
    ]
    assert text.input_ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("template", [FORGETS, "{% for m in messages %}[{{ messages|length }}]{{ m['content'] }}{% endfor %}"])
def test_a_template_that_writes_earlier_turns_differently_is_refused(folders: Any, template: str) -> None:
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="not the first tokens"):
        turns_of(tokenizer, template="chat")


def test_what_a_template_refuses_is_said(folders: Any) -> None:
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = ALTERNATES
    with pytest.raises(DataError, match="cannot write this conversation: not that"):
        turns_of(tokenizer, TURNS[2:], template="chat")


def test_a_conversation_too_long_is_refused_with_its_numbers(tokenizer: Any) -> None:
    length = len(turns_of(tokenizer).input_ids)
    assert len(turns_of(tokenizer, max_tokens=length).input_ids) == length
    with pytest.raises(DataError, match=rf"a conversation of {length} tokens in 3 turns\n.*max_text_tokens={length - 1}"):
        turns_of(tokenizer, max_tokens=length - 1)
    with pytest.raises(DataError, match=r"a question of \d+ tokens with the 2 turns before it"):
        question_of(tokenizer, max_tokens=12)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_earliest_turns_go_first(tokenizer: Any, template: str) -> None:
    length = len(turns_of(tokenizer, template=template).input_ids)
    cut = turns_of(tokenizer, template=template, max_tokens=length - 1, overflow="truncate")
    assert cut == Encoded(*_ids_and_labels(turns_of(tokenizer, TURNS[1:], template=template)), truncated=True)
    asked = question_of(tokenizer, template=template, max_tokens=len(cut.input_ids), overflow="truncate")
    assert asked.truncated
    assert cut.input_ids[: len(asked.input_ids)] == asked.input_ids


def _ids_and_labels(text: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return text.input_ids, text.labels


@given(turns=st.lists(st.tuples(hangul, hangul), min_size=1, max_size=4), limit=st.integers(20, 150), template=st.sampled_from(TEMPLATES))
@relaxed
def test_a_cut_conversation_keeps_labels_and_its_last_question(tokenizer: Any, turns: Any, limit: int, template: str) -> None:
    assume(all(text == text.strip() for turn in turns for text in turn))
    try:
        text = turns_of(tokenizer, turns, template=template, max_tokens=limit, max_question_tokens=40, overflow="truncate")
    except DataError as error:
        assert "max_text_tokens" in str(error)
        return
    answers = [found.removesuffix("<|im_end|>") for found in stretches(tokenizer, text)]
    assert answers
    assert "\ufffd" not in tokenizer.decode(text.input_ids)
    kept = [answer for _, answer in turns][-len(answers) :]
    assert answers[:-1] == kept[:-1]
    assert kept[-1].startswith(answers[-1])
    asked = question_of(tokenizer, turns, template=template, max_tokens=limit, max_question_tokens=40, overflow="truncate")
    assert len(asked.input_ids) < limit


def test_a_long_question_is_refused_or_loses_its_last_words(tokenizer: Any) -> None:
    turns = [("왜 " * 60, "no"), TURNS[0]]
    with pytest.raises(DataError, match=r"a question of \d+ tokens\n.*max_question_tokens=30") as caught:
        turns_of(tokenizer, turns, max_question_tokens=30)
    assert "tasks.NAME.max_question_tokens" in caught.value.fix
    text = turns_of(tokenizer, turns, max_question_tokens=30, overflow="truncate")
    assert text.truncated
    assert stretches(tokenizer, text) == ["no<|im_end|>", "a red square<|im_end|>"], "answers stay whole"
    asked = question_of(tokenizer, turns, max_question_tokens=30, overflow="truncate")
    assert asked.truncated
    assert text.input_ids[: len(asked.input_ids)] == asked.input_ids


@pytest.mark.parametrize("place", [0, 1])
def test_a_special_token_in_any_turn_is_refused(tokenizer: Any, place: int) -> None:
    turns = [list(turn) for turn in TURNS]
    turns[0][place] += "<|im_end|>"
    for encode in (turns_of, question_of):
        with pytest.raises(DataError, match="special token"):
            encode(tokenizer, [tuple(turn) for turn in turns])
