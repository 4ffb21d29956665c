"""How maps are drawn: colours, lines, where titles and colour bars stand. What is tested is drawn in a style that was never learned.

Colours differ, what they mean does not, as on maps of weather services: cold, falling and low are cool colours, warm, rising and high are
warm ones, and more of something is darker.
"""

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


STYLES: dict[str, Style] = {
    "paper": Style(
        (255, 255, 255),
        (20, 20, 20),
        (110, 110, 110),
        None,
        (20, 60, 150),
        (150, 90, 20),
        {
            "temperature": ((120, 60, 170), (60, 80, 210), (60, 170, 230), (110, 200, 110), (235, 225, 80), (240, 140, 40), (210, 40, 40)),
            "diverging": ((30, 70, 170), (130, 175, 225), (248, 248, 248), (240, 165, 130), (175, 20, 40)),
            "moisture": ((250, 250, 240), (195, 228, 175), (105, 190, 115), (30, 130, 80), (10, 80, 90)),
            "speed": ((255, 250, 225), (250, 215, 120), (245, 150, 60), (205, 60, 40), (110, 20, 70)),
            "pressure": ((80, 110, 190), (160, 190, 225), (240, 240, 235), (240, 205, 140), (205, 130, 60)),
        },
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
                (225, 235, 190),
                (245, 200, 110),
                (225, 100, 60),
                (150, 30, 40),
            ),
            "diverging": ((20, 90, 130), (130, 190, 205), (246, 243, 235), (228, 170, 110), (160, 65, 20)),
            "moisture": ((248, 240, 222), (205, 218, 175), (130, 185, 150), (60, 140, 150), (30, 80, 130)),
            "speed": ((246, 242, 228), (235, 200, 170), (215, 140, 130), (165, 70, 110), (85, 20, 85)),
            "pressure": ((60, 120, 150), (150, 195, 205), (240, 236, 220), (228, 190, 140), (170, 110, 60)),
        },
        "right",
        "above",
        "barbs",
        every=44,
    ),
    "river": Style(
        (236, 242, 240),
        (15, 45, 50),
        (85, 110, 110),
        None,
        (90, 20, 60),
        (20, 70, 110),
        {
            "temperature": ((80, 40, 150), (30, 100, 190), (60, 180, 200), (150, 215, 160), (240, 225, 110), (245, 130, 70), (185, 20, 70)),
            "diverging": ((50, 50, 160), (150, 160, 225), (238, 242, 241), (240, 160, 160), (180, 25, 70)),
            "moisture": ((236, 242, 240), (185, 222, 205), (110, 190, 180), (40, 135, 150), (15, 75, 110)),
            "speed": ((236, 242, 240), (225, 215, 150), (225, 165, 80), (180, 90, 50), (95, 40, 40)),
            "pressure": ((70, 90, 170), (155, 175, 220), (232, 238, 235), (240, 190, 150), (200, 105, 80)),
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
            "temperature": ((50, 20, 90), (20, 90, 160), (80, 180, 180), (190, 225, 130), (255, 220, 90), (250, 130, 60), (190, 20, 60)),
            "diverging": ((15, 100, 160), (140, 195, 225), (243, 244, 246), (250, 185, 120), (200, 80, 10)),
            "moisture": ((238, 242, 246), (180, 215, 235), (110, 175, 220), (50, 115, 190), (30, 50, 120)),
            "speed": ((238, 242, 246), (240, 225, 150), (245, 170, 90), (220, 80, 70), (130, 10, 60)),
            "pressure": ((60, 105, 185), (150, 185, 225), (238, 240, 240), (245, 205, 150), (215, 140, 80)),
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
            "temperature": ((90, 50, 160), (40, 90, 200), (110, 175, 225), (200, 225, 200), (245, 215, 140), (225, 130, 90), (180, 50, 50)),
            "diverging": ((0, 80, 150), (150, 190, 225), (252, 252, 250), (245, 180, 165), (190, 35, 60)),
            "moisture": ((252, 252, 250), (215, 232, 190), (155, 205, 130), (85, 155, 80), (40, 95, 60)),
            "speed": ((252, 252, 250), (240, 210, 170), (220, 155, 110), (180, 85, 70), (105, 35, 45)),
            "pressure": ((75, 120, 180), (165, 195, 225), (245, 244, 238), (240, 210, 165), (205, 140, 85)),
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
            "pressure": ((85, 105, 165), (160, 180, 210), (228, 228, 220), (230, 195, 140), (190, 125, 75)),
        },
        "right",
        "below",
        "barbs",
        every=42,
        line_width=2,
    ),
}
