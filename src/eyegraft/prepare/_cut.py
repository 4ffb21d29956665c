"""Which rows belong together, and which split they go to."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from eyegraft.errors import DataError

_COCO_2014 = re.compile(r"^COCO_(?:train|val|test)201\d_(?=\d)")


@dataclass(slots=True)
class Row:
    """A row that will be written.

    Attributes:
        source: that it comes from.
        id: made unique when all are there.
        image: path as the table will have it; empty without a picture.
        given: the picture's name in its source.
        values: what else the table will have.
    """

    source: str
    id: str
    image: str
    given: str
    values: dict[str, Any]
    group: str = ""


def picture_name(given: str) -> str:
    """What two data sets call one picture alike: `train2017/000000033471.jpg`, `COCO_train2014_000000033471.jpg` and 33471 are `33471`."""
    name = _COCO_2014.sub("", PurePosixPath(given.replace("\\", "/")).name)
    stem = unicodedata.normalize("NFC", name.partition(".")[0] or name)
    return str(int(stem)) if stem.isdecimal() and stem.isascii() else stem


def name_groups(rows: Iterable[Row]) -> None:
    """All rows of one picture are one group, named by the picture; by source and path where several pictures have one name."""
    first: dict[str, Row] = {}
    users: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.image:
            users[picture_name(first.setdefault(row.image, row).given)].add(row.image)
    for row in rows:
        if not row.image:
            row.group = f"text {row.id}"
            continue
        named = first[row.image]
        name = picture_name(named.given)
        row.group = name if len(users[name]) == 1 else f"{named.source}/{named.given}"


def cut(groups: Iterable[str], shares: Mapping[str, float], seed: int, source: str) -> dict[str, str]:
    """Group -> split.

    Each group has a place between 0 and 1 that is a hash of the seed and its name, and the splits take the stretches from 0 upwards that
    are as long as their shares. So a picture has the same place in every data set: what one holds out above 0.98, another that trains on
    the stretch below it has never seen. Shares are therefore met on average; every split gets at least one group.

    Raises:
        DataError: fewer groups than splits.
    """
    order = sorted((_place(group, seed), group) for group in groups)
    places = [place for place, _ in order]
    splits = [(split, share) for split, share in shares.items() if share > 0]
    if not order:
        return {}
    if len(order) < len(splits):
        given = f"prepare.splits.{source}: {len(splits)} splits from {len(order)} pictures"
        raise DataError(given, "at least one picture for each split", f"fewer splits, such as prepare.splits.{source}={{train: 1}}")
    where: dict[str, str] = {}
    start, end = 0, 0.0
    for number, (split, share) in enumerate(splits):
        end += share
        rest = len(splits) - number - 1
        stop = len(order) if rest == 0 else min(max(bisect_left(places, end), start + 1), len(order) - rest)
        where |= {group: split for _, group in order[start:stop]}
        start = stop
    return where


def _place(group: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{group}".encode()).digest()[:6]) / 2**48


def number_ids(rows: Iterable[Row]) -> None:
    """The second row of one id becomes `id-2`."""
    seen: Counter[str] = Counter()
    taken = {row.id for row in rows}
    for row in rows:
        seen[row.id] += 1
        if seen[row.id] > 1:
            name, number = row.id, seen[row.id]
            while f"{name}-{number}" in taken:
                number += 1
            seen[name] = number
            row.id = f"{name}-{number}"
            taken.add(row.id)
