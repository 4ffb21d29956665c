"""Simulated scenes: in the published format on both grids, sensible to look at, the same twice, and blind to the target."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import h5netcdf
import numpy as np
import pandas as pd
import pytest

from eyegraft.prepare.gk2a import simulate, weather
from eyegraft.prepare.gk2a.bands import BANDS
from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.ground import ground_at
from eyegraft.prepare.gk2a.read import Scene, find_scenes, parse_name, read_band, read_scene
from eyegraft.prepare.gk2a.simulate import pixels_around, read_stations_at, scene_times, write_asos, write_scene
from eyegraft.prepare.gk2a.stations import MISSING, read_observations

NOON, NIGHT = datetime(2022, 7, 15, 3, 0, tzinfo=UTC), datetime(2022, 7, 15, 15, 0, tzinfo=UTC)
BOX = (126.0, 128.0, 35.8, 37.2)
SMALL = (126.2, 126.8, 36.2, 36.8)
PLACES = pd.DataFrame({"lat": [37.5714, 35.1047, 36.2], "lon": [126.9658, 129.032, 127.6]}, index=["108", "159", "x"])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, datetime], Scene]:
    folder = tmp_path_factory.mktemp("scenes")
    for time, area in ((NOON, "ko"), (NOON, "fd"), (NIGHT, "ko")):
        write_scene(folder, time, 3, area=area, box=BOX)
    return {(scene.area, scene.time): read_scene(scene, box=BOX) for scene in find_scenes(folder)}


def test_ground_is_that_of_korea() -> None:
    """Seoul, the mountains of Gangwon, the Yellow Sea, the Pacific far away, and space."""
    ground = ground_at([126.97, 128.55, 124.0, 170.0, np.nan], [37.56, 37.6, 35.5, 10.0, np.nan])
    assert ground.land.tolist() == [True, True, False, False, False]
    assert ground.igbp.tolist()[0] == 13
    assert ground.igbp.tolist()[2:] == [0, 0, 0]
    assert ground.elevation_m[1] > 500
    assert ground.elevation_m[2:].tolist() == [0, 0, 0]
    assert ground_at(126.97, 37.56).igbp == 13  # one place alone


def test_scenes_are_read_back_whole_and_say_what_they_are(scenes: dict[tuple[str, datetime], Scene]) -> None:
    assert len(scenes) == 3
    for (_, time), scene in scenes.items():
        assert scene.good.all()
        assert scene.simulated
        assert scene.night == (time == NIGHT)
        assert scene.brightness_k.min() > 190
        assert scene.brightness_k.max() < 335
        assert scene.reflectance.max() < (0.02 if scene.night else 1.1)


def test_bands_behave_as_bands_do(scenes: dict[tuple[str, datetime], Scene]) -> None:
    """Where the sky is clear: land is warmer than the sea at noon, vapour bands are cold, the split window is positive, ground is brighter in VI008."""
    scene = scenes["ko", NOON]
    lon, lat = scene.grid.lonlats()
    state = weather.weather_at(lon, lat, NOON, 3)
    clear, land = state.cloud < 0.1, state.ground.land
    assert (clear & land).sum() > 500
    brightness = dict(zip([name for name, band in BANDS.items() if band.is_infrared], scene.brightness_k, strict=True))
    assert brightness["IR105"][clear & land].mean() > brightness["IR105"][clear & ~land].mean() + 3
    assert brightness["WV063"].max() < 265
    assert (brightness["IR105"] - brightness["IR123"])[clear].mean() > 0.3
    assert brightness["IR105"][state.cloud > 0.95].mean() < brightness["IR105"][clear].mean() - 15
    vi006, vi008 = scene.reflectance[2], scene.reflectance[3]
    assert vi008[clear & land].mean() > 1.5 * vi006[clear & land].mean()
    assert vi006[state.cloud > 0.95].mean() > 0.4


def test_both_grids_see_the_same_weather(scenes: dict[tuple[str, datetime], Scene]) -> None:
    korea, disk = scenes["ko", NOON], scenes["fd", NOON]
    lon, lat = disk.grid.to_lonlat(np.arange(20, 60, 5), np.full(8, 40))
    column, row = korea.grid.to_pixel(lon, lat)
    mine = korea.brightness_k[1, row.round().astype(int), column.round().astype(int)]
    assert np.allclose(mine, disk.brightness_k[1, 40, 20:60:5], atol=2.5)  # WV063 is smooth


def test_the_same_seed_gives_the_same_pixels(tmp_path: Path) -> None:
    bands = (BANDS["IR105"], BANDS["VI006"])
    window, images = grid_of("ko").window_around(SMALL), []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        paths = write_scene(tmp_path / folder, NOON, seed, box=SMALL, bands=bands)
        images.append([read_band(path, window).values for path in paths])
    assert all(np.array_equal(first, second) for first, second in zip(images[0], images[1], strict=True))
    assert not np.array_equal(images[0][0], images[2][0])


def test_no_band_knows_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another air temperature, site and instrument no byte of any file changes: the target is never read by a band."""
    write_scene(tmp_path / "a", NOON, 1, box=SMALL)
    truth = read_stations_at(PLACES, [NOON], 1)["ta_k"]
    monkeypatch.setattr(weather, "LOCAL_K", 50.0)
    moved = read_stations_at(PLACES, [NOON], 1)["ta_k"]
    assert abs(moved - truth).max() > 10
    monkeypatch.setattr(simulate, "air_temperature", lambda lon, lat, time, seed: np.full(len(lon), 250.0))
    monkeypatch.setattr(simulate, "SITING_K", 5.0)
    monkeypatch.setattr(simulate, "READING_K", 5.0)
    write_scene(tmp_path / "b", NOON, 1, box=SMALL)
    before, after = (sorted((tmp_path / folder).iterdir()) for folder in ("a", "b"))
    assert len(before) == 16
    assert all(first.name == second.name and first.read_bytes() == second.read_bytes() for first, second in zip(before, after, strict=True))
    assert abs(read_stations_at(PLACES, [NOON], 1)["ta_k"] - truth).min() > 20


