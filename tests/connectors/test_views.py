"""What connectors do with several views of one picture: which tokens they make of them, and where those look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eyegraft.config import Part
from eyegraft.errors import PartError
from eyegraft.registry import configured
from eyegraft.types import Tokens
from eyegraft.views import Views, token_places

DIM, GRID, PREFIX = 8, (4, 6), 2
AROUND = Views(strategy="anyres_e2p", fov_degrees=120, overlap=0)  # the whole picture and three tiles
V = AROUND.num_views
COUNT = PREFIX + GRID[0] * GRID[1]


def build(kind: str, *, in_dim: int = DIM, out_dim: int = DIM, **options: Any) -> Any:
    module, config = configured("connectors", Part.model_validate({"kind": kind, **options}))
    torch.manual_seed(1)
    return module.build(config, in_dim=in_dim, out_dim=out_dim).eval()


def tokens(*, views: Views = AROUND) -> Tokens:
    generator = torch.Generator().manual_seed(3)
    count = views.num_views * COUNT
    values = torch.randn(2, count, DIM, generator=generator)
    places = torch.from_numpy(token_places(views, GRID, PREFIX))
    return Tokens(values, torch.rand(2, count, generator=generator) < 0.8, GRID, PREFIX, views.num_views, places)


def view(given: Tokens, place: int) -> Tokens:
    """One view by itself."""
    at = slice(place * COUNT, (place + 1) * COUNT)
    assert given.directions is not None
    return replace(given, values=given.values[:, at], mask=given.mask[:, at], num_views=1, directions=given.directions[at])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("avg", {}),
        ("cls", {}),
        ("identity", {}),
        ("linear", {}),
        ("perceiver", {"num_latents": 3, "depth": 2, "num_heads": 2, "per_view": True}),
        ("prefix", {"num_tokens": 2}),
        ("qformer", {"num_queries": 2, "dim": 8, "depth": 2, "num_heads": 2, "per_view": True}),
        ("spatial_pool", {"size": [2, 3]}),
        ("view_encoding", {}),
    ],
)
def test_each_view_gives_what_it_gives_alone(kind: str, options: dict[str, Any]) -> None:
    made, given = build(kind, **options), tokens()
    if kind == "view_encoding":
        torch.nn.init.normal_(made.layer.weight)
    out, alone = made(given), [made(view(given, place)) for place in range(V)]
    torch.testing.assert_close(out.values, torch.cat([one.values for one in alone], dim=1))
    assert torch.equal(out.mask, torch.cat([one.mask for one in alone], dim=1))
    assert (out.num_views, out.grid, out.num_prefix) == (V, alone[0].grid, alone[0].num_prefix)
    torch.testing.assert_close(out.directions, torch.cat([one.directions for one in alone]))


@pytest.mark.parametrize(
    ("kind", "options", "count"),
    [
        ("attention", {"num_queries": 3, "num_heads": 2}, 3),
        ("mean", {}, 1),
        ("perceiver", {"num_latents": 5, "depth": 1, "num_heads": 2}, 5),
        ("qformer", {"num_queries": 4, "dim": 8, "depth": 1, "num_heads": 2}, 4),
    ],
)
def test_what_reads_all_views_at_once_claims_no_places(kind: str, options: dict[str, Any], count: int) -> None:
    made, given = build(kind, **options), tokens()
    out = made(given)
    assert out.values.shape == (2, count, DIM)
    assert (out.num_views, out.grid, out.num_prefix, out.directions) == (1, None, 0, None)
    dark = given.values.clone()
    dark[:, -COUNT:] = 0
    assert (made(given.with_values(dark)).values - out.values).abs().amax() > 1e-4, "the last view was not read"


# ── averages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def plain_grid(given: Tokens) -> Tensor:
    """[B·V, D, h, w]"""
    cells = given.values.unflatten(1, (given.num_views, -1))[:, :, PREFIX:].flatten(0, 1)
    return cells.transpose(1, 2).unflatten(2, GRID)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 4), (4, 5), (4, 6)])
def test_spatial_pool_has_the_bins_of_torch(size: tuple[int, int]) -> None:
    given = tokens()
    given = replace(given, mask=torch.ones_like(given.mask))
    out = build("spatial_pool", size=size)(given)
    expected = torch.nn.functional.adaptive_avg_pool2d(plain_grid(given), size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.values, expected.unflatten(0, (2, V)).flatten(1, 2))
    assert (out.grid, out.num_prefix, out.num_views) == (size, 0, V)


def test_spatial_pool_counts_real_tokens_alone() -> None:
    given = tokens()
    mask = torch.zeros(2, V, COUNT, dtype=torch.bool)
    mask[:, :, :PREFIX] = True
    mask[:, :, PREFIX] = True  # of the first cell one token of four is there, of the others none
    out = build("spatial_pool", size=[2, 3])(replace(given, mask=mask.flatten(1)))
    assert torch.equal(out.mask.unflatten(1, (V, -1))[0, 0], torch.tensor([True] + [False] * 5))
    torch.testing.assert_close(out.values[:, ::6], given.values.unflatten(1, (V, -1))[:, :, PREFIX])
    assert out.values.isfinite().all()


def test_pooled_cells_look_where_their_views_cells_do() -> None:
    """Four cells of a perspective view look, on average, at nearly the middle of the cell that they become; never off by more than it."""
    out = build("spatial_pool", size=[2, 3])(tokens())
    assert out.directions is not None
    found = out.directions.unflatten(0, (V, -1))
    for place, seen in enumerate(AROUND.views):
        if seen.kind == "perspective":
            cells = torch.from_numpy(seen.cells(2, 3)).float().flatten(0, 1)
            assert ((found[place, :, :3] * cells).sum(-1) > 0.99).all()
        middle = torch.from_numpy(seen.cells(1, 1)).float().flatten()
        torch.testing.assert_close(found[place, :, 3:6], middle.expand(6, 3))
    assert found[0, 0, 6] > found[1, 0, 6]


def test_a_view_looks_where_its_middle_does_even_if_it_goes_all_around() -> None:
    out = build("avg")(tokens())
    torch.testing.assert_close(out.directions[:, :3], out.directions[:, 3:6], atol=1e-5, rtol=0)


def test_avg_is_the_mean_of_what_is_real() -> None:
    given = tokens()
    out = build("avg")(given)
    first = given.values[1, :COUNT][given.mask[1, :COUNT]].mean(0)
    torch.testing.assert_close(out.values[1, 0], first)
    missing = given.mask.clone()
    missing[0, COUNT : 2 * COUNT] = False
    assert out.mask.all()
    assert build("avg")(replace(given, mask=missing)).mask.tolist() == [[True, False, True, True], [True] * 4]


def test_averages_project_only_to_another_width() -> None:
    for kind in ("avg", "spatial_pool"):
        assert not list(build(kind).parameters())
        wider = build(kind, out_dim=12)
        assert wider(tokens()).values.shape[-1] == wider.out_dim == 12
        assert not wider.idempotent


# ── where tokens look ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_first_the_view_encoding_changes_nothing() -> None:
    given = tokens()
    out = build("view_encoding")(given)
    assert torch.equal(out.values, given.values)
    assert out.directions is given.directions
    assert (out.grid, out.num_prefix, out.num_views) == (GRID, PREFIX, V)


def test_the_view_encoding_tells_all_tokens_apart_and_shares_what_they_share() -> None:
    made, given = build("view_encoding"), tokens()
    torch.nn.init.normal_(made.layer.weight)
    added = (made(given).values - given.values)[0].unflatten(0, (V, -1))  # [V, N, D]
    assert torch.allclose(added[:, 0], added[:, 1], atol=1e-5), "class tokens of a view all look at its middle"
    looks = added[:, PREFIX - 1 :].flatten(0, 1)
    apart = torch.cdist(looks, looks) + 9 * torch.eye(len(looks))
    assert apart.min() > 1e-2


def test_the_view_encoding_separates_neighbouring_cells_of_a_fine_grid() -> None:
    """Neighbours on 24 x 24 cells of 90 degrees differ in their features by a good part of what far cells differ by."""
    views = Views(strategy="cubemap")
    features = build("view_encoding")._features(torch.from_numpy(token_places(views, (24, 24), 0)[: 24 * 24])).unflatten(0, (24, 24))
    steps = (features[:, 1:] - features[:, :-1]).norm(dim=-1)
    assert steps.min() > 0.25 * torch.cdist(features.flatten(0, 1), features.flatten(0, 1)).mean()


def test_the_view_encoding_learns_from_stored_tokens() -> None:
    """What comes from the feature cache was made without gradients."""
    with torch.inference_mode():
        stored = tokens()
    stored = replace(stored, values=stored.values.clone(), mask=stored.mask.clone())
    made = build("view_encoding")
    made(stored).values.sum().backward()
    assert made.layer.weight.grad.any()


@pytest.mark.parametrize(
    ("kind", "options", "given", "match", "fix"),
    [
        ("cls", {}, {"num_prefix": 0}, "no class token", "pooling=avg"),
        ("spatial_pool", {}, {"grid": None}, "no grid", "avg"),
        ("spatial_pool", {"size": [2, 7]}, {}, "2 x 7.*has 4 x 6", "at most"),
        ("view_encoding", {}, {"directions": None}, "where they look", "encode_positions=false"),
        (
            "qformer",
            {"dim": 8, "depth": 1, "num_heads": 2},
            {"values": torch.zeros(2, 1, DIM), "mask": torch.ones(2, 1) > 0},
            "of one",
            "none",
        ),
    ],
)
def test_what_does_not_fit_says_so(kind: str, options: dict[str, Any], given: dict[str, Any], match: str, fix: str) -> None:
    made = build(kind, **options)
    with pytest.raises(PartError, match=match) as caught:
        made(replace(tokens(), **given))
    assert caught.value.expected
    assert fix in caught.value.fix


def test_identity_keeps_the_width() -> None:
    with pytest.raises(PartError, match="width 8 and a part that reads width 9") as caught:
        build("identity", out_dim=9)
    assert "connector=linear" in caught.value.fix


@pytest.mark.parametrize("kind", ["attention", "perceiver"])
def test_heads_divide_the_width(kind: str) -> None:
    with pytest.raises(PartError, match="num_heads=3 does not divide the encoder's width 8"):
        build(kind, num_heads=3)
