"""The kinds of maps: what is filled and contoured, how the dominant feature is found, and the words for it.

Twelve are classes of WeatherQA (Ma et al. 2024) and mean the same here: `bigsfc_cropped fzlv laps mcon pchg sbcp shr6 srh1 swbt tadv
thea ttd`. Six have no class there and names of our own: `pmsl` (sea level pressure), `ltmp` (low-level temperature, see README.md),
`ladv` (its advection, not that at 850 hPa), `pch6` (pressure change in six hours, not in two), `w500` (wind at 500 hPa)
and `shr5` (shear from there to 500 hPa, not to 6 km). Units are metric and degrees Celsius where SPC draws Fahrenheit and knots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WEATHERQA = (
    *("bigsfc_cropped", "effh", "epvl", "fzlv", "laps", "lclh", "lllr", "mcon", "mcsm", "pchg", "rgnlrad_cropped", "sbcp", "scp"),
    *("shr6", "srh1", "stor", "swbt", "tadv", "thea", "ttd"),
)
"""The 20 classes of WeatherQA, sorted: their ids are 0 to 19."""

Kind = Literal["pressure", "change", "contrast", "peak", "lowest"]
"""How the dominant feature is found: the larger deviation from the middle value; the larger of rise and fall; the tightest gradient; the
largest value; the smallest."""


@dataclass(frozen=True)
class Condition:
    """Attributes:
    name: class name; title: above the map; subject: what the texts call it.
    fill, levels, unit: the field in colour, and where colours change; empty: none is filled.
    lines, line_step, line_text: the field in contours.
    wind, wind_text: `<wind>_x` and `<wind>_y` are drawn as barbs.
    palette: family of colours.
    kind: how the dominant feature is found, in `judged` (else `fill`).
    signs: the two words that the feature can have: (below, above) `sign_at`; of `pressure` and `change` (minimum, maximum).
    degrees: from which size on a feature is moderate, strong; none where `signs` says it.
    feature: `{sign}` and `{level}` to the words of the second sentence; `value`: how its size is written.
    meaning: of each sign, what follows from it.
    """

    name: str
    title: str
    subject: str
    fill: str
    levels: tuple[float, ...]
    unit: str
    lines: str
    line_step: float
    line_text: str
    wind: str
    wind_text: str
    palette: Literal["temperature", "diverging", "moisture", "speed", "pressure", "none"]
    kind: Kind
    signs: tuple[str, str]
    feature: str
    value: str
    meaning: tuple[str, str]
    sign_at: float = 0.0
    degrees: tuple[float, float] | None = None
    judged: str = ""
    nothing_below: float = float("-inf")


def _range(first: float, last: float, step: float) -> tuple[float, ...]:
    return tuple(first + step * number for number in range(round((last - first) / step) + 1))


_BARBS = ("wind", "surface wind")
_LOW_BARBS = ("wind", "low-level wind")
_PRESSURE_SIGNS = ("low", "high")
_PRESSURE_MEANS = (
    "converging, rising air, with clouds and unsettled weather near the center",
    "sinking, drying air, with light wind and fair weather near the center",
)
_CHANGE_MEANS = (
    "an approaching or deepening low, toward which the wind will strengthen",
    "building high pressure and denser air behind a passing disturbance",
)

CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition(
            "pmsl",
            "MSL Pressure (hPa) and Wind",
            "mean sea level pressure",
            "pressure_hpa",
            _range(984, 1044, 4),
            "hPa",
            "pressure_hpa",
            4,
            "isobars every 4 hPa",
            *_LOW_BARBS,
            "pressure",
            "pressure",
            _PRESSURE_SIGNS,
            "{level} {sign} pressure center",
            "{value:.0f} hPa",
            _PRESSURE_MEANS,
            degrees=(6, 12),
        ),
        Condition(
            "bigsfc_cropped",
            "Surface Observations and MSL Pressure (hPa)",
            "surface station observations",
            "",
            (),
            "hPa",
            "pressure_hpa",
            2,
            "sea level pressure every 2 hPa",
            "",
            "",
            "none",
            "pressure",
            _PRESSURE_SIGNS,
            "{level} {sign} pressure center",
            "{value:.0f} hPa",
            _PRESSURE_MEANS,
            degrees=(4, 8),
            judged="pressure_hpa",
        ),
        Condition(
            "ttd",
            "Surface Temperature (C), Dewpoint (C) and Wind",
            "surface temperature and dewpoint",
            "temperature_c",
            _range(-15, 30, 5),
            "°C",
            "dewpoint_c",
            5,
            "dewpoint every 5 °C",
            *_BARBS,
            "temperature",
            "contrast",
            ("cold", "mild"),
            "{level} temperature contrast in mostly {sign} air",
            "{value:.1f} °C per 100 km",
            ("stable, shallow air near the ground, poor in moisture", "air that can hold and carry more moisture toward storms"),
            sign_at=10,
            degrees=(4, 7),
        ),
        Condition(
            "ltmp",
            "Low-Level Temperature (C) and Wind",
            "low-level temperature",
            "temperature_c",
            _range(-30, 25, 5),
            "°C",
            "temperature_c",
            5,
            "isotherms every 5 °C",
            *_LOW_BARBS,
            "temperature",
            "contrast",
            ("cold", "mild"),
            "{level} temperature contrast in mostly {sign} air",
            "{value:.1f} °C per 100 km",
            ("dense air of polar origin that hugs low ground", "air of oceanic or southern origin that resists freezing"),
            sign_at=5,
            degrees=(3, 4.5),
        ),
        Condition(
            "swbt",
            "Surface Wet-Bulb Temperature (C) and Wind",
            "surface wet-bulb temperature",
            "wet_bulb_c",
            _range(-15, 24, 3),
            "°C",
            "wet_bulb_c",
            3,
            "wet-bulb temperature every 3 °C",
            *_BARBS,
            "temperature",
            "contrast",
            ("cold", "mild"),
            "{level} wet-bulb contrast in mostly {sign} air",
            "{value:.1f} °C per 100 km",
            ("air that rain would cool to near freezing", "air in which frozen precipitation would melt before it lands"),
            sign_at=5,
            degrees=(4, 6),
        ),
        Condition(
            "pchg",
            "Two-Hour Pressure Change (hPa)",
            "two-hour pressure change",
            "change2_hpa",
            _range(-4, 4, 0.5),
            "hPa",
            "change2_hpa",
            1,
            "pressure change every 1 hPa",
            *_BARBS,
            "diverging",
            "change",
            ("falls", "rises"),
            "area of {level} pressure {sign}",
            "{value:+.1f} hPa",
            _CHANGE_MEANS,
            degrees=(1.2, 2.4),
        ),
        Condition(
            "pch6",
            "Six-Hour Pressure Change (hPa)",
            "six-hour pressure change",
            "change6_hpa",
            _range(-14, 14, 2),
            "hPa",
            "change6_hpa",
            4,
            "pressure change every 4 hPa",
            *_LOW_BARBS,
            "diverging",
            "change",
            ("falls", "rises"),
            "area of {level} pressure {sign}",
            "{value:+.1f} hPa",
            _CHANGE_MEANS,
            degrees=(5, 9),
        ),
        Condition(
            "ladv",
            "Low-Level Temperature Advection (C/3h) and Wind",
            "low-level temperature advection",
            "low_advection_k3h",
            _range(-6, 6, 1),
            "°C/3h",
            "temperature_c",
            5,
            "low-level temperature every 5 °C",
            *_LOW_BARBS,
            "diverging",
            "change",
            ("cold", "warm"),
            "area of {level} {sign} advection",
            "{value:+.1f} °C in 3 hours",
            (
                "colder air that flows in below and steadies the layer above it",
                "warmer air that flows in below and glides up over cooler air",
            ),
            degrees=(2, 4),
        ),
        Condition(
            "tadv",
            "850 hPa Temperature Advection (C/3h), Height and Wind",
            "850 hPa temperature advection",
            "advection850_k3h",
            _range(-6, 6, 1),
            "°C/3h",
            "height850_m",
            30,
            "850 hPa height every 30 m",
            "wind850",
            "850 hPa wind",
            "diverging",
            "change",
            ("cold", "warm"),
            "area of {level} {sign} advection",
            "{value:+.1f} °C in 3 hours",
            ("sinking motion and a drying lower atmosphere", "gentle ascent and a destabilizing lower atmosphere"),
            degrees=(1.5, 3),
        ),
        Condition(
            "thea",
            "Surface Theta-E Advection (K/3h), Theta-E and Wind",
            "surface theta-e advection",
            "theta_e_advection_k3h",
            _range(-12, 12, 2),
            "K/3h",
            "theta_e_k",
            5,
            "theta-e every 5 K",
            *_BARBS,
            "diverging",
            "change",
            ("negative", "positive"),
            "area of {level} {sign} theta-e advection",
            "{value:+.1f} K in 3 hours",
            ("cooler, drier inflow that robs the low levels of energy", "warmer, moister inflow that feeds energy to the low levels"),
            degrees=(3.5, 6),
        ),
        Condition(
            "mcon",
            "Surface Moisture Convergence (g/kg/3h), Mixing Ratio and Wind",
            "surface moisture convergence",
            "moisture_convergence",
            (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
            "g/kg/3h",
            "mixing_gkg",
            2,
            "mixing ratio every 2 g/kg",
            *_BARBS,
            "moisture",
            "peak",
            ("weak", "strong"),
            "{sign} moisture convergence maximum",
            "{value:.1f} g/kg in 3 hours",
            ("little gathering of moisture, and little forcing for ascent", "moisture pooling and forced ascent along a boundary"),
            sign_at=4,
        ),
        Condition(
            "w500",
            "500 hPa Wind (m/s)",
            "500 hPa wind speed",
            "speed500_ms",
            _range(10, 55, 5),
            "m/s",
            "speed500_ms",
            10,
            "wind speed every 10 m/s",
            "wind500",
            "500 hPa wind",
            "speed",
            "peak",
            ("weak", "strong"),
            "{sign} 500 hPa wind maximum",
            "{value:.0f} m/s",
            ("slow steering and little support from aloft", "a jet streak whose flanks force ascent and deepen lows"),
            sign_at=36,
        ),
        Condition(
            "shr5",
            "Low-Level to 500 hPa Shear (m/s)",
            "low-level to 500 hPa wind shear",
            "shear5_ms",
            _range(10, 55, 5),
            "m/s",
            "shear5_ms",
            10,
            "shear every 10 m/s",
            "shear5",
            "the shear vector",
            "speed",
            "peak",
            ("weak", "strong"),
            "{sign} deep shear maximum",
            "{value:.0f} m/s",
            ("updrafts that stay upright and short of organization", "updrafts that tilt and organize wherever they form"),
            sign_at=34,
        ),
        Condition(
            "shr6",
            "0-6 km Bulk Shear (m/s)",
            "0-6 km bulk shear",
            "shear6_ms",
            _range(10, 65, 5),
            "m/s",
            "shear6_ms",
            10,
            "shear every 10 m/s",
            "shear6",
            "the shear vector",
            "speed",
            "peak",
            ("weak", "strong"),
            "{sign} deep shear maximum",
            "{value:.0f} m/s",
            ("updrafts that stay upright and short of organization", "updrafts that tilt and organize wherever they form"),
            sign_at=44,
        ),
        Condition(
            "srh1",
            "0-1 km Storm Relative Helicity (m2/s2)",
            "0-1 km storm relative helicity",
            "helicity1_m2s2",
            (50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0),
            "m2/s2",
            "helicity1_m2s2",
            100,
            "helicity every 100 m2/s2",
            *_BARBS,
            "speed",
            "peak",
            ("weak", "strong"),
            "{sign} helicity maximum",
            "{value:.0f} m2/s2",
            ("low levels with little spin for updrafts to draw on", "low levels whose spin updrafts could tilt upright"),
            sign_at=180,
        ),
        Condition(
            "sbcp",
            "Surface Based CAPE (J/kg)",
            "surface-based CAPE",
            "cape_jkg",
            (25.0, 100.0, 250.0, 500.0, 1000.0, 1500.0),
            "J/kg",
            "cape_jkg",
            250,
            "CAPE every 250 J/kg",
            *_BARBS,
            "moisture",
            "peak",
            ("weak", "strong"),
            "{sign} instability maximum",
            "{value:.0f} J/kg",
            ("parcels that stay denser than the air around them", "parcels that rise on their own once lifted"),
            sign_at=100,
            nothing_below=10.0,
        ),
        Condition(
            "laps",
            "700-500 hPa Lapse Rate (C/km)",
            "700-500 hPa lapse rate",
            "lapse_kkm",
            _range(4.5, 8.5, 0.5),
            "°C/km",
            "lapse_kkm",
            1,
            "lapse rate every 1 °C/km",
            "",
            "",
            "moisture",
            "peak",
            ("weak", "strong"),
            "{sign} lapse rate maximum",
            "{value:.1f} °C per km",
            ("middle levels that dampen rising air", "middle levels that let rising air accelerate"),
            sign_at=7.5,
        ),
        Condition(
            "fzlv",
            "Freezing Level (m)",
            "freezing level height",
            "freezing_m",
            _range(0, 4000, 500),
            "m",
            "freezing_m",
            500,
            "freezing level every 500 m",
            "",
            "",
            "temperature",
            "lowest",
            ("low", "high"),
            "lowest point of a {sign} freezing level",
            "{value:.0f} m",
            ("air so cold that precipitation can reach the ground frozen", "a deep melting layer above the ground"),
            sign_at=1000,
        ),
    )
}

OF_SOURCE: dict[str, tuple[str, ...]] = {
    "storm": ("pmsl", "ltmp", "pch6", "ladv", "w500", "shr5"),
    "stations": ("bigsfc_cropped", "pmsl", "ttd", "pchg", "thea", "mcon", "swbt"),
    "model": ("pmsl", "ttd", "thea", "mcon", "swbt", "tadv", "w500", "shr6", "srh1", "sbcp", "laps", "fzlv"),
}
"""Which maps a case of each source has, in this order."""

CLASSES = (*WEATHERQA, *sorted(name for name in CONDITIONS if name not in WEATHERQA))
"""Class names by id: those of WeatherQA keep theirs, ours follow."""
