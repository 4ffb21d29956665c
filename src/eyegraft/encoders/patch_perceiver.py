"""Weather maps of known classes to tokens: patches with the class of their map, read by latents, and a mixture of experts.

A map is cut into patches. To each is added where it lies and of which class its map is; learned latents read all of them by one
cross-attention (Perceiver, Jaegle et al. 2021) and pass blocks of self-attention and a mixture of experts. The tokens are a class token,
which says nothing but the class, and the latents. `pooling=class_mean` makes two of them: the class token and the mean of the latents.

Of which class a map is, its row says (`Sample.meta["condition"]`), or a classifier of the encoder's own, which is a part by itself
(`condition_classifier`): it learns by the objective `condition`, and by no other, for a choice among classes has no gradient.

| `condition` | row names a class | row names none         | no classifier, row names none |
|-------------|-------------------|------------------------|-------------------------------|
| given       | that              | what the classifier says | the type "not told"         |
| predicted   | what the classifier says | what the classifier says | refused                |
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from eyegraft.config import Fraction, Positive, Strict
from eyegraft.encoders import _map_classifier
from eyegraft.encoders._map_classifier import MapClassifier, stop_at_misfits
from eyegraft.encoders._perceiver_layers import Balanced, Trunk
from eyegraft.errors import PartError
from eyegraft.types import UNKNOWN, UNTOLD, ImageSpec, Inputs, Tokens

log = logging.getLogger(__name__)
WEATHERQA = (
    *("bigsfc_cropped", "effh", "epvl", "fzlv", "laps", "lclh", "lllr", "mcon", "mcsm", "pchg"),
    *("rgnlrad_cropped", "sbcp", "scp", "shr6", "srh1", "stor", "swbt", "tadv", "thea", "ttd"),
)
"""The classes of WeatherQA's maps, sorted: their numbers are 0 to 19."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: maps are scaled by them wherever they are read, and the classifier's own scaling follows from there."""


class Config(Strict):
    """Attributes:
    classes: names of the maps' classes, in the order of their numbers.
    condition: whose word counts for a map's class, see above.
    image_size: side of the square that a map becomes, in pixels.
    fit: `squash` or `pad`: the whole map is read.
    patch_size: side of a patch, in pixels.
    dim: D of the tokens. num_latents, num_heads, depth: of the perceiver. num_experts, top_k: of each mixture.
    balance_weight: of the experts' balance in the training loss, whatever the objective (0.01 in the paper of Switch).
    classifier: of the maps' classes; None for none.
    weights: a folder with `model.safetensors`: what `prepare=stage1_weights` made of files of the original layout, or a checkpoint of a
        stage that trained this encoder; it may hold the perceiver, the classifier or both. None starts from random weights.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=2)] = WEATHERQA
    condition: Literal["given", "predicted"] = "given"
    image_size: Positive = 224
    fit: Literal["squash", "pad"] = "squash"
    patch_size: Positive = 16
    dim: Positive = 768
    num_latents: Positive = 196
    num_heads: Positive = 8
    depth: Positive = 6
    num_experts: Positive = 8
    top_k: Positive = 2
    balance_weight: Fraction = 0.01
    classifier: _map_classifier.Config | None = _map_classifier.Config()
    weights: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} does not divide image_size={self.image_size}: pixels would be left out")
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide dim={self.dim}")
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k={self.top_k} of num_experts={self.num_experts}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes names one twice")
        if self.condition == "predicted" and self.classifier is None:
            raise ValueError("condition=predicted without a classifier: set classifier, or condition=given")
        return self


class Perceiver(nn.Module):
    """The encoder without its classifier, as it is trained: frozen unless a stage says otherwise."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.backbone: Any = trunk

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        bare = self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone  # inside PEFT's wrapping
        stack: list[list[nn.Parameter]] = bare.stack()
        return stack

    def forward(self, pixels: Tensor, classes: Tensor, seen: Tensor | None) -> Balanced:
        found: Balanced = self.backbone(pixels, classes, seen)
        return found


class PatchPerceiver(nn.Module):
    """{pixels: [B, 3, H, W], condition: [B] int64, mask: [B, 3, H, W] bool} -> [B, 1 + L, D], the class token first.

    `condition` is a class, `UNKNOWN` or `UNTOLD`; without it no class is known. Where `mask` is False nothing is read: pixels count as the
    mean colour, and no latent looks at a patch that has none. Pixels alone may stand for the mapping. The tokens' `condition` is what the
    classifier says, where the class of any map of the batch hangs on it.

    Attributes:
        cells: (h, w) of the patches that it reads; its tokens lie on no grid.
    """

    def __init__(self, spec: ImageSpec, perceiver: Perceiver, classifier: MapClassifier | None, config: Config) -> None:
        super().__init__()
        self.spec, self.perceiver, self.classifier = spec, perceiver, classifier
        self.token_dim, self.patch_size, self.balance_weight = config.dim, config.patch_size, config.balance_weight
        self.cells = (spec.size[0] // config.patch_size, spec.size[1] // config.patch_size)
        self.believes_rows = config.condition == "given"

    @property
    def backbone(self) -> Any:
        return self.perceiver.backbone

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return self.perceiver.blocks

    def parts(self) -> dict[str, nn.Module]:
        """What is trained apart, by the recipe's names."""
        own: dict[str, nn.Module] = {"vision_encoder": self.perceiver}
        return own if self.classifier is None else {**own, "condition_classifier": self.classifier}

    def forward(self, inputs: Inputs) -> Tokens:
        given: Mapping[str, Tensor] = inputs if isinstance(inputs, Mapping) else {"pixels": inputs}
        pixels, mask, seen = given["pixels"], given.get("mask"), None
        if mask is not None:
            pixels = torch.where(mask, pixels, 0.0)
            seen = self._seen(mask)
        condition = given.get("condition")
        logits = self.classifier(pixels) if self.classifier is not None and self._must_guess(condition) else None
        found = self.perceiver(pixels, self._classes(condition, logits, pixels), seen)
        real = torch.ones(found.values.shape[:2], dtype=torch.bool, device=pixels.device)
        return Tokens(found.values, real, num_prefix=1, condition=logits, auxiliary=self.balance_weight * found.balance)

    def _seen(self, mask: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N], whether anything of the patch may be looked at; all of a map of which nothing may be, or nothing
        would be a mean over nothing."""
        seen = max_pool2d(mask.any(1, keepdim=True).float(), self.patch_size).flatten(1) > 0
        return seen | ~seen.any(1, keepdim=True)

    def _must_guess(self, condition: Tensor | None) -> bool:
        """Whether any map's class hangs on the classifier, which may take more time than all the rest."""
        return condition is None or bool((condition == UNKNOWN if self.believes_rows else condition != UNTOLD).any())

    def _classes(self, condition: Tensor | None, logits: Tensor | None, pixels: Tensor) -> Tensor:
        """[B] int64 from 0 to K, which stands for a class that is not told."""
        untold = len(self.spec.classes)
        guessed = torch.full((len(pixels),), untold, device=pixels.device) if logits is None else logits.argmax(1)
        if condition is None:
            return guessed
        known = condition >= 0 if self.believes_rows else torch.zeros_like(condition, dtype=torch.bool)
        return torch.where(known, condition, guessed).masked_fill(condition == UNTOLD, untold)


