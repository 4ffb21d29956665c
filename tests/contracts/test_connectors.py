"""Every connector in the folder, poolings among them, keeps the promises of `eyegraft.connectors.Connector`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.types import Tokens
from eyegraft.views import Views, token_places

IN, OUT, COUNT = 16, 24, 7
STORED = ("avg", "class_mean", "cls", "mean", "spatial_pool")
pytestmark = pytest.mark.parametrize("case", cases("connectors"))


def build(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("connectors", case, folders)
    return module.build(config, in_dim=IN, out_dim=IN if case[0] == "identity" else OUT)


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    torch.manual_seed(0)
    return tiny.lively(build(case, folders), scale=1.0).eval()


def tokens(*, real: tuple[int, ...] = (COUNT, 4), views: int = 1) -> Tokens:
    """A class token and a 2x3 grid of each view; the second row's last tokens are missing in each."""
    generator = torch.Generator().manual_seed(5)
    mask = (torch.arange(COUNT)[None] < torch.tensor(real)[:, None]).repeat(1, views)
    places = torch.from_numpy(token_places(Views(strategy="e2p", fov_degrees=120, overlap=0), (2, 3), 1))[: views * COUNT]
    values = torch.randn(len(real), views * COUNT, IN, generator=generator)
    return Tokens(values, mask, grid=(2, 3), num_prefix=1, num_views=views, directions=places)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("connectors", case, folders))


@pytest.mark.parametrize("views", [1, 2])
def test_out_dim_and_layout_are_honest(made: Any, views: int) -> None:
    out = made(tokens(views=views))
    batch, count, width = out.values.shape
    assert batch == 2
    assert width == made.out_dim
    assert made.out_dim in (IN, OUT)
    assert out.mask.dtype == torch.bool
    assert out.mask.shape == (batch, count)
    assert out.mask[0].all()
    assert out.num_views in (1, views)
    assert count % out.num_views == 0
    if out.grid is not None:
        assert out.num_views * (out.grid[0] * out.grid[1] + out.num_prefix) == count
    if out.directions is not None:
        assert out.directions.shape == (count, 7)
        torch.testing.assert_close(out.directions[:, :6].unflatten(1, (2, 3)).norm(dim=-1), torch.ones(count, 2))


def test_masked_tokens_change_nothing(made: Any) -> None:
    given = tokens(views=2)
    noisy = given.with_values(torch.where(given.mask.unsqueeze(-1), given.values, torch.full_like(given.values, 1e4)))
    expected, out = made(given), made(noisy)
    assert torch.equal(out.mask, expected.mask)
    torch.testing.assert_close(out.values[out.mask], expected.values[expected.mask])


def test_missing_tokens_are_as_good_as_absent(made: Any) -> None:
    """Of the second row the lower half of the grid is missing."""
    given = tokens(real=(4,))
    assert given.directions is not None
    short = replace(given, values=given.values[:, :4], mask=given.mask[:, :4], grid=(1, 3), directions=given.directions[:4])
    out, expected = made(given), made(short)
    torch.testing.assert_close(out.values[out.mask], expected.values[expected.mask])


@pytest.mark.parametrize("views", [1, 2])
def test_a_row_without_tokens_is_masked_and_finite(made: Any, views: int) -> None:
    """What is masked is still multiplied by zero downstream, so it must not be NaN."""
    given = tokens(real=(COUNT, 0), views=views)
    given = given.with_values(given.values.requires_grad_(True))
    out = made(given)
    assert not out.mask[1].any()
    assert out.values.isfinite().all()
    (out.values * out.mask.unsqueeze(-1)).sum().backward()
    assert given.values.grad is not None
    assert given.values.grad.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in made.parameters())


@pytest.mark.parametrize("views", [1, 2])
def test_gradient_reaches_every_parameter_and_the_input(made: Any, views: int) -> None:
    given = tokens(views=views)
    given = given.with_values(given.values.requires_grad_(True))
    out = made(given)
    weight = torch.randn(out.values.shape, generator=torch.Generator().manual_seed(6)) * out.mask.unsqueeze(-1)
    (out.values * weight).sum().backward()
    without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient: {without}"
    assert given.values.grad is not None
    assert given.values.grad[0].any()
    assert given.values.grad[0].unflatten(0, (views, -1)).flatten(1).any(1).all(), "a view has no gradient"
    assert not given.values.grad[~given.mask].any(), "a missing token has a gradient"


def test_same_input_same_output(made: Any) -> None:
    given = tokens(views=2)
    assert torch.equal(made(given).values, made(given).values)
    alone = replace(given, values=given.values[1:], mask=given.mask[1:])
    torch.testing.assert_close(made(alone).values, made(given).values[1:])


def test_views_are_told_apart_by_where_they_look_alone(made: Any) -> None:
    """In another order they give the same tokens: in that order where the connector keeps views, else the very same."""
    given = tokens(views=3)
    turned = torch.arange(3 * COUNT).view(3, COUNT).roll(1, 0).flatten()
    assert given.directions is not None
    other = replace(given, values=given.values[:, turned], mask=given.mask[:, turned], directions=given.directions[turned])
    out, expected = made(other), made(given)
    if expected.num_views == 1:
        torch.testing.assert_close(out.values, expected.values)
        return
    order = torch.arange(expected.values.shape[1]).view(3, -1).roll(1, 0).flatten()
    torch.testing.assert_close(out.values, expected.values[:, order])
    assert torch.equal(out.mask, expected.mask[:, order])
    if expected.directions is not None:
        assert torch.equal(out.directions, expected.directions[order])


def test_what_may_be_stored_in_place_of_tokens(case: tuple[str, str], folders: Any) -> None:
    """The feature cache keeps what an idempotent pooling gives, and the pooling then sees its own output."""
    module, config = part("connectors", case, folders)
    made = module.build(config, in_dim=IN, out_dim=IN).eval()
    assert getattr(made, "idempotent", False) == (case[0] in STORED)
    if case[0] not in STORED:
        return
    assert not list(made.parameters())
    once = made(tokens(views=2))
    twice = made(once)
    assert torch.equal(twice.values, once.values)
    assert torch.equal(twice.mask, once.mask)
    assert (twice.grid, twice.num_prefix, twice.num_views) == (once.grid, once.num_prefix, once.num_views)
    assert (twice.directions is None) == (once.directions is None)
    if once.directions is not None:
        torch.testing.assert_close(twice.directions, once.directions)


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    reloads(lambda: build(case, folders), lambda connector: connector(tokens()).values)
