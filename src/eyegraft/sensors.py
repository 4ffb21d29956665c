"""What a sensor measures, declared once: bands with wavelength, unit and statistics, ground sampling distance, what missing pixels do.

The declaration is written into every artefact (prepared data, checkpoints, maps); `require_same` refuses to put artefacts of different
sensors together. Below it, time and place as the four numbers each that encoders of satellite patches take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from eyegraft.config import Rate, Strict
from eyegraft.errors import DataError, PartError, nearest, shown

if TYPE_CHECKING:  # recipes are read without paying for numpy
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

_LONGEST_UM = 100.0
_SAME_WAVELENGTH = 1e-3  # relative: tables of one instrument round differently
_SAME_NUMBER = 1e-6  # relative, for what was written as text once


class Band(Strict):
    """Attributes:
    name: unique within its sensor.
    wavelength_um: of the band's centre, in micrometres; None for a map that is no radiation, which encoders by wavelength refuse.
    unit: of the stored pixels, `K` for brightness temperature, `reflectance`, or any other word.
    mean, std: of the training pixels, in that unit; None until they are fitted.
    """

    name: Annotated[str, Field(min_length=1)]
    wavelength_um: Rate | None = None
    unit: Annotated[str, Field(min_length=1)]
    mean: float | None = None
    std: Rate | None = None

    @model_validator(mode="after")
    def _micrometres(self) -> Band:
        if self.wavelength_um is not None and self.wavelength_um > _LONGEST_UM:
            raise ValueError(
                f"band {self.name}: wavelength_um is {self.wavelength_um:g}, which reads like nanometres; "
                f"write micrometres: {self.wavelength_um / 1000:g}"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"band {self.name}: mean and std stand together: give both or neither")
        return self


class Sensor(Strict):
    """Attributes:
    name: what messages call it.
    bands: in the order of the channels of a patch.
    gsd_m: ground sampling distance, the side of a pixel in metres.
    missing: a patch with missing pixels is dropped when patches are made, or kept with a mask that says which pixels were measured.
    """

    name: Annotated[str, Field(min_length=1)]
    bands: tuple[Band, ...]
    gsd_m: Rate
    missing: Literal["drop", "mask"] = "drop"

    @model_validator(mode="after")
    def _each_band_once(self) -> Sensor:
        if not self.bands:
            raise ValueError(f"sensor {self.name} has no bands")
        doubled = sorted({name for name in self.band_names if self.band_names.count(name) > 1})
        if doubled:
            raise ValueError(f"sensor {self.name}: {shown(doubled)} stands there twice; each band has a name of its own")
        return self

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    def wavelengths_um(self) -> tuple[float, ...]:
        """Of all bands, in order.

        Raises:
            PartError: a band has none.
        """
        without = [band.name for band in self.bands if band.wavelength_um is None]
        if without:
            raise PartError(
                f"sensor {self.name}: no wavelength_um for {shown(without)}",
                "bands of radiation, for an encoder that reads wavelengths",
                "name maps without a wavelength under extra_channels, or choose another encoder",
            )
        return tuple(band.wavelength_um for band in self.bands if band.wavelength_um is not None)

    def with_statistics(self, statistics: Mapping[str, tuple[float, float]]) -> Sensor:
        """The same sensor with the mean and standard deviation of each band's training pixels.

        Args:
            statistics: band -> (mean, std) in the band's unit.

        Raises:
            DataError: they are of other bands than this sensor's.
        """
        missing = [name for name in self.band_names if name not in statistics]
        unknown = [name for name in statistics if name not in self.band_names]
        if missing or unknown:
            parts = [f"none for {shown(missing)}"] * bool(missing) + [f"some for {shown(unknown)}, which it lacks"] * bool(unknown)
            raise DataError(
                f"statistics that do not fit sensor {self.name}: {'; '.join(parts)}",
                f"mean and std of {shown(self.band_names, 20)}",
                "fit them on the training split of this sensor's patches",
            )
        bands = [{**band.model_dump(), "mean": statistics[band.name][0], "std": statistics[band.name][1]} for band in self.bands]
        return Sensor.model_validate({**self.model_dump(), "bands": bands})

    def differences(self, other: Sensor) -> list[str]:
        """What differs from another sensor, one line each: `band IR105: wavelength_um 10.35, there 10.8`. Names of sensors do not count,
        nor statistics that only one of them has."""
        found = [
            f"{key} {mine}, there {theirs}"
            for key, mine, theirs in (("gsd_m", self.gsd_m, other.gsd_m), ("missing", self.missing, other.missing))
            if not _same(mine, theirs, _SAME_NUMBER)
        ]
        if set(self.band_names) != set(other.band_names):
            only_here = [name for name in self.band_names if name not in other.band_names]
            only_there = [name for name in other.band_names if name not in self.band_names]
            found += [f"bands only here: {shown(only_here, 20)}"] * bool(only_here)
            found += [f"bands only there: {shown(only_there, 20)}"] * bool(only_there)
        elif self.band_names != other.band_names:
            found.append(f"bands in the order {shown(self.band_names, 20)}, there {shown(other.band_names, 20)}")
        theirs_by_name = {band.name: band for band in other.bands}
        for band in self.bands:
            if band.name in theirs_by_name:
                found += _band_differences(band, theirs_by_name[band.name])
        return found

    def require_same(self, other: Sensor, *, here: str, there: str) -> None:
        """Raise a `PartError` with every difference unless the two are the same sensor.

        Args:
            here, there: whose sensors they are, for the message: `the checkpoint runs/…`, `the patches in …`.
        """
        lines = self.differences(other)
        if lines:
            raise PartError(
                f"sensor {self.name} of {here} is not sensor {other.name} of {there}:\n" + "\n".join(f"    {line}" for line in lines),
                "one sensor: the same bands in the same order, wavelengths, units, statistics and gsd_m",
                "make the patches anew with this sensor, or train on those patches",
            )


def _band_differences(band: Band, other: Band) -> list[str]:
    found = []
    for key, tolerance in (("wavelength_um", _SAME_WAVELENGTH), ("unit", 0.0), ("mean", _SAME_NUMBER), ("std", _SAME_NUMBER)):
        mine, theirs = getattr(band, key), getattr(other, key)
        unfitted = key in ("mean", "std") and (mine is None or theirs is None)
        if not unfitted and not _same(mine, theirs, tolerance):
            found.append(f"band {band.name}: {key} {_written(mine)}, there {_written(theirs)}")
    return found


def _same(mine: Any, theirs: Any, tolerance: float) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=tolerance, abs_tol=1e-12)
    return bool(mine == theirs)


def _written(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ── sensors that are known by name ───────────────────────────────────────────────────────────────────────────────────────────────

# Centres of the infrared bands of GK-2A AMI as wavenumbers in 1/cm, calibration table 3.0 of the National Meteorological Satellite Center
_AMI_WAVENUMBERS = {
    "SW038": 2612.67737352111,
    "WV063": 1617.60924253134,
    "WV069": 1441.57542876017,
    "WV073": 1365.24999202444,
    "IR087": 1164.94939285634,
    "IR096": 1039.96021677611,
    "IR105": 966.153383926055,
    "IR112": 891.71305730126,
    "IR123": 810.60900787123,
    "IR133": 753.590621482278,
}
_AMI_WAVELENGTHS_UM = {"VI004": 0.4702, "VI005": 0.5086, "VI006": 0.6394, "VI008": 0.8630, "NR013": 1.374, "NR016": 1.6092}

GK2A_AMI = Sensor(
    name="gk2a_ami",
    bands=(  # brightness temperatures first, as the patches have them
        *(Band(name=name, wavelength_um=10_000 / number, unit="K") for name, number in _AMI_WAVENUMBERS.items()),
        *(Band(name=name, wavelength_um=length, unit="reflectance") for name, length in _AMI_WAVELENGTHS_UM.items()),
    ),
    gsd_m=2000.0,
)
"""All 16 bands of GK-2A's Advanced Meteorological Imager on its 2 km grid, without statistics."""

