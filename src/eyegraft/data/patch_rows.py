"""Rows of patch stores as samples, made when they are asked for: millions of them cost no more than the columns that are read.

A store that recipes read holds `x`, `y`, `timestamp`, `loc` and `stn`, and may hold `landcover` and `pixel` (see `patch_chunks.fields`).
Its facts name the `sensor`, the `channels` of `x` and those that are no bands (`extra`), the `target` with its unit, and whether it is
`simulated`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from eyegraft.config import PATCH_SLICES, Data
from eyegraft.data._patch_middles import middles_of
from eyegraft.data._patch_order import Rows
from eyegraft.data.patch_store import PatchStore
from eyegraft.data.samples import PreparedData, base_folder
from eyegraft.errors import DataError, nearest, shown
from eyegraft.sensors import Sensor
from eyegraft.types import Sample

Column = NDArray[Any]

NEEDED = ("x", "y", "timestamp", "loc", "stn")
FACTS = ("sensor", "channels", "extra", "target")

IGBP = (
    *("water", "evergreen needleleaf forest", "evergreen broadleaf forest", "deciduous needleleaf forest", "deciduous broadleaf forest"),
    *("mixed forest", "closed shrubland", "open shrubland", "woody savanna", "savanna", "grassland", "permanent wetland", "cropland"),
    *("urban", "cropland and natural vegetation", "snow and ice", "barren"),
)
"""Land cover classes 0 to 16 of the International Geosphere-Biosphere Programme, as MCD12C1 numbers them."""

_SEASONS = ("DJF", "MAM", "JJA", "SON")
_HEIGHTS_M = (100, 300, 600, 1000)
_HOURS = 3
_OF_THE_MIDDLE = {"elevation_m", "sza_deg", "elevation"}
_PIECE = 4096
STORE_DIGITS = 40
"""Hexadecimal digits of a store's identity in the key of a record."""


