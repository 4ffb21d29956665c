"""The patch store against the document's way, other libraries and a plain memory copy, on this machine, in one run.

    python benchmarks/patch_store.py
    python benchmarks/patch_store.py --records 60000 --peers /path/to/python --folder /a/disk --idle 60

Records have the layout of `eyegraft.data.patch_chunks`: x (19, 9, 9) float32, 6,217 bytes with the small fields, batches of 1,024. Every
reader gives whole batches of all fields as arrays or tensors, and runs in processes of its own, three in turn with the others (slow ones
two), in each of them three epochs (slow ones one), with the files opened anew. Importing, opening and drawing the order do not count, the
first batch does. Rates are those of the best epoch. A reader asks for the same batches in every epoch, so a batch's time is the median of
its epochs: what a reader does slowly it does slowly every time, what another process does to it happens once or twice. The slowest batch of
all epochs stands beside.

Warm: all files are in memory. Cold: they are dropped from memory before, and the bytes that the disk gave are counted by the kernel.
A memory copy takes the same bytes from the files' memory maps, opened anew as the store is, in the order of the disk, batch by batch, to
memory that is there already (a whole shard's, so that it does not stay in the processor's cache); all other readers allocate their batches.
`--peers` names a Python that has litdata and webdataset; without one they are left out. `--idle` waits so many seconds at most before each
epoch until the machine has nothing else to do. Fails when a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1024
SHARD = 100_000  # as many as a chunk of the document has
RECORD = 19 * 81 * 4 + 7 * 4 + 3 * 4 + 1 + 4 + 8 + 4 + 4
NAMES = ("x", "time7", "loc", "landcover", "y", "timestamp", "stn", "pixel")


def rows(job: list[int]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """A shard of random records: (first row, number of rows)."""
    first, count = job
    source = np.random.default_rng(first)
    return {
        "x": source.standard_normal((count, 19, 9, 9), dtype=np.float32),
        "time7": source.standard_normal((count, 7), dtype=np.float32),
        "loc": source.standard_normal((count, 3), dtype=np.float32),
        "landcover": source.integers(0, 17, count).astype(np.uint8),
        "y": source.standard_normal(count, dtype=np.float32),
        "timestamp": 1_640_995_200 + np.arange(first, first + count, dtype=np.int64),
        "stn": source.integers(90, 300, count).astype(np.int32),
        "pixel": source.integers(0, 900, (count, 2)).astype(np.int16),
    }, {}


# ── readers: each yields once when it is open, then batches ─────────────────────────────────────────────────────────────────────────────


def eyegraft_block(folder: Path, shuffle: Any = "block") -> Iterator[Any]:
    """PatchStore.batches, order block (the default): the reader of every claim."""
    from eyegraft.data.patch_store import PatchStore

    with PatchStore(folder / "store") as store:
        order = store.order(0, seed=0, shuffle=shuffle)
        yield
        for _, columns in store.batches(order, BATCH):
            yield columns["x"]


def eyegraft_full(folder: Path) -> Iterator[Any]:
    """PatchStore.batches, order full."""
    yield from eyegraft_block(folder, "full")


def eyegraft_batches(folder: Path) -> Iterator[Any]:
    """What the training loop takes: rows of the store as `Batch`es: z-scored, with mask, further maps, time, place and target."""
    import torch

    from eyegraft.data.batches import Examples, load_batches
    from eyegraft.data.patch_inputs import PatchReader
    from eyegraft.data.patch_rows import PatchRows
    from eyegraft.data.patch_store import PatchStore
    from eyegraft.data.text import Targets
    from eyegraft.sensors import GK2A_AMI
    from eyegraft.types import PatchSpec

    torch.set_num_threads(1)
    scale, maps = (0.0, 1.0), ("sza", "dem", "lsmask")
    sensor = GK2A_AMI.with_statistics(dict.fromkeys(GK2A_AMI.band_names, scale))
    spec = PatchSpec(sensor, (9, 9), maps, {"sza": scale, "dem": scale}, time_and_place=True)
    with PatchStore(folder / "store") as store:
        samples = PatchRows(store)
        examples = Examples(samples, Targets(samples.targets[:, None].astype(np.float32)), {"image": PatchReader(spec)})
        batches = examples.order(BATCH, seed=0, epoch=0)
        yield
        yield from load_batches(examples, batches, pad_id=0)


def opened(folder: Path) -> list[dict[str, np.ndarray]]:
    return [
        {name: np.load(path / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in NAMES}
        for path in sorted((folder / "store").glob("shard-*"))
    ]


def copy_rows(source: dict[str, np.ndarray], target: dict[str, np.ndarray], first: int, last: int) -> None:
    for name, values in source.items():
        np.copyto(target[name][first:last], values[first:last])


def memory_copy(folder: Path) -> Iterator[Any]:
    """Every field copied in order, batch by batch, from the files' memory maps into memory for a whole shard that is there already."""
    shards = opened(folder)
    kept = {name: np.ones_like(mapped) for name, mapped in shards[0].items()}
    yield
    for maps in shards:
        for start in range(0, len(maps["x"]), BATCH):
            stop = min(start + BATCH, len(maps["x"]))
            copy_rows(maps, kept, start, stop)
            yield kept["x"][start:stop]


