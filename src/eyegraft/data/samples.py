"""Tables to samples: every row is used, or named with its reason in the quarantine; splits share nothing that training could memorise."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from eyegraft.config import Columns, Data, Split
from eyegraft.data.images import MISSING, Progress, check_images
from eyegraft.data.leaks import (
    ALIKE_FILE,
    TRAINING,
    Alike,
    alike_hashes,
    alike_rows,
    in_words,
    joined,
    move_alike,
    records,
    stop_at_leaks,
    write_records,
)
from eyegraft.data.panorama import faults_of
from eyegraft.data.tables import read_table, store_image
from eyegraft.errors import DataError, nearest, shown
from eyegraft.pretrained import cache_dir
from eyegraft.types import Sample

log = logging.getLogger(__name__)
OUTSIDE = "outside the base folder"
EMPTY_TEXT = "empty text"
BROKEN_TEXT = "broken text"
NO_INPUT = "no input"
EMPTY_ID = "empty id"
DUPLICATE_ID = "duplicate id"


@dataclass(frozen=True)
class PreparedData:
    """Samples by split, and what became of the other rows.

    Attributes:
        splits: split -> samples in the table's order.
        table_sha256: split -> hash of the table that it came from.
        split_sha256: split -> hash over its sorted (id, image hash, prompt, references, text): what is learned from, wherever files lie.
            Where pictures are not read, the path's text stands in place of the image, and it does not matter whether the files are there.
            Of a patch store it is the hash of its manifest.
        num_rows: split -> rows read, usable or not.
        reasons: how many rows were quarantined for which reason.
        quarantined: {"split", "row" (1 is the first data row), "id", "image", "reason", "detail"} for each row that is not used.
        near_duplicates: pictures of `train` and `val` that look like one of another split, and were moved or allowed (see `data.leaks`).
        fingerprints: SHA-256 of a picture -> what alike pictures are found by; empty where no pixels were decoded.
        several_tasks: rows say which task they are of.
    """

    splits: dict[str, Sequence[Sample]]
    table_sha256: dict[str, str]
    split_sha256: dict[str, str]
    num_rows: dict[str, int]
    reasons: Counter[str]
    quarantined: list[dict[str, Any]]
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)
    fingerprints: dict[str, bytes] = field(default_factory=dict, repr=False)
    several_tasks: bool = False

    def of_task(self, *names: str) -> PreparedData:
        """The samples that these of the recipe's tasks are asked about. One that names no task is of any, where there is only one."""
        if not self.several_tasks:
            return self
        meant = (None, *names) if len(names) == 1 else names
        splits = {split: [sample for sample in samples if sample.task in meant] for split, samples in self.splits.items()}
        return replace(self, splits={split: samples for split, samples in splits.items() if samples})

    def each_picture_once(self) -> PreparedData:
        """The first sample of each picture, whatever it is asked: what learns from pictures alone would see copies. Of rows of patch stores
        every one is another."""
        splits: dict[str, Sequence[Sample]] = dict(self.splits)
        for split, samples in self.splits.items():
            if not hasattr(samples, "take"):
                first: dict[Path | None, Sample] = {}
                for sample in samples:
                    first.setdefault(sample.image, sample)
                splits[split] = list(first.values())
        return replace(self, splits=splits)


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


