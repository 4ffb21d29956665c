"""Any model of timm that gives a feature map or tokens (Wightman, PyTorch Image Models)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.errors import PartError, nearest
from eyegraft.pretrained import drop_unused, ready, resolve
from eyegraft.types import ImageSpec, Tokens

# `blocks.11.`, `layer4.1.`, `s4.b7.conv1.` and `denselayer16.norm1.` are numbered blocks; the module `features.norm5` is none.
_NUMBERED = re.compile(r"(^|\.)\d+\.|\d[^.]*\.[^.]+\.")


class Config(Strict):
    """Attributes:
    model: a model name of timm.
    weights: `packaged:NAME`, a folder with `model.safetensors`, a `.safetensors` file, or None for timm's own from the hub.
    pretrained: False gives random weights of the same architecture.
    """

    model: str
    weights: str | None = None
    pretrained: bool = True


class TimmEncoder(nn.Module):
    def __init__(self, backbone: nn.Module, image: ImageSpec) -> None:
        super().__init__()
        self.backbone: Any = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions run 1.5 times faster
        self.spec = image
        self.token_dim: int = self.backbone.num_features
        self._channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return depth_groups(self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone)

    def forward(self, inputs: Tensor) -> Tokens:
        features = self.backbone.forward_features(inputs)
        if features.ndim == 4:
            grid = features if self._channels_last else features.permute(0, 2, 3, 1)  # [B, h, w, D]
            height, width, prefix = grid.shape[1], grid.shape[2], 0
            features = grid.flatten(1, 2)  # [B, N, D]
        else:
            prefix = int(getattr(self.backbone, "num_prefix_tokens", 0))
            patches = self.backbone.patch_embed
            # a model that reads pictures of any size still names the grid of the one that it was trained with
            height, width = patches.dynamic_feat_size(inputs.shape[2:]) if hasattr(patches, "dynamic_feat_size") else patches.grid_size
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return Tokens(features, mask, grid=(height, width), num_prefix=prefix)


def depth_groups(bare: Any) -> list[list[nn.Parameter]]:
    """A timm model's parameters in depth order, stem first; what follows the last block belongs to it.

    Args:
        bare: outside PEFT's wrapping.

    Raises:
        PartError: timm does not know the order.
    """
    from timm.models import group_parameters

    if not hasattr(bare, "group_matcher"):
        raise PartError(
            f"vision_encoder.model: timm does not say in which order the blocks of {type(bare).__name__} come",
            "a model with `group_matcher`, for last_n and for lora.target_layers",
            "tune it as frozen, full or lora without target_layers, or choose another model",
        )
    names = group_parameters(bare, bare.group_matcher(coarse=False))
    parameters = dict(bare.named_parameters())
    groups = [present for key in sorted(names) if (present := [name for name in names[key] if name in parameters])]
    if len(groups) > 2 and not _is_block(groups[-1], groups[-2]):
        groups[-2:] = [groups[-2] + groups[-1]]
    return [[parameters[name] for name in group] for group in groups]


def _is_block(names: Sequence[str], before: Sequence[str]) -> bool:
    """Whether timm's last group goes on with the numbered blocks of the group before, or is a final norm or convolution after them."""
    places = {_place(name) for name in before}
    return any(_place(name) in places and _NUMBERED.search(name) for name in names)


def _place(name: str) -> str:
    """`layer` of `layer4.1.conv1.weight`."""
    return re.split(r"[\d.]", name, maxsplit=1)[0]


def named_model(place: str, name: str, *, pretrained: bool, num_classes: int) -> Any:
    """A model of timm.

    Args:
        place: where the recipe names it, for messages.
        num_classes: outputs of its last layer; 0: none.

    Raises:
        PartError: timm is not installed, or has no such model.
    """
    try:
        ready()
        import timm
    except ImportError as error:
        raise PartError(f"{place}={name} needs timm, which is not installed", "the extra `timm`", "pip install 'eyegraft[timm]'") from error
    if not timm.is_model(name) and not name.startswith("hf-hub:"):
        raise PartError(f"{place}: timm has no {name!r}", "a name that timm.list_models() gives", nearest(name, timm.list_models()))
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)


def build(config: Config) -> TimmEncoder:
    local = config.pretrained and config.weights is not None
    backbone = named_model("vision_encoder.model", config.model, pretrained=config.pretrained and not local, num_classes=0)
    if local:
        _load(backbone, str(config.weights))
    from timm.data import resolve_model_data_config

    settings = resolve_model_data_config(backbone)
    image = ImageSpec(
        size=settings["input_size"][1:],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        fit="squash" if settings["crop_mode"] == "squash" else "crop",
        crop_fraction=settings["crop_pct"],
    )
    drop_unused(backbone, lambda: backbone.forward_features(torch.zeros(1, image.channels, *image.size)))
    return TimmEncoder(backbone, image)


def _load(backbone: nn.Module, weights: str) -> None:
    """Load strictly; only a classifier that the encoder does not have may be left over."""
    from safetensors.torch import load_file

    place = Path(resolve(weights))
    file = place / "model.safetensors" if place.is_dir() else place
    if not file.is_file():
        raise PartError(
            f"vision_encoder.weights: no file at {file}", "packaged:NAME, a folder with model.safetensors, or a .safetensors file"
        )
    tensors, wanted = load_file(file), backbone.state_dict()
    missing = [key for key in wanted if key not in tensors]
    extra = [key for key in tensors if key not in wanted and not key.startswith(("classifier.", "head.", "fc."))]
    other = [key for key in wanted if key in tensors and wanted[key].shape != tensors[key].shape]
    if missing or extra or other:
        raise PartError(
            f"vision_encoder.weights: {file} does not fit: {len(missing)} tensors missing ({missing[:2]}), "
            f"{len(extra)} unknown ({extra[:2]}), {len(other)} of another shape ({other[:2]})",
            "weights of the same timm architecture",
            "check vision_encoder.model",
        )
    backbone.load_state_dict(tensors, strict=False)
