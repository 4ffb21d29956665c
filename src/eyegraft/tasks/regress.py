"""A picture, words or both to a number in the user's unit, with an interval that validation has measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from eyegraft.config import Strict
from eyegraft.data.patch_rows import PatchRows
from eyegraft.data.text import Encoded, Targets
from eyegraft.errors import DataError
from eyegraft.metrics import regression
from eyegraft.metrics._conformal import conformal_quantile, least
from eyegraft.objectives.gaussian_nll import mean_and_log_variance
from eyegraft.types import Batch, Sample, Scores, Tokens

log = logging.getLogger(__name__)

MAX_LISTED = 50
"""Unusable rows that an error names; a column that was mixed up would otherwise print a line for each row of the table."""


class Config(Strict):
    """One number a sample. Training sees it less the mean and divided by the standard deviation of the training split.

    Attributes:
        target: what the number is called in messages.
        unit: of the numbers in the table, such as K, °C or m/s; answers and metrics have the same.
        distribution: `point` answers with a number; `gaussian` also with its standard deviation, learned by `gaussian_nll`.
        level: what share of new samples the interval beside an answer is to cover; null for no interval.
    """

    target: str = "value"
    unit: str = ""
    distribution: Literal["point", "gaussian"] = "point"
    level: Annotated[float, Field(gt=0, lt=1)] | None = 0.9


class RegressTask:
    """Answers are {"value", "unit", "std", "interval"}: std None of a point, interval None where validation gave none."""

    prompt = ""
    num_neighbours = 10
    reads_logits = True

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config
        self.objectives = ("gaussian_nll",) if config.distribution == "gaussian" else ("mse", "huber")
        self.decision: Mapping[str, Any] = {}
        self.learned: Mapping[str, Any] = {}
        self.directions = regression.score([0, 1], [0, 1], unit=config.unit, scale=1).higher_is_better

    @property
    def decoding(self) -> dict[str, Any]:
        return {**self.config.model_dump(), "do_sample": False}

    # ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        values = self._numbers(train)
        return {"mean": float(values.mean()), "std": float(values.std()), "num_samples": len(values)}

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        if not learn:
            return Encoded(target=(math.nan,))
        mean, std = self._scale()
        return Encoded(target=((self._number(sample) - mean) / std,))

    def encode_rows(self, rows: PatchRows) -> Targets:
        """`encode` of rows of a patch store, all at once."""
        mean, std = self._scale()
        return Targets(((self._numbers(rows) - mean) / std).astype(np.float32)[:, None])

    def _scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the training targets."""
        if not self.learned:
            given = f"tasks.{self.name}: mean and standard deviation of {self.config.target} are not known"
            raise DataError(given, "what the training split says", "train first; a run that was trained holds them in run.json")
        return float(self.learned["mean"]), float(self.learned["std"])

    def _number(self, sample: Sample) -> float:
        found = _finite(sample.references[0]) if len(sample.references) == 1 else None
        if found is None:
            given = ", ".join(repr(text) for text in sample.references) or "nothing"
            several = len(sample.references) > 1  # rows of one picture, put together
            fix = "set data.merge_references=false" if several else "mend the cell (with a decimal point), or leave the row out"
            raise DataError(f"sample {sample.id}: {self.config.target} is {given}", "one finite number", fix)
        return found

    def _numbers(self, samples: Sequence[Sample]) -> NDArray[np.float64]:
        """[N]; of patches without making a sample of each."""
        if isinstance(samples, PatchRows):
            values = samples.targets
            if np.isfinite(values).all():
                return values
        return np.array([self._number(sample) for sample in samples], dtype=np.float64)

    def check(self, samples: Sequence[Sample], split: str) -> None:
        values: set[float] = set()
        faults: list[DataError] = []
        count = len(samples)
        if isinstance(samples, PatchRows):
            targets = samples.targets
            values = set(targets[np.isfinite(targets)].tolist())
            samples = samples.take(np.flatnonzero(~np.isfinite(targets)))
        for sample in samples:
            try:
                values.add(self._number(sample))
            except DataError as error:
                faults.append(error)
        if faults:
            listed = "".join(f"\n  {fault.given}" for fault in faults[:MAX_LISTED])
            more = f"\n  and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
            given = f"split {split}: {len(faults)} of {count} rows have no usable number:{listed}{more}"
            raise DataError(given, faults[0].expected, faults[0].fix)
        if split == "train" and len(values) < 2:
            only = f"{count} times {min(values):g}" if values else "it has no samples"
            raise DataError(f"split train: one number only ({only})", "different numbers to learn", "check data.columns.references")

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, logits: Tensor) -> list[dict[str, Any]]:
        """Outputs [B, 1], or [B, 2] of a gaussian -> an answer a sample."""
        raw, (mean, std) = logits.detach().cpu().double(), self._scale()
        if self.config.distribution == "point":
            return [self._answer(mean + std * value) for value in raw[:, 0].tolist()]
        values, log_variances = mean_and_log_variance(raw)
        spreads = (log_variances[:, 0] / 2).exp()
        return [self._answer(mean + std * z, std * spread) for z, spread in zip(values[:, 0].tolist(), spreads.tolist(), strict=True)]

    def _answer(self, value: float, std: float | None = None) -> dict[str, Any]:
        chosen = self.decision.get("intervals")
        half = float(chosen["quantile"]) * (1.0 if std is None else std) if chosen else None
        interval = None if half is None else [value - half, value + half]
        return {"value": value, "unit": self.config.unit, "std": std, "interval": interval}

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[dict[str, Any]]:
        logits, _ = head(tokens, batch)
        answers = self.read(logits)
        if tokens.weights is None:
            return answers
        shares = {modality: share.float().cpu().tolist() for modality, share in tokens.weights.items()}
        return [{**answer, "weights": {name: share[row] for name, share in shares.items()}} for row, answer in enumerate(answers)]

    def values_of_loss(self, objective: str, loss: float) -> dict[str, float]:
        """What a training loss says in the metrics' own words: of a mean squared error its root, normalised and in the unit."""
        if objective != "mse":
            return {}
        unit = regression.unit_name(self.config.unit)
        return {"rmse_norm": math.sqrt(loss), f"rmse_{unit}" if unit else "rmse": math.sqrt(loss) * self._scale()[1]}

    def settle(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        """How wide intervals must be, by the errors on validation: {intervals: {level, quantile, num_samples}}. The quantile is in the unit
        of the target, or, of a gaussian, in predicted standard deviations. Nothing where validation is too small for the level.

        Validation has also chosen the checkpoint, so its errors are a little smaller than those of new samples.
        """
        level = self.config.level
        if level is None:
            return {}
        errors = np.abs(np.array([answer["value"] for answer in answers]) - self._numbers(samples))
        quantile = conformal_quantile(errors / np.array([answer["std"] or 1.0 for answer in answers]), level)
        if quantile is None:
            log.warning("no intervals: %d validation samples, tasks.%s.level=%g needs %d", len(samples), self.name, level, least(level))
            return {}
        return {"intervals": {"level": level, "quantile": quantile, "num_samples": len(samples)}}

    def prior(self, train: Sequence[Sample]) -> dict[str, Any]:
        return self.from_values([float(self._numbers(train).mean())])[0]

    def from_values(self, values: Sequence[float]) -> list[dict[str, Any]]:
        """Answers of numbers that came from elsewhere than a model's outputs, without intervals: nothing has measured those."""
        return [{"value": float(value), "unit": self.config.unit, "std": None, "interval": None} for value in values]

    def from_neighbours(self, neighbours: Sequence[Sample]) -> dict[str, Any]:
        return self.prior(neighbours)

    def truth(self, sample: Sample) -> float:
        return self._number(sample)

    def score(self, answers: Sequence[Any], samples: Sequence[Sample]) -> Scores:
        values = [answer["value"] for answer in answers]
        intervals = [answer["interval"] for answer in answers]
        ends = None if None in intervals else intervals
        return regression.score(values, self._numbers(samples), unit=self.config.unit, scale=self._scale()[1], intervals=ends)

    def details(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        level, intervals = self.config.level, self.decision.get("intervals")
        if intervals is not None and answers and None not in [answer["interval"] for answer in answers]:
            low, high = np.array([answer["interval"] for answer in answers]).T
            truth = self._numbers(samples)
            intervals = {**intervals, "coverage": float(((low <= truth) & (truth <= high)).mean())}
        if level is not None and intervals is None:
            intervals = {"level": level, "none_because": f"validation had fewer than {least(level)} samples"}
        found = {"target": self.config.target, "unit": self.config.unit, "training": dict(self.learned), "intervals": intervals}
        return {**found, "stations": self._by_station(answers, samples)} if isinstance(samples, PatchRows) else found

    def _by_station(self, answers: Sequence[Any], rows: PatchRows) -> list[dict[str, Any]]:
        """Station, lat, lon, n and the errors there, the station with the largest RMSE first."""
        errors = np.array([answer["value"] for answer in answers]) - self._numbers(rows)
        names, first, places = np.unique(rows.column("station").astype(str), return_index=True, return_inverse=True)
        count = np.bincount(places)

        def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(places, values) / count

        columns = {
            "station": names,
            "lat": rows.column("lat")[first].astype(np.float64),
            "lon": rows.column("lon")[first].astype(np.float64),
            "n": count,
            regression.in_unit("rmse", self.config.unit): np.sqrt(mean(errors**2)),
            regression.in_unit("bias", self.config.unit): mean(errors),
            regression.in_unit("mae", self.config.unit): mean(np.abs(errors)),
        }
        order = np.argsort(-columns[regression.in_unit("rmse", self.config.unit)], kind="stable")
        lists = [values[order].tolist() for values in columns.values()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _finite(text: str) -> float | None:
    """The number that a cell spells, None where it spells none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None  # Python alone reads 1_000 as a thousand


def num_outputs(config: Config) -> int:
    return 2 if config.distribution == "gaussian" else 1


def build(name: str, config: Config) -> RegressTask:
    return RegressTask(name, config)
