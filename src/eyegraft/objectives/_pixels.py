"""What the objectives that read pixels share: what of a batch was measured, and how an encoder lays out its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eyegraft.errors import PartError
from eyegraft.types import Batch, ImageSpec, Inputs, PatchSpec, Tokens

MODALITY = "image"


def measured_pixels(batch: Batch) -> tuple[Tensor, Tensor]:
    """(pixels [B, C, H, W], where they were measured [B, C, H, W] bool). Nothing is measured of a sample without a picture."""
    given = batch.inputs[MODALITY]
    pixels: Tensor = given["pixels"] if isinstance(given, Mapping) else given
    mask = given.get("mask") if isinstance(given, Mapping) else None
    measured = torch.ones_like(pixels, dtype=torch.bool) if mask is None else mask
    return pixels, measured & present(batch).bool()[:, None, None, None]


def present(batch: Batch) -> Tensor:
    """[B] float32, 1 where a sample has a picture. A batch of views has the rows of its first view here."""
    found = batch.present.get(MODALITY)
    return batch.targets.new_ones(len(batch)) if found is None else found[: len(batch)].to(batch.targets.dtype)


def layout(model: Any, objective: str, *, reads_views: bool = False) -> Tokens:
    """The tokens of one blank picture, or of one view of it; the encoder is left in evaluation mode.

    Args:
        reads_views: whether the objective can make use of several views of a picture.

    Raises:
        PartError: the encoder takes no pictures of one size, or several views of each that are not asked for.
    """
    encoder = model.encoders[MODALITY]
    spec, device = encoder.spec, next(encoder.parameters()).device
    if not isinstance(spec, PatchSpec) and not (isinstance(spec, ImageSpec) and spec.patch_size is None):
        raise PartError(
            f"objective {objective} with vision_encoder of {type(encoder).__name__}, whose pictures vary in shape",
            "an encoder of pictures or patches of one size",
            "choose another vision_encoder",
        )
    if isinstance(spec, ImageSpec) and spec.views is not None and not reads_views:
        raise PartError(
            f"objective {objective} with views: {spec.views.strategy}, {spec.views.num_views} pictures of each sample",
            "one picture of each",
            "use objective vicreg or densecl, or set views=none",
        )
    with torch.no_grad():
        tokens: Tokens = encoder.eval()(_blank(spec, device))
    return tokens


def _blank(spec: ImageSpec | PatchSpec, device: torch.device) -> Inputs:
    if isinstance(spec, ImageSpec):
        return torch.zeros(1, spec.channels, *spec.size, device=device)
    pixels = torch.zeros(1, len(spec.sensor.bands), *spec.size, device=device)
    return {"pixels": pixels, "extra": torch.zeros(1, len(spec.extra_channels), *spec.size, device=device)}
