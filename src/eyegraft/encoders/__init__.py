"""Pixels or words to tokens. One file a family; each has `Config` and `build(config) -> Encoder`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from eyegraft.types import ImageSpec, Inputs, PatchSpec, TextSpec, Tokens


class Encoder(Protocol):
    """What every encoder offers.

    Attributes:
        token_dim: D of the tokens that it gives.
        spec: how its pixels or words must be prepared; a property of the weights.
        backbone: the pretrained module, for adapters and checkpoints; None where nothing is pretrained, which then trains by default.

    One of several parts, each tuned by itself, gives them by `parts()`: name -> module, its own name in the recipe among them. Together
    they hold every parameter once, and each has a `backbone` and `blocks`.

    One with a `backbone` may name `new_parameters`, those that no file of pretrained weights holds: they train by `last_n` and `lora` too.
    """

    token_dim: int
    spec: ImageSpec | TextSpec | PatchSpec
    backbone: nn.Module | None

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters in depth order, stem first; what follows the last block belongs to it."""

    def __call__(self, inputs: Inputs) -> Tokens:
        """Inputs of a batch, as `spec` asks for them -> Tokens [B, N, D]."""
