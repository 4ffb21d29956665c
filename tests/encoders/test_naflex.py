"""SigLIP 2 NaFlex: pictures in their own aspect ratio, in batches of different grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny
from eyegraft.config import Lora
from eyegraft.data.patches import to_patches
from eyegraft.encoders.huggingface import Config, NaFlexEncoder, build
from eyegraft.tuning import add_adapter

SIZES = [(60, 50), (30, 90), (90, 30), (200, 9)]


@pytest.fixture
def encoder(folders: Any) -> Any:
    made = build(Config(model=folders.vision("naflex"))).eval()
    assert isinstance(made, NaFlexEncoder)
    return made


def pictures(folder: Path) -> list[Image.Image]:
    drawn = Image.open(tiny.picture(folder / "a.png", "blue", "triangle", side=50)).convert("RGB")
    return [drawn.resize(size) for size in SIZES]


def batch(pictures: list[Image.Image], spec: Any) -> dict[str, torch.Tensor]:
    items = [to_patches(picture, spec) for picture in pictures]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def test_from_pictures_to_tokens_as_transformers_does(folders: Any, encoder: Any, tmp_path: Path) -> None:
    """Its own image processor and model on one side, our patches and encoder on the other: four shapes in one batch."""
    from transformers import AutoModel
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    place = folders.vision("naflex")
    processed = Siglip2ImageProcessorPil.from_pretrained(place)(pictures(tmp_path), return_tensors="pt")
    inputs = batch(pictures(tmp_path), encoder.spec)
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(place).vision_model.eval()(**processed).last_hidden_state
        ours = encoder(inputs)
    assert len({tuple(grid) for grid in inputs["grid"].tolist()}) == len(SIZES), "every shape has its own grid"
    assert torch.equal(ours.mask, processed["pixel_attention_mask"].bool())
    assert not ours.mask.all()
    assert (ours.grid, ours.num_prefix) == (None, 0)
    torch.testing.assert_close(ours.values[ours.mask], theirs[ours.mask], rtol=1e-5, atol=1e-5)


def test_spec_is_read_from_the_folder(encoder: Any) -> None:
    assert (encoder.spec.patch_size, encoder.spec.max_patches) == (8, 16)
    assert encoder.spec.size == (32, 32), "a square of as many patches"
    assert (encoder.spec.mean, encoder.spec.interpolation) == ((0.5, 0.4, 0.3), "bicubic")


def test_a_picture_does_not_hang_on_its_neighbours(encoder: Any, tmp_path: Path) -> None:
    inputs = batch(pictures(tmp_path), encoder.spec)
    with torch.no_grad():
        together = encoder(inputs).values
        for number in range(len(SIZES)):
            alone = encoder({key: tensor[number : number + 1] for key, tensor in inputs.items()}).values
            torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-5)


def test_tokens_know_where_they_lie(encoder: Any) -> None:
    """The same patches in another arrangement are another picture."""
    tiny.lively(encoder, scale=1.0)
    inputs = {"pixels": torch.randn(1, 16, 8 * 8 * 3), "mask": torch.ones(1, 16, dtype=torch.bool)}
    with torch.no_grad():
        wide, tall = (encoder({**inputs, "grid": torch.tensor([grid])}).values for grid in ([2, 8], [8, 2]))
    assert (wide - tall).abs().max() > 1e-2


def test_what_the_tokens_do_not_need_is_left_out(encoder: Any) -> None:
    assert not [name for name, _ in encoder.named_parameters() if "head" in name]


def test_blocks_are_the_layers(encoder: Any) -> None:
    """`last_n: 1` trains the last layer and the norm after it; the stem comes first."""
    names = {id(parameter): name for name, parameter in encoder.backbone.named_parameters()}
    blocks = [{names[id(parameter)].rsplit(".", 2)[0] for parameter in block} for block in encoder.blocks]
    assert len(blocks) == 3
    assert blocks[0] == {"embeddings"}
    assert all(name.startswith(("encoder.layers.1", "post_layernorm")) for name in blocks[-1])
    assert all(name.startswith("encoder.layers.0") for name in blocks[1])


@pytest.mark.parametrize("family", ["naflex", "siglip", "vit"])
def test_adapters_on_query_key_and_value(folders: Any, family: str) -> None:
    """q_proj, k_proj and v_proj of the last layer alone, and they learn."""
    encoder = build(Config(model=folders.vision(family)))
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    lora = Lora(rank=2, alpha=2, target_modules=("q_proj", "k_proj", "v_proj"), target_layers=1)
    added = add_adapter("vision_encoder", encoder, lora)
    names = [name for name, parameter in encoder.named_parameters() if any(parameter is one for one in added)]
    assert len(names) == 3 * 2
    assert {name.split("_proj")[0][-1] for name in names} == {"q", "k", "v"}
    assert all(".1." in name for name in names), "the last of two layers"
    tiny.lively(encoder, scale=1.0)
    spec = encoder.spec
    pixels: Any = torch.randn(2, 3, *spec.size)
    if spec.patch_size is not None:
        pixels = batch([Image.effect_noise((40, 20), 90).convert("RGB"), Image.effect_noise((20, 40), 90).convert("RGB")], spec)
    values = encoder(pixels).values
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in added)
