"""Model and objective as one module, and what of a batch goes through it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from eyegraft.answering import num_tokens
from eyegraft.data.batches import packed
from eyegraft.errors import RecipeError
from eyegraft.model import Graft
from eyegraft.training import processes
from eyegraft.training.together import batch_of_all
from eyegraft.types import Batch, Loss, Output, Sample, TokenLogits, Tokens


class Sealed:
    """Carries a batch through wrappers that would otherwise take it apart.

    Args:
        batch: None where this process has no sample of it.
        together: whether the objective compares its samples with those that other processes have of the same batch.
    """

    def __init__(self, batch: Batch | None, *, together: bool = False) -> None:
        self.batch, self.together = batch, together

    @property
    def samples(self) -> Sequence[Sample]:
        return self.batch.samples if self.batch is not None else ()


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
        if sealed.together:
            return self._together(sealed.batch)
        assert sealed.batch is not None
        batch = self.objective.prepare(sealed.batch) if hasattr(self.objective, "prepare") else sealed.batch
        output = self._of_encoders(batch) if self.reads else self.model(batch)
        loss = self.objective(output, batch)
        if self.training:  # validation losses stay those of the objective
            loss = with_auxiliary(loss, output)
        logits = loss.sums.new_zeros(0) if isinstance(output.logits, TokenLogits) else output.logits.detach()  # nothing is read from them
        return loss.sums, loss.counts, logits, {name: values.detach() for name, values in loss.notes.items()}

    def _of_encoders(self, batch: Batch) -> Output:
        """What an objective that reads tokens is given: nothing behind the encoders is computed."""
        return self._as_output(self.model.encode(batch, only=self.reads), batch)

    def _as_output(self, encoded: Mapping[str, Tokens], batch: Batch) -> Output:
        nothing = batch.targets.new_zeros(len(batch), 0)
        return Output(encoded, encoded[self.reads[0]], nothing, nothing)

    def _together(self, batch: Batch | None) -> tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]:
        """As `forward`, of the samples of all processes, [B] of each: every process encodes its own, computes one and the same loss of all,
        and takes an equal part of it."""
        device = next(self.model.parameters()).device
        encoded = self.model.encode(batch, only=self.reads) if batch is not None else {}
        whole, tokens, seed = batch_of_all(batch, encoded, device)
        output = self._as_output(tokens, whole)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            loss = self.objective(output, whole)
        loss = with_auxiliary(loss, output) if self.training else loss
        part = 1 / processes.world()
        notes = {name: values.detach() * part for name, values in loss.notes.items()}
        return loss.sums * part, loss.counts * part, loss.sums.new_zeros(0), notes

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
