"""Scenes of the weather satellite GK-2A and air temperature at stations: level 1B files and station records to an index, and to patches.

`read` turns files into numbers, `grid` places into pixels, `sun` times into angles, `stations` records into one table, `index` matches
them, `rasters` gives the ground, `gather` cuts the patches of a run of scenes, `patches` makes all of them; `simulate` writes files in the
published format where none can be had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from eyegraft.config import Fraction, NonNegative, Positive, Strict
from eyegraft.errors import DataError
from eyegraft.files import write_atomically

Years = Annotated[tuple[int, ...], Field(min_length=1)]


class SplitYears(Strict):
    """Calendar years (UTC) of each split."""

    train: Years = (2022,)
    val: Years = (2023,)
    test: Years = (2024,)


class Rasters(Strict):
    """Each as `rasters` says: a .npy on the grid of the scenes, or a NetCDF file in degrees, with `#VARIABLE` if it holds several.

    Attributes:
        dem: elevation above the sea in metres.
        lsmask: land-sea mask, kept as it is.
        landcover: IGBP classes 0 (water) to 16; 17, which is water in MCD12Q1, counts as 0. None: patches have no land cover.
    """

    dem: str
    lsmask: str
    landcover: str | None = None


class Config(Strict):
    """Attributes:
    step: `build_index`, then `build_patches`, or `all` of both; `convert_chunks` turns old patch files into the same stores.
    scenes: folder with level 1B files, in any tree, or with extracted arrays; like all paths here relative to data.base_dir.
    observations: files with station records, of any format that `stations` reads.
    stations: table with the stations' positions; None: the records hold them.
    index: an index that was made before, in place of observations.
    area: `ko` (Korea, Lambert) or `fd` (full disk).
    tolerance_minutes: between a reading and its scene, at most.
    patch_size: pixels on a side of a patch; odd.
    years: of each split.
    new_station_fraction: stations set aside, to ask for new stations.
    seed: of the draw of these stations, and of the places of unlabelled patches.
    rasters: elevation, land-sea mask and land cover; None only for simulated scenes, whose ground is known.
    missing: the sensor's policy: `drop` leaves out patches with pixels that were not measured, `mask` keeps them.
    workers: processes that cut patches; each has a shard in memory.
    rows_per_shard: at most; a kill costs the shards at work.
    unlabelled_per_scene: patches without a target, at random places of each scene of the train split, for pretraining.
    chunks: folder with old `<split>_chunk_*.pt`, for `convert_chunks`.
    input_statistics, target_statistics: `input_statistics_2022.json` and `statistics_2022.json`. Old chunks were normalised by them and
        need them; new patches take them in place of statistics of their own.
    """

    step: Literal["all", "build_index", "build_patches", "convert_chunks"] = "all"
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
    rasters: Rasters | None = None
    missing: Literal["drop", "mask"] = "drop"
    workers: Positive = 1
    rows_per_shard: Positive = 100_000
    unlabelled_per_scene: NonNegative = 0
    chunks: str | None = None
    input_statistics: str | None = None
    target_statistics: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if self.step in ("all", "build_index") and self.index is None and (self.scenes is None or not self.observations):
            raise ValueError("give prepare.scenes and prepare.observations, or an existing prepare.index")
        if self.step in ("all", "build_patches") and self.scenes is None:
            raise ValueError("give prepare.scenes, the folder that the paths of the index are relative to")
        if self.step == "convert_chunks" and self.chunks is None:
            raise ValueError("give prepare.chunks, the folder with <split>_chunk_*.pt")
        if (self.input_statistics is None) != (self.target_statistics is None):
            raise ValueError("prepare.input_statistics and prepare.target_statistics belong together: give both or neither")
        if self.patch_size % 2 == 0:
            raise ValueError(f"patch_size {self.patch_size} has no pixel in the middle: give an odd one")
        return self


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Make `index/` and `patches/` below `target`, as `config.step` says.

    Gives rows of each split, counts of what was left out by reason, whether the scenes are simulated, and `outputs`: files, relative to
    `target`, that stand for all that was made. Scenes and records may lie in `target` too: they are not among them.

    Raises:
        DataError: scenes, records, rasters, index, chunks or statistics cannot be used.
    """
    from eyegraft.prepare.gk2a.patches import indexed

    made: dict[str, Any] = {"licence": "that of the scenes and records"}
    if config.step in ("all", "build_index"):
        made |= _index(config, target)
    if config.step in ("all", "build_patches"):
        made |= _patches(config, target)
    if config.step == "convert_chunks":
        made |= _converted(config, target)
    return {"outputs": indexed(target), **made}


def _index(config: Config, target: Path) -> dict[str, Any]:
    """`index.csv`, `index_<split>.csv` and the same as Parquet, in `target/index`."""
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
    made = {"rows": rows, **facts, "left_out": split.left_out}
    write_atomically(target / "index" / "index.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return made


def _patches(config: Config, target: Path) -> dict[str, Any]:
    from eyegraft.prepare.gk2a.patches import build_patches

    made = build_patches(
        target,
        scenes_root=target / str(config.scenes),
        area=config.area,
        patch_size=config.patch_size,
        workers=config.workers,
        rows_per_shard=config.rows_per_shard,
        missing=config.missing,
        rasters=config.rasters,
        unlabelled_per_scene=config.unlabelled_per_scene,
        seed=config.seed,
        statistics=_given_statistics(config, target),
    )
    told = target / "index" / "index.json"
    return {**made, "index": json.loads(told.read_text(encoding="utf-8"))} if told.exists() else made


def _given_statistics(config: Config, target: Path) -> Any:
    """The older statistics files as (statistics, where they are from), or None."""
    from eyegraft.data.patch_chunks import CHANNELS
    from eyegraft.data.patch_statistics import read_documents

    if config.input_statistics is None or config.target_statistics is None:
        return None
    return read_documents(target / config.input_statistics, target / config.target_statistics, CHANNELS), config.input_statistics


def _converted(config: Config, target: Path) -> dict[str, Any]:
    """Old patch files as stores in physical units; their statistics go with them."""
    from eyegraft.console import progress
    from eyegraft.data.patch_chunks import convert_chunks
    from eyegraft.data.patch_statistics import write_statistics
    from eyegraft.prepare.gk2a.patches import advancing, facts_of

    folder = target / str(config.chunks)
    splits = sorted({path.name.rsplit("_chunk_", 1)[0] for path in folder.glob("*_chunk_*.pt")})
    if not splits:
        raise DataError(f"{folder}: no <split>_chunk_*.pt", "a folder of patch chunks", "set prepare.chunks to the folder that holds them")
    inputs, of_target = (target / name if name is not None else None for name in (config.input_statistics, config.target_statistics))
    rows, left_out = {}, {}
    for split in splits:
        with progress(f"patches/{split}: shards", len(list(folder.glob(f"{split}_chunk_*.pt")))) as advance:
            manifest = convert_chunks(
                folder,
                target / "patches" / split,
                split=split,
                input_statistics=inputs,
                target_statistics=of_target,
                facts=facts_of(config.missing, config.area, simulated=False),
                workers=config.workers,
                progress=advancing(advance),
            )
        rows[split], left_out[split] = manifest.rows, {reason: count for reason, count in manifest.counts.items() if count}
    fitted, source = _given_statistics(config, target)
    write_statistics(target / "patches" / "statistics.json", fitted, train_store=None, source=source)
    stores = [f"patches/{split}/manifest.json" for split in splits]
    return {"rows": rows, "left_out": left_out, "simulated": False, "outputs": [*stores, "patches/statistics.json"]}
