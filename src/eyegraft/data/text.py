"""Prompt and target to token ids and labels, by the difference between *prompt* and *prompt + target*, of every turn of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError
from eyegraft.types import IGNORE

Template = Literal["auto", "chat", "plain"]
Overflow = Literal["error", "truncate"]
Turns = Sequence[tuple[str, str]]
"""(question, answer) pairs of a conversation, in order."""


class Wording(NamedTuple):
    """What the plain template writes before and after a question; the answer follows after a space, its end behind it."""

    before: str
    after: str


BARE = Wording("", "")
QUESTION = Wording("Question: ", "\nAnswer:")


@dataclass(frozen=True)
class Encoded:
    """What one sample asks and teaches.

    Attributes:
        input_ids, labels: token ids of a text task, both of length T, with `IGNORE` in `labels` where nothing is learned.
        target: the K numbers of a label task, NaN where unknown.
        truncated: whether the text was cut to its limit.
    """

    input_ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    truncated: bool = False
    target: tuple[float, ...] = ()


class Targets(Sequence[Encoded]):
    """What rows of numbers teach, as one array: no text, K numbers each.

    Args:
        values: [N, K] float32, NaN where unknown.
    """

    def __init__(self, values: NDArray[np.float32]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, place: int) -> Encoded: ...

    @overload
    def __getitem__(self, place: slice) -> Targets: ...

    def __getitem__(self, place: int | slice) -> Encoded | Targets:
        if isinstance(place, slice):
            return Targets(self.values[place])
        return Encoded(target=tuple(self.values[place].tolist()))

    def take(self, positions: Sequence[int]) -> Targets:
        return Targets(self.values[np.asarray(positions, dtype=np.int64)])


def encode_prompt(tokenizer: Any, prompt: str, *, template: Template = "auto", wording: Wording = BARE) -> Encoded:
    """The prompt alone, ready for an answer to follow."""
    _stop_at_special_tokens(tokenizer, prompt)
    return _unlearned(_asked(tokenizer, (), prompt, template, wording))


def encode_pair(
    tokenizer: Any,
    prompt: str,
    target: str,
    *,
    max_tokens: int,
    template: Template = "auto",
    wording: Wording = BARE,
    overflow: Overflow = "error",
) -> Encoded:
    """Prompt and target; the target and its end-of-text token are learned, the prompt is not.

    A pair longer than `max_tokens` is refused, or cut when `overflow` is `truncate`: the target keeps what the prompt leaves free, at
    least half of the limit, and the prompt's own words give way for the rest. A cut never falls inside a character.

    Raises:
        DataError: too long, nothing left to learn, or the prompt is no token prefix of the whole (then labels would be wrong).
    """
    _stop_at_special_tokens(tokenizer, prompt, target)
    ((prompt_ids, target_ids),) = _segments(tokenizer, [(prompt, target)], template, wording)
    length = len(prompt_ids) + len(target_ids)
    if length <= max_tokens:
        return _labelled([(prompt_ids, target_ids)], truncated=False)
    if overflow == "error":
        raise _too_long(f"a text of {length} tokens (prompt {len(prompt_ids)}, target {len(target_ids)})", max_tokens)
    target_ids = _cut(tokenizer, target_ids, max(max_tokens // 2, max_tokens - len(prompt_ids)))
    if not target_ids:
        raise DataError(f"max_text_tokens={max_tokens} leaves no label", "room for at least one token", "raise tasks.NAME.max_text_tokens")
    if len(prompt_ids) + len(target_ids) > max_tokens:
        prompt_ids = _shortened(tokenizer, prompt, max_tokens - len(target_ids), max_tokens, template, wording)
    return _labelled([(prompt_ids, target_ids)], truncated=True)


def encode_turns(
    tokenizer: Any,
    turns: Turns,
    *,
    max_tokens: int,
    max_question_tokens: int,
    template: Template = "auto",
    wording: Wording = QUESTION,
    overflow: Overflow = "error",
) -> Encoded:
    """A conversation; every answer and the token that ends it are learned, nothing else.

    What is longer than a limit is refused, or cut when `overflow` is `truncate`: a question loses its last words, a conversation its
    earliest turns, and the last turn what `encode_pair` takes from it.

    Args:
        turns: at least one.
        max_tokens: of the whole.
        max_question_tokens: of the words of each question.

    Raises:
        DataError: too long, nothing left to learn, or the prompt of a turn, with all before it, is no token prefix of the whole.
    """
    _stop_at_special_tokens(tokenizer, *(text for turn in turns for text in turn))
    short = [(_question(tokenizer, question, max_question_tokens, overflow), answer) for question, answer in turns]
    cut = short != list(turns)
    for first in range(len(short)):
        segments = _segments(tokenizer, short[first:], template, wording)
        length = sum(len(asked) + len(answer) for asked, answer in segments)
        if length <= max_tokens:
            return _labelled(segments, truncated=cut or first > 0)
        if overflow == "error":
            raise _too_long(f"a conversation of {length} tokens in {len(turns)} turns", max_tokens)
    return encode_pair(tokenizer, *short[-1], max_tokens=max_tokens, template=template, wording=wording, overflow=overflow)


def encode_question(
    tokenizer: Any,
    question: str,
    *,
    before: Turns = (),
    max_tokens: int,
    max_question_tokens: int,
    template: Template = "auto",
    wording: Wording = QUESTION,
    overflow: Overflow = "error",
) -> Encoded:
    """A question after the turns before it, ready for an answer to follow: the tokens that stand before the same answer in training.

    Raises:
        DataError: as `encode_turns` does.
    """
    _stop_at_special_tokens(tokenizer, question, *(text for turn in before for text in turn))
    short = [(_question(tokenizer, asked, max_question_tokens, overflow), answer) for asked, answer in before]
    last = _question(tokenizer, question, max_question_tokens, overflow)
    cut = short != list(before) or last != question
    for first in range(len(short) + 1):
        ids = _asked(tokenizer, short[first:], last, template, wording)
        if len(ids) < max_tokens:
            return _unlearned(ids, truncated=cut or first > 0)
        if overflow == "error":
            raise _too_long(f"a question of {len(ids)} tokens with the {len(before)} turns before it", max_tokens)
    return _unlearned(_shortened(tokenizer, last, max_tokens - 1, max_tokens, template, wording), truncated=True)


def answer_tokens(
    tokenizer: Any, question: str, answer: str, *, template: Template = "auto", wording: Wording = QUESTION
) -> tuple[int, ...]:
    """What is learned of an answer: its tokens and the one that ends it."""
    _stop_at_special_tokens(tokenizer, question, answer)
    return tuple(_segments(tokenizer, [(question, answer)], template, wording)[0][1])


def said_of(error: DataError, sample_id: str, task: str) -> DataError:
    """An error of this module, with the sample and the task that it came up in."""
    given, expected, fix = (part.replace("NAME", task) for part in (error.given, error.expected, error.fix))
    return DataError(f"sample {sample_id}: {given}", expected, fix)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _too_long(given: str, max_tokens: int) -> DataError:
    fix = "raise tasks.NAME.max_text_tokens, or set tasks.NAME.overflow=truncate"
    return DataError(given, f"at most max_text_tokens={max_tokens}", fix)


def _question(tokenizer: Any, question: str, limit: int, overflow: Overflow) -> str:
    """The question, or its first words where it is longer than the limit."""
    if len(question.encode("utf-8", "surrogatepass")) < limit or len(ids := _ids(tokenizer, question)) <= limit:  # no token without a byte
        return question
    if overflow == "error":
        fix = "raise tasks.NAME.max_question_tokens, or set tasks.NAME.overflow=truncate"
        raise DataError(f"a question of {len(ids)} tokens", f"at most max_question_tokens={limit}", fix)
    return str(tokenizer.decode(_cut(tokenizer, ids, limit)))


def _shortened(tokenizer: Any, prompt: str, room: int, max_tokens: int, template: Template, wording: Wording) -> list[int]:
    """The prompt's ids with fewer of its own words, so that no more than `room` are left."""
    words, ids = _ids(tokenizer, prompt), _asked(tokenizer, (), prompt, template, wording)
    while len(ids) > room:
        if not words:
            raise DataError(
                f"max_text_tokens={max_tokens} leaves no room for the target",
                f"more than {len(ids)} tokens",
                "raise tasks.NAME.max_text_tokens",
            )
        words = _cut(tokenizer, words, max(0, len(words) - (len(ids) - room)))
        ids = _asked(tokenizer, (), tokenizer.decode(words), template, wording)
    return ids


