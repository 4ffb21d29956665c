"""Self-distillation: who is taught by whom, what keeps answers apart, and views that give nothing away."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from eyegraft.errors import PartError
from eyegraft.objectives._average import Average
from eyegraft.objectives._views import PatchViews, PictureViews, patch_view, picture_view
from eyegraft.objectives.dino import teacher_momentum
from eyegraft.training.loss_step import Sealed
from eyegraft.types import Batch
from objectives import toy

SMALL = {"num_prototypes": 16, "hidden_dim": 12, "bottleneck_dim": 6}
STILL = {"turns": False, "shift": 0, "band_dropout": 0, "pixel_dropout": 0, "extra_dropout": 0, "noise": 0}


# ── teacher and student ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_average_is_that_of_the_formula() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    average, expected = Average(module), module.weight.detach().clone()
    assert list(average.state_dict()) == ["weight"], "what is frozen is not kept twice"
    assert not list(average.parameters())
    for momentum in (0.9, 0.5, 1.0, 0.0):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3))
            module.bias.add_(1)
        average.update(momentum)
        expected = momentum * expected + (1 - momentum) * module.weight.detach()
        torch.testing.assert_close(average.state_dict()["weight"], expected, rtol=0, atol=1e-7)
    with torch.no_grad():
        module.weight.add_(1)
    given = torch.randn(4, 3)
    assert torch.equal(average(given), F.linear(given, average.state_dict()["weight"], module.bias))
    assert not average(given).requires_grad


def test_the_average_answers_in_evaluation_mode_and_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    module[0].eval()
    average, given = Average(module), torch.randn(50, 3)
    assert torch.equal(average(given), module[0](given))
    assert (module.training, module[0].training, module[1].training) == (True, False, True)


@pytest.mark.parametrize(("done", "momentum"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0), (0.25, 1 - 0.1 * (1 + math.sqrt(0.5)) / 2)])
def test_the_momentum_rises_along_a_cosine(done: float, momentum: float) -> None:
    assert teacher_momentum(0.9, done) == pytest.approx(momentum)


@pytest.mark.parametrize(
    ("encoder", "tune"), [("patch_cnn", "full"), ("clay", "lora"), ("clay", {"mode": "last_n", "last_n": 1}), ("pictures", "full")]
)
def test_the_teacher_follows_what_trains(encoder: str, tune: Any) -> None:
    step, plan = toy.stage("dino", encoder, tune=tune, momentum=0.75, **SMALL)
    objective, model = step.objective, step.model
    trained = {name for name, p in model.encoders["image"].named_parameters() if p.requires_grad}
    assert {name.replace("/", ".") for name in objective.teacher.state_dict()} == trained
    held = {id(p) for group in plan.groups for p in group["params"]}
    assert held == {id(p) for p in [*model.encoders.parameters(), *objective.head.parameters()] if p.requires_grad}
    before = {name: value.clone() for name, value in objective.state_dict().items() if name.startswith("teacher")}
    given = toy.batch(8, pictures=encoder == "pictures")
    toy.train(step, plan, 1, lambda _: given)
    now = dict(objective.state_dict())
    students = {f"teacher.{name.replace('.', '/')}": p for name, p in model.encoders["image"].named_parameters() if p.requires_grad}
    students |= {f"teacher_head.{name.replace('.', '/')}": p for name, p in objective.head.named_parameters()}
    momentum = teacher_momentum(0.75, 1.0)
    for name, student in students.items():
        torch.testing.assert_close(now[name], momentum * before[name] + (1 - momentum) * student.detach(), rtol=0, atol=1e-7)
    with torch.no_grad():
        step.eval()
        made = objective.prepare(given)
        own = model.encode(made)["image"].values
        its = objective.teacher(made.inputs["image"]).values
    assert own.shape == its.shape
    assert not torch.equal(own, its), "the student has moved, and the teacher at momentum 1 has not"


def test_the_loss_is_that_of_the_paper() -> None:
    step, _ = toy.stage("dino", "patch_cnn", num_local_views=1, teacher_temperature=0.07, student_temperature=0.2, **SMALL)
    objective, given = step.objective, toy.batch(5)
    objective.centre.copy_(torch.randn(16) * 0.1)
    torch.manual_seed(5)
    made = objective.prepare(given)
    assert {len(values) for values in made.inputs["image"].values()} == {15}
    with torch.no_grad():
        vectors = step.model.encode(made)["image"].values[:, 0]
        student = objective.head(vectors).view(3, 5, 16)
        teacher = student  # nothing has trained yet
        losses = []
        for one in range(2):
            wanted = F.softmax((teacher[one] - objective.centre) / 0.07, dim=-1)
            losses += [-(wanted * F.log_softmax(student[other] / 0.2, dim=-1)).sum(-1) for other in range(3) if other != one]
        torch.manual_seed(5)
        sums, counts, _, notes = step(Sealed(given))
    torch.testing.assert_close(sums, torch.stack(losses).mean(0), rtol=1e-4, atol=1e-5)
    assert counts.tolist() == [1] * 5
    torch.testing.assert_close(notes["centre"], teacher[:2].mean(0), rtol=1e-4, atol=1e-5)
    both = F.softmax((teacher[:2] - objective.centre) / 0.07, dim=-1)
    torch.testing.assert_close(notes["teacher_entropy"], torch.distributions.Categorical(both).entropy().mean(0), rtol=1e-4, atol=1e-5)


def test_the_centre_is_the_running_mean_of_what_the_teacher_says() -> None:
    step, _ = toy.stage("dino", "patch_cnn", centre_momentum=0.75, **SMALL)
    one, two = torch.randn(16), torch.randn(16)
    step.objective.after_step(0.1, {"centre": one})
    assert torch.equal(step.objective.centre, one), "the first is taken whole"
    step.objective.after_step(0.2, {"centre": two})
    torch.testing.assert_close(step.objective.centre, 0.75 * one + 0.25 * two)


def test_a_sample_without_a_picture_teaches_nothing() -> None:
    step, _ = toy.stage("dino", "pictures", **SMALL)
    given = toy.batch(4, pictures=True)
    given = Batch(**{**vars(given), "present": {"image": torch.tensor([True, False, True, True])}})
    assert step.objective.counts(given).tolist() == [1, 0, 1, 1]
    sums, counts, _, notes = step(Sealed(given))
    assert counts.tolist() == [1, 0, 1, 1]
    assert [bool(values[1].any()) for values in (sums, *notes.values())] == [False] * 4
    assert sums[0] > 0


def collapse(centred: bool) -> list[dict[str, float]]:
    step, plan = toy.stage(
        "dino", "patch_cnn", model=toy.graft("patch_cnn", width=16), momentum=0.95, num_prototypes=64, hidden_dim=64, bottleneck_dim=32
    )
    if not centred:
        whole = step.objective.after_step
        step.objective.after_step = lambda done, means: whole(done, {"centre": torch.zeros(64)})
    return toy.train(step, plan, 110, lambda number: toy.clusters(32, number), rate=1e-3)


def test_answers_stay_apart_and_without_a_centre_they_do_not() -> None:
    """What is written beside the loss tells the one from the other; the loss alone would call the collapse a success."""
    whole, broken = collapse(True)[-1], collapse(False)[-1]
    assert 0.2 < whole["teacher_entropy"] < 0.95 * math.log(64)
    assert whole["feature_variance"] > 0.3
    assert broken["teacher_entropy"] < 0.05
    assert broken["feature_variance"] < 0.05
    assert broken["loss"] < whole["loss"]


def test_no_class_token_to_take() -> None:
    with pytest.raises(PartError, match="pooling=cls, but the encoder gives no class token"):
        toy.stage("dino", "pictures", pooling="cls", **SMALL)
    assert not toy.stage("dino", "pictures", **SMALL)[0].objective.takes_class_token
    assert toy.stage("dino", "clay", **SMALL)[0].objective.takes_class_token


# ── views of patches ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def given(count: int = 300) -> dict[str, torch.Tensor]:
    return dict(toy.batch(count).inputs["image"])


def test_a_view_that_changes_nothing() -> None:
    before = given(4)
    view = patch_view(before, PatchViews(**STILL))
    assert list(view) == ["pixels", "mask", "extra"], "time and place would tell which views belong together"
    assert all(torch.equal(view[key], before[key]) for key in view)


def test_turns_are_the_eight_of_a_square() -> None:
    one = {"pixels": torch.arange(18.0).view(1, 2, 3, 3).repeat(400, 1, 1, 1)}
    torch.manual_seed(0)
    found = patch_view(one, PatchViews(**{**STILL, "turns": True}))["pixels"]
    every = [one["pixels"][0].rot90(k, (1, 2)) for k in range(4)]
    every += [turned.flip(-1) for turned in every]
    tally = [sum(torch.equal(view, turned) for view in found) for turned in every]
    assert sum(tally) == 400
    assert min(tally) > 25
    tall = {"pixels": torch.arange(6.0).view(1, 1, 3, 2).repeat(50, 1, 1, 1)}
    assert patch_view(tall, PatchViews(**{**STILL, "turns": True}))["pixels"].shape == (50, 1, 3, 2)


def test_what_is_moved_in_is_not_measured() -> None:
    before = given()
    torch.manual_seed(0)
    view = patch_view(before, PatchViews(**{**STILL, "shift": 2}))
    shifts = set()
    for row in range(300):
        inside = view["mask"][row, 0]
        rows, columns = inside.any(1).nonzero().flatten().tolist(), inside.any(0).nonzero().flatten().tolist()
        down, across = (9 - len(rows)) * (1 if rows[0] else -1), (9 - len(columns)) * (1 if columns[0] else -1)
        shifts.add((down, across))
        for key in ("pixels", "extra"):
            source = before[key][row].roll((down, across), (1, 2))
            assert torch.equal(view[key][row][:, inside], source[:, inside])
        assert not view["extra"][row][:, ~inside].any()
    assert shifts == {(down, across) for down in range(-2, 3) for across in range(-2, 3)}


def test_dropouts_and_noise() -> None:
    before = given(2000)
    before["mask"][:, 0, 0, 0] = False
    torch.manual_seed(0)
    bands = patch_view(before, PatchViews(**{**STILL, "band_dropout": 0.3}))["mask"]
    assert not bands[:, 0, 0, 0].any(), "what was not measured never is"
    whole = bands[:, :, 1:, 1:].flatten(2)
    assert torch.equal(whole.all(2), whole.any(2))
    assert float(whole.all(2).float().mean()) == pytest.approx(0.7 + 0.3**3, abs=0.02), "never all of them"
    assert whole.any((1, 2)).all()
    pixels = patch_view(before, PatchViews(**{**STILL, "pixel_dropout": 0.2}))["mask"][:, :, 1:, 1:]
    assert torch.equal(pixels.all(1), pixels.any(1))
    assert float(pixels.float().mean()) == pytest.approx(0.8, abs=0.02)
    extra = patch_view(before, PatchViews(**{**STILL, "extra_dropout": 0.5}))["extra"]
    assert float(extra.any(-1).any(-1).float().mean()) == pytest.approx(0.5, abs=0.05)
    noisy = patch_view(before, PatchViews(**{**STILL, "noise": 0.2}))
    assert float((noisy["pixels"] - before["pixels"])[before["mask"]].std()) == pytest.approx(0.2, abs=0.01)
    local = patch_view(before, PatchViews(**{**STILL, "window": 0.5}), local=True)["mask"][:, 1]
    assert local.sum((1, 2)).tolist() == [16] * 2000, "4 x 4 of 9 x 9"


def test_missing_pixels_stay_missing_in_every_view() -> None:
    before = given(50)
    before["mask"] = torch.rand(50, 3, 9, 9) > 0.3
    before["pixels"] = before["pixels"].where(before["mask"], torch.nan)
    view = patch_view(before, PatchViews(band_dropout=0, pixel_dropout=0, shift=0))
    assert view["pixels"].isfinite().all()
    assert view["mask"].sum((1, 2, 3)).tolist() == before["mask"].sum((1, 2, 3)).tolist()


# ── views of pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_as_it_is() -> None:
    pixels = toy.fields(5, side=16)
    same = PictureViews(crop=(1, 1), brightness=0, contrast=0, saturation=0, flip=0)
    torch.testing.assert_close(picture_view(pixels, same), pixels, rtol=1e-4, atol=1e-5)
    mirrored = picture_view(pixels, PictureViews(crop=(1, 1), brightness=0, contrast=0, saturation=0, flip=1))
    torch.testing.assert_close(mirrored, pixels.flip(-1), rtol=1e-4, atol=1e-5)


def test_a_crop_is_a_part_enlarged() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(200, 3, 64, 64)
    torch.manual_seed(0)
    view = picture_view(ramp, PictureViews(crop=(0.25, 0.25), brightness=0, contrast=0, saturation=0, flip=0))
    assert view.shape == ramp.shape
    widths = view[:, 0, 0, -1] - view[:, 0, 0, 0]
    torch.testing.assert_close(widths, torch.ones(200), rtol=0.03, atol=0)
    assert view.min() >= -1.001
    assert view.max() <= 1.001
    assert float(view.mean((1, 2, 3)).std()) > 0.2, "from all over the picture"


def test_colours_change_and_local_views_show_less() -> None:
    pixels = toy.fields(50, side=16)
    torch.manual_seed(0)
    view = picture_view(pixels, PictureViews(crop=(1, 1), flip=0))
    shift = (view - pixels).mean((1, 2, 3))
    assert 0.1 < float(shift.std()) < 0.4
    torch.manual_seed(0)
    local = picture_view(torch.linspace(-1, 1, 16).expand(50, 3, 16, 16), PictureViews(brightness=0, contrast=0, flip=0), local=True)
    assert (local[:, 0, 0, -1] - local[:, 0, 0, 0]).max() < 2 * math.sqrt(0.4) + 0.01


def test_a_crop_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="give a share above 0"):
        PictureViews(crop=(0, 1))
    with pytest.raises(ValidationError, match="give a share above 0"):
        PictureViews(local_crop=(0.5, 0.4))
