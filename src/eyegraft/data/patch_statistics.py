"""Mean and standard deviation of each channel and of the target: fitted on the train split, kept beside the patches, read back strictly.

`patches/statistics.json`:
    {"format": 1, "train_store": identity of the store of the train split, or null, "source": "patches/train" or the file they came from,
     "inputs": {channel: {"mean": …, "std": …}}, "target": {"mean": …, "std": …}}

Everything is in the units of the store. Channels of `UNSCALED` are 0 and 1 already and have none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from eyegraft.data.patch_store import PatchStore, statistics
from eyegraft.errors import DataError, shown
from eyegraft.files import write_atomically

FORMAT: Literal[1] = 1
UNSCALED: Final = ("lsmask",)
"""Channels that are fed to models as they are."""

_FIT = "fit them on these patches: `eyegraft prepare` does, with the same arguments"


class Moments(TypedDict):
    mean: float
    std: float


class Fitted(TypedDict):
    """`inputs`: channel -> its moments; `target`: those of y."""

    inputs: dict[str, Moments]
    target: Moments


class PatchStatistics(Fitted):
    """What `statistics.json` holds."""

    format: int
    train_store: str | None
    source: str


def scaled(channels: Sequence[str]) -> list[str]:
    """The channels that have statistics."""
    return [name for name in channels if name not in UNSCALED]


def fit(store: PatchStore) -> Fitted:
    """Statistics of every scaled channel of `x` and of `y`, over the pixels that were measured, in two passes.

    Raises:
        DataError: a split that is not `train`, an infinite value, or a channel with nothing to scale by (never measured, or one value).
    """
    channels = store.schema.facts["channels"]
    of_x, of_y = statistics(store, "x"), statistics(store, "y")
    found = {name: Moments(mean=float(mean), std=float(std)) for name, mean, std in zip(channels, of_x.mean, of_x.std, strict=True)}
    fitted = Fitted(
        inputs={name: found[name] for name in scaled(channels)}, target=Moments(mean=float(of_y.mean[0]), std=float(of_y.std[0]))
    )
    flat = _unusable({**fitted["inputs"], "y": fitted["target"]})
    if flat:
        raise DataError(
            f"{store.path}: {shown(flat)} has no spread in {len(store):,} rows (never measured, or one value everywhere)",
            "channels that vary in the train split",
            "prepare more scenes (reflectances need daylight), or leave the channel out",
        )
    return fitted


def write_statistics(path: Path, fitted: Fitted, *, train_store: str | None, source: str) -> None:
    """Write `statistics.json`.

    Args:
        train_store: `PatchStore.identity` of the split that they were fitted on; None for statistics from elsewhere.
        source: `patches/train`, or the file that they were read from.
    """
    content = {"format": FORMAT, "train_store": train_store, "source": source, **fitted}
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_statistics(path: Path, channels: Sequence[str] | None = None, *, train: PatchStore | None = None) -> PatchStatistics:
    """Read `statistics.json`.

    Args:
        channels: of the patches that they are for; None takes them as they are.
        train: the store of the train split; statistics that were fitted on another one are refused.

    Raises:
        DataError: no such file, numbers that cannot scale, statistics of other channels or of another train split.
    """
    content = _read(path)
    try:
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']!r}", f"format {FORMAT}", _FIT)
        inputs = {str(name): _moments(one) for name, one in content["inputs"].items()}
        target = _moments(content["target"])
        train_store, source = content["train_store"], str(content["source"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: {type(error).__name__} {error}", "statistics of patches as this program writes them", _FIT) from error
    _usable(path, {**inputs, "y": target})
    if channels is not None:
        require_channels(path, list(inputs), channels)
    if train is not None and train_store is not None and train_store != train.identity:
        raise DataError(
            f"{path}: fitted on the train split {train_store[:12]}, but {train.path} is {train.identity[:12]}",
            "statistics of the very patches that are trained on",
            _FIT,
        )
    return PatchStatistics(format=FORMAT, train_store=train_store, source=source, inputs=inputs, target=target)


def read_document(path: Path | None, names: Sequence[str], *, usual: str) -> dict[str, Moments]:
    """Statistics in the older form `{name: {"mean": …, "std": …}}`: of the channels (`input_statistics_2022.json`), or of `TA`.

    Args:
        names: that the file must hold. Other entries are passed over, but not further channels of one kind (`bt_10`): another sensor.
        usual: the usual name of the file, for messages.

    Raises:
        DataError: no file, names that do not fit, or numbers that cannot scale.
    """
    if path is None:
        fix = f"name the {usual} that the chunks were made with"
        raise DataError(f"chunks whose values are normalised, without {usual}", "the mean and std that were applied", fix)
    content = _read(path)
    kinds = {name.rpartition("_")[0] for name in names} - {""}
    fix = f"name the right {usual}"
    require_channels(path, [name for name in content if name in names or name.rpartition("_")[0] in kinds], names, fix=fix)
    try:
        moments = {name: _moments(content[name]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        given = f"{path}: no {error}" if isinstance(error, KeyError) else f"{path}: {error}"
        raise DataError(given, f"mean and std of {shown(names, 20)}", fix) from error
    _usable(path, moments)
    return moments


def read_documents(inputs: Path, target: Path, channels: Sequence[str]) -> Fitted:
    """The two older files, `input_statistics_2022.json` and `statistics_2022.json` (TA), as statistics of patches with these channels."""
    return Fitted(
        inputs=read_document(inputs, scaled(channels), usual="input_statistics_2022.json"),
        target=read_document(target, ("TA",), usual="statistics_2022.json")["TA"],
    )


def require_channels(place: Path, names: Sequence[str], channels: Sequence[str], *, fix: str = _FIT) -> None:
    """Raise a `DataError` unless statistics of `names` are those of these channels and of no others."""
    wanted = scaled(channels)
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    if missing or unknown:
        said = [f"none for {shown(missing, 20)}"] * bool(missing) + [f"some for {shown(unknown, 20)}, which the patches lack"] * bool(
            unknown
        )
        raise DataError(f"{place}: statistics of other channels: {'; '.join(said)}", f"mean and std of {shown(wanted, 20)}", fix)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is not there", "mean and std of each channel, as JSON", _FIT) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", "JSON with mean and std of each channel", _FIT) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a {type(content).__name__}", "a JSON object with mean and std of each channel", _FIT)
    return content


def _moments(one: Any) -> Moments:
    return Moments(mean=float(one["mean"]), std=float(one["std"]))


def _unusable(moments: Mapping[str, Moments]) -> list[str]:
    return [name for name, one in moments.items() if not (math.isfinite(one["mean"]) and math.isfinite(one["std"]) and one["std"] > 0)]


def _usable(path: Path, moments: Mapping[str, Moments]) -> None:
    bad = _unusable(moments)
    if bad:
        worst = moments[bad[0]]
        raise DataError(
            f"{path}: mean or std of {shown(bad)}, as in mean {worst['mean']:g}, std {worst['std']:g}",
            "finite means and a std above 0",
            _FIT,
        )
