"""What the samples of a step or of a validation add up to, over parts of batches and over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture
from eyegraft.training.processes import gathered, several
from eyegraft.types import Sample


@dataclass
class Sums:
    """Attributes:
    loss, count: see `eyegraft.types.Loss`.
    notes: the objective's, summed over samples.
    tasks: of several tasks, the loss of each apart and what it was summed over.
    """

    loss: float = 0.0
    count: float = 0.0
    notes: dict[str, Tensor] = field(default_factory=dict)
    tasks: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, task: Task, samples: Sequence[Sample], losses: Tensor, counts: Tensor, notes: Mapping[str, Tensor]) -> None:
        """Add samples whose losses and counts are [B], and whose notes are [B, …]."""
        loss, count = torch.stack([losses.detach().sum(), counts.sum()]).tolist()  # asking a GPU once
        self.loss, self.count = self.loss + loss, self.count + count
        for name, values in notes.items():
            self.notes[name] = self.notes[name] + values.sum(0) if name in self.notes else values.sum(0)
        if isinstance(task, Mixture):
            both = torch.stack([losses.detach(), counts], dim=1)  # [B, 2]
            for name, places in task.places(samples).items():
                add_pair(self.tasks, name, both[places].sum(0).tolist())

    def of_all(self, device: torch.device) -> Sums:
        """The sums of all processes, the same bits in each."""
        if not several():
            return self
        whole = Sums()
        notes = {name: values.cpu() for name, values in self.notes.items()}
        for part in gathered(Sums(self.loss, self.count, notes, self.tasks)):
            whole.loss, whole.count = whole.loss + part.loss, whole.count + part.count
            for name, values in part.notes.items():
                there = values.to(device)
                whole.notes[name] = whole.notes[name] + there if name in whole.notes else there
            for name, pair in part.tasks.items():
                add_pair(whole.tasks, name, pair)
        return whole

    def means(self) -> dict[str, Tensor]:
        return {name: values / self.count for name, values in self.notes.items()}


def add_pair(sums: dict[str, tuple[float, float]], name: str, more: Sequence[float]) -> None:
    loss, count = sums.get(name, (0.0, 0.0))
    sums[name] = (loss + more[0], count + more[1])


def numbers(notes: Mapping[str, Tensor]) -> dict[str, float]:
    """Those that are single numbers, and can be written into a row."""
    return {name: float(value) for name, value in notes.items() if value.ndim == 0}
