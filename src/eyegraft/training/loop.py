"""One stage of training, on Lightning Fabric. Everything random is a pure function of (seed, stage, step), so that a run that was killed at
any moment goes on to the same bits."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eyegraft.answering import answer_samples, num_tokens
from eyegraft.config import EarlyStopping, Recipe, Settings
from eyegraft.console import progress, track
from eyegraft.data.batches import Examples, batches_in_order, derived_seed, load_batches, packed
from eyegraft.errors import DataError, RecipeError, TrainingError, nearest, shown
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture
from eyegraft.training.checkpoints import checkpoints_of, save_checkpoint
from eyegraft.training.schedule import rate_factor
from eyegraft.training.trackers import MetricsFile, Row
from eyegraft.tuning import TrainablePlan, canonical, prove, set_training_mode
from eyegraft.types import Batch, Loss, Output, Sample, TokenLogits

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a stage stands: all that resuming needs besides tensors."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    window_loss: float = 0.0
    window_count: float = 0.0
    window_notes: dict[str, float] = field(default_factory=dict)
    window_tasks: dict[str, tuple[float, float]] = field(default_factory=dict)
    tokens: int = 0
    task_tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    rows: int = 0
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int = -1
    best_step: int = -1
    epochs_without_better: int = 0
    scaler: dict[str, Any] | None = None


class Sealed:
    """Carries a batch through wrappers that would otherwise take it apart."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class LossStep(nn.Module):
    """Model and objective as one module, so that precision and data parallelism wrap both.

    Args:
        packing: see `Settings.packing`. Where the objective reads the encoders alone, there are no texts to pack.

    Raises:
        RecipeError: nothing can be packed.
    """

    def __init__(self, model: Graft, objective: nn.Module, *, packing: int | None = None) -> None:
        super().__init__()
        self.reads: tuple[str, ...] = getattr(objective, "reads", ())
        packing = None if self.reads else packing
        if packing is not None and not hasattr(model.head, "learned"):
            raise RecipeError(
                f"train.packing={packing} with a {type(model.head).__name__}, which packs no texts",
                "a head around a language model",
                "set train.packing=null",
            )
        self.model, self.objective, self.packing = model, cast(Any, objective), packing
        self.image_tokens = num_tokens(model) if packing is not None else 0

    def forward(self, sealed: Sealed) -> tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]:
        """(summed losses [B], counts [B], logits of labels, notes); see `eyegraft.types.Loss`."""
        batch = self.objective.prepare(sealed.batch) if hasattr(self.objective, "prepare") else sealed.batch
        output = self._of_encoders(batch) if self.reads else self.model(batch)
        loss = self.objective(output, batch)
        if self.training:  # validation losses stay those of the objective
            loss = with_auxiliary(loss, output)
        logits = loss.sums.new_zeros(0) if isinstance(output.logits, TokenLogits) else output.logits.detach()  # nothing is read from them
        return loss.sums, loss.counts, logits, {name: values.detach() for name, values in loss.notes.items()}

    def _of_encoders(self, batch: Batch) -> Output:
        """What an objective that reads tokens is given: nothing behind the encoders is computed."""
        encoded = self.model.encode(batch, only=self.reads)
        nothing = batch.targets.new_zeros(len(batch), 0)
        return Output(encoded, encoded[self.reads[0]], nothing, nothing)

    def parts(self, batch: Batch) -> list[Batch]:
        """What of a batch goes through at once: all of it, or a row."""
        return [batch] if self.packing is None else packed(batch, self.packing, image_tokens=self.image_tokens)

    def probes(self, batch: Batch) -> list[Batch]:
        """Batches that together reach all that trains (see `Graft.probes`)."""
        return [batch] if self.reads else self.model.probes(batch)


def with_auxiliary(loss: Loss, output: Output) -> Loss:
    """The loss with what encoders that train ask for themselves (`Tokens.auxiliary`), in proportion to what each sample counts, so that
    a step adds their mean. Where a sample has several views, it is their mean."""
    for tokens in output.encoded.values():
        if tokens.auxiliary is not None and tokens.auxiliary.requires_grad:
            own = tokens.auxiliary.unflatten(0, (-1, len(loss.counts))).mean(0) * loss.counts  # [B]
            loss = Loss(loss.sums + own, loss.counts, {**loss.notes, "auxiliary_loss": own})
    return loss


