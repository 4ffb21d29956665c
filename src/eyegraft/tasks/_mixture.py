"""Several tasks learned at once are a task: each sample is asked and answered by its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from eyegraft.data.text import Encoded
from eyegraft.errors import RecipeError, shown
from eyegraft.tasks import Task
from eyegraft.types import Batch, Sample, Scores, Tokens


class Mixture:
    """Args:
    tasks: name -> task, of those that the stage learns. They share an objective, and all of them write texts.

    Raises:
        RecipeError: they do not.
    """

    reads_logits = False
    num_neighbours = 1
    prompt = ""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = dict(tasks)
        self.name = "+".join(tasks)
        first = next(iter(tasks.values()))
        self.objectives = tuple(kind for kind in first.objectives if all(kind in task.objectives for task in tasks.values()))
        if not self.objectives:
            losses = ", ".join(f"{name}: {'/'.join(task.objectives)}" for name, task in tasks.items())
            raise RecipeError(f"tasks learned at once that share no objective ({losses})", "one that all have", "give them a stage each")
        others = [name for name, task in tasks.items() if task.reads_logits]
        if others:
            raise RecipeError(
                f"tasks {shown(others)} among several, which write no text", "tasks that write texts", "give them a stage each"
            )
        self.directions: Mapping[str, bool] = {
            f"{name}_{metric}": higher for name, task in tasks.items() for metric, higher in task.directions.items()
        }
        self.decoding: dict[str, Any] = {name: task.decoding for name, task in tasks.items()}
        self.decision: Mapping[str, Any] = {}
        self._learned: Mapping[str, Any] = {}

    @property
    def learned(self) -> Mapping[str, Any]:
        return self._learned

    @learned.setter
    def learned(self, found: Mapping[str, Any]) -> None:
        self._learned = found
        for name, task in self.tasks.items():
            task.learned = found.get(name, {})

    def places(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """Task -> where its samples are."""
        found: dict[str, list[int]] = {name: [] for name in self.tasks}
        for place, sample in enumerate(samples):
            found[str(sample.task)].append(place)
        return {name: places for name, places in found.items() if places}

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        learned = {name: self.tasks[name].learn([train[place] for place in places]) for name, places in self.places(train).items()}
        return {name: found for name, found in learned.items() if found}

    def check(self, samples: Sequence[Sample], split: str) -> None:
        for name, places in self.places(samples).items():
            self.tasks[name].check([samples[place] for place in places], split)

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        return self.tasks[str(sample.task)].encode(sample, tokenizer, learn=learn)

    def read(self, logits: Tensor) -> list[Any]:
        raise NotImplementedError("texts are generated, token by token")

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[Any]:
        answers: list[Any] = [None] * len(batch)
        for name, places in self.places(batch.samples).items():
            part = self.tasks[name].answer(head, tokens.take(places), batch.take(places))
            for place, answer in zip(places, part, strict=True):
                answers[place] = answer
        return answers

    def settle(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def prior(self, train: Sequence[Sample]) -> Any:
        """Of the first task: a mixture is never scored as one."""
        name, places = next(iter(self.places(train).items()))
        return self.tasks[name].prior([train[place] for place in places])

    def from_neighbours(self, neighbours: Sequence[Sample]) -> Any:
        return self.tasks[str(neighbours[0].task)].from_neighbours(neighbours)

    def truth(self, sample: Sample) -> Any:
        return self.tasks[str(sample.task)].truth(sample)

    def score(self, answers: Sequence[Any], samples: Sequence[Sample]) -> Scores:
        """The corpus values of every task, as validation watches them: `TASK_METRIC`."""
        corpus: dict[str, float] = {}
        for name, places in self.places(samples).items():
            scores = self.tasks[name].score([answers[place] for place in places], [samples[place] for place in places])
            corpus |= {f"{name}_{metric}": value for metric, value in scores.corpus.items()}
        return Scores(corpus, {}, {})

    def details(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}


def each_task(task: Task) -> dict[str, Task]:
    """The tasks of a mixture by name, or the one task."""
    return task.tasks if isinstance(task, Mixture) else {task.name: task}
