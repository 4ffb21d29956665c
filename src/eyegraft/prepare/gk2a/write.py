"""Counts to a file in the format of GK-2A AMI level 1B, with the attributes that a reader needs. Only simulated scenes are written."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eyegraft.files import disk_errors
from eyegraft.prepare.gk2a.bands import BOLTZMANN, LIGHT, PLANCK, Band
from eyegraft.prepare.gk2a.grid import grid_of
from eyegraft.prepare.gk2a.read import EPOCH, VARIABLE, Window

OFF_SCAN, ERROR = 2, 3
_SATELLITE_M = 42_164_000.0 * np.array([np.cos(np.deg2rad(128.2)), np.sin(np.deg2rad(128.2)), 0.0])  # Earth-centred, Earth-fixed
_SCAN = {"fd": timedelta(minutes=9, seconds=30), "ko": timedelta(minutes=1, seconds=40)}


def file_name(band: Band, area: str, resolution_m: int, time: datetime) -> str:
    """The published form of a name."""
    projection = "lc" if area == "ko" else "ge"
    return f"gk2a_ami_le1b_{band.name.lower()}_{area}{resolution_m // 100:03d}{projection}_{time:%Y%m%d%H%M}.nc"


def write_band(
    folder: Path,
    band: Band,
    area: str,
    resolution_m: int,
    time: datetime,
    counts: NDArray[np.uint16],
    window: Window,
    *,
    quality: NDArray[np.uint8] | None = None,
    calibrated: bool = True,
) -> Path:
    """Write one file and give its path; everything outside the window is marked off-scan and takes no room.

    Args:
        resolution_m: of the file.
        counts: [H, W] of the window, at that resolution.
        window: rows and columns at that resolution.
        quality: [H, W] 0 good, 1 conditional, 2 off-scan, 3 error; None: all good.
        calibrated: write the calibration coefficients into the file, as published full-disk files have them.
    """
    import h5netcdf

    grid = grid_of(area, resolution_m)
    values = counts if quality is None else counts | quality.astype(np.uint16) << np.uint16(14)
    target = folder / file_name(band, area, resolution_m, time)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with h5netcdf.File(draft, "w") as stored:
                stored.dimensions = {"dim_image_y": grid.shape[0], "dim_image_x": grid.shape[1]}
                pixels = stored.create_variable(
                    VARIABLE,
                    ("dim_image_y", "dim_image_x"),
                    np.uint16,
                    fillvalue=np.uint16(OFF_SCAN << 14),
                    chunks=(min(256, grid.shape[0]), min(256, grid.shape[1])),
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                )
                pixels.attrs.update(channel_name=band.name, number_of_valid_bits_per_pixel=np.uint8(band.bits), simulated="true")
                pixels[window] = values
                place = stored.create_variable("sc_position", (), np.uint8, data=np.uint8(0))  # empty: its attributes hold the place
                place.attrs["sc_position_center_pixel"] = _SATELLITE_M
                stored.attrs.update(_attributes(band, area, resolution_m, time))
                if calibrated:
                    stored.attrs.update(_coefficients(band))
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    return target


def _attributes(band: Band, area: str, resolution_m: int, time: datetime) -> dict[str, object]:
    grid, start = grid_of(area, resolution_m), (time - EPOCH).total_seconds()
    common = {
        "simulated": "true",
        "title": f"Simulated AMI level 1B, {band.name}: no measurement",
        "satellite_name": "GK-2A",
        "instrument_name": "AMI",
        "data_processing_level": "L1B",
        "observation_mode": area.upper(),
        "channel_spatial_resolution": f"{resolution_m / 1000:.1f}",
        "observation_start_time": start,
        "observation_end_time": start + _SCAN[area].total_seconds(),
        "number_of_columns": np.int32(grid.shape[1]),
        "number_of_lines": np.int32(grid.shape[0]),
    }
    if area == "ko":
        return {
            **common,
            "projection_type": "lambert_conformal_conic",
            "central_meridian": 126.0,
            "standard_parallel1": 30.0,
            "standard_parallel2": 60.0,
            "origin_latitude": 38.0,
            "pixel_size": grid.step_m,
            "upper_left_easting": grid.x0_m,
            "upper_left_northing": grid.y0_m,
        }
    factor = 20_425_338.9 * 2000 / resolution_m
    half = (grid.shape[1] + 1) / 2
    return {
        **common,
        "projection_type": "GEOS",
        "cfac": factor,
        "lfac": -factor,  # rows run south
        "coff": half,
        "loff": half,
        "sub_longitude": float(np.deg2rad(128.2)),
        "nominal_satellite_height": 42_164_000.0,
        "earth_equatorial_radius": 6_378_137.0,
        "earth_polar_radius": 6_356_752.3,
    }


def _coefficients(band: Band) -> dict[str, float]:
    used = band.table
    found = {"DN_to_Radiance_Gain": used.gain, "DN_to_Radiance_Offset": used.offset}
    if used.albedo is not None:
        return {**found, "Radiance_to_Albedo_c": used.albedo}
    constants = {"light_speed": LIGHT, "Boltzmann_constant_k": BOLTZMANN, "Plank_constant_h": PLANCK}
    return {**found, **{f"Teff_to_Tbb_c{power}": value for power, value in enumerate(used.tbb)}, **constants}
