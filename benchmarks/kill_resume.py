"""Kill the real command line at random moments, start it again each time, and compare with a run that was left alone.

    python benchmarks/kill_resume.py --kills 100

The model is a random two-layer language model with LoRA behind a small convolutional encoder of timm: real loading code, real
adapters, quick to start. Prints how many kills found the process alive, in which phase, and whether weights, optimiser and losses are
equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny
from command_line import arguments, environment

RECIPE = """# @package _global_
defaults:
  - override /pooling: mean
  - override /connector: prefix
  - override /augmentation: strong
recipe: killed
experiment_name: killed
num_threads: 1
vision_encoder: {kind: timm, model: resnet10t, pretrained: false, weights: null}
head: {kind: prefix_lm, model: given, dtype: float32}
data:
  name: shapes
  base_dir: given
  tables: {train: train.jsonl, val: val.jsonl, test: test.jsonl}
  columns: {image: image, references: caption, id: id, group: group}
tasks:
  caption: {kind: caption, prompt: "What is drawn here?"}
train:
  epochs: 1
  batch_size: 4
  learning_rate: 0.001
  checkpoint_every: 2
  log_every: 1
  tune: {head: {mode: lora, lora: {rank: 4, dropout: 0.1}}}
stages:
  first: {}
  second:
    tune: {vision_encoder: {mode: last_n, last_n: 1}}
"""


def command(root: Path, workers: int, epochs: int) -> list[str]:
    (root / "conf" / "recipe").mkdir(parents=True)
    (root / "conf" / "recipe" / "killed.yaml").write_text(RECIPE, encoding="utf-8")
    return arguments(
        "train",
        "recipe=killed",
        f"head.model={root / 'lm'}",
        f"data.base_dir={root / 'data'}",
        f"data.num_workers={workers}",
        f"train.epochs={epochs}",
        "--config-dir",
        str(root / "conf"),
    )


def contents(run: Path) -> tuple[list[dict[str, object]], dict[str, bytes]]:
    """Losses without the clock, and every tensor file of whole checkpoints."""
    rows = [json.loads(line) for path in sorted(run.glob("*/metrics.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    files = [
        path for path in sorted(run.rglob("*.safetensors")) if not any(part.endswith((".previous", ".writing")) for part in path.parts)
    ]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows], {
        str(path.relative_to(run)): path.read_bytes() for path in files
    }


def phase(run_root: Path) -> str:
    """Where the last kill fell, read off what it left behind."""
    if list(run_root.glob("*/*/*/*.writing")):
        return "in a save"
    runs = list(run_root.glob("*/*/run.json"))
    if not runs:
        return "before the run folder"
    stages = json.loads(runs[0].read_text(encoding="utf-8"))["stages"]
    return (
        "no stage yet" if not stages else f"in {list(stages)[-1]}" if list(stages.values())[-1]["status"] == "running" else "between stages"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=150, help="of each of the two stages: enough that the kills find the run alive")
    parser.add_argument("--longest", type=float, default=9.0, help="seconds that a process may live at most")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="kill_resume_"))
    tiny.language_model(root / "lm", "llama")
    tiny.shapes(root / "data", {"train": 21, "val": 5, "test": 6})
    words = command(root, options.workers, options.epochs)
    started = time.monotonic()
    subprocess.run([*words, f"run_root={root / 'whole'}", "--quiet"], env=environment(), check=True, stdout=subprocess.DEVNULL)
    length = time.monotonic() - started
    print(f"left alone: {length:.1f} s")
    chance, phases, kills, finished = random.Random(options.seed), Counter[str](), 0, False
    while not finished:
        process = subprocess.Popen(
            [*words, f"run_root={root / 'killed'}"],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=chance.uniform(0, options.longest) if kills < options.kills else None)
            finished = process.returncode == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            phases[phase(root / "killed")] += 1
    if kills < options.kills:
        print(f"the run ended after {kills} kills: raise --epochs")
    whole, killed = contents(next((root / "whole").glob("*/*"))), contents(next((root / "killed").glob("*/*")))
    print(f"{kills} kills: {dict(phases)}")
    print(f"losses equal: {whole[0] == killed[0]} ({len(whole[0])} rows)")
    print(f"tensor files equal: {whole[1] == killed[1]} ({len(whole[1])} files, {sum(map(len, whole[1].values())):,} bytes)")
    sys.exit(0 if whole == killed else 1)


if __name__ == "__main__":
    main()
