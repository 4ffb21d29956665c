"""One batch out of what several processes have of it, for objectives that compare the samples of a batch with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eyegraft.training.processes import answered, gathered, rank
from eyegraft.types import Batch, Sample, Tokens, moved_to


def batch_of_all(batch: Batch | None, encoded: Mapping[str, Tokens], device: torch.device) -> tuple[Batch, dict[str, Tokens], int]:
    """The samples of all processes, their tokens, and a seed that is the same in each. The batch has no inputs and teaches nothing.

    Args:
        batch: None where this process has no sample; then `encoded` is empty.
        encoded: modality -> tokens of one number for all samples.
    """
    mine: tuple[Sequence[Sample], dict[str, Tensor], dict[str, Tokens]] | None = None
    if batch is not None:
        present = {name: there.cpu() for name, there in batch.present.items()}
        mine = (list(batch.samples), present, {modality: _layout(tokens) for modality, tokens in encoded.items()})
    told = gathered((mine, int(torch.randint(2**62, ()))))
    parts = [part for part, _ in told if part is not None]
    sizes = [len(part[0]) if part is not None else 0 for part, _ in told]
    present = {name: torch.cat([part[1][name] for part in parts]).to(device) for name in parts[0][1]}
    tokens = {modality: _of_all(encoded.get(modality), moved_to(layout, device), sizes) for modality, layout in parts[0][2].items()}
    nothing = torch.zeros(sum(sizes), 0, device=device)
    samples = [sample for part in parts for sample in part[0]]
    return Batch({}, nothing.long(), nothing.bool(), nothing.long(), samples, nothing, present), tokens, told[0][1]


def _layout(tokens: Tokens) -> Tokens:
    """Tokens of no sample, for a process that has none."""
    auxiliary = tokens.auxiliary[:0].detach() if tokens.auxiliary is not None else None
    kept = replace(tokens, values=tokens.values[:0].detach(), mask=tokens.mask[:0], weights=None, condition=None, auxiliary=auxiliary)
    moved: Tokens = moved_to(kept, "cpu")
    return moved


def _of_all(mine: Tokens | None, layout: Tokens, sizes: Sequence[int]) -> Tokens:
    if mine is None:
        mine = replace(layout, values=layout.values.requires_grad_(torch.is_grad_enabled()))
    return replace(
        layout,
        values=all_rows(mine.values, sizes),
        mask=all_rows(mine.mask.to(torch.uint8), sizes).bool(),
        auxiliary=all_rows(mine.auxiliary, sizes) if mine.auxiliary is not None else None,
    )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        with answered():
            dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start = sum(ctx.sizes[: rank()])
        return gradients[0][start : start + ctx.sizes[rank()]] * len(ctx.sizes), None


def all_rows(mine: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, [b, …] -> [B, …], in each of them.

    The gradient comes back to the rows that are this process's own, multiplied by the number of processes: every process is to take the
    loss of all rows divided by that number, so that what they add up to is the gradient of one loss, for its own layers too.

    Args:
        sizes: how many rows each process has; may be 0.
    """
    found: Tensor = _Gather.apply(mine, sizes)  # type: ignore[no-untyped-call]
    return found
