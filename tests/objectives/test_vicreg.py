"""VICReg is its authors' formula, on cells that look the same way, with nothing made up for small batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eyegraft.objectives.vicreg import VICReg, expander_of, terms
from eyegraft.training.loss_step import LossStep, Sealed
from objectives import spheres, toy

PLAIN = {"expander": ()}


def algorithm_1(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The terms of Algorithm 1 of arXiv 2105.04906, in its words: variance and covariance are summed over the branches."""
    n, d = z_a.shape
    sim_loss = torch.nn.functional.mse_loss(z_a, z_b)
    std_z_a, std_z_b = torch.sqrt(z_a.var(dim=0) + 1e-04), torch.sqrt(z_b.var(dim=0) + 1e-04)
    std_loss = torch.mean(torch.relu(1 - std_z_a)) + torch.mean(torch.relu(1 - std_z_b))
    z_a, z_b = z_a - z_a.mean(dim=0), z_b - z_b.mean(dim=0)
    cov_z_a, cov_z_b = (z_a.T @ z_a) / (n - 1), (z_b.T @ z_b) / (n - 1)
    off_diagonal = ~torch.eye(d, dtype=torch.bool)
    cov_loss = cov_z_a[off_diagonal].pow(2).sum() / d + cov_z_b[off_diagonal].pow(2).sum() / d
    return sim_loss, std_loss, cov_loss


@pytest.mark.parametrize(("count", "width", "scale"), [(2, 3, 1.0), (50, 8, 0.3), (50, 8, 3.0), (7, 40, 0.01)])
def test_each_term_is_that_of_the_paper(count: int, width: int, scale: float) -> None:
    torch.manual_seed(count)
    mixed = torch.randn(width, width)
    one, other = torch.randn(count, width) @ mixed * scale + 3, torch.randn(count, width) @ mixed * scale
    invariance, variance, covariance = terms(one, other)
    wanted = algorithm_1(one, other)
    torch.testing.assert_close(invariance.mean(), wanted[0])
    torch.testing.assert_close(variance, wanted[1] / 2, msg="mean of the branches")
    torch.testing.assert_close(covariance, wanted[2] / 2, msg="mean of the branches")


@pytest.mark.parametrize("weights", [{}, {"invariance_weight": 10, "variance_weight": 50, "covariance_weight": 2}])
def test_the_loss_of_a_batch_is_the_weighted_sum_of_its_terms(weights: dict[str, float]) -> None:
    step, _ = spheres.stage("vicreg", expander=(12, 6), **weights)
    given = spheres.panoramas(4)
    sums, counts, _, notes = step(Sealed(given))
    assert counts.tolist() == [1] * 4
    objective = step.objective
    with torch.no_grad():
        cells = objective.overlaps(step.model.encode(given)["image"])
        wanted = algorithm_1(*(objective.expander(branch.flatten(0, 1)) for branch in cells))
    inv, var, cov = weights.values() if weights else (25, 25, 1)
    torch.testing.assert_close(sums.mean().detach(), inv * wanted[0] + var * wanted[1] / 2 + cov * wanted[2] / 2, rtol=1e-5, atol=1e-5)
    for name, value in zip(("invariance", "variance", "covariance"), (wanted[0], wanted[1] / 2, wanted[2] / 2), strict=True):
        torch.testing.assert_close(notes[name].mean(), value, rtol=1e-5, atol=1e-6)
    likeness = objective.overlaps.likeness(*cells)
    assert set(notes) == {"invariance", "variance", "covariance", *likeness}
    assert all(torch.equal(notes[name], value) for name, value in likeness.items()), "of encoder tokens"


def losses(change: Any = None, features: int = 24, seed: int = 0) -> tuple[float, float]:
    """(loss, invariance) of an encoder that says of every cell what is there."""
    step, _ = spheres.stage("vicreg", spheres.E2P, cells=14, **PLAIN)
    if change is not None:
        change(step.objective)
    loss = step.objective(*spheres.known(spheres.E2P, (14, 14), 4, features, seed))
    return float(loss.sums.mean()), float(loss.notes["invariance"].mean())


def test_the_loss_is_lowest_where_cells_are_matched_by_angle() -> None:
    """On spheres of smooth colours, of which every cell's feature is the colour that it looks at."""
    for seed in range(3):
        right = losses(seed=seed)
        wrong = {shift: losses(lambda objective, by=shift: spheres.shifted(objective, by), seed=seed) for shift in (-2, -1, 1, 2)}
        wrong |= {f"index {shift:+d}": losses(lambda o, by=shift: spheres.by_index(o, shift=by), seed=seed) for shift in (-1, 0, 1)}
        assert all(loss > 1.1 * right[0] and invariance > 20 * right[1] for loss, invariance in wrong.values()), (right, wrong)
        assert wrong[2] > wrong[1], "the farther off the worse"
        assert wrong[-2] > wrong[-1]


