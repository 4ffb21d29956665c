"""Tables to rows: what each cell says, which picture a row names, and why a row cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from eyegraft.config import Columns, Data
from eyegraft.data.images import MISSING
from eyegraft.data.tables import read_table, store_image
from eyegraft.errors import DataError, nearest, shown
from eyegraft.pretrained import cache_dir

OUTSIDE = "outside the base folder"
EMPTY_TEXT = "empty text"
BROKEN_TEXT = "broken text"
NO_INPUT = "no input"
EMPTY_ID = "empty id"


@dataclass
class Row:
    """One row on its way to a sample. A reason keeps it out. `number` is its place in its table, from 1."""

    number: int
    image: str
    path: Path | None
    prompt: str | None
    references: tuple[str, ...]
    group: str | None
    meta: dict[str, Any]
    id: str | None
    text: str = ""
    split: str = ""
    sha256: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    task: str | None = None
    reason: str = ""
    detail: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number}" if self.id is None else self.id

    def refuse(self, reason: str, detail: str) -> None:
        if not self.reason:
            self.reason, self.detail = reason, detail


def read_rows(data: Data, base: Path, read_images: bool) -> tuple[list[Row], dict[str, str]]:
    """Rows of all tables, and hash by split (by table's name where one table is yet to be cut)."""
    tables = data.tables if data.split is None else {data.split.table: data.split.table}
    rows: list[Row] = []
    hashes: dict[str, str] = {}
    for split, place in tables.items():
        raw, hashes[split] = read_table(place, base)
        _stop_at_missing_columns(raw, place, data.columns)
        texts_only = place.lower().endswith((".csv", ".tsv"))
        for number, values in enumerate(raw, 1):
            row = _row(number, values, data, base, texts_only, read_images)
            row.split = split
            rows.append(row)
    return rows, hashes


def _stop_at_missing_columns(raw: Sequence[dict[str, Any]], place: str, columns: Columns) -> None:
    there = list(dict.fromkeys(key for row in raw for key in row))
    named = ("image", "text", "references", "prompt", "turns", "choices", "task", "id", "group")
    wanted = {key: getattr(columns, key) for key in named}
    wanted |= {f"meta[{number}]": name for number, name in enumerate(columns.meta)}
    missing = {key: name for key, name in wanted.items() if name is not None and name not in there}
    if missing:
        given = "; ".join(f"data.columns.{key}: no column {name!r}" for key, name in missing.items())
        hints = [f"data.columns.{key}: {hint}" for key, name in missing.items() if (hint := nearest(name, there))]
        fix = "; ".join(hints) or "name the table's own columns under data.columns (null for what it does not have)"
        names = ", ".join(name if name == name.strip() else repr(name) for name in there)  # a blank around a name must be seen
        raise DataError(f"table {place}: {given}", f"columns among: {names}", fix)


def _row(number: int, values: dict[str, Any], data: Data, base: Path, texts_only: bool, read_images: bool) -> Row:
    columns = data.columns
    cell = values.get(columns.image) if columns.image is not None else None
    image = str(store_image(cell)) if isinstance(cell, bytes) else _text(cell)
    without = not image and (data.image_optional or not read_images)
    path, reason, detail = (None, "", "") if without else _image_path(image, base)
    if reason and not read_images:
        path, reason, detail = None, "", ""  # a name without a file, and no fault
    row = Row(
        number=number,
        image=image,
        path=path,
        text=_text(values.get(columns.text)) if columns.text else "",
        prompt=(_text(values.get(columns.prompt)) or None) if columns.prompt else None,
        references=_references(values.get(columns.references), texts_only) if columns.references else (),
        choices=_references(values.get(columns.choices), texts_only) if columns.choices else (),
        task=(_text(values.get(columns.task)) or None) if columns.task else None,
        group=(_text(values.get(columns.group)) or None) if columns.group else None,
        meta={name: values.get(name) for name in columns.meta},
        id=_text(values.get(columns.id)) if columns.id else None,
        detail=detail,
    )
    if reason:
        row.refuse(reason, detail)
    if columns.turns and (values.get(columns.turns) or not row.references):
        _take_turns(row, values.get(columns.turns), columns.turns)
    elif columns.references and not row.references:
        row.refuse(EMPTY_TEXT, f"the cell of column {columns.references!r} holds no text")
    if not (image or row.text or row.prompt):
        row.refuse(NO_INPUT, "no picture, no text and no prompt")
    if len(set(row.choices)) < len(row.choices):
        row.refuse(BROKEN_TEXT, f"column {columns.choices!r}: two choices are equal: {shown(sorted(row.choices))}")
    spoken = [text for turn in row.turns for text in turn]
    for text in (*row.references, *row.choices, *spoken, row.text, row.prompt or "", row.id or "", row.group or ""):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # JSON can spell it, no tokenizer and no file can take it
            row.refuse(BROKEN_TEXT, f"half of a surrogate pair in {text[:40]!a}")
    if row.id == "":
        row.refuse(EMPTY_ID, f"column {columns.id!r} is empty")
    return row


def _take_turns(row: Row, cell: Any, column: str) -> None:
    """Read a conversation, or refuse the row: a list of {question, answer}, none of them empty."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            cell = None
    pairs = [(_text(turn.get("question")), _text(turn.get("answer"))) for turn in cell or () if isinstance(turn, Mapping)]
    if not isinstance(cell, list) or len(pairs) < len(cell) or not pairs:
        row.refuse(EMPTY_TEXT, f"column {column!r} holds no list of {{question, answer}}")
        return
    if not all(question and answer for question, answer in pairs):
        row.refuse(EMPTY_TEXT, f"column {column!r}: an empty question or answer")
    row.turns, row.prompt, row.references = tuple(pairs), pairs[-1][0] or None, (pairs[-1][1],)


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()  # not equal to itself: a NaN, which is how pandas writes nothing


def _references(value: Any, texts_only: bool) -> tuple[str, ...]:
    """The texts of a cell: of a list each item, in CSV also of a list written as JSON."""
    if texts_only and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            items = None  # a text that merely starts with a bracket
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            value = items
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(text for item in items if (text := _text(item)))


def _image_path(text: str, base: Path) -> tuple[Path, str, str]:
    """(path, reason, detail). The detail alone explains a file that turns out to be missing."""
    if not text:
        return base, MISSING, "the image cell is empty; if rows may have none, set data.image_optional"
    if "\0" in text:
        return base, MISSING, "the path holds a NUL character"
    if text.startswith(("http://", "https://")):
        return base, MISSING, "a web address: download the pictures first"
    foreign_drive = os.name != "nt" and PureWindowsPath(text).drive
    given = Path(text if os.name == "nt" else text.replace("\\", "/"))
    path = Path(os.path.normpath(base / given))  # by its letters: a symbolic link within the base folder may lead anywhere
    if not given.is_absolute() and not path.is_relative_to(base):
        return path, OUTSIDE, f"{text!r} leads out of {base}; write an absolute path if that is meant"
    for form in ("NFC", "NFD"):  # macOS archives spell Korean and accented names apart, tables spell them together
        spelled = Path(unicodedata.normalize(form, str(path)))
        if spelled != path and not os.path.lexists(path) and os.path.lexists(spelled):
            path = spelled
    return path, "", f"no such file; {text!r} is a path of another machine" if foreign_drive else ""


def why_missing(row: Row, detail: str, base: Path) -> str:
    """Why there is no such file; of a path that was absolute where it was written, where else the file may be."""
    parts = PureWindowsPath(row.image).parts[1:]
    if not (PureWindowsPath(row.image).root or row.detail):
        return detail
    for start in range(len(parts)):
        if (found := base.joinpath(*parts[start:])).is_file():
            return f"{row.detail or detail}; but {found} exists: write '{'/'.join(parts[start:])}', relative to data.base_dir"
    return row.detail or detail


def portable(path: Path, base: Path) -> str:
    """A picture's name that is the same on every machine, where there is one."""
    folder = next((folder for folder in (base, cache_dir()) if path.is_relative_to(folder)), None)
    return unicodedata.normalize("NFC", (path.relative_to(folder) if folder else path).as_posix())


def path_sha256(row: Row, base: Path) -> str:
    """What stands in place of the picture's hash where pictures are not read; empty where the row names none."""
    name = row.image if row.path is None else portable(row.path, base)
    return hashlib.sha256(f"path\0{name}".encode("utf-8", "surrogatepass")).hexdigest() if row.image else ""
