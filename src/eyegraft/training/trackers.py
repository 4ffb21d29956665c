"""Where metrics go: always `metrics.jsonl`, and TensorBoard or Weights & Biases when the recipe says so. The same of sampled texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from eyegraft.config import Recipe
from eyegraft.errors import PartError
from eyegraft.files import disk_errors, write_atomically

Row = Mapping[str, Any]


class MetricsFile:
    """One JSON object a line. On resume, lines that lie beyond the checkpoint are dropped, because their steps will be run again."""

    def __init__(self, path: Path, keep_rows: int) -> None:
        self.path, self.rows = path, 0
        lines = path.read_text(encoding="utf-8").splitlines()[:keep_rows] if path.exists() else []
        self.rows = len(lines)
        write_atomically(path, "".join(f"{line}\n" for line in lines))

    def __call__(self, row: Row) -> None:
        with disk_errors(self.path), self.path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows += 1


@contextmanager
def open_trackers(recipe: Recipe, run: Path, stage: str) -> Iterator[list[Callable[[Row], None]]]:
    """A function a tracker that the recipe asks for, each taking the rows of `metrics.jsonl`, and rows of kind `samples` whose `texts` are
    those of `samples.jsonl`; closed with the stage."""
    with ExitStack() as closing:
        trackers: list[Callable[[Row], None]] = []
        if recipe.trackers.tensorboard:
            trackers.append(_tensorboard(run / stage / "tensorboard", closing))
        if recipe.trackers.wandb is not None:
            trackers.append(_wandb(recipe, run, stage, closing))
        yield trackers


def _numbers(row: Row) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if isinstance(value, int | float) and key not in ("step", "epoch")}


def _texts(row: Row) -> dict[str, list[Row]]:
    """Task -> its sampled texts."""
    found: dict[str, list[Row]] = {}
    for text in row.get("texts", ()):
        found.setdefault(text["task"], []).append(text)
    return found


def _as_markdown(texts: Sequence[Row]) -> str:
    """Each text and its reference as blocks of code, which nothing in them can end."""
    blocks = []
    for text in texts:
        blocks += [f"    {line}" for line in f"{text['id']}: {text['prompt']}".splitlines()] + ["", "answer:", ""]
        blocks += [f"    {line}" for line in str(text["answer"]).splitlines()] + ["", "reference:", ""]
        blocks += [f"    {line}" for line in str(text["reference"]).splitlines()] + ["", "---", ""]
    return "\n".join(blocks)


def _tensorboard(folder: Path, closing: ExitStack) -> Callable[[Row], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PartError(
            "trackers.tensorboard=true, but tensorboard is not installed", "the extra `tensorboard`", "pip install 'eyegraft[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(folder))
    closing.callback(writer.close)

    def track(row: Row) -> None:
        for key, value in _numbers(row).items():
            writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])
        for task, texts in _texts(row).items():
            writer.add_text(f"samples/{task}", _as_markdown(texts), row["step"])
        writer.flush()

    return track


def _wandb(recipe: Recipe, run: Path, stage: str, closing: ExitStack) -> Callable[[Row], None]:
    try:
        import wandb
    except ImportError as error:
        raise PartError(
            "trackers.wandb is set, but wandb is not installed", "the extra `wandb`", "pip install 'eyegraft[wandb]'"
        ) from error
    options = {"project": recipe.experiment_name, "name": f"{run.name}-{stage}", **(recipe.trackers.wandb or {})}
    session = wandb.init(dir=str(run), config=recipe.plain(), resume="allow", id=f"{run.name}-{stage}", **options)
    closing.callback(session.finish)

    def track(row: Row) -> None:
        columns = ["id", "prompt", "answer", "reference"]
        tables = {
            f"samples/{task}": wandb.Table(columns=columns, data=[[str(text[column]) for column in columns] for text in texts])
            for task, texts in _texts(row).items()
        }
        session.log({**{f"{row['kind']}/{key}": value for key, value in _numbers(row).items()}, **tables}, step=row["step"])

    return track
