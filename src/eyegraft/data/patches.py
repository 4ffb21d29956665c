"""Pictures in their own aspect ratio, as a sequence of patches (NaFlex: Tschannen et al. 2025, SigLIP 2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eyegraft.types import ImageSpec

if TYPE_CHECKING:
    from torch import Tensor

_SCALES = (1e-6, 100.0)  # between which transformers looks, and how near it comes: another bound or step gives tiny pictures another grid
_STEP = 1e-5


def to_patches(picture: Image.Image, spec: ImageSpec) -> dict[str, Tensor]:
    """A picture as a NaFlex encoder takes it, with P = `spec.patch_size` and N = `spec.max_patches`.

    It is scaled, up or down, to as many whole patches as N allows; the aspect ratio is kept but for the rounding of each side up to a
    multiple of P. The numbers are those of transformers' `Siglip2ImageProcessor`.

    Returns:
        pixels: [N, P·P·C] float32, ((value / 255) - mean) / std, patches row by row, each patch row by row with its channels last; 0 where
            there is no patch.
        mask: [N] bool, True where there is one.
        grid: [2] int64, rows and columns of patches.
    """
    import torch

    patch, most = spec.patch_size, spec.max_patches
    if patch is None or most is None:
        raise ValueError("to_patches needs an ImageSpec with patch_size and max_patches")
    mode = "L" if spec.channels == 1 else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    rows, columns = patch_grid(picture.height, picture.width, patch, most)
    fitted = picture.resize((columns * patch, rows * patch), Image.Resampling[spec.interpolation.upper()])
    values = torch.from_numpy(np.array(fitted, copy=True)).view(rows, patch, columns, patch, spec.channels).to(torch.float32).div(255)
    values = values.sub_(torch.tensor(spec.mean, dtype=torch.float32)).div_(torch.tensor(spec.std, dtype=torch.float32))
    pixels = torch.zeros(most, patch * patch * spec.channels)
    pixels[: rows * columns] = values.permute(0, 2, 1, 3, 4).reshape(rows * columns, -1)  # [h·w, P·P·C]
    return {"pixels": pixels, "mask": torch.arange(most) < rows * columns, "grid": torch.tensor([rows, columns])}


def patch_grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches for a picture of height x width pixels: those of the largest scale with at most `max_patches`."""

    def at(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / patch_size)), max(1, math.ceil(width * scale / patch_size))

    fits, too_large = _SCALES
    while too_large - fits >= _STEP:
        middle = (fits + too_large) / 2
        if math.prod(at(middle)) <= max_patches:
            fits = middle
        else:
            too_large = middle
    return at(fits)
