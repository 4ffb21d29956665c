"""Samples to answers: what validation, evaluation and serving share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from eyegraft.console import progress
from eyegraft.data.batches import Examples, load_batches
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.types import Batch, Sample

Change = Callable[[Batch], Batch]


@torch.inference_mode()
def answer_samples(
    model: Graft,
    task: Task,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    num_workers: int = 0,
    change: Change | None = None,
    label: str = "answering",
) -> list[str]:
    """One answer a sample, in the order of the samples.

    Args:
        change: what is done to a batch before the model sees it (blank images, say).
        label: what the progress bar says.
    """
    model.eval()
    device = next(model.parameters()).device
    tokenizer = model.head.tokenizer
    texts = [task.encode(sample, tokenizer, learn=False) for sample in samples]
    examples = Examples(samples, texts, model.encoders["image"].image)  # type: ignore[arg-type]
    order = [list(range(start, min(start + batch_size, len(samples)))) for start in range(0, len(samples), batch_size)]
    answers: list[str] = []
    with progress(label, len(samples)) as advance:
        for batch in load_batches(examples, order, pad_id=tokenizer.pad_token_id, num_workers=num_workers):
            batch = (change(batch) if change is not None else batch).to(device)
            answers += task.answer(model.head, model.connect(model.encode(batch)), batch)
            advance(len(batch))
    return answers
