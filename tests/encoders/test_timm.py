"""Models of timm: the values are theirs, local weights load strictly, and the packaged ImageNet weights see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eyegraft.data.images import open_image, to_pixels
from eyegraft.encoders.timm import Config, build
from eyegraft.errors import PartError
from eyegraft.pretrained import ready, resolve

DRAWINGS = Path(__file__).parents[2] / "src" / "eyegraft" / "prepare" / "drawings" / "images"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with weights of `test_resnet` as timm would publish them, classifier included."""
    ready()
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(11)
    save_file(
        {name: tensor.contiguous() for name, tensor in timm.create_model("test_resnet").state_dict().items()},
        tmp_path / "model.safetensors",
    )
    return tmp_path


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_values_are_those_of_timm(name: str) -> None:
    ready()
    import timm

    encoder = build(Config(model=name, pretrained=False)).eval()
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(encoder.backbone.state_dict(), strict=False)
    pixels = torch.randn(2, 3, *encoder.spec.size)
    with torch.no_grad():
        theirs, ours = model.forward_features(pixels), encoder(pixels).values
    theirs = theirs if theirs.ndim == 3 else theirs.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=float(theirs.abs().max()) * 1e-5)


def test_channels_last_models_keep_their_grid() -> None:
    """Swin gives [B, h, w, D], which must not be read as [B, D, h, w]."""
    encoder = build(Config(model="swin_tiny_patch4_window7_224", pretrained=False)).eval()
    with torch.no_grad():
        tokens = encoder(torch.zeros(1, 3, 224, 224))
    assert tokens.values.shape == (1, 49, 768)
    assert tokens.grid == (7, 7)


def block_names(model: str) -> list[set[str]]:
    encoder = build(Config(model=model, pretrained=False))
    names = {id(parameter): name for name, parameter in encoder.backbone.named_parameters()}
    return [{names[id(parameter)] for parameter in block} for block in encoder.blocks]


@pytest.mark.parametrize(
    ("model", "last", "before"),
    [
        ("vit_tiny_patch16_224", {"blocks.11.", "norm."}, {"blocks.10."}),
        ("test_vit", {"blocks.5.", "norm."}, {"blocks.4."}),
        ("resnet18", {"layer4.1."}, {"layer4.0."}),
        ("test_resnet", {"layer4.0."}, {"layer3.0."}),
        ("tf_efficientnet_lite0", {"blocks.6.0.", "conv_head.", "bn2."}, {"blocks.5.3."}),
        ("test_efficientnet", {"blocks.4.0.", "conv_head.", "bn2."}, {"blocks.3.0."}),
        ("test_convnext", {"stages.3.blocks.1."}, {"stages.3.downsample.", "stages.3.blocks.0."}),
        ("swin_tiny_patch4_window7_224", {"layers.3.blocks.1.", "norm."}, {"layers.3.downsample.", "layers.3.blocks.0."}),
        # timm counts these ends as groups of their own: one of them alone would be no block to train
        ("mobilenetv3_small_050", {"blocks.5.0."}, {"blocks.4.2."}),
        ("hgnet_tiny", {"stages.3.downsample.", "stages.3.blocks.0."}, {"stages.2.blocks.1."}),
        ("densenet121", {"features.denseblock4.denselayer16.", "features.norm5."}, {"features.denseblock4.denselayer15."}),
        # blocks that are numbered within a word, or are a single layer
        ("regnetx_002", {"s4.b7."}, {"s4.b6."}),
        ("vgg11", {"features.18."}, {"features.16."}),
    ],
)
def test_the_last_block_is_one_block(model: str, last: set[str], before: set[str]) -> None:
    """`last_n: 1` trains the last block and the norm or convolution after it, not the block before."""
    blocks = block_names(model)
    for names, starts in ((blocks[-1], last), (blocks[-2], before)):
        assert {start for start in starts if any(name.startswith(start) for name in names)} == starts
        assert not [name for name in names if not name.startswith(tuple(starts))]


