"""Where encoders are frozen, their outputs are read from the feature cache: which ones, under which keys, and why not."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eyegraft.config import FeatureCache, Recipe, Settings
from eyegraft.console import progress
from eyegraft.data.augment import is_random
from eyegraft.data.batches import Examples, derived_seed, load_batches, load_keys
from eyegraft.data.features import FeatureStore, Uncached, weights_sha256
from eyegraft.data.inputs import Reader, StoredReader, reader
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.text import Targets
from eyegraft.model import Graft, see
from eyegraft.pretrained import cache_dir
from eyegraft.training.stage_data import StageData
from eyegraft.tuning import is_adapted
from eyegraft.types import ColumnSpec, ImageSpec, PatchSpec, Sample, TextSpec, Tokens, moved_to

log = logging.getLogger(__name__)
BATCH = 32
"""Pictures or texts encoded at once, those of a panorama's views among them. Fixed, so that a store is filled alike by any recipe."""


def frozen_modalities(model: Graft) -> set[str]:
    """The encoders that a plan leaves as they are."""
    return {name for name, encoder in model.encoders.items() if not any(parameter.requires_grad for parameter in encoder.parameters())}


def why_not(recipe: Recipe, cache: FeatureCache, model: Graft, modality: str, frozen: Collection[str], *, augmented: bool) -> str | None:
    """Why the outputs of an encoder cannot be stored, or None where they can."""
    if cache.mode == "off":
        return "train.feature_cache.mode=off"
    if modality not in frozen:
        return "the encoder is trained"
    if isinstance(model.encoders[modality].spec, ColumnSpec):
        return "columns cost nothing to encode"
    if modality == "image" and augmented and is_random(recipe.augmentation) and not cache.augmented_copies:
        return "random augmentation shows another picture each time (train.feature_cache.augmented_copies=K keeps K fixed variants)"
    if _reduction(model, modality) is None and not cache.tokens:
        return (
            f"{_whole_sequences(model, modality)} a sample, for they are pooled by learned weights or not at all "
            "(pooling=mean stores one vector; train.feature_cache.tokens=true keeps them whole)"
        )
    return None


def stored_readers(
    recipe: Recipe,
    cache: FeatureCache,
    model: Graft,
    parts: Sequence[Sequence[Sample]],
    readers: Mapping[str, Reader],
    *,
    frozen: Collection[str],
    augmented: bool,
    closing: ExitStack,
) -> dict[str, Reader]:
    """The readers, with those of frozen encoders replaced by the feature cache wherever that gives the same.

    Everything that is missing there is encoded now, in float32, and written; the log says what is read from where, or why not, and
    nothing of columns.

    Args:
        parts: what will be read, such as the samples of a split; rows of patch stores stay what they are, for millions would not fit.
        frozen: modalities whose encoders do not change while the readers are used.
        augmented: whether the samples are seen under random augmentation.
        closing: closes the stores when the readers are no longer used.
    """
    found = dict(readers)
    for modality, plain in readers.items():
        reason = why_not(recipe, cache, model, modality, frozen, augmented=augmented)
        if reason is None:
            try:
                found[modality] = _stored(recipe, cache, model, parts, modality, plain, augmented, closing)
                continue
            except Uncached as error:
                reason = f"{error.given}; {error.expected}"
        known = modality not in frozen and not augmented  # it was said of the training split, and stands in the table of what trains
        if not known and not isinstance(model.encoders[modality].spec, ColumnSpec):
            log.info("feature cache: not for %s: %s", modality, reason)
    return found


def read_from_cache(recipe: Recipe, settings: Settings, model: Graft, data: StageData, closing: ExitStack) -> None:
    """Let both splits read the features of frozen encoders from the cache, wherever that gives the same."""
    frozen = frozen_modalities(model)
    for examples, augmented in ((data.train, True), (data.val, False)):
        if examples is not None:
            examples.readers = stored_readers(
                recipe,
                settings.feature_cache,
                model,
                [examples.samples],
                examples.readers,
                frozen=frozen,
                augmented=augmented,
                closing=closing,
            )


