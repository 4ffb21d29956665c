"""Tokens to tokens of another width or count. Each file has `Config` and `build(config, in_dim=…, out_dim=…) -> Connector`."""

from __future__ import annotations

from typing import Protocol

from eyegraft.types import Tokens


class Connector(Protocol):
    """What every connector offers. `out_dim` is the D that it really gives; poolings keep the width whatever was asked for."""

    out_dim: int

    def __call__(self, tokens: Tokens) -> Tokens:
        """Tokens [B, N, in_dim] -> Tokens [B, N', out_dim]; masked tokens must not change the result."""
