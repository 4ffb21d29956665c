"""An epoch from the feature cache against encoding every picture again, on this machine's CPU, in one run.

    python benchmarks/feature_cache.py
    python benchmarks/feature_cache.py --model vit_base_patch16_224 --pictures 96

Real pictures (the drawings that ship with eyegraft) go through the real encoder, transform, pooling and cache; weights are random, which
costs the same as trained ones. The ratio is taken against the encoder alone, without decoding, and the cache is timed at its slower: on
these pictures, or on a store of many more records. Fails when an epoch from the cache is not 1,000 times cheaper.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import eyegraft
from eyegraft.connectors import mean
from eyegraft.data.batches import batch_order, batches_in_order
from eyegraft.data.features import FeatureStore, weights_sha256
from eyegraft.data.images import open_image, to_pixels
from eyegraft.encoders import timm

LIMIT = 10**10
ENOUGH = 1000


class Frozen:
    """Decode, encode and pool; adds up the seconds of each."""

    def __init__(self, model: str, pictures: list[Path]) -> None:
        self.encoder = timm.build(timm.Config(model=model, pretrained=False)).eval()
        self.pooling = mean.build(mean.Config(), in_dim=self.encoder.token_dim, out_dim=self.encoder.token_dim)
        self.pictures, self.decoding, self.encoding = pictures, 0.0, 0.0

    @torch.inference_mode()
    def __call__(self, batches: list[list[int]]) -> Iterator[Tensor]:
        for batch in batches:
            started = time.perf_counter()
            pixels = torch.stack([to_pixels(open_image(self.pictures[n]), self.encoder.spec) for n in batch])
            decoded = time.perf_counter()
            values = self.pooling(self.encoder(pixels)).values  # [b, 1, D]
            self.decoding += decoded - started
            self.encoding += time.perf_counter() - decoded
            yield values


def seconds_an_epoch(store: FeatureStore, rows: np.ndarray, batch_size: int, at_least: float = 1.0) -> float:
    """Shuffled batches of float32 tensors, as training reads them; the mean over as many epochs as fit into some time."""
    count, spent = 0, 0.0
    while spent < at_least:
        batches = [np.array(batch) for batch in batch_order([1] * len(rows), batch_size, seed=0, epoch=count)]
        started = time.perf_counter()
        for batch in batches:
            store.read(rows[batch])
        spent += time.perf_counter() - started
        count += 1
    return spent / count


def many_records(root: Path, dim: int, count: int, batch_size: int) -> float:
    """Seconds a record in an epoch of a store that no processor cache holds."""
    keys = [str(n) for n in range(count)]
    numbers = torch.randn(batch_size, 1, dim)
    with FeatureStore(root, {"many": count}, shape=(1, dim), max_bytes=LIMIT) as store:
        store.fill(keys, lambda batches: (numbers[: len(batch)] for batch in batches), batch_size=batch_size)
        return seconds_an_epoch(store, store.rows(keys), batch_size) / count


def measured(model: str, pictures: list[Path], batch_size: int, records: int, root: Path) -> dict[str, float]:
    frozen, count = Frozen(model, pictures), len(pictures)
    list(frozen(batches_in_order(min(count, batch_size), batch_size)))  # the first batch pays for setting up
    frozen.decoding = frozen.encoding = 0.0
    started = time.perf_counter()
    facts = {"weights": weights_sha256(frozen.encoder), "pooling": "mean"}
    keys = [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures]
    dim = frozen.encoder.token_dim
    with FeatureStore(root, facts, shape=(1, dim), max_bytes=LIMIT) as store:
        store.fill(keys, frozen, batch_size=batch_size)
        first = time.perf_counter() - started
    started = time.perf_counter()
    with FeatureStore(root, facts, shape=(1, dim), max_bytes=LIMIT) as store:
        rows = store.rows(keys)
        opening = time.perf_counter() - started
        epoch = seconds_an_epoch(store, rows, batch_size)
        bytes_an_image = store.record_bytes
    cached = max(epoch / count, many_records(root, dim, records, batch_size))
    uncached = frozen.decoding + frozen.encoding
    return {
        "encode_seconds_per_image": frozen.encoding / count,
        "decode_seconds_per_image": frozen.decoding / count,
        "cached_seconds_per_image": cached,
        "cached_epoch_seconds": epoch,
        "uncached_epoch_seconds": uncached,
        "ratio_to_encoding": frozen.encoding / count / cached,
        "ratio_to_decoding_and_encoding": uncached / count / cached,
        "write_seconds": first - uncached,
        "open_and_check_seconds": opening,
        "bytes_per_image": bytes_an_image,
        "break_even_epoch": math.ceil((first + opening) / (uncached - epoch)),
    }


def table(found: dict[str, float], model: str, count: int, batch_size: int, records: int) -> str:
    rows = [
        (
            "encode one image",
            f"{found['encode_seconds_per_image'] * 1e3:.1f} ms (and {found['decode_seconds_per_image'] * 1e3:.1f} ms to decode it)",
        ),
        (
            "read one image's features",
            f"{found['cached_seconds_per_image'] * 1e6:.2f} us (the slower of {count:,} and {records:,} records)",
        ),
        ("an epoch, encoding again", f"{found['uncached_epoch_seconds']:.2f} s"),
        ("an epoch from the cache", f"{found['cached_epoch_seconds'] * 1e3:.3f} ms"),
        ("cheaper than the encoder alone", f"{found['ratio_to_encoding']:,.0f} times"),
        ("cheaper than decoding and encoding", f"{found['ratio_to_decoding_and_encoding']:,.0f} times"),
        ("write the store", f"{found['write_seconds'] * 1e3:.0f} ms, hashing weights and pictures included"),
        ("open it again, every record checked", f"{found['open_and_check_seconds'] * 1e3:.1f} ms"),
        ("on disk", f"{found['bytes_per_image']:,} bytes an image"),
        ("pays off in epoch", f"{found['break_even_epoch']}"),
    ]
    head = f"{model}, {count} pictures, batches of {batch_size}, {torch.get_num_threads()} threads, pooled float16"
    return "\n".join([head, *(f"  {name:<38}{value}" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_b0", help="of timm; the encoder says the size, here 224 pixels")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--records", type=int, default=100_000, help="of the larger store that the cache is timed on too")
    options = parser.parse_args()
    torch.manual_seed(0)
    pictures = sorted((Path(eyegraft.__file__).parent / "prepare" / "drawings" / "images").glob("*/*.webp"))[: options.pictures]
    with tempfile.TemporaryDirectory(prefix="feature_cache_") as folder:
        found = measured(options.model, pictures, options.batch_size, options.records, Path(folder))
    print(table(found, options.model, len(pictures), options.batch_size, options.records))
    print(json.dumps({"model": options.model, "pictures": len(pictures), **found}))
    sys.exit(0 if found["ratio_to_encoding"] >= ENOUGH else 1)


if __name__ == "__main__":
    main()
