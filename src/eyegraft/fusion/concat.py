"""Modalities side by side, each scaled to unit length: {modality: [B, 1, D]} -> [B, 1, ΣD]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from eyegraft.config import Strict
from eyegraft.fusion._modalities import Modalities, ModalityDropout, SingleModality, as_tokens
from eyegraft.types import Tokens


class Config(Strict):
    """Attributes:
    modality_dropout: modality -> share of training rows in which it is hidden.
    """

    modality_dropout: ModalityDropout = {}


class ConcatFusion(nn.Module):
    def __init__(self, dims: Mapping[str, int], modality_dropout: ModalityDropout) -> None:
        super().__init__()
        self.out_dim = sum(dims.values())
        self.modalities, self.fills = Modalities(dims, modality_dropout), tuple(dims)

    def forward(self, tokens: Mapping[str, Tokens]) -> Tokens:
        vectors = [nn.functional.normalize(vector, dim=-1) for vector in self.modalities(tokens).values()]
        return as_tokens(torch.cat(vectors, dim=-1))


def build(config: Config, *, dims: Mapping[str, int]) -> ConcatFusion | SingleModality:
    return SingleModality(dims, None) if len(dims) == 1 else ConcatFusion(dims, config.modality_dropout)
