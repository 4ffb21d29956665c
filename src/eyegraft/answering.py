"""Samples to answers: what validation, evaluation and serving share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from eyegraft.config import Recipe
from eyegraft.console import progress
from eyegraft.data.batches import Examples, batches_in_order, load_batches
from eyegraft.data.inputs import Reader, one_blank, reader
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import DataError, shown
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.types import Batch, Sample


def readers_of(model: Graft, recipe: Recipe, *, augmented: bool = False) -> dict[str, Reader]:
    """Modality -> how its encoder wants it read."""
    augmentation = recipe.augmentation if augmented else None
    return {
        modality: reader(encoder.spec, fit=recipe.data.fit, augmentation=augmentation)  # type: ignore[arg-type]
        for modality, encoder in model.encoders.items()
    }


def tokenizer_of(model: Graft) -> Any:
    """The head's tokenizer, None where it writes no text."""
    return getattr(model.head, "tokenizer", None)


def pad_id_of(model: Graft) -> int:
    return getattr(tokenizer_of(model), "pad_token_id", None) or 0


@torch.inference_mode()
def num_tokens(model: Graft) -> int:
    """How many tokens stand before the text: measured, never configured. 0 where the language model looks at them from the side."""
    model.eval()
    nothing = torch.zeros(1, 0)
    inputs = one_blank({modality: reader(encoder.spec) for modality, encoder in model.encoders.items()})  # type: ignore[arg-type]
    batch = Batch(inputs, nothing.long(), nothing.bool(), nothing.long(), [], nothing).to(next(model.parameters()).device)
    tokens = model.connect(model.encode(batch))
    return int(tokens.mask.shape[1]) if getattr(model.head, "tokens_in_context", True) else 0


@torch.inference_mode()
def answer_samples(
    model: Graft,
    task: Task,
    samples: Sequence[Sample],
    readers: Mapping[str, Reader],
    *,
    batch_size: int,
    num_workers: int = 0,
    label: str = "answering",
) -> list[Any]:
    """One answer a sample, in the order of the samples.

    Args:
        readers: modality -> how it is read (see `readers_of`), or what stands in its place: blank, absent, stored.
        label: what the progress bar says.
    """
    model.eval()
    device = next(model.parameters()).device
    if tokenizer_of(model) is None:
        encoded: Sequence[Encoded] = Targets(np.full((len(samples), 0), np.nan, np.float32))  # nothing is asked in words, nothing taught
    else:
        encoded = [task.encode(sample, tokenizer_of(model), learn=False) for sample in samples]
        _stop_at_long_prompts(model, samples, encoded)
    order = batches_in_order(len(samples), batch_size)
    answers: list[Any] = []
    with progress(label, len(samples)) as advance:
        for batch in load_batches(Examples(samples, encoded, readers), order, pad_id=pad_id_of(model), num_workers=num_workers):
            batch = batch.to(device)
            answers += task.answer(model.head, model.connect(model.encode(batch)), batch)
            advance(len(batch))
    return answers


def _stop_at_long_prompts(model: Graft, samples: Sequence[Sample], encoded: Sequence[Encoded]) -> None:
    """A prompt must leave room for an answer in the language model's context."""
    image_tokens, limit = num_tokens(model), model.head.context_length
    long = [sample.id for sample, text in zip(samples, encoded, strict=True) if image_tokens + len(text.input_ids) >= limit]
    if long:
        longest = max(len(text.input_ids) for text in encoded)
        raise DataError(
            f"{len(long)} prompts leave no room for an answer ({shown(long)}): {image_tokens} image tokens and up to {longest} text tokens",
            f"fewer than {limit} together, the context of the language model",
            "shorten the prompt",
        )
