"""One vector a modality, and what stands for it where it is missing: what the fusions for labels share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from eyegraft.errors import PartError
from eyegraft.types import Tokens

ModalityDropout = dict[Literal["image", "text", "context"], Annotated[float, Field(ge=0, lt=1)]]
"""Modality -> how often training hides it, so that the model can do without it later (Neverova et al. 2016, ModDrop)."""


class Modalities(nn.Module):
    """{modality: Tokens [B, 1, D]} -> {modality: [B, D]}; a learned vector where a row lacks the modality.

    Args:
        dropout: modality -> share of training rows in which it is hidden. A row never loses all that it has.
    """

    def __init__(self, dims: Mapping[str, int], dropout: ModalityDropout) -> None:
        super().__init__()
        # Not zero: what is scaled to length 1 has no gradient there that any step could follow
        self.absent = nn.ParameterDict({modality: nn.Parameter(torch.randn(dim) / dim**0.5) for modality, dim in dims.items()})
        self.dropout: dict[str, float] = {modality: share for modality, share in dropout.items() if modality in dims and len(dims) > 1}

    def forward(self, tokens: Mapping[str, Tokens]) -> dict[str, Tensor]:
        present = {modality: self._one(modality, item).mask[:, 0] for modality, item in tokens.items()}
        if self.training and self.dropout:
            present = self._hidden(present)
        return {
            modality: torch.where(present[modality].unsqueeze(1), item.values[:, 0], self.absent[modality].to(item.values.dtype))
            for modality, item in tokens.items()
        }

    def _hidden(self, present: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {
            modality: there & (torch.rand(there.shape, device=there.device) >= self.dropout.get(modality, 0.0))
            for modality, there in present.items()
        }
        nothing = ~torch.stack(list(kept.values())).any(0)
        return {modality: torch.where(nothing, present[modality], there) for modality, there in kept.items()}

    @staticmethod
    def _one(modality: str, tokens: Tokens) -> Tokens:
        if tokens.values.shape[1] != 1:
            raise PartError(
                f"{tokens.values.shape[1]} {modality} tokens a sample before a fusion that takes one",
                "one vector a modality",
                "set pooling=mean, or pooling=attention with pooling.num_queries=1"
                if modality == "image"
                else "set text_encoder.pooling=mean",
            )
        return tokens


class SingleModality(nn.Module):
    """What a fusion is when there is nothing to fuse: [projection] and unit length. [B, 1, D] -> [B, 1, out_dim]."""

    def __init__(self, dims: Mapping[str, int], out_dim: int | None) -> None:
        super().__init__()
        self.modalities, self.fills = Modalities(dims, {}), tuple(dims)
        (dim,) = dims.values()
        self.projection: nn.Module = nn.Linear(dim, out_dim) if out_dim is not None else nn.Identity()
        self.out_dim = out_dim or dim

    def forward(self, tokens: Mapping[str, Tokens]) -> Tokens:
        (vector,) = self.modalities(tokens).values()
        return as_tokens(nn.functional.normalize(self.projection(vector), dim=-1))


def as_tokens(vectors: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tokens:
    """[B, D] as one real token a row."""
    return Tokens(vectors.unsqueeze(1), torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device), weights=weights)
