"""Which views of a panorama an answer stands on: each is hidden in turn, and how much less likely the answer becomes is its worth.

A view is hidden behind the encoder: its tokens are masked, and nothing that comes later may look there (occlusion, Zeiler & Fergus 2014).
What is measured is the model's own answer, not the right one: a worth says where the model looked and not whether it should have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from eyegraft.answering import pad_id_of, tokenizer_of
from eyegraft.data.batches import Examples, load_batches
from eyegraft.data.inputs import Reader
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.tasks._choices import mean_log_likelihoods
from eyegraft.types import Batch, Sample, Scores, Tokens, taken_from

MAX_SAMPLES = 60
"""Samples whose views are hidden: those that the page shows first. Each costs one forward of V + 1 rows, which no table needs."""

MEASURE = (
    "fall of the mean log-likelihood of the model's own answer, per token, when the view's tokens are hidden; in nats. Near 0: the answer "
    "does not need the view, or its neighbours show the same"
)


def worths_of_views(
    model: Graft, task: Task, samples: Sequence[Sample], answers: Sequence[Any], scores: Scores, readers: Mapping[str, Reader]
) -> tuple[dict[str, Any] | None, dict[int, list[float]]]:
    """What the model's views are, and what each is worth to some of its answers.

    Args:
        answers: the model's, one a sample.
        readers: modality -> how it is read.

    Returns:
        None for a model that sees no views, else {layout, measure, num_samples, seconds}; and by the place of a sample [V] worths, in the
        order of the layout. There are none where the answers are no texts, or where there is one view, which cannot be taken away.
    """
    views = getattr(model.encoders["image"].spec, "views", None) if "image" in model.encoders else None
    if views is None:
        return None, {}
    started, found = time.monotonic(), dict[int, list[float]]()
    if views.num_views > 1 and tokenizer_of(model) is not None:
        model.eval()
        found = _measured(model, task, samples, answers, worst_first(scores, len(samples))[:MAX_SAMPLES], readers)
    seconds = round(time.monotonic() - started, 1)
    layout = [asdict(view) for view in views.views]
    return {"layout": layout, "measure": MEASURE, "num_samples": len(found), "seconds": seconds}, found


def worst_first(scores: Scores, size: int) -> list[int]:
    """Places of samples in the order of the report's gallery: by the first metric that has a value a sample, then by the next."""
    names = [name for name in scores.corpus if name in scores.per_sample and name not in scores.undirected]
    signs = {name: 1 if scores.higher_is_better.get(name, True) else -1 for name in names}
    return sorted(range(size), key=lambda place: tuple(signs[name] * scores.per_sample[name][place] for name in names))


@torch.inference_mode()
def _measured(
    model: Graft, task: Task, samples: Sequence[Sample], answers: Sequence[Any], places: Sequence[int], readers: Mapping[str, Reader]
) -> dict[int, list[float]]:
    tokenizer, device = tokenizer_of(model), next(model.parameters()).device
    taught = {place: pair for place in places if (pair := _as_learned(task, samples[place], answers[place], tokenizer)) is not None}
    examples = Examples([samples[place] for place in taught], [prompt for prompt, _ in taught.values()], readers)
    batches = load_batches(examples, [[number] for number in range(len(taught))], pad_id=pad_id_of(model))
    found = {}
    for (place, (_, ending)), batch in zip(taught.items(), batches, strict=True):
        worths = _of_sample(model, batch.to(device), ending)
        if worths is not None:
            found[place] = [round(worth, 4) for worth in worths]
    return found


def _as_learned(task: Task, sample: Sample, answer: Any, tokenizer: Any) -> tuple[Encoded, list[int]] | None:
    """The prompt, and the tokens of the model's own answer as training would have put them behind it; None where they do not fit."""
    said = str(answer["answer"] if isinstance(answer, Mapping) else answer)
    turns = (*sample.turns[:-1], (sample.turns[-1][0], said)) if sample.turns else ()
    try:
        prompt = task.encode(sample, tokenizer, learn=False)
        whole = task.encode(replace(sample, references=(said,), turns=turns), tokenizer, learn=True)
    except DataError:
        return None
    before = len(prompt.input_ids)
    if whole.input_ids[:before] != prompt.input_ids:
        return None
    ending = [token for token, label in zip(whole.input_ids[before:], whole.labels[before:], strict=True) if label == token]
    return (prompt, ending) if ending else None


def _of_sample(model: Graft, batch: Batch, ending: Sequence[int]) -> list[float] | None:
    encoded = model.encode(batch)
    image = encoded["image"]
    count = image.num_views
    if count < 2 or image.mask.shape[1] % count:
        return None  # a pooling before the cache has made one of them
    rows = {modality: taken_from(tokens, [0] * (count + 1)) for modality, tokens in encoded.items()}
    rows["image"] = replace(rows["image"], mask=_hidden(rows["image"]))
    asked = replace(batch, inputs={}, present={}).take([0] * (count + 1))
    try:
        found = mean_log_likelihoods(model.head, model.connect(rows), asked, [[ending]] * (count + 1))
    except DataError:
        return None  # the token that ends an answer no longer fits behind one that fills the context
    whole, *without = [value for (value,) in found]
    return [whole - value for value in without]


def _hidden(tokens: Tokens) -> Tensor:
    """The mask [V + 1, N]: in the first row as it was, in the others without one view each."""
    count = tokens.num_views
    seen = ~torch.eye(count, dtype=torch.bool, device=tokens.mask.device).repeat_interleave(tokens.mask.shape[1] // count, dim=1)
    return tokens.mask & torch.cat([torch.ones_like(seen[:1]), seen])
