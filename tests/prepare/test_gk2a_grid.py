"""Both grids of GK-2A: pixels lie where the published checks say, and the sun stands where an almanac says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from eyegraft.errors import DataError
from eyegraft.prepare.gk2a import sun
from eyegraft.prepare.gk2a.grid import BEYOND_DISK, OUTSIDE_GRID, grid_of, nearest

SEOUL = (126.9658, 37.5714)


def test_published_checks_of_the_korea_grid() -> None:
    grid = grid_of("ko")
    lon, lat = grid.to_lonlat(0, 0)
    assert (round(float(lat), 3), round(float(lon), 3)) == (45.729, 113.996)
    column, row = grid.to_pixel(*SEOUL)
    assert (round(float(column), 1), round(float(row), 1)) == (491.1, 472.4)


def test_disk_is_centred_below_the_satellite_and_as_wide_as_the_earth() -> None:
    grid = grid_of("fd")
    assert np.allclose(grid.to_pixel(128.2, 0.0), 2749.5)
    # the edge of the equator is seen at asin(a / r) from the middle: 8.702 degrees, 2712 steps of 0.0032085 degrees
    assert np.isfinite(grid.to_lonlat(2749.5 + 2711, 2749.5)).all()
    assert np.isnan(grid.to_lonlat(2749.5 + 2713, 2749.5)).all()


def test_size_of_a_pixel_over_seoul() -> None:
    """2.08 km from west to east and 2.88 km from north to south: the satellite looks at it from the side."""
    from pyproj import Geod

    grid, earth = grid_of("fd"), Geod(ellps="WGS84")
    column, row = grid.to_pixel(*SEOUL)
    lon, lat = grid.to_lonlat([column - 0.5, column + 0.5, column, column], [row, row, row - 0.5, row + 0.5])
    _, _, across = earth.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, down = earth.inv(lon[2], lat[2], lon[3], lat[3])
    assert (round(across / 1000, 2), round(down / 1000, 2)) == (2.08, 2.88)


@pytest.mark.parametrize("area", ["ko", "fd"])
def test_there_and_back_in_a_window_and_at_each_resolution(area: str) -> None:
    whole = grid_of(area)
    rows, columns = whole.window_around()
    window = whole.window(rows, columns)
    lon, lat = window.lonlats()
    column, row = window.to_pixel(lon, lat)
    assert np.allclose(column, np.arange(window.shape[1])[None], atol=1e-6)
    assert np.allclose(row, np.arange(window.shape[0])[:, None], atol=1e-6)
    assert np.allclose(whole.to_pixel(*SEOUL), np.add(window.to_pixel(*SEOUL), window.first))
    assert window.missing(*window.to_pixel(*SEOUL), margin=4) == ""
    for metres in (500, 1000):
        times = 2000 // metres
        fine = np.asarray(grid_of(area, metres).to_pixel(*SEOUL))
        assert np.allclose((fine + 0.5) / times - 0.5, whole.to_pixel(*SEOUL))  # four fine pixels fill a coarse one


def test_places_without_a_pixel_say_why() -> None:
    disk, korea = grid_of("fd"), grid_of("ko")
    assert list(disk.missing(*disk.to_pixel([-60.0, 128.2], [0.0, 0.0]))) == [BEYOND_DISK, ""]
    assert np.isnan(disk.to_pixel(-60.0, 0.0)).all()
    assert list(korea.missing(*korea.to_pixel([100.0, 126.0], [38.0, 38.0]))) == [OUTSIDE_GRID, ""]
    edge = korea.to_lonlat(3, 450)
    assert list(korea.missing(*korea.to_pixel(*edge), margin=3)) == [""]
    assert list(korea.missing(*korea.to_pixel(*edge), margin=4)) == [OUTSIDE_GRID]
    assert list(nearest([-0.5, 0.49, 0.5, 1.5])) == [0, 0, 1, 2]


def test_unknown_grids_and_windows_are_refused() -> None:
    with pytest.raises(DataError, match="area 'ea'"):
        grid_of("ea")
    with pytest.raises(DataError, match="a window inside 900 rows"):
        grid_of("ko").window(slice(800, 901), slice(0, 10))
    with pytest.raises(DataError, match="lies outside the grid ko"):
        grid_of("ko").window_around((0.0, 10.0, 30.0, 40.0))


def test_sun_against_the_almanac() -> None:
    """Seoul: noon of the June solstice (33 minutes past 3 UTC) at 37.57 - 23.44 degrees, sunset of the March equinox in the west."""
    noon = datetime(2022, 6, 21, 3, 34, tzinfo=UTC)
    assert float(sun.zenith_at(*SEOUL, noon)) == pytest.approx(37.5714 - 23.437, abs=0.02)
    # Korea Astronomy and Space Science Institute: sunset in Seoul on 2023-03-21 at 18:44 KST; the centre then stands 0.83 degrees below
    assert float(sun.zenith_at(*SEOUL, datetime(2023, 3, 21, 9, 44, tzinfo=UTC))) == pytest.approx(90.83, abs=0.3)


def test_sun_follows_the_scan_from_north_to_south() -> None:
    whole = grid_of("fd")
    grid = whole.window(*whole.window_around())
    start = datetime(2022, 6, 21, 0, 0, tzinfo=UTC)
    still, moving = sun.zenith(grid, start), sun.zenith(grid, start, start + timedelta(minutes=10))
    assert still.shape == moving.shape == grid.shape
    row = 100
    delay = timedelta(minutes=10) * (grid.first[1] + row + 0.5) / 5500
    lon, lat = grid.to_lonlat(np.arange(grid.shape[1]), np.full(grid.shape[1], row))
    assert np.allclose(moving[row], sun.zenith_at(lon, lat, start + delay), atol=1e-3)
    assert (still - moving).min() > 0.1  # in the morning the sun climbs meanwhile