def _cut(tokenizer: Any, ids: list[int], length: int) -> list[int]:
    """The first `length` ids, fewer where that would split a character into bytes."""
    kept = ids[:length]
    while kept and tokenizer.decode(kept).endswith("\ufffd"):
        kept = kept[:-1]
    return kept


def _stop_at_special_tokens(tokenizer: Any, *texts: str) -> None:
    """A text that spells an end-of-text or role token would end there, or speak for another role, without a word."""
    for text in texts:
        for token in getattr(tokenizer, "all_special_tokens", ()):
            if token and token in text:
                raise DataError(f"a text that holds the special token {token!r}", "plain words", "take it out of the prompt or the table")


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

Segments = list[tuple[list[int], list[int]]]
"""(what stands before an answer and behind the one before it, the answer and its end) of every turn; put together they are the whole."""


def _labelled(segments: Segments, *, truncated: bool) -> Encoded:
    ids = [token for asked, answer in segments for token in (*asked, *answer)]
    labels = [label for asked, answer in segments for label in (*((IGNORE,) * len(asked)), *answer)]
    return Encoded(tuple(ids), tuple(labels), truncated)


def _unlearned(ids: list[int], *, truncated: bool = False) -> Encoded:
    return Encoded(tuple(ids), (IGNORE,) * len(ids), truncated)


