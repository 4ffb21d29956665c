"""A sensor is declared once, refuses what cannot be, and says how it differs from another."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from eyegraft.config import Strict
from eyegraft.errors import DataError, PartError
from eyegraft.sensors import GK2A_AMI, NamedSensor, Sensor, latlon4, time4


def sensor(**changes: Any) -> Sensor:
    bands = [
        {"name": "red", "wavelength_um": 0.64, "unit": "reflectance", "mean": 0.2, "std": 0.1},
        {"name": "window", "wavelength_um": 10.35, "unit": "K", "mean": 280.0, "std": 15.0},
    ]
    return Sensor.model_validate({"name": "two", "bands": bands, "gsd_m": 2000.0, **changes})


def with_band(place: int, **changes: Any) -> Sensor:
    bands = [band.model_dump() for band in sensor().bands]
    bands[place] |= changes
    return sensor(bands=bands)


def test_ami_has_its_sixteen_bands() -> None:
    """Wavelengths as the instrument's own description rounds them, and the order of the document's patches: ten temperatures first."""
    rounded = [round(length, 2) for length in GK2A_AMI.wavelengths_um()]
    assert rounded == [3.83, 6.18, 6.94, 7.32, 8.58, 9.62, 10.35, 11.21, 12.34, 13.27, 0.47, 0.51, 0.64, 0.86, 1.37, 1.61]
    assert GK2A_AMI.band_names[:2] == ("SW038", "WV063")
    assert [band.unit for band in GK2A_AMI.bands] == ["K"] * 10 + ["reflectance"] * 6
    assert GK2A_AMI.gsd_m == 2000


def test_it_survives_a_file() -> None:
    fitted = GK2A_AMI.with_statistics({name: (1.5 * number, 1 / 3) for number, name in enumerate(GK2A_AMI.band_names)})
    assert Sensor.model_validate(json.loads(json.dumps(fitted.model_dump(mode="json")))) == fitted
    assert fitted.bands[2].mean == 3.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wavelength_um": 10350.0}, r"window: wavelength_um is 10350.*nanometres.*micrometres: 10\.35"),
        ({"wavelength_um": -1.0}, "greater than 0"),
        ({"name": "red"}, "red stands there twice"),
        ({"std": None}, "mean and std stand together"),
        ({"std": 0.0}, "greater than 0"),
        ({"mean": math.nan}, "finite"),
        ({"wavelength_nm": 10350}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        with_band(1, **changes)


def test_no_bands_or_an_unknown_policy_are_refused() -> None:
    for changes in ({"bands": []}, {"missing": "fill"}, {"gsd_m": 0.0}):
        with pytest.raises(ValidationError):
            sensor(**changes)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (sensor(gsd_m=500.0), "gsd_m 2000.0, there 500.0"),
        (sensor(missing="mask"), "missing drop, there mask"),
        (sensor(bands=sensor().bands[::-1]), "bands in the order red, window, there window, red"),
        (sensor(bands=sensor().bands[:1]), "bands only here: window"),
        (with_band(0, name="blue"), "bands only there: blue"),
        (with_band(1, wavelength_um=10.8), "band window: wavelength_um 10.35, there 10.8"),
        (with_band(0, wavelength_um=None), "band red: wavelength_um 0.64, there None"),
        (with_band(1, unit="degC"), "band window: unit K, there degC"),
        (with_band(1, mean=281.0), "band window: mean 280, there 281"),
    ],
)
def test_a_mismatch_says_what_differs(other: Sensor, line: str) -> None:
    with pytest.raises(PartError) as caught:
        sensor().require_same(other, here="the checkpoint", there="the patches in p")
    assert line in str(caught.value)
    assert "two of the checkpoint is not sensor two of the patches in p" in str(caught.value)


def test_what_is_the_same_passes() -> None:
    """A wavelength rounded in its fourth digit, statistics that are not fitted yet, and another name make no other sensor."""
    for other in (with_band(1, wavelength_um=10.3503), with_band(0, mean=None, std=None), sensor(name="other")):
        sensor().require_same(other, here="a", there="b")


def test_statistics_of_another_sensor_are_refused() -> None:
    with pytest.raises(DataError, match=r"none for window; some for infrared, which it lacks"):
        sensor().with_statistics({"red": (0.1, 1.0), "infrared": (280.0, 10.0)})


def test_a_band_without_a_wavelength_is_named() -> None:
    with pytest.raises(PartError, match=r"no wavelength_um for red"):
        with_band(0, wavelength_um=None).wavelengths_um()


def test_a_config_takes_a_name_or_the_bands() -> None:
    class Config(Strict):
        sensor: NamedSensor

    assert Config.model_validate({"sensor": "gk2a_ami"}).sensor == GK2A_AMI
    assert Config.model_validate({"sensor": sensor().model_dump()}).sensor == sensor()
    with pytest.raises(ValidationError, match="did you mean 'gk2a_ami'"):
        Config.model_validate({"sensor": "gk2a-ami"})


def test_a_known_sensor_with_another_policy() -> None:
    """What `prepare.missing=mask` makes, and the sensor that reads it, without writing sixteen bands."""

    class Config(Strict):
        sensor: NamedSensor

    given = Config.model_validate({"sensor": {"name": "gk2a_ami", "missing": "mask"}}).sensor
    assert given.differences(GK2A_AMI) == ["missing mask, there drop"]
    with pytest.raises(ValidationError, match="bands"):
        Config.model_validate({"sensor": {"name": "another", "missing": "mask"}})


def test_time_is_sine_first_by_week_and_hour() -> None:
    """Against the calendar of the standard library, over years that begin and end within an ISO week of their neighbour."""
    moments = [datetime(2020, 12, 27, 5, 59, tzinfo=UTC) + timedelta(hours=31 * step) for step in range(700)]
    expected = []
    for moment in moments:
        week, hour = moment.isocalendar().week * 2 * math.pi / 52, moment.hour * 2 * math.pi / 24
        expected.append([math.sin(week), math.cos(week), math.sin(hour), math.cos(hour)])
    given = time4(moments)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=1e-6)
    np.testing.assert_array_equal(given, time4(np.array([moment.replace(tzinfo=None) for moment in moments], dtype="datetime64[ns]")))
    before_1970 = datetime(1969, 7, 20, 20, tzinfo=UTC)
    np.testing.assert_allclose(time4([before_1970])[0, 2:], [math.sin(20 * math.pi / 12), math.cos(20 * math.pi / 12)], atol=1e-6)


def test_a_zone_counts_and_none_is_refused() -> None:
    korea = timezone(timedelta(hours=9))
    np.testing.assert_array_equal(time4([datetime(2023, 1, 2, 3, tzinfo=korea)]), time4([datetime(2023, 1, 1, 18, tzinfo=UTC)]))
    with pytest.raises(DataError, match=r"2023-01-02T03:00:00: a time without a zone"):
        time4([datetime(2023, 1, 2, 3)])


def test_place_is_in_radians_sine_first() -> None:
    np.testing.assert_allclose(latlon4([30.0], [-90.0]), [[0.5, math.sqrt(0.75), -1.0, 0.0]], atol=1e-7)
    with pytest.raises(DataError, match=r"latitude 127, longitude 37"):
        latlon4([37.0, 127.0], [127.0, 37.0])


def test_unknown_is_zeros() -> None:
    assert not time4(np.array(["NaT"], dtype="datetime64[s]")).any()
    assert not latlon4([math.nan, 37.0], [127.0, math.nan]).any()
    assert latlon4([math.nan, 37.0], [127.0, 127.0])[1].all()


def test_a_declaration_costs_no_torch() -> None:
    """Recipes are checked before anything heavy is imported."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, eyegraft.sensors; print(sorted({'torch', 'numpy'} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
