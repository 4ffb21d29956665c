"""A picture, words or both to labels: yes or no, one of several classes, or any number of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from eyegraft.config import Strict
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError, nearest, shown
from eyegraft.metrics import classification
from eyegraft.types import Batch, Sample, Scores, Tokens

_YES = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
_NONE = "none"
"""How a row says that it has none of several labels: an empty cell is one that somebody forgot."""


def _named(value: Any) -> Any:
    """YAML reads the names true and false as booleans."""
    return str(value).lower() if isinstance(value, bool) else value


class Config(Strict):
    """Attributes:
    classes: names of the classes, in order. Empty: yes or no, with the labels true, false, 1 and 0 in any case.
    multi_label: a sample may have several of the classes, or none of them, which its row says by the label `none`.
    threshold: what a probability must reach to count as yes: a number, or, for yes or no, the one that is best for `f1` or `accuracy` on
        validation. Validation during training counts with 0.5 then.
    """

    classes: tuple[Annotated[str, Field(coerce_numbers_to_str=True), BeforeValidator(_named)], ...] = ()
    multi_label: bool = False
    threshold: float | Literal["f1", "accuracy"] = 0.5

    @model_validator(mode="after")
    def _sensible(self) -> Config:
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={list(self.classes)}: two or more different names, or none for yes or no")
        if self.multi_label and not self.classes:
            raise ValueError("multi_label=true without classes: name them")
        if isinstance(self.threshold, float) and not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: a probability between 0 and 1, f1 or accuracy")
        if self.exclusive and self.threshold != 0.5:
            raise ValueError("threshold of one class among several: the most probable one is taken")
        if self.multi_label and isinstance(self.threshold, str):
            raise ValueError(f"threshold={self.threshold} with multi_label: a number, validation chooses one for yes or no alone")
        return self

    @property
    def exclusive(self) -> bool:
        """One class of several."""
        return len(self.classes) > 1 and not self.multi_label


class ClassifyTask:
    prompt = ""
    num_neighbours = 10
    reads_logits = True

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config
        self.objectives = ("softmax",) if config.exclusive else ("bce", "focal")
        self.decision: dict[str, Any] = {}
        self.learned: dict[str, Any] = {}
        self.directions = self._directions()

    def _directions(self) -> dict[str, bool]:
        """Asked of the metrics themselves, on two samples."""
        names = self.config.classes or ("false", "true")
        rows = [Sample(name, None, references=(name,)) for name in names]
        scores = self.score([self.prior(rows)] * len(rows), rows)
        return {name: scores.higher_is_better.get(name, True) for name in scores.corpus}

    @property
    def decoding(self) -> dict[str, Any]:
        return {"classes": list(self.config.classes) or ["false", "true"], "threshold": self.threshold, "do_sample": False}

    @property
    def threshold(self) -> float:
        """What a probability must reach to count as yes."""
        wanted = self.config.threshold
        return wanted if isinstance(wanted, float) else float(self.decision.get("thresholds", {}).get(wanted, 0.5))

    # ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        return Encoded(target=self._target(sample) if learn else (math.nan,) * num_outputs(self.config))

    def _target(self, sample: Sample) -> tuple[float, ...]:
        names, classes = sample.references, self.config.classes
        if not classes:
            if len(names) != 1 or names[0].strip().casefold() not in _YES:
                raise self._no_label(sample, "true, false, 1 or 0, in any case", "")
            return (_YES[names[0].strip().casefold()],)
        if self.config.multi_label and names == (_NONE,) and _NONE not in classes:
            return (0.0,) * len(classes)
        unknown = [name for name in names if name not in classes]
        if unknown or not names or (len(names) > 1 and not self.config.multi_label):
            expected = (
                f"some of {shown(list(classes), 12)}, or {_NONE}" if self.config.multi_label else f"one of {shown(list(classes), 12)}"
            )
            raise self._no_label(sample, expected, nearest(unknown[0], classes) if unknown else "")
        return tuple(float(name in names) for name in classes)

    def _no_label(self, sample: Sample, expected: str, hint: str) -> DataError:
        given = ", ".join(repr(name) for name in sample.references) or "nothing"
        return DataError(f"sample {sample.id}: label {given}", expected, hint or f"mend the cell, or tasks.{self.name}.classes")

    def check(self, samples: Sequence[Sample], split: str) -> None:
        kinds: set[tuple[float, ...]] = set()
        faults: list[DataError] = []
        for sample in samples:
            try:
                kinds.add(self._target(sample))
            except DataError as error:
                faults.append(error)
        if faults:
            given = f"split {split}: {len(faults)} of {len(samples)} rows have no usable label:"
            raise DataError(given + "".join(f"\n  {fault.given}" for fault in faults), faults[0].expected, faults[0].fix)
        chooses = split == "val" and isinstance(self.config.threshold, str)
        if len(kinds) < 2 and (split == "train" or chooses):
            tally = Counter(", ".join(sample.references) for sample in samples)
            only = ", ".join(f"{count} of {name!r}" for name, count in tally.most_common()) or "it has no samples"
            why = f" to choose tasks.{self.name}.threshold={self.config.threshold} by" if chooses else ""
            fix = f"another split, or a number for tasks.{self.name}.threshold" if chooses else "check data.columns.references"
            raise DataError(f"split {split}: one class only ({only})", f"samples of two classes or more{why}", fix)

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, logits: Tensor) -> list[dict[str, Any]]:
        """Logits [B, K] -> an answer a sample. Probabilities are calibrated by the temperature that validation chose, where it did."""
        raw = logits.detach().cpu().double()  # in float32 all logits above 17 would be the same probability of 1
        scaled = raw / float(self.decision.get("temperature", 1.0))
        probabilities = scaled.softmax(-1) if self.config.exclusive else scaled.sigmoid()
        return [self._answer(row, logit) for row, logit in zip(probabilities.tolist(), raw.tolist(), strict=True)]

    def _answer(self, probabilities: Sequence[float], logits: Sequence[float] | None = None) -> dict[str, Any]:
        classes = self.config.classes
        answer: dict[str, Any] = {"label": self._label(probabilities)}
        if classes:
            answer["probabilities"] = dict(zip(classes, probabilities, strict=True))
        else:
            answer["probability"] = probabilities[0]
        if logits is not None:
            answer["logits"] = list(logits)
        return answer

    def _label(self, probabilities: Sequence[float]) -> Any:
        classes = self.config.classes
        if self.config.exclusive:
            return classes[int(np.argmax(probabilities))]
        if classes:
            return [name for name, probability in zip(classes, probabilities, strict=True) if probability >= self.threshold]
        return "true" if probabilities[0] >= self.threshold else "false"

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[dict[str, Any]]:
        logits, _ = head(tokens, batch)
        answers = self.read(logits)
        if tokens.weights is None:
            return answers
        shares = {modality: share.float().cpu().tolist() for modality, share in tokens.weights.items()}
        return [{**answer, "weights": {name: share[row] for name, share in shares.items()}} for row, answer in enumerate(answers)]

    def settle(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        """Threshold and temperature by validation: {thresholds: {f1, accuracy}, temperature}. A temperature where labels are exclusive or
        yes and no; thresholds for yes and no.
        """
        logits = np.array([answer["logits"] for answer in answers])  # [N, K]
        targets = self._targets(samples)
        if self.config.multi_label or len({tuple(row) for row in targets}) < 2:
            return {}
        wanted: NDArray[Any] = targets.argmax(1) if self.config.exclusive else targets[:, 0]
        temperature = classification.fit_temperature(logits if self.config.exclusive else logits[:, 0], wanted)
        if self.config.exclusive:
            return {"temperature": temperature}
        probabilities = torch.from_numpy(logits[:, 0] / temperature).sigmoid().numpy()
        return {"temperature": temperature, "thresholds": classification.best_thresholds(probabilities, wanted)}

    def prior(self, train: Sequence[Sample]) -> dict[str, Any]:
        return self._answer(np.mean(self._targets(train), axis=0).tolist())

    def from_neighbours(self, neighbours: Sequence[Sample]) -> dict[str, Any]:
        return self.prior(neighbours)

    def score(self, answers: Sequence[Any], samples: Sequence[Sample]) -> Scores:
        targets = self._targets(samples)
        if not self.config.classes:
            probabilities = np.array([answer["probability"] for answer in answers])
            return classification.score_binary(probabilities, targets[:, 0], self.threshold)
        rows = np.array([[answer["probabilities"][name] for name in self.config.classes] for answer in answers])  # [N, K]
        if self.config.exclusive:
            return classification.score_multi_class(rows, targets.argmax(1), self.config.classes)
        return classification.score_multi_label(rows, targets, self.config.classes, np.full(len(self.config.classes), self.threshold))

    def details(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        if self.config.classes:
            return {}
        targets = self._targets(samples)[:, 0]
        probabilities = np.array([answer["probability"] for answer in answers])
        raw = torch.tensor([answer["logits"][0] for answer in answers], dtype=torch.float64).sigmoid().numpy()
        chosen = {
            wanted: {"threshold": value, **self._at(probabilities, targets, value)}
            for wanted, value in self.decision.get("thresholds", {}).items()
        }
        return {
            "threshold": self.threshold,
            "threshold_by": self.config.threshold,
            "confusion": classification.confusion(probabilities, targets, self.threshold),
            "chosen_on_validation": chosen,
            "calibration": {
                "temperature": self.decision.get("temperature", 1.0),
                "ece": classification.ece(probabilities, targets),
                "ece_before": classification.ece(raw, targets),
                "reliability": classification.reliability(probabilities, targets),
                "reliability_before": classification.reliability(raw, targets),
            },
        }

    def _at(self, probabilities: NDArray[Any], targets: NDArray[Any], threshold: float) -> dict[str, Any]:
        corpus = classification.score_binary(probabilities, targets, threshold).corpus
        names = ("accuracy", "precision", "recall", "f1")
        return {**{name: corpus[name] for name in names}, **classification.confusion(probabilities, targets, threshold)}

    def truth(self, sample: Sample) -> Any:
        """What `label` of the right answer is."""
        target = self._target(sample)
        if self.config.multi_label:
            return [name for name, there in zip(self.config.classes, target, strict=True) if there]
        return self._label(target)

    def _targets(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """[N, K]"""
        return np.array([self._target(sample) for sample in samples], dtype=np.float64)


def num_outputs(config: Config) -> int:
    return len(config.classes) or 1


def build(name: str, config: Config) -> ClassifyTask:
    return ClassifyTask(name, config)
