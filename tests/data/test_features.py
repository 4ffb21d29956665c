"""The feature cache: written once, whole after any kill, shared, bounded, and never wrong in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eyegraft.data import _shards
from eyegraft.data.features import FeatureStore, Uncached, store_key, weights_sha256
from eyegraft.errors import DataError, PartError

SHAPE = (2, 5)  # 10 numbers of 2 bytes: three words, the last of them half empty
FACTS = {"weights": "abc", "pooling": "mean"}
MANY = 10**9


def feature(key: str, shape: tuple[int, int] = SHAPE) -> Tensor:
    """Numbers that depend on the key alone."""
    seed = int.from_bytes(_shards.digest(key)[:6], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100


class Encoder:
    """An encoder that remembers what it was asked for."""

    def __init__(self, keys: list[str], shape: tuple[int, int] = SHAPE) -> None:
        self.keys, self.shape = keys, shape
        self.asked: list[list[int]] = []

    def __call__(self, batches: list[list[int]]) -> Iterator[Tensor]:
        for batch in batches:
            self.asked.append(batch)
            yield torch.stack([feature(self.keys[position], self.shape) for position in batch])

    @property
    def positions(self) -> list[int]:
        return [position for batch in self.asked for position in batch]

    @property
    def count(self) -> int:
        return len(self.positions)


def opened(root: Path, facts: dict[str, Any] = FACTS, **changes: Any) -> FeatureStore:
    return FeatureStore(root, facts, **{"shape": SHAPE, "max_bytes": MANY, **changes})


def filled(root: Path, keys: list[str], **changes: Any) -> Encoder:
    """Fill a store, check every value in it, and give the encoder that was used."""
    shape = changes.get("shape", SHAPE)
    encoder = Encoder(keys, shape)
    with opened(root, **changes) as store:
        assert store.fill(keys, encoder, batch_size=4) == encoder.count
        expected = torch.stack([feature(key, shape) for key in keys]).to(store.dtype).to(torch.float32)
        assert torch.equal(store.read(store.rows(keys)), expected)
    return encoder


def names(count: int, prefix: str = "record") -> list[str]:
    return [f"{prefix} {n}" for n in range(count)]


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 5)])
def test_records_come_back_rounded_and_are_encoded_once(tmp_path: Path, dtype: str, shape: tuple[int, int]) -> None:
    keys = names(11)
    assert filled(tmp_path, keys, dtype=dtype, shape=shape).count == 11
    assert filled(tmp_path, keys, dtype=dtype, shape=shape).count == 0
    more = keys + names(3, "new")
    assert filled(tmp_path, more, dtype=dtype, shape=shape).asked == [[11, 12, 13]]


@settings(deadline=None, max_examples=25)
@given(order=st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_any_order_with_any_repeats(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    keys = [f"기록 {n}" for n in order]
    encoder = filled(tmp_path_factory.mktemp("store"), keys)
    assert encoder.count == len(set(order))
    assert encoder.positions == [order.index(n) for n in dict.fromkeys(order)]


def test_records_lie_across_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shards, "SHARD_BYTES", 7 * 24)  # 7 records of three words
    keys = names(30)
    filled(tmp_path, keys)
    with opened(tmp_path) as store:
        assert len(list(store.folder.glob("values-*.bin"))) == 5
        picked = [keys[n] for n in (29, 0, 7, 6, 0, 13)]
        assert torch.equal(store.read(store.rows(picked)), torch.stack([feature(key) for key in picked]).half().float())
    assert filled(tmp_path, keys + names(9, "new")).count == 9


def test_reading_is_one_gather_from_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = names(64)
    filled(tmp_path, keys)
    gathers: list[int] = []
    real = np.take
    with opened(tmp_path) as store:
        rows = store.rows(keys)
        monkeypatch.setattr(np, "take", lambda array, where, axis: gathers.append(len(where)) or real(array, where, axis=axis))
        monkeypatch.setattr(_shards, "digest", None)  # an epoch looks nothing up
        values = store.read(rows[::-1])
    assert gathers == [64]
    assert values.dtype == torch.float32
    assert values.is_contiguous()


def test_odd_folder_names(tmp_path: Path) -> None:
    root = tmp_path / "특징 저장소, 둘" / ("long " * 30).strip()
    assert filled(root, names(5)).count == 5
    assert filled(root, names(5)).count == 0


def test_asking_for_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path, names(3))
    with opened(tmp_path) as store, pytest.raises(DataError, match="2 records are not stored: other 0, other 1"):
        store.rows(names(3) + names(2, "other"))


def test_progress_counts_what_is_encoded(tmp_path: Path) -> None:
    keys, seen = names(10), []
    with opened(tmp_path) as store:
        store.fill(keys[:3], Encoder(keys), batch_size=4)
        store.fill(keys, Encoder(keys), batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 7), (7, 7)]


# ── the key ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_any_other_fact_is_another_store(tmp_path: Path) -> None:
    same = store_key({"a": 1, "size": (2, 3), "mean": [0.5]})
    assert store_key({"mean": [0.5], "size": [2, 3], "a": 1}) == same
    others = [
        {"a": 1, "size": (3, 2), "mean": [0.5]},
        {"a": 1, "size": (2, 3), "mean": [0.5000001]},
        {"a": "1", "size": (2, 3), "mean": [0.5]},
    ]
    assert len({same, *map(store_key, others)}) == 4
    keys = names(3)
    filled(tmp_path, keys)
    assert filled(tmp_path, keys, facts={**FACTS, "pooling": "cls"}).count == 3
    assert filled(tmp_path, keys, dtype="bfloat16").count == 3
    assert filled(tmp_path, keys, shape=(5, 2)).count == 3
    assert filled(tmp_path, keys, facts=dict(reversed(FACTS.items()))).count == 0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).to(torch.bfloat16))


def test_weights_hash_sees_every_bit_name_shape_and_type() -> None:
    model = network()
    known = weights_sha256(model)
    assert weights_sha256(network().eval()) == known
    assert weights_sha256(nn.Sequential(*list(network()))) == known
    seen = {known}

    def changed() -> None:
        digest = weights_sha256(model)
        assert digest not in seen
        seen.add(digest)

    with torch.no_grad():
        model[0].weight.view(torch.int32)[0, 0, 0, 0] ^= 1  # the last bit of one number
        changed()
        model[2].bias.view(torch.int16)[1] ^= 1
        changed()
        model[1].running_mean[0] = -0.0  # was 0.0, which compares equal
        changed()
        model[2].weight.data = model[2].weight.data.view(4, 2)
        changed()
        model[2].bias.data = model[2].bias.data.view(torch.float16)
        changed()
    model._modules["3"] = model._modules.pop("2")
    changed()


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_feature_beyond_float16_is_noticed(tmp_path: Path) -> None:
    values = torch.ones(3, *SHAPE)
    values[1, 1, 2] = -70_000
    with opened(tmp_path) as store, pytest.raises(Uncached, match=r"record 1: a feature of size 70,000 .* float16") as caught:
        store.fill(names(3), lambda batches: [values], batch_size=3)
    assert caught.value.fix == "cache in bfloat16"
    with opened(tmp_path, dtype="bfloat16") as store:
        store.fill(names(3), lambda batches: [values], batch_size=3)
        assert store.read(store.rows(["record 1"])).min() == torch.tensor(-70_000.0).bfloat16()


def test_features_too_small_for_float16_are_noticed(tmp_path: Path) -> None:
    values = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    for size, fits in ((1e-4, True), (1e-6, False), (0.0, True)):
        with opened(tmp_path, facts={"size": size}) as store:
            if fits:
                store.fill(names(3), lambda batches, size=size: [values * size], batch_size=3)
            else:
                with pytest.raises(Uncached, match=r"features as small as 9e-07 lose \d\.\d% in float16"):
                    store.fill(names(3), lambda batches, size=size: [values * size], batch_size=3)
    with opened(tmp_path, dtype="bfloat16") as store:
        store.fill(names(3), lambda batches: [values * 1e-6], batch_size=3)
        torch.testing.assert_close(store.read(store.rows(names(3))), values * 1e-6, rtol=2**-8, atol=0)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_broken_encoder_is_named_not_stored(tmp_path: Path, number: float) -> None:
    values = torch.ones(2, *SHAPE)
    values[0, 0, 0] = number
    with opened(tmp_path) as store:
        with pytest.raises(PartError, match="record 0: the encoder gave NaN or infinity"):
            store.fill(names(2), lambda batches: [values], batch_size=2)
        assert store.missing(names(2)) == [0, 1]


def test_records_of_another_shape_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as store, pytest.raises(PartError, match=r"shape \[4, 3, 5\]"):
        store.fill(names(9), lambda batches: [torch.ones(4, 3, 5)], batch_size=4)


def test_an_error_of_the_encoder_comes_through_and_what_was_done_stays(tmp_path: Path) -> None:
    keys = names(10)

    def fails(batches: list[list[int]]) -> Iterator[Tensor]:
        yield from Encoder(keys)(batches[:1])
        raise FileNotFoundError("cat.png")

    with opened(tmp_path) as store, pytest.raises(FileNotFoundError, match=r"cat\.png"):
        store.fill(keys, fails, batch_size=4)
    assert filled(tmp_path, keys).asked == [[4, 5, 6, 7], [8, 9]]


# ── kills and other processes ────────────────────────────────────────────────────────────────────────────────────────────────────

WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_features import Encoder, names, opened
keys = names(int(sys.argv[3]))
encoder = Encoder(keys)
def slowly(batches):
    for values in encoder(batches):
        time.sleep(float(sys.argv[4]))
        yield values
with opened(Path(sys.argv[2])) as store:
    print("opened", flush=True)
    sys.stdin.readline()
    store.fill(keys, slowly, batch_size=4, progress=lambda done, total: print(done, flush=True))
    print("encoded", encoder.count, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def started(root: Path, count: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(root), str(count), str(seconds)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def heard(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def told(process: subprocess.Popen[str]) -> None:
    """Send it on to its next step."""
    process.stdin.write("\n")
    process.stdin.flush()


def finished(process: subprocess.Popen[str]) -> int:
    """Wait for the end of a fill; how many records it encoded."""
    while not (line := heard(process)).startswith("encoded"):
        assert process.poll() is None
    return int(line.split()[1])


def contents(root: Path) -> dict[str, bytes]:
    (folder,) = (item for item in root.iterdir() if item.is_dir())
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def test_killed_half_way_and_continued(tmp_path: Path) -> None:
    with started(tmp_path / "killed", 40, 0.02) as process:
        told(process)
        while heard(process) != "20":
            assert process.poll() is None
        process.kill()
    encoder = filled(tmp_path / "killed", names(40))
    assert encoder.count <= 20
    assert encoder.count % 4 == 0  # at most the batch at work was lost
    filled(tmp_path / "whole", names(40))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_two_processes_fill_one_store(tmp_path: Path) -> None:
    counts = []
    with started(tmp_path, 24, 0.03) as one, started(tmp_path, 36, 0.03) as other:
        for process in (one, other):
            assert heard(process) == "opened"
        for process in (one, other):
            told(process)
        for process in (one, other):
            counts.append(finished(process))
            told(process)
            assert process.wait() == 0
    assert sum(counts) == 36  # nothing twice
    assert filled(tmp_path, names(36)).count == 0


def test_workers_may_be_forked_while_filling(tmp_path: Path) -> None:
    keys = names(12)

    def decoded(batches: list[list[int]]) -> Iterator[Tensor]:
        yield from DataLoader([feature(key) for key in keys], batch_sampler=batches, num_workers=2)

    with opened(tmp_path) as store:
        store.fill(keys, decoded, batch_size=4)
        other = opened(tmp_path, facts={"another": 1}, max_bytes=1)  # would delete the first one if its lock had been let go of
        assert store.folder.exists()
        other.close()


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def only_file(root: Path, name: str) -> Path:
    (path,) = root.glob(f"*/{name}")
    return path


@settings(deadline=None, max_examples=40)
@given(row=st.integers(0, 8), bit=st.integers(0, 24 * 8 - 1))
def test_any_flipped_bit_is_found_and_mended(tmp_path_factory: pytest.TempPathFactory, row: int, bit: int) -> None:
    root = tmp_path_factory.mktemp("store")
    keys = names(9)
    filled(root, keys)
    path = only_file(root, "values-0000.bin")
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[row * 24 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk that rots tells no time
    assert filled(root, keys).asked == [[row]]
    assert filled(root, keys).count == 0


@settings(deadline=None, max_examples=40)
@given(byte=st.integers(0, 9 * 24 - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_index_costs_that_record(tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int) -> None:
    root = tmp_path_factory.mktemp("store")
    keys = names(9)
    filled(root, keys)
    path = only_file(root, "index.bin")
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)
    assert filled(root, keys).asked == [[byte // 24]]


@pytest.mark.parametrize("name", ["values-0000.bin", "index.bin"])
@pytest.mark.parametrize("left", [0, 1, 24, 100, 9 * 24 - 1])
def test_a_torn_file_loses_its_end(tmp_path: Path, name: str, left: int) -> None:
    keys = names(9)
    filled(tmp_path, keys)
    with only_file(tmp_path, name).open("r+b") as file:
        file.truncate(left)
    assert filled(tmp_path, keys).positions == list(range(left // 24, 9))
    assert filled(tmp_path, keys).count == 0


def test_a_lost_shard_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shards, "SHARD_BYTES", 4 * 24)
    keys = names(11)
    filled(tmp_path, keys)
    only_file(tmp_path, "values-0001.bin").unlink()
    assert filled(tmp_path, keys).asked == [[4, 5, 6, 7]]
    assert filled(tmp_path, keys).count == 0


def test_damage_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = names(9)
    filled(tmp_path, keys)
    path = only_file(tmp_path, "values-0000.bin")
    path.write_bytes(bytes(48) + path.read_bytes()[48:])
    filled(tmp_path, keys)
    assert [record.getMessage().split(": ")[1] for record in caplog.records if record.levelname == "WARNING"] == [
        "2 records were changed or damaged on disk; they are encoded again"
    ]


# ── the limit of bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

RECORD = 24 + 24  # values and index


def stores(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def taken(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.bin"))


def made(root: Path, number: int, **changes: Any) -> str:
    """A closed store of 10 records; its folder's name."""
    filled(root, names(10), facts={"number": number}, **changes)
    with opened(root, facts={"number": number}) as store:
        assert store.record_bytes == RECORD
        return store.folder.name


