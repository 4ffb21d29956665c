"""Weather maps with captions, summaries and questions: WeatherQA's own files, and the captions that were written for its maps.

Ma et al. 2024, WeatherQA: Can Multimodal Language Models Reason about Severe Weather? (https://github.com/chengqianma/WeatherQA). The kinds
of file are listed in `reading`; each is known by what it holds. One table a split has a row for each task and map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from eyegraft.data.sentences import parted, sentences_of
from eyegraft.errors import DataError, nearest, shown
from eyegraft.prepare._cut import Row, cut
from eyegraft.prepare._pairs import Gathering, Refused, Sources
from eyegraft.prepare.weather_fields.conditions import WEATHERQA
from eyegraft.prepare.weatherqa.names import day_of, hour_of
from eyegraft.prepare.weatherqa.reading import Case, Question, Reading

TWO_SUMMARIES = "case with two summaries"
NO_LINK = "link with nothing before its end"
_COLUMNS = ("task", "caption", "case", "prompt", "choices", "condition", "sentences", "summary", "captions", "kind", "hour", "source")


class Config(Sources):
    """What every source of pictures with texts takes (sources of the same shares are cut as one), and:

    Attributes:
        cut_by: what goes to one split as a whole: a `case`, or all cases of a `day` (12 to 12 UTC, by the names of their maps). Two cases
            of one hour may have the very same maps, and those of one storm much the same.
        classes: names of the kinds of map; the others are unknown.
        question_maps: kinds of map that a case's questions are asked about, one row each; empty: all of its maps.
        concern_choices: what the second question of a test file chooses from, in the order that its numbers or letters mean.
    """

    cut_by: Literal["day", "case"] = "day"
    classes: tuple[str, ...] = WEATHERQA
    question_maps: tuple[str, ...] = ("rgnlrad_cropped",)
    concern_choices: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Config:
        for name in self.question_maps:
            if name not in self.classes:
                raise ValueError(f"question_maps: {name!r} is none of the classes. {nearest(name, self.classes)}".rstrip())
        if len(set(self.concern_choices)) < len(self.concern_choices) or len(self.concern_choices) == 1:
            raise ValueError(f"concern_choices {list(self.concern_choices)}: two or more that differ, or none")
        return self


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test.jsonl` and `quarantine.jsonl` into `target`. Pictures stay where they are; one that lies outside the folder of
    pictures, be it by a symbolic link, is refused.

    Files that tell of one case (by its year and number, however it is spelled) are put together. Its summaries must agree: be the same but
    for case and spaces, or one be part of the other; then the first stands. Else nobody knows which is right: the case is left out, named
    with each of its files.

    Raises:
        DataError: a file is missing, broken or of another kind; too many rows cannot be used; a case stands in two splits.
    """
    found = Gathering(config, target, follow_links=False)
    reading = Reading(found, config.classes, config.question_maps, config.concern_choices)
    reading.read(config.places)
    for case in reading.cases.values():
        if len(case.told) > 1 and (other := _contradiction(case)):
            for told in case.told:
                found.refuse(told.source, told.number, told.name, "", Refused(TWO_SUMMARIES, other))
            continue
        _take_maps(found, case)
        for question in case.questions:
            _take_question(found, case, question)
    found.stop_if_too_bad()
    tables = _tables(found, config, {case.id: _unit(case, config) for case in reading.cases.values()})
    facts = found.finish(tables)
    cases = {split: len({row.group for row in rows}) for split, rows in tables.items()}
    tasks = {split: _counts(rows) for split, rows in tables.items()}
    return {**facts, "cases": cases, "rows_of_task": tasks}


