"""Masked autoencoding: what is hidden stays hidden, what is answered is what was hidden, and a field is learned from its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eyegraft.errors import PartError, RecipeError
from eyegraft.objectives.mae import MAE, Cells, Config
from eyegraft.training.loss_step import Sealed
from objectives import toy


def prepared(step: Any, given: Any, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    return step.objective.prepare(given)


def with_pixels(given: Any, pixels: torch.Tensor) -> Any:
    return given.with_input("image", {**given.inputs["image"], "pixels": pixels})


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("size", "grid"), [((9, 9), (3, 3)), ((9, 9), (2, 2)), ((10, 7), (4, 3)), ((9, 9), (9, 9)), ((2, 5), (3, 3))])
def test_every_pixel_belongs_to_one_cell(size: tuple[int, int], grid: tuple[int, int]) -> None:
    cells = Cells(size, grid)
    numbers = torch.arange(2 * size[0] * size[1]).view(1, 2, *size)
    real = cells.real(torch.ones_like(numbers, dtype=torch.bool))
    assert sorted(cells.of(numbers)[real].tolist()) == numbers.flatten().tolist(), "each once, of both channels"
    for place in range(len(cells)):
        chosen = torch.arange(len(cells))[None] == place
        spread = cells.spread(chosen).expand_as(numbers)
        assert set(cells.of(numbers)[chosen][real[chosen]].tolist()) == set(numbers[spread].tolist())


def test_cells_of_a_patch_of_nine() -> None:
    found = Cells((9, 9), (3, 3)).of(torch.arange(81.0).view(1, 1, 9, 9))
    assert found[0, 5].tolist() == [33, 34, 35, 42, 43, 44, 51, 52, 53], "row 1, column 2"


# ── what is hidden ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("encoder", ["clay", "patch_cnn", "pictures"])
def test_no_seen_token_knows_what_was_hidden(encoder: str) -> None:
    """Other values in hidden pixels move no token that the decoder reads, and so no answer."""
    step, _ = toy.stage("mae", encoder)
    given = toy.batch(pictures=encoder == "pictures")
    one = prepared(step, given)
    hidden = one.inputs["mae"]["hidden"]
    unseen = step.objective.cells.spread(hidden)
    other = given.inputs["image"] if encoder == "pictures" else given.inputs["image"]["pixels"]
    other = torch.where(unseen, other + 7 * torch.randn_like(other), other)
    two = prepared(step, given.with_input("image", other) if encoder == "pictures" else with_pixels(given, other))
    assert torch.equal(two.inputs["mae"]["hidden"], hidden)
    assert not torch.equal(two.inputs["mae"]["pixels"], one.inputs["mae"]["pixels"])
    with torch.no_grad():
        first, second = (step.model.encode(made)["image"] for made in (one, two))
        seen = first.mask & ~torch.nn.functional.pad(hidden, (first.num_prefix, 0))
        assert torch.equal(first.values[seen], second.values[seen])
        answers = [step.objective.decoder(tokens, hidden) for tokens in (first, second)]
    assert torch.equal(*answers)


def test_a_token_of_clay_does_not_see_masked_pixels_and_moves_with_seen_ones() -> None:
    """The attention mask itself, and not only the zeros in the pixels: extra maps of hidden cells reach no other token."""
    step, _ = toy.stage("mae", "clay")
    given = prepared(step, toy.batch())
    image, hidden = given.inputs["image"], given.inputs["mae"]["hidden"]
    unseen = step.objective.cells.spread(hidden)
    with torch.no_grad():
        before = step.model.encode(given)["image"]
        assert torch.equal(before.mask[:, 1:], ~hidden)
        moved = {**image, "extra": torch.where(unseen, image["extra"] + 3, image["extra"])}
        after = step.model.encode(given.with_input("image", moved))["image"]
        assert torch.equal(after.values[after.mask], before.values[before.mask])
        moved = {**image, "pixels": torch.where(unseen, image["pixels"], image["pixels"] + 3)}
        after = step.model.encode(given.with_input("image", moved))["image"]
        assert not torch.isclose(after.values[after.mask], before.values[before.mask]).any(1).all()


@pytest.mark.parametrize(("ratio", "number"), [(0.75, 7), (0.5, 4), (0.01, 1), (0.99, 8)])
def test_the_share_that_is_hidden(ratio: float, number: int) -> None:
    step, _ = toy.stage("mae", "patch_cnn", mask_ratio=ratio)
    hidden = prepared(step, toy.batch(400)).inputs["mae"]["hidden"]
    assert hidden.sum(1).tolist() == [number] * 400
    assert hidden.float().mean(0).sub(number / 9).abs().max() < 0.12, "all cells alike"
    assert not torch.equal(hidden, prepared(step, toy.batch(400), seed=4).inputs["mae"]["hidden"])


def test_only_cells_with_something_measured_are_hidden() -> None:
    step, _ = toy.stage("mae", "patch_cnn")
    mask = torch.ones(4, 3, 9, 9, dtype=torch.bool)
    mask[:2, :, :6] = False  # three cells are left
    mask[2, :, :, 3:] = False
    mask[2, :, 3:] = False  # one cell is left
    mask[3] = False
    given = toy.batch(4, mask=mask)
    hidden = prepared(step, given).inputs["mae"]["hidden"]
    assert hidden.sum(1).tolist() == [2, 2, 0, 0]
    assert not hidden[:2, :6].any()
    assert step.objective.counts(given).tolist() == [1, 1, 0, 0]
    sums, counts, *_ = step(Sealed(given))
    assert counts.tolist() == [1, 1, 0, 0]
    assert sums[2:].tolist() == [0, 0]


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def loss_by_hand(step: Any, made: Any, answered: torch.Tensor) -> torch.Tensor:
    """Cell by cell of 3 x 3 pixels, as the paper has it."""
    pixels, measured, hidden = (made.inputs["mae"][key] for key in ("pixels", "measured", "hidden"))
    losses = []
    for row in range(len(pixels)):
        errors = []
        for cell in hidden[row].nonzero().flatten().tolist():
            down, across = 3 * (cell // 3), 3 * (cell % 3)
            there = measured[row, :, down : down + 3, across : across + 3].flatten()
            truth = pixels[row, :, down : down + 3, across : across + 3].flatten()[there]
            if step.objective.normalise_targets and len(truth):
                truth = (truth - truth.mean()) / (truth.var(correction=0) + 1e-6).sqrt()
            errors.append((answered[row, cell][there] - truth) ** 2)
        losses.append(torch.cat(errors).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_of_hidden_measured_pixels_alone(normalise: bool) -> None:
    step, _ = toy.stage("mae", "patch_cnn", normalise_targets=normalise)
    mask = torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.3
    pixels = torch.where(mask, toy.fields(5), torch.nan)
    made = prepared(step, toy.batch(5, mask=mask, pixels=pixels))
    with torch.no_grad():
        encoded = step.model.encode(made)
        answered = step.objective.decoder(encoded["image"], made.inputs["mae"]["hidden"])
        torch.manual_seed(3)
        sums, _, _, _ = step(Sealed(toy.batch(5, mask=mask, pixels=pixels)))
    torch.testing.assert_close(sums, loss_by_hand(step, made, answered))


def test_missing_pixels_never_count() -> None:
    """Whatever stands where nothing was measured, loss and gradients are the same."""
    found = []
    for filling in (0.0, 1e6, float("nan")):
        step, _ = toy.stage("mae", "clay")
        mask = torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.3
        torch.manual_seed(3)
        sums, *_ = step(Sealed(toy.batch(5, mask=mask, pixels=toy.fields(5).where(mask, filling))))
        sums.sum().backward()
        found.append([sums.detach(), *(p.grad for p in step.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert all(grad.isfinite().all() for grad in found[2])


@pytest.mark.parametrize(
    ("encoder", "steps", "rate", "share"), [("patch_cnn", 60, 3e-3, 0.3), ("pictures", 60, 3e-3, 0.7), ("clay", 15, 1e-3, 0.9)]
)
def test_it_falls_in_tens_of_steps(encoder: str, steps: int, rate: float, share: float) -> None:
    step, plan = toy.stage("mae", encoder, normalise_targets=False, mask_ratio=0.5, decoder_dim=32, decoder_depth=1)
    before = {name: p.clone() for name, p in step.model.encoders.named_parameters()}
    pictures, patches = toy.batch(32, pictures=True), toy.clusters(8, 0)
    given = {"pictures": lambda _: pictures, "clay": lambda _: patches}.get(encoder, lambda number: toy.clusters(32, number))
    losses = [entry["loss"] for entry in toy.train(step, plan, steps, given, rate)]
    assert sum(losses[-5:]) < share * sum(losses[:5])
    assert all(not torch.equal(p, before[name]) for name, p in step.model.encoders.named_parameters())


# ── what it does not fit ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_cell_hides_nothing() -> None:
    with pytest.raises(PartError, match=r"gives \(1, 1\) cells(.|\n)*resize72"):
        toy.stage("mae", "clay", model=toy.graft("clay", grid="crop"))


def test_a_frozen_encoder_would_keep_nothing() -> None:
    with pytest.raises(RecipeError, match="objective mae in a stage where vision_encoder is frozen") as caught:
        toy.stage("mae", "clay", tune="frozen")
    assert "stages.NAME.tune.vision_encoder=full" in caught.value.fix


def test_heads_divide_the_decoder() -> None:
    with pytest.raises(ValidationError, match="decoder_heads=3 does not divide decoder_dim=32"):
        Config(decoder_dim=32, decoder_heads=3)
    assert isinstance(MAE(**Config().model_dump()), MAE)
