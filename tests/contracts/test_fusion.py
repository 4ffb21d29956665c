"""Every fusion in the folder keeps the promises of `eyegraft.fusion.Fusion`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.types import Tokens

DIM = 8
DIMS = {"image": DIM, "text": DIM}
pytestmark = pytest.mark.parametrize("case", cases("fusion"))


def given(fills: tuple[str, ...] = ()) -> dict[str, Tokens]:
    """Sequences of tokens; for a fusion that stands in for what is missing, one token a modality, present in some rows."""
    generator = torch.Generator().manual_seed(7)
    if fills:
        there = {"image": [True, True, False], "text": [True, False, True]}
        return {name: Tokens(torch.randn(3, 1, DIM, generator=generator), torch.tensor(there[name]).unsqueeze(1)) for name in there}
    image = Tokens(torch.randn(2, 6, DIM, generator=generator), torch.tensor([[True] * 6, [True] * 4 + [False] * 2]), grid=(2, 3))
    text = Tokens(torch.randn(2, 3, DIM, generator=generator), torch.tensor([[True] * 3, [True] * 2 + [False]]))
    return {"image": image, "text": text}


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("fusion", case, folders)
    torch.manual_seed(0)
    return module.build(config, dims=DIMS).eval()


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("fusion", case, folders))


def test_out_dim_is_honest(made: Any) -> None:
    out = made(given(made.fills))
    assert out.values.shape[0] == len(out.mask)
    assert out.values.shape[2] == made.out_dim
    assert out.mask.dtype == torch.bool
    assert out.mask.shape == out.values.shape[:2]
    if out.grid is not None:
        assert out.grid[0] * out.grid[1] + out.num_prefix == out.values.shape[1]


def test_one_modality_passes(case: tuple[str, str], folders: Any) -> None:
    module, config = part("fusion", case, folders)
    fusion = module.build(config, dims={"image": DIM}).eval()
    image = given(fusion.fills)["image"]
    out = fusion({"image": image})
    assert out.values.shape[2] == fusion.out_dim
    assert out.mask.shape == out.values.shape[:2]


def test_masked_tokens_change_nothing(made: Any) -> None:
    plain = given(made.fills)
    noisy = {name: item.with_values(item.values.masked_fill(~item.mask.unsqueeze(-1), 1e4)) for name, item in plain.items()}
    expected, out = made(plain), made(noisy)
    assert torch.equal(out.mask, expected.mask)
    torch.testing.assert_close(out.values[out.mask], expected.values[expected.mask])


def test_gradient_reaches_every_modality_and_parameter(made: Any) -> None:
    tokens = given(made.fills)
    for item in tokens.values():
        item.values.requires_grad_(True)
    out = made(tokens)
    (out.values * out.mask.unsqueeze(-1) * torch.randn(out.values.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, item in tokens.items():
        assert item.values.grad is not None, name
        assert item.values.grad.any(), name
        assert not item.values.grad[~item.mask].any(), f"a missing {name} token has a gradient"
    assert not [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    module, config = part("fusion", case, folders)
    reloads(lambda: module.build(config, dims=DIMS), lambda fusion: fusion(given(fusion.fills)).values)
