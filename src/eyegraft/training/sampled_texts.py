"""What a model answers to a few fixed validation samples after every epoch: how its texts change while it learns.

`<stage>/samples.jsonl` has a line an answer: epoch, step, id, task, prompt, answer, reference. Nothing else is changed by it: no random
number is taken from training, and no best checkpoint is chosen by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from eyegraft.answering import answer_samples, asked_of, tokenizer_of
from eyegraft.data.inputs import Reader
from eyegraft.errors import DataError
from eyegraft.files import disk_errors, write_atomically
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture
from eyegraft.training.trackers import Row
from eyegraft.types import Sample

log = logging.getLogger(__name__)
FILE = "samples.jsonl"


class SampledTexts:
    """Args:
    path: the file, which goes on after the steps up to `step`: later ones will be run again.
    readers: of validation.
    count: samples of each task, evenly spread over its rows. None are taken of a task that writes no texts.
    """

    def __init__(
        self, path: Path, model: Graft, task: Task, samples: Sequence[Sample], readers: Mapping[str, Reader], *, count: int, step: int
    ) -> None:
        self._path, self._model, self._task, self._readers = path, model, task, readers
        writes = tokenizer_of(model) is not None and not task.reads_logits
        self._samples = self._asked(samples, count) if writes else []
        if self._samples:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and step else []
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))

    def _asked(self, samples: Sequence[Sample], count: int) -> list[Sample]:
        """A few of each task, without those that the task can learn from but not ask about."""
        places = self._task.places(samples) if isinstance(self._task, Mixture) else {self._task.name: list(range(len(samples)))}
        found = []
        for of_task in places.values():
            chosen = min(count, len(of_task))
            found += [samples[of_task[number * len(of_task) // chosen]] for number in range(chosen)]
        try:
            for sample in found:
                asked_of(self._model, self._task, sample)
        except DataError as error:
            log.warning("no texts are sampled during training: %s", error.given)
            return []
        return found

    def write(self, epoch: int, step: int, trackers: Sequence[Callable[[Row], None]] = ()) -> None:
        """Ask, and add a line an answer to the file; trackers get them as one row of kind `samples`."""
        if not self._samples:
            return
        device = next(self._model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                answers = answer_samples(
                    self._model, self._task, self._samples, self._readers, batch_size=len(self._samples), label="sampling texts"
                )
            except DataError as error:
                log.warning("no texts are sampled after step %d: %s", step, error.given)
                return
        rows = [
            {
                "epoch": epoch,
                "step": step,
                "id": sample.id,
                "task": sample.task if isinstance(self._task, Mixture) else self._task.name,
                "prompt": asked_of(self._model, self._task, sample),
                "answer": answer,
                "reference": next(iter(sample.references), None),
            }
            for sample, answer in zip(self._samples, answers, strict=True)
        ]
        with disk_errors(self._path), self._path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        for tracker in trackers:
            tracker({"kind": "samples", "epoch": epoch, "step": step, "texts": rows})
