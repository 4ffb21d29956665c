"""What may not stand in two splits: groups, pictures, and pictures that look alike. Splits that are only evaluated on may share."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eyegraft.config import Data
from eyegraft.data.duplicates import alike_pairs
from eyegraft.data.rows import Row
from eyegraft.errors import DataError, shown
from eyegraft.files import write_atomically

log = logging.getLogger(__name__)
TRAINING = ("train", "val")
ALIKE_FILE = "near_duplicates.jsonl"

Alike = tuple[Row, Row, float]
"""(a row of a training split, the row of another split that it looks like, misfit); of train and val, train comes first."""


def stop_at_leaks(rows: Sequence[Row], alike: Sequence[Alike] = (), file: Path | None = None) -> None:
    """Compare groups and pictures across splits.

    Raises:
        DataError: train or val shares a group or a byte-identical picture with another split, or `alike` is not empty.
    """
    faults = []
    for what, shared in (
        ("group", _shared((row.group, row.split, row.group) for row in rows if row.group is not None)),
        ("picture", _shared((row.sha256, row.split, row.image) for row in rows if row.sha256)),
    ):
        if shared:
            plural = f"{what}s stand" if len(shared) > 1 else f"{what} stands"
            faults.append(f"{len(shared)} {plural} in more than one split: {shown(shared)}")
    fix = "move all rows of each to one split, or give the one table as data.split, which cuts it by group"
    expected = "train and val that share no group and no byte-identical picture with another split"
    if alike:
        faults.append(f"{in_words(alike)}{''.join(f'{chr(10)}  {_pair(pair)}' for pair in alike[:5])}")
        expected = "train and val that share no group and no picture, not even a changed copy, with another split"
        listed = f"; they are listed in {file}" if file is not None else ""
        fix += (
            f". Look at pictures that are alike{listed}: data.near_duplicates=move takes them and their groups out of training and into the"
            " other split, data.near_duplicates=allow leaves them where they are"
        )
    if faults:
        raise DataError("leak between splits: " + "; ".join(faults), expected, fix)


def in_words(alike: Sequence[Alike]) -> str:
    """`3 pictures of train look like a picture of test`."""
    count = len({(row.split, row.sha256) for row, _, _ in alike})
    here = " and ".join(sorted({row.split for row, _, _ in alike}))
    there = " or ".join(sorted({other.split for _, other, _ in alike}))
    return f"{count} picture{'s' if count > 1 else ''} of {here} look{'' if count > 1 else 's'} like a picture of {there}"


def _pair(pair: Alike) -> str:
    row, other, misfit = pair
    return f"{row.image} ({row.split}) ~ {other.image} ({other.split}), misfit {misfit:.3f}"


def _shared(items: Iterable[tuple[str, str, str]]) -> list[str]:
    """`name (train) = name (test)` for every key that stands in a training split and in another one; items are (key, split, name)."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for key, split, name in items:
        places[key].setdefault(split, name)
    leaks = [found for found in places.values() if len(found) > 1 and set(TRAINING) & set(found)]
    return [" = ".join(f"{name} ({split})" for split, name in found.items()) for found in leaks]


# ── pictures that look alike ─────────────────────────────────────────────────────────────────────────────────────────────────────


