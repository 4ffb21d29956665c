"""Which windows at which times are cases, and in which split.

A case is one window (1,440 x 1,080 km) at one time of one source. Held out are

- time: validation and test lie in later blocks than training, with a gap: of the storm's sixteen days 30 hours and 30 hours, of the day of
  station reports 4 and 5 hours (an hour ago the map was nearly the same; how near, the baseline that copies tells);
- region: the windows of `test_region` lie east of all others, 160 km from the nearest, at times of the test block. The model has one time
  only: there the region alone is held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from eyegraft.prepare.weather_fields.fields import NUM_TIMES, Source, Window, time_of

KNOWN_REGION = tuple(
    Window(f"w{4 * row + column + 1:02d}", x, y)
    for row, y in enumerate((480, 0, -480))
    for column, x in enumerate((-1400, -960, -530, -100))
)
HELD_OUT_REGION = tuple(Window(f"e{number}", 1500, y) for number, y in enumerate((460, 120, -220, -560), 1))
BLOCKS: Mapping[Source, Mapping[str, range]] = {
    "storm": {"train": range(1, 36), "val": range(40, 46), "test": range(50, 64), "test_region": range(50, 64)},
    "stations": {"train": range(2, 10), "val": range(13, 15), "test": range(19, 24), "test_region": range(19, 24)},
    "model": {"train": range(1), "val": range(0), "test": range(0), "test_region": range(1)},
}
"""Source -> split -> its times."""
SPLITS = ("train", "val", "test", "test_region")


@dataclass(frozen=True)
class Case:
    source: Source
    index: int
    window: Window
    split: str

    @property
    def time(self) -> datetime:
        return time_of(self.source, self.index)

    @property
    def id(self) -> str:
        return f"{self.source}-{self.time:%Y%m%d%H}-{self.window.name}"

    @property
    def hour(self) -> str:
        """All cases of one hour share it: maps may be shuffled within."""
        return f"{self.time:%Y-%m-%dT%H}"


def planned(split: str, counts: Mapping[Source, int], windows_per_time: int, seed: int) -> list[Case]:
    """So many cases of each source, `windows_per_time` of each time as long as times last; by a seed, in order of time."""
    found: list[Case] = []
    for source, count in counts.items():
        block = BLOCKS[source][split]
        windows = HELD_OUT_REGION if split == "test_region" else KNOWN_REGION
        turns: list[list[Case]] = []
        for index in sorted(block, key=lambda index: chance(seed, source, split, index)):
            assert index < NUM_TIMES[source]
            order = sorted(windows, key=lambda window: chance(seed, source, index, window.name))
            turns.append([Case(source, index, window, split) for window in order])
        first = [case for cases in turns for case in cases[:windows_per_time]]
        rest = [case for cases in turns for case in cases[windows_per_time:]]
        found += (first + rest)[:count]
    return sorted(found, key=lambda case: (case.source, case.index, case.window.name))


def chance(*names: object) -> float:
    """A number from [0, 1), always the same for the same names."""
    return int.from_bytes(sha256("\0".join(map(str, names)).encode()).digest()[:6]) / 2**48
