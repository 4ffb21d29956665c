"""The four kinds of WeatherQA file, told apart by what they hold, to cases.

| file | holds |
|---|---|
| captions | [{case_id, global_summary, elements: [{image_rel_path, type_name or cond_name, caption, error}]}] |
| summaries | [{image, annotation, cond_name}] |
| discussions (the public file) | {"2018_md0398": {para_paths: [20 pictures], annotations, time}} |
| questions (its test file) | {samples: [{md_id, para_paths, time, choices: [4 areas], area_ans, concern_ans}], ...} |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eyegraft.data.sentences import sentences_of
from eyegraft.errors import DataError, shown
from eyegraft.prepare._pairs import Gathering, Refused
from eyegraft.prepare.weather_fields.questions import AREA, CONCERN, NUM_CHOICES
from eyegraft.prepare.weatherqa.names import Classes, case_of

BROKEN = "broken entry"
NO_CASE = "case without a name"
NO_ELEMENTS = "case without elements"
NO_SUMMARY = "empty summary"
NO_CAPTION = "empty caption"
ONE_SENTENCE = "caption of one sentence"
ERROR = "caption with an error"
TWICE = "caption given twice"
OTHER_CAPTION = "another caption of the same map"
OTHER_CASE = "map of another case"
NO_MAP = "question without its map"
NO_CHOICES = "concern question without choices"

_LETTERS = "ABCDEFGHIJKLM"


@dataclass
class Map:
    """One map of a case.

    Attributes:
        given: what its file calls the picture.
        image: path as the table will have it.
        caption: None where no file has one.
    """

    source: str
    given: str
    image: str
    condition: str
    caption: str | None = None


@dataclass
class Told:
    """A summary, and where it stands: the place in its source from 1, and an entry's name."""

    source: str
    number: int
    name: str
    text: str


@dataclass
class Question:
    source: str
    shown: Map
    kind: str
    text: str
    choices: tuple[str, ...]
    answer: str


@dataclass
class Case:
    """Attributes:
    maps: by path, in the order of the files.
    told: every summary that a file gives it.
    """

    id: str
    maps: dict[str, Map] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


