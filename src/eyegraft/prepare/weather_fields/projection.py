"""The map projection of the windows, and of the model's grid: Lambert's conformal conic on a sphere (Snyder 1987, USGS PP 1395, p. 106)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

EARTH_KM = 6371.229
"""Radius of the sphere that NCEP's grids stand on."""


@dataclass(frozen=True)
class Lambert:
    """Attributes:
    lon0, lat0: degrees, where x = y = 0 km.
    lat1, lat2: the parallels that keep their length.
    """

    lon0: float
    lat0: float
    lat1: float
    lat2: float

    @property
    def cone(self) -> float:
        """By how much meridians lean: the map's north turns this many degrees for each degree of longitude."""
        if self.lat1 == self.lat2:
            return float(np.sin(np.radians(self.lat1)))
        first, second = np.radians([self.lat1, self.lat2])
        ratio = np.tan(np.pi / 4 + second / 2) / np.tan(np.pi / 4 + first / 2)
        return float(np.log(np.cos(first) / np.cos(second)) / np.log(ratio))

    def _radius(self, lat: Any) -> Any:
        cone, first = self.cone, np.radians(self.lat1)
        factor = np.cos(first) * np.tan(np.pi / 4 + first / 2) ** cone / cone
        return EARTH_KM * factor / np.tan(np.pi / 4 + np.radians(lat) / 2) ** cone

    def to_km(self, lon: Any, lat: Any) -> tuple[Any, Any]:
        """Degrees to (x, y) in km, x eastward and y northward at the origin."""
        angle = np.radians(self.cone * (np.asarray(lon) - self.lon0))
        radius = self._radius(np.asarray(lat))
        return radius * np.sin(angle), self._radius(self.lat0) - radius * np.cos(angle)

    def to_degrees(self, x: Any, y: Any) -> tuple[Any, Any]:
        """(x, y) in km to (lon, lat) in degrees."""
        cone, first = self.cone, np.radians(self.lat1)
        above = self._radius(self.lat0) - np.asarray(y)
        radius, angle = np.hypot(x, above), np.arctan2(x, above)
        factor = np.cos(first) * np.tan(np.pi / 4 + first / 2) ** cone / cone
        lat = 2 * np.arctan((EARTH_KM * factor / radius) ** (1 / cone)) - np.pi / 2
        return self.lon0 + np.degrees(angle) / cone, np.degrees(lat)

    def to_map(self, east: Any, north: Any, lon: Any) -> tuple[Any, Any]:
        """Components of a wind along the map's x and y, from those along east and north."""
        lean = np.radians(self.cone * (np.asarray(lon) - self.lon0))
        return east * np.cos(lean) - north * np.sin(lean), east * np.sin(lean) + north * np.cos(lean)

    def to_earth(self, along_x: Any, along_y: Any, lon: Any) -> tuple[Any, Any]:
        """The inverse of `to_map`."""
        lean = np.radians(self.cone * (np.asarray(lon) - self.lon0))
        return along_x * np.cos(lean) + along_y * np.sin(lean), along_y * np.cos(lean) - along_x * np.sin(lean)


MAP = Lambert(-96.0, 38.5, 33.0, 45.0)
"""What all windows are cut from; x and y below are its kilometres."""

AWIPS_211 = Lambert(-95.0, 25.0, 25.0, 25.0)
"""NCEP's grid 211: 93 x 65 points, 81.271 km apart, the first at 226.541 E, 12.19 N."""
