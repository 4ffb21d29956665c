"""DenseCL: a cell must find its place among places that look elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eyegraft.objectives.densecl import Config, contrast, same_panorama
from eyegraft.training.loss_step import Sealed
from eyegraft.types import Sample
from objectives import spheres, toy

SMALL = {"hidden_dim": 32, "out_dim": 16}


def test_the_loss_is_that_of_the_paper() -> None:
    """- log exp(q·k+/t) / (exp(q·k+/t) + sum over negatives of exp(q·k-/t)), one cell at a time."""
    torch.manual_seed(0)
    asked, known = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    excluded = torch.rand(2, 3, 2, 3) < 0.3
    for row in range(2):
        excluded[row, :, row].fill_diagonal_(True)
    found = contrast(asked, known, excluded, 0.07)
    for row in range(2):
        losses = []
        for cell in range(3):
            q = asked[row, cell] / asked[row, cell].norm()
            right = math.exp(float(q @ known[row, cell] / known[row, cell].norm()) / 0.07)
            places = [(b, s) for b in range(2) for s in range(3) if not excluded[row, cell, b, s]]
            wrong = [math.exp(float(q @ known[place] / known[place].norm()) / 0.07) for place in places]
            losses.append(-math.log(right / (right + sum(wrong))))
        assert float(found[row]) == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_negatives_look_elsewhere() -> None:
    step, _ = spheres.stage("densecl", cells=14, cells_per_panorama=None, **SMALL)
    objective = step.objective
    assert 7 < objective.same_place_degrees == objective.overlaps.cell_degrees < 9
    chosen = torch.arange(len(objective.overlaps))
    excluded = objective._excluded(torch.eye(2, dtype=torch.bool), chosen)
    looks = objective.overlaps.directions
    degrees = torch.rad2deg(torch.arccos((looks @ looks.mT).clamp(-1, 1)))
    assert torch.equal(excluded[0, :, 0], excluded[1, :, 1])
    clear = (degrees - objective.same_place_degrees).abs() > 1e-3
    assert torch.equal(excluded[0, :, 0][clear], (degrees < objective.same_place_degrees)[clear])
    assert not excluded[0, :, 1].any(), "another panorama is elsewhere everywhere"
    near = excluded[0, :, 0].sum(1)
    assert near.min() > 1, "neighbouring cells, and the same place as the next pair of views sees it"
    twins = objective._excluded(torch.ones(2, 2, dtype=torch.bool), chosen)
    assert twins[0, :, 1].all()
    assert torch.equal(twins[0, :, 0], excluded[0, :, 0])
    wide = spheres.stage("densecl", cells=14, same_place_degrees=40, **SMALL)[0].objective
    assert wide._excluded(torch.eye(1, dtype=torch.bool), chosen).sum() > 4 * near.sum()


def test_rows_of_one_picture_are_one_panorama() -> None:
    rows = [Sample("a", Path("x.jpg"), sha256="1"), Sample("b", Path("y.jpg"), sha256="1"), Sample("c", Path("x.jpg")), Sample("d", None)]
    rows += [Sample("e", Path("x.jpg")), Sample("f", None)]
    same = same_panorama(rows)
    assert {(i, j) for i, j in same.nonzero().tolist() if i < j} == {(0, 1), (2, 4)}


def losses(change: Any = None, seed: int = 0) -> float:
    step, _ = spheres.stage("densecl", spheres.E2P, cells=14, width=24, cells_per_panorama=200, **SMALL)
    if change is not None:
        change(step.objective)
    torch.manual_seed(seed)
    with torch.no_grad():
        return float(step.objective(*spheres.known(spheres.E2P, (14, 14), 3, 24, seed)).sums.mean())


def test_the_loss_is_lowest_where_cells_are_matched_by_angle() -> None:
    for seed in range(3):
        right = losses(seed=seed)
        wrong = {shift: losses(lambda objective, by=shift: spheres.shifted(objective, by), seed=seed) for shift in (-2, -1, 1, 2)}
        wrong |= {f"index {shift:+d}": losses(lambda o, by=shift: spheres.by_index(o, shift=by), seed=seed) for shift in (-1, 0, 1)}
        assert all(loss > right + 0.3 for loss in wrong.values()), (right, wrong)
        assert wrong[2] > wrong[1]
        assert wrong[-2] > wrong[-1]


def test_it_learns_to_find_places_on_spheres_that_it_has_not_seen() -> None:
    step, plan = spheres.stage("densecl", cells=7, width=16, **SMALL)
    held_out = spheres.panoramas(6, seed=1000)

    def found() -> dict[str, float]:
        torch.manual_seed(0)
        with torch.no_grad():
            sums, _, _, notes = step(Sealed(held_out))
        return {"loss": float(sums.mean()), **{name: float(values.mean()) for name, values in notes.items()}}

    before = found()
    toy.train(step, plan, 40, lambda number: spheres.panoramas(6, seed=number), rate=3e-3)
    after = found()
    assert after["loss"] < before["loss"] - 0.3
    assert after["cosine_overlap"] - after["cosine_apart"] > before["cosine_overlap"] - before["cosine_apart"] + 0.05, (before, after)
    assert after["feature_std"] > 0.5 * before["feature_std"]
    assert after["cosine_overlap_centred"] > before["cosine_overlap_centred"] - 0.01


def test_matches_are_drawn_from_the_seed_alone() -> None:
    step, _ = spheres.stage("densecl", cells_per_panorama=20, **SMALL)
    given = spheres.panoramas(3)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(step(Sealed(given))[0].detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    torch.manual_seed(0)
    chosen = step.objective._chosen()
    assert len(chosen) == len(chosen.unique()) == 20
    few = spheres.stage("densecl", cells_per_panorama=10**6, **SMALL)[0].objective
    assert torch.equal(few._chosen(), torch.arange(len(few.overlaps)))


def test_a_panorama_that_is_not_there_is_no_negative() -> None:
    step, _ = spheres.stage("densecl", cells_per_panorama=None, **SMALL)
    given = spheres.panoramas(4)
    there = torch.tensor([True, False, True, True])
    with torch.no_grad():
        sums, counts, _, notes = step(Sealed(replace(given, present={"image": there})))
        alone = step(Sealed(given.take([0, 2, 3])))
    assert counts.tolist() == [1, 0, 1, 1]
    torch.testing.assert_close(sums[there], alone[0])
    assert not sums[1]
    assert all(not values[1] for values in notes.values())


def test_places_are_compared_in_float32() -> None:
    """Under half precision directions a degree apart would be one."""
    step, _ = spheres.stage("densecl", cells=14, cells_per_panorama=None, same_place_degrees=2, **SMALL)
    step.objective.head = torch.nn.Identity()
    output, batch = spheres.known(spheres.ANYRES, (14, 14), 2, 8)
    whole = step.objective(output, batch).sums
    with torch.autocast("cpu", torch.bfloat16):
        half = step.objective(output, batch).sums
    assert torch.equal(whole, half)


def test_defaults_and_what_is_refused() -> None:
    assert Config().temperature == 0.07
    for wrong in ({"temperature": 0}, {"cells_per_panorama": 1}, {"same_place_degrees": 180}, {"queue": 3}):
        with pytest.raises(ValidationError):
            Config.model_validate(wrong)
