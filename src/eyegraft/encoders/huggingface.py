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
        self.spec = image
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
            patch = getattr(self.backbone.config, "patch_size", None)
            down, across = patch if isinstance(patch, list | tuple) else (patch, patch)
            height, width = (inputs.shape[2] // down, inputs.shape[3] // across) if down and across else (0, 0)
            if not 0 < height * width <= features.shape[1]:  # Swin and other hierarchical models merge tokens on the way
                raise PartError(
                    f"vision_encoder.model: {type(self.backbone).__name__} gives {features.shape[1]} tokens "
                    f"for a picture of {inputs.shape[2]} x {inputs.shape[3]} with patch_size {patch}: no plain grid of tokens",
                    "a model with one token per patch (CLIP, SigLIP, DINOv2, ViT …) or a convolutional one",
                    "take a model of this family from timm: vision_encoder.kind=timm",
                )
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return Tokens(features, mask, grid=(height, width), num_prefix=features.shape[1] - height * width)


def build(config: Config) -> HuggingFaceEncoder:
    ready()
    from transformers import AutoConfig, AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    name = resolve(config.model)
    try:
        architecture = AutoConfig.from_pretrained(name, revision=config.revision, trust_remote_code=False)
        model = (
            AutoModel.from_pretrained(
                name,
                revision=config.revision,
                dtype=torch.float32,  # else the file's own, which pixels do not have
                trust_remote_code=False,
                use_safetensors=True,  # never a pickle
            )
            if config.pretrained
            else AutoModel.from_config(architecture, dtype=torch.float32, trust_remote_code=False)
        )
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=config.revision)
    except (OSError, ValueError) as error:
        raise PartError(
            f"vision_encoder.model: {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
            "a hub name that this machine can reach, or a folder with config.json, preprocessor_config.json and model.safetensors",
            "check the name; offline, download the folder elsewhere and give its path; convert pickled weights (*.bin) to safetensors; "
            "code in a model's folder is never run",
        ) from error
    backbone = getattr(model, "vision_model", model)  # a two-tower model such as CLIP: keep the eye
    image = _image_spec(settings, config.model)
    encoder = HuggingFaceEncoder(backbone, image)
    drop_unused(backbone, lambda: encoder(torch.zeros(1, image.channels, *image.size)).values)
    return encoder


def _image_spec(settings: Mapping[str, Any], model: str) -> ImageSpec:
    """The preprocessing that the weights were trained with, from `preprocessor_config.json`."""
    resized = _height_width(settings.get("size", 224), "size", model)
    cropped = _height_width(settings.get("crop_size") or resized, "crop_size", model) if settings.get("do_center_crop") else resized
    short_side_only = isinstance(settings.get("size"), Mapping) and "shortest_edge" in settings["size"]
    resample = settings.get("resample", 3)
    if resample not in tuple(_RESAMPLING):  # it may be a list or null
        raise _unusable(model, "resample", resample, f"one of {', '.join(f'{number} ({name})' for number, name in _RESAMPLING.items())}")
    mean: Any = settings.get("image_mean")
    std: Any = settings.get("image_std")
    if settings.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for key, values in (("image_mean", mean), ("image_std", std)):
        if not isinstance(values, list | tuple) or not values:
            raise _unusable(model, key, values, "one number per channel, or do_normalize false")
    return ImageSpec(
        size=cropped,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=_RESAMPLING[resample],  # type: ignore[arg-type]
        fit="crop" if settings.get("do_center_crop") or short_side_only else "squash",
        crop_fraction=settings.get("crop_pct") or cropped[0] / resized[0],
    )


def _height_width(size: Any, key: str, model: str) -> tuple[int, int]:
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        pair: tuple[Any, ...] = (side, side) if side else (size.get("height"), size.get("width"))
    else:
        pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise _unusable(model, key, size, 'a number, {"height": …, "width": …} or {"shortest_edge": …}')
    return pair[0], pair[1]


def _unusable(model: str, key: str, value: object, expected: str) -> PartError:
    """A guess would silently cost accuracy."""
    return PartError(
        f"vision_encoder.model: preprocessor_config.json of {model!r}: {f'no {key}' if value is None else f'{key} is {value!r}'}",
        expected,
        f"set {key} in a local copy of the folder to what the model was trained with",
    )