def test_the_least_recently_used_store_goes_first(tmp_path: Path) -> None:
    a, b, c = (made(tmp_path, number) for number in range(3))
    time.sleep(0.01)
    made(tmp_path, 0)  # used again
    d = made(tmp_path, 3, max_bytes=30 * RECORD)
    assert stores(tmp_path) == {a, c, d}
    assert b not in stores(tmp_path)
    assert taken(tmp_path) == 30 * RECORD


def test_a_store_in_use_is_kept(tmp_path: Path) -> None:
    a, b = made(tmp_path, 0), made(tmp_path, 1)
    with opened(tmp_path, facts={"number": 0}) as store:
        rows = store.rows(names(10))
        c = made(tmp_path, 2, max_bytes=25 * RECORD)
        assert stores(tmp_path) == {a, c}
        with opened(tmp_path, facts={"number": 2}), opened(tmp_path, facts={"number": 1}, max_bytes=25 * RECORD) as third:
            with pytest.raises(Uncached, match=r"caches in use leave"):
                third.fill(names(10), Encoder(names(10)), batch_size=4)
            assert third.folder.name == b
        assert store.read(rows).shape == (10, *SHAPE)


def test_a_store_in_use_elsewhere_is_kept_until_that_process_dies(tmp_path: Path) -> None:
    with started(tmp_path, 10, 0) as process, opened(tmp_path, facts={"number": 0}, max_bytes=15 * RECORD) as store:
        told(process)
        assert finished(process) == 10
        with pytest.raises(Uncached, match="caches in use leave"):
            store.fill(names(10), Encoder(names(10)), batch_size=4)
        process.kill()
        process.wait()
        store.fill(names(10), Encoder(names(10)), batch_size=4)
        assert stores(tmp_path) == {store.folder.name}


