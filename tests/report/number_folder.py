"""A synthetic run of a task of numbers on satellite patches: a real patch store, the real task and metrics, invented weather and answers."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eyegraft.config import PATCH_SLICES
from eyegraft.data.patch_chunks import CHANNELS, fields
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.patch_store import PatchStore, Schema
from eyegraft.data.patch_writer import write_shards
from eyegraft.evaluation.conclusions import against_each
from eyegraft.evaluation.drawing import Drawing, _stations
from eyegraft.evaluation.run import _sample_lines, _slices
from eyegraft.sensors import GK2A_AMI
from eyegraft.tasks.regress import Config, RegressTask

_spec = importlib.util.spec_from_file_location("report_number_run_folder", Path(__file__).with_name("run_folder.py"))
assert _spec is not None
assert _spec.loader is not None
folders = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = folders
_spec.loader.exec_module(folders)

INJECTION = folders.INJECTION
NUM_STATIONS = 48
SPOILT = 7
"""The station whose answers are far too warm."""


def make_number_run(folder: Path, num_rows: int = 600, val: bool = True, **config: Any) -> Path:
    """A finished run with the splits `test_new_station` and, unless it is left out, `val`, which gives the intervals."""
    folders.make_run(folder, num_samples=1, recipe="gk2a_temperature", title="Air temperature from GK-2A", experiment="patches")
    for path in (folder / "evaluation").iterdir():
        path.unlink()
    task = RegressTask("temperature", Config(target="ta", unit="K", **config))
    train = store(folder, "train", 200, 1)
    task.learned = task.learn(train)
    rows = store(folder, "val", 400, 2)
    task.decision = task.settle(answers(task, rows, 2), rows)
    if val:
        add_evaluation(folder, "val", task, rows, 2)
    add_evaluation(folder, "test_new_station", task, store(folder, "test_new_station", num_rows, 3), 3)
    return folder


def store(folder: Path, split: str, num_rows: int, seed: int) -> PatchRows:
    path = folder.parent / f"{folder.name}-patches" / split
    facts = {
        "sensor": GK2A_AMI.model_dump(mode="json"),
        "channels": list(CHANNELS),
        "extra": ["sza", "dem", "lsmask"],
        "target": {"name": "ta", "unit": "K"},
        "simulated": True,
        "stations": {"101": "춘천", "107": INJECTION, "112": "a station with a rather long name"},
    }
    write_shards(path, Schema(fields=fields(), split=split, facts=facts), [[num_rows, seed]], partial(_weather))
    return PatchRows(PatchStore(path))


def _weather(job: list[int]) -> tuple[dict[str, Any], dict[str, int]]:
    """Patches over Korea: ground that follows season, hour and height, clouds that hide it."""
    count, seed = job
    draw = np.random.default_rng(seed)
    places = np.random.default_rng(0)
    lats, lons = places.uniform(34.6, 38.4, NUM_STATIONS), places.uniform(126.6, 129.2, NUM_STATIONS)
    heights = np.abs(places.normal(0, 260, NUM_STATIONS)).round()
    station = draw.integers(0, NUM_STATIONS, count)
    hours = draw.integers(0, 365 * 24, count)
    day, hour = hours / 24, (hours % 24) + 9
    sza = np.clip(90 - 62 * np.cos((hour - 13) / 24 * 2 * np.pi), 15, 165)
    height = heights[station]
    truth = 285 - 13 * np.cos((day - 20) / 365 * 2 * np.pi) + 4.5 * np.cos((hour - 15) / 24 * 2 * np.pi) - 0.0062 * height
    truth += draw.normal(0, 2.4, count)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)))  # [2, 9, 9]
    slope = draw.normal(0, 1.3, (count, 2))
    texture = np.einsum("nc,chw->nhw", slope, grid) + draw.normal(0, 0.5, (count, 9, 9))
    edge = np.einsum("nc,chw->nhw", draw.normal(0, 1.5, (count, 2)), grid) + draw.normal(-1, 1.3, count)[:, None, None]
    cloud = 1 / (1 + np.exp(-4 * edge))
    light = np.clip(np.cos(np.radians(sza)), 0, 1)[:, None, None]
    x = np.zeros((count, len(CHANNELS), 9, 9))
    for band in range(10):
        x[:, band] = truth[:, None, None] + texture - 0.4 * band - cloud * (38 + 2 * band)
    for band in range(6):
        x[:, 10 + band] = light * (0.07 + 0.02 * (5 - band) + 0.02 * texture.clip(0) + 0.62 * cloud)
    x[:, 16], x[:, 17] = sza[:, None, None], np.clip(height[:, None, None] + 30 * texture, 0, None)
    x[:, 17, 4, 4], x[:, 18] = height, 1
    x[::17, :16, 0, :3] = np.nan
    columns = {
        "x": x,
        "time7": np.zeros((count, 7)),
        "loc": np.stack([lats[station], lons[station], np.full(count, 2000.0)], axis=1),
        "landcover": np.array([12, 13, 4, 5, 10, 0])[station % 6],
        "y": truth,
        "timestamp": 1_704_067_200 + hours * 3600,
        "stn": 100 + station,
        "pixel": np.stack([station, station], axis=1),
    }
    return {name: columns[name].astype(field.on_disk) for name, field in fields().items()}, {}


def answers(task: RegressTask, rows: PatchRows, seed: int, noise: float = 1.5) -> list[dict[str, Any]]:
    """The truth, drawn towards the mean, with errors that grow under cloud and a station that is too warm."""
    draw = np.random.default_rng(seed)
    cold = np.clip(rows.targets - rows.centre()[:, 6], 0, None)
    found = rows.targets + 0.08 * (285 - rows.targets) + draw.normal(0, noise, len(rows)) * (0.7 + cold / 40)
    found += 3.1 * (rows.store.read(rows.rows, ["stn"])["stn"] == 100 + SPOILT)
    spread = noise * (0.7 + cold / 40) if task.config.distribution == "gaussian" else [None] * len(rows)
    return [task._answer(float(value), None if std is None else float(std)) for value, std in zip(found, spread, strict=True)]


def add_evaluation(folder: Path, split: str, task: RegressTask, rows: PatchRows, seed: int) -> None:
    draw = np.random.default_rng(seed + 100)

    def plain(values: Any) -> list[dict[str, Any]]:
        return [{"value": float(value), "unit": "K", "std": None, "interval": None} for value in values]

    by_course = 285 + 0.72 * (rows.targets - 285) + draw.normal(0, 2.6, len(rows))
    given = {
        "model": answers(task, rows, seed),
        "blank_image": plain(by_course + draw.normal(0, 2, len(rows))),
        "shuffled_image": plain(by_course + draw.normal(0, 4, len(rows))),
        "absent_context": plain(rows.targets + draw.normal(0, 2.4, len(rows))),
        "most_frequent": [task.prior(rows)] * len(rows),
        "climatology": plain(by_course),
        "elevation_linear": plain(by_course + draw.normal(0, 1.2, len(rows))),
        "boosting": plain(rows.targets + draw.normal(0.1, 2.1, len(rows))),
    }
    scored = {system: task.score(said, rows) for system, said in given.items()}
    groups, unit = _stations(rows)
    drawing = Drawing(len(rows), groups, unit, 60, 0)
    systems = {system: drawing.table(scores) for system, scores in scored.items()}
    differences = {system: drawing.differences(scored["model"], scores) for system, scores in scored.items() if system != "model"}
    directions = {name: None if name in scored["model"].undirected else scored["model"].higher_is_better[name] for name in systems["model"]}
    entry = folders.evaluation_entry(split, len(rows)) | {
        "task": task.name,
        "held_out": "stations that training did not see",
        "prompt": "",
        "decoding": task.decoding,
        "decision": task.decision,
        "signature": dict(scored["model"].signature),
        "higher_is_better": directions,
        "resampled": drawing.unit,
        "systems": systems,
        "differences": differences,
        "slices": _slices(PATCH_SLICES, task, given, rows, drawing),
        "details": task.details(given["model"], rows),
        "conclusions": against_each(systems, differences, directions, len(rows)),
        "simulated": True,
        "noise_floor": 0.85,
    }
    folders.write_json(folder / "evaluation" / f"{split}.json", entry)
    text = "".join(_sample_lines(rows, given, scored["model"], drawing))
    (folder / "evaluation" / f"{split}.samples.jsonl").write_text(text, encoding="utf-8")