def test_training_makes_matches_alike_without_collapse() -> None:
    """Also on panoramas that it has not seen; and without the variance term there is a collapse, which the notes show."""

    def trained(**options: Any) -> list[dict[str, float]]:
        step, plan = spheres.stage("vicreg", cells=7, width=16, **options)
        held_out = spheres.panoramas(6, seed=1000)
        found = []
        for steps in (0, 40):
            toy.train(step, plan, steps, lambda number: spheres.panoramas(6, seed=number), rate=3e-3)
            step.eval()
            with torch.no_grad():
                notes = step(Sealed(held_out))[3]
            step.train()
            found.append({name: float(values.mean()) for name, values in notes.items()})
        return found

    before, after = trained(expander=(64, 64))
    assert after["cosine_overlap"] - after["cosine_apart"] > before["cosine_overlap"] - before["cosine_apart"] + 0.05, (before, after)
    assert after["invariance"] < 0.5 * before["invariance"] or after["variance"] < 0.5 * before["variance"]
    assert after["feature_std"] > 0.5 * before["feature_std"]
    start, broken = trained(expander=(), variance_weight=1e-6, covariance_weight=1e-6)
    assert broken["feature_std"] < 0.3 * start["feature_std"]
    assert broken["cosine_apart"] > 0.99
    assert broken["invariance"] < start["invariance"], "the loss alone would call it a success"


def test_a_panorama_that_is_not_there_changes_nothing() -> None:
    step, _ = spheres.stage("vicreg", expander=(8,))
    given = spheres.panoramas(4)
    there = torch.tensor([True, False, True, True])
    sums, counts, _, notes = step(Sealed(replace(given, present={"image": there})))
    alone = step(Sealed(given.take([0, 2, 3])))
    assert counts.tolist() == [1, 0, 1, 1]
    torch.testing.assert_close(sums[there], alone[0])
    assert not sums[1]
    assert all(torch.allclose(values[there], alone[3][name], atol=1e-6) and not values[1] for name, values in notes.items())
    nobody = step(Sealed(replace(given, present={"image": torch.zeros(4, dtype=torch.bool)})))
    assert not nobody[0].any()
    assert not nobody[1].any()
    nobody[0].sum().backward()


def test_the_expander_is_the_objectives_own_and_lasts() -> None:
    step, plan = spheres.stage("vicreg", expander=(12, 10, 6))
    kinds = [type(layer).__name__ for layer in step.objective.expander]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [p.shape for p in step.objective.expander.parameters() if p.ndim == 2] == [(12, 8), (10, 12), (6, 10)]
    held = {id(p) for group in plan.groups for p in group["params"]}
    assert all(id(p) in held for p in step.objective.parameters())
    assert {name.split(".")[0] for name in step.objective.state_dict()} == {"expander"}, "matches come from the recipe"
    before = {name: value.clone() for name, value in step.objective.state_dict().items()}
    expander = step.objective.expander
    toy.train(step, plan, 2, lambda number: spheres.panoramas(2, seed=number))
    assert step.objective.expander is expander
    assert all(not torch.equal(value, before[name]) for name, value in step.objective.state_dict().items())
    assert list(expander_of((8,))) == []
    assert not spheres.stage("vicreg", **PLAIN)[0].objective.state_dict()


def test_batch_norms_of_the_expander_read_the_batch_in_validation_too() -> None:
    """The plan freezes the statistics of batch norms of pretrained parts; one that took running statistics of nothing would scale nothing."""
    step, _ = spheres.stage("vicreg", expander=(12, 6))
    norm = next(layer for layer in step.objective.expander if isinstance(layer, nn.BatchNorm1d))
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    given = spheres.panoramas(3)
    training = step(Sealed(given))[0]
    step.eval()
    assert torch.equal(training, step(Sealed(given))[0])
    for output in seen:
        torch.testing.assert_close(output.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
        torch.testing.assert_close(output.std(0), torch.ones(12), atol=2e-2, rtol=0)


def test_under_half_precision_the_terms_stay_in_float32() -> None:
    step, _ = spheres.stage("vicreg", **PLAIN)
    objective = step.objective
    output, batch = spheres.known(spheres.ANYRES, (7, 7), 3, 8)
    whole = objective(output, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(output, batch)
    assert torch.equal(half.sums, whole.sums)
    assert half.sums.dtype == torch.float32


def test_the_mean_over_batches_is_that_of_their_losses() -> None:
    """What `Loss` promises: sums over counts of several batches, as under accumulation; each keeps its own statistics."""
    step, _ = spheres.stage("vicreg", expander=(12, 6))
    objective: VICReg = step.objective
    batches = [spheres.panoramas(3, seed=1), spheres.panoramas(1, seed=2)]
    found = [step(Sealed(batch)) for batch in batches]
    alone = [float(sums.detach().mean()) for sums, *_ in found]
    together = sum(float(sums.detach().sum()) for sums, *_ in found) / sum(float(objective.counts(batch).sum()) for batch in batches)
    assert together == pytest.approx((3 * alone[0] + alone[1]) / 4)


def test_packing_does_not_split_a_batch_that_is_compared() -> None:
    """`train.packing` is for the stages with texts; here there are none to pack, and parts of a batch would have other statistics."""
    step, _ = spheres.stage("vicreg", expander=(12, 6))
    given = spheres.panoramas(3)
    packing = LossStep(step.model, step.objective, packing=8)
    assert packing.parts(given) == [given]
