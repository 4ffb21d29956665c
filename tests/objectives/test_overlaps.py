"""Cells of neighbouring views are matched by where they look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eyegraft.errors import PartError
from eyegraft.objectives._overlaps import Overlaps, places_in
from eyegraft.types import Tokens
from eyegraft.views import Views
from objectives import spheres

STRATEGIES = ["e2p", "anyres_e2p", "sliding_window", "anyres"]


def test_columns_meet_where_the_angle_says() -> None:
    """The values of the document for a field of view of 90 degrees and 45 between two views, on the horizon and on every other row."""
    first, second = spheres.E2P.views[:2]
    assert second.yaw - first.yaw == 45
    wanted = [0.43, 1.97, 3.18, 4.17, 4.98, 5.66, 6.24]
    for rows in (1, 14):  # a single row looks along the horizon
        _, columns = places_in(second, first.cells(rows, 14), (rows, 14))
        np.testing.assert_allclose(columns[:, 7:], np.tile(wanted, (rows, 1)), atol=0.005)
        assert (columns[:, :7] < 0).all()


def test_rows_move_too() -> None:
    """What one view sees at its edge, far from its middle, the next sees near its own middle, and so nearer to the horizon, and the reverse."""
    first, second = spheres.E2P.views[:2]
    rows, _ = places_in(second, first.cells(14, 14), (14, 14))
    above = rows[0] + 0.5  # of the top row; 7 is the horizon
    assert 7 - above[13] < 6.5 * 0.75
    assert 7 - above[7] > 6.5 * 1.3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid", [(14, 14), (7, 9)])
def test_every_match_looks_the_same_way(strategy: Any, grid: tuple[int, int]) -> None:
    views = Views(strategy=strategy)
    overlaps = Overlaps(views, grid)
    assert len(overlaps) == sum(overlaps.sizes) > 8 * 12
    assert len(overlaps.sizes) == 8, "the last view meets the first"
    torch.testing.assert_close(overlaps.weights.sum(1), torch.ones(len(overlaps)))
    assert overlaps.weights.min() >= 0
    looks = torch.from_numpy(np.concatenate([view.cells(*grid).reshape(-1, 3) for view in views.views])).float()
    torch.testing.assert_close(looks[overlaps.cells], overlaps.directions)
    met = F.normalize((looks[overlaps.indices] * overlaps.weights[..., None]).sum(1), dim=-1)
    apart = torch.rad2deg(torch.arccos((met * overlaps.directions).sum(1).clamp(max=1)))
    assert apart.max() < 0.12 * overlaps.cell_degrees  # the chord between cells is not the arc
    cells = grid[0] * grid[1]
    pairs = {(int(a) // cells, int(b) // cells) for a, corners in zip(overlaps.cells, overlaps.indices, strict=True) for b in corners}
    assert pairs == set(views.neighbours())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_cell_inside_the_hull_is_left_out(strategy: Any) -> None:
    views, grid = Views(strategy=strategy), (10, 10)
    found = set(Overlaps(views, grid).cells.tolist())
    for first, second in views.neighbours():
        x, y = views.views[second].places(views.views[first].cells(*grid))
        inside = (np.abs(x) <= 0.9) & (np.abs(y) <= 0.9)
        assert {cell - first * 100 for cell in found if cell // 100 == first} == set(np.flatnonzero(inside).tolist())


def test_both_views_say_the_same_of_a_smooth_sphere_and_class_tokens_are_dropped() -> None:
    overlaps = Overlaps(spheres.ANYRES, (14, 14))
    output, _ = spheres.known(spheres.ANYRES, (14, 14), 3, 5)
    values = output.tokens.values
    first, second = overlaps(output.tokens)
    assert first.shape == second.shape == (3, len(overlaps), 5)
    assert first.dtype == second.dtype == torch.float32
    assert (first - second).abs().mean() < 0.03 < 0.5 < (first - second.roll(20, 1)).abs().mean()
    with_class = torch.cat([torch.full((3, 9, 2, 5), 99.0), values.view(3, 9, 196, 5)], 2).flatten(1, 2)
    tokens = Tokens(with_class, torch.ones(3, 9 * 198, dtype=torch.bool), grid=(14, 14), num_prefix=2, num_views=9)
    assert all(torch.equal(one, other) for one, other in zip(overlaps(tokens), (first, second), strict=True))
    half, _ = overlaps(output.tokens.with_values(values.bfloat16()))
    assert half.dtype == torch.float32


def test_likeness_is_the_mean_over_all_couples() -> None:
    views = Views(strategy="e2p", fov_degrees=70, pitch_range_degrees=(-50, 50))
    overlaps = Overlaps(views, (5, 5))
    first, second = overlaps(spheres.known(views, (5, 5), 2, 6)[0].tokens)
    found = overlaps.likeness(first, second)
    torch.testing.assert_close(found["cosine_overlap"], F.cosine_similarity(first, second, dim=-1).mean(1))
    pairs, neighbours = np.repeat(np.arange(len(overlaps.sizes)), overlaps.sizes), views.neighbours()
    apart = torch.zeros(len(neighbours), len(neighbours), dtype=torch.bool)
    everywhere = np.meshgrid(np.linspace(-0.99, 0.99, 50), np.linspace(-0.99, 0.99, 50))
    for row, (i, _) in enumerate(neighbours):
        for column, (_, j) in enumerate(neighbours):
            x, y = views.views[i].places(views.views[j].directions(*everywhere))
            apart[row, column] = not ((np.abs(x) < 1) & (np.abs(y) < 1)).any()
    assert 0 < apart.sum() < apart.numel()
    couples = apart[pairs][:, pairs]
    every = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).mT  # [B, P, P]
    torch.testing.assert_close(found["cosine_apart"], every[:, couples].mean(1))
    torch.testing.assert_close(found["feature_std"], first.flatten(0, 1).var(0, correction=0).sqrt().mean().expand(2))
    middle = torch.cat([first, second]).mean((0, 1))
    centred = F.normalize(first - middle, dim=-1) @ F.normalize(second - middle, dim=-1).mT
    torch.testing.assert_close(found["cosine_apart_centred"], centred[:, couples].mean(1))
    torch.testing.assert_close(found["cosine_overlap_centred"], centred.diagonal(dim1=1, dim2=2).mean(1))


def test_what_all_cells_share_raises_cosines_but_not_centred_ones() -> None:
    overlaps = Overlaps(spheres.E2P, (7, 7))
    first, second = overlaps(spheres.known(spheres.E2P, (7, 7), 2, 6)[0].tokens)
    plain, moved = overlaps.likeness(first, second), overlaps.likeness(first + 3, second + 3)
    assert moved["cosine_apart"].min() > plain["cosine_apart"].max() + 0.5
    for name in ("cosine_overlap_centred", "cosine_apart_centred", "feature_std"):
        torch.testing.assert_close(moved[name], plain[name], atol=1e-4, rtol=0)
    collapsed = overlaps.likeness(torch.ones_like(first), torch.ones_like(second))
    assert [round(float(collapsed[name][0]), 4) for name in ("cosine_overlap", "cosine_apart", "feature_std")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("views", "given"),
    [
        (None, "in a recipe without views of panoramas"),
        (Views(strategy="resize"), r"of which no two overlap \(strategy=resize"),
        (Views(strategy="cubemap"), r"of which no two overlap \(strategy=cubemap"),
        (Views(strategy="e2p", overlap=0), r"of which no two overlap \(strategy=e2p, fov_degrees=90, overlap=0\)"),
    ],
)
@pytest.mark.parametrize("kind", ["vicreg", "densecl"])
def test_no_overlap_is_said_before_training(kind: str, views: Views | None, given: str) -> None:
    with pytest.raises(PartError, match=f"objective {kind} .*{given}") as caught:
        spheres.stage(kind, views)
    assert "views that overlap" in caught.value.expected
    assert "views=anyres_e2p" in caught.value.fix


def test_a_grid_too_coarse_for_the_overlap() -> None:
    with pytest.raises(PartError, match="objective vicreg: 0 cells of a 1x1 grid look between the cells of the next view"):
        spheres.stage("vicreg", spheres.E2P, cells=1)


@pytest.mark.parametrize("kind", ["mae", "dino"])
def test_an_objective_that_reads_one_picture_refuses_views(kind: str) -> None:
    with pytest.raises(PartError, match=f"objective {kind} with views") as caught:
        spheres.stage(kind, spheres.E2P)
    assert "vicreg or densecl" in caught.value.fix
