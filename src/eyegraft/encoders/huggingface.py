"""Vision towers of transformers: CLIP, SigLIP, SigLIP2, DINOv2, ViT, ResNet …, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.pretrained import drop_unused, ready, resolve, stack_of
from eyegraft.types import ImageSpec, Tokens

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # the numbers of PIL.Image.Resampling


class Config(Strict):
    """Attributes:
    model: a hub name or a folder in the hub's layout (`config.json`, `preprocessor_config.json`, `model.safetensors`).
    revision: branch, tag or commit on the hub.
    pretrained: False gives random weights of the same architecture.
    """

    model: str
    revision: str | None = None
    pretrained: bool = True


class HuggingFaceEncoder(nn.Module):
    def __init__(self, backbone: nn.Module, image: ImageSpec) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.image = image
        config: Any = self.backbone.config
        self.token_dim: int = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return stack_of(self.backbone)

    def forward(self, inputs: Tensor) -> Tokens:
        features = self.backbone(pixel_values=inputs).last_hidden_state
        if features.ndim == 4:  # a convolutional network: [B, D, h, w]
            height, width = features.shape[2:]
            features = features.flatten(2).transpose(1, 2)  # [B, N, D]
        else:
            patch = self.backbone.config.patch_size
            height, width = inputs.shape[2] // patch, inputs.shape[3] // patch
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return Tokens(features, mask, grid=(height, width), num_prefix=features.shape[1] - height * width)


def build(config: Config) -> HuggingFaceEncoder:
    ready()
    from transformers import AutoConfig, AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    name = resolve(config.model)
    try:
        architecture = AutoConfig.from_pretrained(name, revision=config.revision)
        model = (
            AutoModel.from_pretrained(name, revision=config.revision, dtype=torch.float32)  # else the file's own, which pixels do not have
            if config.pretrained
            else AutoModel.from_config(architecture, dtype=torch.float32)
        )
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=config.revision)
    except (OSError, ValueError) as error:
        raise PartError(
            f"vision_encoder.model: {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
            "a hub name that this machine can reach, or a folder with config.json, preprocessor_config.json and model.safetensors",
            "check the name; offline, download the folder elsewhere and give its path",
        ) from error
    backbone = getattr(model, "vision_model", model)  # a two-tower model such as CLIP: keep the eye
    image = _image_spec(settings)
    drop_unused(backbone, lambda: backbone(pixel_values=torch.zeros(1, image.channels, *image.size)).last_hidden_state)
    return HuggingFaceEncoder(backbone, image)


def _image_spec(settings: Mapping[str, Any]) -> ImageSpec:
    """The preprocessing that the weights were trained with, from `preprocessor_config.json`."""
    resized = _height_width(settings.get("size", 224))
    cropped = _height_width(settings.get("crop_size") or resized) if settings.get("do_center_crop") else resized
    short_side_only = isinstance(settings.get("size"), Mapping) and "shortest_edge" in settings["size"]
    return ImageSpec(
        size=cropped,
        mean=tuple(settings.get("image_mean") or (0.5, 0.5, 0.5)),
        std=tuple(settings.get("image_std") or (0.5, 0.5, 0.5)),
        interpolation=_RESAMPLING[settings.get("resample", 3)],  # type: ignore[arg-type]
        fit="crop" if settings.get("do_center_crop") or short_side_only else "squash",
        crop_fraction=settings.get("crop_pct") or cropped[0] / resized[0],
    )


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        return (int(side), int(side)) if side else (int(size["height"]), int(size["width"]))
    return int(size), int(size)
