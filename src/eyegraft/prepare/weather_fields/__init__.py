"""Weather maps of real fields with texts by rule: stations of one day, analyses of sixteen days, one forecast (README.md beside this file).

The fields were measured, analysed or forecast; the maps are drawn here, and every text follows from the fields by the rules of `measure`
and `wording`. Nobody wrote or issued them, and each row says so (`text_source: rule`).
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from eyegraft.config import NonNegative, Positive, Strict
from eyegraft.console import progress
from eyegraft.errors import DataError, EyegraftError, RecipeError, nearest
from eyegraft.files import copy_whole, file_sha256, write_atomically
from eyegraft.prepare.weather_fields.cases import SPLITS, Case, planned
from eyegraft.prepare.weather_fields.conditions import CLASSES, CONDITIONS, OF_SOURCE
from eyegraft.prepare.weather_fields.facts import facts_of as facts_of
from eyegraft.prepare.weather_fields.questions import TOO_FEW, Question, questions_of, test_file
from eyegraft.prepare.weather_fields.styles import STYLES

HERE = Path(__file__).parent
VERSION = 1
"""Of the drawing and of the rules: what an older one made is made again."""
PLAN = ".plan.json"
LICENCE = (
    "fields and outlines: NCAR command language, BSD-4-Clause (University Corporation for Atmospheric Research); maps and texts: Apache-2.0"
)
TEXT_SOURCE = "rule"
TOO_LITTLE = "map: too little of the window is known"
NO_CASE = "case: a field is missing, or fewer than three of its maps can be drawn"
TASKS = ("element_caption", "summary", "element_summary_link", "text_summary", "questions")
_MIN_MAPS = 3


class Cases(Strict):
    """At most so many of each source."""

    storm: NonNegative = 0
    stations: NonNegative = 0
    model: NonNegative = 0


class Config(Strict):
    """Attributes:
    train, val, test, test_region: how many cases of each source are in a split. A case of the storm has 6 maps, of the stations 7, of the
        model 12.
    windows_per_time: of one hour: their maps may be shuffled with each other. More are taken where times run out.
    train_styles, val_style, test_style: drawing styles; no map of one stands in the split of another.
    seed: another seed, other times, windows and wordings.
    texts: `short` says the same facts in half as many words, for language models on a CPU.
    workers: processes that draw.
    """

    train: Cases = Cases(storm=84, stations=24, model=12)
    val: Cases = Cases(storm=9, stations=6)
    test: Cases = Cases(storm=18, stations=9)
    test_region: Cases = Cases(storm=18, stations=6, model=3)
    windows_per_time: Positive = 3
    train_styles: tuple[str, ...] = ("paper", "atlas", "river", "bulletin")
    val_style: str = "fax"
    test_style: str = "slate"
    seed: NonNegative = 7
    texts: Literal["full", "short"] = "full"
    workers: Positive = 2

    @model_validator(mode="after")
    def _apart(self) -> Config:
        held_out = (self.val_style, self.test_style)
        if not self.train_styles or set(self.train_styles) & set(held_out):
            raise ValueError(f"train_styles {list(self.train_styles)} must be some, and none of {list(held_out)}, which are held out")
        return self

    def style_of(self, case: Case) -> str:
        from eyegraft.prepare.weather_fields.wording import picked

        if case.split == "train":
            return picked(self.train_styles, self.seed, case.id, "style")
        return self.val_style if case.split == "val" else self.test_style


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test|test_region.jsonl`, the maps, and the same cases in the layout of WeatherQA.

    A run that was stopped goes on with the cases that are not there.

    Raises:
        RecipeError: a drawing style that is not there.
        DataError: the folder holds pictures that were not made here, or a split has no case.
    """
    for style in (*config.train_styles, config.val_style, config.test_style):
        if style not in STYLES:
            raise RecipeError(f"prepare: no drawing style {style!r}", f"one of {', '.join(STYLES)}", nearest(style, STYLES))
    plan = {split: planned(split, getattr(config, split).model_dump(), config.windows_per_time, config.seed) for split in SPLITS}
    _settle(config, target)
    _draw([case for cases in plan.values() for case in cases], config, target)
    left_out: Counter[str] = Counter()
    outputs, counts, num_cases = ["LICENSES/ncarg.txt", "classes.json"], dict[str, dict[str, int]](), dict[str, int]()
    for split, cases in plan.items():
        records = []
        for case in cases:
            record = json.loads(_record_file(target, case).read_bytes())
            left_out.update(record["left_out"])
            records += [record] if record["elements"] else []
        if cases and not records:
            raise DataError(f"split {split}: none of {len(cases)} cases can be drawn", "one at least", f"ask for more in prepare.{split}")
        rows, asked = _rows(records, config, left_out)
        _write_tables(target, split, records, rows, asked)
        counts[split], num_cases[split] = dict(Counter(row["task"] for row in rows)), len(records)
        outputs += [f"{split}.jsonl", f"cases/{split}.json", f"questions/{split}.json"]
        outputs += [element["image_rel_path"] for record in records for element in record["elements"]]
    copy_whole(HERE / "LICENSES" / "ncarg.txt", target / "LICENSES" / "ncarg.txt")
    write_atomically(target / "classes.json", json.dumps({name: number for number, name in enumerate(CLASSES)}, indent=1), durable=False)
    return {
        "rows": {split: sum(tally.values()) for split, tally in counts.items()},
        "rows_of_task": counts,
        "cases": num_cases,
        "left_out": dict(left_out.most_common()),
        "text_source": "by rule from the fields; no text was written by a forecaster or issued by a weather service",
        "licence": LICENCE,
        "outputs": outputs,
    }