def test_too_many_records_are_refused_before_one_is_encoded(tmp_path: Path) -> None:
    a = made(tmp_path, 0)
    encoder = Encoder(names(10))
    with opened(tmp_path, max_bytes=10 * RECORD - 1) as store:
        with pytest.raises(Uncached, match=r"10 more records of 48 bytes take 480 bytes") as caught:
            store.fill(names(10), encoder, batch_size=4)
        assert "raise the limit" in caught.value.fix
        assert encoder.count == 0
    assert a not in stores(tmp_path)  # opening with a lower limit already made room
    assert taken(tmp_path) == 0


def test_space_is_taken_before_encoding_so_that_two_fills_cannot_exceed_the_limit(tmp_path: Path) -> None:
    keys = names(10)
    encoder = Encoder(keys)
    refused = []

    def meanwhile(batches: list[list[int]]) -> Iterator[Tensor]:
        with opened(tmp_path, facts={"number": 1}, max_bytes=15 * RECORD) as other, pytest.raises(Uncached) as caught:
            other.fill(keys, Encoder(keys), batch_size=4)
        refused.append(caught.value.given)
        yield from encoder(batches)

    with opened(tmp_path, max_bytes=15 * RECORD) as store:
        store.fill(keys, meanwhile, batch_size=4)
    assert len(refused) == 1
    assert taken(tmp_path) == 10 * RECORD


