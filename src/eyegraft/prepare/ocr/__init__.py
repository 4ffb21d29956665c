"""Fill the text column of a table with what stands in its pictures.

The table itself is never changed: `ads.csv` gives `ads.ocr.csv` beside it, with every other cell as it was written, and
`ads.ocr.csv.manifest.json`, which says what was read by which engine, and which pictures could not be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eyegraft.config import Fraction, Positive, Strict
from eyegraft.errors import DataError, RecipeError, nearest, shown
from eyegraft.files import write_atomically
from eyegraft.prepare import unchanged
from eyegraft.prepare.ocr.engines import Engine, choose
from eyegraft.prepare.ocr.pictures import MISSING, Reading, read_pictures
from eyegraft.prepare.ocr.tables import Table, read_table

log = logging.getLogger(__name__)


class Config(Strict):
    """Attributes:
    table: csv, tsv or jsonl file to fill; its place and the pictures' are relative to data.base_dir.
    tables: split -> table, in place of one `table`; `prepare=ocr` takes those of the recipe's `data`.
    output: the table to write; None puts `.ocr` before the suffix. Only for a single table.
    image_column, text_column: of the table; a text column that is not there yet is added.
    overwrite: replace texts that are there already; otherwise they are kept, and only empty cells are filled.
    engine: `auto` takes Tesseract where Korean is asked for and its data are installed, else RapidOCR.
    languages: Tesseract's codes. RapidOCR always reads English and Chinese.
    min_confidence: words that the engine is less sure of are left out; changing it reads nothing anew.
    max_pixels: larger pictures are refused before they are decoded.
    workers: pictures read at once; None: one for each core, at most 8.
    """

    table: str | None = None
    tables: dict[str, str] = {}
    output: str | None = None
    image_column: str = "image"
    text_column: str | None = "text"
    overwrite: bool = False
    engine: Literal["auto", "tesseract", "rapidocr"] = "auto"
    languages: Annotated[tuple[Annotated[str, Field(pattern=r"^\w+(/\w+)?$")], ...], Field(min_length=1)] = ("kor", "eng")
    min_confidence: Fraction = 0.5
    max_pixels: Positive = 89_478_485  # Pillow's own limit for a picture that is no decompression bomb
    workers: Positive | None = None

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if self.table is None and not self.tables:
            raise ValueError("no table to fill: give prepare.table, or data.tables")
        if self.output is not None and self.table is None:
            raise ValueError("prepare.output is the place of one table: give prepare.table too")
        return self


@dataclass(frozen=True)
class _Job:
    """One table to fill; wanted: row -> its picture, for the rows whose text is to be read."""

    source: Path
    sha256: str
    output: Path
    table: Table
    wanted: dict[int, Path]


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write each table with its texts. Gives `files`: written table -> its facts.

    Raises:
        RecipeError: the recipe names no column for texts.
        DataError: a table cannot be used, none of its pictures can be read, or the output was changed by somebody else.
        PartError: no OCR engine for these languages is installed.
    """
    if config.text_column is None:
        raise RecipeError("prepare=ocr: no column for the texts", "a column to fill", "give prepare.text_column, or data.columns.text")
    names = [config.table] if config.table is not None else list(dict.fromkeys(config.tables.values()))
    jobs = [_job(config, name, config.text_column, target) for name in names]
    engine = choose(config.engine, config.languages)
    return {"files": {job.output: _fill(job, config, engine) for job in jobs}}


def _job(config: Config, name: str, text_column: str, target: Path) -> _Job:
    if name.startswith("hub:"):
        raise DataError(f"table {name}: OCR fills no tables of the hub", "a .csv, .tsv or .jsonl file", "give prepare.table")
    source = _place(name, target)
    output = _place(config.output, target) if config.output is not None else source.with_name(f"{source.stem}.ocr{source.suffix}")
    if not source.is_file():
        there = sorted(item.name for item in source.parent.iterdir()) if source.parent.is_dir() else []
        fix = nearest(source.name, there) or f"{source.parent} holds {shown(there) or 'nothing'}"
        raise DataError(f"table {source}: no such file", "a .csv, .tsv or .jsonl file", fix)
    if output.suffix.lower() != source.suffix.lower():
        raise DataError(f"prepare.output={config.output}", f"the suffix of the table, {source.suffix}", "the kind of file stays the same")
    if output.exists() and output.samefile(source):
        raise DataError(f"prepare.output={config.output} is the table itself", "another file", "leave prepare.output out")
    content = source.read_bytes()
    table = read_table(source, content, config.image_column, text_column)
    rows = zip(table.images, table.texts, strict=True)
    empty = {row: image.strip() for row, (image, text) in enumerate(rows) if config.overwrite or not text.strip()}
    wanted = {row: _picture(image, target) for row, image in empty.items() if image}
    return _Job(source, hashlib.sha256(content).hexdigest(), output, table, wanted)


