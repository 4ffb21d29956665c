"""Accuracy of short answers to questions about a picture."""

from __future__ import annotations

from collections.abc import Sequence

from eyegraft.metrics.captions import TOKENISATION, tokens

FORM = "eyegraft-answer-1"
"""Name and version of `plain_form`; a change needs a new number, because old scores stop being comparable."""

SIGNATURE = (
    f"{FORM} over {TOKENISATION}: lower case, no punctuation, no apostrophes, no a, an, the, zero to ten as digits; any reference; 0 or 1"
)

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def plain_form(text: str) -> str:
    """The form in which two answers are compared, after the evaluation of VQA (Antol et al. 2015): case, punctuation, articles and the
    spelling of small numbers make no difference. An answer of articles alone, such as the choice `A`, stays as it is. Other languages than
    English lose case and punctuation.
    """
    words = [_DIGITS.get(word, word) for token in tokens(text) if (word := token.replace("'", ""))]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_right(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer says something, and the same as any of the references."""
    said = plain_form(answer)
    return bool(said) and any(said == plain_form(reference) for reference in references)
