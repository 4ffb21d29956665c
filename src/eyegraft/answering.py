"""Samples to answers: what validation, evaluation and serving share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eyegraft.config import Recipe
from eyegraft.console import progress
from eyegraft.data.batches import Examples, batches_in_order, load_batches
from eyegraft.data.inputs import Reader, one_blank, reader
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import DataError, shown
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.types import Batch, Sample, Tokens


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


def asked_of(model: Graft, task: Task, sample: Sample) -> str:
    """The prompt of a sample as the language model is given it, without special tokens; cut where the task cuts it.

    Raises:
        DataError: the sample lacks what the prompt is made of.
    """
    tokenizer = tokenizer_of(model)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    ids = task.encode(sample, tokenizer, learn=False).input_ids
    return str(tokenizer.decode([token for token in ids if token not in special])).strip()


@torch.inference_mode()
def of_blank(model: Graft) -> dict[str, Tokens]:
    """What the connectors make of blank inputs, by modality: for measuring."""
    model.eval()
    nothing = torch.zeros(1, 0)
    inputs = one_blank({modality: reader(encoder.spec) for modality, encoder in model.encoders.items()})  # type: ignore[arg-type]
    batch = Batch(inputs, nothing.long(), nothing.bool(), nothing.long(), [], nothing).to(next(model.parameters()).device)
    return {modality: model.connectors[modality](tokens) for modality, tokens in model.encode(batch).items()}


@torch.inference_mode()
def num_tokens(model: Graft) -> int:
    """How many tokens stand before the text: measured, never configured. 0 where the language model looks at them from the side."""
    tokens: Tokens = model.fusion(of_blank(model))
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
    if tokenizer_of(model) is not None:
        return _texts(model, task, samples, readers, batch_size=batch_size, num_workers=num_workers, label=label)
    device = next(model.parameters()).device
    encoded = Targets(np.full((len(samples), 0), np.nan, np.float32))  # nothing is asked in words, nothing taught
    order = batches_in_order(len(samples), batch_size)
    answers: list[Any] = []
    with progress(label, len(samples)) as advance:
        for batch in load_batches(Examples(samples, encoded, readers), order, pad_id=0, num_workers=num_workers):
            batch = batch.to(device)
            answers += task.answer(model.head, model.connect(model.encode(batch)), batch)
            advance(len(batch))
    return answers


def _texts(
    model: Graft, task: Task, samples: Sequence[Sample], readers: Mapping[str, Reader], *, batch_size: int, num_workers: int, label: str
) -> list[Any]:
    """Texts about pictures, each of which is read, encoded and connected once however many questions it has: they are asked side by side.

    Only the answers come in the order of the samples.
    """
    encoded: Sequence[Encoded] = [task.encode(sample, tokenizer_of(model), learn=False) for sample in samples]
    _stop_at_long_prompts(model, samples, encoded)
    device, pad_id = next(model.parameters()).device, pad_id_of(model)
    shown, picture_of = _pictures(samples, model)
    asked = sorted(range(len(samples)), key=picture_of.__getitem__)  # stable: the questions of a picture keep their order
    order = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)]
    wanted = [sorted({picture_of[place] for place in places}) for places in order]
    # a picture whose questions fill more than one batch was read for the one before
    new = [[picture for picture in pictures if not (n and picture == wanted[n - 1][-1])] for n, pictures in enumerate(wanted)]
    pictures = Examples([samples[place] for place in shown], [Encoded()] * len(shown), readers)
    read = load_batches(pictures, [places for places in new if places], pad_id=pad_id, num_workers=num_workers)
    questions = load_batches(Examples(samples, encoded, {}), order, pad_id=pad_id)
    answers: list[Any] = [None] * len(samples)
    tokens: Tokens | None = None
    with progress(label, len(samples)) as advance:
        for places, batch, there, fresh in zip(order, questions, wanted, new, strict=True):
            if fresh:
                made = model.connect(model.encode(next(read).to(device)))
                tokens = made if len(fresh) == len(there) or tokens is None else _joined(tokens.take([-1]), made)
            elif tokens is not None:
                tokens = tokens.take([-1])
            assert tokens is not None
            rows = tokens.take([there.index(picture_of[place]) for place in places])
            for place, answer in zip(places, task.answer(model.head, rows, batch.to(device)), strict=True):
                answers[place] = answer
            advance(len(batch))
    return answers


def _pictures(samples: Sequence[Sample], model: Graft) -> tuple[list[int], list[int]]:
    """The first sample of each picture with the words beside it, and for every sample which of them it shows. An encoder of other columns
    may see another thing in every row.
    """
    if not set(model.encoders) <= {"image", "text"}:
        return list(range(len(samples))), list(range(len(samples)))
    first: dict[tuple[Any, ...], int] = {}
    shown: list[int] = []
    numbers: list[int] = []
    for place, sample in enumerate(samples):
        number = first.setdefault((sample.image, sample.record, sample.text, str(sample.meta.get("condition"))), len(first))
        if number == len(shown):
            shown.append(place)
        numbers.append(number)
    return shown, numbers


def _joined(before: Tokens, after: Tokens) -> Tokens:
    """The rows of both, padded to one number of tokens."""
    count = max(before.mask.shape[1], after.mask.shape[1])

    def padded(tokens: Tokens) -> tuple[Tensor, Tensor]:
        missing = count - tokens.mask.shape[1]
        return F.pad(tokens.values, (0, 0, 0, missing)), F.pad(tokens.mask, (0, missing))

    values, mask = (torch.cat(pair) for pair in zip(padded(before), padded(after), strict=True))
    return replace(after, values=values, mask=mask, weights=None, condition=None, auxiliary=None)


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
