"""Reading a table of rows, from whatever it was written as, without guessing: text stays text, and nothing is dropped unsaid."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eyegraft.errors import DataError, nearest, shown
from eyegraft.files import file_sha256, write_atomically
from eyegraft.pretrained import cache_dir

log = logging.getLogger(__name__)

Row = dict[str, Any]

_KINDS = ".csv, .tsv, .jsonl, .json or .parquet, a folder written by datasets' save_to_disk, or hub:NAME[:CONFIG]:SPLIT"
_HUB = re.compile(r"hub:(?P<name>[^:]+)(?::(?P<config>[^:\[\]]+))?:(?P<split>[^:\[\]]+(?:\[.*\])?)")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SUFFIXES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"))


def read_table(place: str, base_dir: Path) -> tuple[list[Row], str]:
    """All rows of a table, and the SHA-256 of its bytes.

    CSV and TSV give text only ("NA" stays "NA", an empty cell is an empty string); the other formats keep their types. Pictures that are
    embedded in rows are written once under `cache_dir()` and stand in the row as that file's path. Class labels of `datasets` become names.

    Args:
        place: csv, tsv, jsonl, json or parquet file, a folder of `datasets.save_to_disk`, or `hub:NAME[:CONFIG]:SPLIT`.
        base_dir: folder that a relative `place` is relative to.

    Returns:
        The rows, and a hash: of the file, of a saved folder's Arrow files, or of the rows of a hub data set (which is no single file).

    Raises:
        DataError: the table is missing, empty, of unknown kind, wrongly encoded or malformed; with line number and nearest name.
    """
    if place.startswith("hub:"):
        rows = _hub_rows(place)
        sha256 = _rows_sha256(rows)
    else:
        path = base_dir / Path(place if os.name == "nt" else place.replace("\\", "/")).expanduser()
        rows, sha256 = _folder_rows(path) if path.is_dir() else _file_rows(path)
    if not rows:
        raise DataError(f"table {place}: it has no rows", "at least one row", "check the file, or the step that wrote it")
    return [{str(key): _stored(value) for key, value in row.items()} for row in rows], sha256


def store_image(content: bytes) -> Path:
    """Write embedded picture bytes once under `cache_dir()`, named by their hash, and return the file."""
    name = hashlib.sha256(content).hexdigest()
    suffix = next((suffix for magic, suffix in _SUFFIXES if content.startswith(magic)), ".webp" if content[8:12] == b"WEBP" else ".img")
    path = cache_dir() / "images" / name[:2] / f"{name}{suffix}"
    if path.exists() and path.stat().st_size == len(content):
        return path
    try:
        write_atomically(path, content, durable=False)
    except OSError as error:
        fix = "free some space, or set EYEGRAFT_CACHE to another folder"
        raise DataError(f"a picture embedded in the table cannot be written to {path.parent}: {error}", "a writable folder", fix) from error
    return path


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _file_rows(path: Path) -> tuple[list[Row], str]:
    kind = path.suffix.lower()
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise DataError(f"table {path}: {error.strerror}", "a file that can be read", "check its permissions") from error
    if kind in (".csv", ".tsv"):
        rows = list(_delimited_rows(path, _text(path, content), "," if kind == ".csv" else "\t"))
    elif kind == ".jsonl":
        rows = list(_json_lines(path, _text(path, content)))
    elif kind == ".json":
        rows = _json_rows(path, _text(path, content))
    elif kind == ".parquet":
        rows = _parquet_rows(path, content)
    else:
        raise DataError(f"table {path}: unknown kind {kind or 'without suffix'!r}", _KINDS, "convert it, or give it the right suffix")
    return rows, hashlib.sha256(content).hexdigest()


def _missing(path: Path) -> DataError:
    """Names the nearest file, or the first folder on the way that does not exist."""
    absent = path
    while not absent.parent.exists() and absent.parent != absent:
        absent = absent.parent
    there = sorted(item.name for item in absent.parent.iterdir()) if absent.parent.is_dir() else []
    what = "no such file" if absent == path else f"no folder {absent}"
    hint = nearest(absent.name, there) or f"{absent.parent} holds {shown(there) or 'nothing'}"
    return DataError(f"table {path}: {what}", _KINDS, hint)


def _text(path: Path, content: bytes) -> str:
    fix = "save the table as UTF-8"
    if content.startswith(_UTF16_MARKS):
        raise DataError(f"table {path}: it is UTF-16, by its first two bytes", "UTF-8", f"{fix} (Excel: 'CSV UTF-8')")
    if (place := content.find(b"\0")) >= 0:
        raise DataError(f"table {path}: a NUL byte at offset {place}, so this is no text or it is damaged", "UTF-8 text", fix)
    try:
        return content.decode("utf-8-sig").removeprefix("\ufeff")  # a table that was converted twice has two marks
    except UnicodeDecodeError as error:
        not_utf8 = f"byte 0x{content[error.start]:02x} at offset {error.start}"
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError as error:
        raise DataError(f"table {path}: neither UTF-8 nor CP949 ({not_utf8})", "UTF-8", fix) from error
    log.warning("table %s is not UTF-8 (%s); read as CP949 (Korean Windows). If its text looks wrong, save it as UTF-8", path, not_utf8)
    return text


def _delimited_rows(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    # strict: an unbalanced quote is an error here, where by default it would swallow the rest of the table into one cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            if not header:
                header = cells
                _stop_at_other_delimiter(path, header, delimiter)
                if doubled := sorted({name for name in header if header.count(name) > 1}):
                    raise DataError(f"table {path}: column {shown(doubled)} stands twice in its first line", "distinct names", "rename one")
            elif cells:
                if len(cells) != len(header):
                    given = f"table {path}, line {start}: {len(cells)} cells under {len(header)} column names ({shown(header)})"
                    raise DataError(given, "as many cells as names", 'put cells that hold the delimiter or a line break in "double quotes"')
                yield dict(zip(header, cells, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'close every quote and write a quote within one as ""; very long cells belong in JSONL or Parquet'
        raise DataError(f"table {path}, row starting at line {start}: {error}", "well-formed CSV", fix) from error


def _stop_at_other_delimiter(path: Path, header: list[str], delimiter: str) -> None:
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if len(header) == 1 and mark in header[0] and mark != delimiter:
            fix = "save it with tabs as .tsv, or with commas as .csv" if mark == ";" else f"name it {'.tsv' if name == 'tabs' else '.csv'}"
            raise DataError(f"table {path}: its columns are parted by {name} ({header[0]})", f"{delimiter!r} in a {path.suffix} file", fix)


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON text may hold U+2028 and its kind
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            fix = "is the file one JSON list? then name it .json" if line.strip() == "[" else "mend or remove that line"
            raise DataError(f"table {path}, line {number}: {error}: {line[:60]!r}", "one JSON object a line", fix) from error
        if not isinstance(row, dict):
            raise DataError(f"table {path}, line {number}: {line[:60]!r}", "one JSON object a line", 'write {"name": value, …}')
        yield row


def _json_rows(path: Path, text: str) -> list[Row]:
    expected = "a list of objects, [{…}, {…}]"
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = "one object a line? then name the file .jsonl" if text.lstrip().startswith("{") else "mend the file there"
        raise DataError(f"table {path}: {error}", expected, hint) from error
    if not isinstance(rows, list):
        raise DataError(f"table {path}: a JSON {type(rows).__name__}", expected, "write out the list of rows alone")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"table {path}, item {number}: {str(row)[:60]!r}", expected, 'write {"name": value, …}')
    return rows


def _parquet_rows(path: Path, content: bytes) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"table {path}: {error}", "a whole Parquet file", "write it again; it may be cut short") from error
    return rows


# ── datasets ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _folder_rows(path: Path) -> tuple[list[Row], str]:
    if (path / "dataset_dict.json").exists():
        splits = sorted(item.name for item in path.iterdir() if (item / "state.json").exists())
        first = splits[0] if splits else "train"
        raise DataError(f"table {path}: a saved data set of several splits ({shown(splits)})", "one split", f"name it: {path.name}/{first}")
    if not (path / "state.json").exists():
        raise DataError(f"table {path}: a folder without a saved data set (no state.json)", _KINDS, "name the table file within it")
    from datasets import load_from_disk

    try:
        rows = _dataset_rows(load_from_disk(str(path)))
    except Exception as error:  # Arrow, JSON and file errors of any kind: all mean that the folder is damaged
        fix = "write it again with save_to_disk"
        raise DataError(f"table {path}: {type(error).__name__}: {error}", "a folder written by datasets' save_to_disk", fix) from error
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.arrow")):
        digest.update(bytes.fromhex(file_sha256(file)))
    return rows, digest.hexdigest()


def _hub_rows(place: str) -> list[Row]:
    named = _HUB.fullmatch(place)
    if named is None:
        raise DataError(f"table {place}", "hub:NAME[:CONFIG]:SPLIT", "for example hub:owner/flowers:train")
    from datasets import load_dataset

    try:
        return _dataset_rows(load_dataset(named["name"], named["config"], split=named["split"]))
    except Exception as error:  # offline, unknown, gated, no such split: the library raises a dozen kinds for these
        if isinstance(error, ConnectionError) or "Offline" in type(error).__name__:
            fix = "go online once (it is then cached), or download it elsewhere and name the folder that save_to_disk wrote"
        else:
            fix = "check name, configuration and split on the hub's page; log in if it is gated. A data set's own code is never run"
        given = f"table {place}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise DataError(given, "a data set that the hub or its cache holds", fix) from error


def _dataset_rows(dataset: Any) -> list[Row]:
    """Rows as Arrow holds them: pictures stay undecoded bytes, so that no bomb goes off here. Class labels become their names."""
    names = {key: feature.names for key, feature in dataset.features.items() if hasattr(feature, "names") and hasattr(feature, "int2str")}
    rows: list[Row] = []
    for table in dataset.with_format("arrow").iter(batch_size=256):
        for row in table.to_pylist():
            labels = {key: label_names[row[key]] for key, label_names in names.items() if row[key] is not None and row[key] >= 0}
            # stored batch by batch: the bytes of a whole data set need not fit into memory
            rows.append({key: _stored(value) for key, value in (row | labels).items()})
    return rows


def _stored(value: Any) -> Any:
    """The value with embedded pictures, `{bytes, path}` as `datasets` and hub Parquet files have them, replaced by paths."""
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:
            return str(store_image(value["bytes"])) if isinstance(value["bytes"], bytes) else value["path"]
        return {key: _stored(item) for key, item in value.items()}
    return [_stored(item) for item in value] if isinstance(value, list) else value


def _rows_sha256(rows: list[Row]) -> str:
    """Over the rows' values; a stored picture counts by its name, which is its hash, not by the folder that it lies in."""
    root = str(cache_dir())
    digest = hashlib.sha256()
    for row in rows:
        plain = {key: Path(value).name if isinstance(value, str) and value.startswith(root) else value for key, value in row.items()}
        digest.update(json.dumps(plain, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
