"""{modality: Tokens} to Tokens. Each file has `Config` and `build(config, dims={modality: D}) -> Fusion`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from eyegraft.types import Tokens


class Fusion(Protocol):
    """What every fusion offers.

    Attributes:
        fills: modalities that it has something learned in place of, for rows that lack them.
    """

    out_dim: int
    fills: tuple[str, ...]

    def __call__(self, tokens: Mapping[str, Tokens]) -> Tokens:
        """Tokens of each modality, in the recipe's order -> one sequence [B, N, out_dim]."""
