"""Assembly of a recipe's parts, and the one forward of them all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from eyegraft.config import Part, Recipe
from eyegraft.errors import RecipeError, shown
from eyegraft.registry import configured
from eyegraft.types import Batch, Output, Tokens

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
            tokens = given if isinstance(given, Tokens) else encoder(given)
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
        named: dict[str, nn.Module] = {ENCODER_NAMES[modality]: encoder for modality, encoder in self.encoders.items()}
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
        dims[modality] = int(encoders[modality].token_dim)  # type: ignore[arg-type]
        chains[modality] = {}
        for name, between in _between(recipe, modality).items():
            chains[modality][name] = _connector(between, dims[modality], width or dims[modality])
            dims[modality] = int(chains[modality][name].out_dim)  # type: ignore[arg-type]
    fusion_module, fusion_config = configured("fusion", recipe.fusion)
    fusion = fusion_module.build(fusion_config, dims=dims)
    head = head_module.build(head_config, in_dim=fusion.out_dim, num_outputs=_num_outputs(recipe))
    return Graft(encoders, chains, fusion, head)


def _between(recipe: Recipe, modality: str) -> dict[str, Part]:
    """What stands between an encoder and the fusion. The others pool by themselves, as their weights were trained to."""
    between = {"pooling": recipe.pooling, "connector": recipe.connector} if modality == "image" else {}
    return {name: part for name, part in between.items() if part is not None}


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