# ── maps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _settle(config: Config, target: Path) -> None:
    """Take away what another configuration made here, and stop at what was not made here."""
    drawing = config.model_dump(mode="json", exclude={"workers"})
    plan = json.dumps({"version": VERSION, "fields": file_sha256(HERE / "fields.npz"), "config": drawing}, indent=1)
    note = target / PLAN
    ours = [target / name for name in (".cases", "images")]
    there = [path for folder in ours for path in folder.rglob("*") if path.is_file()]
    if there and not note.is_file():
        raise DataError(
            f"{target}: {len(there)} files without {PLAN}", "no pictures yet, or those of this source", "set another data.base_dir"
        )
    if not note.is_file() or note.read_text(encoding="utf-8") != plan:
        for path in there:
            path.unlink()
    write_atomically(note, plan)


def _record_file(target: Path, case: Case) -> Path:
    return target / ".cases" / f"{case.id}.json"


def _is_done(target: Path, case: Case) -> bool:
    try:
        record = json.loads(_record_file(target, case).read_bytes())
        return all((target / element["image_rel_path"]).stat().st_size == element["bytes"] for element in record["elements"])
    except (OSError, ValueError, KeyError):
        return False


def _draw(cases: Sequence[Case], config: Config, target: Path) -> None:
    """Draw the cases that are not there, a share of them in each process."""
    todo = [case for case in cases if not _is_done(target, case)]
    shares = max(1, min(config.workers, len(todo) // 4))
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_draw_beside, args=(todo[number::shares], config, target), daemon=True) for number in range(1, shares)]
    for process in others:
        process.start()
    try:
        with progress("drawing cases", len(todo)) as advance:
            _draw_some(todo[::shares], config, target, lambda: advance(shares))
        for process in others:
            process.join()
        _draw_some([case for case in todo if not _is_done(target, case)], config, target)  # what another could not: here its error is told
    finally:
        for process in others:
            process.kill()
            process.join()


def _draw_beside(cases: Sequence[Case], config: Config, target: Path) -> None:
    """A share of the cases in a process of its own, which ends with its parent and leaves errors to it."""
    parent = multiprocessing.parent_process()
    with suppress(EyegraftError, KeyboardInterrupt):
        for case in cases:
            if parent is None or not parent.is_alive():
                return
            _draw_some([case], config, target)


def _draw_some(cases: Iterable[Case], config: Config, target: Path, done: Callable[[], None] = lambda: None) -> None:
    for case in cases:
        record, pictures = case_of(case, config)
        for name, content in pictures.items():
            write_atomically(target / name, content, durable=False)
        write_atomically(_record_file(target, case), json.dumps(record, ensure_ascii=False), durable=False)
        done()