def load_samples(
    data: Data,
    *,
    read_images: bool = True,
    panoramas: bool = False,
    root: Path | None = None,
    quarantine_file: Path | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Read the tables, check every picture, cut or compare the splits.

    Outside `train`, rows that share picture, text and prompt become one sample with all their references, as caption metrics want them,
    unless `data.merge_references` is off; it keeps the first row's id and further columns. Without an id column a row is
    `<split>-<row number>`, counted from 1.

    Args:
        data: the `data` section of a recipe.
        read_images: whether the model reads pictures. Without it none has to be there: a sample names a picture that is, for reports, and
            one that is not, or is damaged, is told apart by its path alone. With all of them there, the data are the same either way.
        panoramas: whether the model reads pictures as panoramas: one that shows less than the whole sphere is then not used.
        root: folder that a relative `data.base_dir` is relative to; None is the working directory.
        quarantine_file: JSON-lines file for the rows that are not used; written whole or not at all, empty when all are used. Pictures
            that look alike across splits are listed in `near_duplicates.jsonl` beside it.
        progress: called as (done, total) while pictures are checked.

    Raises:
        DataError: a table or column is missing, a split is empty, more than `max_bad_fraction` of the rows cannot be used, a group or a
            byte-identical picture of `train` or `val` stands in another split too, or, unless `data.near_duplicates` says otherwise, a
            picture that looks like one of another split.
    """
    if data.satellite is not None:
        from eyegraft.data.patch_rows import load_patches

        return load_patches(data, root=root)
    base = base_folder(data.base_dir, root)
    rows, table_sha256 = _read(data, base, read_images)
    memory = cache_dir() / "image_checks" / f"{hashlib.sha256(str(base).encode()).hexdigest()[:16]}.jsonl"
    paths = [row.path for row in rows if row.path is not None and not row.reason and (read_images or row.path.is_file())]
    checked = check_images(paths, max_pixels=data.max_pixels, decode=data.check == "decode", memory=memory, progress=progress)
    for row in rows:
        facts = checked.get(row.path) if row.path is not None and not row.reason else None
        if facts is not None and not facts.reason:
            row.sha256 = facts.sha256
        elif not read_images:
            row.sha256 = _path_sha256(row, base)
        elif facts is not None:
            row.refuse(facts.reason, _missing(row, facts.detail, base) if facts.reason == MISSING else facts.detail)
    if panoramas and read_images:
        _refuse_partial(rows)
    looks = {facts.sha256: facts.fingerprint for facts in checked.values() if facts.fingerprint and data.check == "decode"}
    if data.split is not None:
        names = _cut(rows, data.split, base, alike_hashes(looks) if data.near_duplicates != "allow" else ())
        table_sha256 = dict.fromkeys(names, table_sha256[data.split.table])
    else:
        names = list(data.tables)
    alike, listed = _look_for_copies(rows, names, data, looks, quarantine_file)
    merge = {name: data.merge_references and name != "train" for name in names}
    splits: dict[str, Sequence[Sample]] = {
        name: _samples([row for row in rows if row.split == name], merge[name], read_images) for name in names
    }
    quarantined = _quarantine(rows, quarantine_file)
    _stop_if_too_bad(rows, splits, data.max_bad_fraction, quarantine_file, base)
    file = quarantine_file.with_name(ALIKE_FILE) if quarantine_file is not None else None
    stop_at_leaks([row for row in rows if not row.reason], alike, file)
    return PreparedData(
        splits=splits,
        table_sha256=table_sha256,
        split_sha256={name: _split_sha256(samples) for name, samples in splits.items()},
        num_rows={name: sum(row.split == name for row in rows) for name in names},
        reasons=Counter(row.reason for row in rows if row.reason),
        quarantined=quarantined,
        near_duplicates=listed,
        fingerprints=looks,
        several_tasks=data.columns.task is not None,
    )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def base_folder(given: str, root: Path | None = None) -> Path:
    """`data.base_dir` as a folder that is there, relative to `root` or the working directory."""
    folder = Path(os.path.expandvars(given if os.name == "nt" else given.replace("\\", "/"))).expanduser()
    base = Path(os.path.normpath(((root or Path()) / folder).absolute()))
    if not base.is_dir():
        fix = "set the environment variable in it" if "$" in str(base) else nearest(base.name, _names_in(base.parent))
        fix = fix or "check the path; a recipe that makes its own data does so by `eyegraft prepare`, with the same arguments as `train`"
        told = repr(given) if given == str(base) else f"{given!r}, which is {base}"
        raise DataError(f"data.base_dir: {told}: no such folder", "an existing folder", fix)
    return base


def _names_in(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir()] if folder.is_dir() else []


def _read(data: Data, base: Path, read_images: bool) -> tuple[list[Row], dict[str, str]]:
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


def _refuse_partial(rows: Iterable[Row]) -> None:
    """Refuse rows whose picture is no whole panorama."""
    pictures = [(row, row.path) for row in rows if row.path is not None and not row.reason]
    wrong = faults_of(path for _, path in pictures)
    for row, path in pictures:
        if path in wrong:
            row.refuse(*wrong[path])


def _missing(row: Row, detail: str, base: Path) -> str:
    """Why there is no such file; of a path that was absolute where it was written, where else the file may be."""
    parts = PureWindowsPath(row.image).parts[1:]
    if not (PureWindowsPath(row.image).root or row.detail):
        return detail
    for start in range(len(parts)):
        if (found := base.joinpath(*parts[start:])).is_file():
            return f"{row.detail or detail}; but {found} exists: write '{'/'.join(parts[start:])}', relative to data.base_dir"
    return row.detail or detail


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _look_for_copies(
    rows: Sequence[Row], names: Sequence[str], data: Data, looks: dict[str, bytes], quarantine_file: Path | None
) -> tuple[list[Alike], list[dict[str, Any]]]:
    """What the run must stop at, and what is only told. Moves rows where `data.near_duplicates` says so."""
    if not set(TRAINING) & set(names) or len(names) < 2:
        return [], []
    if data.check != "decode":
        if data.near_duplicates != "allow":
            log.info("pictures that look alike across splits are not looked for: data.check=%s decodes none", data.check)
        return [], []
    alike = alike_rows([row for row in rows if not row.reason], looks)
    listed = records(alike)
    if data.near_duplicates == "move":
        stop_at_leaks([replace(row, sha256="") for row in rows if not row.reason])  # a group that crosses splits is no picture's fault
        listed = move_alike(rows, names, alike)
        if listed:
            ways = Counter((item["split"], item["moved_to"]) for item in listed)
            counts = ", ".join(f"{count} from {start} to {end}" for (start, end), count in sorted(ways.items()))
            log.warning("data.near_duplicates=move: %d rows moved with their groups (%s), because copies cross splits", len(listed), counts)
    elif data.near_duplicates == "allow" and alike:
        log.warning("data.near_duplicates=allow: %s; results may be too good", in_words(alike))
    if quarantine_file is not None:
        write_records(quarantine_file.with_name(ALIKE_FILE), listed)
    return (alike, []) if data.near_duplicates == "refuse" else ([], listed)


def _cut(rows: Sequence[Row], split: Split, base: Path, alike: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Give every row its split: groups in the order of a seeded hash of their names, cut where the row shares say.

    Groups that share a byte-identical picture, or one that looks alike (pairs of hashes), are cut as one, else the cut itself would leak.
    Every split gets at least one group.
    """
    names = [name for name, fraction in split.fractions.items() if fraction > 0]
    groups = [row.group or (_portable(row.path, base) if row.path is not None else row.image or f"\0{row.text}") for row in rows]
    same = joined(pair for couple in alike for pair in ((name, "\0".join(couple)) for name in couple))
    first_of = joined((group, same.get(row.sha256, row.sha256)) for group, row in zip(groups, rows, strict=True))
    units = [first_of[group] for group in groups]
    sizes = Counter(units)
    if len(sizes) < len(names):
        given = f"data.split: {len(names)} splits ({', '.join(names)}) from a table with {len(sizes)} group{'s' if len(sizes) > 1 else ''}"
        raise DataError(given, "at least one group for each split", "fewer splits, or a finer data.columns.group")
    order = sorted(sizes, key=lambda unit: (hashlib.sha256(f"{split.seed}\0{unit}".encode("utf-8", "surrogatepass")).digest(), unit))
    middles, done = [], 0.0
    for unit in order:
        middles.append((done + sizes[unit] / 2) / len(rows))
        done += sizes[unit]
    where: dict[str, str] = {}
    start, share = 0, 0.0
    for number, name in enumerate(names):
        share += split.fractions[name]
        rest = len(names) - number - 1
        stop = len(order) if rest == 0 else min(max(sum(middle < share for middle in middles), start + 1), len(order) - rest)
        where |= dict.fromkeys(order[start:stop], name)
        start = stop
    for row, unit in zip(rows, units, strict=True):
        row.split = where[unit]
    return names


def _portable(path: Path, base: Path) -> str:
    """A picture's name that is the same on every machine, where there is one."""
    folder = next((folder for folder in (base, cache_dir()) if path.is_relative_to(folder)), None)
    return unicodedata.normalize("NFC", (path.relative_to(folder) if folder else path).as_posix())


def _path_sha256(row: Row, base: Path) -> str:
    """What stands in place of the picture's hash where pictures are not read; empty where the row names none."""
    name = row.image if row.path is None else _portable(row.path, base)
    return hashlib.sha256(f"path\0{name}".encode("utf-8", "surrogatepass")).hexdigest() if row.image else ""


def _samples(rows: Sequence[Row], merge: bool, read_images: bool) -> list[Sample]:
    """The samples of one split; refuses rows whose id is taken."""
    gathered: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.reason:
            together = merge and row.references and len(row.turns) < 2
            same = (row.path or row.image, row.text, row.prompt, row.choices, row.task)
            gathered[same if together else row.number].append(row)
    taken: dict[str, int] = {}
    samples = []
    for members in gathered.values():
        first = members[0]
        if first.name in taken:
            for row in members:
                row.refuse(DUPLICATE_ID, f"{first.name!r} is row {taken[first.name]} already")
            continue
        taken[first.name] = first.number
        references = tuple(text for row in members for text in row.references)
        sample = Sample(
            id=first.name,
            image=first.path if read_images or (first.path is not None and first.path.is_file()) else None,
            sha256=first.sha256,
            text=first.text,
            prompt=first.prompt,
            references=references,
            group=first.group,
            meta=first.meta,
            turns=first.turns,
            choices=first.choices,
            task=first.task,
        )
        samples.append(sample)
    return samples


def _split_sha256(samples: Iterable[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.id):
        row: list[Any] = [sample.id, sample.sha256, sample.prompt, sample.references]
        if sample.text:  # only then: rows without one keep the hash that runs were trained under before there was a text column
            row.append(sample.text)
        if sample.turns or sample.choices or sample.task:
            row.append([sample.turns, sample.choices, sample.task])
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _quarantine(rows: Iterable[Row], file: Path | None) -> list[dict[str, Any]]:
    bad = [
        {"split": row.split, "row": row.number, "id": row.name, "image": row.image, "reason": row.reason, "detail": row.detail}
        for row in rows
        if row.reason
    ]
    if file is not None:
        write_records(file, bad)
    return bad


def _stop_if_too_bad(rows: Sequence[Row], splits: Mapping[str, Sequence[Sample]], allowed: float, file: Path | None, base: Path) -> None:
    bad = [row for row in rows if row.reason]
    counts = Counter(row.reason for row in bad)
    empty = [name for name, samples in splits.items() if not samples]
    if not empty and len(bad) <= allowed * len(rows):
        return
    by_reason = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    first = "".join(f"\n  {row.split} row {row.number} ({row.name}, {row.image}): {row.reason}: {row.detail}" for row in bad[:3])
    first += f"\n  and {len(bad) - 3} more" if len(bad) > 3 else ""
    mend = f"mend the rows in {file}" if file is not None else "mend these rows"
    if 2 * counts[MISSING] > len(bad):
        mend += f", or set data.base_dir, which is {base}: relative paths start there"
    if counts[DUPLICATE_ID]:
        mend += ", or name another column in data.columns.id (null numbers the rows)"
    if len(bad) == len(rows):
        raise DataError(f"none of the {len(rows)} rows can be used: {by_reason}{first}", "usable rows; is data.base_dir right?", mend)
    if empty:
        given = f"split {shown(empty)}: no usable row is left: {by_reason}{first}"
        raise DataError(given, "at least one sample in every split", f"{mend}, or remove the split")
    given = f"{len(bad)} of {len(rows)} rows ({len(bad) / len(rows):.1%}) cannot be used: {by_reason}{first}"
    raise DataError(given, f"at most data.max_bad_fraction = {allowed:.1%}", f"{mend}, or raise data.max_bad_fraction to leave them out")
