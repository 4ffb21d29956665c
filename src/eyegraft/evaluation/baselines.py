"""Dumb answers. A result that does not beat them says nothing about the image.

The model's own without the right image; the training set's most frequent one; retrieval by the run's encoder, as trained as it is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eyegraft.console import progress
from eyegraft.data.batches import Examples, batches_in_order, derived_seed, load_batches
from eyegraft.data.text import EncodedText
from eyegraft.errors import DataError
from eyegraft.model import Graft
from eyegraft.types import Batch, Sample

RETRIEVAL_LIMIT = 20_000
"""Training images that retrieval searches at most; a seeded draw of a larger set."""

DONOR_STEPS = 50
"""Samples that shuffling looks at, for each one, to find an image with other references."""


def blank(batch: Batch) -> Batch:
    """Every pixel the mean colour of the encoder's pretraining data (0 after normalisation)."""
    return batch.with_input("image", torch.zeros_like(batch.inputs["image"]))


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every sample with another image: of a sample with other references, where one is near. Prompts and references stay.

    Raises:
        DataError: the samples show fewer than two images.
    """
    order = list(samples)
    random.Random(derived_seed("shuffle", seed)).shuffle(order)
    images = list(dict.fromkeys(sample.image for sample in order))
    if len(images) < 2:
        raise DataError(f"{len(samples)} samples of {len(images)} image to shuffle", "at least 2 images", "evaluate on more images")
    donors = {}
    for place, sample in enumerate(order):
        near = (order[(place + step) % len(order)] for step in range(1, min(len(order), DONOR_STEPS + 1)))
        others = [other for other in near if other.image != sample.image]
        best = next((other.image for other in others if other.references != sample.references), None)
        last_resort = images[0] if images[0] != sample.image else images[1]
        donors[sample.id] = best or (others[0].image if others else last_resort)
    return [replace(sample, image=donors[sample.id]) for sample in samples]


def most_frequent(train: Sequence[Sample], count: int) -> list[str]:
    """The training set's most frequent reference, for everyone (the first in order of the alphabet among equals)."""
    tally = Counter(reference for sample in train for reference in sample.references)
    answer = min(tally, key=lambda text: (-tally[text], text))
    return [answer] * count


def nearest_neighbour(
    model: Graft, train: Sequence[Sample], samples: Sequence[Sample], *, batch_size: int, num_workers: int, seed: int
) -> list[str]:
    """The first reference of the training image whose pooled encoder tokens are nearest by cosine."""
    if len(train) > RETRIEVAL_LIMIT:
        train = random.Random(derived_seed("retrieval", seed)).sample(train, RETRIEVAL_LIMIT)
    known = _features(model, train, batch_size, num_workers, "features of training images")
    asked = _features(model, samples, batch_size, num_workers, "features")
    return [train[int(place)].references[0] for chunk in torch.split(asked, 1024) for place in (chunk @ known.T).argmax(1)]


@torch.inference_mode()
def _features(model: Graft, samples: Sequence[Sample], batch_size: int, num_workers: int, label: str) -> Tensor:
    """[len(samples), D] float32 on the CPU: mean of the encoder's tokens, unit length."""
    encoder = model.encoders["image"]
    device = next(encoder.parameters()).device
    nothing = EncodedText((0,), (0,))
    examples = Examples(samples, [nothing] * len(samples), encoder.spec)  # type: ignore[arg-type]
    order = batches_in_order(len(samples), batch_size)
    pooled = []
    with progress(label, len(samples)) as advance:
        for batch in load_batches(examples, order, pad_id=0, num_workers=num_workers):
            tokens = encoder(batch.inputs["image"].to(device))
            mean = (tokens.values * tokens.mask.unsqueeze(-1)).sum(1) / tokens.mask.sum(1, keepdim=True)  # [B, D]
            pooled.append(torch.nn.functional.normalize(mean.float(), dim=-1).cpu())
            advance(len(batch))
    return torch.cat(pooled)
