"""What a model does not see: pixels and inputs whose values have no effect on what it gives.

A gradient that is exactly zero says where to look, and changed values prove it: all suspects at once, and in halves where that moved
anything. So a patch of any size costs a handful of forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.data.batches import load_batches
from eyegraft.errors import shown
from eyegraft.model import Graft
from eyegraft.training.stage_data import StageData
from eyegraft.types import Batch, PatchSpec

_VECTORS = {"time": ("sin week", "cos week", "sin hour", "cos hour"), "latlon": ("sin lat", "cos lat", "sin lon", "cos lon")}


@dataclass(frozen=True)
class Effects:
    """What has no effect.

    Attributes:
        unused: input with pixels -> [H, W] bool, True where a pixel has no effect in any of its channels that has one elsewhere.
        inert: input -> names of its channels or numbers that have no effect at all; an input without any effect has all of them.
    """

    unused: Mapping[str, Tensor]
    inert: Mapping[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """For a reader: `pixels: 17 of 81 pixels (21 %) have no effect: row 9, column 9`, `time: no effect: sin week, cos week`. Empty
        where all is seen."""
        found = []
        for key, map_ in self.unused.items():
            count = int(map_.sum())
            if 0 < count < map_.numel():  # all of them: the input is inert, which is said below
                share = round(100 * count / map_.numel())
                found.append(f"{key}: {count} of {map_.numel()} pixels ({share} %) have no effect{_whole_lines(map_)}")
        return found + [f"{key}: no effect: {shown(names, 20)}" for key, names in self.inert.items() if names]


def effects(
    forward: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor], names: Mapping[str, Sequence[str]] | None = None
) -> Effects:
    """Find what of the inputs has no effect on a forward. Nothing changes in the model.

    Args:
        forward: inputs -> what it gives, of any shape, the same for the same inputs.
        inputs: maps [B, C, H, W] or vectors [B, K] of floats, a few real samples; others (masks, ids) are passed on and not examined.
        names: input -> what its channels or numbers are called; else they are numbered from 1.
    """
    examined = {key: tensor.detach() for key, tensor in inputs.items() if tensor.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in examined.items()}
        given = forward({**inputs, **leaves})
        weights = torch.randn(given.shape, generator=generator).to(given)
        gradients = torch.autograd.grad((given * weights).sum(), list(leaves.values()), allow_unused=True) if given.requires_grad else ()
    silent = {
        key: torch.ones_like(examined[key][0], dtype=torch.bool) if gradient is None else (gradient == 0).all(0)
        for key, gradient in zip(leaves, gradients or [None] * len(leaves), strict=True)
    }
    with torch.no_grad():
        moved = _Moved(forward, inputs, generator)
        # one number or pixel of one channel is a suspect where no sample's gradient reaches it; [C, H, W] or [K]
        proven = {key: _proven(moved, key, suspects) for key, suspects in silent.items()}
    unused, inert = {}, {}
    for key, still in proven.items():
        by_channel = still.flatten(1).all(1) if still.ndim > 1 else still
        called = (names or {}).get(key) or [str(number + 1) for number in range(len(by_channel))]
        inert[key] = tuple(name for name, dead in zip(called, by_channel.tolist(), strict=True) if dead)
        if still.ndim == 3:
            unused[key] = (still | by_channel[:, None, None]).all(0)
    return Effects(unused, inert)


def effects_of(model: Graft, batch: Batch, modality: str = "image") -> Effects:
    """What of an encoder's inputs has no effect on the tokens that the head reads. Pixels count as measured even where a mask says
    otherwise: the question is whether the model reads that place.

    Args:
        batch: a few real samples.
    """
    spec = model.encoders[modality].spec
    names: dict[str, Sequence[str]] = dict(_VECTORS)
    if isinstance(spec, PatchSpec):
        names |= {"pixels": spec.sensor.band_names, "extra": spec.extra_channels}
    given = batch.inputs[modality]
    plain = isinstance(given, Tensor)
    inputs = {"pixels": given} if plain else dict(given)
    if isinstance(spec, PatchSpec) and "mask" in inputs:
        inputs |= {"pixels": inputs["pixels"].nan_to_num(), "mask": torch.ones_like(inputs["mask"])}

    def forward(changed: Mapping[str, Tensor]) -> Tensor:
        tokens = model.connect(model.encode(batch.with_input(modality, changed["pixels"] if plain else changed)))
        return tokens.values * tokens.mask.unsqueeze(-1)

    with _evaluating(model):
        return effects(forward, inputs, names)


def blind_spots(model: Graft, examples: StageData) -> list[str]:
    """What an encoder of patches does not see of a few training samples: unused pixels and inert inputs, in words."""
    if not isinstance(getattr(dict(model.encoders.items()).get("image"), "spec", None), PatchSpec):
        return []
    few = range(min(4, len(examples.train)))
    batch = next(load_batches(examples.train, [few], pad_id=examples.pad_id))
    return effects_of(model, batch.to(next(model.parameters()).device)).lines()


class _Moved:
    """Whether changed places of an input move what is given: more than the same inputs do twice, where a device is not exact."""

    def __init__(self, forward: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor], generator: torch.Generator) -> None:
        self.forward, self.inputs, self.generator = forward, inputs, generator
        self.before = forward(inputs)
        self.noise = 2 * float((forward(inputs) - self.before).abs().max())

    def __call__(self, key: str, places: Tensor) -> bool:
        tensor = self.inputs[key]
        other = torch.randn(tensor.shape, generator=self.generator).to(tensor) * 3 + 1
        after = self.forward({**self.inputs, key: torch.where(places, other, tensor)})
        return float((after - self.before).abs().max()) > self.noise


def _proven(moved: _Moved, key: str, suspects: Tensor) -> Tensor:
    """Those of the suspects that really have no effect."""
    if not suspects.any() or not moved(key, suspects):
        return suspects
    if int(suspects.sum()) == 1:
        return torch.zeros_like(suspects)
    places = suspects.flatten().nonzero().flatten()
    halves = []
    for part in places.chunk(2):
        half = torch.zeros_like(suspects)
        half.view(-1)[part] = True
        halves.append(_proven(moved, key, half))
    return halves[0] | halves[1]


def _whole_lines(unused: Tensor) -> str:
    """`: row 9, column 9`, counted from 1, where the unused pixels are whole rows and columns."""
    rows, columns = unused.all(1), unused.all(0)
    if not torch.equal(rows[:, None] | columns[None, :], unused):
        return ""
    lines = [f"row {place + 1}" for place in rows.nonzero().flatten().tolist()]
    return ": " + shown([*lines, *(f"column {place + 1}" for place in columns.nonzero().flatten().tolist())], 8)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout for a while."""
    modes: list[tuple[Any, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
