"""Stations and their readings: two tables, matched to the rasters; every reading that is left out is counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eyegraft.errors import DataError, nearest, shown

if TYPE_CHECKING:
    from eyegraft.prepare.raster_series import Config, Readings, Stations
    from eyegraft.prepare.raster_series.raster import Series

NO_VALUE = "no value"
NO_RASTER = "in no raster's window"
OUTSIDE = "station outside the raster"
NOT_MEASURED = "pixel not measured"
NO_EXTRA = "pixel without a map beside the bands"
_DATE = r"\d{4}-\d{2}-\d{2}"


@dataclass
class Tables:
    """Attributes:
    stations: index station (text), columns lat, lon, elevation_m (where the table has it), number; by number.
    readings: station, time (datetime64[s], UTC), value.
    names: number as text -> name.
    outside: stations beyond the raster.
    """

    stations: Any
    readings: Any
    names: dict[str, str]
    outside: list[str] = field(default_factory=list)


def read_tables(source: Path, stations: Stations, readings: Readings) -> tuple[Tables, Counter[str]]:
    """Both tables, and how many readings have no value.

    Raises:
        DataError: files, columns or numbers that cannot be read, a station twice or nowhere, readings of unknown stations or twice.
    """
    places, names = _stations(source / stations.file, stations)
    path = source / readings.file
    table = _columns(path, {"station": readings.station, "time": readings.time, "value": readings.value})
    value = pd.to_numeric(table["value"], errors="coerce").astype(np.float64)
    words = table["value"][value.isna() & (table["value"] != "") & ~table["value"].str.lower().isin(["nan", "na", "null"])]
    if len(words):
        raise DataError(f"{path}: {readings.value} {shown(words.tolist())}", "numbers, or empty cells", "name the column in readings.value")
    unknown = sorted(set(table["station"]) - set(places.index))
    if unknown:
        count = int(table["station"].isin(unknown).sum())
        given = f"{path}: {count} readings of {len(unknown)} unknown stations: {shown(unknown)}"
        raise DataError(given, f"stations of {stations.file}", "add them there with their positions, or take their readings out")
    table = pd.DataFrame({"station": table["station"], "time": _times(path, table["time"], readings), "value": value})
    twice = table[table.duplicated(["station", "time"])]
    if len(twice):
        examples = [f"{row.station} at {row.time}" for row in twice.head(5).itertuples()]
        raise DataError(f"{path}: {len(twice)} readings twice: {shown(examples)}", "one of a station at a time", "keep the right one")
    usable = np.asarray(np.isfinite(table["value"].to_numpy(dtype=np.float64)), dtype=np.bool_)
    left_out = Counter({NO_VALUE: int((~usable).sum())})
    table = table[usable].sort_values(["time", "station"], kind="stable").reset_index(drop=True)
    return Tables(places, table, names), left_out


def matched(tables: Tables, series: Series, config: Config, left_out: Counter[str]) -> dict[str, NDArray[Any]]:
    """The readings that a patch can be cut for, by time and station: station, time, value, moment [N], pixel [N, 2].

    Raises:
        DataError: a station outside the raster (unless these are left out), or no reading left.
    """
    pixels = series.pixels(tables.stations["lat"].to_numpy(), tables.stations["lon"].to_numpy())  # [S, 2]
    beyond: NDArray[np.bool_] = np.asarray((pixels < 0).any(axis=1))
    tables.outside = tables.stations.index[beyond].tolist()
    area = f"{series.lat[-1]:g} to {series.lat[0]:g} north, {series.lon[0]:g} to {series.lon[-1]:g} east"
    if tables.outside and config.stations.outside == "refuse":
        examples = [f"{name} at {row.lat:g}, {row.lon:g}" for name, row in tables.stations[beyond].iterrows()]
        fix = "are lat and lon exchanged? prepare.stations.outside=leave_out leaves such stations out"
        raise DataError(f"stations outside the raster: {shown(examples)}", area, fix)
    table = tables.readings
    place = tables.stations.index.get_indexer(table["station"])
    times = table["time"].to_numpy().astype("datetime64[s]")
    moment = series.moments(times)
    outside = beyond[place]
    left_out[OUTSIDE] += int(outside.sum())
    left_out[NO_RASTER] += int((~outside & (moment < 0)).sum())
    kept = ~outside & (moment >= 0)
    if not kept.any():
        given = f"none of {len(table)} readings has a raster"
        span = f"readings between {series.starts[0]} and {series.ends[-1]} UTC, at stations in {area}"
        raise DataError(given, span, "check raster.year, raster.window_days and the readings' times")
    return {
        "station": table["station"].to_numpy(dtype=str)[kept],
        "place": place[kept],
        "time": times[kept],
        "value": table["value"].to_numpy()[kept],
        "moment": moment[kept],
        "pixel": pixels[place[kept]],
    }


def cut(
    series: Series, tables: Tables, rows: dict[str, NDArray[Any]], chosen: NDArray[np.int64], config: Config, bounds: Sequence[int]
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """The records of the chosen readings from one bound to the other, and how many of them cannot be used."""
    here = chosen[bounds[0] : bounds[1]]
    moments, pixels = rows["moment"][here], rows["pixel"][here]
    side, num_bands = config.patch_size, len(config.sensor.bands)
    heights = tables.stations["elevation_m"].to_numpy(dtype=np.float32)[rows["place"][here]] if config.stations.elevation_m else None
    x = np.empty((len(here), num_bands + len(config.extra_names), side, side), np.float32)
    for moment in np.unique(moments).tolist():
        of_it = np.flatnonzero(moments == moment)
        x[of_it, : num_bands + len(config.extra)] = series.patches(moment, pixels[of_it], side)
    if heights is not None:
        x[:, -1] = heights[:, None, None]
    no_extra = np.isnan(x[:, num_bands:]).any(axis=(1, 2, 3))
    hole = np.isnan(x[:, :num_bands]).any(axis=(1, 2, 3)) & (config.sensor.missing == "drop")
    kept = ~no_extra & ~hole
    stations = tables.stations.iloc[rows["place"][here][kept]]
    gsd = np.full(len(stations), config.sensor.gsd_m)
    columns = {
        "x": x[kept],
        "y": rows["value"][here][kept].astype(np.float32),
        "timestamp": rows["time"][here][kept].astype(np.int64),
        "loc": np.stack([stations["lat"], stations["lon"], gsd], axis=-1).astype(np.float32),
        "stn": stations["number"].to_numpy(dtype=np.int32),
        "pixel": pixels[kept].astype(np.int32),
    }
    return columns, {NO_EXTRA: int(no_extra.sum()), NOT_MEASURED: int((hole & ~no_extra).sum())}


def _stations(path: Path, stations: Stations) -> tuple[Any, dict[str, str]]:
    wanted = {"station": stations.station, "lat": stations.lat, "lon": stations.lon}
    wanted |= {key: column for key, column in (("name", stations.name), ("elevation_m", stations.elevation_m)) if column is not None}
    table = _columns(path, wanted).set_index("station")
    twice = sorted(table.index[table.index.duplicated()].unique())
    if twice:
        raise DataError(f"{path}: {shown(twice)} more than once", "one row for each station", "keep the row with the right position")
    for name in ("lat", "lon", *(("elevation_m",) if stations.elevation_m else ())):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
        if table[name].isna().any():
            without = table.index[table[name].isna()].tolist()
            raise DataError(f"{path}: no {name} of {shown(without)}", "a number for each station", "add it, or take the station out")
    nowhere = table.index[~(table["lat"].abs().le(90) & table["lon"].abs().le(360))].tolist()
    if nowhere:
        raise DataError(f"{path}: impossible position of {shown(nowhere)}", "degrees north and east", "are lat and lon exchanged?")
    texts = table.index.tolist()
    numbered = all(text.isdecimal() and str(int(text)) == text and int(text) < 2**31 for text in texts)
    order = sorted(texts, key=int) if numbered else sorted(texts)
    table = table.loc[order].assign(number=[int(text) for text in order] if numbered else range(1, len(order) + 1))
    label = table["name"] if stations.name is not None else table.index
    return table, {str(number): str(name) for number, name in zip(table["number"], label, strict=True)}


def _times(path: Path, texts: Any, readings: Readings) -> Any:
    days = texts.str.fullmatch(_DATE)
    times = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601")
    if times.isna().any():
        bad = texts[times.isna()].tolist()
        given = f"{path}: {readings.time} of {len(bad)} readings: {shown([repr(text) for text in bad])}"
        raise DataError(given, "dates such as 2008-01-31, with a time of day or without", "write the times in that form")
    shift = pd.to_timedelta(np.where(days, 12.0, 0.0) - readings.utc_offset_hours, unit="h")
    return (times + shift).dt.tz_localize(None).astype("datetime64[s]")


def _columns(path: Path, wanted: dict[str, str]) -> Any:
    """The wanted columns of a CSV, as text without blanks around it, under our names."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} is not there", "a CSV with a header", "set prepare.folder, or the name of the file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", "a CSV with a header, in UTF-8", "save it in that form") from error
    for column in wanted.values():
        if column not in table:
            raise DataError(f"{path}: no column {column!r}", f"one of {', '.join(table.columns)}", nearest(column, table.columns))
    return pd.DataFrame({key: table[column].str.strip() for key, column in wanted.items()})