def _stored(
    recipe: Recipe,
    cache: FeatureCache,
    model: Graft,
    parts: Sequence[Sequence[Sample]],
    modality: str,
    plain: Any,
    augmented: bool,
    closing: ExitStack,
) -> StoredReader:
    reduced = _encoding(model, modality)
    layout = moved_to(reduced(plain.blank()), "cpu")
    views = getattr(plain.spec, "views", None)
    if isinstance(plain.spec, ImageSpec) and plain.spec.patch_size is not None and layout.values.shape[1] > layout.num_views:
        raise Uncached(f"pictures of a varying number of {modality} tokens", "pooled tokens, or records of one shape")
    if isinstance(plain.spec, TextSpec) and _reduction(model, modality) is None:
        raise Uncached("texts of a varying number of tokens", "one vector a text")
    if isinstance(plain.spec, PatchSpec) and plain.spec.sensor.missing == "mask" and layout.values.shape[1] > 1:
        raise Uncached("patches whose tokens are not all real, where pixels are missing", "pooled tokens, or none missing")
    copies = cache.augmented_copies if augmented and modality == "image" and is_random(recipe.augmentation) else 0
    facts = {
        "encoder": weights_sha256(model.encoders[modality]),
        "adapters": _adapters(model.encoders[modality]),
        "device": next(model.encoders[modality].parameters()).device.type,  # the same sums come out rounded otherwise
        "part": recipe.encoder_parts[modality].model_dump(mode="json"),
        "reduction": repr(_reduction(model, modality)),
        "transform": _transform(plain.spec),
        "augmentation": recipe.augmentation.model_dump() if copies else None,
        "versions": _versions(),
    }
    store = FeatureStore(
        cache_dir() / "features", facts, shape=tuple(layout.values.shape[1:]), dtype=cache.dtype, max_bytes=round(cache.max_gib * 2**30)
    )
    closing.callback(store.close)
    found, number = StoredReader(store, {}, layout, plain, partial(_record, modality), copies), 0
    at_once = max(1, BATCH // views.num_views) if views is not None else BATCH
    for part in parts:
        records, samples, seeds = _wanted(part, modality, copies)
        number += store.fill(records, _encode(reduced, modality, plain, samples, seeds, recipe.data.num_workers), batch_size=at_once)
        found.add(records, store.rows(records), samples)
    log.info(
        "feature cache: %s: %d records of %s bytes in %s, %d of them encoded now",
        modality,
        found.num_records,
        f"{store.record_bytes:,}",
        store.folder,
        number,
    )
    return found


def _adapters(encoder: Any) -> dict[str, Any]:
    """Name -> configuration of an encoder's adapters, as plain data: how their update is scaled stands in no tensor."""
    backbone = getattr(encoder, "backbone", None)
    if not is_adapted(backbone):
        return {}
    decides_nothing = ("base_model_name_or_path", "inference_mode")
    plain = {
        name: {key: value for key, value in config.to_dict().items() if key not in decides_nothing}
        for name, config in backbone.peft_config.items()  # type: ignore[union-attr]
    }
    found: dict[str, Any] = json.loads(json.dumps(plain, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
    return found


def _reduction(model: Graft, modality: str) -> Any:
    """What may be done to an encoder's tokens before they are stored: a pooling that gives the same when applied again; or nothing at all
    where the encoder gives one token a sample anyway."""
    identity = torch.nn.Identity() if getattr(model.encoders[modality], "gives_one_token", False) else None
    return model.fixed_pooling(modality) or identity


def _whole_sequences(model: Graft, modality: str) -> str:
    """What one sample's tokens take, in words: `729 tokens of 1152 numbers, 1.68 MB`."""
    plain: Any = reader(model.encoders[modality].spec)  # type: ignore[arg-type]
    shape = _encoding(model, modality)(plain.blank()).values.shape
    return f"{shape[1]} tokens of {shape[2]} numbers, {2 * shape[1] * shape[2] / 1e6:.2f} MB"


def _encoding(model: Graft, modality: str) -> Callable[[Any], Tokens]:
    encoder: Any = model.encoders[modality]
    reduction = _reduction(model, modality) or torch.nn.Identity()

    @torch.inference_mode()
    def encoded(inputs: Any) -> Tokens:
        encoder.eval()
        tokens: Tokens = reduction(see(encoder, moved_to(inputs, next(encoder.parameters()).device)))
        return tokens

    return encoded


def _wanted(part: Sequence[Sample], modality: str, copies: int) -> tuple[list[str], Sequence[Sample], list[int | None]]:
    """The records of a part, each once, and for each the sample and the seed of its augmentation."""
    if isinstance(part, PatchRows) and modality == "image":
        return part.keys(), part, [None] * len(part)
    found: dict[str, tuple[Sample, int | None]] = {}
    for sample in part:
        for copy in range(copies) if copies else (None,):
            seed = None if copy is None else derived_seed("copy", sample.sha256, copy)
            found[_record(modality, sample, copy)] = sample, seed
    return list(found), [sample for sample, _ in found.values()], [seed for _, seed in found.values()]


def _record(modality: str, sample: Sample, copy: int | None) -> str:
    content = hashlib.sha256(sample.text.encode()).hexdigest() if modality == "text" else sample.sha256 or "absent"
    told = sample.meta.get("condition")  # an encoder of maps of known classes sees the same picture otherwise
    content = f"{content}-{told}" if modality == "image" and told else content
    return content if copy is None else f"{content}-{copy}"


def _encode(
    encoded: Callable[[Any], Tokens],
    modality: str,
    plain: Reader,
    samples: Sequence[Sample],
    seeds: Sequence[int | None],
    num_workers: int,
) -> Callable[[list[list[int]]], Iterable[Tensor]]:
    def encode(batches: list[list[int]]) -> Iterator[Tensor]:
        nothing = np.empty((len(samples), 0), np.float32)
        examples = Examples(samples, Targets(nothing), {modality: plain})
        if isinstance(samples, PatchRows):
            loaded = load_batches(examples, batches, pad_id=0)  # reads ahead
        else:
            keys = [(batch, [seeds[place] for place in batch]) for batch in batches]
            loaded = load_keys(examples, keys, pad_id=0, num_workers=num_workers)
        with progress(f"encoding {modality} once", sum(map(len, batches))) as advance:
            for batch in loaded:
                tokens = encoded(batch.inputs[modality])
                yield tokens.values
                advance(len(batch))

    return encode


def _transform(spec: Any) -> Any:
    """All that decides what an encoder sees of a sample, as plain data."""
    if isinstance(spec, TextSpec):
        return _words(spec)
    if isinstance(spec, PatchSpec):
        return {**asdict(replace(spec, sensor=None)), "sensor": spec.sensor.model_dump(mode="json")}
    views = getattr(spec, "views", None)
    return {**asdict(spec), "views": views.model_dump(mode="json", exclude={"encode_positions"}) if views is not None else None}


def _words(spec: TextSpec) -> dict[str, Any]:
    """All that decides which token ids a text becomes."""
    backend = spec.tokenizer.backend_tokenizer
    backend.no_truncation()  # how the last text was cut and padded is no property of it
    backend.no_padding()
    return {"tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(), "max_tokens": spec.max_tokens, "prefix": spec.prefix}


def _versions() -> dict[str, str]:
    found = {}
    for name in ("eyegraft", "torch", "transformers", "timm", "pillow", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
