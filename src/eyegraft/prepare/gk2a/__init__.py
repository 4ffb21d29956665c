"""Scenes of the weather satellite GK-2A and air temperature at stations, matched: level 1B files and station records to an index.

`read` turns files into numbers, `grid` places into pixels, `sun` times into angles, `stations` records into one table, `index` matches
them, `simulate` writes files in the published format where none can be had.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eyegraft.config import Fraction, Positive, Strict

Years = Annotated[tuple[int, ...], Field(min_length=1)]


class SplitYears(Strict):
    """Calendar years (UTC) of each split."""

    train: Years = (2022,)
    val: Years = (2023,)
    test: Years = (2024,)


class Config(Strict):
    """Attributes:
    step: what to make.
    scenes: folder with level 1B files, in any tree; like all paths here relative to data.base_dir.
    observations: files with station records, of any format that `stations` reads.
    stations: table with the stations' positions; None: the records hold them.
    index: an index that was made before, in place of scenes and observations.
    area: `ko` (Korea, Lambert) or `fd` (full disk).
    tolerance_minutes: between a reading and its scene, at most.
    patch_size: pixels on a side of the patch that must lie inside the grid; odd.
    years: of each split.
    new_station_fraction: stations set aside, to ask for new stations.
    seed: of the draw of these stations.
    """

    step: Literal["build_index"] = "build_index"
    scenes: str | None = None
    observations: tuple[str, ...] = ()
    stations: str | None = None
    index: str | None = None
    area: Literal["ko", "fd"] = "ko"
    tolerance_minutes: Annotated[float, Field(ge=0, le=60)] = 5
    patch_size: Positive = 9
    years: SplitYears = SplitYears()
    new_station_fraction: Fraction = 0.2
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if self.index is None and (self.scenes is None or not self.observations):
            raise ValueError("give prepare.scenes and prepare.observations, or an existing prepare.index")
        if self.patch_size % 2 == 0:
            raise ValueError(f"patch_size {self.patch_size} has no pixel in the middle: give an odd one")
        return self


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `index.csv`, `index_<split>.csv` and the same as Parquet into `target/index`.

    Gives rows of each split, counts of what was left out by reason, and whether the scenes are simulated.

    Raises:
        DataError: scenes, records or index cannot be used.
    """
    from eyegraft.prepare.gk2a import index as indices
    from eyegraft.prepare.gk2a.read import find_scenes, is_simulated
    from eyegraft.prepare.gk2a.stations import read_observations

    facts: dict[str, Any] = {}
    if config.index is not None:
        built = indices.read_index(target / config.index)
    else:
        root = target / str(config.scenes)
        scenes = find_scenes(root)
        table = target / config.stations if config.stations is not None else None
        observed = read_observations([target / name for name in config.observations], table)
        built = indices.build_index(
            scenes, observed, root, area=config.area, tolerance_minutes=config.tolerance_minutes, patch_size=config.patch_size
        )
        facts = {"scenes": len(set(built.table["path_bt"])), "simulated": is_simulated(root / built.table["path_bt"].iloc[0])}
    split = indices.split_index(built, config.years.model_dump(), config.new_station_fraction, config.seed)
    rows = indices.write_index(split, target / "index")
    return {"rows": rows, **facts, "left_out": split.left_out, "licence": "that of the scenes and records"}