def test_air_answers_to_what_lies_upwind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clouded sky to the west changes the air at noon; the same sky to the east, or the sky right above alone, does not, or hardly."""
    place = np.array([127.6]), np.array([36.2])
    at, changes = weather.weather_at, {}

    def over(west: float, east: float, value: float) -> float:
        def clouded(lon: np.ndarray, lat: np.ndarray, time: datetime, seed: int) -> weather.Weather:
            state = at(lon, lat, time, seed)
            east_km = (state.lon - place[0]) * 111.2 * np.cos(np.deg2rad(place[1]))
            return replace(state, cloud=np.where((east_km > west) & (east_km < east), value, 0.0))

        monkeypatch.setattr(weather, "weather_at", clouded)
        return float(weather.air_temperature(*place, NOON, 3)[0])

    for west, east in ((-30, -0.5), (-0.5, 0.5), (1.5, 30)):
        changes[west, east] = over(west, east, 0.0) - over(west, east, 1.0)
    assert changes[-30, -0.5] > 1.5
    assert changes[-0.5, 0.5] == changes[1.5, 30] == 0


def test_only_what_is_wanted_is_filled(tmp_path: Path) -> None:
    only = pixels_around("ko", PLACES["lon"].to_numpy(), PLACES["lat"].to_numpy(), 3)
    assert only.sum() == 3 * 49
    band = BANDS["VI006"]
    (path,) = write_scene(tmp_path / "a", NOON, 1, only=only, bands=(band,))
    (fine,) = write_scene(tmp_path / "b", NOON, 1, only=only, bands=(band,), native=True)
    (whole,) = write_scene(tmp_path / "c", NOON, 1, bands=(band,))
    sparse, finer, full = read_band(path), read_band(fine), read_band(whole)
    assert np.array_equal(sparse.good, only)
    assert np.array_equal(finer.good, only)
    assert np.allclose(sparse.values[only], full.values[only], rtol=0.15, atol=0.01)
    assert np.allclose(sparse.values[only], finer.values[only], rtol=0.15, atol=0.01)
    assert path.stat().st_size < whole.stat().st_size / 5


def test_noise_of_the_target_is_as_stated() -> None:
    """What stations read less the weather without its own random part: its size is the stated floor, at one time over many places."""
    assert weather.noise_floor_k(new_station=False) == pytest.approx(np.hypot(0.8, 0.3))
    assert weather.noise_floor_k(new_station=True) == pytest.approx(np.sqrt(0.64 + 0.09 + 0.25))
    draw = np.random.default_rng(0)
    places = pd.DataFrame({"lon": draw.uniform(126.5, 129, 400), "lat": draw.uniform(35, 37.5, 400)}, index=[str(n) for n in range(400)])
    lon, lat = places["lon"].to_numpy(), places["lat"].to_numpy()
    times = scene_times((2022,), 12)
    readings = read_stations_at(places, times, 5)["ta_k"].to_numpy().reshape(12, 400)
    known = []
    for time in times:
        state = weather.weather_at(lon, lat, time, 5)
        known.append(weather.air_temperature(lon, lat, time, 5) - weather.LOCAL_K * weather.LOCAL.at(lon, lat, state.hours, 5))
    error = readings - np.array(known)
    assert 0 < np.isnan(error).mean() < 0.02
    assert np.sqrt(np.nanmean(error**2)) == pytest.approx(weather.noise_floor_k(new_station=True), rel=0.06)
    assert np.sqrt(np.nanmean((error - np.nanmean(error, 0)) ** 2) * 12 / 11) == pytest.approx(
        weather.noise_floor_k(new_station=False), rel=0.06
    )


def test_fields_are_the_same_from_the_raster_and_from_the_sum() -> None:
    lon, lat = grid_of("ko").window(slice(400, 480), slice(450, 530)).lonlats()
    for field in (weather.CLOUD, weather.LOCAL, weather.SYNOPTIC):
        many, few = field.at(lon, lat, 12345.0, 0), field.at(lon[:20, :20], lat[:20, :20], 12345.0, 0)
        assert np.abs(many[:20, :20] - few).max() < 0.1
        series = [float(field.at(lon[:1, :1], lat[:1, :1], 37.0 * hour, 0)[0, 0]) for hour in range(400)]
        assert np.std(series) == pytest.approx(1, abs=0.25)


def test_native_resolutions_agree_with_two_kilometres(tmp_path: Path) -> None:
    bands = (BANDS["VI006"], BANDS["VI004"], BANDS["NR016"])
    coarse = write_scene(tmp_path / "coarse", NOON, 1, box=SMALL, bands=bands)
    fine = write_scene(tmp_path / "fine", NOON, 1, box=SMALL, bands=bands, native=True)
    assert [parse_name(path).resolution_m for path in fine] == [500, 1000, 2000]
    window = grid_of("ko").window_around(SMALL, margin=0)
    for one, other in zip(coarse, fine, strict=True):
        assert np.allclose(read_band(one, window).values, read_band(other, window).values, rtol=0.15, atol=0.01)


def test_space_beside_the_disk_is_off_scan(tmp_path: Path) -> None:
    """The western limb: pixels that look past the Earth carry quality 2 and no value."""
    (path,) = write_scene(tmp_path, NOON, 1, area="fd", box=(48.0, 60.0, -4.0, 4.0), bands=(BANDS["IR105"],))
    window = grid_of("fd").window_around((48.0, 60.0, -4.0, 4.0), margin=8)
    image = read_band(path, window)
    lon, _ = image.grid.lonlats()
    assert np.array_equal(image.good, np.isfinite(lon))
    assert 0 < image.good.mean() < 1


def test_files_carry_the_published_attributes(tmp_path: Path) -> None:
    (korea,) = write_scene(tmp_path, NOON, 1, box=SMALL, bands=(BANDS["IR105"],))
    (disk,) = write_scene(tmp_path, NOON, 1, area="fd", box=SMALL, bands=(BANDS["IR105"],))
    with h5netcdf.File(korea) as stored:
        assert stored.variables["image_pixel_values"].dimensions == ("dim_image_y", "dim_image_x")
        assert stored.variables["image_pixel_values"].dtype == np.uint16
        assert int(stored.variables["image_pixel_values"].attrs["number_of_valid_bits_per_pixel"]) == 13
        assert (stored.attrs["upper_left_easting"], stored.attrs["upper_left_northing"]) == (-899000.0, 899000.0)
        assert stored.attrs["simulated"] == "true"
    with h5netcdf.File(disk) as stored:
        assert (stored.attrs["cfac"], stored.attrs["lfac"], stored.attrs["coff"]) == (20425338.9, -20425338.9, 2750.5)
        assert stored.attrs["sub_longitude"] == pytest.approx(np.deg2rad(128.2))
        assert stored.attrs["nominal_satellite_height"] == 42164000.0
        assert stored.attrs["DN_to_Radiance_Gain"] == BANDS["IR105"].table.gain
    assert disk.stat().st_size < 500_000  # what is off-scan takes no room


def test_records_come_back_as_they_were_drawn(tmp_path: Path) -> None:
    """In Korean time on paper, in UTC when read; what a thermometer did not show is counted."""
    times = scene_times((2022, 2023), 3, seed=1)
    assert len(set(times)) == 6
    assert {time.year for time in times} == {2022, 2023}
    assert sorted(time.hour for time in times) == [0, 0, 8, 8, 16, 16]
    drawn = read_stations_at(PLACES, times, 1)
    drawn.loc[4, "ta_k"] = np.nan
    drawn.loc[5, "ta_k"] = 273.15 - 9.0  # written as missing values are
    write_asos(tmp_path / "asos.txt", drawn)
    PLACES.to_csv(tmp_path / "stations.csv", index_label="station")
    found = read_observations([tmp_path / "asos.txt"], tmp_path / "stations.csv")
    assert found.left_out == {MISSING: int(drawn["ta_k"].isna().sum())}
    merged = found.table.merge(drawn, on=["station", "time_utc"], suffixes=("", "_drawn"))
    assert len(merged) == drawn["ta_k"].notna().sum() >= 16
    assert np.abs(merged["ta_k"] - merged["ta_k_drawn"]).max() <= 0.0501
