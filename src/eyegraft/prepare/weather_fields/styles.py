"""How maps are drawn: colours, lines, where titles and colour bars stand. What is tested is drawn in a style that was never learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """Attributes:
    paper, ink, border, grid, line, barb: colours of the ground, of words, of outlines, of the graticule, of contours and of barbs.
    ramps: family -> colours from the lowest to the highest; of `diverging` the middle one is zero.
    bar: where the colour bar stands; title: above or below the map.
    wind: barbs or arrows; every: pixels between them.
    line_width, labels: of contours.
    """

    paper: Colour
    ink: Colour
    border: Colour
    grid: Colour | None
    line: Colour
    barb: Colour
    ramps: dict[str, tuple[Colour, ...]]
    bar: Literal["right", "bottom"]
    title: Literal["above", "below"]
    wind: Literal["barbs", "arrows"]
    every: int = 40
    line_width: int = 1
    labels: bool = True


_RAINBOW = ((120, 60, 170), (60, 80, 210), (60, 170, 230), (70, 190, 90), (230, 220, 60), (240, 140, 40), (210, 40, 40))
_RED_BLUE = ((30, 70, 170), (130, 175, 225), (245, 245, 245), (240, 165, 130), (175, 20, 40))
_GREENS = ((245, 245, 235), (190, 225, 170), (100, 185, 110), (30, 130, 80), (10, 80, 90))
_HEAT = ((255, 250, 225), (250, 215, 120), (245, 150, 60), (205, 60, 40), (110, 20, 70))
_HAZE = ((205, 215, 240), (225, 235, 235), (245, 240, 215), (235, 205, 170))

STYLES: dict[str, Style] = {
    "paper": Style(
        (255, 255, 255),
        (20, 20, 20),
        (110, 110, 110),
        None,
        (20, 60, 150),
        (150, 90, 20),
        {"temperature": _RAINBOW, "diverging": _RED_BLUE, "moisture": _GREENS, "speed": _HEAT, "pressure": _HAZE},
        "bottom",
        "below",
        "barbs",
    ),
    "atlas": Style(
        (250, 247, 238),
        (40, 35, 30),
        (90, 70, 55),
        (215, 205, 190),
        (70, 50, 40),
        (30, 30, 30),
        {
            "temperature": (
                (70, 50, 130),
                (70, 120, 190),
                (140, 200, 210),
                (245, 240, 200),
                (245, 190, 100),
                (225, 100, 60),
                (150, 30, 40),
            ),
            "diverging": ((20, 110, 110), (130, 200, 190), (246, 243, 235), (222, 180, 120), (140, 80, 20)),
            "moisture": ((245, 235, 215), (200, 215, 170), (130, 185, 150), (60, 140, 150), (30, 80, 130)),
            "speed": ((240, 240, 225), (190, 205, 230), (130, 150, 205), (110, 80, 165), (75, 20, 105)),
            "pressure": ((200, 220, 225), (225, 232, 220), (245, 238, 210), (236, 214, 170)),
        },
        "right",
        "above",
        "barbs",
        every=44,
    ),
    "night": Style(
        (24, 28, 38),
        (225, 228, 235),
        (165, 170, 180),
        None,
        (240, 240, 200),
        (210, 215, 225),
        {
            "temperature": ((90, 40, 140), (40, 70, 170), (30, 130, 160), (60, 140, 80), (180, 160, 50), (190, 95, 35), (150, 30, 35)),
            "diverging": ((40, 110, 200), (40, 75, 125), (34, 38, 48), (125, 60, 45), (215, 80, 50)),
            "moisture": ((34, 44, 44), (35, 85, 65), (45, 130, 80), (95, 180, 95), (190, 225, 130)),
            "speed": ((40, 40, 60), (75, 50, 110), (140, 60, 120), (205, 90, 90), (245, 175, 90)),
            "pressure": ((50, 60, 90), (55, 75, 85), (75, 80, 65), (95, 80, 55)),
        },
        "right",
        "below",
        "barbs",
        labels=False,
    ),
    "bulletin": Style(
        (238, 242, 246),
        (10, 30, 60),
        (60, 80, 110),
        (205, 214, 224),
        (0, 0, 0),
        (90, 20, 90),
        {
            "temperature": ((50, 20, 90), (20, 90, 160), (60, 170, 160), (190, 225, 110), (255, 220, 90), (250, 130, 60), (190, 20, 60)),
            "diverging": ((100, 30, 140), (190, 160, 215), (243, 244, 246), (150, 205, 150), (20, 110, 50)),
            "moisture": ((238, 242, 246), (180, 215, 235), (110, 175, 220), (50, 115, 190), (30, 50, 120)),
            "speed": ((238, 242, 246), (190, 230, 200), (240, 230, 120), (245, 150, 80), (200, 30, 60)),
            "pressure": ((190, 200, 230), (215, 222, 235), (238, 236, 228), (240, 222, 205)),
        },
        "bottom",
        "above",
        "arrows",
        line_width=2,
        labels=False,
    ),
    "fax": Style(
        (252, 252, 250),
        (0, 0, 0),
        (130, 130, 130),
        (225, 225, 225),
        (60, 0, 0),
        (0, 90, 60),
        {
            "temperature": (
                (40, 90, 200),
                (110, 160, 225),
                (190, 215, 235),
                (250, 250, 240),
                (245, 200, 160),
                (225, 130, 100),
                (180, 50, 50),
            ),
            "diverging": ((0, 90, 150), (150, 195, 220), (252, 252, 250), (245, 190, 200), (190, 30, 90)),
            "moisture": ((252, 252, 250), (225, 235, 190), (175, 205, 120), (115, 160, 60), (60, 100, 30)),
            "speed": ((252, 252, 250), (225, 220, 200), (200, 175, 130), (150, 110, 70), (85, 50, 30)),
            "pressure": ((215, 228, 240), (232, 238, 240), (248, 244, 232), (242, 228, 214)),
        },
        "bottom",
        "below",
        "barbs",
        every=36,
    ),
    "slate": Style(
        (228, 230, 228),
        (25, 40, 35),
        (70, 75, 75),
        None,
        (35, 35, 90),
        (60, 30, 20),
        {
            "temperature": ((75, 60, 150), (60, 130, 195), (110, 195, 195), (200, 220, 150), (245, 205, 95), (235, 125, 70), (165, 35, 55)),
            "diverging": ((45, 65, 150), (150, 165, 210), (228, 230, 228), (230, 160, 120), (170, 45, 30)),
            "moisture": ((228, 230, 228), (180, 210, 185), (115, 175, 140), (50, 125, 110), (20, 70, 80)),
            "speed": ((228, 230, 228), (240, 215, 150), (235, 160, 90), (190, 80, 70), (100, 35, 85)),
            "pressure": ((195, 205, 225), (215, 222, 225), (235, 230, 212), (230, 210, 185)),
        },
        "right",
        "below",
        "barbs",
        every=42,
        line_width=2,
    ),
}
