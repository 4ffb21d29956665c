"""What the sources of pictures with texts share: where rows come from, which pictures are theirs, how they are cut and written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from eyegraft.config import Fraction, Positive, Strict
from eyegraft.data.tables import read_table
from eyegraft.errors import DataError, nearest, shown
from eyegraft.files import write_atomically
from eyegraft.prepare._cut import Row, cut, name_groups, number_ids
from eyegraft.prepare._shards import read_shards, shard_files
from eyegraft.pretrained import cache_dir

MISSING = "missing file"
OUTSIDE = "outside the folder"
QUARANTINE = "quarantine.jsonl"
REFUSED = "refused.jsonl"
"""The same of a preparation that was stopped: what an earlier one has made stays as it is."""

Name = Annotated[str, Field(pattern=r"^\w+$")]


class Sources(Strict):
    """Attributes:
    folder: that holds annotations and pictures; relative to data.base_dir.
    annotations: source -> its file, a table (as in `data.tables`, `hub:NAME[:CONFIG]:SPLIT` and folders of `datasets` too) or WebDataset
        shards (`train-*.tar`, `train-{0000..0011}.tar`), relative to `folder`. None leaves a source out.
    images: folder that the names of pictures are relative to, relative to `folder`; or source -> folder.
    splits: source -> split -> share of its pictures.
    seed: another seed, another cut.
    max_bad_fraction: more unusable rows than this stop the preparation.
    workers: shards read at once; None: one for each core, at most 8.
    licence: of the data, for the manifest.
    """

    folder: str = "."
    annotations: Annotated[dict[str, str | None], Field(min_length=1)]
    images: str | dict[str, str] = "."
    splits: dict[str, dict[Name, Fraction]]
    seed: int = 0
    max_bad_fraction: Fraction = 0.01
    workers: Positive | None = None
    licence: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Sources:
        if not self.places:
            raise ValueError("annotations: every source is null")
        for source in self.places:
            shares = self.splits.get(source)
            if not shares:
                raise ValueError(f"splits says nothing of the source {source!r}: give splits.{source}, such as {{train: 0.98, val: 0.02}}")
            if abs(sum(shares.values()) - 1) > 1e-6:
                raise ValueError(f"splits.{source} sums to {sum(shares.values()):g}, it must sum to 1")
            if isinstance(self.images, dict) and source not in self.images:
                raise ValueError(f"images names no folder for the source {source!r}: give images.{source}, or one folder for all")
        return self

    @property
    def places(self) -> dict[str, str]:
        """The sources that are read."""
        return {source: place for source, place in self.annotations.items() if place is not None}


class Refused(Exception):
    """A row cannot be used: a reason that can be counted, and what it is about."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@contextmanager
def options_of(task: str) -> Iterator[None]:
    """Errors within name the options `prepare.X` as `prepare.TASK.X`."""
    try:
        yield
    except DataError as error:
        given, expected, fix = (text.replace("prepare.", f"prepare.{task}.") for text in (error.given, error.expected, error.fix))
        raise DataError(given, expected, fix) from error


