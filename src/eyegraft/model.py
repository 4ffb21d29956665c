"""Assembly of a recipe's parts, and the one forward of them all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from eyegraft.config import Part, Recipe
from eyegraft.errors import RecipeError, shown
from eyegraft.registry import configured
from eyegraft.types import Batch, ImageSpec, Inputs, Output, Tokens
from eyegraft.views import Views, token_places

ENCODER_NAMES = {"image": "vision_encoder", "text": "text_encoder", "context": "context_encoder"}


class Graft(nn.Module):
    """Encoders, connectors, fusion and head in a row.

    Args:
        encoders: modality -> encoder.
        connectors: modality -> what its tokens pass, by the recipe's names (`pooling`, `connector`); may be empty.
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], connectors: Mapping[str, Mapping[str, nn.Module]], fusion: nn.Module, head: nn.Module
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.connectors = nn.ModuleDict({modality: nn.Sequential(OrderedDict(chain)) for modality, chain in connectors.items()})
        self.fusion = fusion
        self.head: Any = head

    def encode(self, batch: Batch, only: Collection[str] = ()) -> dict[str, Tokens]:
        """Tokens by modality; of the modalities named alone, where any are."""
        encoded = {}
        for modality, encoder in self.encoders.items():
            if only and modality not in only:
                continue
            given = batch.inputs[modality]
            tokens = given if isinstance(given, Tokens) else see(encoder, given)
            present = batch.present.get(modality)
            encoded[modality] = tokens if present is None else replace(tokens, mask=tokens.mask & present.unsqueeze(1))
        return encoded

    def connect(self, encoded: Mapping[str, Tokens]) -> Tokens:
        tokens: Tokens = self.fusion({modality: self.connectors[modality](tokens) for modality, tokens in encoded.items()})
        return tokens

    def forward(self, batch: Batch) -> Output:
        encoded = self.encode(batch)
        tokens = self.connect(encoded)
        logits, labels = getattr(self.head, "learned", self.head)(tokens, batch)
        return Output(encoded, tokens, logits, labels)

    def probes(self, batch: Batch) -> list[Batch]:
        """The batch, and once without each modality that the fusion has learned something in place of."""
        return [batch, *(batch.without(modality) for modality in self.fusion.fills)]  # type: ignore[union-attr]

    def fixed_pooling(self, modality: str) -> Any:
        """The pooling behind an encoder if it learns nothing and changes nothing when applied again, else None."""
        first = next(iter(self.connectors[modality]), None)  # type: ignore[call-overload]
        return first if getattr(first, "idempotent", False) else None

    def parts(self) -> dict[str, nn.Module]:
        """The parts by the recipe's names; together they hold every parameter once."""
        named: dict[str, nn.Module] = {}
        for modality, encoder in self.encoders.items():
            named |= encoder.parts() if hasattr(encoder, "parts") else {ENCODER_NAMES[modality]: encoder}  # type: ignore[operator]
        for chain in self.connectors.values():
            named |= dict(chain.named_children())
        return {**named, "fusion": self.fusion, "head": self.head}


def assemble(recipe: Recipe) -> Graft:
    """Build every part with the measured widths of its neighbours."""
    head_module, head_config = configured("heads", recipe.head)
    width = head_module.input_dim(head_config)
    encoders: dict[str, nn.Module] = {}
    chains: dict[str, dict[str, nn.Module]] = {}
    dims: dict[str, int] = {}
    for modality, part in recipe.encoder_parts.items():
        module, config = configured("encoders", part)
        encoders[modality] = module.build(config)
        if modality == "image" and recipe.views is not None:
            _look_around(encoders[modality], recipe)
        dims[modality] = int(encoders[modality].token_dim)  # type: ignore[arg-type]
        chains[modality] = {}
        for name, between in _between(recipe, modality).items():
            wanted = width or dims[modality] if name == "connector" else dims[modality]
            chains[modality][name] = _connector(between, dims[modality], wanted)
            dims[modality] = int(chains[modality][name].out_dim)  # type: ignore[arg-type]
    fusion_module, fusion_config = configured("fusion", recipe.fusion)
    fusion = fusion_module.build(fusion_config, dims=dims)
    head = head_module.build(head_config, in_dim=fusion.out_dim, num_outputs=_num_outputs(recipe))
    return Graft(encoders, chains, fusion, head)


