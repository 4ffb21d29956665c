"""GK-2A level 1B files: calibration to the published values, quality bits, windows, averaging, and every way in which a scene can be bad."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5netcdf
import numpy as np
import pytest

from eyegraft.errors import DataError
from eyegraft.prepare.gk2a import read
from eyegraft.prepare.gk2a.bands import BANDS, BRIGHTNESS, REFLECTANCE, calibration_of, radiance_of, to_counts, to_values
from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.read import SceneFiles, find_scenes, parse_name, read_arrays, read_band, read_scene
from eyegraft.prepare.gk2a.write import ERROR, write_band

TIME = datetime(2022, 8, 1, 3, 0, tzinfo=UTC)
WINDOW = (slice(400, 432), slice(480, 520))


def put(folder: Path, band: str, counts: np.ndarray, *, area: str = "ko", resolution_m: int = 2000, time: datetime = TIME, **how) -> Path:
    times = 2000 // resolution_m
    window = tuple(slice(part.start * times, part.stop * times) for part in WINDOW)
    return write_band(folder, BANDS[band], area, resolution_m, time, counts.astype(np.uint16), window, **how)


def whole(folder: Path, *, area: str = "ko", reflected: int = 600, skip: str = "", time: datetime = TIME) -> SceneFiles:
    for name, band in BANDS.items():
        if name != skip:
            put(folder, name, np.full((32, 40), 2000 if band.is_infrared else reflected), area=area, time=time)
    (scene,) = find_scenes(folder)
    return scene


def change(path: Path, **attributes: object) -> None:
    with h5netcdf.File(path, "a") as stored:
        stored.attrs.update(attributes)


def test_published_temperatures() -> None:
    kelvin = to_values(BANDS["IR105"], np.array([0, 1024, 4096]))
    assert [round(float(value), 3) for value in kelvin] == [330.053, 319.994, 283.549]


@pytest.mark.parametrize("band", BRIGHTNESS, ids=lambda band: band.name)
def test_temperature_to_counts_and_back(band) -> None:
    kelvin = np.linspace(210, 320, 50)
    counts = to_counts(band, radiance_of(band, kelvin))
    step = np.abs(to_values(band, counts) - to_values(band, np.minimum(counts + 1, 2**band.bits - 1)))
    assert (np.abs(to_values(band, counts) - kelvin) <= 0.51 * step + 1e-3).all()


def test_radiance_below_zero_has_no_temperature_and_no_light() -> None:
    assert np.isnan(to_values(BANDS["IR105"], np.array([8191]))).all()
    assert to_values(BANDS["VI006"], np.array([0, 40, 41])).tolist() == pytest.approx([0, 0, 0.0003], abs=1e-4)


def test_coefficients_of_the_file_win_and_the_table_stands_in(tmp_path: Path) -> None:
    counts = np.full((32, 40), 1024)
    path = put(tmp_path, "IR105", counts)
    assert read_band(path, WINDOW).calibration == "the file"
    change(path, DN_to_Radiance_Gain=BANDS["IR105"].table.gain * 1.01)
    assert read_band(path, WINDOW).values[0, 0] != pytest.approx(319.994, abs=1e-3)
    bare = read_band(put(tmp_path / "bare", "IR105", counts, calibrated=False), WINDOW)
    assert bare.calibration == "calibration table v3.0"
    assert bare.values[0, 0] == pytest.approx(319.994, abs=1e-3)
    with pytest.raises(DataError, match="or none of them"):
        calibration_of(BANDS["IR105"], {"DN_to_Radiance_Gain": 1.0}, "file")
    with pytest.raises(DataError, match="finite coefficients"):
        calibration_of(BANDS["VI004"], {"DN_to_Radiance_Gain": 0.0, "DN_to_Radiance_Offset": 1.0, "Radiance_to_Albedo_c": 1.0}, "file")


def test_quality_bits_decide_and_do_not_count(tmp_path: Path) -> None:
    quality = np.zeros((32, 40), np.uint8)
    quality[0, :4] = [0, 1, 2, ERROR]
    path = put(tmp_path, "IR105", np.full((32, 40), 4096), quality=quality)
    strict, lenient = read_band(path, WINDOW), read_band(path, WINDOW, conditional=True)
    assert strict.good[0, :4].tolist() == [True, False, False, False]
    assert lenient.good[0, :4].tolist() == [True, True, False, False]
    assert lenient.values[0, :2].tolist() == pytest.approx([283.549] * 2, abs=1e-3)
    assert np.isnan(strict.values[~strict.good]).all()
    around = read_band(path, (slice(390, 432), slice(480, 520)))
    assert not around.good[:10].any()  # off-scan
    assert np.array_equal(around.values[10:], strict.values, equal_nan=True)


@pytest.mark.parametrize(("band", "metres"), [("VI006", 500), ("VI004", 1000)])
def test_fine_bands_are_averaged_over_their_good_pixels(tmp_path: Path, band: str, metres: int) -> None:
    times = 2000 // metres
    counts = np.random.default_rng(0).integers(100, 2000, (32 * times, 40 * times))
    quality = np.zeros(counts.shape, np.uint8)
    quality[:times, :times] = ERROR
    quality[:times, times] = ERROR  # one column of the next block
    image = read_band(put(tmp_path, band, counts, resolution_m=metres, quality=quality), WINDOW)
    values = to_values(BANDS[band], counts)
    assert image.values.shape == (32, 40)
    assert not image.good[0, 0]
    assert image.values[0, 1] == pytest.approx(values[:times, times + 1 : 2 * times].mean(), rel=1e-5)
    assert image.values[5, 7] == pytest.approx(values[5 * times : 6 * times, 7 * times : 8 * times].mean(), rel=1e-5)


@pytest.mark.parametrize("area", ["ko", "fd"])
def test_scene_on_both_grids(tmp_path: Path, area: str) -> None:
    scene = read_scene(whole(tmp_path, area=area), WINDOW)
    assert scene.brightness_k.shape == (10, 32, 40)
    assert scene.reflectance.shape == (6, 32, 40)
    assert scene.good.all()
    assert scene.simulated
    assert not scene.night
    assert scene.grid == grid_of(area).window(*WINDOW)
    for index, band in enumerate(BRIGHTNESS):
        assert scene.brightness_k[index, 0, 0] == pytest.approx(float(to_values(band, np.array(2000))))
    for index, band in enumerate(REFLECTANCE):
        assert scene.reflectance[index, 0, 0] == pytest.approx(float(to_values(band, np.array(600))))


def test_window_is_the_same_part_of_the_whole(tmp_path: Path) -> None:
    path = put(tmp_path, "IR105", np.random.default_rng(1).integers(0, 8000, (32, 40)))
    everything = read_band(path)
    assert everything.values.shape == (900, 900)
    assert np.array_equal(everything.values[WINDOW], read_band(path, WINDOW).values)
    inner = read_band(path, (slice(410, 419), slice(500, 509)))
    assert np.array_equal(everything.values[410:419, 500:509], inner.values)


def test_night_is_flagged(tmp_path: Path) -> None:
    scene = read_scene(whole(tmp_path, reflected=20), WINDOW)  # the dark counts of the visible bands
    assert scene.night
    assert scene.reflectance.max() < 0.02


@pytest.mark.parametrize("left", [0, 500, 0.9])
def test_truncated_file(tmp_path: Path, left: float) -> None:
    path = put(tmp_path, "IR105", np.random.default_rng(2).integers(0, 8000, (32, 40)))
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(DataError, match="cut short: download it again"):
        read_band(path, WINDOW)


def test_missing_band_is_named(tmp_path: Path) -> None:
    scene = whole(tmp_path, skip="WV069")
    assert scene.missing == ("WV069",)
    with pytest.raises(DataError, match="has no file for WV069"):
        read_scene(scene, WINDOW)


def test_wrong_grid(tmp_path: Path) -> None:
    path = put(tmp_path, "IR105", np.zeros((32, 40)))
    posing = path.rename(path.with_name(path.name.replace("ko020lc", "fd020ge")))
    with pytest.raises(DataError, match=r"900 x 900 pixels\n  expected: 5500 x 5500"):
        read_band(posing, WINDOW)
    disk = put(tmp_path, "IR105", np.zeros((32, 40)), area="fd", time=TIME + timedelta(hours=1))
    change(disk, coff=2749.5)
    with pytest.raises(DataError, match=r"coff = 2749.5\n  expected: 2750.5"):
        read_band(disk, WINDOW)


def test_times_that_do_not_match(tmp_path: Path) -> None:
    scene = whole(tmp_path)
    late = scene.files["IR123"]
    with h5netcdf.File(late) as stored:
        start = float(stored.attrs["observation_start_time"])
    change(late, observation_start_time=start + 240, observation_end_time=start + 300)
    with pytest.raises(DataError, match="scans start between 03:00:00 and 03:04:00"):
        read_scene(scene, WINDOW)
    change(late, observation_start_time=start - 3600)
    with pytest.raises(DataError, match="within 10 minutes of the time in its name"):
        read_band(late, WINDOW)
    other = put(tmp_path / "other", "IR123", np.zeros((32, 40)), time=TIME + timedelta(minutes=2))
    with pytest.raises(DataError, match="files of one area and one time"):
        read_scene(SceneFiles("ko", TIME, {**scene.files, "IR123": other}), WINDOW)


def test_scene_times_are_utc_from_the_file(tmp_path: Path) -> None:
    image = read_band(put(tmp_path, "IR105", np.zeros((32, 40))), WINDOW)
    assert (image.start, image.end) == (TIME, TIME + timedelta(seconds=100))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ir105.nc", "keep the names"),
        ("gk2a_ami_le1b_ir999_ko020lc_202208010300.nc", "band ir999"),
        ("gk2a_ami_le1b_ir105_ea020lc_202208010300.nc", "grid ea…lc"),
        ("gk2a_ami_le1b_ir105_ko020ge_202208010300.nc", "grid ko…ge"),
        ("gk2a_ami_le1b_ir105_ko020lc_202213010300.nc", "the time 202213010300"),
    ],
)
def test_names_that_say_something_else(name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_name(Path(name))


def test_scenes_are_found_in_any_folder_tree(tmp_path: Path) -> None:
    later = TIME + timedelta(hours=1)
    for time in (later, TIME):
        put(tmp_path / "ir", "IR105", np.zeros((32, 40)), time=time)
        put(tmp_path / "vi", "VI006", np.zeros((32, 40)), time=time)
    put(tmp_path / "vi", "VI006", np.zeros((128, 160)), resolution_m=500)
    (tmp_path / "notes.txt").write_text("not a file of the satellite")
    scenes = find_scenes(tmp_path)
    assert [(scene.area, scene.time, sorted(scene.files)) for scene in scenes] == [
        ("ko", TIME, ["IR105", "VI006"]),
        ("ko", later, ["IR105", "VI006"]),
    ]
    assert parse_name(scenes[0].files["VI006"]).resolution_m == 2000
    shutil.copytree(tmp_path / "ir", tmp_path / "copy")
    with pytest.raises(DataError, match="each file once"):
        find_scenes(tmp_path)
    with pytest.raises(DataError, match="no file gk2a_ami_le1b"):
        find_scenes(tmp_path / "nothing")


def test_extracted_arrays(tmp_path: Path) -> None:
    kelvin = np.random.default_rng(3).uniform(220, 310, (10, 900, 900)).astype(np.float32)
    light = np.zeros((900, 900, 6), np.float32)
    angle = np.full((900, 900), 95.0, np.float32)
    paths = [tmp_path / name for name in ("bt.npy", "rf.npy", "sza.npy")]
    for path, array in zip(paths, (kelvin, light, angle), strict=True):
        np.save(path, array)
    scene = read_arrays(*paths, TIME)
    assert np.array_equal(scene.brightness_k, kelvin)
    assert scene.reflectance.shape == (6, 900, 900)
    assert scene.night
    assert scene.sza_deg is not None
    assert scene.sza_deg[0, 0] == 95
    with pytest.raises(DataError, match=r"shape \(900, 900, 6\)\n  expected: \(10, 900, 900\)"):
        read_arrays(paths[1], paths[0], None, TIME)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="extract the scene again"):
        read_arrays(tmp_path / "objects.npy", paths[1], None, TIME)
    paths[0].write_bytes(paths[0].read_bytes()[:5000])
    with pytest.raises(DataError, match="extract the scene again"):
        read_arrays(*paths, TIME)


def test_epoch_of_the_files() -> None:
    assert datetime(2000, 1, 1, 12, tzinfo=UTC) == read.EPOCH