@pytest.mark.parametrize("as_file", [True, False])
def test_local_weights(weights: Path, as_file: bool) -> None:
    from safetensors.torch import load_file

    place = weights / "model.safetensors" if as_file else weights
    encoder = build(Config(model="test_resnet", weights=str(place)))
    file = load_file(weights / "model.safetensors")
    assert all(torch.equal(tensor, file[name]) for name, tensor in encoder.backbone.state_dict().items())


def test_a_missing_tensor_is_refused(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = load_file(weights / "model.safetensors")
    del file["layer1.0.conv1.weight"]
    save_file(file, weights / "model.safetensors")
    with pytest.raises(PartError, match=r"1 tensors missing \(\['layer1.0.conv1.weight'\]\)"):
        build(Config(model="test_resnet", weights=str(weights)))


def test_an_unknown_tensor_is_refused(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({**load_file(weights / "model.safetensors"), "extra.weight": torch.zeros(1)}, weights / "model.safetensors")
    with pytest.raises(PartError, match=r"1 unknown \(\['extra.weight'\]\)"):
        build(Config(model="test_resnet", weights=str(weights)))


def test_weights_of_another_width_are_refused(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = load_file(weights / "model.safetensors")
    file["conv1.0.weight"] = torch.zeros(3, 3)
    save_file(file, weights / "model.safetensors")
    with pytest.raises(PartError, match=r"1 of another shape \(\['conv1.0.weight'\]\)"):
        build(Config(model="test_resnet", weights=str(weights)))


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="no file at"):
        build(Config(model="test_resnet", weights=str(tmp_path / "nothing")))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(PartError, match="did you mean 'resnet5"):
        build(Config(model="resnet5O", pretrained=False))


# ── the ImageNet weights that ship in a package ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def packaged() -> Any:
    return build(Config(model="tf_efficientnet_lite0", weights="packaged:efficientnet_lite0")).eval()


@pytest.mark.packaged
def test_packaged_weights_load_strictly(packaged: Any) -> None:
    """Every tensor of timm's model comes from the file, the classifier included."""
    import timm
    from safetensors.torch import load_file

    file = load_file(Path(resolve("packaged:efficientnet_lite0")) / "model.safetensors")
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(file, strict=True)
    assert all(torch.equal(tensor, file[name]) for name, tensor in packaged.backbone.state_dict().items())
    assert packaged.token_dim == 1280
    assert packaged.spec.size == (224, 224)
    assert packaged.spec.mean == packaged.spec.std == (0.5, 0.5, 0.5)
    assert (packaged.spec.interpolation, packaged.spec.crop_fraction) == ("bicubic", 0.875)


# Noto drawing -> ImageNet-1k classes
DRAWN = {
    "2602": [879],  # umbrella
    "1f427": [145],  # king penguin
    "1f5a8": [742],  # printer
    "26bd": [805],  # soccer ball
    "1f3c0": [430],  # basketball
    "1f691": [407],  # ambulance
    "1f388": [417],  # balloon
    "2615": [504, 968],  # coffee mug, cup
}


@pytest.mark.packaged
def test_packaged_weights_see_what_is_drawn(packaged: Any) -> None:
    """Names, order and transform are right: the ImageNet classifier knows drawn things among its first five of 1000 guesses."""
    from safetensors.torch import load_file

    file = load_file(Path(resolve("packaged:efficientnet_lite0")) / "model.safetensors")
    pixels = torch.stack([to_pixels(open_image(DRAWINGS / "noto" / f"{code}.webp"), packaged.spec) for code in DRAWN])
    with torch.no_grad():
        pooled = packaged(pixels).values.mean(1)
    guesses = (pooled @ file["classifier.weight"].T + file["classifier.bias"]).topk(5).indices.tolist()
    missed = [code for code, guess in zip(DRAWN, guesses, strict=True) if not set(DRAWN[code]) & set(guess)]
    assert not missed


def test_a_model_without_an_order_of_blocks_says_so() -> None:
    """timm groups the parameters of most of its models, not of all: such a model runs, but has no last block."""
    encoder = build(Config(model="poolformer_s12", pretrained=False)).eval()
    with pytest.raises(PartError, match="order the blocks of MetaFormer come") as caught:
        _ = encoder.blocks
    assert "last_n" in caught.value.expected
    assert "frozen, full or lora" in caught.value.fix
