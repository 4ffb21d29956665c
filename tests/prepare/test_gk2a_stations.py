"""Station records: every format to one table in UTC and kelvin, and each reading left out has its reason."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from eyegraft.errors import DataError
from eyegraft.prepare.gk2a import stations
from eyegraft.prepare.gk2a.stations import read_observations, read_stations

TABLE = "station,lat,lon,elevation_m\n108,37.5714,126.9658,85.7\n159,35.1047,129.0320,69.6\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "stations.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def asos(time: str, station: int, ta: str, humidity: str = "60.0") -> str:
    cells = ["-9"] * 46
    cells[0], cells[1], cells[11], cells[13] = time, str(station), ta, humidity
    return " ".join(cells)


def test_asos_hourly(tmp_path: Path, table: Path) -> None:
    """-9.0 degrees with a humidity beside it was measured; without one it is the missing code."""
    lines = [
        "#START7777",
        "# 기온",
        asos("202301010000", 108, "-9.0"),
        asos("202301010000", 159, "-9.0", "-9.0"),
        asos("202301010100", 108, "-99.0"),
    ]
    lines += [asos("202301010100", 159, "4.4"), asos("202301010200", 999, "4.4"), asos("202313010200", 108, "4.4"), "#7777END"]
    path = tmp_path / "asos.txt"
    path.write_bytes("\n".join(lines).encode("cp949"))
    found = read_observations([path], table)
    assert found.table["station"].tolist() == ["108", "159"]
    assert found.table["time_utc"].tolist() == [pd.Timestamp("2022-12-31 15:00", tz="UTC"), pd.Timestamp("2022-12-31 16:00", tz="UTC")]
    assert found.table["ta_k"].tolist() == pytest.approx([264.15, 277.55])
    assert found.table["elevation_m"].tolist() == [85.7, 69.6]
    assert found.left_out == {stations.MISSING: 2, stations.NO_PLACE: 1, stations.BAD_TIME: 1}


def test_portal_table_in_cp949(tmp_path: Path, table: Path) -> None:
    path = tmp_path / "portal.csv"
    path.write_bytes(
        "지점,지점명,일시,기온(°C)\n108,서울,2022-08-01 12:00,29.1\n108,서울,2022-08-01 13:00,\n159,부산,2022-08-01 12:00,-60\n".encode(
            "cp949"
        )
    )
    found = read_observations([path], table)
    assert found.table["time_utc"].tolist() == [pd.Timestamp("2022-08-01 03:00", tz="UTC")]
    assert found.table["ta_k"].tolist() == pytest.approx([302.25])
    assert found.left_out == {stations.MISSING: 1, stations.TOO_COLD: 1}


def test_own_table_with_positions(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "station,lat,lon,time_utc,ta_k\nA1,45.1,14.0,2022-08-01T03:00:00Z,300.5\nA1,45.1,14.0,2022-08-01 04:00,340\nA2,,14.1,2022-08-01 03:00,300\n",
        encoding="utf-8",
    )
    found = read_observations([path])
    assert found.table.loc[0, ["station", "lat", "lon"]].tolist() == ["A1", 45.1, 14.0]
    assert found.table["time_utc"].tolist() == [pd.Timestamp("2022-08-01 03:00", tz="UTC")]
    assert found.left_out == {stations.TOO_HOT: 1, stations.NO_PLACE: 1}


def test_one_station_twice_at_one_time(tmp_path: Path, table: Path) -> None:
    """The same reading in two files counts once; two different ones cannot both be right, and neither is taken."""
    rows = [asos("202301010000", 108, "1.0"), asos("202301010000", 159, "2.0"), asos("202301010100", 108, "3.0")]
    (tmp_path / "a.txt").write_text("\n".join(rows))
    (tmp_path / "b.txt").write_text("\n".join([rows[0], asos("202301010000", 159, "2.5")]))
    found = read_observations([tmp_path / "a.txt", tmp_path / "b.txt"], table)
    assert found.table["ta_k"].tolist() == pytest.approx([274.15, 276.15])
    assert found.left_out == {stations.TWICE: 1, stations.CONFLICT: 2}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"# only a comment\n", "has no record"),
        (b"1 2 3\n", "3 columns"),
        (b"station,time,ta_k\n1,2022-01-01,280\n", "the zone of the time and the unit"),
        (b"\xff\xfe\x81\x00", "neither UTF-8 nor CP949"),
        (b"station,time_utc,ta_k\n108,2022-01-01,\n", "no usable temperature in 1 files: 1 no temperature"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, table: Path, content: bytes, says: str) -> None:
    path = tmp_path / "records.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_observations([path], table)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("station,lat,lon\n1,37,127\n1,38,127\n", "1 more than once"),
        ("station,lat,lon\n1,127,37\n", "impossible position of 1"),
        ("station,latitude\n1,37\n", "a station table"),
    ],
)
def test_station_tables_that_cannot_be(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "stations.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_stations(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_observations([tmp_path / "none.txt"])
    with pytest.raises(DataError, match="no file with station records"):
        read_observations([])


def test_real_minute_of_all_automatic_stations() -> None:
    place = os.environ.get("EYEGRAFT_TEST_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder")
    folder = Path(place) / "kma"
    known = read_stations(folder / "stn_inf_aws_20260811.txt")
    assert known.loc["90", ["lat", "lon", "elevation_m"]].tolist() == [38.25085, 128.56473, 17.53]
    assert known["lat"].between(32, 39).all()
    assert known["lon"].between(124, 132).all()
    found = read_observations([folder / "nph-aws2_min_202608131200.txt"], folder / "stn_inf_aws_20260811.txt")
    lines = (folder / "nph-aws2_min_202608131200.txt").read_text(encoding="utf-8").splitlines()
    records = [line.split() for line in lines if not line.startswith("#")]
    assert len(found.table) + sum(found.left_out.values()) == len(records)
    assert found.left_out[stations.MISSING] == sum(float(record[8]) <= -50 for record in records)
    assert set(found.table["time_utc"]) == {pd.Timestamp(datetime(2026, 8, 13, 3, 0, tzinfo=UTC))}
    first = found.table.set_index("station").loc["42"]
    assert first["ta_k"] == pytest.approx(273.15 + 29.7)
    assert found.table["ta_k"].between(285, 313).all()
