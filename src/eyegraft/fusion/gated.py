"""A gate for each sample and dimension between image and text (Arevalo et al. 2017, Gated Multimodal Units)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from eyegraft.config import Positive, Strict
from eyegraft.errors import PartError
from eyegraft.fusion._modalities import Modalities, ModalityDropout, SingleModality, as_tokens
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    dim: width of the fused vector.
    dropout: on it.
    gate_bias: of the gate before training; above 0 it leans towards the image.
    normalize: bring each modality to mean 0 and variance 1 over its dimensions first: encoders differ in scale, and the one with the
        larger numbers is heard first. Off is the formula as published.
    modality_dropout: modality -> share of training rows in which it is hidden.
    """

    dim: Positive = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    gate_bias: float = 0.5
    normalize: bool = True
    modality_dropout: ModalityDropout = {}


class GatedFusion(nn.Module):
    """h_v = tanh(W_v v), h_t = tanh(W_t t), g = sigmoid(W_g [v; t]); out = dropout(norm(g · h_v + (1 - g) · h_t))."""

    def __init__(
        self, dims: Mapping[str, int], out_dim: int, dropout: float, gate_bias: float, normalize: bool, modality_dropout: ModalityDropout
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.modalities, self.fills = Modalities(dims, modality_dropout), tuple(dims)
        self.scale = nn.ModuleList([nn.LayerNorm(dim, elementwise_affine=False) if normalize else nn.Identity() for dim in dims.values()])
        self.first, self.second = (nn.Linear(dim, out_dim) for dim in dims.values())
        self.gate = nn.Linear(sum(dims.values()), out_dim)
        nn.init.constant_(self.gate.bias, gate_bias)
        self.norm, self.dropout = nn.LayerNorm(out_dim), nn.Dropout(dropout)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tokens:
        first, second = (
            scale(vectors) for scale, vectors in zip(self.scale, self.modalities(tokens).values(), strict=True)
        )  # [B, D₁], [B, D₂]
        gate = torch.sigmoid(self.gate(torch.cat([first, second], dim=-1)))  # [B, D]
        fused = gate * torch.tanh(self.first(first)) + (1 - gate) * torch.tanh(self.second(second))
        share = gate.mean(-1)  # [B]
        return as_tokens(self.dropout(self.norm(fused)), weights=dict(zip(self.fills, (share, 1 - share), strict=True)))


def build(config: Config, *, dims: Mapping[str, int]) -> GatedFusion | SingleModality:
    if len(dims) == 1:
        return SingleModality(dims, config.dim)
    if len(dims) > 2:
        raise PartError(f"fusion=gated over {', '.join(dims)}", "two modalities", "use fusion=concat")
    return GatedFusion(dims, config.dim, config.dropout, config.gate_bias, config.normalize, config.modality_dropout)