def case_of(case: Case, config: Config) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A case with its texts and facts, and its pictures by path."""
    from eyegraft.prepare.weather_fields import measure, wording
    from eyegraft.prepare.weather_fields.draw import drawn
    from eyegraft.prepare.weather_fields.fields import fields_of

    style, left_out, pictures = config.style_of(case), list[str](), dict[str, bytes]()
    fields = fields_of(case.source, case.index, case.window)
    record: dict[str, Any] = {"case_id": case.id, "elements": [], "left_out": left_out}
    drawable = [name for name in OF_SOURCE[case.source] if measure.known(fields, CONDITIONS[name])]
    left_out += [TOO_LITTLE] * (len(OF_SOURCE[case.source]) - len(drawable))
    if len(drawable) < _MIN_MAPS or "pmsl" not in drawable:
        record["left_out"] = [NO_CASE]
        return record, {}
    features = {name: measure.feature_of(CONDITIONS[name], fields, case.window) for name in drawable}
    concern = measure.concern_of(features, fields, case.window)
    short = config.texts == "short"
    summary = wording.summary_of(concern, features, case.time, config.seed, case.id, short=short)
    for name, feature in features.items():
        relation = wording.relation_of(feature, concern)
        sentences = wording.caption_of(feature, concern, relation, config.seed, case.id, name, short=short)
        path = f"images/{name}/{case.id}.png"
        hour = case.index if case.source == "stations" else None
        pictures[path] = drawn(CONDITIONS[name], fields, case.window, STYLES[style], case.time, hour)
        record["elements"].append(
            {
                "image_rel_path": path,
                "type_name": name,
                "caption": " ".join(sentences),
                "error": None,
                "sentences": sentences,
                "facts": {**feature.facts, "relation": relation, "concern": concern.name},
                "subject": CONDITIONS[name].subject,
                "bytes": len(pictures[path]),
            }
        )
    told = {"global_summary": summary, "concern": concern.facts, "area_text": wording.area_text(concern), "read_from": concern.source}
    about = {"hour": case.hour, "window": case.window.name, "source": case.source, "style": style, "time": f"{case.time:%m / %d, %H}UTC"}
    return {**record, **told, **about}, pictures


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_COLUMNS = ("prompt", "choices", "condition", "sentences", "summary", "captions", "facts", "kind")


def _rows(
    records: Sequence[dict[str, Any]], config: Config, left_out: Counter[str]
) -> tuple[list[dict[str, Any]], dict[str, list[Question]]]:
    """The rows of every task, case by case, and the questions of each case."""
    rows: list[dict[str, Any]] = []
    asked: dict[str, list[Question]] = {}
    for record in records:
        asked[record["case_id"]] = questions = questions_of(record, records, config.seed)
        left_out.update([TOO_FEW] * (2 - len(questions)))
        captions = [{"condition": element["type_name"], "caption": element["caption"]} for element in record["elements"]]
        summary, facts = record["global_summary"], record["concern"]
        for element in record["elements"]:
            shared = {"sentences": element["sentences"], "summary": summary}
            of_map = {name: value for name, value in element["facts"].items() if name not in ("relation", "concern")}
            link = {name: element["facts"][name] for name in ("relation", "concern")}
            rows += [
                _row(record, element, "element_caption", element["caption"], facts={**of_map, **link}, **shared),
                _row(record, element, "summary", summary, facts=facts, **shared),
                _row(record, element, "element_summary_link", element["sentences"][-1], facts=link, **shared),
            ]
        rows.append(_row(record, record["elements"][0], "text_summary", summary, facts=facts, summary=summary, captions=captions))
        read_from = next(element for element in record["elements"] if element["type_name"] == record["read_from"])
        for question in questions:
            values = {"prompt": question.text, "choices": question.choices, "kind": question.kind}
            rows.append(_row(record, read_from, "questions", question.answer, **values))
    return rows, asked


def _row(record: Mapping[str, Any], element: Mapping[str, Any], task: str, caption: str, **values: Any) -> dict[str, Any]:
    name = f"{record['case_id']}/{element['type_name']}/{values.get('kind') or task}"
    about = {"image": element["image_rel_path"], "task": task, "caption": caption, "case": record["case_id"]}
    slices = {key: record[key] for key in ("hour", "window", "source", "style")}
    given = {**dict.fromkeys(_COLUMNS), **values, "condition": element["type_name"]}
    return {"id": name, **about, **given, **slices, "text_source": TEXT_SOURCE, "group": record["case_id"]}


def _write_tables(
    target: Path, split: str, records: Sequence[dict[str, Any]], rows: Iterable[dict[str, Any]], asked: dict[str, list[Question]]
) -> None:
    """The table of a split; the same cases and questions as WeatherQA's users keep them."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(target / f"{split}.jsonl", lines, durable=False)
    kept = ("image_rel_path", "type_name", "caption", "error")
    cases = [
        {
            "case_id": record["case_id"],
            "global_summary": record["global_summary"],
            "text_source": TEXT_SOURCE,
            "elements": [{name: element[name] for name in kept} for element in record["elements"]],
        }
        for record in records
    ]
    write_atomically(target / "cases" / f"{split}.json", json.dumps(cases, indent=1, ensure_ascii=False), durable=False)
    write_atomically(
        target / "questions" / f"{split}.json", json.dumps(test_file(records, asked), indent=1, ensure_ascii=False), durable=False
    )