class Reading:
    """Files to cases; what cannot be used goes to `found`, with its reason.

    Args:
        classes: names of the kinds of map.
        question_maps: kinds of map that questions are asked about; empty: all of a case.
        concern_choices: what the second question of a test file chooses from, where its samples do not say.
    """

    def __init__(self, found: Gathering, classes: Sequence[str], question_maps: Sequence[str], concern_choices: Sequence[str]) -> None:
        self.found, self.classes = found, Classes(classes)
        self.question_maps, self.concern_choices = frozenset(question_maps), tuple(concern_choices)
        self.cases: dict[str, Case] = {}
        self._owners: dict[str, str] = {}

    def read(self, places: Mapping[str, str]) -> None:
        """Read files, whichever of the four each is; those with captions first, for they say which case a picture is of.

        Args:
            places: source -> file.

        Raises:
            DataError: one is none of them.
        """
        readers: tuple[Callable[[str, Any], None], ...] = (self._captions, self._discussions, self._summaries, self._questions)
        contents = {source: self.found.json(source, place) for source, place in places.items()}
        kinds = {source: _kind_of(contents[source], source, place) for source, place in places.items()}
        for kind, reader in enumerate(readers):
            for source in (source for source in places if kinds[source] == kind):
                reader(source, contents[source])

    # ── captions ──

    def _captions(self, source: str, content: Sequence[Any]) -> None:
        for number, item in enumerate(content, 1):
            try:
                case, elements = self._case_of_elements(item)
            except Refused as why:
                self.found.refuse(source, number, _name(item, "case_id"), "", why)
                continue
            self._tell(case, source, number, case.id, item.get("global_summary"))
            for place, element in enumerate(elements, 1):
                name = f"{case.id}/{place}"
                given = element.get("image_rel_path") if isinstance(element, Mapping) else None
                try:
                    self._element(case, source, number, name, element)
                except Refused as why:
                    self.found.refuse(source, number, name, given, why)

    def _case_of_elements(self, item: Any) -> tuple[Case, list[Any]]:
        if not isinstance(item, Mapping):
            raise Refused(BROKEN, f"no {{case_id, global_summary, elements}}: {item!r:.80}")
        elements = item.get("elements")
        if not isinstance(elements, list) or not elements:
            raise Refused(NO_ELEMENTS, f"elements: {elements!r:.40}")
        images = [element.get("image_rel_path") for element in elements if isinstance(element, Mapping)]
        return self._case(case_of(item.get("case_id"), images[0] if images else None)), elements

    def _element(self, case: Case, source: str, number: int, name: str, element: Any) -> None:
        if not isinstance(element, Mapping):
            raise Refused(BROKEN, f"no {{image_rel_path, type_name, caption, error}}: {element!r:.80}")
        given = element.get("image_rel_path")
        if element.get("error") not in (None, "", False):
            self.found.set_aside(source, number, name, given, Refused(ERROR, f"{element['error']!s:.200}"))
            return
        condition = self._class_of(element, given)
        caption = element.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            raise Refused(NO_CAPTION, "" if caption is None or isinstance(caption, str) else f"{caption!r:.80} is no text")
        if len(sentences_of(caption)) < 2:
            raise Refused(ONE_SENTENCE, f"{caption.strip()!r:.80}")
        known = self._map(case, source, given, condition)
        if known.caption is None:
            known.caption = caption.strip()
        else:
            self.found.set_aside(source, number, name, given, Refused(TWICE if known.caption == caption.strip() else OTHER_CAPTION))

    # ── summaries ──

    def _summaries(self, source: str, content: Sequence[Any]) -> None:
        for number, item in enumerate(content, 1):
            given = item.get("image") if isinstance(item, Mapping) else None
            try:
                if not isinstance(item, Mapping):
                    raise Refused(BROKEN, f"no {{image, annotation, cond_name}}: {item!r:.80}")
                condition = self._class_of(item, given)
                image = self.found.picture(source, given)
                case = self._case(self._owners.get(image) or case_of(None, given) or str(given))
                self._map(case, source, given, condition)
            except Refused as why:
                self.found.refuse(source, number, "", given, why)
                continue
            self._tell(case, source, number, case.id, item.get("annotation"))

    def _discussions(self, source: str, content: Mapping[str, Any]) -> None:
        for number, (key, item) in enumerate(content.items(), 1):
            paths = item.get("para_paths") if isinstance(item, Mapping) else None
            if not isinstance(paths, list) or not paths:
                self.found.refuse(source, number, key, "", Refused(NO_ELEMENTS, f"para_paths: {paths!r:.40}"))
                continue
            case = self._case(case_of(key, paths[0]))
            for _ in self._maps_of(case, source, number, paths):
                pass
            self._tell(case, source, number, case.id, item.get("annotations"))

    def _maps_of(self, case: Case, source: str, number: int, paths: Sequence[Any]) -> Iterator[Map]:
        for place, given in enumerate(paths, 1):
            try:
                yield self._map(case, source, given, self.classes.named(None, given))
            except Refused as why:
                self.found.refuse(source, number, f"{case.id}/{place}", given, why)

    # ── questions ──

    def _questions(self, source: str, content: Mapping[str, Any]) -> None:
        for number, item in enumerate(content["samples"], 1):
            name = _name(item, "md_id")
            try:
                paths = item.get("para_paths") if isinstance(item, Mapping) else None
                if not isinstance(paths, list) or not paths:
                    raise Refused(BROKEN, f"no {{md_id, para_paths, choices, area_ans, concern_ans}}: {item!r:.80}")
                asked = self._asked(source, number, name, item)
                case = self._case(case_of(item.get("md_id"), paths[0]))
            except Refused as why:
                self.found.refuse(source, number, name, "", why)
                continue
            wanted = [path for path in paths if not self.question_maps or self._kind(path) in self.question_maps]
            if not wanted:
                detail = f"no map of {shown(sorted(self.question_maps))}: set prepare.question_maps"
                self.found.set_aside(source, number, name, "", Refused(NO_MAP, detail))
            for place, given in enumerate(wanted, 1):
                try:  # a map that is only asked about has no summary to learn, so it is no map of the case
                    shown_map = Map(source, given, self._owned(case, source, given), self.classes.named(None, given))
                except Refused as why:
                    self.found.refuse(source, number, f"{name}/{place}", given, why)
                    continue
                case.questions += [Question(source, shown_map, *question) for question in asked]

    def _kind(self, path: Any) -> str | None:
        try:
            return self.classes.named(None, path)
        except Refused:
            return None

    def _asked(self, source: str, number: int, name: str, item: Mapping[str, Any]) -> list[tuple[str, str, tuple[str, ...], str]]:
        """(kind, text, choices, answer) of both questions."""
        areas = _choices(item.get("choices"))
        if len(areas) != NUM_CHOICES:
            raise Refused(BROKEN, f"choices: {len(areas)} different texts, not {NUM_CHOICES}")
        asked = [("area", AREA, areas, _answer(item.get("area_ans"), areas, "area_ans"))]
        concerns = _choices(item.get("concern_choices")) or self.concern_choices
        if concerns:
            asked.append(("concern", CONCERN, concerns, _answer(item.get("concern_ans"), concerns, "concern_ans")))
        elif item.get("concern_ans") is not None:
            detail = "its choices stand in the words of the file's prompt alone: give them, in their order, as prepare.concern_choices"
            self.found.set_aside(source, number, name, "", Refused(NO_CHOICES, detail))
        return asked

    # ── cases and maps ──

    def _class_of(self, entry: Mapping[str, Any], image: Any) -> str:
        named = {key: self.classes.named(entry[key], image) for key in ("type_name", "cond_name") if entry.get(key)}
        if len(set(named.values())) > 1:
            raise Refused(BROKEN, f"of two classes: {' and '.join(f'{key} {entry[key]!r:.40}' for key in named)}")
        return next(iter(named.values()), None) or self.classes.named(None, image)

    def _case(self, name: str) -> Case:
        if not name:
            raise Refused(NO_CASE, "neither case_id nor the names of its pictures say which it is")
        return self.cases.setdefault(name, Case(name))

    def _map(self, case: Case, source: str, given: Any, condition: str) -> Map:
        image = self._owned(case, source, given)
        return case.maps.setdefault(image, Map(source, given, image, condition))

    def _owned(self, case: Case, source: str, given: Any) -> str:
        image = self.found.picture(source, given)
        if (owner := self._owners.setdefault(image, case.id)) != case.id:
            raise Refused(OTHER_CASE, f"{given} is of case {owner}, and here of {case.id}")
        return image

    def _tell(self, case: Case, source: str, number: int, name: str, summary: Any) -> None:
        if isinstance(summary, str) and summary.strip():
            case.told.append(Told(source, number, name, summary.strip()))
        else:
            self.found.refuse(source, number, name, "", Refused(NO_SUMMARY, "" if not summary else f"{summary!r:.80} is no text"))


