"""A run that is killed again and again ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import tiny
from command_line import arguments, environment, eyegraft

KILLS = 5  # in each of two runs
WORDS = ("train", "recipe=tiny", "stages.warm.epochs=12", "stages.finetune.epochs=12")


def rows(run: Path) -> list[dict[str, object]]:
    """All metrics of all stages, without the clock."""
    lines = [json.loads(line) for path in sorted(run.glob("*/metrics.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


def tensors(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("*/*/*.safetensors")) if "previous" not in str(path)}


def only_run(root: Path) -> Path:
    runs = list((root / "runs" / "tiny").iterdir())
    assert len(runs) == 1, f"the same command must go on with the same run, not start another: {runs}"
    return runs[0]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("untouched")
    tiny.shapes(root / "data", {"train": 21, "val": 5, "test": 6})
    done = eyegraft(*WORDS, cwd=root, tiny=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_runs_end_bit_identical(untouched: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "data").symlink_to(untouched / "data")
    chance = random.Random(workers)
    words = arguments(*WORDS, f"data.num_workers={workers}", tiny=True)
    landed = []
    for kill in range(KILLS + 10):
        process = subprocess.Popen(
            words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        if kill < KILLS:
            wait_for_progress(tmp_path, process)
            time.sleep(chance.uniform(0, 0.6))
        else:
            process.wait(timeout=240)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            landed.append(position(tmp_path))
        process.stdout.close()
        if is_finished(tmp_path):  # also where the kill came too late, between the run's last word and the process's end
            break
        assert process.returncode == -signal.SIGKILL
    assert len(landed) >= KILLS - 1, f"too few kills found the run alive: {landed}"
    killed, whole = only_run(tmp_path), only_run(untouched)
    assert rows(killed) == rows(whole)
    assert tensors(killed) == tensors(whole)
    assert rows(whole)[-1]["step"] > 10


def is_finished(root: Path) -> bool:
    return any(json.loads(path.read_text(encoding="utf-8"))["finished"] for path in (root / "runs").glob("*/*/run.json"))


def position(root: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (root / "runs").glob("*/*/*/checkpoints/*")))


def wait_for_progress(root: Path, process: subprocess.Popen[bytes]) -> None:
    """Until this child has written a checkpoint, so that kills fall into training and not into imports."""
    started = time.time()
    while process.poll() is None and time.time() - started < 120:
        for path in (root / "runs").glob("*/*/*/checkpoints/latest*/config.json"):
            with suppress(FileNotFoundError):  # renamed between the look and this
                if path.stat().st_mtime > started:
                    return
        time.sleep(0.005)


def test_damaged_checkpoint_is_passed_over(untouched: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(untouched / "data")
    words = WORDS
    stopped = subprocess.Popen(
        arguments(*words, tiny=True), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_progress(tmp_path, stopped)
    time.sleep(0.2)
    stopped.kill()
    stopped.wait()
    run = only_run(tmp_path)
    stage = "finetune" if (run / "finetune" / "checkpoints" / "latest").exists() else "warm"
    weights = run / stage / "checkpoints" / "latest" / "model.safetensors"
    if weights.exists():
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1  # one flipped bit
        weights.write_bytes(content)
    done = eyegraft(*words, cwd=tmp_path, tiny=True)
    assert done.returncode == 0, done.stderr
    assert "passing over" in done.stderr
    assert "model.safetensors missing or changed" in done.stderr
    assert tensors(only_run(tmp_path)) == tensors(only_run(untouched))


def test_second_process_is_refused(untouched: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(untouched / "data")
    words = ("train", "recipe=tiny", "stages.warm.epochs=2000")
    first = subprocess.Popen(
        arguments(*words, tiny=True), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_progress(tmp_path, first)
        second = eyegraft(*words, cwd=tmp_path, tiny=True)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 5
    assert "is in use by another process" in second.stderr
    assert "--fresh" in second.stderr
    assert "Traceback" not in second.stderr
