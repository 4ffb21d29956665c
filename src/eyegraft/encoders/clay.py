"""Clay v1.5 (Clay Foundation, 2024): satellite patches of any bands, with season, hour, place and pixel size, to tokens.

Clay cuts an image into squares of 8 x 8 pixels. A patch of 9 x 9 is no multiple of that; `grid` says what is done:

| grid       | what the kernel sees                                        | tokens of 9 x 9 | a pixel of Clay's, in metres |
|------------|-------------------------------------------------------------|-----------------|------------------------------|
| `pad16`    | the edge repeated outwards to a multiple of 8               | 4               | gsd                          |
| `kernel3`  | every 3 x 3 pixels, as if each were enlarged to 8 x 8       | 9               | gsd · 3/8                    |
| `resize72` | the patch enlarged 8 times, so one token for each pixel     | 81              | gsd / 8                      |
| `crop`     | whole squares of 8 x 8 alone: one in five pixels is not read | 1               | gsd, which then has no effect |
"""

from __future__ import annotations

import logging
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.encoders._clay_layers import PATCH, SIZES, ClayTrunk
from eyegraft.errors import PartError, shown
from eyegraft.sensors import NamedSensor
from eyegraft.types import PatchSpec, Tokens

log = logging.getLogger(__name__)
_PREFIX = "model.encoder."


class Config(Strict):
    """Attributes:
    size: tiny, small, base or large; the released weights are those of large.
    sensor: the name of a known sensor, or its bands written out; each needs its wavelength.
    side: of a patch, in pixels.
    grid: how a patch becomes squares of tokens, see above.
    checkpoint: a Lightning `.ckpt` of Clay v1.5, or a `.safetensors` file of the same keys; None gives random weights, to be trained from
        nothing with `train.freeze_backbone=false train.finetune_layers=-1`.
    extra_channels: maps beside the bands that have no wavelength (`sza`, `dem`, `lsmask`). They pass a convolution of their own, with the
        kernel size and stride of the patch embedding, and are added to the patches. It is new and starts random: it learns under
        `train.tune.vision_encoder` lora, last_n and full; where this part is frozen it mixes the maps in by a fixed projection.
    """

    size: Literal["tiny", "small", "base", "large"] = "large"
    sensor: NamedSensor
    side: Positive = 9
    grid: Literal["pad16", "kernel3", "resize72", "crop"] = "pad16"
    checkpoint: str | None = None
    extra_channels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _grid_fits(self) -> Config:
        if self.grid == "kernel3" and self.side % 3:
            raise ValueError(
                f"grid=kernel3 needs a side that 3 divides, not {self.side}: pixels would be left out; choose pad16 or resize72"
            )
        if self.grid == "crop" and self.side < PATCH:
            raise ValueError(f"grid=crop needs a side of at least {PATCH} pixels, not {self.side}: nothing would be left; choose pad16")
        if len(set(self.extra_channels)) < len(self.extra_channels):
            raise ValueError(f"extra_channels names one twice: {', '.join(self.extra_channels)}")
        return self


# ── grids ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Grid(NamedTuple):
    """Attributes:
    fit: brings maps [B, C, H, W] to what the kernel divides; with the name of an interpolation, for those that need one.
    kernel: side of the kernel and its stride, in pixels of the fitted map.
    zoom: metres of one of Clay's pixels for each metre of a given pixel.
    """

    fit: Callable[[Tensor, str], Tensor]
    kernel: int
    zoom: float


