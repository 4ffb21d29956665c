"""Random views of pictures and patches that leave their meaning as it is, made of whole batches on their own device.

All chance comes from torch's global generator, which training seeds for every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from eyegraft.config import Fraction, NonNegative, Strict

Chance = Annotated[float, Field(ge=0, lt=1)]


class PatchViews(Strict):
    """Attributes:
    turns: flips and, of square patches, quarter turns.
    shift: pixels that a patch is moved by at most, each way; what comes in from outside is not measured.
    window: side of the window that a local view shows, as a share of the patch.
    band_dropout: chance of each band to be not measured at all; pixel_dropout: of each pixel, in all bands.
    extra_dropout: chance of each extra map to be 0. Elevation alone tells one place from another, and views would be told apart by it.
    noise: standard deviation of what is added to pixels, in standard deviations of their band.
    """

    turns: bool = True
    shift: NonNegative = 1
    window: Annotated[float, Field(gt=0, le=1)] = 0.6
    band_dropout: Chance = 0.1
    pixel_dropout: Chance = 0.1
    extra_dropout: Chance = 0.5
    noise: Annotated[float, Field(ge=0)] = 0.1


class PictureViews(Strict):
    """Attributes:
    crop, local_crop: least and greatest share of the area that a view shows, enlarged to the whole.
    brightness, contrast, saturation: half-ranges of a shift in standard deviations, and of two factors around 1.
    flip: chance of a horizontal flip; 0 for pictures with writing.
    """

    crop: tuple[Fraction, Fraction] = (0.4, 1.0)
    local_crop: tuple[Fraction, Fraction] = (0.1, 0.4)
    brightness: Annotated[float, Field(ge=0)] = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    flip: Fraction = 0.5

    @model_validator(mode="after")
    def _from_less_to_more(self) -> PictureViews:
        for name, (low, high) in (("crop", self.crop), ("local_crop", self.local_crop)):
            if not 0 < low <= high:
                raise ValueError(f"{name}=({low:g}, {high:g}): give a share above 0 and one that is no smaller")
        return self


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def patch_view(given: Mapping[str, Tensor], views: PatchViews, *, local: bool = False) -> dict[str, Tensor]:
    """Another view of each patch: {pixels, mask, extra}. Time and place are left out, for they would tell which views belong together."""
    pixels = given["pixels"]
    measured = given.get("mask", torch.ones_like(pixels, dtype=torch.bool))
    bands = pixels.shape[1]
    extra = given.get("extra", pixels[:, :0])
    maps = torch.cat([torch.where(measured, pixels, 0), extra, measured.to(pixels.dtype)], dim=1)
    inside = torch.ones_like(measured[:, :1])
    places = torch.arange(inside[0].numel(), device=maps.device).view(inside[:1].shape).expand_as(inside)  # which pixel comes where
    if views.turns:
        places = _turned(places)
    if views.shift:
        places, inside = _shifted(places, views.shift)
    maps = maps.flatten(2).gather(2, places.flatten(2).expand(-1, maps.shape[1], -1)).view_as(maps)
    if local:
        inside = inside & _window(inside, views.window)
    pixels, extra, mask = maps[:, :bands], maps[:, bands:-bands], maps[:, -bands:] > 0
    pixels = pixels + views.noise * torch.randn_like(pixels)
    mask = mask & inside & _kept(inside, views.pixel_dropout) & _kept_bands(mask, views.band_dropout)
    extra = torch.where(inside & _kept(extra[:, :, :1, :1], views.extra_dropout), extra, 0)
    view = {"pixels": pixels, "mask": mask}
    return {**view, "extra": extra} if "extra" in given else view


def _coin(maps: Tensor, chance: float = 0.5) -> Tensor:
    """[B, 1, 1, 1] bool."""
    return torch.rand(len(maps), 1, 1, 1, device=maps.device) < chance


def _turned(maps: Tensor) -> Tensor:
    """One of the eight symmetries of a square for each row, or of the four of a rectangle."""
    maps = torch.where(_coin(maps), maps.flip(-1), maps)
    maps = torch.where(_coin(maps), maps.flip(-2), maps)
    if maps.shape[-1] != maps.shape[-2]:
        return maps
    return torch.where(_coin(maps), maps.transpose(-1, -2), maps)


def _shifted(maps: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Maps moved by up to `most` pixels each way, and where they are still of the patch, [B, 1, H, W]."""
    inside = torch.ones_like(maps[:, :1], dtype=torch.bool)
    for dim in (2, 3):
        side = maps.shape[dim]
        by = torch.randint(-most, most + 1, (len(maps), 1), device=maps.device)
        source = torch.arange(side, device=maps.device) + by  # [B, side]
        shape = (len(maps), 1, side, 1) if dim == 2 else (len(maps), 1, 1, side)
        maps = torch.take_along_dim(maps, source.clamp(0, side - 1).view(shape), dim)
        inside = inside & ((source >= 0) & (source < side)).view(shape)
    return maps, inside


def _window(like: Tensor, share: float) -> Tensor:
    """[B, 1, H, W], True in a window at a random place."""
    rows, columns = (_stretch(len(like), side, max(1, round(share * side)), like.device) for side in like.shape[2:])  # [B, H] and [B, W]
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def _stretch(number: int, side: int, length: int, device: torch.device) -> Tensor:
    start = torch.randint(0, side - length + 1, (number, 1), device=device)
    place = torch.arange(side, device=device)
    return (place >= start) & (place < start + length)


def _kept(like: Tensor, dropout: float) -> Tensor:
    return torch.rand(like.shape, device=like.device) >= dropout


def _kept_bands(mask: Tensor, dropout: float) -> Tensor:
    """[B, C, 1, 1]; where chance would drop all bands, none is dropped."""
    kept = _kept(mask[:, :, :1, :1], dropout)
    return kept | ~kept.any(1, keepdim=True)


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def picture_view(pixels: Tensor, views: PictureViews, *, local: bool = False) -> Tensor:
    """Another view of each picture [B, C, H, W]: a part of it, enlarged, in other colours."""
    low, high = views.local_crop if local else views.crop
    side = (low + (high - low) * torch.rand(len(pixels), device=pixels.device, dtype=pixels.dtype)).sqrt()
    place = (1 - side)[:, None] * (2 * torch.rand(len(pixels), 2, device=pixels.device, dtype=pixels.dtype) - 1)
    mirrored = torch.where(_coin(pixels, views.flip).flatten(), -side, side)
    nothing = torch.zeros_like(side)
    affine = torch.stack([torch.stack([mirrored, nothing, place[:, 0]], 1), torch.stack([nothing, side, place[:, 1]], 1)], 1)  # [B, 2, 3]
    places = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    view = F.grid_sample(pixels, places, padding_mode="border", align_corners=False)
    grey, middle = view.mean(1, keepdim=True), view.mean((2, 3), keepdim=True)
    view = grey + (view - grey) * (1 + _around_zero(view, views.saturation))
    view = middle + (view - middle) * (1 + _around_zero(view, views.contrast))
    return view + _around_zero(view, views.brightness)


def _around_zero(maps: Tensor, half_range: float) -> Tensor:
    """[B, 1, 1, 1]"""
    return half_range * (2 * torch.rand(len(maps), 1, 1, 1, device=maps.device, dtype=maps.dtype) - 1)
