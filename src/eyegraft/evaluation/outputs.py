"""What a script behind the run reads: `results.json` and `<split>_predictions.json` in the run folder, flat and without intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eyegraft.files import write_atomically
from eyegraft.tasks import Task
from eyegraft.training.runs import Run
from eyegraft.types import Sample


def write_outputs(run: Run, task: Task, name: str, result: Mapping[str, Any], answers: Sequence[Any], samples: Sequence[Sample]) -> None:
    """Write the model's answers, and add a split's numbers to `results.json`: `test` at the top level, other splits by their names."""
    rows = [_prediction(sample, task.truth(sample), answer) for sample, answer in zip(samples, answers, strict=True)]
    write_atomically(run.folder / f"{name}_predictions.json", json.dumps(rows, indent=1, ensure_ascii=False))
    place = run.folder / "results.json"
    before = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    numbers = _numbers(run, result)
    after = {
        **numbers,
        **{key: value for key, value in before.items() if isinstance(value, dict) and value.get("split") not in (None, "test")},
    }
    if name != "test":
        after = {**before, name: {"split": name, **numbers}}
    write_atomically(place, json.dumps(after, indent=1, ensure_ascii=False))


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
    high} of a number, low and high None where it has no interval.
    """
    row = {"id": sample.id, "path": str(sample.image) if sample.image is not None else None, "gt": truth}
    if not isinstance(answer, Mapping):
        return {**row, "pred": answer}
    names: dict[str, str] = {"label": "pred", "value": "pred", "probability": "prob", "probabilities": "probs"}
    said = {names.get(str(key), str(key)): value for key, value in answer.items() if key != "interval"}
    if "interval" in answer:
        said["low"], said["high"] = answer["interval"] or (None, None)
    return {**row, **said}
