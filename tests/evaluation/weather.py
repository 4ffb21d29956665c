"""Small patch stores of made-up weather, for tests of evaluation: what each baseline can know of it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eyegraft.data.patch_rows import PatchRows, opened
from eyegraft.data.patch_store import Field, Schema
from eyegraft.data.patch_writer import write_shards

CHANNELS = ("bt_00", "reflectance_00", "sza", "dem")
SENSOR = {
    "name": "made-up",
    "gsd_m": 2000.0,
    "bands": [{"name": "ir", "wavelength_um": 10.5, "unit": "K"}, {"name": "vis", "wavelength_um": 0.64, "unit": "reflectance"}],
}
SIDE = 5
START = int(np.datetime64("2022-01-01T00", "s").astype(np.int64))


def columns(job: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Stations of different height and place; a year's and a day's course, a lapse rate, an offset of each station that nothing shows,
    weather of a few days that the first channel shows, and noise. The second channel is NaN by night."""
    rng = np.random.default_rng(job["seed"])
    stations = np.array(job["stations"])
    station = np.repeat(stations, job["times"])
    hours = np.sort(rng.choice(job["days"] * 24, (len(stations), job["times"]), replace=True), axis=1).ravel() + 24 * job["first_day"]
    height = 40.0 * (station % 23)
    latitude, longitude = 34 + (station % 7) / 2, 126 + (station % 5) / 2
    local = hours + longitude / 15
    weather = 4 * np.sin(hours / 37.0) + 3 * np.sin(hours / 91.0 + 1)
    hidden = 1.5 * np.sin(station * 12.9898)
    course = 285 - 12 * np.cos(2 * np.pi * (hours / 24 - 15) / 365.2425) - 4 * np.cos(2 * np.pi * (local - 2) / 24)
    truth = course - 0.0065 * height - 0.5 * (latitude - 35) + hidden + weather + rng.normal(0, 0.3, len(hours))
    sza = 90 + 60 * np.cos(2 * np.pi * local / 24)
    x = np.empty((len(hours), len(CHANNELS), job["side"], job["side"]), np.float32)
    x[:, 0] = (truth - hidden + rng.normal(0, 0.5, len(hours)))[:, None, None]
    x[:, 1] = np.where(sza < 88, 0.3 + 0.01 * weather, np.nan)[:, None, None]
    x[:, 2], x[:, 3] = sza[:, None, None], height[:, None, None]
    loc = np.stack([latitude, longitude, np.full(len(hours), 2000.0)], axis=1).astype(np.float32)
    return {
        "x": x,
        "y": truth.astype(np.float32),
        "timestamp": START + 3600 * hours.astype(np.int64),
        "loc": loc,
        "stn": station.astype(np.int32),
        "landcover": (station % 3).astype(np.uint8),
    }, {}


FIELDS = {
    "x": Field(dtype="float32", shape=(len(CHANNELS), SIDE, SIDE)),
    "y": Field(dtype="float32", unit="K"),
    "timestamp": Field(dtype="int64"),
    "loc": Field(dtype="float32", shape=(3,)),
    "stn": Field(dtype="int32"),
    "landcover": Field(dtype="uint8", categories=17),
}


def rows(
    folder: Path,
    split: str,
    stations: range,
    *,
    times: int = 60,
    days: int = 365,
    first_day: int = 0,
    seed: int = 0,
    side: int = SIDE,
    **facts: Any,
) -> PatchRows:
    """A split of `times` readings of each station within `days` days."""
    plain = {
        "sensor": SENSOR,
        "channels": list(CHANNELS),
        "extra": ["sza", "dem"],
        "target": {"name": "ta", "unit": "K"},
        "simulated": True,
    }
    fields = {**FIELDS, "x": Field(dtype="float32", shape=(len(CHANNELS), side, side))}
    schema = Schema(fields=fields, split=split, facts={**plain, **facts})
    job = {"stations": list(stations), "times": times, "days": days, "first_day": first_day, "seed": seed, "side": side}
    write_shards(folder / split, schema, [job], columns)
    return PatchRows(opened(folder / split))
