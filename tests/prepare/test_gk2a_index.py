"""Readings matched to scenes, and splits by time, by station and by both."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from eyegraft.errors import DataError
from eyegraft.prepare.gk2a import Config, index, prepare
from eyegraft.prepare.gk2a.bands import BANDS
from eyegraft.prepare.gk2a.grid import BEYOND_DISK, OUTSIDE_GRID
from eyegraft.prepare.gk2a.index import COLUMNS, SPLITS, build_index, read_index, split_index, stations_aside
from eyegraft.prepare.gk2a.read import SceneFiles
from eyegraft.prepare.gk2a.stations import Observations
from eyegraft.prepare.gk2a.write import file_name, write_band

NOON = datetime(2022, 8, 1, 3, 0, tzinfo=UTC)
PLACES = {"108": (37.5714, 126.9658), "159": (35.1047, 129.0320), "184": (33.5141, 126.5297), "90": (38.2509, 128.5647)}


def scene(time: datetime, area: str = "ko", skip: str = "") -> SceneFiles:
    root = Path("raw") / f"{time:%Y%m}"
    return SceneFiles(area, time, {name: root / file_name(band, area, 2000, time) for name, band in BANDS.items() if name != skip})


def readings(*rows: tuple[str, datetime, float], **places: tuple[float, float]) -> Observations:
    known = {**PLACES, **places}
    table = pd.DataFrame(
        [
            {"station": s, "lat": known[s][0], "lon": known[s][1], "elevation_m": 50.0, "time_utc": pd.Timestamp(t), "ta_k": k}
            for s, t, k in rows
        ]
    )
    return Observations(table, {"no temperature": 2})


def test_nearest_scene_within_the_tolerance() -> None:
    scenes = [scene(NOON + timedelta(hours=1)), scene(NOON), scene(NOON + timedelta(hours=2), skip="IR105"), scene(NOON, area="fd")]
    given = readings(
        ("108", NOON - timedelta(minutes=5), 300.0),
        ("108", NOON + timedelta(minutes=2), 301.0),
        ("108", NOON + timedelta(minutes=6), 302.0),
        ("159", NOON + timedelta(hours=1), 303.0),
        ("159", NOON + timedelta(hours=2), 304.0),
    )
    built = build_index(scenes, given, Path("raw"))
    assert list(built.table.columns) == list(COLUMNS)
    assert built.table[["timestamp_utc", "stn", "ta_k"]].to_numpy().tolist() == [
        ["2022-08-01 03:00:00", "108", 301.0],
        ["2022-08-01 04:00:00", "159", 303.0],
    ]
    assert built.left_out == {"no temperature": 2, index.NO_SCENE: 2, index.NEARER: 1, index.MISSING_BANDS: 1}
    row = built.table.iloc[0]
    assert (row["pixel_x"], row["pixel_y"], row["year"]) == (491, 472, 2022)
    assert row["path_bt"] == "202208/gk2a_ami_le1b_ir105_ko020lc_202208010300.nc"
    assert row["path_reflectance"] == "202208/gk2a_ami_le1b_vi006_ko020lc_202208010300.nc"


def test_full_disk_has_its_own_pixels_and_its_own_edge() -> None:
    given = readings(("108", NOON, 300.0), ("x", NOON, 290.0), x=(40.0, -60.0))
    built = build_index([scene(NOON, area="fd")], given, Path(), area="fd")
    assert built.table[["pixel_x", "pixel_y"]].to_numpy().tolist() == [[2697, 895]]
    assert built.left_out[BEYOND_DISK] == 1
    outside = build_index([scene(NOON)], given, Path())
    assert outside.left_out[OUTSIDE_GRID] == 1


def test_nothing_that_matches_says_why() -> None:
    with pytest.raises(DataError, match=r"no reading matches a scene: .*1 no scene near enough(.|\n)*own zone"):
        build_index([scene(NOON)], readings(("108", NOON + timedelta(hours=9), 300.0)), Path())
    with pytest.raises(DataError, match="no whole scene of the area ko; found 1 ko with missing bands, 1 fd whole"):
        build_index([scene(NOON, skip="IR105"), scene(NOON, area="fd")], readings(("108", NOON, 300.0)), Path())


def three_years() -> index.Index:
    times = [datetime(year, month, 1, 3, 0, tzinfo=UTC) for year in (2021, 2022, 2023, 2024) for month in (1, 7)]
    rows = [(name, time, 280.0 + time.month) for time in times for name in PLACES]
    return build_index([scene(time) for time in times], readings(*rows), Path())


YEARS = {"train": (2022,), "val": (2023,), "test": (2024,)}


def test_splits_never_share_what_they_ask_for() -> None:
    built = three_years()
    split = split_index(built, YEARS, 0.25)
    (aside,) = stations_aside(list(PLACES), 0.25)
    parts = {name: split.table[split.table["split"] == name] for name in SPLITS}
    assert {name: len(part) for name, part in parts.items()} == {"train": 6, "val": 6, "test": 6, "test_new_station": 2, "test_new_both": 2}
    for name in ("train", "val", "test"):
        assert set(parts[name]["year"]) == set(YEARS[name])
        assert aside not in set(parts[name]["stn"])
    assert set(parts["test_new_station"]["year"]) == {2022}
    assert set(parts["test_new_both"]["year"]) == {2024}
    assert set(parts["test_new_station"]["stn"]) == set(parts["test_new_both"]["stn"]) == {aside}
    assert split.left_out == {**built.left_out, index.SPOILT: 2, index.NO_YEAR: 8}
    shuffled = index.Index(built.table.sample(frac=1, random_state=0), built.left_out)
    assert set(split_index(shuffled, YEARS, 0.25).table["stn"][lambda s: s == aside]) == {aside}
    assert {stations_aside(list(PLACES), 0.25, seed) for seed in range(20)} == {frozenset([name]) for name in PLACES}


def test_years_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="2022 is in train and in val"):
        split_index(three_years(), {"train": (2022,), "val": (2022,), "test": (2024,)}, 0.2)
    with pytest.raises(DataError, match="no row in test; rows by year: 8 of 2021"):
        split_index(three_years(), {"train": (2022,), "val": (2023,), "test": (2030,)}, 0.2)


def test_from_files_to_tables_and_back(tmp_path: Path) -> None:
    """Real files and records in, the document's tables out; the same again from the index alone; the same bytes twice."""
    window = (slice(470, 474), slice(490, 494))
    lines = []
    for year in (2022, 2023, 2024):
        time = datetime(year, 8, 1, 3, 0, tzinfo=UTC)
        for band in BANDS.values():
            write_band(tmp_path / "raw" / str(year), band, "ko", 2000, time, np.full((4, 4), 900, np.uint16), window)
        for name in PLACES:
            cells = ["-9"] * 46
            cells[0], cells[1], cells[11], cells[13] = f"{time + timedelta(hours=9):%Y%m%d%H%M}", name, str(20 + year - 2022), "50"
            lines.append(" ".join(cells))
    (tmp_path / "asos.txt").write_text("\n".join([*lines, lines[0]]))
    (tmp_path / "stations.csv").write_text("station,lat,lon\n" + "".join(f"{name},{lat},{lon}\n" for name, (lat, lon) in PLACES.items()))
    config = Config(step="build_index", scenes="raw", observations=("asos.txt",), stations="stations.csv", new_station_fraction=0.25)
    made = prepare(config, tmp_path)
    assert made["rows"] == {"train": 3, "val": 3, "test": 3, "test_new_station": 1, "test_new_both": 1}
    assert made["left_out"] == {"the same reading again": 1, index.SPOILT: 1}
    assert (made["scenes"], made["simulated"]) == (3, True)
    train = pd.read_csv(tmp_path / "index" / "index_train.csv", dtype={"stn": str}, keep_default_na=False)
    assert list(train.columns) == list(COLUMNS)
    assert train["ta_k"].tolist() == [293.15] * 3
    pd.testing.assert_frame_equal(train, pd.read_parquet(tmp_path / "index" / "index_train.parquet"), check_dtype=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    prepare(config, tmp_path)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    again = prepare(Config(step="build_index", index="index/index.csv", new_station_fraction=0.25), tmp_path / ".")
    assert sum(again["rows"].values()) == 11


def test_an_index_made_elsewhere(tmp_path: Path) -> None:
    table = three_years().table
    table.loc[0, "ta_k"] = 200.0
    table.to_csv(tmp_path / "index.csv", index=False)
    found = read_index(tmp_path / "index.csv")
    assert found.left_out == {"below 223.15 K": 1}
    pd.testing.assert_frame_equal(found.table, table[1:].reset_index(drop=True), check_dtype=False)
    table.drop(columns="path_sza").to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(DataError, match="has no column path_sza"):
        read_index(tmp_path / "short.csv")
    table.assign(year=2019).to_csv(tmp_path / "years.csv", index=False)
    with pytest.raises(DataError, match="32 rows without a time or a number, first in row 2"):
        read_index(tmp_path / "years.csv")


def test_configuration_says_what_is_missing() -> None:
    with pytest.raises(ValidationError, match=r"prepare\.scenes and prepare\.observations"):
        Config(scenes="raw")
    with pytest.raises(ValidationError, match="no pixel in the middle"):
        Config(step="build_index", index="index.csv", patch_size=8)
