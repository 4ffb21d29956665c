"""A raster time series and stations: the patch around each station paired with what the station read, as patch stores.

`raster` reads grids, `readings` tables, `folds` says which station and which days are held out. Nothing of it knows a satellite: bands,
units and names of variables come from the recipe.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from eyegraft.config import Fraction, NonNegative, Positive, Rate, Strict
from eyegraft.errors import DataError
from eyegraft.files import file_sha256
from eyegraft.sensors import NamedSensor

if TYPE_CHECKING:
    from eyegraft.data.patch_store import Schema


class Raster(Strict):
    """Attributes:
    file: `.npz`, NetCDF or Zarr.
    variables: one of [time, band, lat, lon], or one of [time, lat, lon] for each band.
    time, lat, lon: names of the coordinates; latitude may rise or fall.
    year: that days of the year (1 to 366) in `time` are of, or the name of the variable that holds it; None: `time` holds dates.
    window_days: a reading belongs to the raster that begins at most so long before it. A window ends where the next one begins.
    fill: a number that stands for what was not measured, beside NaN.
    """

    file: str
    variables: Annotated[tuple[str, ...], Field(min_length=1)]
    time: str = "time"
    lat: str = "lat"
    lon: str = "lon"
    year: int | str | None = None
    window_days: Rate = 1.0
    fill: float | None = None


class Extra(Strict):
    """A map that does not change, [lat, lon] on the grid of the series. Call the elevation `dem`: results are then given by height too.

    Attributes:
        file, variable: where it stands.
        unit: of its values.
    """

    file: str
    variable: str
    unit: str = ""


class Stations(Strict):
    """A CSV with a row for each station.

    Attributes:
        station, lat, lon: its columns; degrees north and east.
        name: column with a name for people.
        elevation_m: column with the height; it becomes a channel `dem`, alike at all pixels of a patch.
        outside: what a station beyond the raster is: a fault, or left out and named in the manifest.
    """

    file: str
    station: str = "station"
    lat: str = "lat"
    lon: str = "lon"
    name: str | None = None
    elevation_m: str | None = None
    outside: Literal["refuse", "leave_out"] = "refuse"


class Readings(Strict):
    """A CSV with a row for each reading. A date without a time of day stands for its noon.

    Attributes:
        station, time, value: its columns. An empty value is counted and left out.
        target, unit: what was read, as it is stored: nothing is converted.
        utc_offset_hours: of the clock that wrote the times.
    """

    file: str
    station: str = "station"
    time: str = "time"
    value: str = "value"
    target: str = "ta"
    unit: Annotated[str, Field(min_length=1)] = "K"
    utc_offset_hours: Annotated[float, Field(ge=-14, le=14)] = 0.0


class Held(Strict):
    """What is tested on what training never saw. Over all folds each station, each block of days is held out once.

    Attributes:
        out: `block` writes `test` (new days), `station` writes `test_new_station`, `both` these two and `test_new_both`.
        block_days: days are held out in blocks of this length, counted from the beginning of the series.
        folds, fold: how many there are, and which one this is, from 0.
        val_fraction: of the stations, blocks (or both) that are not held out; at least one.
        seed: another seed deals stations and blocks anew. With their names it decides everything.
    """

    out: Literal["station", "block", "both"] = "both"
    block_days: Rate = 8.0
    folds: Annotated[int, Field(ge=2)] = 5
    fold: NonNegative = 0
    val_fraction: Annotated[Fraction, Field(gt=0, lt=1)] = 0.15
    seed: int = 0

    @model_validator(mode="after")
    def _one_of_them(self) -> Held:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds}: they are counted from 0 to {self.folds - 1}")
        return self


class Config(Strict):
    """Attributes:
    folder: that holds the files; relative to data.base_dir.
    raster, extra: the series, and maps beside it by the name of their channel.
    sensor: bands in the order of the variables, ground sampling distance; `missing` says what happens to a patch with pixels that were not
        measured.
    stations, readings: the two tables.
    patch_size: pixels on a side; odd, the station in the middle.
    held: what is held out.
    rows_per_shard: of the stores.
    simulated: whether raster or readings are.
    licence: of the data, for the manifest.
    """

    folder: str = "."
    raster: Raster
    extra: dict[str, Extra] = {}
    sensor: NamedSensor
    stations: Stations
    readings: Readings
    patch_size: Positive = 9
    held: Held = Held()
    rows_per_shard: Positive = 100_000
    simulated: bool = False
    licence: str = "that of the raster and the readings"

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.patch_size % 2 == 0:
            raise ValueError(f"patch_size {self.patch_size} has no pixel in the middle: give an odd one")
        bands, variables = self.sensor.band_names, self.raster.variables
        if len(variables) not in (1, len(bands)):
            raise ValueError(f"{len(variables)} raster.variables for {len(bands)} sensor.bands: name one for each, or one that holds all")
        doubled = sorted({*bands} & {*self.extra})
        if doubled or (self.stations.elevation_m and "dem" in (*bands, *self.extra)):
            raise ValueError(f"two channels are called {', '.join(doubled) or 'dem'}: each has a name of its own")
        return self

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The channels behind the bands."""
        return (*self.extra, *(("dem",) if self.stations.elevation_m else ()))


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `patches/<split>` and `patches/statistics.json` into `target`; killed, it goes on where it was.

    Stores of splits that this configuration does not have are taken away: their rows may be among those of training now.

    Raises:
        DataError: files that cannot be read or do not fit each other, and splits without a row.
    """
    from eyegraft.data import patch_statistics
    from eyegraft.data.patch_store import PatchStore
    from eyegraft.data.patch_writer import write_shards
    from eyegraft.prepare.raster_series import folds, readings
    from eyegraft.prepare.raster_series.raster import open_series

    source, patches = (target / config.folder).expanduser(), target / "patches"
    tables, left_out = readings.read_tables(source, config.stations, config.readings)
    written = {}
    with open_series(source, config) as series:
        rows = readings.matched(tables, series, config, left_out)
        split_of = folds.assigned(rows["station"], rows["time"], series.starts[0], config.held)
        wanted = folds.SPLITS[config.held.out]
        left_out[folds.SPOILT] += int((split_of == "").sum())
        for split in set(folds.ALL_SPLITS) - set(wanted):
            _take_away(patches / split)
        for split in wanted:
            chosen = (split_of == split).nonzero()[0]
            produce = partial(readings.cut, series, tables, rows, chosen, config)
            # what the schema holds (sources, options, split) and these bounds decide every byte of a shard
            jobs = [[start, min(start + config.rows_per_shard, len(chosen))] for start in range(0, len(chosen), config.rows_per_shard)]
            written[split] = write_shards(patches / split, _schema(config, split, tables.names, source), jobs, produce)
    empty = [split for split, manifest in written.items() if not manifest.rows]
    if empty:
        counted = ", ".join(f"{count} {reason}" for manifest in written.values() for reason, count in manifest.counts.items() if count)
        given = f"no patch for {', '.join(empty)}" + f"; left out: {counted}" * bool(counted)
        raise DataError(given, "some in each split", "sensor.missing=mask keeps patches with holes; else fewer held.folds")
    with PatchStore(patches / "train") as train:
        fitted = patch_statistics.fit(train)
        patch_statistics.write_statistics(patches / "statistics.json", fitted, train_store=train.identity, source="patches/train")
    for manifest in written.values():
        left_out.update(manifest.counts)
    return {
        "rows": {split: manifest.rows for split, manifest in written.items()},
        "left_out": {reason: count for reason, count in left_out.items() if count},
        "stations_outside": tables.outside,
        "simulated": config.simulated,
        "licence": config.licence,
    }


def _schema(config: Config, split: str, names: dict[str, str], source: Path) -> Schema:
    from eyegraft.data.patch_store import Field as Column
    from eyegraft.data.patch_store import Schema

    channels, side = (*config.sensor.band_names, *config.extra_names), config.patch_size
    units = [f"{band.unit} ({band.name})" for band in config.sensor.bands]
    units += [f"{extra.unit} ({name})" for name, extra in config.extra.items()] + ["m (dem)"] * bool(config.stations.elevation_m)
    fields = {
        "x": Column(dtype="float32", shape=(len(channels), side, side), unit=", ".join(units)),
        "y": Column(dtype="float32", unit=config.readings.unit),
        "timestamp": Column(dtype="int64", unit="s since 1970-01-01 UTC"),
        "loc": Column(dtype="float32", shape=(3,), unit="degree north, degree east, m (ground sampling distance)"),
        "stn": Column(dtype="int32", unit="station number"),
        "pixel": Column(dtype="int32", shape=(2,), unit="x, y from the north-west corner"),
    }
    files = {config.raster.file, config.stations.file, config.readings.file, *(extra.file for extra in config.extra.values())}
    facts = {
        "sensor": config.sensor.model_dump(mode="json", exclude={"bands": {"__all__": {"mean", "std"}}}),
        "channels": list(channels),
        "extra": list(config.extra_names),
        "target": {"name": config.readings.target, "unit": config.readings.unit},
        "simulated": config.simulated,
        "stations": names,
        "options": config.model_dump(mode="json", exclude={"folder", "sensor"}),
        "sources": {name: _digest(source / name) for name in sorted(files)},
        "licence": config.licence,
    }
    return Schema(fields=fields, split=split, facts=facts)


def _digest(path: Path) -> str:
    """Of a file, or of all files of a Zarr folder."""
    if path.is_file():
        return file_sha256(path)
    inside = {file.relative_to(path).as_posix(): file_sha256(file) for file in sorted(path.rglob("*")) if file.is_file()}
    return hashlib.sha256(json.dumps(inside).encode()).hexdigest()


def _take_away(store: Path) -> None:
    if (store / "manifest.json").exists() or any(store.glob("shard-*")):
        shutil.rmtree(store)
