"""Patches of smooth fields, small encoders and what a stage without labels does with them, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eyegraft.config import Part, Settings
from eyegraft.fusion import concat
from eyegraft.heads import regressor
from eyegraft.model import Graft
from eyegraft.registry import configured
from eyegraft.training.loss_step import LossStep, Sealed
from eyegraft.tuning import make_plan, set_training_mode
from eyegraft.types import Batch, Sample
from tinyparts.encoders import tiny_patches

BANDS = [{"name": name, "wavelength_um": length, "unit": "K"} for name, length in {"a": 3.9, "b": 10.8, "c": 12.0}.items()]
SENSOR = {"name": "three", "bands": BANDS, "gsd_m": 2000.0, "missing": "mask"}
ENCODERS: dict[str, dict[str, Any]] = {
    "patch_cnn": {"sensor": SENSOR, "width": 8, "extra_channels": ["dem"]},
    "clay": {"sensor": SENSOR, "size": "tiny", "grid": "kernel3", "extra_channels": ["dem"]},
}


def graft(kind: str, *, fusion: bool = True, **options: Any) -> Graft:
    """An encoder of patches by its kind, or `pictures`, before a head for one number."""
    torch.manual_seed(0)
    if kind == "pictures":
        encoder: Any = tiny_patches.build(tiny_patches.Config(width=8))
    else:
        module, config = configured("encoders", Part.model_validate({"kind": kind, **ENCODERS[kind], **options}))
        encoder = module.build(config)
    pooling, chosen = configured("connectors", Part(kind="mean"))
    fused = concat.build(concat.Config(), dims={"image": encoder.token_dim})
    head = regressor.build(regressor.Config(hidden_dim=4), in_dim=fused.out_dim, num_outputs=1)
    return Graft({"image": encoder}, {"image": {"pooling": pooling.build(chosen, in_dim=encoder.token_dim, out_dim=1)}}, fused, head)


def fields(count: int, seed: int = 0, side: int = 9, bands: int = 3) -> Tensor:
    """[B, C, side, side] smooth waves: a part of a field tells the rest."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.linspace(-1, 1, side)
    slope = torch.randn(count, bands, 2, generator=generator)
    phase = torch.randn(count, bands, 1, 1, generator=generator)
    return (slope[:, :, 0, None, None] * place[:, None] + slope[:, :, 1, None, None] * place + phase).sin() * 2


def batch(count: int = 6, seed: int = 0, *, pictures: bool = False, **inputs: Tensor) -> Batch:
    """Patches with time and place, or pictures; what they are of nobody knows."""
    if pictures:
        given: Any = fields(count, seed, side=16)
    else:
        pixels, known = fields(count, seed), torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(pixels, dtype=torch.bool)
        given = {"pixels": pixels, "mask": mask, "extra": fields(count, seed + 1, bands=1), "time": known, "latlon": known, **inputs}
    nothing = torch.zeros(count, 0)
    samples = [Sample(str(place), None) for place in range(count)]
    return Batch({"image": given}, nothing.long(), nothing.bool(), nothing.long(), samples, nothing)


def stage(kind: str, encoder: str, *, tune: Any = "full", model: Graft | None = None, **options: Any) -> tuple[LossStep, Any]:
    """(model and objective as they train, their plan) of a stage with this objective."""
    model = model or graft(encoder)
    module, config = configured("objectives", Part.model_validate({"kind": kind, **options}))
    objective = module.build(config)
    torch.manual_seed(1)
    plan = make_plan(model, Settings.model_validate({"tune": {"vision_encoder": tune}}), objective=objective)
    step = LossStep(model, objective)
    set_training_mode(step)
    return step, plan


def train(step: LossStep, plan: Any, steps: int, given: Callable[[int], Batch], rate: float = 3e-3) -> list[dict[str, float]]:
    """What each step of AdamW found, beside its loss what was noted.

    Args:
        given: number of a step -> its batch.
    """
    optimizer, found = torch.optim.AdamW([{**group, "lr": rate} for group in plan.groups]), []
    for number in range(steps):
        torch.manual_seed(number)
        sums, counts, _, notes = step(Sealed(given(number)))
        (sums.sum() / counts.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        means = {name: values.sum(0) / counts.sum() for name, values in notes.items()}
        if hasattr(step.objective, "after_step"):
            step.objective.after_step((number + 1) / steps, means)
        found.append({"loss": float(sums.detach().sum() / counts.sum()), **{name: float(v) for name, v in means.items() if v.ndim == 0}})
    return found


LEVELS = 1.5 * torch.randn(6, 3, generator=torch.Generator().manual_seed(9))


def clusters(count: int, seed: int) -> Batch:
    """Patches of six kinds that differ by the levels of their bands, and weakly by a field."""
    which = torch.randint(0, len(LEVELS), (count,), generator=torch.Generator().manual_seed(seed))
    return batch(count, seed, pixels=LEVELS[which][:, :, None, None] + 0.3 * fields(count, seed))