def build(config: Config) -> PatchPerceiver:
    spec = ImageSpec((config.image_size, config.image_size), MEAN, STD, fit=config.fit, classes=config.classes)
    trunk = Trunk(
        patch=config.patch_size,
        num_patches=(config.image_size // config.patch_size) ** 2,
        num_classes=len(config.classes),
        dim=config.dim,
        num_latents=config.num_latents,
        heads=config.num_heads,
        depth=config.depth,
        experts=config.num_experts,
        top_k=config.top_k,
    )
    stored = {} if config.weights is None else _read(Path(config.weights).expanduser(), config)
    held = {name.split(".")[0] for name in stored}
    encoder = PatchPerceiver(spec, Perceiver(trunk), _classifier(config, stored="classifier" in held), config)
    if stored:
        _load(encoder, stored, str(config.weights))
    if "perceiver" not in held:
        log.info(
            "vision_encoder.weights=null: if no checkpoint brings it, the perceiver starts from random weights, which "
            "tune.vision_encoder=full trains and frozen leaves random"
        )
    return encoder


def _classifier(config: Config, *, stored: bool) -> MapClassifier | None:
    """The classifier; where all of it will be overwritten by what is `stored`, nothing is fetched for it."""
    given = config.classifier
    if given is None:
        return None
    if not given.pretrained and not stored:
        log.warning(
            "vision_encoder.classifier starts from random weights: batch norms that never saw a picture let nearly nothing through, and it "
            "will hardly learn; give classifier.weights, or classifier.pretrained=true"
        )
    given = given.model_copy(update={"pretrained": False}) if stored else given
    return _map_classifier.build(given, len(config.classes), MEAN, STD)


# ── weights from a file ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_IN_CHECKPOINTS = "encoders.image."


def _read(folder: Path, config: Config) -> dict[str, Tensor]:
    """The tensors of a folder by the encoder's own names."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    if not file.is_file():
        raise PartError(
            f"vision_encoder.weights: no file at {file}",
            "a folder with model.safetensors",
            "make one of the original files with prepare=stage1_weights, or name the folder best of a stage that trained this encoder",
        )
    with safe_open(file, "pt") as opened:
        classes = json.loads((opened.metadata() or {}).get("classes", "null"))
    if classes is not None and tuple(classes) != config.classes:
        raise PartError(
            f"vision_encoder.weights: {file} was made for classes {', '.join(classes)}",
            f"vision_encoder.classes: {', '.join(config.classes)}",
            "give the classes that the weights were trained with, in their order",
        )
    tensors: dict[str, Tensor] = load_file(file)
    if any(name.startswith(_IN_CHECKPOINTS) for name in tensors):
        tensors = {name.removeprefix(_IN_CHECKPOINTS): tensor for name, tensor in tensors.items() if name.startswith(_IN_CHECKPOINTS)}
    return tensors


def _load(encoder: PatchPerceiver, stored: Mapping[str, Tensor], place: str) -> None:
    """Each part that the file holds anything of must be there whole."""
    wanted = encoder.state_dict()
    held = {name.split(".")[0] for name in stored}
    if encoder.classifier is None and "classifier" in held:
        log.info("vision_encoder.weights: the classifier in %s is left, for vision_encoder.classifier is null", place)
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith("classifier.")}
        held.discard("classifier")
    stop_at_misfits(
        f"vision_encoder.weights: {place}",
        stored,
        {name: tensor for name, tensor in wanted.items() if name.split(".")[0] in held},
        "all tensors of the perceiver, of the classifier, or of both",
        "give vision_encoder the sizes of the weights: dim, depth, num_latents, num_experts, image_size, classes, classifier.model",
    )
    encoder.load_state_dict(dict(stored), strict=False)
    if encoder.classifier is not None and "classifier" in held:
        encoder.classifier.new = False
