"""Every connector in the folder, poolings among them, keeps the promises of `eyegraft.connectors.Connector`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.types import Tokens

IN, OUT, COUNT = 16, 24, 7
pytestmark = pytest.mark.parametrize("case", cases("connectors"))


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("connectors", case, folders)
    torch.manual_seed(0)
    return tiny.lively(module.build(config, in_dim=IN, out_dim=OUT), scale=1.0).eval()


def tokens(*, real: tuple[int, ...] = (COUNT, 4)) -> Tokens:
    """A class token and a 2x3 grid; the second row's last tokens are missing."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.arange(COUNT)[None] < torch.tensor(real)[:, None]
    return Tokens(torch.randn(len(real), COUNT, IN, generator=generator), mask, grid=(2, 3), num_prefix=1)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("connectors", case, folders))


def test_out_dim_is_honest(made: Any) -> None:
    out = made(tokens())
    assert out.values.shape[0] == 2
    assert out.values.shape[2] == made.out_dim
    assert made.out_dim in (IN, OUT)
    assert out.mask.dtype == torch.bool
    assert out.mask.shape == out.values.shape[:2]
    assert out.mask[0].all()
    if out.grid is not None:
        assert out.grid[0] * out.grid[1] + out.num_prefix == out.values.shape[1]


def test_masked_tokens_change_nothing(made: Any) -> None:
    given = tokens()
    noisy = given.with_values(torch.where(given.mask.unsqueeze(-1), given.values, torch.full_like(given.values, 1e4)))
    expected, out = made(given), made(noisy)
    assert torch.equal(out.mask, expected.mask)
    torch.testing.assert_close(out.values[out.mask], expected.values[expected.mask])


def test_missing_tokens_are_as_good_as_absent(made: Any) -> None:
    given = tokens(real=(4,))
    short = replace(given, values=given.values[:, :4], mask=given.mask[:, :4], grid=None)
    out, expected = made(given), made(short)
    torch.testing.assert_close(out.values[out.mask], expected.values[expected.mask])


def test_a_row_without_tokens_is_masked_and_finite(made: Any) -> None:
    """What is masked is still multiplied by zero downstream, so it must not be NaN."""
    out = made(tokens(real=(COUNT, 0)))
    assert not out.mask[1].any()
    assert out.values.isfinite().all()


def test_gradient_reaches_every_parameter_and_the_input(made: Any) -> None:
    given = tokens()
    given = given.with_values(given.values.requires_grad_(True))
    out = made(given)
    weight = torch.randn(out.values.shape, generator=torch.Generator().manual_seed(6)) * out.mask.unsqueeze(-1)
    (out.values * weight).sum().backward()
    without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient: {without}"
    assert given.values.grad is not None
    assert given.values.grad[0].any()
    assert not given.values.grad[1, 4:].any(), "a missing token has a gradient"


def test_same_input_same_output(made: Any) -> None:
    given = tokens()
    assert torch.equal(made(given).values, made(given).values)
    alone = Tokens(given.values[1:], given.mask[1:], given.grid, given.num_prefix)
    torch.testing.assert_close(made(alone).values, made(given).values[1:])


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    module, config = part("connectors", case, folders)
    reloads(lambda: module.build(config, in_dim=IN, out_dim=OUT), lambda connector: connector(tokens()).values)
