"""Dumb answers and damaged inputs. A result that does not beat them says nothing about what the model looks at.

The model's own with blank, shuffled or absent pictures, words and further columns; the training set's best answer without looking;
retrieval by the run's encoders, as trained as they are. What columns alone say of numbers stands in `tabular`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eyegraft.answering import pad_id_of
from eyegraft.console import progress
from eyegraft.data.batches import Examples, batches_in_order, derived_seed, load_batches, reads_patches, taken
from eyegraft.data.inputs import AbsentReader, ConstantReader, Reader, reader
from eyegraft.data.maps import MapReader
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError
from eyegraft.model import Graft, see
from eyegraft.tasks import Task
from eyegraft.types import Inputs, Sample, moved_to

log = logging.getLogger(__name__)
RETRIEVAL_LIMIT = 20_000
"""Training samples that retrieval searches at most; a seeded draw of a larger set."""

DONOR_STEPS = 50
"""Samples that shuffling looks at, for each one, to find another with other references."""


def blank(model: Graft, modality: str) -> Reader:
    """Every pixel the mean colour of the encoder's pretraining data (0 after normalisation). A map's class is still told as its row has it;
    without one, the picture is encoded once and read for every sample."""
    spec: Any = model.encoders[modality].spec
    plain = reader(spec)
    return plain.hidden() if isinstance(plain, MapReader) else _one_for_all(model, modality)


@torch.inference_mode()
def _one_for_all(model: Graft, modality: str) -> ConstantReader:
    encoder: Any = model.encoders[modality].eval()
    plain: Any = reader(encoder.spec)
    inputs = moved_to(plain.blank(), next(model.parameters()).device)
    return ConstantReader(moved_to(see(encoder, inputs), "cpu"))


def absent(model: Graft, modality: str) -> AbsentReader:
    """No sample has the modality: what the fusion has learned stands in its place."""
    return AbsentReader(_one_for_all(model, modality).tokens)


def shuffled(
    modality: str, model: Graft, samples: Sequence[Sample], readers: Mapping[str, Reader], seed: int
) -> tuple[Sequence[Sample], dict[str, Reader]]:
    """Samples, and readers in place of the usual ones, by which every sample has this modality of another.

    Raises:
        DataError: the samples have fewer than two different ones.
    """
    if isinstance(samples, PatchRows):
        return samples, {modality: ExchangedReader(readers[modality], samples, donors(samples, seed))}
    if modality == "image":
        return shuffled_images(samples, seed), {}
    if modality == "text":
        return shuffled_texts(samples, seed), {}
    encoder: Any = model.encoders[modality]
    return shuffled_columns(samples, encoder.spec.names, seed), {}


def can_be_shuffled(modality: str, model: Graft, samples: Sequence[Sample]) -> bool:
    """Whether there are two different ones."""
    if isinstance(samples, PatchRows):
        return len(samples) > 1
    encoder: Any = model.encoders[modality]
    shows = {"image": _shown, "text": _words}.get(modality) or _columns(encoder.spec.names)
    return len({shows(sample) for sample in samples}) > 1


def shuffled_within(samples: Sequence[Sample], columns: Sequence[str], seed: int) -> list[Sample]:
    """The same among the samples that are alike in these columns. One whose like show no other picture keeps its own, which is logged;
    nothing is given where all would."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, sample in enumerate(samples):
        alike.setdefault(tuple(str(sample.meta.get(name)) for name in columns), []).append(place)
    mixed, kept = list(samples), 0
    for places in alike.values():
        members = [samples[place] for place in places]
        if len({_shown(sample) for sample in members}) < 2:
            kept += len(members)
            continue
        for place, other in zip(places, shuffled_images(members, seed), strict=True):
            mixed[place] = other
    if kept:
        log.warning("%d of %d samples keep their picture: none that is alike in %s shows another", kept, len(mixed), ", ".join(columns))
    return mixed if kept < len(mixed) else []


