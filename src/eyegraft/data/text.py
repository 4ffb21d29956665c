"""Prompt and target to token ids and labels, by the difference between *prompt* and *prompt + target*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError
from eyegraft.types import IGNORE

Template = Literal["auto", "chat", "plain"]
Overflow = Literal["error", "truncate"]


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


def encode_prompt(tokenizer: Any, prompt: str, *, template: Template = "auto") -> Encoded:
    """The prompt alone, ready for an answer to follow."""
    _stop_at_special_tokens(tokenizer, prompt)
    ids = _ids(tokenizer, _prompt_text(tokenizer, prompt, template))
    return Encoded(tuple(ids), (IGNORE,) * len(ids))


def encode_pair(
    tokenizer: Any, prompt: str, target: str, *, max_tokens: int, template: Template = "auto", overflow: Overflow = "error"
) -> Encoded:
    """Prompt and target; the target and its end-of-text token are learned, the prompt is not.

    A pair longer than `max_tokens` is refused, or cut when `overflow` is `truncate`: the target keeps what the prompt leaves free, at
    least half of the limit, and the prompt's own words give way for the rest. A cut never falls inside a character.

    Raises:
        DataError: too long, nothing left to learn, or the prompt is no token prefix of the whole (then labels would be wrong).
    """
    _stop_at_special_tokens(tokenizer, prompt, target)
    prompt_ids, target_ids = _difference(tokenizer, prompt, target, template)
    length = len(prompt_ids) + len(target_ids)
    if length <= max_tokens:
        return _labelled(prompt_ids, target_ids, truncated=False)
    if overflow == "error":
        raise DataError(
            f"a text of {length} tokens (prompt {len(prompt_ids)}, target {len(target_ids)})",
            f"at most max_text_tokens={max_tokens}",
            "raise tasks.NAME.max_text_tokens, or set tasks.NAME.overflow=truncate",
        )
    target_ids = _cut(tokenizer, target_ids, max(max_tokens // 2, max_tokens - len(prompt_ids)))
    words, room = _ids(tokenizer, prompt), max_tokens - len(target_ids)
    while len(prompt_ids) > room:
        excess = len(prompt_ids) - room
        if not words or not target_ids:
            raise DataError(
                f"max_text_tokens={max_tokens} leaves no room for the target",
                f"more than {len(prompt_ids)} tokens",
                "raise tasks.NAME.max_text_tokens",
            )
        words = _cut(tokenizer, words, max(0, len(words) - excess))
        prompt_ids = _ids(tokenizer, _prompt_text(tokenizer, tokenizer.decode(words), template))
    if not target_ids:
        raise DataError(f"max_text_tokens={max_tokens} leaves no label", "room for at least one token", "raise tasks.NAME.max_text_tokens")
    return _labelled(prompt_ids, target_ids, truncated=True)


def _stop_at_special_tokens(tokenizer: Any, *texts: str) -> None:
    """A text that spells an end-of-text or role token would end there, or speak for another role, without a word."""
    for text in texts:
        for token in getattr(tokenizer, "all_special_tokens", ()):
            if token and token in text:
                raise DataError(f"a text that holds the special token {token!r}", "plain words", "take it out of the prompt or the table")


def _labelled(prompt_ids: list[int], target_ids: list[int], *, truncated: bool) -> Encoded:
    return Encoded((*prompt_ids, *target_ids), (*((IGNORE,) * len(prompt_ids)), *target_ids), truncated)


def _difference(tokenizer: Any, prompt: str, target: str, template: Template) -> tuple[list[int], list[int]]:
    prompt_ids = _ids(tokenizer, _prompt_text(tokenizer, prompt, template))
    whole_ids = _ids(tokenizer, _whole_text(tokenizer, prompt, target, template))
    if whole_ids[: len(prompt_ids)] != prompt_ids:
        raise DataError(
            "the prompt's tokens are not the first tokens of prompt + target, so labels would be wrong",
            "a prompt that ends where a token ends, and a chat template that only appends the answer",
            "end the prompt with a newline or a colon, or set tasks.NAME.template=plain",
        )
    target_ids = whole_ids[len(prompt_ids) :]
    end = tokenizer.eos_token_id
    if end in target_ids:
        return prompt_ids, target_ids[: target_ids.index(end) + 1]  # a template may add a newline behind it
    return prompt_ids, [*target_ids, end]


def _uses_chat(tokenizer: Any, template: Template) -> bool:
    if template == "chat" and not tokenizer.chat_template:
        raise DataError("tasks.NAME.template=chat, but the tokenizer has no chat template", "an instruct model", "set template=plain")
    return template == "chat" or (template == "auto" and bool(tokenizer.chat_template))


def _prompt_text(tokenizer: Any, prompt: str, template: Template) -> str:
    if _uses_chat(tokenizer, template):
        return str(tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True))
    return f"{tokenizer.bos_token or ''}{prompt}"


def _whole_text(tokenizer: Any, prompt: str, target: str, template: Template) -> str:
    if _uses_chat(tokenizer, template):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    gap = "" if not prompt or prompt[-1].isspace() else " "
    return f"{tokenizer.bos_token or ''}{prompt}{gap}{target}"


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut(tokenizer: Any, ids: list[int], length: int) -> list[int]:
    """The first `length` ids, fewer where that would split a character into bytes."""
    kept = ids[:length]
    while kept and tokenizer.decode(kept).endswith("\ufffd"):
        kept = kept[:-1]
    return kept
