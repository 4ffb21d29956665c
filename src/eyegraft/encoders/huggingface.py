"""Vision towers of transformers: CLIP, SigLIP, SigLIP2 with NaFlex, DINOv2, ViT, ResNet …, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.encoders._architecture import configuration, eye_of, refuse_other, unreported
from eyegraft.encoders._preprocessor import image_spec
from eyegraft.errors import PartError, shown
from eyegraft.pretrained import drop_unused, ready, resolve, stack_of
from eyegraft.types import ImageSpec, Tokens

_NAFLEX = "siglip2_vision_model"


class Config(Strict):
    """Attributes:
    model: a hub name or a folder in the hub's layout (`config.json`, `preprocessor_config.json`, `model.safetensors`).
    revision: branch, tag or commit on the hub.
    pretrained: False gives random weights of the same architecture.
    architecture: the content of the model's `config.json`, text tower aside. With it nothing is read for random weights, and weights of
        another width, depth or patch size are refused.
    preprocessor: the content of its `preprocessor_config.json`, for random weights; weights bring their own.
    """

    model: str
    revision: str | None = None
    pretrained: bool = True
    architecture: dict[str, Any] | None = None
    preprocessor: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Config:
        if (self.architecture is None) != (self.preprocessor is None):
            raise ValueError("`architecture` and `preprocessor` stand together: give both or neither")
        if self.architecture is not None and not isinstance(self.architecture.get("model_type"), str):
            raise ValueError("`architecture` needs the `model_type` of the model's config.json")
        return self


class HuggingFaceEncoder(nn.Module):
    """Pictures of one size: [B, C, H, W] -> a token a patch."""

    def __init__(self, backbone: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.spec = spec
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


class NaFlexEncoder(nn.Module):
    """Pictures in their own aspect ratio: a sequence of patches, its mask and its grid -> a token a patch (Tschannen et al. 2025)."""

    def __init__(self, backbone: nn.Module, spec: ImageSpec) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.spec = spec
        config: Any = self.backbone.config
        self.token_dim: int = config.hidden_size

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return stack_of(self.backbone)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        mask = inputs["mask"]  # [B, N]
        features = self.backbone(
            pixel_values=inputs["pixels"],
            pixel_attention_mask=mask[:, None, None, :],  # ready-made for every head and query, so that no value of it is read on the way
            spatial_shapes=inputs["grid"].cpu(),  # read row by row: one wait for the device, not one a picture
        ).last_hidden_state
        return Tokens(features, mask)


def build(config: Config) -> HuggingFaceEncoder | NaFlexEncoder:
    ready()
    wanted = None if config.architecture is None else configuration(config.architecture)
    if wanted is not None and not config.pretrained:
        backbone, missing = _random(wanted), set[str]()
        spec = image_spec(config.preprocessor or {}, "vision_encoder.preprocessor")
    else:
        backbone, missing, settings = _read(config, wanted)
        spec = image_spec(settings, f"vision_encoder.model: preprocessor_config.json of {config.model!r}")
    _refuse_unfit(backbone, spec, config.model)
    if getattr(backbone, "use_head", False):
        backbone.use_head = False  # SigLIP's pooling, which the tokens do not need
    encoder = (NaFlexEncoder if backbone.config.model_type == _NAFLEX else HuggingFaceEncoder)(backbone, spec)
    drop_unused(backbone, lambda: encoder(_blank(spec)).values)
    absent = sorted(missing & {name for name, _ in backbone.named_parameters()})
    if absent:
        raise PartError(
            f"vision_encoder.model: the weights of {config.model!r} lack {len(absent)} tensors: {shown(absent, 3)}",
            "every tensor that the encoder uses: the others would stay random",
            "check that config.json belongs to model.safetensors",
        )
    return encoder


def _random(architecture: Any) -> Any:
    """The vision tower alone, with random weights."""
    from transformers import AutoModel

    try:
        return AutoModel.from_config(eye_of(architecture), dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:  # heads that do not divide the width, a type that is no encoder
        raise PartError(
            f"vision_encoder.architecture: {str(error).splitlines()[0]}", "an architecture that transformers can build"
        ) from error


def _read(config: Config, wanted: Any) -> tuple[Any, set[str], Mapping[str, Any]]:
    """(vision tower, names of parameters that its file lacks, content of `preprocessor_config.json`) from the hub or a folder."""
    from transformers import AutoConfig, AutoModel
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    name, revision = resolve(config.model), config.revision
    try:
        whole = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if wanted is not None:
            refuse_other(whole, wanted, config.model)
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name, revision=revision)
        # the eye alone where transformers can load it alone: the text tower of SigLIP2 SO400M would take 3 GB
        architecture = eye_of(whole) if type(eye_of(whole)) in MODEL_MAPPING else whole
        if not config.pretrained:
            model, missing = AutoModel.from_config(architecture, dtype=torch.float32, trust_remote_code=False), set[str]()
        else:
            with unreported():
                model, facts = AutoModel.from_pretrained(
                    name,
                    config=architecture,
                    revision=revision,
                    dtype=torch.float32,  # else the file's own, which pixels do not have
                    trust_remote_code=False,
                    use_safetensors=True,  # never a pickle
                    output_loading_info=True,
                )
            missing = {str(key).removeprefix("vision_model.") for key in facts["missing_keys"]}
    except (OSError, ValueError) as error:
        raise PartError(
            f"vision_encoder.model: {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
            "a hub name that this machine can reach, or a folder with config.json, preprocessor_config.json and model.safetensors",
            "check the name; offline, download the folder elsewhere and give its path; convert pickled weights (*.bin) to safetensors; "
            "code in a model's folder is never run",
        ) from error
    return getattr(model, "vision_model", model), missing, settings


def _refuse_unfit(backbone: Any, spec: ImageSpec, model: str) -> None:
    """The model takes pixels, in the form that its preprocessing gives."""
    name = type(backbone).__name__
    if getattr(backbone, "main_input_name", "") != "pixel_values":
        raise PartError(f"vision_encoder.model: {model!r} is a {name}, which takes no pictures", "a vision model")
    taken = backbone.config.patch_size if backbone.config.model_type == _NAFLEX else None
    if spec.patch_size != taken:
        given, wanted = (f"patches of {patch}" if patch else "whole pictures" for patch in (spec.patch_size, taken))
        raise PartError(
            f"vision_encoder: the preprocessing of {model!r} gives {given}, but {name} takes {wanted}",
            "max_num_patches and the model's own patch_size for a NaFlex model, a size for any other",
            "take config.json and preprocessor_config.json from the same repository",
        )


def _blank(spec: ImageSpec) -> Any:
    """The input of one black square."""
    if spec.patch_size is None or spec.max_patches is None:
        return torch.zeros(1, spec.channels, *spec.size)
    rows, columns = (side // spec.patch_size for side in spec.size)
    mask = torch.arange(spec.max_patches)[None] < rows * columns
    pixels = torch.zeros(1, spec.max_patches, spec.patch_size**2 * spec.channels)
    return {"pixels": pixels, "mask": mask, "grid": torch.tensor([[rows, columns]], device="cpu")}
