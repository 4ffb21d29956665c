"""How the page says things: numbers, durations, names of systems and metrics, which way is better."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eyegraft.report.reading import Figure, finite, mapping

SYSTEM_LABELS = {
    "model": "Model",
    "blank_image": "Blank image",
    "shuffled_image": "Shuffled images",
    "shuffled_image_within": "Shuffled among alike",
    "absent_text": "Without texts",
    "absent_image": "Without images",
    "shuffled_text": "Shuffled texts",
    "absent_context": "Without context",
    "shuffled_context": "Shuffled context",
    "most_frequent": "Without looking",
    "nearest_neighbour": "Nearest neighbour",
    "elevation_linear": "Elevation, linear",
    "boosting": "Gradient boosting",
}

SYSTEM_NOTES = {
    "model": "the trained model",
    "blank_image": "the same model, shown an empty picture",
    "shuffled_image": "the same model, shown the picture of another sample",
    "shuffled_image_within": "the same model, shown the picture of another sample that is alike in the columns of shuffle_within",
    "absent_text": "the same model, texts absent; an empty text counts as absent",
    "absent_image": "the same model, images absent",
    "shuffled_text": "the same model, shown the text of another sample",
    "absent_context": "the same model, time, place and further columns absent",
    "shuffled_context": "the same model, shown time, place and further columns of another sample",
    "most_frequent": "the most frequent training answer, always; of questions, the most frequent to the same or the most similar one",
    "nearest_neighbour": "the answer of the most similar training picture",
}

LABEL_NOTES = {
    **SYSTEM_NOTES,
    "most_frequent": "the share of each class in training, always",
    "nearest_neighbour": "the shares of the classes among the nearest training samples",
}
"""The same where the answers are probabilities of labels."""

NUMBER_NOTES = {
    **SYSTEM_NOTES,
    "most_frequent": "the mean of the training values, always",
    "nearest_neighbour": "the mean of the most similar training samples",
    "climatology": "the mean course of year and day, bent by each station as far as its training rows carry it",
    "elevation_linear": "one course of year and day for all, and a straight line in elevation and latitude",
    "ridge": "the channels of the middle pixel and time and place, linear",
    "boosting": "the same columns as for ridge, in gradient-boosted trees",
}
"""The same where the answers are numbers."""

_LOWER_IS_BETTER = frozenset({"loss", "error", "rmse", "mae", "mse", "nll", "perplexity", "brier", "ece", "wer", "cer", "bias", "seconds"})

_SPELLING = {
    "bleu": "BLEU",
    "rouge": "ROUGE",
    "l": "L",
    "f1": "F1",
    "cider": "CIDEr",
    "chrf": "chrF",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "MSE",
    "auc": "AUC",
    "auroc": "AUROC",
    "pr": "PR",
    "ece": "ECE",
    "brier": "Brier",
    "kelvin": "(K)",
    "celsius": "(°C)",
    "r2": "R²",
}

MAX_TEXT = 600
"""Characters shown of one answer; a report of several pages would drown the gallery."""


def system_label(name: str) -> str:
    return SYSTEM_LABELS.get(name, plain(name).capitalize())


def plain(name: str) -> str:
    """`exact_match` -> `exact match`, `rouge_l` -> `ROUGE L`."""
    return " ".join(_SPELLING.get(word, word) for word in name.split("_"))


def bare(name: str) -> str:
    """A metric without its unit, where the unit stands elsewhere: `rmse_kelvin` -> `RMSE`."""
    return plain(name).split(" (")[0]


def higher_is_better(metric: str, evaluation: Mapping[str, Any]) -> bool:
    """What the evaluation declares, else a guess from the words of the name (`rmse_kelvin`, `val_loss`)."""
    declared = mapping(evaluation.get("higher_is_better")).get(metric)
    if isinstance(declared, bool):
        return declared
    return not _LOWER_IS_BETTER & set(metric.lower().split("_"))


def is_directed(metric: str, evaluation: Mapping[str, Any]) -> bool:
    """Whether higher or lower is better at all: a bias is best at zero, which the evaluation declares by null."""
    return mapping(evaluation.get("higher_is_better")).get(metric, True) is not None


def number(value: Any, signed: bool = False) -> str:
    """A score or a rate in about three digits, `–` where there is none."""
    amount = finite(value)
    if amount is None:
        return "–"
    size = abs(amount)
    if 0 < size < 0.001:
        mantissa, exponent = f"{amount:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    else:
        text = f"{amount:,.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
    text = text.replace("-", "−", 1) if text.startswith("-") else text
    return f"+{text}" if signed and amount > 0 else text


def fixed(value: Any, decimals: int, signed: bool = False) -> str:
    """A number with as many digits behind the point as all others beside it; `–` where there is none."""
    amount = finite(value)
    if amount is None:
        return "–"
    text = f"{amount:,.{decimals}f}"
    if not text.strip("-0.,"):
        return text.removeprefix("-")
    return text.replace("-", "−", 1) if amount < 0 else f"+{text}" if signed else text


def score(value: Any, signed: bool = False) -> str:
    """A figure of a table, where the smoothing of a metric may leave traces such as 3e-18 that say nothing."""
    amount = finite(value)
    if amount is None or amount == 0 or abs(amount) >= 0.0005:
        return number(amount, signed)
    if signed:
        return number(0.0)
    return "<0.001" if amount > 0 else ">−0.001"


def ends(entry: Figure) -> str:
    return f"{number(entry.low)} to {number(entry.high)}" if entry.known else "–"


def probability(value: Any) -> str:
    """In three digits, of which neither end is claimed unless it is reached."""
    amount = finite(value)
    if amount is None:
        return "–"
    return "<0.001" if 0 < amount < 0.001 else ">0.999" if 0.999 < amount < 1 else f"{amount:.3f}"


def count(value: Any) -> str:
    amount = finite(value)
    return "–" if amount is None else f"{amount:,.0f}"


def counted(value: Any, word: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count(value)} {word}" if value == 1 else f"{count(value)} {word}s"


def duration(value: Any) -> str:
    seconds = finite(value)
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def share(part: Any, whole: Any) -> str:
    a, b = finite(part), finite(whole)
    if a is None or not b:
        return "–"
    percent = 100 * a / b
    return f"{percent:.2f} %" if 0 < percent < 1 else f"{percent:.0f} %"


def moment(value: Any) -> str:
    """An ISO time, down to the minute, in the zone in which it was written."""
    text = str(value or "")
    date, _, time = text.partition("T")
    zone = " UTC" if text.endswith(("Z", "+00:00")) else ""
    return f"{date} {time[:5]}{zone}".strip() or "–"


def answer_text(value: Any) -> str:
    """An answer or reference of any task as one line of text, cut at `MAX_TEXT` characters."""
    if value is None:
        text = "–"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = number(value)
    elif isinstance(value, Mapping) and "value" in value:
        text = _measured(value)
    elif isinstance(value, Mapping) and "generated" in value:
        chosen, said = str(value.get("answer")), str(value["generated"])
        text = chosen if said == chosen else f"{chosen} (says: {said})"
    elif isinstance(value, Sequence):
        text = ", ".join(answer_text(item) for item in value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT].rstrip()} … ({len(text):,} characters)"


def _measured(answer: Mapping[str, Any]) -> str:
    """`291.3 K (289.6 to 293.1)`, a number with its interval where it has one."""
    interval = answer.get("interval")
    between = f" ({number(interval[0])} to {number(interval[1])})" if isinstance(interval, list) and len(interval) == 2 else ""
    return f"{number(answer['value'])} {answer.get('unit') or ''}".strip() + between
