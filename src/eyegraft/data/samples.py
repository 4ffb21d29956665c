"""Tables to samples: every row is used, or named with its reason in the quarantine; splits share nothing that training could memorise."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eyegraft.config import Data
from eyegraft.data.images import MISSING, Progress, check_images
from eyegraft.data.leaks import ALIKE_FILE, alike_hashes, look_for_copies, stop_at_leaks, write_records
from eyegraft.data.panorama import faults_of, stop_without_opencv
from eyegraft.data.rows import Row, path_sha256, read_rows, why_missing
from eyegraft.data.splits import cut_by_group
from eyegraft.errors import DataError, nearest, shown
from eyegraft.pretrained import cache_dir
from eyegraft.types import Sample

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
        PartError: panoramas are read, and OpenCV is not installed.
    """
    if data.satellite is not None:
        from eyegraft.data.patch_rows import load_patches

        return load_patches(data, root=root)
    if panoramas and read_images:
        stop_without_opencv()  # before hours of checking pictures
    base = base_folder(data.base_dir, root)
    rows, table_sha256 = read_rows(data, base, read_images)
    memory = cache_dir() / "image_checks" / f"{hashlib.sha256(str(base).encode()).hexdigest()[:16]}.jsonl"
    paths = [row.path for row in rows if row.path is not None and not row.reason and (read_images or row.path.is_file())]
    checked = check_images(paths, max_pixels=data.max_pixels, decode=data.check == "decode", memory=memory, progress=progress)
    for row in rows:
        facts = checked.get(row.path) if row.path is not None and not row.reason else None
        if facts is not None and not facts.reason:
            row.sha256 = facts.sha256
        elif not read_images:
            row.sha256 = path_sha256(row, base)
        elif facts is not None:
            row.refuse(facts.reason, why_missing(row, facts.detail, base) if facts.reason == MISSING else facts.detail)
    if panoramas and read_images:
        _refuse_partial(rows)
    looks = {facts.sha256: facts.fingerprint for facts in checked.values() if facts.fingerprint and data.check == "decode"}
    if data.split is not None:
        names = cut_by_group(rows, data.split, base, alike_hashes(looks) if data.near_duplicates != "allow" else ())
        table_sha256 = dict.fromkeys(names, table_sha256[data.split.table])
    else:
        names = list(data.tables)
    alike, listed = look_for_copies(rows, names, data, looks, quarantine_file)
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


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def _refuse_partial(rows: Iterable[Row]) -> None:
    """Refuse rows whose picture is no whole panorama."""
    pictures = [(row, row.path) for row in rows if row.path is not None and not row.reason]
    wrong = faults_of(path for _, path in pictures)
    for row, path in pictures:
        if path in wrong:
            row.refuse(*wrong[path])


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
