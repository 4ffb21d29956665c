"""Every option of `vision_encoder` that takes pictures is the architecture that it says: full size on the meta device, a shrunken copy for real. Nothing is fetched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import nn

from eyegraft.composition import CONF
from eyegraft.config import Part
from eyegraft.registry import configured

FOLDER = CONF / "vision_encoder"

# option -> (width, tokens of one picture, millions of parameters that the tokens need, blocks with the stem, pixels of a square)
FULL: dict[str, tuple[int, int, float, int, int]] = {
    "siglip2_so400m": (1152, 729, 413.0, 28, 384),
    "siglip2_base": (768, 196, 85.8, 13, 224),
    "siglip2_naflex_so400m": (1152, 256, 412.6, 28, 256),
    "siglip2_naflex_base": (768, 256, 85.8, 13, 256),
    "resnet50": (2048, 49, 23.5, 17, 224),
    "resnet101": (2048, 49, 42.5, 34, 224),
    "vgg16": (512, 49, 14.7, 13, 224),
    "vit": (1024, 197, 303.3, 25, 224),
    "vit_base": (768, 197, 85.8, 13, 224),
    "efficientnet": (1280, 144, 117.2, 80, 384),
    "efficientnet_lite0": (1280, 49, 3.4, 17, 224),
    "clip_vit_b32": (768, 50, 87.5, 13, 224),
    "dinov2_base": (768, 257, 86.6, 13, 224),
    "siglip_base": (768, 196, 85.8, 13, 224),
}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def options(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def build(given: dict[str, Any]) -> Any:
    module, config = configured("encoders", Part.model_validate({**given, "pretrained": False}))
    return module.build(config)


def picture(spec: Any, device: str = "cpu") -> Any:
    """One input: a square, or for NaFlex a strip of patches that leaves some over."""
    torch.manual_seed(2)
    if spec.patch_size is None:
        return torch.randn(1, spec.channels, *spec.size, device=device)
    rows, columns = 2, spec.max_patches // 2 - 1
    pixels = torch.randn(1, spec.max_patches, spec.patch_size**2 * spec.channels, device=device)
    mask = torch.arange(spec.max_patches, device=device)[None] < rows * columns
    return {"pixels": pixels, "mask": mask, "grid": torch.tensor([[rows, columns]])}


def test_every_option_is_listed() -> None:
    patches = ("clay", "patch_cnn", "patch_perceiver")  # see their own tests
    assert sorted(path.stem for path in FOLDER.glob("*.yaml") if options(path.stem)["kind"] not in patches) == sorted(FULL)


@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Width, tokens, depth and parameter count of the real thing, which costs neither memory nor time on the meta device."""
    width, tokens, millions, blocks, side = FULL[name]
    with torch.device("meta"):
        encoder = build(options(name))
    assert encoder.token_dim == width
    assert encoder.spec.size == (side, side)
    assert encoder(picture(encoder.spec, "meta")).values.shape == (1, tokens, width)
    assert len(encoder.blocks) == blocks
    parameters = list(encoder.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert sum(parameter.numel() for parameter in parameters) / 1e6 == pytest.approx(millions, abs=0.06)
    assert "Model config" not in capfd.readouterr().err, "transformers warns of a text tower that is not built"


@pytest.mark.parametrize("name", [name for name in FULL if "architecture" in options(name)])
def test_a_shrunken_copy_runs(name: str) -> None:
    """The same recipe keys, smaller numbers: two narrow layers give real tokens."""
    given = options(name)
    architecture = given["architecture"]
    tower = architecture.get("vision_config", architecture)
    tower.update({key: value for key, value in SMALL.items() if key in tower})
    encoder = build(given).eval()
    with torch.no_grad():
        tokens = encoder(picture(encoder.spec))
    assert tokens.values.shape == (1, FULL[name][1], 32)
    assert tokens.values.isfinite().all()
    assert tokens.values.std() > 0
    assert len(encoder.blocks) == 3


@pytest.mark.parametrize("name", [name for name in FULL if options(name)["kind"] == "timm"])
def test_a_shallow_copy_runs(name: str) -> None:
    """The first block of each stage, at 64 pixels, gives real tokens of the full width."""
    with torch.device("meta"):
        encoder = build(options(name))
    for stage in (module for module in encoder.modules() if isinstance(module, nn.Sequential) and name != "vgg16"):
        blocks = [child for child in stage if type(child).__name__ in ("Bottleneck", "ConvBnAct", "EdgeResidual", "InvertedResidual")]
        if len(blocks) > 1:
            del stage[1:]
    encoder.to_empty(device="cpu")
    torch.manual_seed(1)
    for module in encoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    encoder.eval()
    with torch.no_grad():
        tokens = encoder(torch.randn(1, 3, 64, 64))
    assert tokens.values.shape == (1, 4, FULL[name][0])
    assert tokens.grid == (2, 2)
    assert tokens.values.isfinite().all()
    assert tokens.values.std() > 0


@pytest.mark.parametrize("name", FULL)
def test_the_first_line_says_what_it_is(name: str) -> None:
    """Repository or tag, input and width, in words that agree with the rest of the file."""
    given, said = options(name), (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    width, tokens, _, _, side = FULL[name]
    assert said.startswith("# ")
    assert f"tokens of {width}" in said
    if "naflex" in name:
        assert f"at most {tokens} patches of {given['preprocessor']['patch_size']}" in said
    else:
        assert f"{tokens} tokens of {width}" in said
        assert f"{side} x {side} pixels" in said
    assert given["model"] in said or "weights" in given


def test_files_are_yaml_that_hydra_can_override() -> None:
    """Lists and mappings of plain values only."""
    for path in (FOLDER / f"{name}.yaml" for name in FULL):
        content = options(path.stem)
        assert set(content) <= {"kind", "model", "weights", "architecture", "preprocessor"}, path.name
        assert ("architecture" in content) == (content["kind"] == "huggingface"), path.name
