"""Vision towers of transformers: the values are theirs, and so is the image transform."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny
from eyegraft.data.images import to_pixels
from eyegraft.encoders.huggingface import Config, build
from eyegraft.errors import PartError

FAMILIES = ["siglip", "clip", "dinov2", "vit", "resnet"]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_transformers(folders: Any, family: str) -> None:
    from transformers import AutoModel

    encoder = build(Config(model=folders.vision(family))).eval()
    model = AutoModel.from_pretrained(folders.vision(family)).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state
        ours = encoder(pixels)
    if theirs.ndim == 4:
        assert ours.grid == tuple(theirs.shape[2:])
        theirs = theirs.flatten(2).transpose(1, 2)
    assert torch.equal(ours.values, theirs)
    prefix = {"siglip": 0, "clip": 1, "dinov2": 1, "vit": 1, "resnet": 0}[family]
    assert ours.num_prefix == prefix
    assert encoder.spec.size == (32, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_come_from_the_folder_unless_told_otherwise(folders: Any, family: str) -> None:
    torch.manual_seed(7)
    loaded, fresh = build(Config(model=folders.vision(family))), build(Config(model=folders.vision(family), pretrained=False))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(build(Config(model=folders.vision(family))).eval()(pixels).values, loaded.eval()(pixels).values)
        assert not torch.equal(fresh.eval()(pixels).values, loaded(pixels).values)


@pytest.mark.parametrize("family", ["siglip", "clip", "dinov2", "vit"])
def test_what_the_tokens_do_not_need_is_left_out(folders: Any, family: str) -> None:
    """Pooling heads and mask tokens would be trained without a gradient."""
    names = [name for name, _ in build(Config(model=folders.vision(family))).named_parameters()]
    assert not [
        name
        for name in names
        if any(word in name for word in ("mask_token", "pooler", ".head.", "post_layernorm" if family == "clip" else "pooler"))
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_give_a_float32_encoder(folders: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    """Pixels are float32, and `full` needs float32 weights."""
    from transformers import AutoModel

    AutoModel.from_pretrained(folders.vision("vit"), add_pooling_layer=False).to(dtype).save_pretrained(tmp_path)
    shutil.copy(Path(folders.vision("vit")) / "preprocessor_config.json", tmp_path)
    encoder = build(Config(model=str(tmp_path)))
    assert encoder(torch.zeros(1, 3, 32, 32)).values.dtype == torch.float32


def settings(folders: Any, tmp_path: Path, changes: dict[str, Any]) -> str:
    """The tiny ViT with another `preprocessor_config.json`."""
    source = Path(folders.vision("vit"))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **changes}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # as google/siglip-base-patch16-224 and google/vit-base-patch16-224 write it
        ({"size": {"height": 32, "width": 32}, "resample": 3}, {"fit": "squash", "interpolation": "bicubic", "crop_fraction": 1.0}),
        ({"size": {"height": 32, "width": 32}, "resample": 2}, {"fit": "squash", "interpolation": "bilinear"}),
        # facebook/dinov2-base: resize to 256, crop 224
        (
            {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 3},
            {"fit": "crop", "crop_fraction": 0.5},
        ),
        # openai/clip-vit-base-patch32 in its old form: bare numbers
        ({"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3}, {"fit": "crop", "crop_fraction": 1.0}),
        # microsoft/resnet-50: the short side is resized to size / crop_pct, then cropped
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3}, {"fit": "crop", "crop_fraction": 0.875}),
        ({"size": {"height": 32, "width": 32}, "resample": 1}, {"interpolation": "lanczos"}),
    ],
    ids=["siglip", "vit", "dinov2", "old-clip", "resnet", "lanczos"],
)
def test_the_transform_is_read_from_the_folder(folders: Any, tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = build(Config(model=settings(folders, tmp_path, changes))).spec
    assert spec.size == (32, 32)
    assert spec.mean == (0.1, 0.2, 0.3)
    assert spec.std == (0.4, 0.5, 0.6)
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize("family", ["siglip", "clip", "dinov2", "vit"])
def test_pixels_are_those_of_transformers(folders: Any, tmp_path: Path, family: str) -> None:
    """The same picture through our transform and through transformers' own image processor (8-bit rounding aside)."""
    import transformers as t

    family_class = {
        "siglip": "SiglipImageProcessor",
        "clip": "CLIPImageProcessor",
        "dinov2": "BitImageProcessor",
        "vit": "ViTImageProcessor",
    }
    name = family_class.get(family)
    pil = getattr(t, f"{name}Pil", None) if name else None
    if pil is None:
        pytest.skip("this version of transformers has no such processor on Pillow")
    picture = Image.open(tiny.picture(tmp_path / "a.png", "blue", "triangle", side=50)).resize((60, 50)).convert("RGB")
    theirs = pil.from_pretrained(folders.vision(family))(picture, return_tensors="pt")["pixel_values"][0]
    ours = to_pixels(picture, build(Config(model=folders.vision(family))).spec)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 0.03


@pytest.mark.parametrize("model", ["no/such-model-anywhere", "EMPTY"])
def test_a_model_that_is_not_there_says_what_would_be(tmp_path: Path, model: str) -> None:
    with pytest.raises(PartError, match="cannot be loaded") as caught:
        build(Config(model=str(tmp_path) if model == "EMPTY" else model))
    assert "preprocessor_config.json" in caught.value.expected


def test_a_folder_without_a_transform_is_refused(folders: Any, tmp_path: Path) -> None:
    """Guessed pixels would silently cost accuracy."""
    place = Path(settings(folders, tmp_path, {}))
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(PartError, match="cannot be loaded"):
        build(Config(model=str(place)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_mean": None}, "no image_mean"),
        ({"image_std": None, "do_normalize": True}, "no image_std"),
        ({"image_std": 0.5}, "image_std is 0.5"),
        ({"resample": 5}, "resample is 5"),
        ({"resample": None}, "no resample"),
        ({"size": {"longest_edge": 32}}, "size is {'longest_edge': 32}"),
        ({"size": "32"}, "size is '32'"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32}}, "crop_size is {'height': 32}"),
    ],
)
def test_a_transform_that_cannot_be_followed_is_refused(folders: Any, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    changed = {"size": 32, "resample": 3, **changes}
    with pytest.raises(PartError) as caught:
        build(Config(model=settings(folders, tmp_path, changed)))
    assert caught.value.given.endswith(said)
    assert "preprocessor_config.json" in caught.value.given
    assert caught.value.expected
    assert "local copy" in caught.value.fix


def test_pixels_that_are_not_normalized_stay_from_zero_to_one(folders: Any, tmp_path: Path) -> None:
    changes = {"size": [32, 32], "do_normalize": False, "image_mean": None, "image_std": None}
    spec = build(Config(model=settings(folders, tmp_path, changes))).spec
    assert (spec.mean, spec.std, spec.size) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (32, 32))


def test_models_without_a_plain_grid_are_refused(tmp_path: Path) -> None:
    """Swin merges its patches on the way."""
    import transformers as t

    config = t.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    t.SwinModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    transform = {"size": 32, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(transform))
    with pytest.raises(PartError, match="SwinModel gives 64 tokens for a picture of 32 x 32 with patch_size 2") as caught:
        build(Config(model=str(tmp_path)))
    assert "timm" in caught.value.fix
