"""Old patch files `<split>_chunk_XXXXX.pt` (dictionaries of tensors that `torch.save` wrote) read safely, and turned into a patch store.

A chunk holds `x` [N, C, H, W], `y` [N], `time7` [N, 7], `loc` [N, 3], `landcover_onehot` [N, 17] and `meta`, a list of N dictionaries or
tuples of time (UTC), station and pixel. Its `x` and `y` were normalised by `input_statistics_2022.json` and `statistics_2022.json`; the
store holds physical units again, and those statistics among its facts.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eyegraft.data.patch_statistics import Moments, read_document, scaled
from eyegraft.data.patch_store import Columns, Field, Manifest, Schema
from eyegraft.data.patch_writer import write_shards
from eyegraft.errors import DataError, shown
from eyegraft.files import file_sha256

CHANNELS = (*(f"bt_{n:02}" for n in range(10)), *(f"reflectance_{n:02}" for n in range(6)), "sza", "dem", "lsmask")
"""The channels of `x`; `lsmask` was never normalised."""

_TENSORS = ("x", "y", "time7", "loc", "landcover_onehot")
_TIMES = ("timestamp", "timestamp_utc", "time")


def fields(channels: int = len(CHANNELS), side: int = 9) -> dict[str, Field]:
    """What a record holds: physical units, columns in place of `meta`, a class number in place of the one-hot vector."""
    return {
        "x": Field(dtype="float32", shape=(channels, side, side), unit="K (bt), 1 (reflectance, lsmask), degree (sza), m (dem)"),
        "time7": Field(dtype="float32", shape=(7,), unit="doy_cos doy_sin hour_cos hour_sin month_cos month_sin sza_center"),
        "loc": Field(dtype="float32", shape=(3,), unit="degree north, degree east, m (ground sampling distance)"),
        "landcover": Field(dtype="uint8", unit="IGBP class", categories=17),
        "y": Field(dtype="float32", unit="K"),
        "timestamp": Field(dtype="int64", unit="s since 1970-01-01 UTC"),
        "stn": Field(dtype="int32", unit="station number"),
        "pixel": Field(dtype="int16", shape=(2,), unit="x, y"),
    }


def read_chunk(path: Path) -> dict[str, Any]:
    """A chunk's tensors as arrays, and its `meta` as three of them: `timestamp` [N] int64, `stn` [N] int32, `pixel` [N, 2] int16.

    Nothing is unpickled but tensors, plain Python values and numpy's numbers.

    Raises:
        DataError: no such file, other Python objects in it, missing keys, or lengths that differ.
    """
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_numbers()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy's old names, inside the file
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "Python objects")
        raise DataError(
            f"{path}: {reason}",
            "tensors and, in `meta`, numbers and text: other Python objects can run code when they are read",
            "if you made this file yourself, write it again in the environment that made it:\n"
            "    chunk = torch.load(path, weights_only=False)\n"
            '    chunk["meta"] = [(str(m["timestamp"]), int(m["stn"]), int(m["pixel_x"]), int(m["pixel_y"])) for m in chunk["meta"]]\n'
            "    torch.save(chunk, path)",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}", "a whole file that torch.save wrote", "copy it again") from error
    missing = [name for name in (*_TENSORS, "meta") if name not in content] if isinstance(content, dict) else ["all"]
    if missing:
        raise DataError(
            f"{path}: no {shown(missing)}", f"a dictionary with {shown([*_TENSORS, 'meta'], 6)}", "name a folder of patch chunks"
        )
    chunk: dict[str, Any] = {name: content[name].numpy() for name in _TENSORS}
    chunk["y"] = chunk["y"].reshape(len(chunk["y"]))
    lengths = {name: len(content[name]) for name in (*_TENSORS, "meta")}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{path}: lengths {lengths}", "as many of each", "make the file again")
    return chunk | _columns(content["meta"], path)


def convert_chunks(
    source: Path,
    target: Path,
    *,
    split: str,
    input_statistics: Path | None,
    target_statistics: Path | None,
    facts: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Manifest:
    """Turn `<split>_chunk_*.pt` of a folder into a store, one shard a file; killed, it goes on where it was.

    Args:
        input_statistics: JSON with `bt_00` … `dem`, each `{"mean": …, "std": …}`, by which `x` was normalised.
        target_statistics: JSON with `TA`.
        facts: further facts of the store, such as the sensor.

    Raises:
        DataError: no chunks, no statistics, or ones that do not fit.
    """
    files = sorted(source.glob(f"{split}_chunk_*.pt"))
    if not files:
        raise DataError(f"{source}: no {split}_chunk_*.pt", "a folder of patch chunks", "name the folder that holds them")
    inputs = read_document(input_statistics, scaled(CHANNELS), usual="input_statistics_2022.json")
    target_ = read_document(target_statistics, ("TA",), usual="statistics_2022.json")
    shape = read_chunk(files[0])["x"].shape
    if shape[1] != len(CHANNELS):
        raise DataError(f"{files[0]}: x has {shape[1]} channels", f"{len(CHANNELS)}: {', '.join(CHANNELS)}", "convert files of that layout")
    statistics = {"applied_before": "z-score, undone here", "inputs": inputs, "target": target_}
    schema = Schema(
        fields=fields(side=shape[-1]), split=split, facts={**(facts or {}), "channels": list(CHANNELS), "statistics": statistics}
    )
    jobs = [{"file": path.name, "sha256": file_sha256(path)} for path in files]
    produce = partial(_converted, source, inputs, target_["TA"])
    return write_shards(target, schema, jobs, produce, workers=workers, progress=progress)


def _converted(source: Path, inputs: Mapping[str, Moments], target: Moments, job: Mapping[str, str]) -> tuple[Columns, dict[str, int]]:
    """One chunk in physical units. Rows with NaN or infinity and rows without one land cover class are left out and counted."""
    chunk = read_chunk(source / job["file"])
    onehot = chunk.pop("landcover_onehot")
    one = ((onehot == 0) | (onehot == 1)).all(axis=1) & (onehot.sum(axis=1) == 1)
    numbers = [chunk[name].reshape(len(one), -1) for name in ("x", "y", "time7", "loc")]
    finite = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in numbers])
    kept = one & finite
    x = chunk["x"][kept]  # [N, C, H, W], a copy
    for channel, name in enumerate(CHANNELS[:-1]):
        x[:, channel] = x[:, channel].astype(np.float64) * inputs[name]["std"] + inputs[name]["mean"]
    y = (chunk["y"][kept].astype(np.float64) * target["std"] + target["mean"]).astype(np.float32)
    columns = {name: chunk[name][kept] for name in ("time7", "loc", "timestamp", "stn", "pixel")}
    columns |= {"x": x, "y": y, "landcover": onehot[kept].argmax(axis=1).astype(np.uint8)}
    return columns, {"not finite": int((~finite).sum()), "land cover class": int((finite & ~one).sum())}


def _columns(meta: Sequence[Any], path: Path) -> Columns:
    """`meta` as columns. Text without a zone is UTC, numbers are seconds since 1970."""
    try:
        rows = [_row(one) for one in meta]
        times = [row[0] for row in rows]
        return {
            "timestamp": np.array(times, dtype=np.int64) if not any(isinstance(one, str) for one in times) else _seconds(times),
            "stn": np.array([int(row[1]) for row in rows], dtype=np.int32),
            "pixel": np.array([(int(row[2]), int(row[3])) for row in rows], dtype=np.int16).reshape(-1, 2),
        }
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        example = next((one for one in meta), None)
        expected = "dictionaries or tuples of timestamp, stn, pixel_x and pixel_y"
        raise DataError(f"{path}: meta such as {example!r} ({error})", expected, "write `meta` again in that form") from error


def _row(one: Any) -> tuple[Any, Any, Any, Any]:
    if isinstance(one, Mapping):
        time = one[next((name for name in _TIMES if name in one), _TIMES[0])]
        x, y = (one["pixel_x"], one["pixel_y"]) if "pixel_x" in one else one["pixel"]
        return time, one["stn"], x, y
    time, station, *pixel = one
    x, y = pixel if len(pixel) == 2 else pixel[0]
    return time, station, x, y


def _seconds(times: Sequence[Any]) -> NDArray[np.int64]:
    import pandas as pd

    parsed = pd.to_datetime(pd.Series([str(one) for one in times]), utc=True, format="ISO8601")
    return np.asarray(parsed.dt.tz_localize(None).to_numpy("datetime64[s]").astype(np.int64))


def _numpy_numbers() -> list[Any]:
    """What a pickled numpy number names: constructors of numbers and their types, which run no code of the file's."""
    from numpy._core import multiarray

    kinds = {type(np.dtype(name)) for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
    kinds |= {type(np.dtype(name)) for name in ("float16", "float32", "float64")}
    scalar: Any = multiarray.scalar
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *sorted(kinds, key=str)]