def _counts(rows: list[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.values["task"]] = counts.get(row.values["task"], 0) + 1
    return counts


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _contradiction(case: Case) -> str:
    """Where two summaries of a case stand that disagree; empty where all agree."""
    plain = [" ".join(told.text.casefold().split()) for told in case.told]
    for told, text in zip(case.told[1:], plain[1:], strict=True):
        if text not in plain[0] and plain[0] not in text:
            first = case.told[0]
            return f"{first.source} entry {first.number}: {first.text[:60]!r}; {told.source} entry {told.number}: {told.text[:60]!r}"
    return ""


def _take_maps(found: Gathering, case: Case) -> None:
    summary = case.told[0].text if case.told else None
    captions = [{"condition": shown_map.condition, "caption": shown_map.caption} for shown_map in case.maps.values() if shown_map.caption]
    for shown_map in case.maps.values():
        sentences = sentences_of(shown_map.caption) if shown_map.caption else None
        about: dict[str, Any] = {"condition": shown_map.condition, "sentences": sentences, "summary": summary}
        texts = {"element_caption": shown_map.caption, "summary": summary}
        if sentences and summary:
            before, end = parted(sentences)
            texts["element_summary_link"] = " ".join(end) if before else None
            if not before:
                why = Refused(NO_LINK, f"{shown_map.caption!r:.80}")
                found.set_aside(shown_map.source, 0, f"{case.id}/{shown_map.condition}/element_summary_link", shown_map.given, why)
        for task, text in texts.items():
            if text:
                _take(found, case, shown_map.source, shown_map.given, shown_map.image, task, text, **about)
    if captions and summary:
        first = next(shown_map for shown_map in case.maps.values() if shown_map.caption)
        about = {"condition": first.condition, "summary": summary, "captions": captions}
        _take(found, case, first.source, first.given, first.image, "text_summary", summary, **about)


def _take_question(found: Gathering, case: Case, question: Question) -> None:
    about = {"prompt": question.text, "choices": question.choices, "kind": question.kind, "condition": question.shown.condition}
    _take(found, case, question.source, question.shown.given, question.shown.image, "questions", question.answer, **about)


def _take(found: Gathering, case: Case, source: str, given: str, image: str, task: str, text: str, **about: Any) -> None:
    values: dict[str, Any] = dict.fromkeys(_COLUMNS)
    values |= {"task": task, "caption": text, "case": case.id, "hour": hour_of(given), "source": source, **about}
    name = f"{case.id}/{about['condition']}/{about.get('kind') or task}"
    try:
        found.take(source, name, image, given, group=case.id, **values)
    except Refused as why:
        found.refuse(source, 0, name, given, why)


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _unit(case: Case, config: Config) -> str:
    """What the case is cut with: its day, or itself where that is wanted or no map tells the day."""
    maps = [*case.maps.values(), *(question.shown for question in case.questions)]
    day = day_of(maps[0].given) if maps and config.cut_by == "day" else None
    return day or case.id


def _tables(found: Gathering, config: Config, units: Mapping[str, str]) -> dict[str, list[Row]]:
    """Split -> its rows. Sources with the same shares are cut as one, so that a case of two files stands in one split.

    Args:
        units: case -> what it is cut with.

    Raises:
        DataError: files of other shares put a case in another split.
    """
    alike: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for source in config.places:
        alike.setdefault(tuple(config.splits[source].items()), []).append(source)
    tables: dict[str, list[Row]] = {split: [] for shares in config.splits.values() for split, share in shares.items() if share > 0}
    stands: dict[str, tuple[str, str]] = {}
    torn: list[str] = []
    for shares, sources in alike.items():
        rows = [row for row in found.rows if row.source in sources]
        where = cut({units[row.group] for row in rows}, dict(shares), config.seed, sources[0])
        for row in rows:
            split = where[units[row.group]]
            before, source = stands.setdefault(row.group, (split, row.source))
            if before != split:
                torn.append(f"{row.group} ({before} by {source}, {split} by {row.source})")
            tables[split].append(row)
    if torn := list(dict.fromkeys(torn)):
        raise DataError(
            f"{len(torn)} cases stand in two splits: {shown(torn)}",
            "each case in one split",
            "give sources that share cases the same prepare.splits, or leave one out (prepare.annotations.NAME=null)",
        )
    return {split: rows for split, rows in _in_order(tables) if rows}


def _in_order(tables: dict[str, list[Row]]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of a case side by side, cases in the order of the files."""
    for split, rows in tables.items():
        order = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
        yield split, sorted(rows, key=lambda row: order[row.group])