def _asked(tokenizer: Any, before: Turns, question: str, template: Template, wording: Wording) -> list[int]:
    """The ids of a question with all before it."""
    if _uses_chat(tokenizer, template):
        return _ids(tokenizer, _chat(tokenizer, [*_messages(before), {"role": "user", "content": question}], ask=True))
    ids = [token for asked, answer in (_segments(tokenizer, before, template, wording) if before else ()) for token in (*asked, *answer)]
    return [*ids, *_ids(tokenizer, _plain(tokenizer, question, wording, first=not before))]


def _segments(tokenizer: Any, turns: Turns, template: Template, wording: Wording) -> Segments:
    if _uses_chat(tokenizer, template):
        return _chat_segments(tokenizer, turns)
    return [_plain_segment(tokenizer, *turn, wording, first=not place) for place, turn in enumerate(turns)]


def _plain_segment(tokenizer: Any, question: str, answer: str, wording: Wording, *, first: bool) -> tuple[list[int], list[int]]:
    asked = _plain(tokenizer, question, wording, first=first)
    gap = "" if not asked.removeprefix(tokenizer.bos_token or "") or asked[-1].isspace() else " "
    asked_ids, whole = _ids(tokenizer, asked), _ids(tokenizer, f"{asked}{gap}{answer}")
    if whole[: len(asked_ids)] != asked_ids:
        raise _no_prefix()
    return asked_ids, [*_ended(whole[len(asked_ids) :], tokenizer.eos_token_id), tokenizer.eos_token_id]


def _plain(tokenizer: Any, question: str, wording: Wording, *, first: bool) -> str:
    return f"{(tokenizer.bos_token or '') if first else ''}{wording.before}{question}{wording.after}"


def _chat_segments(tokenizer: Any, turns: Turns) -> Segments:
    messages, end, special = _messages(turns), tokenizer.eos_token_id, set(tokenizer.all_special_ids)
    texts = [_chat(tokenizer, messages[: place + 1], ask=place % 2 == 0) for place in range(len(messages))]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole, segments, done = ids[-1], Segments(), 0
    for asked, closed in zip(ids[::2], ids[1::2], strict=True):
        if len(asked) < done or whole[: len(asked)] != asked or closed[: len(asked)] != asked:
            raise _no_prefix()
        length = next((n for n, (a, b) in enumerate(zip(closed, whole, strict=False)) if a != b), min(len(closed), len(whole)))
        if not special.issuperset(closed[length:]):  # a template may end a whole conversation with a token of its own, and nothing else
            raise _no_prefix()
        answer = closed[len(asked) : length]
        if end in answer or closed is whole:
            answer = [*_ended(answer, end), end]  # a template may add a newline behind it
        segments.append((whole[done : len(asked)], answer))
        done = len(asked) + len(answer)
    return segments


def _ended(ids: list[int], end: int) -> list[int]:
    """The ids before the first end."""
    return ids[: ids.index(end)] if end in ids else ids


def _no_prefix() -> DataError:
    return DataError(
        "the prompt's tokens are not the first tokens of prompt + target, so labels would be wrong",
        "a prompt that ends where a token ends, and a chat template that only appends the answer",
        "end the prompt with a newline or a colon, or set tasks.NAME.template=plain",
    )


def _uses_chat(tokenizer: Any, template: Template) -> bool:
    if template == "chat" and not tokenizer.chat_template:
        raise DataError("tasks.NAME.template=chat, but the tokenizer has no chat template", "an instruct model", "set template=plain")
    return template == "chat" or (template == "auto" and bool(tokenizer.chat_template))


def _messages(turns: Turns) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _chat(tokenizer: Any, messages: list[dict[str, str]], *, ask: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))
    except TemplateError as error:
        given = f"the tokenizer's chat template cannot write this conversation: {error.message or type(error).__name__}"
        raise DataError(given, "questions and answers in turn", "set tasks.NAME.template=plain") from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