def parsed(text: str, name: str) -> Any:
    """What JSON in a row holds; broken, it refuses the row."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("broken JSON", f"{name}: {error}") from error


class Gathering:
    """Rows on their way into tables: taken, or refused with a reason.

    Args:
        follow_links: whether a picture may be a symbolic link, or lie behind one, that leads out of the folder of pictures.
    """

    def __init__(self, config: Sources, target: Path, *, follow_links: bool = True) -> None:
        self.config, self.follow_links = config, follow_links
        self.target = Path(os.path.normpath(target.absolute()))
        self.folder = _beneath(self.target, config.folder)
        self.rows: list[Row] = []
        self.bad: list[dict[str, Any]] = []
        self.aside: list[dict[str, Any]] = []
        self._read: dict[str, dict[str, Any]] = {}
        self._sizes: dict[str, int] = {}
        self._found: dict[tuple[str, str], str | Refused] = {}
        self._listings: dict[Path, dict[str, int]] = {}
        self._real: dict[Path, Path] = {}

    # ── what there is ──

    def json(self, source: str, place: str) -> Any:
        """What a JSON file holds.

        Raises:
            DataError: it is missing or broken; with line and column.
        """
        path = _beneath(self.folder, place)
        try:
            content = path.read_bytes()
        except OSError as error:
            there = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
            hint = nearest(path.name, there) or (
                f"{path.parent} holds {shown(there) or 'nothing'}" if there else f"no folder {path.parent}"
            )
            fix = f"{hint}; set prepare.folder or prepare.annotations.{source}"
            raise DataError(f"annotations {path}: {error.strerror}", "a JSON file", fix) from error
        try:
            found = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            fix = f"the file has {len(content):,} bytes: is it whole? Fetch it again, or mend it there"
            raise DataError(f"annotations {path}: {error}", "well-formed JSON in UTF-8", fix) from error
        self._read[source] = {"place": place, "sha256": hashlib.sha256(content).hexdigest()}
        return found

    def table(self, source: str, place: str, columns: Mapping[str, str | None]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number from 1, key -> cell) of each row of a table; `columns` is key -> name of its column, None for what it does not have.

        Raises:
            DataError: the table cannot be read, or a column is not there.
        """
        try:
            rows, sha256 = read_table(place, self.folder)
        except DataError as error:
            fix = f"{error.fix}; places are relative to prepare.folder, which is {self.folder}"
            raise DataError(f"prepare.annotations.{source}: {error.given}", error.expected, fix) from error
        self._read[source] = {"place": place, "sha256": sha256}
        there = list(dict.fromkeys(key for row in rows for key in row))
        wanted = {key: name for key, name in columns.items() if name is not None}
        if missing := {key: name for key, name in wanted.items() if name not in there}:
            given = "; ".join(f"prepare.columns.{key}: no column {name!r}" for key, name in missing.items())
            raise DataError(f"table {place}: {given}", f"columns among: {', '.join(there)}", "name the table's own under prepare.columns")
        for number, row in enumerate(rows, 1):
            yield number, {key: row.get(name) for key, name in wanted.items()}

    def shards(self, source: str, place: str) -> Iterator[tuple[int, str, str, dict[str, str]]]:
        """(number from 1, key, picture, suffix -> text) of each usable sample of WebDataset shards."""
        files = shard_files(place, self.folder)
        workers = self.config.workers or min(8, os.cpu_count() or 1)
        hashes: dict[str, str] = {}
        self._read[source] = {"place": place, "sha256": hashes}
        number = 0
        for path, sha256, samples in read_shards(files, self.target, workers):
            hashes[path.name] = sha256
            for sample in samples:
                number += 1
                if sample.reason or not sample.image:
                    detail = sample.detail or f"{path.name} holds no picture of that name"
                    self.refuse(source, number, sample.key, "", Refused(sample.reason or "no picture", detail))
                    continue
                self._sizes[sample.image] = sample.size
                yield number, sample.key, sample.image, sample.texts

    # ── pictures ──

    def picture(self, source: str, given: Any) -> str:
        """A picture's path as the table will have it: relative to the prepared folder where it lies in there, else absolute.

        Raises:
            Refused: there is no such file, or its name leads out of the folder of pictures.
        """
        if not isinstance(given, str) or not given.strip():
            raise Refused(MISSING, "the picture has no name" if given is None or given == "" else f"{given!r:.80} is no name of a file")
        if (source, given) not in self._found:
            try:
                self._found[source, given] = self._look(source, given)
            except Refused as why:
                self._found[source, given] = why
        if isinstance(found := self._found[source, given], Refused):
            raise found
        return found

    def _look(self, source: str, given: str) -> str:
        stored = Path(given)
        if stored.is_relative_to(cache_dir() / "images") and stored.is_file():
            return self._adopted(stored)
        if given.startswith(("http://", "https://")):
            raise Refused(MISSING, f"{given} is a web address: fetch the pictures first")
        if "\0" in given:
            raise Refused(MISSING, "its name holds a NUL character")
        images = self.config.images if isinstance(self.config.images, str) else self.config.images[source]
        folder = _beneath(self.folder, images)
        path = _beneath(folder, given)
        if not path.is_relative_to(folder):  # by its letters: see `follow_links`
            raise Refused(OUTSIDE, f"{given!r} leads out of {folder}")
        listing = self._listing(path.parent)
        for form in (None, "NFC", "NFD"):  # macOS archives spell Korean and accented names apart
            name = unicodedata.normalize(form, path.name) if form is not None else path.name
            if name in listing:
                if not self.follow_links:
                    self._stop_at_links(path.with_name(name), folder)
                return self._known(path.with_name(name), listing[name])
        raise Refused(MISSING, f"no file {path}")

    def _listing(self, folder: Path) -> dict[str, int]:
        """File -> bytes, read once a folder: a hundred thousand single questions would take minutes on a network disk."""
        if folder not in self._listings:
            try:
                with os.scandir(folder) as items:
                    self._listings[folder] = {item.name: item.stat().st_size for item in items if item.is_file()}
            except OSError:
                self._listings[folder] = {}
        return self._listings[folder]

    def _stop_at_links(self, path: Path, folder: Path) -> None:
        for place in (path.parent, folder):
            if place not in self._real:
                self._real[place] = place.resolve()
        real = path.resolve() if path.is_symlink() else self._real[path.parent] / path.name
        if not real.is_relative_to(self._real[folder]):
            raise Refused(OUTSIDE, f"{path} is {real}, out of {folder}")

    def _known(self, path: Path, size: int) -> str:
        name = (path.relative_to(self.target) if path.is_relative_to(self.target) else path).as_posix()
        self._sizes[name] = size
        return name

    def _adopted(self, stored: Path) -> str:
        """A picture that was embedded in a table, linked or copied from the cache, which may be emptied."""
        path = self.target / "images" / stored.name[:2] / stored.name
        size = stored.stat().st_size
        if not path.is_file() or path.stat().st_size != size:
            draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            try:
                os.link(stored, draft)
                draft.replace(path)
            except OSError:  # another disk, or one without links
                write_atomically(path, stored.read_bytes(), durable=False)
        return self._known(path, size)

    # ── rows ──

    def take(self, source: str, name: str, image: str, given: str, /, *, group: str = "", **values: Any) -> None:
        """A usable row. `given` is what its source calls the picture: the cut goes by it, unless a group is named."""
        for text in _texts((name, given, values)):
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can spell it, no tokenizer and no file can take it
                raise Refused("broken text", f"half of a surrogate pair in {text[:40]!a}") from error
        self.rows.append(Row(source, name, image, given, values, group))

    def refuse(self, source: str, number: int, name: str, image: Any, why: Refused) -> None:
        """A row that cannot be used. `number` is its place in its source, from 1."""
        self.bad.append({"source": source, "row": number, "id": name, "image": image, "reason": why.reason, "detail": why.detail})

    def set_aside(self, source: str, number: int, name: str, image: Any, why: Refused) -> None:
        """What is no fault and yet no row: listed and counted, without being held against `max_bad_fraction`."""
        self.aside.append({"source": source, "row": number, "id": name, "image": image, "reason": why.reason, "detail": why.detail})

    def tables(self) -> dict[str, list[Row]]:
        """Split -> its rows, the splits of all sources together.

        Raises:
            DataError: too many rows cannot be used, or there are fewer pictures than splits.
        """
        self.stop_if_too_bad()
        name_groups([row for row in self.rows if not row.group])
        tables: dict[str, list[Row]] = {split: [] for shares in self.config.splits.values() for split, share in shares.items() if share > 0}
        for source in self.config.places:
            rows = [row for row in self.rows if row.source == source]
            where = cut({row.group for row in rows}, self.config.splits[source], self.config.seed, source)
            for row in rows:
                tables[where[row.group]].append(row)
        return {split: rows for split, rows in tables.items() if rows}

    def finish(self, tables: Mapping[str, list[Row]] | None = None) -> dict[str, Any]:
        """Cut, write one table a split and the list of what was left out; gives the facts for the manifest.

        Args:
            tables: split -> its rows, where they are cut already.

        Raises:
            DataError: too many rows cannot be used, or a table of somebody else lies in the place of ours.
        """
        return {**self._written([self], self.tables() if tables is None else tables), "read": self._read, "licence": self.config.licence}

    def finish_with(self, task: str, others: Mapping[str, Gathering]) -> dict[str, Any]:
        """The same of several gatherings in one folder, those of `others` by the names of their tasks. A column `task` says whose a row is.

        Raises:
            DataError: as `finish`.
        """
        gathered = {task: self, **others}
        columns = dict.fromkeys(name for found in gathered.values() for row in found.rows for name in row.values)
        together: dict[str, list[Row]] = {}
        for name, found in gathered.items():
            for row in found.rows:
                row.values = {"task": name, **columns, **row.values}
            for item in (*found.bad, *found.aside):
                item["task"] = name
            with options_of(name):
                for split, rows in found.tables().items():
                    together.setdefault(split, []).extend(rows)
        licences = "; ".join(dict.fromkeys(found.config.licence for found in gathered.values() if found.config.licence))
        read = {name: found._read for name, found in gathered.items()}
        return {**self._written(list(gathered.values()), together), "read": read, "licence": licences}

    def _written(self, gathered: Sequence[Gathering], tables: Mapping[str, list[Row]]) -> dict[str, Any]:
        number_ids([row for found in gathered for row in found.rows])
        left_out = [row for found in gathered for row in found.bad + found.aside]
        contents = {f"{split}.jsonl": "".join(map(_line, rows)).encode() for split, rows in tables.items()}
        contents[QUARANTINE] = _listed(left_out)
        (self.target / REFUSED).unlink(missing_ok=True)
        self._clear(contents)
        for name, content in contents.items():
            write_atomically(self.target / name, content)
        sizes = {image: size for found in gathered for image, size in found._sizes.items()}
        counts: dict[str, dict[str, int]] = {}
        for split, rows in tables.items():
            images = {row.image for row in rows if row.image}
            counts[split] = {"count": len(images), "bytes": sum(sizes[image] for image in images)}
        return {
            "rows": {split: len(rows) for split, rows in tables.items()},
            "pictures": counts,
            "left_out": dict(Counter(row["reason"] for row in left_out).most_common()),
            "outputs": sorted(contents),
        }

    def stop_if_too_bad(self) -> None:
        """Raises:
        DataError: no row can be used, or more than `max_bad_fraction` of them cannot.
        """
        total = len(self.rows) + len(self.bad)
        if self.rows and len(self.bad) <= self.config.max_bad_fraction * total:
            return
        counts = Counter(row["reason"] for row in (self.bad if self.rows else self.bad + self.aside))
        by_reason = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        listed = [
            f"\n  {row['source']} row {row['row']} ({row['id']}): {row['reason']}: {row['detail']}".rstrip(": ") for row in self.bad[:3]
        ]
        first = "".join(listed) + (f"\n  and {len(self.bad) - 3} more" if len(self.bad) > 3 else "")
        fix = "mend these rows"
        if 2 * counts[MISSING] > len(self.bad):
            fix = f"set prepare.folder, which is {self.folder}, or prepare.images, which is {self.config.images}, to where the pictures lie"
        if not self.rows:
            given = f"none of the {total + len(self.aside)} rows can be used: {by_reason or 'there are none'}{first}"
            raise DataError(given, "usable rows", fix)
        write_atomically(self.target / REFUSED, _listed(self.bad))
        fix += f"; all are listed in {self.target / REFUSED}"
        given = f"{len(self.bad)} of {total} rows ({len(self.bad) / total:.1%}) cannot be used: {by_reason}{first}"
        expected = f"at most prepare.max_bad_fraction = {self.config.max_bad_fraction:.1%}"
        raise DataError(given, expected, f"{fix}; or raise prepare.max_bad_fraction to leave them out")

    def _clear(self, contents: Mapping[str, bytes]) -> None:
        """Take away tables of ours that this configuration does not make, and stop at tables that are not ours."""
        try:
            recorded = json.loads((self.target / "manifest.json").read_bytes())["files"]
        except (OSError, ValueError, KeyError, TypeError):
            recorded = {}
        for name, content in contents.items():
            path = self.target / name
            if path.exists() and name not in recorded and path.read_bytes() != content:
                fix = f"set another data.base_dir, or move {name} away"
                given = f"{path} is there, and no manifest says that eyegraft wrote it"
                raise DataError(given, "no file in the place of a new table", fix)
        for name in recorded:
            if re.fullmatch(r"\w+\.jsonl", name) and name not in contents:
                (self.target / name).unlink(missing_ok=True)


def _beneath(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / Path(name if os.name == "nt" else name.replace("\\", "/")).expanduser()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _listed(left_out: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in left_out).encode("utf-8", "backslashreplace")


def _line(row: Row) -> str:
    return json.dumps({"id": row.id, "image": row.image, **row.values, "group": row.group}, ensure_ascii=False) + "\n"
