"""The sixteen bands of AMI: counts to radiance, reflectance and brightness temperature, and back.

Formulas and constants: National Meteorological Satellite Center (Korea), "GK-2A AMI Level 1B data user's guide" and its calibration table
v3.0. A file that carries its own coefficients is read with these; the table stands in for a file that carries none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eyegraft.errors import DataError

Floats = NDArray[np.float32]

PLANCK, LIGHT, BOLTZMANN = 6.62606957e-34, 299_792_458.0, 1.3806488e-23  # CODATA 2010, in SI, as in the files
_PER_WAVENUMBER = 1e-5  # mW m-2 sr-1 (cm-1)-1 to W m-2 sr-1 (m-1)-1
CALIBRATION_TABLE: Final = "calibration table v3.0"


@dataclass(frozen=True)
class Calibration:
    """Coefficients of one band.

    Attributes:
        gain, offset: radiance = gain x count + offset.
        albedo: reflectance = albedo x radiance; None in the infrared.
        wavenumber: central, in cm-1; 0 in the visible.
        tbb: c0, c1, c2 of brightness temperature = c0 + c1 Teff + c2 Teff².
        planck, light, boltzmann: constants in SI.
        source: where the coefficients come from.
    """

    gain: float
    offset: float
    albedo: float | None = None
    wavenumber: float = 0.0
    tbb: tuple[float, float, float] = (0.0, 1.0, 0.0)
    planck: float = PLANCK
    light: float = LIGHT
    boltzmann: float = BOLTZMANN
    source: str = CALIBRATION_TABLE


@dataclass(frozen=True)
class Band:
    """One band of AMI.

    Attributes:
        name: as in the files' global attribute `channel_name`, `VI004` and so on; lower case without the zeros in file names.
        wavelength_um: centre.
        bits: valid low bits of a pixel value; the two highest bits of the 16 are the quality.
        resolution_m: of the full-resolution file at the sub-satellite point.
        table: coefficients of the calibration table.
    """

    name: str
    wavelength_um: float
    bits: int
    resolution_m: int
    table: Calibration

    @property
    def is_infrared(self) -> bool:
        return self.table.albedo is None


def _visible(name: str, um: float, bits: int, resolution_m: int, gain: float, offset: float, albedo: float) -> Band:
    return Band(name, um, bits, resolution_m, Calibration(gain, offset, albedo))


def _warm(name: str, um: float, bits: int, nu: float, gain: float, offset: float, c0: float, c1: float, c2: float) -> Band:
    return Band(name, um, bits, 2000, Calibration(gain, offset, None, nu, (c0, c1, c2)))


REFLECTANCE: Final = (
    _visible("VI004", 0.4702, 11, 1000, 0.363545805215835, -7.27090454101562, 0.0015582450),
    _visible("VI005", 0.5086, 11, 1000, 0.343625485897064, -6.87249755859375, 0.0016595767),
    _visible("VI006", 0.6394, 12, 500, 0.154856294393539, -6.19424438476562, 0.0019244840),
    _visible("VI008", 0.8630, 13, 1000, 0.0457241721451282, -3.65792846679687, 0.0032723873),
    _visible("NR013", 1.3740, 12, 2000, 0.0346878096461296, -1.38751220703125, 0.0087081313),
    _visible("NR016", 1.6092, 11, 2000, 0.0498007982969284, -0.996017456054687, 0.0129512876),
)
"""The six reflected bands, in the order of a scene."""

BRIGHTNESS: Final = (
    _warm("SW038", 3.8, 14, 2612.67737352111, -0.00108296517282724, 17.699987411499, -0.447843939824124, 1.00065568090389, -6.33824e-8),
    _warm("WV063", 6.2, 12, 1617.60924253134, -0.0108914673328399, 44.1777038574218, -1.76279494011147, 1.00414910562278, -9.83311e-7),
    _warm("WV069", 6.9, 13, 1441.57542876017, -0.00818779878318309, 66.7480773925781, -0.334311414359106, 1.00097359874468, -4.94603e-7),
    _warm("WV073", 7.3, 13, 1365.24999202444, -0.0096982717514038, 79.0608520507812, -0.06131248596966, 1.00019008722941, -1.05864e-7),
    _warm("IR087", 8.6, 13, 1164.94939285634, -0.0144806550815701, 118.050903320312, -0.141418528203155, 1.00052232906885, -3.62873e-7),
    _warm("IR096", 9.6, 13, 1039.96021677611, -0.0178435463458299, 145.464874267578, -0.114017728158198, 1.00047380585402, -3.74932e-7),
    _warm("IR105", 10.4, 13, 966.153383926055, -0.0198196955025196, 161.580139160156, -0.142866448475177, 1.00064069572049, -5.50443e-7),
    _warm("IR112", 11.2, 13, 891.71305730126, -0.0216744858771562, 176.713439941406, -0.249111718496148, 1.00121166873756, -1.13168e-6),
    _warm("IR123", 12.3, 13, 810.60900787123, -0.0233799722045666, 190.649627685546, -0.458113885722738, 1.00245520975535, -2.53064e-6),
    _warm("IR133", 13.3, 13, 753.590621482278, -0.0243037566542625, 198.224365234375, -0.093852156852766, 1.00053982112966, -5.94914e-7),
)
"""The ten infrared bands, in the order of a scene."""

BANDS: Final = {band.name: band for band in (*BRIGHTNESS, *REFLECTANCE)}

_ATTRIBUTES = ("DN_to_Radiance_Gain", "DN_to_Radiance_Offset")


def calibration_of(band: Band, attributes: Mapping[str, Any], place: str = "") -> Calibration:
    """The coefficients that a file carries, or the table's where it carries none.

    Args:
        attributes: global attributes of the file. The central wavenumber of a band is always the table's: files do not carry it in cm-1.
        place: the file, for messages.

    Raises:
        DataError: a file with some of its coefficients, or with numbers that are none.
    """
    wanted = (*_ATTRIBUTES, *(("Teff_to_Tbb_c0", "Teff_to_Tbb_c1", "Teff_to_Tbb_c2") if band.is_infrared else ("Radiance_to_Albedo_c",)))
    there = [name for name in wanted if name in attributes]
    if not there:
        return band.table
    try:
        values = [float(np.asarray(attributes[name]).reshape(-1)[0]) for name in wanted]
        constants = [
            float(np.asarray(attributes.get(name, default)).reshape(-1)[0])
            for name, default in (("Plank_constant_h", PLANCK), ("light_speed", LIGHT), ("Boltzmann_constant_k", BOLTZMANN))
        ]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"{place}: calibration attributes {', '.join(there)}, but {error}",
            f"all of {', '.join(wanted)}, or none of them",
            "download the file again",
        ) from None
    if not np.isfinite([*values, *constants]).all() or values[0] == 0:
        raise DataError(f"{place}: {dict(zip(wanted, values, strict=True))}", "finite coefficients and a gain", "download the file again")
    h, c, k = constants
    if band.is_infrared:
        return Calibration(values[0], values[1], None, band.table.wavenumber, (values[2], values[3], values[4]), h, c, k, "the file")
    return Calibration(values[0], values[1], values[2], source="the file")


def to_values(band: Band, counts: NDArray[Any], calibration: Calibration | None = None) -> Floats:
    """Counts to reflectance (0 to about 1, not normalised by the sun's height) or brightness temperature in kelvin, float32.

    Every possible count is computed once and looked up, so that the formula costs nothing. An infrared radiance of 0 or less has no
    temperature and gives NaN; a reflected one below 0 is the dark signal and gives 0.
    """
    used = calibration or band.table
    every = np.arange(2**band.bits, dtype=np.float64)
    radiance = used.gain * every + used.offset
    if used.albedo is not None:
        table = np.maximum(radiance * used.albedo, 0)
    else:
        h, c, k, nu = used.planck, used.light, used.boltzmann, 100 * used.wavenumber
        with np.errstate(divide="ignore", invalid="ignore"):
            teff = (h * c * nu / k) / np.log(2 * h * c**2 * nu**3 / (radiance * _PER_WAVENUMBER) + 1)
            c0, c1, c2 = used.tbb
            table = np.where(radiance > 0, c0 + c1 * teff + c2 * teff**2, np.nan)
    found: Floats = table.astype(np.float32)[counts]
    return found


def radiance_of(band: Band, kelvin: NDArray[np.floating[Any]], calibration: Calibration | None = None) -> NDArray[np.float64]:
    """Brightness temperature in kelvin to radiance in mW m-2 sr-1 (cm-1)-1: the inverse of `to_values` in the infrared."""
    used = calibration or band.table
    c0, c1, c2 = used.tbb
    teff = (-c1 + np.sqrt(c1**2 - 4 * c2 * (c0 - np.asarray(kelvin, np.float64)))) / (2 * c2) if c2 else (kelvin - c0) / c1
    h, c, k, nu = used.planck, used.light, used.boltzmann, 100 * used.wavenumber
    found: NDArray[np.float64] = 2 * h * c**2 * nu**3 / (np.exp(h * c * nu / (k * teff)) - 1) / _PER_WAVENUMBER
    return found


def to_counts(band: Band, radiance: NDArray[np.floating[Any]], calibration: Calibration | None = None) -> NDArray[np.uint16]:
    """Radiance to the nearest count that the band can store."""
    used = calibration or band.table
    counts = np.rint((np.asarray(radiance) - used.offset) / used.gain)
    return np.clip(counts, 0, 2**band.bits - 1).astype(np.uint16)
