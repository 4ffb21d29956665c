"""Assembly of a recipe's parts, and the one forward of them all."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eyegraft.config import Part, Recipe
from eyegraft.registry import configured
from eyegraft.types import Batch, Output, Tokens


class Graft(nn.Module):
    """Encoders, connectors, fusion and head in a row."""

    def __init__(self, encoders: dict[str, nn.Module], connectors: dict[str, nn.Module], fusion: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.connectors = nn.ModuleDict(connectors)
        self.fusion = fusion
        self.head: Any = head

    def encode(self, batch: Batch) -> dict[str, Tokens]:
        return {modality: encoder(batch.inputs[modality]) for modality, encoder in self.encoders.items()}

    def connect(self, encoded: dict[str, Tokens]) -> Tokens:
        tokens: Tokens = self.fusion({modality: self.connectors[modality](tokens) for modality, tokens in encoded.items()})
        return tokens

    def forward(self, batch: Batch) -> Output:
        encoded = self.encode(batch)
        logits, labels = self.head(self.connect(encoded), batch)
        return Output(encoded, logits, labels)

    def parts(self) -> dict[str, nn.Module]:
        """The parts by the recipe's names; together they hold every parameter once."""
        chain = self.connectors["image"]
        assert isinstance(chain, nn.Sequential)
        named = {"vision_encoder": self.encoders["image"], "connector": chain[-1], "fusion": self.fusion, "head": self.head}
        return {**named, "pooling": chain[0]} if len(chain) > 1 else named

    def image_tokens(self, image: Tensor) -> int:
        """How many tokens one image [1, C, H, W] takes before the text: measured, never configured."""
        return int(self.connect({"image": self.encoders["image"](image)}).mask.shape[1])


def assemble(recipe: Recipe) -> Graft:
    """Build every part with the measured widths of its neighbours."""
    encoder_module, encoder_config = configured("encoders", recipe.vision_encoder)
    head_module, head_config = configured("heads", recipe.head)
    encoder = encoder_module.build(encoder_config)
    width = head_module.input_dim(head_config)
    chain: list[nn.Module] = []
    dim: int = encoder.token_dim
    for part in (recipe.pooling, recipe.connector):
        if part is not None:
            chain.append(_connector(part, dim, width))
            dim = int(chain[-1].out_dim)  # type: ignore[arg-type]
    fusion_module, fusion_config = configured("fusion", recipe.fusion)
    fusion = fusion_module.build(fusion_config, dims={"image": dim})
    return Graft({"image": encoder}, {"image": nn.Sequential(*chain)}, fusion, head_module.build(head_config, in_dim=fusion.out_dim))


def _connector(part: Part, in_dim: int, out_dim: int) -> nn.Module:
    module, config = configured("connectors", part)
    built: nn.Module = module.build(config, in_dim=in_dim, out_dim=out_dim)
    return built
