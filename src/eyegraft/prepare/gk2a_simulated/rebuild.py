"""Make `stations.csv` again: airports around Korea that report their weather, out of two public lists.

    python rebuild.py --avwx avwx_engine-1.9.10-py3-none-any.whl --weather-util stations.gz

README.md says where the two come from, and the rule by which stations are taken.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.ground import ground_at

FROM_EDGE, APART_KM, FIRST = 24, 10.0, 1001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avwx", type=Path, required=True, help="wheel of avwx-engine")
    parser.add_argument("--weather-util", type=Path, required=True, help="usr/share/weather-util/stations.gz of weather-util-data")
    given = parser.parse_args()
    with zipfile.ZipFile(given.avwx) as wheel:
        places: dict[str, dict[str, Any]] = json.loads(wheel.read("avwx/data/files/stations.json"))
    text = gzip.decompress(given.weather_util.read_bytes()).decode()
    listed = {block[:4].upper() for block in re.split(r"^\[", text, flags=re.MULTILINE) if "\nmetar = " in block}
    with Path(__file__).with_name("stations.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["station", "name", "lat", "lon", "elevation_m", "icao", "country", "source"])
        for number, row in enumerate(_chosen(places, listed), FIRST):
            writer.writerow([number, *row])


def _chosen(places: dict[str, dict[str, Any]], listed: set[str]) -> list[list[Any]]:
    grid = grid_of("ko")
    taken: list[list[Any]] = []
    pixels: list[tuple[Any, Any]] = []
    named = {place["icao"] or place["gps"] or key: place for key, place in places.items()}
    for code, place in sorted(named.items()):
        if not (place["reporting"] or code in listed) or place["elevation_m"] is None or place["latitude"] is None:
            continue
        column, row = grid.to_pixel(place["longitude"], place["latitude"])
        if grid.missing(column, row, margin=FROM_EDGE)[0] or not ground_at(place["longitude"], place["latitude"]).land:
            continue
        if any(np.hypot(column - x, row - y) * grid.step_m < 1000 * APART_KM for x, y in pixels):
            continue
        pixels.append((column, row))
        lists = [name for name, there in (("avwx", place["reporting"]), ("weather-util", code in listed)) if there]
        position = [round(place[name], 4) for name in ("latitude", "longitude")]
        taken.append([place["name"], *position, place["elevation_m"], code, place["country"], "+".join(lists)])
    return taken


if __name__ == "__main__":
    main()
