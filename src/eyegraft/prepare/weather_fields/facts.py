"""Facts in texts of this data set: what the rules said, read back from any text, and how far two sets of facts agree.

The facts of a map: `variable` (the name of its condition), `place` (which of nine parts of the map, or `nowhere`), `over` (the state, sea
or country there), `sign` (low or high, falls or rises, cold or warm, ...), `level` (weak, moderate, strong) and `flow` (the direction that
the wind comes from, or calm). Its last sentence has `relation` (supports, contradicts, neutral) and `concern`. The facts of a case:
`concern`, `area` (states or seas), `place`, `percent`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
CONCERNS = ("a surge of cold air", "a surge of warm air", "falling pressure", "quiet weather", "strong wind")

EVIDENCE: dict[str, dict[str, str]] = {
    "a surge of cold air": {
        "ladv": "cold",
        "tadv": "cold",
        "thea": "negative",
        "ltmp": "cold",
        "ttd": "cold",
        "pch6": "rises",
        "pchg": "rises",
        "swbt": "cold",
    },
    "a surge of warm air": {
        "ladv": "warm",
        "tadv": "warm",
        "thea": "positive",
        "ltmp": "mild",
        "ttd": "mild",
        "mcon": "strong",
        "swbt": "mild",
        "fzlv": "high",
    },
    "falling pressure": {"pchg": "falls", "pch6": "falls", "pmsl": "low", "bigsfc_cropped": "low", "w500": "strong", "shr5": "strong"},
    "quiet weather": {"pmsl": "high", "bigsfc_cropped": "high", "w500": "weak", "mcon": "weak", "srh1": "weak", "sbcp": "weak"},
    "strong wind": {"pmsl": "low", "bigsfc_cropped": "low", "w500": "strong", "shr5": "strong", "pch6": "rises", "ltmp": "cold"},
}
"""Concern -> condition -> the sign that speaks for it. The other sign speaks against it; a condition not named, neither way."""

_VARIABLES: tuple[tuple[str, str], ...] = (  # the first that is found: the longer names stand before those in them
    ("pchg", r"two.hour pressure change|2.hour pressure change|2.h pressure change"),
    ("pch6", r"six.hour pressure change|6.hour pressure change|6.h pressure change"),
    ("thea", r"theta.e advection"),
    ("tadv", r"850 (?:hpa|mb) temperature advection"),
    ("ladv", r"low.level temperature advection|temperature advection"),
    ("mcon", r"moisture (?:flux )?convergence"),
    ("swbt", r"wet.bulb"),
    ("ttd", r"temperature and dew ?point|temperature, dew ?point"),
    ("bigsfc_cropped", r"(?:surface|station) (?:station )?(?:observations|plots|reports)"),
    ("pmsl", r"(?:mean )?sea level pressure|msl pressure"),
    ("shr6", r"0.6 km (?:bulk )?(?:wind )?shear"),
    ("shr5", r"500 (?:hpa|mb) (?:wind )?shear"),
    ("w500", r"500 (?:hpa|mb) wind"),
    ("srh1", r"helicity"),
    ("sbcp", r"\bcape\b"),
    ("laps", r"lapse rate"),
    ("fzlv", r"freezing level"),
    ("ltmp", r"low.level temperature"),
)
_SIGNS: dict[str, tuple[tuple[str, str], ...]] = {
    "pressure": (("low", r"\blow(?:er)? pressure|\bcyclone|\bdepression"), ("high", r"\bhigh(?:er)? pressure|\banticyclone|\bridge")),
    "change": (("falls", r"pressure falls?|falling pressure|\bdrops?\b"), ("rises", r"pressure rises?|rising pressure")),
    "advection": (("cold", r"\bcold(?:.air)? advection|\bcooling\b"), ("warm", r"\bwarm(?:.air)? advection|\bwarming\b")),
    "theta": (("negative", r"\bnegative\b"), ("positive", r"\bpositive\b")),
    "contrast": (("cold", r"\b(?:cold|chilly|frigid)\b"), ("mild", r"\b(?:mild|warm)\b")),
    "freezing": (("low", r"\blow freezing"), ("high", r"\bhigh freezing")),
    "peak": (("weak", r"\b(?:weak|modest|limited)\b"), ("strong", r"\b(?:strong|intense)\b")),
}
_SIGNS_OF = {
    **dict.fromkeys(("pmsl", "bigsfc_cropped"), "pressure"),
    **dict.fromkeys(("pchg", "pch6"), "change"),
    **dict.fromkeys(("ladv", "tadv"), "advection"),
    **dict.fromkeys(("ttd", "ltmp", "swbt"), "contrast"),
    "thea": "theta",
    "fzlv": "freezing",
}
_LEVELS = (("weak", r"\b(?:weak|slight|modest)\b"), ("moderate", r"\bmoderate\b"), ("strong", r"\b(?:strong|sharp|intense)\b"))
_HAVE_LEVELS = ("pressure", "change", "advection", "theta", "contrast")
_POINT = r"(?:north|south)?(?:east|west)|north|south"
_STATES = re.compile(r"\b(?:north|south) (?:carolina|dakota)|\bwest virginia")
_FROM = re.compile(rf"\b({_POINT})(?:erly|ern flow)\b|\bfrom (?:the )?({_POINT})\b")
_CALM = re.compile(r"\b(?:light and variable|calm|variable wind)")
_PART = re.compile(rf"\b({_POINT})(?:ern)?\b|\b(center|centre|central|middle)\b")
_OVER = re.compile(r"\b[Oo]ver ((?:the )?[A-Z]\w+(?: (?:of )?[A-Z]\w+)*)")
_CENTER_OF_PRESSURE = re.compile(r"pressure cent(?:er|re)s?")
_RELATIONS = (
    ("contradicts", r"contradict|at odds|argues against|speaks against"),
    ("neutral", r"neither supports|says little|adds little|no bearing"),
    ("supports", r"supports?\b|in line with|consistent with|backs\b|agrees with"),
)
_CONCERN_WORDS = {
    "a surge of cold air": r"surge of cold|cold.air surge|cold surge|colder air surg",
    "a surge of warm air": r"surge of warm|warm.air surge|warm surge|warmer air surg",
    "falling pressure": r"falling pressure|pressure falls",
    "quiet weather": r"quiet weather|quiet conditions",
    "strong wind": r"strong winds?\b",
}
_AREAS = re.compile(r"areas affected\s*(?:\.{2,}|:)\s*(?:portions of\s*)?(.*?)(?:\.{2,}|\s*concerning|$)", re.IGNORECASE | re.DOTALL)
_CONCERNING = re.compile(r"concerning\s*(?:\.{2,}|:)\s*(.*?)(?:\.{2,}|probability|$)", re.IGNORECASE | re.DOTALL)


def sentences_of(text: str) -> list[str]:
    """A text cut behind `.`, `!` and `?` where a space follows."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def facts_of(text: str) -> dict[str, Any]:
    """The facts that a text states; what it does not state is not there.

    A text with `Areas affected...` is read as a summary, any other as the caption of a map.
    """
    return _of_summary(text) if _AREAS.search(text) else _of_caption(text)


