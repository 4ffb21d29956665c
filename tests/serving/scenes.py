"""A small simulated world of GK-2A scenes and stations, and a run trained on it for a moment: made once for all tests that ask for it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cli.running import kept_registry
from eyegraft import load_recipe, train
from eyegraft.prepare import gk2a
from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.patches import build_patches
from eyegraft.prepare.gk2a.simulate import read_stations_at, write_asos, write_scene

BOX = (126.75, 127.45, 36.75, 37.25)
SEED = 3
TIMES = [datetime(*when, tzinfo=UTC) for when in ((2022, 1, 20, 18), (2022, 7, 15, 3), (2023, 7, 20, 6), (2024, 7, 25, 1))]
"""A winter's night and a summer's day to learn from: targets so far apart that a small change of an input is seen in the answer."""
TEST = TIMES[-1]


@cache
def world(root: Path) -> Path:
    """Scenes of three years, filled in `BOX`, and stations that stand in the middle of pixels: `root/data`."""
    base = root / "data"
    base.mkdir(parents=True)
    grid = grid_of("ko")
    rows, columns = grid.window_around(BOX, margin=-5)
    rng = np.random.default_rng(0)
    pixels = rng.choice((rows.stop - rows.start) * (columns.stop - columns.start), 16, replace=False)
    row, column = np.divmod(pixels, columns.stop - columns.start)
    lon, lat = grid.to_lonlat(columns.start + column, rows.start + row)
    names = pd.Index([str(100 + number) for number in range(len(row))], name="station")
    stations = pd.DataFrame({"lat": lat, "lon": lon, "elevation_m": 0.0}, index=names)
    stations.to_csv(base / "stations.csv")
    for time in TIMES:
        write_scene(base / "scenes", time, SEED, box=BOX)
    write_asos(base / "asos.txt", read_stations_at(stations, TIMES, SEED))
    indexing: dict[str, Any] = {"step": "build_index", "scenes": "scenes", "observations": ("asos.txt",), "stations": "stations.csv"}
    gk2a.prepare(gk2a.Config(**indexing, new_station_fraction=0.1), base)
    build_patches(base, scenes_root=base / "scenes")
    return base


@cache
def trained(root: Path) -> Path:
    """A run of `ta_small` of a few steps on that world."""
    words = [
        f"data.base_dir={world(root)}",
        f"run_root={root / 'runs'}",
        "train.epochs=10",
        "train.batch_size=8",
        "evaluation.after_training=false",
        "num_threads=1",
    ]
    with kept_registry():
        return train(load_recipe("ta_small", *words))
