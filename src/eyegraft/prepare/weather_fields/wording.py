"""Sentences from facts: the caption of a map, the summary of a case. The wording varies with a seed, the facts do not.

Every text is made by these rules; none was written by a forecaster or issued by a weather service.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import TypeVar

from eyegraft.prepare.weather_fields.conditions import CONDITIONS, Condition
from eyegraft.prepare.weather_fields.facts import EVIDENCE
from eyegraft.prepare.weather_fields.measure import Concern, Feature

T = TypeVar("T")

_FIRST = (
    "The color fill shows {subject}, and the lines mark {lines}{barbs}.",
    "This map shades {subject} in color, with contours of {lines}{barbs}.",
    "Colors depict {subject} while contours give {lines}{barbs}.",
)
_FIRST_UNFILLED = (
    "Station plots give {subject}, and the lines mark {lines}.",
    "This map plots {subject} at each site, with contours of {lines}.",
    "Numbers and barbs depict {subject} while contours give {lines}.",
)
_BARBS = (", with barbs for the {wind}", "; barbs show the {wind}", ", and barbs trace the {wind}")
_SECOND = (
    "The dominant feature is a {feature} of {value} in the {place} of the map over {over}{flow}.",
    "A {feature} of {value} stands out in the {place} of the map, over {over}{flow}.",
    "Over {over}, in the {place} of the map, lies a {feature} of {value}{flow}.",
)
_SECOND_NOWHERE = (
    "The {feature} is nowhere on the map above {value}{flow}.",
    "Nowhere on the map does the {feature} exceed {value}{flow}.",
)
_FLOW = (", with flow from the {flow}", ", under {flow}erly flow", ", while the flow is from the {flow}")
_CALM = (", under light and variable wind", ", with light and variable flow")
_THIRD = ("Physically this means {meaning}.", "Such a pattern points to {meaning}.", "It is a sign of {meaning}.")
_FOURTH = {
    "supports": (
        "It supports the summary's concern for {concern} over {area}.",
        "This is consistent with the concern for {concern} over {area}.",
        "In line with the summary, it backs the concern for {concern} over {area}.",
    ),
    "contradicts": (
        "It argues against the summary's concern for {concern} over {area}, which other fields carry.",
        "This is at odds with the concern for {concern} over {area}, which rests on other fields.",
    ),
    "neutral": (
        "It neither supports nor opposes the summary's concern for {concern} over {area}.",
        "On its own it says little about the concern for {concern} over {area}.",
    ),
}
_SHORT_LINK = {
    "supports": "It supports {concern}.",
    "contradicts": "It argues against {concern}.",
    "neutral": "It neither supports nor opposes {concern}.",
}
_SUMMARY = {
    "a surge of cold air": ("Colder air surges {into} {area} around {hour} UTC.", "A surge of cold air reaches {area} near {hour} UTC."),
    "a surge of warm air": ("Warmer air surges {into} {area} around {hour} UTC.", "A surge of warm air reaches {area} near {hour} UTC."),
    "falling pressure": (
        "Pressure drops quickly across {area} around {hour} UTC.",
        "Rapidly falling pressure marks {area} near {hour} UTC.",
    ),
    "quiet weather": ("Quiet conditions hold over {area} around {hour} UTC.", "High pressure keeps {area} tranquil near {hour} UTC."),
    "strong wind": (
        "A tight circulation drives strong wind across {area} around {hour} UTC.",
        "Wind strengthens over {area} near {hour} UTC.",
    ),
}
_WHERE = ("The focus lies in the {place} of the domain, where the {evidence}.", "In the {place} of the domain, the {evidence}.")
_PRESSURE = ("The main pressure feature is a {sign} of {value} over {over}.", "A {sign} of {value} sits over {over}.")
_EVIDENCE = {
    "pchg": "two-hour pressure change reaches {value}",
    "pch6": "six-hour pressure change reaches {value}",
    "ladv": "low-level temperature advection reaches {value}",
    "tadv": "850 hPa temperature advection reaches {value}",
    "thea": "theta-e advection reaches {value}",
}


def picked(options: Sequence[T], *names: object) -> T:
    """One of the options, always the same for the same names."""
    number = int.from_bytes(sha256("\0".join(map(str, names)).encode()).digest()[:6])
    return options[number % len(options)]


def caption_of(feature: Feature, concern: Concern, relation: str, *names: object, short: bool = False) -> list[str]:
    """The four sentences about a map: what it shows, the dominant pattern, its meaning, and what it says about the case.

    Args:
        short: half as many words and always the same ones, with the same facts.
    """
    condition = CONDITIONS[feature.condition]
    meaning = condition.meaning[condition.signs.index(feature.sign)]
    if short:
        return [
            f"The map shows {condition.subject}.",
            _second_in_short(condition, feature),
            f"This means {_beginning(meaning)}.",
            _SHORT_LINK[relation].format(concern=concern.name),
        ]
    return [
        _first(condition, *names),
        _second(condition, feature, *names),
        picked(_THIRD, 3, *names).format(meaning=meaning),
        picked(_FOURTH[relation], 4, *names).format(concern=concern.name, area=joined(concern.area)),
    ]


def _first(condition: Condition, *names: object) -> str:
    if not condition.fill:
        return picked(_FIRST_UNFILLED, 1, *names).format(subject=condition.subject, lines=condition.line_text)
    barbs = picked(_BARBS, "barbs", *names).format(wind=condition.wind_text.removeprefix("the ")) if condition.wind else ""
    return picked(_FIRST, 1, *names).format(subject=condition.subject, lines=condition.line_text, barbs=barbs)


def _second(condition: Condition, feature: Feature, *names: object) -> str:
    words = condition.feature.format(sign=feature.sign, level=feature.level)
    flow = picked(_CALM, "calm", *names) if feature.flow == "calm" else picked(_FLOW, "flow", *names).format(flow=feature.flow)
    flow = flow if feature.flow else ""
    if feature.place == "nowhere":
        return picked(_SECOND_NOWHERE, 2, *names).format(feature=words, value=feature.value, flow=flow)
    text = picked(_SECOND, 2, *names).format(feature=words, value=feature.value, place=part(feature.place), over=feature.over, flow=flow)
    return text.replace(" a area", " an area").replace("A area", "An area").replace(" a intense", " an intense")


def _second_in_short(condition: Condition, feature: Feature) -> str:
    words = condition.feature.format(sign=feature.sign, level=feature.level)
    words = f"{'an' if words.startswith(('area', 'intense')) else 'a'} {words}"
    flow = "" if not feature.flow else ", calm" if feature.flow == "calm" else f", wind from the {feature.flow}"
    if feature.place == "nowhere":
        return f"{words[0].upper()}{words[1:]} is nowhere{flow}."
    return f"In the {part(feature.place)}, over {feature.over}, is {words}{flow}."


def _beginning(meaning: str) -> str:
    """Up to the first comma behind three words."""
    pieces = meaning.split(", ")
    kept = next(number for number in range(1, len(pieces) + 1) if number == len(pieces) or " ".join(pieces[:number]).count(" ") > 1)
    return ", ".join(pieces[:kept])


def part(place: str) -> str:
    return "center" if place == "center" else f"{place} part"


def relation_of(feature: Feature, concern: Concern) -> str:
    speaks = EVIDENCE[concern.name].get(feature.condition)
    return "neutral" if speaks is None else "supports" if speaks == feature.sign else "contradicts"


def summary_of(concern: Concern, features: dict[str, Feature], time: datetime, *names: object, short: bool = False) -> str:
    """A summary in the form of a mesoscale discussion; `short` as in `caption_of`."""
    area = joined(concern.area)
    head = f"Areas affected...{area_text(concern)} Concerning...{concern.name} Probability of impact...{concern.percent} percent"
    if short:
        return f"{head} SUMMARY...The focus is the {part(concern.place)}."
    into = picked(("into", "across"), "into", *names)
    lines = [picked(_SUMMARY[concern.name], 5, *names).format(area=area, hour=f"{time:%H}", into=into)]
    source = features[concern.source]
    if concern.source in _EVIDENCE:
        evidence = _EVIDENCE[concern.source].format(value=source.value)
        lines.append(picked(_WHERE, 6, *names).format(place=part(concern.place), evidence=evidence))
    else:
        words = "pressure is highest" if concern.name == "quiet weather" else "low-level wind is strongest"
        lines.append(picked(_WHERE, 6, *names).format(place=part(concern.place), evidence=words))
    if pressure := features.get("pmsl") or features.get("bigsfc_cropped"):
        lines.append(picked(_PRESSURE, 7, *names).format(sign=pressure.sign, value=pressure.value, over=pressure.over))
    return f"{head} SUMMARY...{' '.join(lines)}"


def area_text(concern: Concern) -> str:
    return f"portions of {joined(concern.area)}"


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
