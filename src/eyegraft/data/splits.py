"""One table cut into splits by group."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from eyegraft.config import Split
from eyegraft.data.leaks import joined
from eyegraft.data.rows import Row, portable
from eyegraft.errors import DataError


def cut_by_group(rows: Sequence[Row], split: Split, base: Path, alike: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Give every row its split: groups in the order of a seeded hash of their names, cut where the row shares say.

    Groups that share a byte-identical picture, or one that looks alike (pairs of hashes), are cut as one, else the cut itself would leak.
    Every split gets at least one group.
    """
    names = [name for name, fraction in split.fractions.items() if fraction > 0]
    groups = [row.group or (portable(row.path, base) if row.path is not None else row.image or f"\0{row.text}") for row in rows]
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
