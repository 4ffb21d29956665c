"""Samples to answers: what validation, evaluation and serving share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from eyegraft.console import progress
from eyegraft.data.batches import Examples, batches_in_order, load_batches
from eyegraft.data.text import EncodedText
from eyegraft.errors import DataError, shown
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
    _stop_at_long_prompts(model, samples, texts, device)
    examples = Examples(samples, texts, model.encoders["image"].spec)  # type: ignore[arg-type]
    order = batches_in_order(len(samples), batch_size)
    answers: list[str] = []
    with progress(label, len(samples)) as advance:
        for batch in load_batches(examples, order, pad_id=tokenizer.pad_token_id, num_workers=num_workers):
            batch = (change(batch) if change is not None else batch).to(device)
            answers += task.answer(model.head, model.connect(model.encode(batch)), batch)
            advance(len(batch))
    return answers


def _stop_at_long_prompts(model: Graft, samples: Sequence[Sample], texts: Sequence[EncodedText], device: torch.device) -> None:
    """A prompt must leave room for an answer in the language model's context."""
    spec: Any = model.encoders["image"].spec
    image_tokens = model.image_tokens(torch.zeros(1, spec.channels, *spec.size, device=device))
    limit = model.head.context_length
    long = [sample.id for sample, text in zip(samples, texts, strict=True) if image_tokens + len(text.input_ids) >= limit]
    if long:
        longest = max(len(text.input_ids) for text in texts)
        raise DataError(
            f"{len(long)} prompts leave no room for an answer ({shown(long)}): {image_tokens} image tokens and up to {longest} text tokens",
            f"fewer than {limit} together, the context of the language model",
            "shorten the prompt",
        )
