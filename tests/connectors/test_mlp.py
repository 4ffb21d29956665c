"""How large the tokens of the two-layer MLP are."""

from __future__ import annotations

from typing import Any

import torch

from eyegraft.config import Part
from eyegraft.registry import configured
from eyegraft.types import Tokens


def connected(scale: float, **options: Any) -> torch.Tensor:
    module, config = configured("connectors", Part.model_validate({"kind": "mlp", **options}))
    torch.manual_seed(0)
    connector = module.build(config, in_dim=24, out_dim=16)
    values = scale * torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    given = Tokens(values, torch.ones(2, 5, dtype=torch.bool))
    made: torch.Tensor = connector(given).values
    return made


def test_with_norms_tokens_are_as_large_as_any_however_large_the_encoder_s_are() -> None:
    small, large = connected(0.1, norm=True), connected(10.0, norm=True)
    assert small.shape == (2, 5, 16)
    assert torch.allclose(small.std(-1, unbiased=False), torch.ones(2, 5), atol=1e-2)
    assert torch.allclose(small, large, atol=1e-2)


def test_without_they_grow_with_them() -> None:
    small, large = connected(0.1), connected(10.0)
    assert small.std() < 0.2 < 1.0 < large.std()