class PatchRows(Sequence[Sample]):
    """Some rows of one store. Two of the same store and rows are the same samples.

    Args:
        rows: [N] rows of the store; None for all.
        shuffle: how `order` mixes them.
    """

    def __init__(self, store: PatchStore, rows: Rows | None = None, *, shuffle: str = "block") -> None:
        self.store = store
        self.rows = np.arange(len(store), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> PatchRows: ...

    def __getitem__(self, place: int | slice) -> Sample | PatchRows:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return next(iter(self.take([range(len(self))[place]])))

    def __iter__(self) -> Iterator[Sample]:
        for start in range(0, len(self), _PIECE):
            yield from self.take(range(start, min(start + _PIECE, len(self))))._samples()

    def take(self, positions: Sequence[int] | Rows | range) -> PatchRows:
        """Those at these positions, in this order."""
        return PatchRows(self.store, self.rows[np.asarray(positions, dtype=np.int64)], shuffle=self.shuffle)

    def keys(self) -> list[str]:
        """`sha256` of each sample."""
        key = self.store.identity[:STORE_DIGITS]
        return [f"{key}{row:012x}" for row in self.rows.tolist()]

    def order(self, batch_size: int, *, seed: int, epoch: int) -> list[Rows]:
        """The batches of one epoch as positions, ascending in each: a pure function of its arguments (see `_patch_order`)."""
        from eyegraft.data._patch_order import epoch_order

        order = epoch_order(len(self), epoch=epoch, seed=seed, shuffle=self.shuffle)  # type: ignore[arg-type]
        return [np.sort(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]

    @contextmanager
    def ahead(self, batches: Sequence[Sequence[int] | Rows], start: int = 0) -> Iterator[Callable[[int], None]]:
        """What the disk must give is read ahead, evenly. Call what this gives with the number of each batch before it is read.

        Args:
            batches: all of an epoch, as positions; `start`: the first that is read.
        """
        ends = np.cumsum([0, *(len(batch) for batch in batches)])
        order = self.rows[np.concatenate([np.asarray(batch, dtype=np.int64) for batch in batches])] if len(batches) else self.rows[:0]
        with self.store.read_ahead(order, int(ends[start])) as reach:
            yield lambda number: reach(int(ends[number + 1]), len(batches[number]))

    # ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.store.schema.facts

    @property
    def targets(self) -> NDArray[np.float64]:
        """[N] in the unit of the target; NaN where there is none."""
        return self._field("y").astype(np.float64)

    def x(self) -> NDArray[np.float32]:
        """[N, C, H, W] in physical units, NaN where nothing was measured."""
        found = self._field("x")
        middles_of(self.store).keep(self.rows, found)
        return found

    def centre(self) -> NDArray[np.float32]:
        """[N, C] of the pixel in the middle. It is remembered for as long as the store is open: a patch is 81 times as large, and a model
        whose pictures come from the feature cache reads no more of it."""
        middles = middles_of(self.store)
        unknown = np.flatnonzero(~middles.known[self.rows])
        if len(unknown) > _PIECE:
            batches = [unknown[start : start + _PIECE] for start in range(0, len(unknown), _PIECE)]
            with self.ahead(batches) as reach:
                for number, batch in enumerate(batches):
                    reach(number)
                    self.take(batch).x()
        elif len(unknown):
            self.take(unknown).x()
        found: NDArray[np.float32] = middles.values[self.rows]
        return found

    def reads_patches(self, columns: Iterable[str]) -> bool:
        """Whether one of these columns has yet to be read out of the patches themselves."""
        return bool(_OF_THE_MIDDLE & set(columns)) and not middles_of(self.store).known[self.rows].all()

    def column(self, name: str) -> Column:
        """[N] `station` (text), `time` (datetime64[s], UTC), `lat`, `lon` (degrees), `gsd_m`, `elevation_m` and `sza_deg` (of the middle
        pixel, NaN where the store has no such map), `hour_utc` (0 to 24), `day_of_year` (1 to 367), `day` (the whole of it), `month`,
        `igbp` (land cover class, -1 where there is none), `pixel_x`, `pixel_y` (-1 where there is none); or a text that results are given
        by (`config.PATCH_SLICES`).

        Raises:
            DataError: another name.
        """
        known = {**_SLICES, **_COLUMNS}
        if name not in known:
            raise DataError(f"{self.store.path}: no column {name!r}", f"one of {', '.join(known)}", nearest(name, known))
        return known[name](self)

    def _field(self, name: str) -> Column:
        found: Column = self.store.read(self.rows, [name])[name]
        return found

    def _middle(self, channel: str) -> Column:
        channels = list(self.facts["channels"])
        return self.centre()[:, channels.index(channel)] if channel in channels else np.full(len(self), np.nan, np.float32)

    def _samples(self) -> Iterator[Sample]:
        numbers = {name: self.column(name) for name in _COLUMNS if name != "gsd_m"}
        plain = {name: values.tolist() for name, values in numbers.items() if name != "time"}
        plain["time"] = [f"{moment}Z" for moment in np.datetime_as_string(numbers["time"], unit="m").tolist()]
        texts = {name: self.column(name).tolist() for name in PATCH_SLICES}
        columns = {**plain, **texts}
        digits = ("-", ":")
        for place, (row, key, target) in enumerate(zip(self.rows.tolist(), self.keys(), self.targets.tolist(), strict=True)):
            meta = {name: values[place] for name, values in columns.items()}
            moment = meta["time"].translate(str.maketrans("", "", "".join(digits)))
            yield Sample(
                id=f"{meta['station']}-{moment}",
                image=self.store.path,
                references=(repr(target),) if target == target else (),
                group=meta["station"],
                meta=meta,
                sha256=key,
                record=row,
            )


def row_of(key: str) -> int:
    """The row of the store that a sample's `sha256` names."""
    return int(key[STORE_DIGITS:], 16)


# ── columns of all rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _station(rows: PatchRows) -> Column:
    """Names, with the number behind those that several stations have: results and intervals are by station."""
    names = rows.facts.get("stations") or {}
    shared = {name for name, count in Counter(map(str, names.values())).items() if count > 1}
    numbers, places = np.unique(rows._field("stn"), return_inverse=True)
    called = [(str(names.get(str(number), number)), number) for number in numbers.tolist()]
    return np.array([f"{name} {number}" if name in shared else name for name, number in called], dtype=object)[places]


def _time(rows: PatchRows) -> Column:
    return rows._field("timestamp").astype("datetime64[s]")


def _hour(rows: PatchRows) -> Column:
    found: Column = (rows._field("timestamp") % 86_400) / 3600
    return found


def _day(rows: PatchRows) -> Column:
    time = _time(rows)
    found: Column = (time - time.astype("datetime64[Y]")).astype(np.float64) / 86_400 + 1
    return found


def _month(rows: PatchRows) -> Column:
    found: Column = _time(rows).astype("datetime64[M]").astype(np.int64) % 12 + 1
    return found


def _class(rows: PatchRows) -> Column:
    if "landcover" not in rows.store.schema.fields:
        return np.full(len(rows), -1)
    found = rows._field("landcover").astype(np.int64)
    return np.where(found < len(IGBP), found, -1)


def _pixel(axis: int) -> Callable[[PatchRows], Column]:
    def pixel(rows: PatchRows) -> Column:
        there = "pixel" in rows.store.schema.fields
        return rows._field("pixel")[:, axis].astype(np.int64) if there else np.full(len(rows), -1)

    return pixel


_COLUMNS: dict[str, Callable[[PatchRows], Column]] = {
    "station": _station,
    "time": _time,
    "lat": lambda rows: rows._field("loc")[:, 0],
    "lon": lambda rows: rows._field("loc")[:, 1],
    "gsd_m": lambda rows: rows._field("loc")[:, 2],
    "elevation_m": lambda rows: rows._middle("dem"),
    "sza_deg": lambda rows: rows._middle("sza"),
    "hour_utc": _hour,
    "day_of_year": _day,
    "day": lambda rows: _day(rows).astype(np.int64),
    "month": _month,
    "igbp": _class,
    "pixel_x": _pixel(0),
    "pixel_y": _pixel(1),
}


def _hours(rows: PatchRows) -> Column:
    first = (_hour(rows).astype(np.int64) // _HOURS) * _HOURS
    return np.array([f"{hour:02}-{hour + _HOURS - 1:02} h UTC" for hour in range(0, 24, _HOURS)], dtype=object)[first // _HOURS]


def _season(rows: PatchRows) -> Column:
    found: Column = np.array(_SEASONS, dtype=object)[_month(rows) % 12 // 3]
    return found


def _cover(rows: PatchRows) -> Column:
    return np.array([*IGBP, "unknown"], dtype=object)[_class(rows)]  # -1 is the last


def _heights(rows: PatchRows) -> Column:
    height = rows._middle("dem")
    bands = [f"{low}-{high} m" for low, high in zip((0, *_HEIGHTS_M), _HEIGHTS_M, strict=False)] + [f"above {_HEIGHTS_M[-1]} m", "unknown"]
    return np.array(bands, dtype=object)[np.where(np.isnan(height), -1, np.digitize(height, _HEIGHTS_M))]


_SLICES: dict[str, Callable[[PatchRows], Column]] = {
    "station": _station,
    "hour": _hours,
    "season": _season,
    "land_cover": _cover,
    "elevation": _heights,
}


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


_OPEN: dict[Path, tuple[int, PatchStore]] = {}
_MOST_OPEN = 64


def opened(path: Path) -> PatchStore:
    """A store, open for as long as the process lives; opened anew where it was written anew.

    Raises:
        DataError: no whole store, or one without the fields and facts that recipes read.
    """
    manifest = path / "manifest.json"
    changed = manifest.stat().st_mtime_ns if manifest.exists() else 0
    place = Path(os.path.normpath(path.absolute()))
    before, store = _OPEN.pop(place, (None, None))
    if store is None or before != changed:
        store = _opened(place)
    _OPEN[place] = changed, store
    if len(_OPEN) > _MOST_OPEN:
        del _OPEN[next(iter(_OPEN))]  # not closed here: rows of it may be in use
    return store


def _opened(path: Path) -> PatchStore:
    store = PatchStore(path)
    missing = [name for name in NEEDED if name not in store.schema.fields]
    unsaid = [name for name in FACTS if name not in store.schema.facts]
    if missing or unsaid:
        store.close()
        raise DataError(
            f"{path}: no {shown([*(f'field {name}' for name in missing), *(f'fact {name!r}' for name in unsaid)], 9)}",
            f"fields {', '.join(NEEDED)} and facts {', '.join(FACTS)}",
            "prepare the patches with `eyegraft prepare`, or convert old chunks with step=convert_chunks",
        )
    try:
        Sensor.model_validate(store.schema.facts["sensor"])
    except ValidationError as error:
        first = error.errors()[0]
        given = f"{path}: the sensor in its facts: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise DataError(given, "a sensor with its bands and units", "prepare the patches again") from error
    return store


def located(samples: Sequence[Sample]) -> Iterator[tuple[PatchRows, Sequence[int]]]:
    """The samples by store: (their rows there, their positions among the samples). One piece of a `PatchRows`.

    Raises:
        DataError: a sample that is no record of a patch store.
    """
    if isinstance(samples, PatchRows):
        yield samples, range(len(samples))
        return
    places: dict[Path, list[int]] = {}
    for position, sample in enumerate(samples):
        if sample.image is None or sample.record is None:
            raise DataError(
                f"sample {sample.id!r} is a picture file or nothing, and this encoder reads patches of many channels",
                "rows of patch stores",
                "give data.satellite.patches, or an encoder of pictures",
            )
        places.setdefault(sample.image, []).append(position)
    for path, positions in places.items():
        yield PatchRows(opened(path), np.array([samples[position].record for position in positions])), positions


def load_patches(data: Data, *, root: Path | None = None) -> PreparedData:
    """Open the stores of `data.satellite`, which must be of one sensor, and whose splits share no reading of a station.

    A station may stand in several splits at other times: who asks for new stations holds them out by split.

    Raises:
        DataError: a store is missing or damaged, empty, of another layout than the others, or shares readings with `train` or `val`.
    """
    assert data.satellite is not None
    base = base_folder(data.base_dir, root)
    splits: dict[str, PatchRows] = {}
    reasons: Counter[str] = Counter()
    for split, place in data.satellite.patches.items():
        store = opened(base / place)
        if not len(store):
            counts = ", ".join(f"{count} {reason}" for reason, count in store.manifest.counts.items()) or "it was given none"
            raise DataError(f"data.satellite.patches.{split}: {store.path} has no rows ({counts})", "at least one row", "prepare it again")
        splits[split] = PatchRows(store, shuffle=data.satellite.shuffle)
        reasons.update(store.manifest.counts)
    _stop_at_other_layouts(splits)
    stop_at_shared_readings(splits)
    identities = {split: rows.store.identity for split, rows in splits.items()}
    return PreparedData(
        splits=dict(splits),
        table_sha256=identities,
        split_sha256=identities,
        num_rows={split: len(rows) + sum(rows.store.manifest.counts.values()) for split, rows in splits.items()},
        reasons=+reasons,  # those that left something out
        quarantined=[],
    )


def _stop_at_other_layouts(splits: Mapping[str, PatchRows]) -> None:
    first = next(iter(splits))
    for split, rows in splits.items():
        mine, theirs = splits[first], rows
        here, there = f"the patches of {first}", f"the patches of {split}"
        Sensor.model_validate(mine.facts["sensor"]).require_same(Sensor.model_validate(theirs.facts["sensor"]), here=here, there=there)
        for what, one, other in (
            ("channels", list(mine.facts["channels"]), list(theirs.facts["channels"])),
            ("target", mine.facts["target"], theirs.facts["target"]),
            ("shape", mine.store.schema.fields["x"].shape, theirs.store.schema.fields["x"].shape),
        ):
            if one != other:
                raise DataError(
                    f"{what} {shown([other])} of {there}, {shown([one])} of {here}", "one layout in all splits", "prepare them together"
                )


def stop_at_shared_readings(splits: Mapping[str, PatchRows], learned: Sequence[str] = ("train", "val")) -> None:
    """The same reading in training and in a test would be remembered.

    Args:
        learned: the splits that models or choices are made from.

    Raises:
        DataError: one of them shares readings with another split.
    """
    stations = np.unique(np.concatenate([np.unique(rows._field("stn")) for rows in splits.values()]))

    def readings(rows: PatchRows) -> NDArray[np.int64]:
        """Station and second as one number, ascending, each once: pairs take many times as long to sort, and so does `unique`."""
        labelled = ~np.isnan(rows.targets)  # without a label there is nothing to remember
        station = np.searchsorted(stations, rows._field("stn")[labelled]).astype(np.int64)
        ordered = np.sort(rows._field("timestamp")[labelled] * len(stations) + station)
        return ordered[np.diff(ordered, append=np.iinfo(np.int64).max) > 0]

    known = {split: readings(rows) for split, rows in splits.items()}
    there = [split for split in learned if split in splits]
    for place, one in enumerate(there):
        for other in (split for split in splits if split not in there[: place + 1]):
            shared = np.intersect1d(known[one], known[other], assume_unique=True)
            if len(shared):
                moment, station = divmod(int(shared[0]), len(stations))
                when = np.datetime_as_string(np.datetime64(moment, "s"), unit="m")
                raise DataError(
                    f"leak between splits: {len(shared)} readings stand in {one} and in {other}, "
                    f"first station {stations[station]} at {when} UTC",
                    "each reading of a station in one split",
                    "split by time, by station, or both (`prepare` does)",
                )
