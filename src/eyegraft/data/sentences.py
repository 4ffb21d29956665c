"""A text in its sentences, and the last of them apart from those before it."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHORT = 4
"""A last sentence of fewer words says too little alone: the one before it belongs to it."""

_BETWEEN = re.compile(r"(?<=[.!?])\s+")


def sentences_of(text: str) -> list[str]:
    """The text cut behind `.`, `!` and `?` where a space follows."""
    return [part for part in _BETWEEN.split(text.strip()) if part]


def parted(sentences: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those before, the last one; the last two where the last has under `SHORT` words)."""
    last = 2 if sentences and len(sentences[-1].split()) < SHORT else 1
    return list(sentences[:-last]), list(sentences[-last:])