def _padded(maps: Tensor, _: str) -> Tensor:
    down, across = (-maps.shape[-2] % PATCH, -maps.shape[-1] % PATCH)
    return F.pad(maps, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")


def _cropped(maps: Tensor, _: str) -> Tensor:
    return maps[..., : maps.shape[-2] // PATCH * PATCH, : maps.shape[-1] // PATCH * PATCH]


def _enlarged(maps: Tensor, interpolation: str) -> Tensor:
    aligned = None if interpolation == "nearest" else False
    return F.interpolate(maps, scale_factor=PATCH, mode=interpolation, align_corners=aligned)


GRIDS = {
    "pad16": Grid(_padded, PATCH, 1.0),
    "kernel3": Grid(lambda maps, _: maps, 3, 3 / PATCH),
    "resize72": Grid(_enlarged, PATCH, 1 / PATCH),
    "crop": Grid(_cropped, PATCH, 1.0),
}


# ── the encoder ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class ClayEncoder(nn.Module):
    """{pixels: [B, C, H, W] z-scored, …} -> [B, 1 + N, D], the class token first.

    Optional inputs, as `PatchSpec` and `eyegraft.sensors` have them: `mask` [B, C, H, W], True where a pixel was measured; `extra`
    [B, E, H, W], required with `extra_channels`; `time` [B, 4] and `latlon` [B, 4], zeros or absent where unknown. What was not measured
    counts as its band's mean, and a token with nothing measured in it is no real token.
    """

    def __init__(self, trunk: ClayTrunk, spec: PatchSpec, grid: Grid) -> None:
        super().__init__()
        self.spec = spec
        self.grid = grid
        self.token_dim: int = trunk.cls_token.shape[-1]
        self.backbone: Any = trunk
        self.extra_stem = None
        if spec.extra_channels:
            self.extra_stem = nn.Conv2d(len(spec.extra_channels), self.token_dim, grid.kernel, stride=grid.kernel)
            nn.init.trunc_normal_(self.extra_stem.weight, std=0.02)  # small beside positions and patches, and not without effect

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        bare = self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone  # inside PEFT's wrapping
        stem, *layers = bare.blocks()
        return [[*stem, *self.new_parameters], *layers]

    @property
    def new_parameters(self) -> Sequence[nn.Parameter]:
        """What no file of Clay's weights holds."""
        return [] if self.extra_stem is None else list(self.extra_stem.parameters())

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        pixels = inputs["pixels"]
        self._check("pixels", pixels, self.spec.sensor.band_names)
        unknown = pixels.new_zeros(len(pixels), 4)
        seen = None
        if "mask" in inputs:
            pixels = torch.where(inputs["mask"], pixels, 0)
            seen = self._seen(inputs["mask"])
        encoded = self.backbone(
            self.grid.fit(pixels, "bilinear"),
            inputs.get("time", unknown),
            inputs.get("latlon", unknown),
            added=None if self.extra_stem is None else self._added(inputs),
            seen=seen,
        )
        side = math.isqrt(encoded.shape[1] - 1)
        real = torch.ones(encoded.shape[:2], dtype=torch.bool, device=encoded.device)
        if seen is not None:
            real[:, 1:] = seen
        return Tokens(encoded, real, grid=(side, side), num_prefix=1)

    def _seen(self, mask: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N], whether anything in the token's square was measured."""
        fitted = self.grid.fit(mask.any(1, keepdim=True).float(), "nearest")
        return F.max_pool2d(fitted, self.grid.kernel).flatten(1) > 0

    def _added(self, inputs: Mapping[str, Tensor]) -> Tensor:
        extra = inputs.get("extra")
        if extra is None:
            raise PartError(
                f"no `extra` among the inputs {shown(sorted(inputs))}",
                f"maps of {shown(self.spec.extra_channels)}, as vision_encoder.extra_channels says",
                "prepare patches with these maps, or set vision_encoder.extra_channels=[]",
            )
        self._check("extra", extra, self.spec.extra_channels)
        added: Tensor = self.extra_stem(self.grid.fit(extra, "bilinear"))  # type: ignore[misc]
        return added

    def _check(self, key: str, maps: Tensor, names: Sequence[str]) -> None:
        if tuple(maps.shape[1:]) != (len(names), *self.spec.size):
            raise PartError(
                f"{key} of shape {list(maps.shape)}",
                f"[B, {len(names)}, {self.spec.size[0]}, {self.spec.size[1]}]: the channels {shown(names, 20)}",
                "give the patches' own sensor, side and extra_channels under vision_encoder",
            )


def build(config: Config) -> ClayEncoder:
    grid, size = GRIDS[config.grid], SIZES[config.size]
    facts = (config.sensor.wavelengths_um(), config.sensor.gsd_m * grid.zoom, grid.kernel)
    if config.checkpoint is None:
        trunk = ClayTrunk(size, *facts)
        trains = "train.freeze_backbone=false train.finetune_layers=-1 trains all of it"
        log.info("vision_encoder: Clay %s starts from random weights: %s, and frozen it stays random", config.size, trains)
    else:
        with torch.device("meta"):  # drawing 300 million random numbers to overwrite them takes seconds
            trunk = ClayTrunk(size, *facts)
        trunk.load_state_dict(read_checkpoint(Path(config.checkpoint).expanduser(), config.size, trunk.state_dict()), assign=True)
    if config.grid == "crop":
        unused = config.side**2 - (config.side // PATCH * PATCH) ** 2
        if unused:
            log.warning(
                "vision_encoder.grid=crop: %d of %d pixels (%d %%) of every patch are not read%s; pad16, kernel3 and resize72 read all",
                unused,
                config.side**2,
                round(100 * unused / config.side**2),
                ", and gsd has no effect" if config.side < 2 * PATCH else "",
            )
    return ClayEncoder(trunk, PatchSpec(config.sensor, (config.side, config.side), config.extra_channels, time_and_place=True), grid)


# ── released weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_checkpoint(file: Path, size: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors in float32, under the names of `ClayTrunk`. Teacher, decoder and projections of a training checkpoint are left.

    Args:
        file: `.safetensors`, else what `torch.save` wrote: a Lightning checkpoint with `state_dict`, or the state dict itself. Its keys
            start with `model.encoder.`, or are the encoder's own.
        size: what the tensors must be of.
        wanted: name -> tensor of the right shape.

    Raises:
        PartError: no such file, one that cannot be read as tensors alone, or not exactly the tensors of this size.
    """
    tensors = _tensors(file)
    if any(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    found = _size_of(tensors)
    if found not in (None, size):
        raise PartError(
            f"vision_encoder.checkpoint: a checkpoint of size {found} given: {file}",
            f"{size}, as vision_encoder.size says",
            f"set vision_encoder.size={found}, or give a checkpoint of size {size}",
        )
    missing = [name for name in wanted if name not in tensors]
    unknown = [name for name in tensors if name not in wanted]
    other = [
        f"{name} {list(tensors[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    faults = [
        f"{len(names)} {said}: {shown(names, 3)}"
        for names, said in ((missing, "missing"), (unknown, "unknown"), (other, "of another shape"))
        if names
    ]
    if faults:
        raise PartError(
            f"vision_encoder.checkpoint: {file} holds {len(tensors)} tensors of an encoder; {'; '.join(faults)}",
            f"the {len(wanted)} tensors of Clay v1.5 {size}, below `{_PREFIX}`",
            "give the checkpoint of Clay v1.5 as it was released",
        )
    return {name: tensors[name].to(torch.float32, copy=True) for name in wanted}


def _size_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The size with this width and depth."""
    if "cls_token" not in tensors:
        return None
    dim = tensors["cls_token"].shape[-1]
    depth = len({name.split(".")[2] for name in tensors if name.startswith("transformer.layers.")})
    return next((name for name, size in SIZES.items() if (size.dim, size.depth) == (dim, depth)), None)


def _tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise PartError(
            f"vision_encoder.checkpoint: no file at {file}",
            "a .ckpt or .safetensors file of Clay v1.5",
            "download clay-v1.5.ckpt from its authors, or set vision_encoder.checkpoint=null for random weights",
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # mapped, for teacher, decoder and optimiser need not be read
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))  # the rest of torch's message advises to run what the file holds
        if refused is None:
            raise PartError(f"vision_encoder.checkpoint: {file} is no checkpoint", "what torch.save wrote", "download it again") from error
        raise PartError(
            f"vision_encoder.checkpoint: {file} holds more than tensors and plain values, and is not read: {refused[1]}",
            "tensors, numbers, texts, lists and mappings alone: anything else could run code",
            "where you trust it, save its state_dict as .safetensors with a tool of your own",
        ) from error
    except Exception as error:  # safetensors and torch raise many types for a damaged file
        raise PartError(
            f"vision_encoder.checkpoint: {file} cannot be read: {_first_sentence(error)}", "a whole file", "download it again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
