"""Texts that stand beside a picture, to token ids for a text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eyegraft.types import TextSpec

_CHARACTERS_PER_TOKEN = 32  # no language needs as many; what lies beyond could never fit and need not be read


def has_words(text: str) -> bool:
    """Whether a text holds a visible character; without one it counts as empty."""
    return any(character.isprintable() and not character.isspace() for character in text)


def to_ids(text: str, spec: TextSpec) -> list[int]:
    """The ids of prefix and text between the tokenizer's special tokens, at most `spec.max_tokens` of them.

    Runs of white space count as one space. A text without words gives no ids, whatever the prefix. A text
    that spells a special token, such as "[SEP]", cannot bring one in: what it spells is read as words, or left out.
    """
    if not has_words(text):
        return []
    words = " ".join(text.split())
    encoded = spec.tokenizer(
        spec.prefix + _beginning(words, _CHARACTERS_PER_TOKEN * spec.max_tokens),
        truncation=True,
        max_length=spec.max_tokens,
        split_special_tokens=True,
        return_special_tokens_mask=True,
    )
    # A vocabulary that holds its special tokens as pieces, as that of XLM-R does, still finds them in a text.
    forbidden = set(spec.tokenizer.all_special_ids) - {spec.tokenizer.unk_token_id}
    marked = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [number for number, is_frame in marked if is_frame or number not in forbidden]


def _beginning(words: str, length: int) -> str:
    """At most so many characters, up to the end of a word where there is one: very long texts take seconds to tokenise."""
    if len(words) <= length:
        return words
    end = words.rfind(" ", 0, length)
    return words[: end if end > 0 else length]


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Right-padded ids and what of them is real: {input_ids: [B, T] int64, mask: [B, T] bool}, T at least 1.

    An empty row has no real token.
    """
    width = max([1, *map(len, rows)])
    input_ids = torch.full((len(rows), width), pad_id)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return {"input_ids": input_ids, "mask": torch.arange(width) < lengths.unsqueeze(1)}