def look_for_copies(
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


def alike_rows(rows: Iterable[Row], looks: Mapping[str, bytes]) -> list[Alike]:
    """Pairs of different files that look alike and stand in a training split and in another one, closest first; a picture counts once a
    split. `looks` maps the hash of a picture to its fingerprint.

    Of a picture with many partners in a split at least two are given, and enough pairs to join all that are connected.
    """
    first_of: dict[tuple[str, str], Row] = {}
    for row in rows:
        if looks.get(row.sha256):
            first_of.setdefault((row.split, row.sha256), row)
    found = list(first_of.values())
    splits = sorted({row.split for row in found}, key=lambda split: (_rank(split), split))
    between = [(low, high) for low, split in enumerate(splits) if split in TRAINING for high in range(low + 1, len(splits))]
    left, right, misfits = alike_pairs([looks[row.sha256] for row in found], [splits.index(row.split) for row in found], between)
    pairs = []
    for one, two, misfit in zip(left, right, misfits, strict=True):
        if found[one].sha256 == found[two].sha256:
            continue  # one file in two splits is told apart from copies; `ENOUGH` leaves room for it
        row, other = sorted((found[one], found[two]), key=lambda row: _rank(row.split))
        pairs.append((row, other, float(misfit)))
    return sorted(pairs, key=lambda pair: (pair[2], pair[0].split, pair[0].number, pair[1].split, pair[1].number))


def alike_hashes(looks: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Pairs of hashes that join all pictures that look alike, whatever split they are in; not every pair."""
    names = sorted(name for name, item in looks.items() if item)
    left, right, _ = alike_pairs([looks[name] for name in names], enough=1)
    return [(names[one], names[two]) for one, two in zip(left, right, strict=True)]


def _rank(split: str) -> int:
    return TRAINING.index(split) if split in TRAINING else len(TRAINING)


def move_alike(rows: Sequence[Row], names: Sequence[str], alike: Sequence[Alike]) -> list[dict[str, Any]]:
    """Take rows out of training that have an equal or alike picture in another split, and put them there with their whole group.

    A connected set of alike pictures and their groups goes to the first split of it that is only evaluated on, else to val. Rows of splits
    that are only evaluated on stay where they are: what a result was measured on before, it is still measured on.

    Returns:
        one record a moved row, as `records` gives them, with `moved_to`.

    Raises:
        DataError: a training split would be left without rows.
    """
    usable = [row for row in rows if not row.reason]
    splits_of: dict[str, set[str]] = defaultdict(set)
    for row in usable:
        splits_of[row.sha256].add(row.split)
    links = [(_unit(row), f"{row.split}\0{row.sha256}") for row in usable if row.sha256]
    links += [(_unit(row), row.sha256) for row in usable if len(splits_of[row.sha256]) > 1 and set(TRAINING) & splits_of[row.sha256]]
    links += [(_unit(row), f"pair {number}") for number, pair in enumerate(alike) for row in pair[:2]]
    set_of = joined([*links, *((_unit(row), "") for row in usable)])
    homes: dict[str, set[str]] = defaultdict(set)
    for row in usable:
        homes[set_of[_unit(row)]].add(row.split)
    order = {name: (-_rank(name), place) for place, name in enumerate(names)}
    taken = {(row.split, row.name) for row in usable}
    nearest_of = {(row.split, row.sha256): (other, misfit) for row, other, misfit in reversed(alike)}
    before, moved = Counter(row.split for row in usable), []
    for row in usable:
        target = min(homes[set_of[_unit(row)]], key=order.__getitem__)
        if row.split == target or row.split not in TRAINING:
            continue
        other, misfit = nearest_of.get((row.split, row.sha256), (None, None))
        moved.append({**_record(row, other, misfit), "moved_to": target})
        row.id = row.name if (target, row.name) not in taken else f"{row.split}/{row.name}"
        row.split = target
        taken.add((target, row.name))
    left = Counter(row.split for row in usable)
    if emptied := [name for name in TRAINING if before[name] and not left[name]]:
        given = f"data.near_duplicates=move: nothing would be left of {' and '.join(emptied)}: {in_words(alike)}"
        raise DataError(given, "splits of mostly different pictures", "cut the one table by data.split, or look at the pictures")
    return moved


def _unit(row: Row) -> str:
    """The rows that only move together: those of one group in one split."""
    return f"{row.split}\0{row.group or row.sha256 or row.number}"


def records(alike: Sequence[Alike]) -> list[dict[str, Any]]:
    """{"split", "row", "id", "image", "like_split", "like_id", "like_image", "misfit"} for each pair."""
    return [_record(*pair) for pair in alike]


def _record(row: Row, other: Row | None, misfit: float | None) -> dict[str, Any]:
    like = {"like_split": other and other.split, "like_id": other and other.name, "like_image": other and other.image}
    return {"split": row.split, "row": row.number, "id": row.name, "image": row.image, **like, "misfit": misfit and round(misfit, 4)}


def write_records(file: Path, found: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, whole or not at all; empty when there is nothing to list."""
    write_atomically(file, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in found).encode("utf-8", "backslashreplace"))


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> the first among all names that it is linked to by sharing a key; pairs are (name, key), and an empty key links nothing."""
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    holder: dict[str, str] = {}
    for name, key in pairs:
        parent.setdefault(name, name)
        if key:
            low, high = sorted((top(name), top(holder.setdefault(key, name))))
            parent[high] = low
    return {name: top(name) for name in parent}
