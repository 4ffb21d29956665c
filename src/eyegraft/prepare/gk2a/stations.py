"""Air temperature at weather stations: four file formats to one table in UTC and kelvin, and every reading left out counted by its reason.

Formats of the Korea Meteorological Administration (times in Korean Standard Time, UTC + 9):

- ASOS hourly (`kma_sfctm2`): blanks between 46 columns, 0 time, 1 station, 11 TA, 13 HM. Missing is -99 or -9. As -9.0 degrees is also a
  temperature of any winter, it counts as missing only where the humidity beside it is missing too.
- AWS minute: blanks between 17 or more columns, 0 time, 1 station, 8 TA; -50 or less is missing.
- Open data portal: CSV in CP949 or UTF-8 with the columns 지점, 일시, 기온(°C); an empty cell is missing.

Any other CSV: `station` (or `stn`), one of `time_utc` (or `timestamp_utc`) and `time_kst`, one of `ta_k` and `ta_c`; `lat`, `lon` and
`elevation_m` may stand in the same file.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from eyegraft.errors import DataError, shown

COLDEST_K, HOTTEST_K = 223.15, 333.15
ZERO_CELSIUS_K = 273.15
_KST: Final = pd.Timedelta(hours=9)
_HEADERS = {"stn": "station", "지점": "station", "timestamp_utc": "time_utc", "일시": "time_kst", "기온(°C)": "ta_c", "기온(℃)": "ta_c"}
_HEADERS |= {"latitude": "lat", "longitude": "lon", "elevation": "elevation_m", "ht": "elevation_m"}

MISSING = "no temperature"
TOO_COLD = f"below {COLDEST_K} K"
TOO_HOT = f"above {HOTTEST_K} K"
BAD_TIME = "a time that is none"
CONFLICT = "two temperatures of one station at one time"
TWICE = "the same reading again"
NO_PLACE = "station without a position"


@dataclass(frozen=True)
class Observations:
    """Attributes:
    table: a row for each reading: station (text), lat, lon (degrees), elevation_m, time_utc, ta_k (kelvin); by time, then station.
    left_out: reason -> number of readings.
    """

    table: Any
    left_out: dict[str, int]


def read_stations(path: Path) -> Any:
    """Station table: index station (text), columns lat, lon in degrees and elevation_m (NaN where it is not given).

    Reads KMA's `stn_inf` (blanks; 0 number, 1 longitude, 2 latitude, 4 height) and CSV with the columns station, lat, lon, elevation_m.

    Raises:
        DataError: the file cannot be read, a position is impossible, or a station stands in it twice.
    """
    text = _text(path)
    first = _first_line(path, text)
    try:
        if "," in first:
            table = pd.read_csv(io.StringIO(text), dtype=str, comment="#", skipinitialspace=True).rename(columns=_named)
        else:
            table = _columns(text, {0: "station", 1: "lon", 2: "lat", 4: "elevation_m"})
        table = table.assign(elevation_m=table.get("elevation_m", np.nan))
        table = table[["station", "lat", "lon", "elevation_m"]].set_index("station").astype(np.float64)
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: {error}", "a station table: station, lat, lon, elevation_m, or KMA's stn_inf", "give another station table"
        ) from None
    table.index = table.index.astype(str).str.strip()
    twice = sorted(table.index[table.index.duplicated()].unique())
    if twice:
        raise DataError(f"{path}: {shown(twice)} more than once", "one row for each station", "keep the row with the right position")
    nowhere = table.index[~(table["lat"].abs().le(90) & table["lon"].abs().le(180))]
    if len(nowhere):
        raise DataError(f"{path}: impossible position of {shown(sorted(nowhere))}", "degrees north and east", "are lat and lon exchanged?")
    return table


def read_observations(paths: Iterable[Path], stations: Path | None = None) -> Observations:
    """Every usable reading of some files, of one format or of several.

    Two readings of one station at one time: equal ones count once, different ones are both left out.

    Args:
        stations: table with the positions; None: they stand in the files.

    Raises:
        DataError: a file of another format, or no usable reading at all.
    """
    left_out: Counter[str] = Counter()
    parts = [_read(path) for path in paths]
    if not parts:
        raise DataError("no file with station records", "at least one", "name the files in `observations`")
    table = pd.concat(parts, ignore_index=True)
    if stations is not None:
        table = table.drop(columns=["lat", "lon", "elevation_m"], errors="ignore").join(read_stations(stations), on="station")
    for name in ("lat", "lon", "elevation_m"):
        table[name] = pd.to_numeric(table[name], errors="coerce") if name in table else np.nan
    checks = (
        (BAD_TIME, table["time_utc"].isna()),
        (MISSING, table["ta_k"].isna()),
        (TOO_COLD, table["ta_k"] < COLDEST_K),
        (TOO_HOT, table["ta_k"] > HOTTEST_K),
        (NO_PLACE, ~(table["lat"].abs().le(90) & table["lon"].abs().le(180))),
    )
    usable = np.ones(len(table), dtype=bool)
    for reason, bad in checks:
        left_out[reason] += int((usable & bad).sum())
        usable &= ~bad
    table = table[usable]
    again = table.duplicated(["station", "time_utc", "ta_k"])
    left_out[TWICE] += int(again.sum())
    table = table[~again]
    conflict = table.duplicated(["station", "time_utc"], keep=False)
    left_out[CONFLICT] += int(conflict.sum())
    table = table[~conflict].sort_values(["time_utc", "station"], kind="stable").reset_index(drop=True)
    if table.empty:
        raise DataError(
            f"no usable temperature in {len(parts)} files: {', '.join(f'{count} {reason}' for reason, count in left_out.items() if count)}",
            "readings with a time, a temperature and a position",
            "check the files and the station table",
        )
    columns = ["station", "lat", "lon", "elevation_m", "time_utc", "ta_k"]
    return Observations(table[columns], {reason: count for reason, count in left_out.items() if count})


def _read(path: Path) -> Any:
    """One file to station, time_utc, ta_k (NaN where missing), and lat, lon, elevation_m where it has them."""
    text = _text(path)
    first = _first_line(path, text)
    if "," in first:
        return _from_csv(path, text)
    width = len(first.rstrip("=,").split())
    if width >= 40:
        raw = _columns(text, {0: "time_kst", 1: "station", 11: "ta_c", 13: "humidity"})
        celsius, humidity = pd.to_numeric(raw["ta_c"], errors="coerce"), pd.to_numeric(raw["humidity"], errors="coerce")
        no_reading = (celsius <= -90) | ((celsius == -9) & ~(humidity >= 0))
    elif width >= 17:
        raw = _columns(text, {0: "time_kst", 1: "station", 8: "ta_c"})
        celsius = pd.to_numeric(raw["ta_c"], errors="coerce")
        no_reading = celsius <= -50
    else:
        raise DataError(
            f"{path}: {width} columns in {first[:60]!r}",
            "ASOS hourly (46 columns), AWS minute (17 or more), or a CSV with a header",
            "give the files as KMA's services return them",
        )
    times = pd.to_datetime(raw["time_kst"], format="%Y%m%d%H%M", errors="coerce", utc=True) - _KST
    kelvin = celsius.mask(no_reading) + ZERO_CELSIUS_K
    return pd.DataFrame({"station": raw["station"].astype(str), "time_utc": times, "ta_k": kelvin})


def _from_csv(path: Path, text: str) -> Any:
    raw = pd.read_csv(io.StringIO(text), dtype=str, comment="#", skipinitialspace=True).rename(columns=_named)
    time = next((name for name in ("time_utc", "time_kst") if name in raw), None)
    value = next((name for name in ("ta_k", "ta_c") if name in raw), None)
    if "station" not in raw or time is None or value is None:
        raise DataError(
            f"{path}: the columns {', '.join(raw.columns)}",
            "station, time_utc or time_kst, ta_k or ta_c; or 지점, 일시, 기온(°C) of the portal",
            "rename the columns: the zone of the time and the unit of the temperature must be known",
        )
    times = pd.to_datetime(raw[time], errors="coerce", utc=True, format="ISO8601")
    kelvin = pd.to_numeric(raw[value], errors="coerce").astype(np.float64)
    kelvin = kelvin.mask(kelvin <= -90) + (ZERO_CELSIUS_K if value == "ta_c" else 0.0)
    table = pd.DataFrame(
        {"station": raw["station"].str.strip(), "time_utc": times - (_KST if time == "time_kst" else pd.Timedelta(0)), "ta_k": kelvin}
    )
    return table.join(raw[[name for name in ("lat", "lon", "elevation_m") if name in raw]])


def _columns(text: str, wanted: dict[int, str]) -> Any:
    """Chosen columns of a table with blanks between them, as text; rows that are too short give NaN. What follows may vary."""
    last = max(wanted)
    rows = [line.split(None, last + 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return pd.DataFrame({name: [row[index] if len(row) > index else None for row in rows] for index, name in wanted.items()}, dtype=object)


def _named(header: object) -> str:
    name = str(header).strip()
    return _HEADERS.get(name, _HEADERS.get(name.lower(), name.lower()))


def _first_line(path: Path, text: str) -> str:
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    first = next(lines, None)
    if first is None:
        raise DataError(f"{path} has no record", "lines besides comments", "download it again")
    return first


def _text(path: Path) -> str:
    """KMA's services and portal write UTF-8 or CP949."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "a file with station records", "check the path") from None
    for encoding in ("utf-8-sig", "cp949"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path} is neither UTF-8 nor CP949", "a text file", "save it as UTF-8")