KNOWN = {sensor.name: sensor for sensor in (GK2A_AMI,)}


def _by_name(given: Any) -> Any:
    if isinstance(given, str):
        if given not in KNOWN:
            raise ValueError(
                "; ".join(filter(None, [f"a known sensor ({', '.join(KNOWN)}) or its bands written out", nearest(given, KNOWN)]))
            )
        return KNOWN[given]
    if isinstance(given, Mapping) and "bands" not in given and given.get("name") in KNOWN:
        return {**KNOWN[given["name"]].model_dump(), **given}
    return given


NamedSensor = Annotated[Sensor, BeforeValidator(_by_name)]
"""A field of a part's `Config`: a sensor written out, the name of a known one, or that name with what differs ({name, missing})."""


# ── time and place ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def time4(moments: Sequence[datetime] | NDArray[np.datetime64]) -> NDArray[np.float32]:
    """Season and hour: [B] moments -> [B, 4] = [sin w, cos w, sin h, cos h], w = ISO week · 2π/52 and h = hour · 2π/24, in UTC.

    **Sine first**, unlike the seven numbers `time7` of older patch files ([doy_cos, doy_sin, hour_cos, hour_sin, …]), which count days and
    not weeks as well: do not cut these out of those. An unknown moment (NaT) gives four zeros, as Clay was trained with.

    Args:
        moments: datetimes with a time zone, or a `datetime64` array, which is taken to be UTC.

    Raises:
        DataError: a datetime without a time zone: Korean stations write KST, satellites UTC, nine hours apart.
    """
    import numpy as np

    if not isinstance(moments, np.ndarray):
        naive = [moment for moment in moments if moment.tzinfo is None]
        if naive:
            raise DataError(
                f"{naive[0].isoformat()}: a time without a zone",
                "datetimes that say their zone",
                "datetime.replace(tzinfo=UTC), or the zone of the station: KST is UTC+9",
            )
        moments = np.array([moment.astimezone(UTC).replace(tzinfo=None) for moment in moments], dtype="datetime64[s]")
    unknown = np.isnat(moments)
    known = np.where(unknown, np.datetime64(0, "s"), moments).astype("datetime64[s]")
    days = known.astype("datetime64[D]").astype(np.int64)
    thursdays = (days - (days + 3) % 7 + 3).astype("datetime64[D]")  # an ISO week belongs to the year of its Thursday
    weeks = (thursdays - thursdays.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) // 7 + 1
    hours = known.astype("datetime64[h]").astype(np.int64) % 24
    week, hour = weeks * (2 * np.pi / 52), hours * (2 * np.pi / 24)
    return _zeroed(np.stack([np.sin(week), np.cos(week), np.sin(hour), np.cos(hour)], axis=-1), unknown)


def latlon4(lat: ArrayLike, lon: ArrayLike) -> NDArray[np.float32]:
    """Place: degrees north and east [B] -> [B, 4] = [sin lat, cos lat, sin lon, cos lon]. An unknown place (NaN) gives four zeros.

    Raises:
        DataError: a latitude beyond 90 or a longitude beyond 360 degrees.
    """
    import numpy as np

    north, east = np.broadcast_arrays(np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64))
    beyond = (np.abs(north) > 90) | (np.abs(east) > 360)
    if beyond.any():
        place = np.argmax(beyond)
        raise DataError(
            f"latitude {north.flat[place]:g}, longitude {east.flat[place]:g}", "degrees, latitude first", "check which column is which"
        )
    unknown = np.isnan(north) | np.isnan(east)
    north, east = np.radians(np.where(unknown, 0, north)), np.radians(np.where(unknown, 0, east))
    return _zeroed(np.stack([np.sin(north), np.cos(north), np.sin(east), np.cos(east)], axis=-1), unknown)


def _zeroed(values: NDArray[np.float64], unknown: NDArray[np.bool_]) -> NDArray[np.float32]:
    values[unknown] = 0
    return values.astype("float32")