@dataclass
class StageData:
    """What a stage reads.

    Attributes:
        inputs: modality -> what its encoder knows of the training split (see `eyegraft.data.inputs.learn_inputs`).
    """

    train: Examples
    val: Examples | None
    val_samples: Sequence[Sample]
    pad_id: int
    num_workers: int
    inputs: Mapping[str, Any] = field(default_factory=dict)


class StageTrainer:
    """Trains one stage from its first step, or from where `latest` stands."""

    def __init__(
        self,
        recipe: Recipe,
        stage: str,
        folder: Path,
        fabric: Any,
        model: Graft,
        objective: Any,
        task: Task,
        plan: TrainablePlan,
        data: StageData,
        trackers: Iterable[Callable[[Row], None]],
        lineage: Sequence[str],
    ) -> None:
        self.recipe, self.stage, self.folder, self.fabric = recipe, stage, folder, fabric
        self.model, self.objective, self.task, self.plan, self.data = model, objective, task, plan, data
        self.settings: Settings = recipe.stage(stage)
        self.trackers, self.lineage = list(trackers), list(lineage)
        self.at = Position()
        self.higher_is_better = watched_direction(self.settings, stage, task, data.val_samples)
        self.step_module, self.optimizer = fabric.setup(
            LossStep(model, objective, packing=self.settings.packing),
            torch.optim.AdamW([{**group} for group in plan.groups], betas=self.settings.betas),
        )
        batches = math.ceil(len(data.train) / self.settings.batch_size)
        self.steps_per_epoch = math.ceil(batches / self.settings.gradient_accumulation)
        planned = self.steps_per_epoch * self.settings.epochs
        self.total_steps = min(planned, self.settings.max_steps or planned)
        self.metrics: MetricsFile | None = None
        self._saved_at = time.monotonic()

    # ── the whole stage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, resume_from: Path | None = None) -> Position:
        """Train to the end of the stage; gives the last position.

        Raises:
            TrainingError: the plan is not what trains, or the loss is not finite.
        """
        if resume_from is not None:
            self._restore(resume_from)
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.at.rows)
        if resume_from is None:
            self._probe()
        started, before = time.monotonic(), self.at.seconds
        if resume_from is None and self.step_module.reads:
            self._before_first_step()
        with progress(f"stage {self.stage}", self.total_steps, done=self.at.step) as advance:
            while self.at.epoch < self.settings.epochs and self.at.step < self.total_steps and not self._stopped():
                self._epoch(advance, lambda: before + time.monotonic() - started)
        return self.at

    def _before_first_step(self) -> None:
        """Validate what the stage starts from: an objective that reads tokens says how they change. No best is chosen by it."""
        if getattr(self.objective, "statistics_of_batches", False) and self.settings.gradient_accumulation > 1:
            log.warning(
                "train.gradient_accumulation=%d: this objective compares the samples of one batch of %d with each other, not those of all "
                "batches of a step",
                self.settings.gradient_accumulation,
                self.settings.batch_size,
            )
        if self.data.val is not None:
            values = self._validate()
            self._write({"kind": "val", "epoch": 0, "step": 0, **values, "seconds": 0.0})
            log.info("before the first step: %s", _values(values))

    def _stopped(self) -> bool:
        patience = self.settings.early_stopping.patience
        return patience is not None and self.at.epochs_without_better >= patience

    def _epoch(self, advance: Any, clock: Callable[[], float]) -> None:
        set_training_mode(self.step_module)
        settings = self.settings
        grouped = settings.group_by_length and settings.packing is None
        order = self.data.train.order(settings.batch_size, seed=self.recipe.seed, epoch=self.at.epoch, grouped=grouped)
        seed = (self.recipe.seed, self.stage, self.at.epoch)
        loaded = load_batches(
            self.data.train, order, pad_id=self.data.pad_id, seed=seed, start=self.at.batch, num_workers=self.data.num_workers
        )
        while group := list(islice(loaded, self.settings.gradient_accumulation)):
            loss = self._step(group)
            self.at.batch += len(group)
            self.at.seconds = clock()
            advance(note=f"loss {loss:.3f}" if loss is not None else "")
            if self.at.step >= self.total_steps:
                break
            if self.at.batch < len(order) and self._time_to_save():
                self._save("latest")
        self._end_epoch(clock)

    def _step(self, group: Sequence[Batch]) -> float | None:
        """One optimiser step over a group of batches; the loss is the mean over all learned tokens of the group."""
        settings, at = self.settings, self.at
        torch.manual_seed(derived_seed("step", self.recipe.seed, self.stage, at.step))
        factor = rate_factor(settings.scheduler_type, at.step, self.total_steps, settings.warmup_ratio)
        for group_settings, planned in zip(self.optimizer.param_groups, self.plan.groups, strict=True):
            group_settings["lr"] = planned["lr"] * factor
        total = sum(float(self.objective.counts(batch).sum()) for batch in group)
        summed, notes = 0.0, dict[str, Tensor]()
        for part in (part for batch in group for part in self.step_module.parts(batch)):
            sums, counts, _, noted = self.step_module(Sealed(part.to(self.fabric.device)))
            self.fabric.backward(sums.sum() / total)
            summed += float(sums.detach().sum())
            _add_up(notes, noted)
            self._add_up_tasks(at.window_tasks, part, sums, counts)
        if not math.isfinite(summed):
            ids = [sample.id for batch in group for sample in batch.samples]
            raise TrainingError(
                f"the loss of stage {self.stage!r} is {summed} at step {at.step} (samples {shown(ids)})",
                "a finite loss",
                "lower train.learning_rate or set train.precision=32-true; the last checkpoint is whole",
            )
        if settings.max_grad_norm is not None:
            self.fabric.clip_gradients(self.step_module, self.optimizer, max_norm=settings.max_grad_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        at.step += 1
        if hasattr(self.objective, "after_step"):
            self.objective.after_step(at.step / self.total_steps, {name: value / total for name, value in notes.items()})
        at.window_loss += summed
        at.window_count += total
        for name, value in _numbers(notes).items():
            at.window_notes[name] = at.window_notes.get(name, 0.0) + value
        at.tokens += int(total)
        if at.step % settings.log_every == 0 or at.step == self.total_steps:
            return self._log_window(factor)
        return None

    def _log_window(self, factor: float) -> float:
        at = self.at
        loss = at.window_loss / at.window_count
        row = {"kind": "train", "epoch": at.epoch, "step": at.step, "loss": loss, "learning_rate": self.settings.learning_rate * factor}
        notes = {name: value / at.window_count for name, value in at.window_notes.items()}
        if hasattr(self.task, "values_of_loss"):
            notes |= self.task.values_of_loss(self.settings.objective_of(self.task.objectives[0]).kind, loss)
        for task, (_, count) in at.window_tasks.items():
            at.task_tokens[task] = at.task_tokens.get(task, 0) + int(count)
        notes |= {f"loss_{task}": summed / count for task, (summed, count) in at.window_tasks.items() if count}
        notes |= {f"tokens_{task}": count for task, count in at.task_tokens.items()}
        self._write({**row, **notes, "tokens": at.tokens, "seconds": round(at.seconds, 2)})
        at.window_loss, at.window_count, at.window_notes, at.window_tasks = 0.0, 0.0, {}, {}
        return loss

    def _add_up_tasks(self, sums: dict[str, tuple[float, float]], part: Batch, losses: Tensor, counts: Tensor) -> None:
        """Of several tasks, the loss of each apart: task -> its sum and what it was summed over."""
        if not isinstance(self.task, Mixture):
            return
        both = torch.stack([losses.detach(), counts], dim=1)  # [B, 2]
        for name, places in self.task.places(part.samples).items():
            loss, count = sums.get(name, (0.0, 0.0))
            more_loss, more_count = both[places].sum(0).tolist()
            sums[name] = (loss + more_loss, count + more_count)

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self.metrics is not None
        self.metrics(row)
        self.at.rows = self.metrics.rows
        for tracker in self.trackers:
            tracker(row)

    # ── the end of an epoch ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _end_epoch(self, clock: Callable[[], float]) -> None:
        at, rule = self.at, self.settings.early_stopping
        values = self._validate() if self.data.val is not None else {}
        at.seconds = clock()
        better, waiting = True, 0  # without a validation split the last epoch is the best known
        if values:
            if not math.isfinite(values["val_loss"]):  # no best could ever be chosen after it, and these weights are worth nothing
                raise TrainingError(
                    f"the validation loss of stage {self.stage!r} is {values['val_loss']} after step {at.step}",
                    "a finite loss",
                    "lower train.learning_rate or set train.precision=32-true; `best` holds the last good weights",
                )
            self._write({"kind": "val", "epoch": at.epoch, "step": at.step, **values, "seconds": round(at.seconds, 2)})
            value = values[rule.metric]
            better = at.best is None or (value > at.best if self.higher_is_better else value < at.best)
            waiting = 0 if better else at.epochs_without_better + 1  # a lower loss at the same value is no reason to wait longer
            if value == at.best and at.best_loss is not None:  # a small validation set ranks many epochs alike
                better = values["val_loss"] < at.best_loss
            if better:
                at.best, at.best_loss = value, values["val_loss"]
            log.info(
                "epoch %d of %d, step %d: %s%s",
                at.epoch + 1,
                self.settings.epochs,
                at.step,
                _values(values if self.step_module.reads else {name: values[name] for name in dict.fromkeys(("val_loss", rule.metric))}),
                "  best so far" if better else "",
            )
        at.epochs_without_better = waiting
        if better:
            at.best_epoch, at.best_step = at.epoch, at.step
        at.epoch, at.batch = at.epoch + 1, 0
        if better:
            self._save("best", resumable=False)
        self._save("latest")

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        assert self.data.val is not None
        self.step_module.eval()
        torch.manual_seed(derived_seed("validate", self.recipe.seed, self.stage))  # what an objective draws is the same in every epoch
        order = batches_in_order(len(self.data.val), self.settings.batch_size)
        loss = tokens = 0.0
        answers: list[Any] = []
        notes: dict[str, Tensor] = {}
        tasks: dict[str, tuple[float, float]] = {}
        batches = load_batches(self.data.val, order, pad_id=self.data.pad_id, num_workers=self.data.num_workers)
        for part in (part for batch in track(batches, "validating", len(order)) for part in self.step_module.parts(batch)):
            sums, counts, logits, noted = self.step_module(Sealed(part.to(self.fabric.device)))
            loss += float(sums.sum())
            tokens += float(counts.sum())
            _add_up(notes, noted)
            self._add_up_tasks(tasks, part, sums, counts)
            answers += self.task.read(logits) if self.task.reads_logits else []
        values = {"val_loss": loss / tokens, **{f"val_{name}": value / tokens for name, value in _numbers(notes).items()}}
        values |= {f"val_loss_{task}": summed / count for task, (summed, count) in tasks.items() if count}
        if not math.isfinite(values["val_loss"]):
            return values  # what follows from NaN cannot be scored
        if not answers and not self.settings.early_stopping.metric.startswith(
            "val_loss"
        ):  # texts cost far more than a loss: only where they decide
            size = self.recipe.evaluation.batch_size
            answers = answer_samples(
                self.model, self.task, self.data.val_samples, self.data.val.readers, batch_size=size, label="validating"
            )
        if answers:
            corpus = self.task.score(answers, self.data.val_samples).corpus
            values |= {f"val_{name}": value for name, value in corpus.items() if math.isfinite(value)}
        return values

    # ── probe, save, restore ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _probe(self) -> None:
        set_training_mode(self.step_module)
        self.model.fusion.eval()  # hides no modality by chance
        first = self.data.train.order(2, seed=self.recipe.seed, epoch=0)[0]
        first = list(dict.fromkeys([*map(int, first), *with_each_modality(self.data.train)]))
        torch.manual_seed(derived_seed("probe", self.recipe.seed, self.stage))
        for batch in load_batches(self.data.train, [first], pad_id=self.data.pad_id):
            planned = [parameter for group in self.plan.groups for parameter in group["params"]]
            parts = self.step_module.parts(batch)
            probes = [Sealed(probe.to(self.fabric.device)) for part in parts for probe in self.step_module.probes(part)]
            prove(self.step_module, self.step_module, probes, self.fabric.backward, planned)

    def _time_to_save(self) -> bool:
        every = self.settings.checkpoint_every
        return (
            every is not None and self.at.step % every == 0
        ) or time.monotonic() - self._saved_at > 60 * self.settings.checkpoint_minutes

    def _save(self, name: str, resumable: bool = True) -> None:
        at = self.at
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        at.scaler = scaler.state_dict() if scaler is not None else None
        facts = {
            "stage": self.stage,
            "step": at.step,
            "epoch": at.epoch,
            "lineage": [*self.lineage, self.stage],
            "metric": self.settings.early_stopping.metric,
            "best": at.best,
            "inputs": dict(self.data.inputs),
        }
        save_checkpoint(
            checkpoints_of(self.folder) / name,
            self.model,
            self.recipe,
            saved=self.plan.saved,
            facts=facts,
            extra_modules=with_state(self.objective),
            optimizer=self._optimizer_tensors() if resumable else None,
            trainer=asdict(at) if resumable else None,
        )
        self._saved_at = time.monotonic()

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (canonical(name), parameter)
            for planned in self.plan.groups
            for name, parameter in zip(planned["names"], planned["params"], strict=True)
        ]

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.optimizer.state
        return {
            f"{name}|{key}": value.detach().cpu().contiguous()
            for name, parameter in self._named_parameters()
            for key, value in state.get(parameter, {}).items()
        }

    def _restore(self, folder: Path) -> None:
        """Position and optimiser; the model came with its weights."""
        self.at = Position(**json.loads((folder / "trainer.json").read_text(encoding="utf-8")))
        parameters = dict(self._named_parameters())
        state = self.optimizer.optimizer.state
        for key, value in load_file(folder / "optimizer.safetensors").items():
            name, slot = key.rsplit("|", 1)
            parameter = parameters[name]
            state[parameter][slot] = value.clone() if slot == "step" else value.to(parameter.device, copy=True)  # not a view of the file
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and self.at.scaler is not None:
            scaler.load_state_dict(self.at.scaler)
        log.info("going on from %s: epoch %d, step %d", folder, self.at.epoch + 1, self.at.step)


