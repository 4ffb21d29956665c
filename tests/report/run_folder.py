"""A synthetic run folder with everything that makes pages break: Korean, markup, endless words, missing pictures."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from eyegraft import prepare
from eyegraft.evaluation.conclusions import against_each
from eyegraft.evaluation.drawing import Drawing
from eyegraft.evaluation.run import _sample_lines, _slices
from eyegraft.tasks.classify import ClassifyTask, Config
from eyegraft.types import Sample

DRAWINGS = Path(prepare.__file__).parent / "drawings"

INJECTION = "<script>alert('x')</script><img src=\"https://example.org/x.png\" onerror=alert(1)>"
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
KOREAN = "비가 내리는 서울의 늦은 밤 거리"
NAMES = ["snail", "watering can", "lighthouse", "paper crane", "bicycle", KOREAN, "umbrella", "teapot"]


def make_run(folder: Path, num_samples: int = 96, **changes: Any) -> Path:
    """Write a finished caption run with one stage and one evaluated split; `changes` replace keys of `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    info: dict[str, Any] = {
        "recipe": "demo",
        "title": "Name the drawing",
        "experiment": "demo",
        "created": "2026-03-14T09:26:53+00:00",
        "finished": True,
        "versions": {"eyegraft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "device": "cpu",
        "seed": 0,
        "stages": {"caption": stage_entry()},
        "data": {
            "name": "drawings",
            "about": "Small drawings of everyday things, eight hundred concepts, drawn by several hands.",
            "splits": {name: {"rows": rows, "sha256": f"{rows:x}" * 16} for name, rows in (("train", 4100), ("val", 600), ("test", 960))},
            "quarantined": {"unreadable image": 2, f"empty caption {INJECTION}": 1},
            "quarantine_file": "quarantine.jsonl",
        },
    }
    write_json(folder / "run.json", info | changes)
    (folder / "recipe.yaml").write_text(
        f"recipe: demo\nprompt: Name the thing. {KOREAN}\nnote: {INJECTION} {LONG_WORD}\n", encoding="utf-8"
    )
    add_curves(folder, "caption")
    add_evaluation(folder, "test", num_samples)
    return folder


def stage_entry(**changes: Any) -> dict[str, Any]:
    entry = {
        "status": "finished",
        "seconds": 210.3,
        "steps": 240,
        "best": {"epoch": 3, "step": 180, "metric": "val_loss", "value": 0.914},
        "trainable": [
            {"part": "vision_encoder", "mode": "frozen", "parameters": 4_652_008, "trainable": 0, "learning_rate": None},
            {"part": "connector", "mode": "full", "parameters": 1_181_952, "trainable": 1_181_952, "learning_rate": 1e-3},
            {"part": "language_model", "mode": "lora", "parameters": 134_515_008, "trainable": 460_800, "learning_rate": 2e-4},
        ],
    }
    return entry | changes


def add_curves(folder: Path, stage: str, steps: int = 240) -> None:
    rng = random.Random(stage)
    lines = []
    for step in range(1, steps + 1):
        loss = 0.8 + 2.4 * math.exp(-step / 50) + rng.gauss(0, 0.09)
        rate = 1e-3 * min(1.0, step / 24) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        lines.append(
            {"kind": "train", "epoch": step // 60, "step": step, "loss": loss, "learning_rate": rate, "tokens": 64, "seconds": step}
        )
        if step % 30 == 0:
            lines.append(
                {"kind": "val", "epoch": step // 60, "step": step, "val_loss": 0.9 + 2.1 * math.exp(-step / 55) + 6e-6 * (step - 180) ** 2}
            )
    path = folder / stage / "metrics.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def add_evaluation(folder: Path, split: str, num_samples: int = 96, **changes: Any) -> None:
    rows = [sample_row(folder, split, index) for index in range(num_samples)]
    (folder / "evaluation").mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "evaluation" / f"{split}.samples.jsonl").write_text(text, encoding="utf-8")
    write_json(folder / "evaluation" / f"{split}.json", evaluation_entry(split, num_samples) | changes)


def evaluation_entry(split: str, num_samples: int) -> dict[str, Any]:
    means = {"model": 0.604, "blank_image": 0.021, "shuffled_image": 0.035, "most_frequent": 0.042, "nearest_neighbour": 0.521}
    scale = {"exact_match": 1.0, "token_f1": 1.1, "rouge_l": 1.12, "cider": 3.1, "bleu_4": 0.4, "chrf": 1.15}
    systems = {
        system: {
            metric: {"value": mean * factor, "low": None if metric in ("bleu_4", "chrf") else (mean - 0.02) * factor,
                     "high": None if metric in ("bleu_4", "chrf") else (mean + 0.02) * factor}
            for metric, factor in scale.items()
        }
        for system, mean in means.items()
    }  # fmt: skip
    differences = {
        system: {"exact_match": {"value": 0.604 - mean, "low": 0.604 - mean - 0.06, "high": 0.604 - mean + 0.06}}
        for system, mean in means.items()
        if system != "model"
    }
    return {
        "schema": 1,
        "task": "caption",
        "split": split,
        "held_out": "unseen pictures of known concepts",
        "num_samples": num_samples,
        "data": {"name": "drawings", "about": "", "sha256": "3c0" * 20},
        "checkpoint": {"stage": "caption", "epoch": 3, "step": 180, "path": "caption/best", "sha256": "ab1" * 20},
        "seed": 0,
        "prompt": f"Name the thing. {INJECTION}",
        "decoding": {"max_new_tokens": 16, "do_sample": False},
        "signature": {"exact_match": "NFC, casefold, single spaces", "cider": "eyegraft-caption-1; CIDEr-D"},
        "versions": {"eyegraft": "0.1.0"},
        "seconds": 12.0,
        "systems": systems,
        "differences": differences,
        "conclusions": [
            "The model beats nearest-neighbour retrieval on exact match by 0.083 [0.023, 0.143].",
            f"With a blank picture it names almost nothing. {INJECTION}",
        ],
        "samples": f"{split}.samples.jsonl",
    }


def sample_row(folder: Path, split: str, index: int) -> dict[str, Any]:
    rng = random.Random(index)
    reference, right = NAMES[index % len(NAMES)], rng.random() < 0.6
    answer = reference if right else [rng.choice(NAMES), INJECTION, LONG_WORD, "", "a " + rng.choice(NAMES)][index % 5]
    image = f"images/{split}-{index}.png"
    if index % 13 != 5:  # every thirteenth picture is missing
        draw_picture(folder / image, rng)
    overlap = 1.0 if right else round(rng.random() * 0.6, 3)
    return {
        "id": f"{split}-{index:04d}",
        "image": str(folder / image) if index % 2 else image,
        "references": [reference, "second name"] if index % 4 == 0 else [reference],
        "answers": {"model": answer, "blank_image": "umbrella", "shuffled_image": rng.choice(NAMES), "nearest_neighbour": reference},
        "scores": {"exact_match": float(right), "token_f1": overlap, "rouge_l": overlap},
        "meta": {"concept": reference},
    }


def draw_picture(path: Path, rng: random.Random) -> None:
    path.parent.mkdir(exist_ok=True)
    picture = Image.new("RGB", (240, 200), (250, 248, 242))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, size = rng.randrange(180), rng.randrange(140), rng.randrange(20, 90)
        colour = tuple(rng.randrange(60, 230) for _ in range(3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)((x, y, x + size, y + size), fill=colour, outline=(40, 40, 40), width=3)
    picture.save(path)


def make_label_run(folder: Path, num_samples: int = 120, fused: bool = True, **config: Any) -> Path:
    """A finished run of a label task on the drawings: words and pictures both tell, the words more, where there are any.

    Every number is the work of the real task, metrics and intervals; only the logits are invented.

    Args:
        fused: pictures and words under a gate, or pictures alone.
        config: labels of a yes-or-no task; else the task's own: classes, multi_label, threshold.
    """
    make_run(folder, num_samples=1, recipe="ad_classifier", title="Advertisement or not", experiment="ads")
    for path in (folder / "evaluation").iterdir():
        path.unlink()
    add_label_evaluation(folder, "test", num_samples, fused, **config)
    return folder


def add_label_evaluation(
    folder: Path, split: str, num_samples: int, fused: bool = True, labels: Sequence[str] = ("True", "0"), **config: Any
) -> None:
    task = ClassifyTask("classify", Config(**config))
    val, samples = label_samples(folder, "val", 200, task), label_samples(folder, split, num_samples, task, labels)
    task.decision = task.settle(_answers(task, val, 0, "image", "text"), val)
    answers = {"model": _answers(task, samples, 1, "image", "text")}
    if fused:
        for sample, answer in zip(samples, answers["model"], strict=True):
            share = 1 / (1 + math.exp(-random.Random(sample.id).gauss(-0.5 if sample.text else 1.6, 0.5)))
            answer["weights"] = {"image": share, "text": 1 - share}
        answers["absent_image"] = _answers(task, samples, 1, "text")
        answers["absent_text"] = _answers(task, samples, 1, "image")
        answers["shuffled_text"] = _answers(task, samples, 2, "image")
    answers["blank_image"] = _answers(task, samples, 3, "text")
    answers["most_frequent"] = [task.prior(val)] * num_samples
    scored = {system: task.score(given, samples) for system, given in answers.items()}
    drawing = Drawing(num_samples, None, f"{num_samples} samples", 200, 0)
    systems = {system: drawing.table(scores) for system, scores in scored.items()}
    differences = {system: drawing.differences(scored["model"], scores) for system, scores in scored.items() if system != "model"}
    entry = evaluation_entry(split, num_samples) | {
        "task": task.name,
        "held_out": "advertisers that training did not see",
        "prompt": "",
        "decoding": task.decoding,
        "decision": task.decision,
        "signature": dict(scored["model"].signature),
        "higher_is_better": dict(scored["model"].higher_is_better),
        "resampled": drawing.unit,
        "systems": systems,
        "differences": differences,
        "slices": _slices(("hand", "channel"), task, answers, samples, drawing),
        "details": task.details(answers["model"], samples),
        "conclusions": against_each(systems, differences, scored["model"].higher_is_better, num_samples),
    }
    write_json(folder / "evaluation" / f"{split}.json", entry)
    lines = _sample_lines(samples, answers, scored["model"], drawing)
    (folder / "evaluation" / f"{split}.samples.jsonl").write_text("".join(lines), encoding="utf-8")


def label_samples(folder: Path, split: str, num_samples: int, task: ClassifyTask, labels: Sequence[str] = ("True", "0")) -> list[Sample]:
    """Real drawings with Korean names as their words; every third without words, and at fixed places all that makes pages break."""
    with (DRAWINGS / "drawings.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    samples = []
    for index in range(num_samples):
        rng, row = random.Random(f"{split}-{index}"), rows[(index * 7) % len(rows)]
        text = "" if index % 3 == 1 else f"{row['name_ko']} 특가! {rng.randrange(10, 90)}% 할인\n지금 바로 주문하세요"
        image: Path | None = DRAWINGS / "images" / "twemoji" / f"{row['codepoint']}.webp"
        if index == 2:
            text, image = f"{INJECTION} {LONG_WORD} | a *bold* claim", None
        if index == 5:
            image = folder / "광고 사진 (1) #2 & 100%.png"
            draw_picture(image, rng)
        if index == 8:
            image = folder / "missing [x](y).png"
        classes = task.config.classes
        names = (
            tuple(name for name in classes if rng.random() < 0.4) or ("none",)
            if task.config.multi_label
            else (rng.choice(classes or labels),)
        )
        meta = {"hand": ["adult", "child", ""][index % 3], "channel": "웹툰" if index % 20 == 0 else "feed"}
        samples.append(Sample(f"{split}-{index:04d}", image, references=names, text=text, meta=meta))
    return samples


def _answers(task: ClassifyTask, samples: Sequence[Sample], seed: int, *seen: str) -> list[Any]:
    """Logits from noise and the label as far as it is seen, twice as sure as they should be."""
    logits = []
    for sample, target in zip(samples, task._targets(samples).tolist(), strict=True):
        rng = random.Random(f"{sample.id}-{seed}")
        strength = 1.1 * ("image" in seen) + 1.9 * ("text" in seen and bool(sample.text))
        logits.append([2 * (strength * (value - 0.5) * 2 + rng.gauss(0, 1.4)) for value in target])
    return task.read(torch.tensor(logits))


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
