"""A table of which one column is filled and all else is left as it was written: cells, quotes, line ends and order.

Reading a table into rows and writing them out again would change quoting and numbers all over it, and a user could no longer see by a
`diff` what OCR has added. So the raw cells are kept, and only those that get a text are written anew. (`data` reads more kinds of tables,
but only to rows; the two rooms share no code.)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from eyegraft.errors import DataError, nearest, shown

log = logging.getLogger(__name__)

_BOM = "\ufeff"
_UTF8 = "save the table as UTF-8"


class Table(Protocol):
    """Attributes:
    images, texts: the two columns, a cell a row; a cell that is not there is an empty string.
    """

    images: list[str]
    texts: list[str]

    def filled(self, texts: Mapping[int, str]) -> str:
        """The whole table as text, with these rows' text cells replaced."""
        ...


def read_table(path: Path, content: bytes, image_column: str, text_column: str) -> Table:
    """Parse a CSV, TSV or JSONL table. A text column that is not there yet is added behind the others.

    Raises:
        DataError: another kind of file, other than UTF-8 or CP949, malformed, or without the image column.
    """
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _Delimited(path, _decoded(path, content), "," if kind == ".csv" else "\t", image_column, text_column)
    if kind == ".jsonl":
        return _JsonLines(path, _decoded(path, content), image_column, text_column)
    what = f"{kind} tables" if kind else "files without suffix"
    raise DataError(f"table {path}: OCR fills no {what}", ".csv, .tsv or .jsonl", "write the table as one of these")


def _decoded(path: Path, content: bytes) -> str:
    if b"\0" in content:
        raise DataError(f"table {path}: it holds NUL bytes, so it is UTF-16, no text, or damaged", "UTF-8 text", _UTF8)
    try:
        return content.decode("utf-8")  # a byte order mark stays, as the rest does
    except UnicodeDecodeError as error:
        fault = f"byte 0x{content[error.start]:02x} at offset {error.start}"
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError as error:
        raise DataError(f"table {path}: neither UTF-8 nor CP949 ({fault})", "UTF-8", _UTF8) from error
    log.warning("table %s is not UTF-8 (%s): read as CP949 (Korean Windows), written as UTF-8", path, fault)
    return text


class _Delimited:
    def __init__(self, path: Path, text: str, delimiter: str, image_column: str, text_column: str) -> None:
        self._mark = _BOM if text.startswith(_BOM) else ""
        self._delimiter = delimiter
        records = _records(path, text.removeprefix(_BOM), delimiter)
        header = [_unquoted(cell) for cell in records[0][0]] if records else []
        if doubled := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"table {path}: column {shown(doubled)} stands twice in its first line", "distinct names", "rename one")
        if image_column not in header:
            fix = nearest(image_column, header) or "name it in prepare.image_column"
            raise DataError(f"table {path}: no column {image_column!r}", f"one of {', '.join(header)}", fix)
        self._added = text_column not in header
        if self._added:
            records[0][0].append(self._quoted(text_column))
        self._place = len(header) if self._added else header.index(text_column)
        self._records = records
        self._rows = [number for number, (cells, _) in enumerate(records) if number and cells != [""]]  # blank lines are no rows
        image = header.index(image_column)
        for number in self._rows:
            if len(records[number][0]) != len(header):
                line = 1 + sum("".join(cells).count("\n") + 1 for cells, _ in records[:number])
                given = f"table {path}, line {line}: {len(records[number][0])} cells under {len(header)} column names ({shown(header)})"
                raise DataError(given, "as many cells as names", 'put cells that hold the delimiter or a line break in "double quotes"')
            if self._added:
                records[number][0].append("")
        self.images = [_unquoted(records[number][0][image]) for number in self._rows]
        self.texts = [_unquoted(records[number][0][self._place]) for number in self._rows]

    def filled(self, texts: Mapping[int, str]) -> str:
        changed = {self._rows[row]: text for row, text in texts.items()}
        written = [self._mark]
        for number, (cells, end) in enumerate(self._records):
            if number in changed:
                cells = [*cells[: self._place], self._quoted(changed[number]), *cells[self._place + 1 :]]
            written += [self._delimiter.join(cells), end]
        return "".join(written)

    def _quoted(self, text: str) -> str:
        return f'"{text.replace(chr(34), chr(34) * 2)}"' if set(text) & {self._delimiter, '"', "\r", "\n"} else text


def _records(path: Path, text: str, delimiter: str) -> list[tuple[list[str], str]]:
    """(cells as they are written, line end) of each record."""
    cell = re.compile(rf'("[^"]*(?:""[^"]*)*"|(?!")[^{delimiter}\r\n]*)({delimiter}|\r\n|\n|\r|\Z)')
    records: list[tuple[list[str], str]] = []
    cells: list[str] = []
    place = 0
    while place < len(text) or cells:
        match = cell.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            fix = 'close every quote and write a quote within one as ""'
            raise DataError(f"table {path}, line {line}: a quote that is not closed before {text[place : place + 40]!r}", "CSV", fix)
        cells.append(match[1])
        place = match.end()
        if match[2] != delimiter:
            records.append((cells, match[2]))
            cells = []
    return records


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


class _JsonLines:
    def __init__(self, path: Path, text: str, image_column: str, text_column: str) -> None:
        self._lines = text.split("\n")  # not splitlines: JSON text may hold U+2028 and its kind
        self._text_column = text_column
        self._rows: list[tuple[int, dict[str, Any]]] = []
        for number, line in enumerate(self._lines):
            if line.strip(" \t\r" + _BOM):
                self._rows.append((number, _object(path, number, line.removeprefix(_BOM))))
        names = sorted({name for _, row in self._rows for name in row})
        if image_column not in names:
            fix = nearest(image_column, names) or "name it in prepare.image_column"
            raise DataError(f"table {path}: no key {image_column!r}", f"one of {', '.join(names)}", fix)
        self.images = [_cell(path, number, row, image_column) for number, row in self._rows]
        self.texts = [_cell(path, number, row, text_column) for number, row in self._rows]

    def filled(self, texts: Mapping[int, str]) -> str:
        lines = list(self._lines)
        for place, text in texts.items():
            number, row = self._rows[place]
            mark = _BOM if lines[number].startswith(_BOM) else ""
            end = "\r" if lines[number].endswith("\r") else ""
            lines[number] = mark + json.dumps({**row, self._text_column: text}, ensure_ascii=False) + end
        return "\n".join(lines)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"table {path}, line {number + 1}: {error}", "one JSON object a line", "mend or remove that line") from error
    if not isinstance(row, dict):
        raise DataError(f"table {path}, line {number + 1}: {line[:60]!r}", "one JSON object a line", 'write {"name": value, …}')
    return row


def _cell(path: Path, number: int, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(f"table {path}, line {number + 1}: {column} is {value!r}", "a text or null", "write it in double quotes")
    return value or ""