def test_a_full_disk_is_a_reason_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    with opened(tmp_path) as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 99, 1))
        with pytest.raises(Uncached, match="has 1 bytes left"):
            store.fill(names(10), Encoder(names(10)), batch_size=4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is a thing of Linux")
def test_a_disk_that_fills_while_writing(tmp_path: Path) -> None:
    keys = names(10)

    def filling_up(batches: list[list[int]]) -> Iterator[Tensor]:
        for number, values in enumerate(Encoder(keys)(batches)):
            if number == 1:
                path = only_file(tmp_path, "values-0000.bin")
                path.rename(path.with_name("kept"))
                path.symlink_to("/dev/full")
            yield values

    with opened(tmp_path) as store, pytest.raises(Uncached, match="No space left on device"):
        store.fill(keys, filling_up, batch_size=4)
    path = only_file(tmp_path, "values-0000.bin")
    path.unlink()
    path.with_name("kept").rename(path)
    assert filled(tmp_path, keys).asked == [[4, 5, 6, 7], [8, 9]]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Uncached, match="cannot be written"):
        opened(tmp_path / "file" / "features")


def test_another_process_opens_it_anew(tmp_path: Path) -> None:
    """Loader workers of macOS and Windows are sent it."""
    import pickle

    with FeatureStore(tmp_path / "all", {"encoder": "a"}, shape=(1, 3), max_bytes=10**9) as store:
        store.fill(["a", "b"], lambda batches: [torch.ones(len(batch), 1, 3) for batch in batches], batch_size=2)
        with pickle.loads(pickle.dumps(store)) as other:
            assert other.folder == store.folder
            assert torch.equal(other.read(other.rows(["b", "a"])), torch.ones(2, 1, 3))