def _between(recipe: Recipe, modality: str) -> dict[str, Part]:
    """What stands between an encoder and the fusion. The others pool by themselves, as their weights were trained to."""
    if modality != "image":
        return {}
    places = Part(kind="view_encoding") if recipe.views is not None and recipe.views.encode_positions else None
    between = {"pooling": recipe.pooling, "view_encoding": places, "connector": recipe.connector}
    return {name: part for name, part in between.items() if part is not None}


def _look_around(encoder: Any, recipe: Recipe) -> None:
    """Let the encoder see views in place of the picture.

    Raises:
        RecipeError: it reads no pictures, or maps of known classes, or none of the size of the views.
    """
    if not isinstance(encoder.spec, ImageSpec) or encoder.spec.classes:
        reads = "maps of known classes" if isinstance(encoder.spec, ImageSpec) else "no pictures"
        raise RecipeError(
            f"views with vision_encoder.kind={recipe.vision_encoder.kind if recipe.vision_encoder else None}, which reads {reads}",
            "an encoder of pictures",
            "set views=none, or another vision_encoder",
        )
    side, size = recipe.views.size if recipe.views is not None else None, encoder.spec.size
    if side is not None and size != (side, side) and encoder.spec.patch_size is None:
        try:
            with torch.no_grad():
                encoder.eval()(torch.zeros(1, encoder.spec.channels, side, side))
        except (AssertionError, RuntimeError, ValueError) as error:  # every library refuses in its own way
            raise RecipeError(
                f"views.size={side}, but this encoder reads pictures of {size[0]} x {size[1]} pixels: {str(error).splitlines()[0]}",
                "the encoder's own size, or an encoder that reads any (a convolutional one, DINOv2, NaFlex)",
                "set views.size=null",
            ) from error
    encoder.spec = replace(encoder.spec, views=recipe.views)


def see(encoder: Any, given: Inputs) -> Tokens:
    """Tokens of a batch. Views [B, V, …] go through the encoder as B·V pictures, and their tokens come back side by side, [B, V·N, D]."""
    views: Views | None = getattr(encoder.spec, "views", None)
    if views is None:
        tokens: Tokens = encoder(given)
        return tokens
    tokens = encoder({name: item.flatten(0, 1) for name, item in given.items()} if isinstance(given, Mapping) else given.flatten(0, 1))
    values = tokens.values.unflatten(0, (-1, views.num_views)).flatten(1, 2)
    mask = tokens.mask.unflatten(0, (-1, views.num_views)).flatten(1, 2)
    num_prefix = tokens.num_prefix if tokens.grid is not None else tokens.values.shape[1]
    places = torch.from_numpy(token_places(views, tokens.grid, num_prefix)).to(values.device)
    auxiliary = tokens.auxiliary.unflatten(0, (-1, views.num_views)).mean(1) if tokens.auxiliary is not None else None
    return replace(tokens, values=values, mask=mask, num_views=views.num_views, directions=places, auxiliary=auxiliary)


def _num_outputs(recipe: Recipe) -> int:
    """How many numbers a sample's answer has, as the tasks say; 0 where they are texts. Tasks without answers have no say."""
    wanted: dict[str, int] = {}
    for name, part in recipe.tasks.items():
        module, config = configured("tasks", part)
        number = module.num_outputs(config)
        if number is not None:
            wanted[name] = int(number)
    if not wanted:
        raise RecipeError(
            f"tasks {shown(list(recipe.tasks))} have no answers, so the head has nothing to say",
            "a task with answers beside them, whose stage may be left for later",
            "add the task that comes after, and run_stages=[…] to run the first stages alone",
        )
    if len(set(wanted.values())) > 1:
        raise RecipeError(f"tasks with {wanted} outputs under one head", "one number of outputs", "give each its own recipe")
    return next(iter(wanted.values()))


def _connector(part: Part, in_dim: int, out_dim: int) -> nn.Module:
    module, config = configured("connectors", part)
    built: nn.Module = module.build(config, in_dim=in_dim, out_dim=out_dim)
    return built