def _of_caption(text: str) -> dict[str, Any]:
    plain, found = text.casefold(), dict[str, Any]()
    parts = sentences_of(plain)
    variable = next((name for name, pattern in _VARIABLES if re.search(pattern, parts[0] if parts else "")), None)
    variable = variable or next((name for name, pattern in _VARIABLES if re.search(pattern, plain)), None)
    if variable:
        found["variable"] = variable
    told = next((number for number, part in enumerate(parts[:3]) if _place(part)), min(1, max(len(parts) - 1, 0)))
    pattern = parts[told] if parts else ""
    if place := _place(pattern):
        found["place"] = place
    if over := _OVER.search(sentences_of(text)[told]) if parts else None:
        found["over"] = over.group(1)
    family = _SIGNS_OF.get(variable or "", "peak") if variable else None
    if family and (sign := _first(pattern, _SIGNS[family])):
        found["sign"] = sign
    if family in _HAVE_LEVELS and (level := _first(pattern, _LEVELS)):
        found["level"] = level
    if flow := _flow(pattern):
        found["flow"] = flow
    return {**found, **(_of_link(parts[3]) if len(parts) > 3 else {})}


def _of_link(text: str) -> dict[str, Any]:
    """Of the last sentence of a caption, in lower case."""
    found = {"relation": next((name for name, words in _RELATIONS if re.search(words, text)), None), "concern": _concern(text)}
    return {name: value for name, value in found.items() if value}


def _of_summary(text: str) -> dict[str, Any]:
    found = dict[str, Any]()
    if area := _AREAS.search(text):
        names = re.split(r",\s*(?:and\s+)?|\s+and\s+", " ".join(area.group(1).split()))
        found["area"] = [name for name in names if name]
    concerning = _CONCERNING.search(text)
    if concern := _concern((concerning.group(1) if concerning else text).casefold()):
        found["concern"] = concern
    if percent := re.search(r"(\d+)\s*(?:percent|%)", text):
        found["percent"] = int(percent.group(1))
    told = text.casefold().partition("summary")[2]
    if place := next((place for sentence in sentences_of(told) if (place := _place(sentence))), None):
        found["place"] = place
    return found


def _first(text: str, words: tuple[tuple[str, str], ...]) -> str | None:
    """The word whose pattern is found first in the text."""
    matches = [(match.start(), name) for name, pattern in words if (match := re.search(pattern, text))]
    return min(matches)[1] if matches else None


def _place(text: str) -> str | None:
    if "nowhere" in text:
        return "nowhere"
    bare = _FROM.sub(" ", _CENTER_OF_PRESSURE.sub(" ", _STATES.sub(" ", text)))
    match = _PART.search(bare)
    return None if match is None else match.group(1) or "center"


def _flow(text: str) -> str | None:
    if match := _FROM.search(_STATES.sub(" ", text)):
        return match.group(1) or match.group(2)
    return "calm" if _CALM.search(text) else None


def _concern(text: str) -> str | None:
    return _first(text, tuple(_CONCERN_WORDS.items()))


def agreement(expected: Mapping[str, Any], text: str) -> dict[str, float]:
    """Of each fact that is expected, whether the text states it: 0 or 1; of an area the share of names that both have (Jaccard).

    Where a relation is expected, and nothing but it and the concern, the text is read as what ends a caption, without what stands before.
    """
    alone = "relation" in expected and set(expected) <= {"relation", "concern"}
    found = _of_link(text.casefold()) if alone else facts_of(text)
    return {name: _agree(value, found.get(name)) for name, value in expected.items()}


def _agree(expected: Any, found: Any) -> float:
    if isinstance(expected, list | tuple):
        ours, theirs = ({str(name).casefold() for name in names} for names in (expected, found or ()))
        return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
    return float(expected == found)
