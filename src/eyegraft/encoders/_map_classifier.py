"""Which of K classes a map is of: a convolutional network of timm (EfficientNet-B0, Tan & Le 2019) with an output for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.encoders.timm import depth_groups, named_model
from eyegraft.errors import PartError, shown
from eyegraft.pretrained import resolve


class Config(Strict):
    """Attributes:
    model: a model name of timm.
    weights: `packaged:NAME`, a folder with `model.safetensors`, a `.safetensors` file, or None for timm's own from the hub.
    pretrained: False gives random weights of the same architecture.
    """

    model: str = "efficientnet_b0"
    weights: str | None = None
    pretrained: bool = True


class MapClassifier(nn.Module):
    """Pixels [B, 3, H, W] as the encoder that it belongs to is given them -> logits [B, K].

    Args:
        backbone: of timm, with its output layer.
        mean, std: of the encoder's pixels; the network gets them with its own.
        new: whether the output layer is new.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: Any, mean: Sequence[float], std: Sequence[float], *, new: bool) -> None:
        super().__init__()
        from timm.data import resolve_model_data_config

        self.backbone: Any = backbone.to(memory_format=torch.channels_last)
        self.new = new
        own = resolve_model_data_config(backbone)
        given_mean, given_std, own_mean, own_std = (
            torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std, own["mean"], own["std"])
        )
        self.register_buffer("scale", given_std / own_std, persistent=False)
        self.register_buffer("shift", (given_mean - own_mean) / own_std, persistent=False)

    @property
    def new_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.backbone.get_classifier().parameters()) if self.new else []

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return depth_groups(self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.backbone(pixels * self.scale + self.shift)
        return logits


def build(config: Config, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> MapClassifier:
    local = config.pretrained and config.weights is not None
    backbone = named_model(
        "vision_encoder.classifier.model", config.model, pretrained=config.pretrained and not local, num_classes=num_classes
    )
    new = _load(backbone, str(config.weights)) if local else True
    return MapClassifier(backbone, mean, std, new=new)


def _load(backbone: Any, weights: str) -> bool:
    """Load all but an output layer for other classes; gives whether the output layer is still new."""
    from safetensors.torch import load_file

    place = Path(resolve(weights))
    file = place / "model.safetensors" if place.is_dir() else place
    if not file.is_file():
        raise PartError(
            f"vision_encoder.classifier.weights: no file at {file}",
            "packaged:NAME, a folder with model.safetensors, or a .safetensors file",
        )
    given, wanted = load_file(file), backbone.state_dict()
    prefix = backbone.pretrained_cfg["classifier"]
    head = [name for name in wanted if name.startswith(f"{prefix}.")]
    new = any(name not in given or given[name].shape != wanted[name].shape for name in head)
    left = {name for name in {*given, *wanted} if name.startswith(f"{prefix}.")} if new else set()
    stop_at_misfits(
        f"vision_encoder.classifier.weights: {file}",
        {name: tensor for name, tensor in given.items() if name not in left},
        {name: tensor for name, tensor in wanted.items() if name not in left},
        "weights of the same timm architecture",
        "check vision_encoder.classifier.model",
    )
    backbone.load_state_dict({name: tensor for name, tensor in given.items() if name not in left}, strict=False)
    return new


def stop_at_misfits(place: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], expected: str, fix: str) -> None:
    """Raise a `PartError` that lists what is missing, unknown and of another shape."""
    other = [
        f"{name} {list(given[name].shape)} for {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    faults = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": other,
    }
    said = [f"{len(names)} {what}: {shown(names, 4)}" for what, names in faults.items() if names]
    if said:
        raise PartError(f"{place} does not fit: {'; '.join(said)}", expected, fix)
