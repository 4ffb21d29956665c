"""One table cut into splits: every split is filled, about as asked, whatever the rows' order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from eyegraft.config import Split
from eyegraft.data.rows import Row
from eyegraft.data.splits import cut_by_group


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=40), seed=st.integers(0, 99), share=st.floats(0.01, 0.98))
def test_a_cut_fills_every_split_about_as_asked(sizes: list[int], seed: int, share: float) -> None:
    def rows() -> list[Row]:
        groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
        return [Row(n, "", Path(f"/b/{n}"), None, (), group, {}, None) for n, group in enumerate(groups)]

    split = Split(table="t", fractions={"train": share, "val": 0.01, "test": 1 - share - 0.01}, seed=seed)
    first, again = rows(), list(reversed(rows()))
    names = cut_by_group(first, split, Path("/b"))
    cut_by_group(again, split, Path("/b"))
    assert [row.split for row in first] == [row.split for row in reversed(again)], "the rows' order does not matter"
    counts = Counter(row.split for row in first)
    assert set(counts) == set(names)
    assert len({(row.group, row.split) for row in first}) == len(sizes)
    assert abs(counts["train"] - share * len(first)) <= 2 * max(sizes)
