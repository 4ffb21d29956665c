"""What a script behind the run reads: `results.json` and `<split>_predictions.json` in the run folder, flat and without intervals."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eyegraft.files import write_atomically
from eyegraft.tasks import Task
from eyegraft.training.runs import Run
from eyegraft.types import Sample

log = logging.getLogger(__name__)


def write_outputs(run: Run, task: Task, name: str, result: Mapping[str, Any], answers: Sequence[Any], samples: Sequence[Sample]) -> None:
    """Write the model's answers, and add a split's numbers to `results.json`: `test` at the top level, other splits under `splits`."""
    rows = [_prediction(sample, task.truth(sample), answer) for sample, answer in zip(samples, answers, strict=True)]
    write_atomically(run.folder / f"{name}_predictions.json", json.dumps(rows, indent=1, ensure_ascii=False))
    place = run.folder / "results.json"
    before, numbers = _written(place), _numbers(run, result)
    others = before.pop("splits", {})
    if name == "test":
        before = numbers
    else:
        others = {**others, name: numbers}
    write_atomically(place, json.dumps({**before, **({"splits": others} if others else {})}, indent=1, ensure_ascii=False))


def _written(place: Path) -> dict[str, Any]:
    """What `results.json` holds so far; nothing where it is damaged, for every number in it also stands in `evaluation/`."""
    if not place.exists():
        return {}
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("splits", {}), dict):
            return found
    except ValueError:
        pass
    log.warning("%s is damaged and is begun anew: evaluate the other splits again to have them in it", place)
    return {}


def _numbers(run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """One flat table: what was run, its metrics, the confusion table, and the thresholds that validation chose with the metrics there."""
    details = result["details"]
    values = {metric: entry["value"] for metric, entry in result["systems"]["model"].items()}
    loss = next((name for name in ("log_loss", "mse_norm") if name in values), None)
    flat: dict[str, Any] = {
        "experiment": run.recipe.experiment_name,
        "best_epoch": result["checkpoint"]["epoch"],
        "num_samples": result["num_samples"],
        **({"loss": values[loss]} if loss is not None else {}),
        **values,
        **details.get("confusion", {}),
    }
    for wanted, at in details.get("chosen_on_validation", {}).items():
        flat[f"best_threshold_{wanted}"] = at["threshold"]
        flat |= {f"{metric}_at_best_{wanted}": value for metric, value in at.items() if metric != "threshold"}
    if "temperature" in result["decision"]:
        flat["temperature"] = result["decision"]["temperature"]
    return flat


def _prediction(sample: Sample, truth: Any, answer: Any) -> dict[str, Any]:
    """{path, gt, pred, prob, …} of a label task, gt in the words of pred; {path, gt, pred} of a text; {path, gt, pred, unit, std, low,
    high} of a number, low and high None where it has no interval. A patch's path is its store, followed by record, station, time, lat, lon.
    """
    row: dict[str, Any] = {"id": sample.id, "path": str(sample.image) if sample.image is not None else None}
    if sample.record is not None:
        row |= {"record": sample.record, **{name: sample.meta.get(name) for name in ("station", "time", "lat", "lon")}}
    row["gt"] = truth
    if not isinstance(answer, Mapping):
        return {**row, "pred": answer}
    names: dict[str, str] = {"label": "pred", "answer": "pred", "value": "pred", "probability": "prob", "probabilities": "probs"}
    said = {names.get(str(key), str(key)): value for key, value in answer.items() if key != "interval"}
    if "interval" in answer:
        said["low"], said["high"] = answer["interval"] or (None, None)
    return {**row, **said}
