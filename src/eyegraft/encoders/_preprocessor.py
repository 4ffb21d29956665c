"""What a `preprocessor_config.json` says about pixels, as an `ImageSpec`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from eyegraft.errors import PartError
from eyegraft.types import ImageSpec

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # the numbers of PIL.Image.Resampling


def image_spec(settings: Mapping[str, Any], place: str) -> ImageSpec:
    """The preprocessing that the weights were trained with.

    Args:
        settings: the content of `preprocessor_config.json`.
        place: where it stands, for messages.

    Raises:
        PartError: something is missing or cannot be followed. A guess would silently cost accuracy.
    """
    resample = settings.get("resample", 3)
    if resample not in tuple(_RESAMPLING):  # it may be a list or null
        raise _unusable(place, "resample", resample, f"one of {', '.join(f'{number} ({name})' for number, name in _RESAMPLING.items())}")
    mean: Any = settings.get("image_mean")
    std: Any = settings.get("image_std")
    if settings.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for key, values in (("image_mean", mean), ("image_std", std)):
        if not isinstance(values, list | tuple) or not values:
            raise _unusable(place, key, values, "one number per channel, or do_normalize false")
    return ImageSpec(
        mean=tuple(mean),
        std=tuple(std),
        interpolation=_RESAMPLING[resample],  # type: ignore[arg-type]
        **(_patches(settings, place) if "max_num_patches" in settings else _size(settings, place)),
    )


def _size(settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Of encoders that take every picture at one size."""
    resized = _height_width(settings.get("size", 224), "size", place)
    cropped = _height_width(settings.get("crop_size") or resized, "crop_size", place) if settings.get("do_center_crop") else resized
    short_side_only = isinstance(settings.get("size"), Mapping) and "shortest_edge" in settings["size"]
    return {
        "size": cropped,
        "fit": "crop" if settings.get("do_center_crop") or short_side_only else "squash",
        "crop_fraction": settings.get("crop_pct") or cropped[0] / resized[0],
    }


def _patches(settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Of encoders that take a picture as patches in its own aspect ratio. `size` is then that of a square picture."""
    for key in ("patch_size", "max_num_patches"):
        if not isinstance(settings.get(key), int) or settings[key] < 1:
            raise _unusable(place, key, settings.get(key), "a whole number of at least 1")
    side = math.isqrt(settings["max_num_patches"]) * settings["patch_size"]
    return {"size": (side, side), "patch_size": settings["patch_size"], "max_patches": settings["max_num_patches"]}


def _height_width(size: Any, key: str, place: str) -> tuple[int, int]:
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        pair: tuple[Any, ...] = (side, side) if side else (size.get("height"), size.get("width"))
    else:
        pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise _unusable(place, key, size, 'a number, {"height": …, "width": …} or {"shortest_edge": …}')
    return pair[0], pair[1]


def _unusable(place: str, key: str, value: object, expected: str) -> PartError:
    return PartError(
        f"{place}: {f'no {key}' if value is None else f'{key} is {value!r}'}",
        expected,
        f"set {key} to what the model was trained with; of a model on the hub, in a local copy of its folder",
    )
