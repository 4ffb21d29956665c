"""What an encoder of patches takes: z-scored bands, what of them was measured, further maps, time and place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from eyegraft.data.patch_rows import PatchRows, located
from eyegraft.data.patch_statistics import fit, read_statistics
from eyegraft.errors import DataError, shown
from eyegraft.sensors import Sensor, latlon4, time4
from eyegraft.types import Inputs, PatchSpec, Sample


class PatchReader:
    """Patches of many channels from patch stores, z-scored as the spec says."""

    slow = random = False

    def __init__(self, spec: PatchSpec) -> None:
        self.spec = spec
        bands = [(band.mean or 0.0, band.std or 1.0) for band in spec.sensor.bands]
        extra = [spec.extra_statistics.get(name, (0.0, 1.0)) for name in spec.extra_channels]
        # [C, 1, 1]
        self._mean, self._std = torch.tensor(bands, dtype=torch.float32).T.reshape(2, -1, 1, 1)
        self._extra_mean, self._extra_std = torch.tensor(extra, dtype=torch.float32).reshape(-1, 2).T.reshape(2, -1, 1, 1)

    def reads_patches(self, rows: PatchRows) -> bool:
        return True

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return torch.ones(len(samples), dtype=torch.bool)

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        parts, places = [], []
        for rows, positions in located(samples):
            x, time, extra = rows.x(), rows.column("time"), tuple(rows.facts["extra"])
            parts.append(self.inputs(x, extra, time, rows.column("lat"), rows.column("lon")))
            places.append(torch.as_tensor(positions))
        if len(parts) == 1 and isinstance(samples, PatchRows):
            return parts[0]
        order = torch.argsort(torch.cat(places))
        return {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}

    def blank(self) -> Inputs:
        """Everything at its mean, and nothing known of time and place."""
        size, known = self.spec.size, torch.zeros(1, 4)
        pixels, extra = torch.zeros(1, len(self._mean), *size), torch.zeros(1, len(self._extra_mean), *size)
        return self._named(pixels, torch.ones_like(pixels, dtype=torch.bool), extra, known, known)

    def inputs(
        self, x: NDArray[np.float32], extra_names: Sequence[str], time: NDArray[np.datetime64], lat: ArrayLike, lon: ArrayLike
    ) -> dict[str, Tensor]:
        """What the encoder takes for patches in physical units.

        Args:
            x: [B, C + E', H, W], the sensor's bands and then the maps called `extra_names`; NaN where nothing was measured.
            time: [B] UTC; lat, lon: [B] degrees.

        Raises:
            DataError: another number of channels, or a map that the encoder wants is not among them.
        """
        count, missing = len(self._mean), [name for name in self.spec.extra_channels if name not in extra_names]
        if missing or x.shape[1] != count + len(extra_names):
            raise DataError(
                f"patches of {x.shape[1]} channels, the last of them {shown(list(extra_names)) or 'bands'}",
                f"{count} bands and {shown(list(self.spec.extra_channels)) or 'nothing more'}",
                "set vision_encoder.sensor and vision_encoder.extra_channels to what the patches hold",
            )
        maps = torch.from_numpy(x)
        mask = torch.from_numpy(np.isfinite(x[:, :count]))  # a tenth of the time that torch takes
        pixels = (maps[:, :count] - self._mean).div_(self._std).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        places = [count + list(extra_names).index(name) for name in self.spec.extra_channels]
        extra = (maps[:, places] - self._extra_mean) / self._extra_std
        return self._named(pixels, mask, extra.nan_to_num_(0.0), torch.from_numpy(time4(time)), torch.from_numpy(latlon4(lat, lon)))

    def _named(self, pixels: Tensor, mask: Tensor, extra: Tensor, time: Tensor, latlon: Tensor) -> dict[str, Tensor]:
        found = {"pixels": pixels, "mask": mask, **({"extra": extra} if extra.shape[1] else {})}
        return {**found, "time": time, "latlon": latlon} if self.spec.time_and_place else found


def learn_patches(spec: PatchSpec, train: Sequence[Sample], statistics_file: Path | None) -> dict[str, Any]:
    """See `eyegraft.data.inputs.learn_inputs`."""
    if not isinstance(train, PatchRows):
        raise DataError("pictures, and vision_encoder reads patches of many channels", "patch stores", "set data.satellite.patches")
    declared = Sensor.model_validate(train.facts["sensor"])
    spec.sensor.require_same(declared, here="vision_encoder.sensor", there=f"the patches in {train.store.path}")
    size = train.store.schema.fields["x"].shape[1:]
    if tuple(size) != tuple(spec.size):
        given = f"patches of {size[0]} x {size[1]} pixels in {train.store.path}"
        raise DataError(given, f"{spec.size[0]} x {spec.size[1]}, as vision_encoder.side says", f"set vision_encoder.side={size[0]}")
    missing = [name for name in spec.extra_channels if name not in train.facts["extra"]]
    if missing:
        raise DataError(
            f"vision_encoder.extra_channels: {shown(missing)} not in {train.store.path}",
            f"some of {', '.join(train.facts['extra']) or 'none'}",
            "set vision_encoder.extra_channels to maps that the patches hold",
        )
    channels = list(train.facts["channels"])
    there = statistics_file is not None and statistics_file.exists()
    fitted = read_statistics(statistics_file, channels, train=train.store) if there and statistics_file else fit(train.store)
    pairs = {name: (moments["mean"], moments["std"]) for name, moments in fitted["inputs"].items()}
    bands = {band.name: pairs[channel] for band, channel in zip(spec.sensor.bands, channels, strict=False)}
    extra = {name: list(pairs[name]) for name in spec.extra_channels if name in pairs}
    return {"sensor": spec.sensor.with_statistics(bands).model_dump(mode="json"), "extra_statistics": extra}


def with_statistics(spec: PatchSpec, learned: Mapping[str, Any]) -> PatchSpec:
    extra = {name: tuple(pair) for name, pair in learned["extra_statistics"].items()}
    return replace(spec, sensor=Sensor.model_validate(learned["sensor"]), extra_statistics=extra)
