"""The picture of a field: what is warm is red, what is not known is grey, the coast lies where it does, and simulated fields say so."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eyegraft.prepare.gk2a.grid import Grid, grid_of
from eyegraft.prepare.gk2a.ground import ground_at
from eyegraft.report.field_map import _LEFT, _NOTHING, _TOP, _WARNING, Marks, draw_field

BOX = (126.0, 129.5, 34.0, 38.0)


@pytest.fixture(scope="module", params=["ko", "fd"])
def grid(request: pytest.FixtureRequest) -> Grid:
    whole = grid_of(request.param)
    return whole.window(*whole.window_around(BOX, margin=0))


def drawn(grid: Grid, values: Any, **more: Any) -> tuple[Any, int]:
    """The picture as numbers, and how many of its pixels stand for one of the field along a side."""
    lon, lat = grid.lonlats()
    picture = Image.open(BytesIO(draw_field(values.astype(np.float32), lon, lat, title="air temperature", unit="K", **more)))
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int), max(1, round(900 / max(values.shape)))


def ramp(grid: Grid) -> Any:
    """Cold in the west, warm in the east, unknown in a corner."""
    values = np.repeat(np.linspace(270, 310, grid.shape[1])[None], grid.shape[0], 0)
    values[:10, :10] = np.nan
    return values


def test_warm_is_red_cold_is_blue_and_unknown_is_grey(grid: Grid) -> None:
    values = ramp(grid)
    pixels, times = drawn(grid, values)
    inside = pixels[_TOP : _TOP + times * grid.shape[0], _LEFT : _LEFT + times * grid.shape[1]]
    assert pixels.shape[1] > _LEFT + times * grid.shape[1]  # there is room for the colour bar
    assert np.median(inside[: 10 * times, : 10 * times].reshape(-1, 3), axis=0).tolist() == list(_NOTHING)
    west, east = (
        np.median(part.reshape(-1, 3), axis=0) for part in (inside[20 * times :, : 5 * times], inside[20 * times :, -5 * times :])
    )
    assert west[2] > west[0] + 50  # more blue than red
    assert east[0] > east[2] + 50


def test_the_coast_is_where_land_begins(grid: Grid) -> None:
    """On a field of one value everywhere, dark pixels inside the map are the coast and the graticule: most of the coast, little else."""
    pixels, times = drawn(grid, np.full(grid.shape, 290.0))
    inside = pixels[_TOP : _TOP + times * grid.shape[0], _LEFT : _LEFT + times * grid.shape[1]].sum(2)
    dark = inside < 200
    column, row = np.meshgrid(np.arange(0, grid.shape[1] - 1), np.arange(0, grid.shape[0] - 1))
    land = ground_at(*grid.to_lonlat(column, row)).land
    mixed = np.zeros(land.shape, dtype=bool)  # land and water within a pixel of here
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            mixed |= np.roll(land, (down, right), (0, 1)) != land
    blocks = dark[: land.shape[0] * times, : land.shape[1] * times].reshape(land.shape[0], times, land.shape[1], times).any((1, 3))
    inner = np.s_[2:-2, 2:-2]
    assert blocks.any()
    assert mixed[inner][blocks[inner]].mean() > 0.8  # islands smaller than a pixel are drawn too
    assert blocks[inner][mixed[inner]].mean() > 0.3  # of the band of three pixels around it


def test_simulated_is_said_in_red(grid: Grid) -> None:
    plain, _ = drawn(grid, ramp(grid))
    warned, _ = drawn(grid, ramp(grid), warning="SIMULATED: the scene")
    red = [(np.abs(pixels[:_TOP] - np.array(_WARNING)).sum(2) < 30).sum() for pixels in (plain, warned)]
    assert red[0] == 0
    assert red[1] > 100


def test_readings_stand_on_their_pixel_in_the_colours_of_the_field(grid: Grid) -> None:
    """A cold reading on the warm side is seen as cold; one that lies elsewhere is not drawn."""
    values = ramp(grid)
    row, column = grid.shape[0] // 2, grid.shape[1] - 12
    lon, lat = grid.to_lonlat(column, row)
    marks = Marks(np.array([float(lon), 10.0]), np.array([float(lat), 50.0]), np.array([271.0, 290.0]))
    pixels, times = drawn(grid, values, marks=marks)
    at = pixels[_TOP + int((row + 0.5) * times), _LEFT + int((column + 0.5) * times)]
    assert at[2] > at[0] + 50
    changed = (pixels != drawn(grid, values)[0]).any(2)
    assert 50 < changed.sum() < 200  # one dot


def test_long_notes_end_inside_the_picture(grid: Grid) -> None:
    pixels, _ = drawn(grid, ramp(grid), notes=["x " * 400, "second", "third"])
    assert (pixels[:, -8:] == 255).all()


@pytest.mark.parametrize("values", [np.nan, 290.0])
def test_a_field_without_spread_is_drawn(grid: Grid, values: float) -> None:
    pixels, _ = drawn(grid, np.full(grid.shape, values))
    assert pixels.shape[0] > 300