def watched_direction(settings: Settings, stage: str, task: Task, val_samples: Sequence[Sample]) -> bool:
    """Whether the value that chooses the best checkpoint is better when higher. Asked before the first step, not after the first epoch.

    Raises:
        RecipeError: early stopping watches what validation does not give.
    """
    rule, place = settings.early_stopping, f"stages.{stage}.early_stopping"
    if not val_samples:
        if rule != EarlyStopping():
            raise RecipeError(f"{place} without validation data", "a split called val", "set data.tables.val or data.split.fractions.val")
        return False
    directions = {"val_loss": False, **{f"val_{name}": higher for name, higher in task.directions.items()}}
    if isinstance(task, Mixture):
        directions |= {f"val_loss_{name}": False for name in task.tasks}
    if rule.metric not in directions:
        raise RecipeError(f"{place}.metric={rule.metric!r}", f"one of {', '.join(directions)}", nearest(rule.metric, directions))
    if not rule.metric.startswith("val_loss"):
        scores = task.score([task.prior(val_samples)] * len(val_samples), val_samples)
        if not math.isfinite(scores.corpus[rule.metric.removeprefix("val_")]):
            raise DataError(
                f"{place}.metric={rule.metric}, which the validation split leaves undefined ({len(val_samples)} samples of one class)",
                "validation samples of two classes or more",
                "another split, or early_stopping.metric=val_loss",
            )
    return directions[rule.metric] if rule.mode == "auto" else rule.mode == "max"


def with_each_modality(examples: Examples) -> list[int]:
    """The first sample that has each modality, by position: most may lack one, and an encoder shows its gradient only where it is used."""
    found = []
    for reading in examples.readers.values():
        found += reading.present(examples.samples).nonzero().flatten()[:1].tolist()
    return found


def with_state(objective: Any) -> dict[str, nn.Module]:
    """An objective that has tensors of its own, under the name that checkpoints give it."""
    return {"objective": objective} if isinstance(objective, nn.Module) and objective.state_dict() else {}


def _add_up(sums: dict[str, Tensor], notes: Mapping[str, Tensor]) -> None:
    for name, values in notes.items():
        sums[name] = sums[name] + values.sum(0) if name in sums else values.sum(0)


def _numbers(notes: Mapping[str, Tensor]) -> dict[str, float]:
    """Those that are single numbers, and can be written into a row."""
    return {name: float(value) for name, value in notes.items() if value.ndim == 0}


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