def _fill(job: _Job, config: Config, engine: Engine) -> dict[str, Any]:
    """Read the pictures of one table and write it; gives its facts for the manifest."""
    workers = config.workers or min(8, os.cpu_count() or 1)
    readings = read_pictures(job.wanted.values(), engine, max_pixels=config.max_pixels, workers=workers)
    by_row = {row: readings[path] for row, path in job.wanted.items()}
    bad = {row: reading for row, reading in by_row.items() if reading.reason}
    if bad and len(bad) == len(by_row):
        _stop(job, bad)
    texts = {row: reading.text(config.min_confidence) for row, reading in by_row.items()}
    # a cell that is replaced by nothing was not read: with `overwrite`, a picture that cannot be opened leaves its row's text as it was
    changed = {row: text for row, text in texts.items() if text != job.table.texts[row] and not (row in bad and job.table.texts[row])}
    _write(job.output, job.table.filled(changed).encode("utf-8"))
    counts = _counts(job, by_row, texts)
    log.info("%s: %s", job.output, ", ".join(f"{name} {number}" for name, number in counts.items() if not isinstance(number, dict)))
    if bad:
        first = next(iter(bad))
        example = f"{job.table.images[first]} ({bad[first].detail})"
        log.warning("%s: the pictures of %d rows could not be read: %s; the manifest lists all", job.output, len(bad), example)
    listed = [
        {"row": row + 1, "image": job.table.images[row], "reason": reading.reason, "detail": reading.detail} for row, reading in bad.items()
    ]
    return {
        "table": job.source.name,
        "table_sha256": job.sha256,
        "engine": engine.key,
        "min_confidence": config.min_confidence,
        "counts": counts,
        "quarantined": listed,
    }


def _counts(job: _Job, by_row: dict[int, Reading], texts: dict[int, str]) -> dict[str, Any]:
    """Rows by what became of them. All but `without text`, which is a part of those that were read, add up to `rows`."""
    read = [reading for reading in by_row.values() if not reading.reason]
    pictured = sum(1 for image in job.table.images if image.strip())
    return {
        "rows": len(job.table.images),
        "kept": pictured - len(by_row),
        "without picture": len(job.table.images) - pictured,
        "read now": sum(1 for reading in read if not reading.cached),
        "read from the cache": sum(1 for reading in read if reading.cached),
        "not read": len(by_row) - len(read),
        "without text": sum(1 for row, reading in by_row.items() if not reading.reason and not texts[row]),
        "not read, by reason": dict(Counter(reading.reason for reading in by_row.values() if reading.reason)),
    }


def _stop(job: _Job, bad: dict[int, Reading]) -> None:
    """When not one picture can be read, the place or the engine is wrong, and an empty column would hide it."""
    row, reading = next(iter(bad.items()))
    given = f"table {job.source}: none of {len(bad)} pictures can be read; the first, {job.wanted[row]}: {reading.reason}: {reading.detail}"
    fix = "set data.base_dir to the folder that they are relative to" if reading.reason == MISSING else "see the reason above"
    raise DataError(given, "pictures that open", fix)


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _place(name: str, target: Path) -> Path:
    return target / Path(name if os.name == "nt" else name.replace("\\", "/")).expanduser()


def _picture(cell: str, target: Path) -> Path:
    path = target / Path((cell if os.name == "nt" else cell.replace("\\", "/")).replace("\0", "\ufffd"))  # no path holds a NUL
    for form in ("NFC", "NFD"):  # macOS archives spell Korean names apart, tables spell them together
        spelled = Path(unicodedata.normalize(form, str(path)))
        if not os.path.lexists(path) and os.path.lexists(spelled):
            return spelled
    return path


def _write(output: Path, content: bytes) -> None:
    """Write a table that no kill leaves half-made. What somebody has changed by hand since it was written is not replaced."""
    if output.exists() and output.read_bytes() != content and not unchanged(output):
        fix = "name another prepare.output; or, to fill what is still empty in it, make it the prepare.table"
        raise DataError(f"{output} is there, and it is not as `eyegraft prepare` left it", "a place for a new table", fix)
    try:
        write_atomically(output, content)
    except OSError as error:
        fix = "name another prepare.output; nothing is read a second time"
        raise DataError(f"table {output} cannot be written: {error}", "a folder that can be written", fix) from error
