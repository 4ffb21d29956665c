"""A world in which satellite and thermometers agree, where no data can be had: real places, simulated weather, files as published.

Three years of scenes of GK-2A in the level 1B format and hourly station records of KMA are written into the data set's folder and then
prepared by `gk2a` as real ones are: index, splits by time and by station, patches, statistics. Nothing is downloaded. A run that was
stopped goes on where it stopped; scenes that another configuration left are made again.

    stations.csv                real places (README.md says from where), without those that `num_stations` leaves out
    scenes/<year>/*.nc          filled around the stations; `whole_scenes` of them everywhere, for maps
    observations/asos_<year>.txt
    index/, patches/            as `gk2a` makes them
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eyegraft.config import Fraction, NonNegative, Positive, Strict
from eyegraft.console import progress
from eyegraft.errors import DataError, EyegraftError
from eyegraft.files import copy_whole, write_atomically
from eyegraft.prepare import gk2a

WORLD = 1
"""Changes with every change of the simulation that moves a pixel or a temperature: older scenes are then made again."""

LICENCE = "simulated, CC0-1.0; positions of stations: OurAirports, public domain"

Scenes = list[tuple[datetime, bool]]
"""Times in UTC, and whether the whole area is filled."""

Floats = NDArray[np.float64]

_TABLE = Path(__file__).with_name("stations.csv")
_RADIUS = 12  # pixels filled around a station: 25 x 25 of 2 km hold patches of 9 x 9 in 289 places
_HALF_PATCH = 4
_WORTH = 4  # scenes that make another process worth its start
_NOON = 3  # UTC: about noon in Korea, when all bands see something
_COVER = (114.0, 137.5, 28.5, 46.5)  # of a whole scene on the full disk, in degrees: what the Korea grid covers


class ScenesPerYear(Strict):
    """Scenes in each year of a split."""

    train: Positive = 144
    val: Positive = 72
    test: Positive = 72


class Config(Strict):
    """Attributes:
    scenes_per_year: of each split; multiples of 24 hold every hour of the day equally often.
    years: of each split.
    area: `ko` (Korea, Lambert) or `fd` (full disk, of which Korea is filled).
    num_stations: of the 103 places that ship, evenly from the list; None: all.
    whole_scenes: scenes of test, nearest to noon, that are filled everywhere, for maps.
    new_station_fraction: stations set aside, to ask for new stations.
    seed: of the weather, the thermometers and the stations set aside. It was fixed before any model saw this world, and stays.
    rows_per_shard: of the patches, at most.
    unlabelled_per_scene: patches without a temperature, for pretraining, near known stations, from each scene of the training years.
    workers: processes.
    """

    scenes_per_year: ScenesPerYear = ScenesPerYear()
    years: gk2a.SplitYears = gk2a.SplitYears()
    area: Literal["ko", "fd"] = "ko"
    num_stations: Positive | None = None
    whole_scenes: NonNegative = 1
    new_station_fraction: Fraction = 0.2
    seed: NonNegative = 7741
    rows_per_shard: Positive = 4000
    unlabelled_per_scene: NonNegative = 0
    workers: Positive = 2


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Simulate what is missing, then prepare it as real data; gives the facts of `gk2a`'s build.

    Raises:
        DataError: `target/scenes` holds files that were not made here.
    """
    from eyegraft.prepare.gk2a.patches import build_patches

    stations = _stations(target / "stations.csv", config.num_stations)
    scenes = scene_plan(config)
    _simulate(_archive(target, stations, config), scenes, config.workers)
    observations = _observe(target, stations, scenes, config.seed)
    indexing = gk2a.Config(
        step="build_index",
        scenes="scenes",
        observations=observations,
        stations="stations.csv",
        area=config.area,
        years=config.years,
        new_station_fraction=config.new_station_fraction,
        seed=config.seed,
    )
    indexed = gk2a.prepare(indexing, target)
    indexed.pop("outputs", None)
    facts = _facts(config, stations)
    made = build_patches(
        target,
        scenes_root=target / "scenes",
        area=config.area,
        workers=config.workers,
        rows_per_shard=config.rows_per_shard,
        facts=facts,
        unlabelled_per_scene=config.unlabelled_per_scene,
        unlabelled_near=_RADIUS - _HALF_PATCH,
        seed=config.seed,
    )
    licences = sorted(_TABLE.with_name("LICENSES").glob("*.txt"))
    for licence in licences:
        copy_whole(licence, target / "LICENSES" / licence.name)
    outputs = [*made["outputs"], "stations.csv", *observations, "scenes/simulation.json", *(f"LICENSES/{path.name}" for path in licences)]
    return {"index": indexed, **made, **facts, "scenes": len(scenes), "outputs": outputs}


def scene_plan(config: Config) -> Scenes:
    """The scenes of all splits, in order of time."""
    from eyegraft.prepare.gk2a.simulate import scene_times

    counts, times = config.scenes_per_year.model_dump(), {}
    for split, years in config.years.model_dump().items():
        times[split] = [time for year in years for time in scene_times((year,), counts[split], config.seed + year)]
    whole = sorted(times["test"], key=lambda time: abs(time.hour - _NOON))[: config.whole_scenes]
    return sorted((time, time in whole) for of_split in times.values() for time in of_split)