def _kind_of(content: Any, source: str, place: str) -> int:
    """0 captions, 1 discussions, 2 summaries, 3 questions.

    Raises:
        DataError: it is none of them.
    """
    items = content if isinstance(content, list) else list(content.values()) if isinstance(content, Mapping) else []
    first: Mapping[str, Any] = next((item for item in items if isinstance(item, Mapping)), {})
    if isinstance(content, list) and "elements" in first:
        return 0
    if isinstance(content, Mapping) and "para_paths" in first:
        return 1
    if isinstance(content, list) and "annotation" in first:
        return 2
    if isinstance(content, Mapping) and isinstance(content.get("samples"), list):
        return 3
    there = shown(sorted(map(str, first or content))) if first or isinstance(content, Mapping) else f"{content!r:.60}"
    raise DataError(
        f"annotations {place}: a file of another kind ({type(content).__name__}; {there or 'nothing in it'})",
        "a list of {case_id, global_summary, elements} or of {image, annotation, cond_name}, WeatherQA's {case: {para_paths, annotations, "
        "time}}, or its test file {samples: [...]}",
        f"name another file in prepare.annotations.{source}, or null for none",
    )


def _name(item: Any, key: str) -> str:
    """What an entry calls itself, as far as it does."""
    value = item.get(key) if isinstance(item, Mapping) else None
    return "" if value is None else str(value)


def _choices(value: Any) -> tuple[str, ...]:
    texts = [text.strip() for text in value if isinstance(text, str) and text.strip()] if isinstance(value, list) else []
    return tuple(texts) if len(set(texts)) == len(texts) else ()


def _answer(value: Any, choices: Sequence[str], key: str) -> str:
    """The right choice, given as its number from 0, its letter or its words."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return choices[value]
    if isinstance(value, str) and value.strip() in choices:
        return value.strip()
    place = _LETTERS.find(value.strip().upper()) if isinstance(value, str) and len(value.strip()) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    raise Refused(BROKEN, f"{key}: {value!r:.40} is none of {len(choices)} choices")
