"""Pictures as patches: the numbers are those of transformers' own image processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyegraft.data.patches import patch_grid, to_patches
from eyegraft.pretrained import ready
from eyegraft.types import ImageSpec

SPEC = ImageSpec((256, 256), (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bilinear", patch_size=16, max_patches=256)
SIZES = [(300, 100), (100, 300), (256, 256), (255, 257), (1, 1), (3, 2), (2000, 10), (10, 2000), (1333, 777), (16, 16), (640, 480)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("most", [256, 100])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_are_those_of_transformers(size: tuple[int, int], most: int) -> None:
    ready()
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    processor = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=most, image_mean=SPEC.mean, image_std=SPEC.std)
    theirs = processor(noise(*size), return_tensors="pt")
    ours = to_patches(noise(*size), replace(SPEC, max_patches=most))
    assert ours["grid"].tolist() == theirs["spatial_shapes"][0].tolist()
    assert torch.equal(ours["mask"], theirs["pixel_attention_mask"][0].bool())
    torch.testing.assert_close(ours["pixels"], theirs["pixel_values"][0].float(), rtol=0, atol=1e-6)


def test_a_patch_is_a_piece_of_the_picture() -> None:
    """At scale 1 the patches are cut out of the picture, row by row, and nothing else is there."""
    picture = noise(64, 32)
    made = to_patches(picture, replace(SPEC, max_patches=10, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert made["grid"].tolist() == [2, 4]
    assert made["mask"].tolist() == [True] * 8 + [False] * 2
    piece = np.asarray(picture.crop((16, 16, 32, 32)))  # row 1, column 1
    assert np.allclose(made["pixels"][5].numpy() * 255, piece.reshape(-1), atol=1e-3)
    assert not made["pixels"][8:].any()
    assert {key: tensor.dtype for key, tensor in made.items()} == {"pixels": torch.float32, "mask": torch.bool, "grid": torch.int64}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_any_mode_gives_the_encoders_channels(mode: str) -> None:
    assert to_patches(noise(40, 20, mode), SPEC)["pixels"].shape == (256, 16 * 16 * 3)


def test_grey_encoders_take_grey_patches() -> None:
    grey = replace(SPEC, mean=(0.5,), std=(0.5,))
    assert to_patches(noise(40, 20), grey)["pixels"].shape == (256, 16 * 16)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([14, 16, 32]), st.integers(1, 1024))
def test_the_grid_fits_and_fills(height: int, width: int, patch: int, most: int) -> None:
    rows, columns = patch_grid(height, width, patch, most)
    assert 1 <= rows * columns <= most
    # one row and one column more would not fit, unless the scale has reached its end
    assert (rows + 1) * (columns + 1) > most or max(height, width) * 100 <= max(rows, columns) * patch


def test_a_spec_of_fixed_size_is_refused() -> None:
    with pytest.raises(ValueError, match="patch_size and max_patches"):
        to_patches(noise(8, 8), replace(SPEC, patch_size=None))
