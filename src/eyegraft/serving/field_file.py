"""A field of answers as NetCDF or Zarr, by the CF conventions (https://cfconventions.org, 1.11)."""

from __future__ import annotations

import json
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from eyegraft import __version__
from eyegraft.errors import DataError
from eyegraft.files import disk_errors
from eyegraft.prepare.gk2a.grid import Grid, grid_of
from eyegraft.serving.field import REASONS, Field

ENDINGS: Final = (".nc", ".zarr")

_STANDARD_NAMES = {("ta", "K"): "air_temperature"}
_PROJECTIONS = {"ko": "GK-2A Korea area, Lambert conformal conic", "fd": "GK-2A full disk, geostationary"}


def check_target(path: Path) -> None:
    """Whether a field can be written there, before hours are spent on it.

    Raises:
        DataError: an ending that is none of `ENDINGS`, or something else than such a field lies there.
    """
    if path.suffix not in ENDINGS:
        raise DataError(f"{path}", f"a name that ends in {' or '.join(ENDINGS)}", "give --out FIELD.nc or --out FIELD.zarr")
    if path.is_dir() and (path.suffix == ".nc" or not (path / ".zgroup").is_file()):
        raise DataError(f"{path} is a folder with something else", "a new name, or a field to replace", "give another --out")


def write_field(field: Field, path: Path) -> None:
    """Write a field whole or not at all; one that lies there is replaced.

    Raises:
        DataError: see `check_target`.
        RunError: the disk is full.
    """
    check_target(path)
    dataset = as_dataset(field)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".nc":
                for one in dataset.variables.values():
                    if one.ndim == 2:  # a number alone has no chunks to compress
                        one.encoding |= {"zlib": True, "complevel": 4, "shuffle": True}
                dataset.to_netcdf(draft, engine="h5netcdf")
            else:
                dataset.to_zarr(draft, mode="w", zarr_format=2, consolidated=True)  # every reader of Zarr knows this format
                shutil.rmtree(path, ignore_errors=True)
            draft.replace(path)
        finally:
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            draft.unlink(missing_ok=True)


def as_dataset(field: Field) -> Any:
    """The field as an `xarray.Dataset`: the answers and what stands beside them on (y, x), with places, time and the run's identity."""
    import xarray as xr

    name = re.sub(r"\W", "_", field.name)
    lon, lat = field.lonlats()
    long_name = field.long_name
    on_grid = {"grid_mapping": "crs", "coordinates": "lat lon"}
    variables: dict[str, Any] = {
        name: (("y", "x"), field.values, {"long_name": long_name, "units": field.unit, "ancillary_variables": f"{name}_quality"})
    }
    standard = _STANDARD_NAMES.get((field.name, field.unit))
    if standard is not None:
        variables[name][2]["standard_name"] = standard
    if field.std is not None:
        about = {"long_name": f"standard deviation of {long_name}, as the model says it", "units": field.unit}
        variables[f"{name}_std"] = (("y", "x"), field.std, about)
    if field.half_width is not None:
        share = f"{100 * field.level:g} %" if field.level is not None else "a part"
        about = {
            "long_name": f"half the width of the interval around {long_name} that covers {share} of new samples",
            "units": field.unit,
            "comment": "conformal: as wide as the errors on validation samples at stations ask for; nothing was measured between them",
        }
        variables[f"{name}_half_width"] = (("y", "x"), field.half_width, about)
    for part in variables.values():
        part[2].update(on_grid)
    flags = {
        "flag_values": np.arange(len(REASONS), dtype=np.uint8),
        "flag_meanings": " ".join(re.sub(r"\W+", "_", one) for one in REASONS),
    }
    quality = {"long_name": f"why a pixel has no {long_name}", **flags, **on_grid}
    variables[f"{name}_quality"] = (("y", "x"), field.quality, quality)
    variables["crs"] = ((), np.int32(0), _grid_mapping(field.grid))
    coordinates = {
        "y": (
            "y",
            field.grid.y0_m - field.rows * field.grid.step_m,
            {"standard_name": "projection_y_coordinate", "units": "m", "axis": "Y"},
        ),
        "x": (
            "x",
            field.grid.x0_m + field.columns * field.grid.step_m,
            {"standard_name": "projection_x_coordinate", "units": "m", "axis": "X"},
        ),
        "lat": (("y", "x"), lat.astype(np.float32), {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": (("y", "x"), lon.astype(np.float32), {"standard_name": "longitude", "units": "degrees_east"}),
        "pixel_y": ("y", (field.grid.first[1] + field.rows).astype(np.int32), {"long_name": "row of the satellite's whole grid, from 0"}),
        "pixel_x": (
            "x",
            (field.grid.first[0] + field.columns).astype(np.int32),
            {"long_name": "column of the satellite's whole grid, from 0"},
        ),
        "time": (
            (),
            np.datetime64(field.time.astimezone(UTC).replace(tzinfo=None), "ns"),
            {"standard_name": "time", "long_name": "nominal time of the scene, UTC"},
        ),
    }
    dataset = xr.Dataset(variables, coordinates, _identity(field))
    dataset["time"].encoding = {"units": "seconds since 1970-01-01", "calendar": "standard", "dtype": "int64"}
    for one in ("lat", "lon"):
        dataset[one].encoding = {"_FillValue": np.float32(np.nan)}
    for one in variables:
        if dataset[one].dtype == np.float32:
            dataset[one].encoding = {"_FillValue": np.float32(np.nan)}
        for key in ("coordinates", "grid_mapping"):  # xarray writes these two itself
            if key in dataset[one].attrs:
                dataset[one].encoding[key] = dataset[one].attrs.pop(key)
    return dataset


def _grid_mapping(grid: Grid) -> dict[str, Any]:
    """The projection as CF's attributes, its well-known text and PROJ's."""
    from pyproj import CRS

    name = {"projected_crs_name": _PROJECTIONS.get(grid.area, grid.area), "geographic_crs_name": "WGS 84"}
    return {**CRS(grid.crs).to_cf(), **name, "proj4": grid.crs, "long_name": f"{_PROJECTIONS.get(grid.area, grid.area)}, {grid.gsd_m:g} m"}


def _identity(field: Field) -> dict[str, Any]:
    """Global attributes: what answered, what it had learned from, which scene it was shown, and whether any of it is simulated."""
    whole = grid_of(field.grid.area).shape
    counts = field.counts()
    return {
        "Conventions": "CF-1.11",
        "title": "; ".join(
            filter(None, [f"{field.long_name} by a model of satellite patches, {field.time:%Y-%m-%d %H:%M} UTC", field.warning])
        ),
        "source": f"eyegraft {__version__}",
        "history": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} eyegraft map",
        "simulated": "true" if field.scene_simulated or field.training_simulated else "false",
        "scene_simulated": "true" if field.scene_simulated else "false",
        "training_simulated": "true" if field.training_simulated else "false",
        "area": field.grid.area,
        "stride": np.int32(field.stride),
        "whole_grid_rows_columns": np.array(whole, dtype=np.int32),
        "pixels": json.dumps(counts),
        **{key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in field.facts.items()},
    }
