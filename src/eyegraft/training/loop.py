"""One stage of training, on Lightning Fabric. Everything random is a pure function of (seed, stage, step), so that a run that was killed at
any moment goes on to the same bits."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eyegraft.answering import answer_samples
from eyegraft.config import Recipe, Settings
from eyegraft.console import progress, track
from eyegraft.data.batches import Examples, batches_in_order, derived_seed, load_batches, share_of, taken
from eyegraft.errors import RecipeError, TrainingError, shown
from eyegraft.model import Graft
from eyegraft.tasks import Task
from eyegraft.tasks._mixture import Mixture
from eyegraft.training import processes
from eyegraft.training.checkpoints import checkpoints_of, save_checkpoint, with_state
from eyegraft.training.early_stopping import watched_direction
from eyegraft.training.loss_step import LossStep, Sealed
from eyegraft.training.position import Position, optimizer_tensors, restore_optimizer
from eyegraft.training.processes import own_seed
from eyegraft.training.sampled_texts import FILE, SampledTexts
from eyegraft.training.schedule import rate_factor
from eyegraft.training.stage_data import StageData, with_each_modality
from eyegraft.training.sums import Sums, add_pair, numbers
from eyegraft.training.trackers import MetricsFile, Row
from eyegraft.tuning import TrainablePlan, prove, set_training_mode
from eyegraft.types import Batch

log = logging.getLogger(__name__)


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
        self.together = processes.several() and getattr(objective, "statistics_of_batches", False)
        if self.together and hasattr(objective, "prepare"):
            given = f"objective {type(objective).__name__} in {processes.world()} processes, which changes a batch and compares its samples"
            raise RecipeError(given, "an objective that does one of both", "start one process, without torchrun")
        batches = math.ceil(len(data.train) / self.settings.batch_size)
        self.steps_per_epoch = math.ceil(batches / self.settings.gradient_accumulation)
        planned = self.steps_per_epoch * self.settings.epochs
        self.total_steps = min(planned, self.settings.max_steps or planned)
        self.metrics: MetricsFile | None = None
        self.texts: SampledTexts | None = None
        self._saved_at = time.monotonic()

    # ── the whole stage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, resume_from: Path | None = None) -> Position:
        """Train to the end of the stage; gives the last position.

        Raises:
            TrainingError: the plan is not what trains, or the loss is not finite.
        """
        if resume_from is not None:
            self._restore(resume_from)
        processes.meet()
        processes.share_tensors([*self._planned(), *self.step_module.buffers()])
        if processes.first():
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.at.rows)
            self.texts = self._sampled_texts()
        if resume_from is None:
            self._probe()
        started, before = time.monotonic(), self.at.seconds
        if resume_from is None and (self.step_module.reads or isinstance(self.task, Mixture)):
            self._before_first_step()
        with progress(f"stage {self.stage}", self.total_steps, done=self.at.step) as advance:
            while self.at.epoch < self.settings.epochs and self.at.step < self.total_steps and not self._stopped():
                self._epoch(advance, lambda: before + time.monotonic() - started)
        return self.at

    def _before_first_step(self) -> None:
        """Validate what the stage starts from: an objective that reads tokens says how they change, and of several tasks, which may go
        through their rows but once, what became better and what worse. No best is chosen by it, and no text is written for it."""
        if getattr(self.objective, "statistics_of_batches", False) and self.settings.gradient_accumulation > 1:
            log.warning(
                "train.gradient_accumulation=%d: this objective compares the samples of one batch of %d with each other, not those of all "
                "batches of a step",
                self.settings.gradient_accumulation,
                self.settings.batch_size,
            )
        if self.data.val is not None:
            values = self._validate(write_texts=False)
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
        loaded = self._shares(self.data.train, order, seed=(self.recipe.seed, self.stage, self.at.epoch), start=self.at.batch)
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

    def _shares(
        self, examples: Examples, order: Sequence[Sequence[int]], *, seed: tuple[object, ...] | None = None, start: int = 0
    ) -> Iterator[Batch | None]:
        """What this process has of each batch; None of one that is too small for all processes to have any."""
        pad_id, workers, share = self.data.pad_id, self.data.num_workers, processes.share()
        loaded = load_batches(examples, order, pad_id=pad_id, seed=seed, start=start, num_workers=workers, share=share)
        for batch in order[start:]:
            yield next(loaded) if len(share_of(batch, *share)) else None
        yield from loaded  # none; what reads ahead is closed

    def _sealed(self, batch: Batch | None) -> Iterator[Sealed]:
        """What goes through the model at once."""
        if self.together:
            yield Sealed(batch.to(self.fabric.device) if batch is not None else None, together=True)
        elif batch is not None:
            yield from (Sealed(part.to(self.fabric.device)) for part in self.step_module.parts(batch))

    def _step(self, group: Sequence[Batch | None]) -> float | None:
        """One optimiser step over a group of batches; the loss is the mean over all learned tokens of the group, of all processes."""
        settings, at = self.settings, self.at
        torch.manual_seed(derived_seed(*own_seed("step", self.recipe.seed, self.stage, at.step)))
        factor = rate_factor(settings.scheduler_type, at.step, self.total_steps, settings.warmup_ratio)
        for group_settings, planned in zip(self.optimizer.param_groups, self.plan.groups, strict=True):
            group_settings["lr"] = planned["lr"] * factor
        mine = [batch for batch in group if batch is not None]
        total = sum(processes.gathered(sum(float(self.objective.counts(batch).sum()) for batch in mine)))
        found = Sums()
        for sealed in (sealed for batch in group for sealed in self._sealed(batch)):
            sums, counts, _, notes = self.step_module(sealed)
            self.fabric.backward(sums.sum() / total)
            found.add(self.task, sealed.samples, sums, counts, notes)
        found = found.of_all(self.fabric.device)
        if not math.isfinite(found.loss):
            ids = [id for part in processes.gathered([sample.id for batch in mine for sample in batch.samples]) for id in part]
            raise TrainingError(
                f"the loss of stage {self.stage!r} is {found.loss} at step {at.step} (samples {shown(ids)})",
                "a finite loss",
                "lower train.learning_rate or set train.precision=32-true; the last checkpoint is whole",
            )
        processes.add_gradients(self._planned())
        if settings.max_grad_norm is not None:
            self.fabric.clip_gradients(self.step_module, self.optimizer, max_norm=settings.max_grad_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        at.step += 1
        if hasattr(self.objective, "after_step"):
            self.objective.after_step(at.step / self.total_steps, {name: value / total for name, value in found.notes.items()})
        at.window_loss += found.loss
        at.window_count += total
        for name, value in numbers(found.notes).items():
            at.window_notes[name] = at.window_notes.get(name, 0.0) + value
        for name, pair in found.tasks.items():
            add_pair(at.window_tasks, name, pair)
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

    def _write(self, row: Mapping[str, Any]) -> None:
        if self.metrics is None:  # another process writes
            return
        self.metrics(row)
        self.at.rows = self.metrics.rows
        for tracker in self.trackers:
            tracker(row)

    # ── the end of an epoch ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _end_epoch(self, clock: Callable[[], float]) -> None:
        at, rule = self.at, self.settings.early_stopping
        self._stop_if_apart()
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
            value = values.get(rule.metric)
            if value is None:  # whatever was answered, the metric has no value
                log.warning("%s is undefined after epoch %d: no best is chosen by it", rule.metric, at.epoch + 1)
                better = at.best is None
                waiting = at.epochs_without_better + 1
            else:
                better = at.best is None or (value > at.best if self.higher_is_better else value < at.best)
                waiting = 0 if better else at.epochs_without_better + 1  # a lower loss at the same value is no reason to wait longer
                if value == at.best and at.best_loss is not None:  # a small validation set ranks many epochs alike
                    better = values["val_loss"] < at.best_loss
                if better:
                    at.best, at.best_loss = value, values["val_loss"]
            said = values if self.step_module.reads else {name: values[name] for name in ("val_loss", rule.metric) if name in values}
            log.info(
                "epoch %d of %d, step %d: %s%s",
                at.epoch + 1,
                self.settings.epochs,
                at.step,
                _values(said),
                "  best so far" if better else "",
            )
        at.epochs_without_better = waiting
        if self.texts is not None:
            self.texts.write(at.epoch, at.step, self.trackers)
        if better:
            at.best_epoch, at.best_step = at.epoch, at.step
        at.epoch, at.batch = at.epoch + 1, 0
        if better:
            self._save("best", resumable=False)
        self._save("latest")

    def _sampled_texts(self) -> SampledTexts | None:
        val, count = self.data.val, self.settings.log_samples
        if val is None or not count or self.step_module.reads:
            return None
        return SampledTexts(self.folder / FILE, self.model, self.task, self.data.val_samples, val.readers, count=count, step=self.at.step)

    def _stop_if_apart(self) -> None:
        if not processes.same_everywhere([*self._planned(), *self.step_module.buffers()]):
            raise TrainingError(
                f"the weights of stage {self.stage!r} are not the same in all {processes.world()} processes after step {self.at.step}",
                "the same steps in each, from the same start",
                "look for a part or an objective that draws numbers, or keeps some, on its own",
            )

    @torch.no_grad()
    def _validate(self, *, write_texts: bool = True) -> dict[str, float]:
        assert self.data.val is not None
        self.step_module.eval()
        seed = own_seed("validate", self.recipe.seed, self.stage)
        torch.manual_seed(derived_seed(*seed))  # what an objective draws is the same in every epoch
        order = batches_in_order(len(self.data.val), self.settings.batch_size)
        found = Sums()
        read: list[list[Any]] = []  # the answers to each batch
        for batch in track(self._shares(self.data.val, order), "validating", len(order)):
            read.append([])
            for sealed in self._sealed(batch):
                sums, counts, logits, notes = self.step_module(sealed)
                found.add(self.task, sealed.samples, sums, counts, notes)
                read[-1] += self.task.read(logits) if self.task.reads_logits else []
        found = found.of_all(self.fabric.device)
        values = {"val_loss": found.loss / found.count, **{f"val_{name}": value for name, value in numbers(found.means()).items()}}
        values |= {f"val_loss_{task}": summed / count for task, (summed, count) in found.tasks.items() if count}
        if not math.isfinite(values["val_loss"]):
            return values  # what follows from NaN cannot be scored
        of_each = processes.gathered(read)
        answers = [answer for batch in zip(*of_each, strict=True) for part in batch for answer in part]
        if write_texts and not answers and not self.settings.early_stopping.metric.startswith("val_loss"):
            answers = self._texts()  # they cost far more than a loss: only where they decide
        if answers:
            corpus = processes.from_first(lambda: self.task.score(answers, self.data.val_samples).corpus)
            values |= {f"val_{name}": value for name, value in corpus.items() if math.isfinite(value)}
        return values

    def _texts(self) -> list[Any]:
        """Answers to all samples of validation, each process its share."""
        assert self.data.val is not None
        mine = share_of(range(len(self.data.val_samples)), *processes.share())
        samples, size = taken(self.data.val_samples, mine), self.recipe.evaluation.batch_size
        found = answer_samples(self.model, self.task, samples, self.data.val.readers, batch_size=size, label="validating") if mine else []
        return [answer for part in processes.gathered(found) for answer in part]

    # ── probe, save, restore ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _probe(self) -> None:
        set_training_mode(self.step_module)
        self.model.fusion.eval()  # hides no modality by chance
        first = self.data.train.order(2, seed=self.recipe.seed, epoch=0)[0]
        first = list(dict.fromkeys([*map(int, first), *with_each_modality(self.data.train)]))
        torch.manual_seed(derived_seed("probe", self.recipe.seed, self.stage))
        for batch in load_batches(self.data.train, [first], pad_id=self.data.pad_id):
            parts = self.step_module.parts(batch)
            probes = [Sealed(probe.to(self.fabric.device)) for part in parts for probe in self.step_module.probes(part)]
            prove(self.step_module, self.step_module, probes, self.fabric.backward, self._planned())

    def _planned(self) -> list[nn.Parameter]:
        return [parameter for group in self.plan.groups for parameter in group["params"]]

    def _time_to_save(self) -> bool:
        every = self.settings.checkpoint_every
        return (
            every is not None and self.at.step % every == 0
        ) or time.monotonic() - self._saved_at > 60 * self.settings.checkpoint_minutes

    def _save(self, name: str, resumable: bool = True) -> None:
        if not processes.first():
            return
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
            optimizer=optimizer_tensors(self.optimizer.optimizer, self.plan) if resumable else None,
            trainer=asdict(at) if resumable else None,
        )
        self._saved_at = time.monotonic()

    def _restore(self, folder: Path) -> None:
        """Position and optimiser; the model came with its weights."""
        self.at = Position(**json.loads((folder / "trainer.json").read_text(encoding="utf-8")))
        restore_optimizer(self.optimizer.optimizer, self.plan, folder / "optimizer.safetensors")
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and self.at.scaler is not None:
            scaler.load_state_dict(self.at.scaler)
        log.info("going on from %s: epoch %d, step %d", folder, self.at.epoch + 1, self.at.step)


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