def _facts(config: Config, stations: Any) -> dict[str, Any]:
    """What the stores say of themselves."""
    from eyegraft.prepare.gk2a.index import SPLITS
    from eyegraft.prepare.gk2a.weather import noise_floor_k

    return {
        "simulated": True,
        "noise_floor": {split: round(noise_floor_k(new_station=split.startswith("test_new")), 3) for split in SPLITS},
        "stations": {str(number): str(name) for number, name in stations["name"].items()},
        "world": {"version": WORLD, "seed": config.seed},
        "licence": LICENCE,
    }


def _stations(path: Path, count: int | None) -> Any:
    """Write the table that `gk2a` reads; gives it with the index station (text) and the columns name, lat, lon, elevation_m."""
    import pandas as pd

    table = pd.read_csv(_TABLE, dtype={"station": str}).set_index("station")
    if count is not None and count < len(table):
        table = table.iloc[np.linspace(0, len(table) - 1, count).round().astype(int)]
    content = table.to_csv(lineterminator="\n")
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, content)
    return table


def _observe(target: Path, stations: Any, scenes: Scenes, seed: int) -> tuple[str, ...]:
    """Write the station records of each year, unless they are there; gives their paths relative to `target`."""
    from eyegraft.prepare.gk2a.simulate import read_stations_at, write_asos

    names = []
    for year in sorted({time.year for time, _ in scenes}):
        times = [time for time, _ in scenes if time.year == year]
        asked = [WORLD, seed, stations[["lat", "lon"]].reset_index().to_numpy().tolist(), [time.isoformat() for time in times]]
        note = f"of {hashlib.sha256(json.dumps(asked).encode()).hexdigest()}"
        names.append(f"observations/asos_{year}.txt")
        path = target / names[-1]
        if not path.exists() or note not in path.read_text(encoding="utf-8"):
            write_asos(path, read_stations_at(stations, times, seed), note)
    return tuple(names)


@dataclass(frozen=True)
class _Archive:
    """The folder of scenes: of one world, on one grid, filled around some places [N] in degrees."""

    folder: Path
    area: str
    seed: int
    lon: Floats
    lat: Floats

    def is_whole(self, time: datetime) -> bool:
        return all(path.exists() for path in self.files(time))

    def files(self, time: datetime) -> list[Path]:
        from eyegraft.prepare.gk2a.bands import BANDS
        from eyegraft.prepare.gk2a.write import file_name

        return [self.folder / str(time.year) / file_name(band, self.area, 2000, time) for band in BANDS.values()]

    def write(self, scenes: Scenes, advance: Callable[[], object] = lambda: None) -> None:
        """Those that are not whole."""
        from eyegraft.prepare.gk2a.simulate import pixels_around, write_scene

        around = pixels_around(self.area, self.lon, self.lat, _RADIUS)
        for time, everywhere in scenes:
            if not self.is_whole(time):
                box = _COVER if self.area == "fd" else None
                folder = self.folder / str(time.year)
                write_scene(folder, time, self.seed, area=self.area, box=box, only=None if everywhere else around)
            advance()

    def tidy(self, scenes: Scenes) -> None:
        """Note what this archive is, and take away what another configuration left in it.

        Raises:
            DataError: files that were not made here.
        """
        world = {"simulated": True, "world": WORLD, "seed": self.seed, "area": self.area, "radius": _RADIUS}
        places = {"lon": self.lon.tolist(), "lat": self.lat.tolist(), "everywhere": [time.isoformat() for time, whole in scenes if whole]}
        note, content = self.folder / "simulation.json", json.dumps(world | places) + "\n"
        there = [path for path in self.folder.rglob("*") if path.is_file() and path != note]
        if there and not note.exists():
            given = f"{self.folder}: {len(there)} files without {note.name}"
            raise DataError(given, "no folder yet, or one that this source made", "set another data.base_dir")
        wanted = {path for time, _ in scenes for path in self.files(time)}
        keep = wanted if note.exists() and note.read_text(encoding="utf-8") == content else set()
        for path in there:
            if path not in keep:
                path.unlink()
        write_atomically(note, content)


def _archive(target: Path, stations: Any, config: Config) -> _Archive:
    lon, lat = (stations[name].to_numpy() for name in ("lon", "lat"))
    return _Archive(target / "scenes", config.area, config.seed, lon, lat)


def _simulate(archive: _Archive, scenes: Scenes, workers: int) -> None:
    """Make the scenes that are not there."""
    archive.tidy(scenes)
    todo = [scene for scene in scenes if not archive.is_whole(scene[0])]
    spawn = multiprocessing.get_context("spawn")
    shares = min(workers, max(len(todo) // _WORTH, 1))
    others = [spawn.Process(target=_write_beside, args=(archive, todo[number::shares]), daemon=True) for number in range(1, shares)]
    for process in others:
        process.start()
    rounds = iter([len(todo[first : first + shares]) for first in range(0, len(todo), shares)])
    with progress("simulating scenes", len(todo)) as advance:
        archive.write(todo[::shares], lambda: advance(next(rounds)))
    for process in others:
        process.join()
    archive.write(todo)  # what another process could not do: here its error is told


def _write_beside(archive: _Archive, scenes: Scenes) -> None:
    """A share of the scenes in a process of its own, which ends with its parent and leaves errors to it."""
    parent = multiprocessing.parent_process()
    with suppress(EyegraftError, KeyboardInterrupt):
        for scene in scenes:
            if parent is None or not parent.is_alive():
                return
            archive.write([scene])
