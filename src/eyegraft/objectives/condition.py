"""Which class a map is of: cross-entropy of an encoder's own classifier against the class that each row names.

The classifier is asked by itself: the rest of the encoder has no say in what it answers, and is not computed.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.errors import DataError, shown
from eyegraft.objectives._classes import asked, classes_of
from eyegraft.objectives._pixels import MODALITY, present
from eyegraft.types import Batch, Loss, Output, Tokens


class Config(Strict):
    """Attributes:
    label_smoothing: in training alone, so that validation losses compare.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Condition(nn.Module):
    """A sample counts 1, or 0 where it has no picture or its row names no class. Noted beside the loss: the share that is told rightly."""

    reads = (MODALITY,)
    trains = ("condition_classifier",)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def attach(self, model: Any) -> None:
        self._classifier = [model.parts()[self.trains[0]]]  # in a list, else its parameters would count as ours

    def counts(self, batch: Batch) -> Tensor:
        return (classes_of(batch) >= 0).float() * present(batch)

    def prepare(self, batch: Batch) -> Batch:
        """What the classifier says in place of the picture: the encoder then only passes it on.

        Raises:
            DataError: no row of the batch names a class.
        """
        if not self.counts(batch).any():
            raise DataError(
                f"no row of a batch names the class of its map ({shown([sample.id for sample in batch.samples])})",
                "rows with a column `condition`, which data.columns.meta lists",
                "name the classes, or leave these rows out of the stage (stages.NAME.split)",
            )
        given = batch.inputs[MODALITY]
        logits = self._classifier[0](given["pixels"])  # [B, K]
        nothing = logits.new_zeros(len(logits), 0, 1)
        tokens = Tokens(nothing, nothing[..., 0].bool(), condition=logits)
        return batch.with_input(MODALITY, tokens).with_input("condition", {"class": classes_of(batch)})

    def forward(self, output: Output, batch: Batch) -> Loss:
        classes, logits = batch.inputs["condition"]["class"], output.encoded[MODALITY].condition
        assert logits is not None
        counts = (classes >= 0).float() * present(batch)
        smoothing = self.label_smoothing if self.training else 0.0
        losses, right = asked(logits, classes, smoothing)
        return Loss(losses * counts, counts, {"accuracy": right * counts})


def build(config: Config) -> Condition:
    return Condition(config.label_smoothing)