def memory_copy_two(folder: Path) -> Iterator[Any]:
    """The same by two threads, each half of every shard."""
    from concurrent.futures import ThreadPoolExecutor

    shards = opened(folder)
    kept = {name: np.ones_like(mapped) for name, mapped in shards[0].items()}

    def part(maps: dict[str, np.ndarray], first: int, last: int) -> None:
        for start in range(first, last, BATCH):
            copy_rows(maps, kept, start, min(start + BATCH, last))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        yield
        for maps in shards:
            count = len(maps["x"])
            other = pool.submit(part, maps, count // 2, count)
            part(maps, 0, count // 2)
            other.result()
            for start in range(0, count, BATCH):
                yield kept["x"][start : start + BATCH]


def memory_copy_new(folder: Path) -> Iterator[Any]:
    """Every field of each shard copied whole into new memory, by numpy.array."""
    shards = opened(folder)
    yield
    for maps in shards:
        columns = {name: np.array(mapped) for name, mapped in maps.items()}
        for start in range(0, len(columns["x"]), BATCH):
            yield columns["x"][start : start + BATCH]


def mmap_random(folder: Path) -> Iterator[Any]:
    """numpy.load(mmap_mode="r") of each field, rows drawn at random from all shards."""
    shards = [{name: np.load(path / f"{name}.npy", mmap_mode="r") for name in NAMES} for path in sorted((folder / "store").glob("shard-*"))]
    starts = np.cumsum([0, *(len(shard["y"]) for shard in shards)])
    order = np.random.default_rng(0).permutation(starts[-1])
    yield
    for begin in range(0, len(order), BATCH):
        chosen = np.sort(order[begin : begin + BATCH])
        shard = np.searchsorted(starts, chosen, side="right") - 1
        yield [{name: shards[n][name][chosen[shard == n] - starts[n]] for name in NAMES} for n in np.unique(shard)]


def document(folder: Path) -> Iterator[Any]:
    """torch.load of chunks of 100,000, a Dataset that gives one sample at a time, DataLoader without workers, files shuffled."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Chunk(Dataset):
        def __init__(self, path: Path) -> None:
            self.data = torch.load(path, weights_only=False)

        def __len__(self) -> int:
            return len(self.data["y"])

        def __getitem__(self, n: int) -> dict[str, Any]:
            return {name: self.data[name][n] for name in ("x", "y", "time7", "loc", "landcover_onehot", "meta")}

    files = sorted((folder / "chunks").glob("*.pt"))
    random.Random(0).shuffle(files)
    yield
    for path in files:
        yield from DataLoader(Chunk(path), batch_size=BATCH, shuffle=True)


def litdata(folder: Path) -> Iterator[Any]:
    """litdata StreamingDataset(shuffle=True) and StreamingDataLoader without workers."""
    import litdata as library

    dataset = library.StreamingDataset(str(folder / "litdata"), shuffle=True)
    loader = library.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    yield
    yield from loader


def webdataset(folder: Path) -> Iterator[Any]:
    """WebDataset of .pyd samples, shuffle(1000), batched."""
    import webdataset as library

    files = [str(path) for path in sorted((folder / "webdataset").glob("*.tar"))]
    yield
    yield from library.WebDataset(files, shardshuffle=len(files)).shuffle(1000).decode().to_tuple("sample.pyd").batched(BATCH)


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "eyegraft block": eyegraft_block,
    "eyegraft full": eyegraft_full,
    "eyegraft, as training batches": eyegraft_batches,
    "memory copy": memory_copy,
    "memory copy, two threads": memory_copy_two,
    "memory copy, new memory": memory_copy_new,
    "mmap random": mmap_random,
    "document": document,
    "litdata": litdata,
    "webdataset": webdataset,
}


def cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def read_bytes() -> int:
    """What the disk gave this process, by the kernel's count; -1 where it does not tell."""
    account = Path("/proc/self/io")
    return int(account.read_text().split("read_bytes: ")[1].split()[0]) if account.exists() else -1


def measure(name: str, folder: Path, records: int) -> dict[str, Any]:
    """One epoch, or its first `records`; imports and the opening do not count, but the first batch does."""
    reader = READERS[name](folder)
    next(reader)
    times = [time.perf_counter()]
    used, read, batches = cpu(), read_bytes(), -(-records // BATCH)
    for _ in range(batches):
        if next(reader, None) is None:
            break
        times.append(time.perf_counter())
    spent, gone = times[-1] - times[0], cpu() - used
    reader.close()
    seen = min(records, (len(times) - 1) * BATCH)
    steps = (np.diff(times) * 1e3).tolist()
    return {"wall": seen / spent, "cpu": seen / gone, "steps_ms": steps, "read": (read_bytes() - read) / (seen * RECORD)}


def together(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The best rate of all epochs, and of each batch the median time."""
    steps = np.array([one["steps_ms"] for one in rounds])
    usual = np.median(steps, axis=0)
    return {
        "wall": max(one["wall"] for one in rounds),
        "cpu": max(one["cpu"] for one in rounds),
        "median_ms": float(np.median(usual)),
        "first_ms": float(usual[0]),
        "worst_ms": float(usual.max()),
        "slowest_ms": float(steps.max()),
        "read": rounds[0]["read"],
    }


def wait_until_idle(seconds: float) -> None:
    """Return when the cores did nothing for half a second, or when the time is over."""

    def counts() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = counts()
        time.sleep(0.5)
        after = counts()
        if after[0] - before[0] > 0.93 * (after[1] - before[1]):
            return


def drop(folder: Path) -> None:
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def warm(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


# ── the same records in every format ─────────────────────────────────────────────────────────────────────────────────────────────────


def make(folder: Path, records: int) -> None:
    """The store by eyegraft's writer, the chunks by torch.save, as the document describes them."""
    import torch

    from eyegraft.data.patch_chunks import fields
    from eyegraft.data.patch_store import Schema
    from eyegraft.data.patch_writer import write_shards

    jobs = [[first, min(SHARD, records - first)] for first in range(0, records, SHARD)]
    started = time.perf_counter()
    facts = {"simulated": True, "extra": ["sza", "dem", "lsmask"]}
    write_shards(folder / "store", Schema(fields=fields(), split="train", facts=facts), jobs, rows)
    print(f"store written in {time.perf_counter() - started:.0f} s (random numbers, hashes and flushing to the disk included)", flush=True)
    (folder / "chunks").mkdir()
    for number, job in enumerate(jobs):
        columns, _ = rows(job)
        chunk = {name: torch.from_numpy(columns[name]) for name in ("x", "y", "time7", "loc")}
        chunk["landcover_onehot"] = torch.eye(17)[torch.from_numpy(columns["landcover"].astype(np.int64))]
        parts = zip(columns["timestamp"].tolist(), columns["stn"].tolist(), columns["pixel"].tolist(), strict=True)
        chunk["meta"] = [{"timestamp": str(np.datetime64(t, "s")), "stn": s, "pixel_x": x, "pixel_y": y} for t, s, (x, y) in parts]
        torch.save(chunk, folder / "chunks" / f"train_chunk_{number:05d}.pt")


def sample(chunk: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: chunk[name][row] if chunk[name].ndim > 1 else chunk[name][row : row + 1] for name in NAMES}


def make_peers(folder: Path, records: int) -> None:
    """Run by the Python that has litdata and webdataset."""
    import io
    import tarfile

    import litdata as library

    chunk, _ = rows([0, min(SHARD, records)])
    library.optimize(partial(sample, chunk), list(range(len(chunk["y"]))), str(folder / "litdata"), num_workers=1, chunk_bytes="64MB")
    (folder / "webdataset").mkdir()
    for first in range(0, len(chunk["y"]), 10_000):
        with tarfile.open(folder / "webdataset" / f"{first:08d}.tar", "w") as tar:
            for row in range(first, min(first + 10_000, len(chunk["y"]))):
                content = pickle.dumps(sample(chunk, row), protocol=5)
                entry = tarfile.TarInfo(f"{row:08d}.sample.pyd")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def child(python: str, *arguments: object) -> list[dict[str, Any]] | None:
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        print(f"{arguments[3:5]} failed:\n{done.stderr[-1500:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


PLACES = {"document": "chunks", "litdata": "litdata", "webdataset": "webdataset"}
PEERS = ("litdata", "webdataset")
EPOCHS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=330_000, help="6,217 bytes each; twice that is needed on the disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=0, metavar="SECONDS", help="to wait for an idle machine before each measurement")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder elsewise")
    parser.add_argument("--peers", help="a Python with litdata and webdataset")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--make-peers", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder, records, epochs = options.one
        done = []
        for _ in range(int(epochs)):
            wait_until_idle(options.idle)
            done.append(measure(name, Path(folder), int(records)))
        print(json.dumps(done))
        return
    if options.make_peers:
        make_peers(Path(options.make_peers[0]), int(options.make_peers[1]))
        print("{}")
        return
    with tempfile.TemporaryDirectory(prefix="patch_store_", dir=options.folder) as folder:
        sys.exit(0 if compared(Path(folder), options) else 1)


def compared(folder: Path, options: argparse.Namespace) -> bool:
    records = options.records
    print(f"{records:,} records of {RECORD:,} bytes: {records * RECORD / 1e9:.2f} GB, batches of {BATCH}, load {os.getloadavg()[0]:.1f}")
    make(folder, records)
    names = [name for name in READERS if name not in PEERS]
    if options.peers and child(options.peers, "--make-peers", folder, records) is not None:
        names += PEERS
    else:
        print("litdata and webdataset: not measured (--peers names a Python that has them)")
    rounds: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name in names:
            if number > 1 and name in PLACES:
                continue  # slow ones: twice
            count = min(records, SHARD) if name in PEERS else records
            warm(folder / PLACES.get(name, "store"))
            python, epochs = options.peers if name in PEERS else sys.executable, 1 if name in PLACES else EPOCHS
            rounds.setdefault(name, []).extend(child(python, "--idle", options.idle, "--one", name, folder, count, epochs) or [])
    found = {name: together(each) for name, each in rounds.items() if each}
    cold = {}
    for name, count in (("eyegraft block", records), ("mmap random", min(records, 8 * BATCH)), ("eyegraft full", min(records, 40 * BATCH))):
        drop(folder)
        cold[name] = together(child(sys.executable, "--idle", options.idle, "--one", name, folder, count, 1) or [])
    return report(found, cold)


def report(found: dict[str, dict[str, float]], cold: dict[str, dict[str, float]]) -> bool:
    milliseconds = ("median_ms", "first_ms", "worst_ms", "slowest_ms")
    print(f"\n{'warm reader':<30}{'samples/s':>12}{'per CPU s':>12}{'median':>10}{'first':>10}{'worst':>10}{'of all':>10}")
    for name, one in found.items():
        print(f"{name:<30}{one['wall']:>12,.0f}{one['cpu']:>12,.0f}" + "".join(f"{one[k]:>7.2f} ms" for k in milliseconds))
    print(f"\n{'cold reader':<30}{'samples/s':>12}{'bytes read / useful':>22}{'median':>10}{'worst':>10}")
    for name, one in cold.items():
        print(f"{name:<30}{one['wall']:>12,.0f}{one['read']:>22.2f}{one['median_ms']:>7.2f} ms{one['worst_ms']:>7.2f} ms")
    ours, copy, away = found["eyegraft block"], found["memory copy"], cold["eyegraft block"]
    claims = [("samples/s against document", ours["wall"] / found["document"]["wall"], 15, True)]
    for name in PEERS:
        if name in found:
            claims.append((f"per CPU-second against {name}", ours["cpu"] / found[name]["cpu"], 10, True))
            claims.append((f"samples/s against {name} (no claim)", ours["wall"] / found[name]["wall"], 0, True))
    claims += [
        ("samples/s against memory copy", ours["wall"] / copy["wall"], 0.7, True),
        ("per CPU-second against memory copy (no claim)", ours["cpu"] / copy["cpu"], 0, True),
        ("samples/s against two threads' copy (no claim)", ours["wall"] / found["memory copy, two threads"]["wall"], 0, True),
        ("samples/s against copy, new memory (no claim)", ours["wall"] / found["memory copy, new memory"]["wall"], 0, True),
        ("worst batch / median, warm", ours["worst_ms"] / ours["median_ms"], 20, False),
        ("slowest of all / median, warm (no claim)", ours["slowest_ms"] / ours["median_ms"], 0, False),
        ("slowest of all / median, memory copy (no claim)", copy["slowest_ms"] / copy["median_ms"], 0, False),
        ("worst batch / median, cold", away["worst_ms"] / away["median_ms"], 20, False),
        ("bytes read / useful, cold", away["read"], 1.15, False),
        ("samples/s against mmap random, cold", away["wall"] / cold["mmap random"]["wall"], 4, True),
    ]
    good = True
    print("\neyegraft block")
    for what, value, limit, least in claims:
        holds = value >= limit if least else value <= limit
        good &= holds or not limit
        verdict = f"  {'at least' if least else 'at most'} {limit}: {'holds' if holds else 'DOES NOT HOLD'}" if limit else ""
        print(f"  {what:<50}{value:>8.2f}{verdict}")
    print(json.dumps({"warm": found, "cold": cold}))
    return good


if __name__ == "__main__":
    main()