def shuffled_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Every sample with another's picture or patch: of one with other references, where one is near. All else stays.

    Raises:
        DataError: the samples show fewer than two pictures.
    """
    return _shuffled(
        samples, seed, _shown, lambda sample, other: replace(sample, image=other.image, sha256=other.sha256, record=other.record)
    )


def shuffled_texts(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """The same with the words beside the pictures."""
    return _shuffled(samples, seed, _words, lambda sample, other: replace(sample, text=other.text))


def shuffled_columns(samples: Sequence[Sample], names: Sequence[str], seed: int) -> list[Sample]:
    """The same with further columns, all of them from one other sample."""
    return _shuffled(
        samples,
        seed,
        _columns(names),
        lambda sample, other: replace(sample, meta={**sample.meta, **{name: other.meta.get(name) for name in names}}),
    )


def _shown(sample: Sample) -> Hashable:
    return sample.image, sample.record


def _words(sample: Sample) -> Hashable:
    return sample.text


def _columns(names: Sequence[str]) -> Callable[[Sample], Hashable]:
    return lambda sample: tuple(str(sample.meta.get(name)) for name in names)


def _shuffled(
    samples: Sequence[Sample], seed: int, what: Callable[[Sample], Hashable], given: Callable[[Sample, Sample], Sample]
) -> list[Sample]:
    order = list(samples)
    random.Random(derived_seed("shuffle", seed)).shuffle(order)
    kinds = list({what(sample): sample for sample in reversed(order)}.values())
    if len(kinds) < 2:
        raise DataError(f"{len(samples)} samples that are all alike to shuffle", "at least 2 different ones", "evaluate on more samples")
    donors = {}
    for place, sample in enumerate(order):
        near = (order[(place + step) % len(order)] for step in range(1, min(len(order), DONOR_STEPS + 1)))
        others = [other for other in near if what(other) != what(sample)]
        best = next((other for other in others if other.references != sample.references), None)
        last_resort = next(other for other in kinds if what(other) != what(sample))
        donors[sample.id] = best or (others[0] if others else last_resort)
    return [given(sample, donors[sample.id]) for sample in samples]


def donors(rows: PatchRows, seed: int) -> NDArray[np.int64]:
    """For each row the position of another one, with another target where one is near in a random order; the same for the same seed.

    Raises:
        DataError: fewer than two rows.
    """
    if len(rows) < 2:
        raise DataError(f"{len(rows)} patches to shuffle", "at least 2", "evaluate on more samples")
    order, targets = np.random.default_rng(derived_seed("shuffle", seed)).permutation(len(rows)), rows.targets
    found = np.empty(len(rows), dtype=np.int64)
    found[order] = np.roll(order, -1)
    for step in range(2, min(len(rows), DONOR_STEPS + 1)):
        alike = targets[found] == targets
        if not alike.any():
            break
        other = np.empty_like(found)
        other[order] = np.roll(order, -step)
        found[alike] = other[alike]
    return found


class ExchangedReader:
    """Reads of each row of a patch store what another row has.

    Args:
        others: for each of `rows` the position of the other one among them.
    """

    slow = random = False

    def __init__(self, plain: Reader, rows: PatchRows, others: NDArray[np.int64]) -> None:
        self.plain = plain
        self._row = np.full(len(rows.store), -1, dtype=np.int64)  # of the store, by row of the store
        self._row[rows.rows] = rows.rows[others]

    def reads_patches(self, rows: PatchRows) -> bool:
        return reads_patches(self.plain, rows)

    def present(self, samples: Sequence[Sample]) -> Tensor:
        return self.plain.present(self._others(samples))

    def read(self, samples: Sequence[Sample], seeds: Sequence[int | None]) -> Inputs:
        return self.plain.read(self._others(samples), seeds)

    def blank(self) -> Inputs:
        return self.plain.blank()

    def _others(self, samples: Sequence[Sample]) -> PatchRows:
        if not isinstance(samples, PatchRows):
            raise TypeError("rows of the patch store that was shuffled")
        return PatchRows(samples.store, self._row[samples.rows])


def drawn(samples: Sequence[Sample], limit: int, purpose: str, seed: int) -> Sequence[Sample]:
    """The samples, or a seeded draw of so many, in their order."""
    if len(samples) <= limit:
        return samples
    return taken(samples, sorted(random.Random(derived_seed(purpose, seed)).sample(range(len(samples)), limit)))


def retrieval_set(train: Sequence[Sample], seed: int) -> Sequence[Sample]:
    """The training samples that retrieval searches."""
    return drawn(train, RETRIEVAL_LIMIT, "retrieval", seed)


def nearest_neighbours(
    model: Graft,
    task: Task,
    train: Sequence[Sample],
    samples: Sequence[Sample],
    readers: Mapping[str, Reader],
    *,
    batch_size: int,
    num_workers: int,
) -> list[Any]:
    """The answer of the training samples whose pooled encoder tokens are nearest by cosine."""
    known = _features(model, train, readers, batch_size, num_workers, "features of training samples")
    asked = _features(model, samples, readers, batch_size, num_workers, "features")
    count = min(task.num_neighbours, len(train))
    places = [row for chunk in torch.split(asked, 1024) for row in (chunk @ known.T).topk(count, dim=1).indices.tolist()]
    there = list(train)  # rows of patch stores are made anew whenever they are asked for
    near = [[there[place] for place in row] for row in places]
    if hasattr(task, "from_neighbours_of"):  # what is right depends on what a sample was asked
        return [task.from_neighbours_of(sample, neighbours) for sample, neighbours in zip(samples, near, strict=True)]
    return [task.from_neighbours(neighbours) for neighbours in near]


@torch.inference_mode()
def _features(
    model: Graft, samples: Sequence[Sample], readers: Mapping[str, Reader], batch_size: int, num_workers: int, label: str
) -> Tensor:
    """[len(samples), ΣD] float32 on the CPU: each modality at unit length, 0 where it is absent. It is pooled as the recipe pools it where
    that learns nothing, as in the feature cache, so that both give the same neighbours; else by the mean."""
    device = next(model.parameters()).device
    pooling = {modality: model.fixed_pooling(modality) or torch.nn.Identity() for modality in model.encoders}
    examples = Examples(samples, [Encoded((0,), (0,))] * len(samples), readers)
    order = batches_in_order(len(samples), batch_size)
    pooled = []
    with progress(label, len(samples)) as advance:
        for batch in load_batches(examples, order, pad_id=pad_id_of(model), num_workers=num_workers):
            means = []
            for modality, tokens in model.encode(batch.to(device)).items():
                tokens = pooling[modality](tokens)
                mean = (tokens.values * tokens.mask.unsqueeze(-1)).sum(1) / tokens.mask.sum(1, keepdim=True).clamp(min=1)  # [B, D]
                means.append(torch.nn.functional.normalize(mean.float(), dim=-1))
            pooled.append(torch.cat(means, dim=-1).cpu())
            advance(len(batch))
    return torch.cat(pooled)
