"""What the objectives that ask for a map's class share."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from eyegraft.objectives._pixels import MODALITY
from eyegraft.types import UNKNOWN, Batch


def classes_of(batch: Batch) -> Tensor:
    """[B] int64, the class that each row names, negative where it names none."""
    given = batch.inputs[MODALITY]
    classes: Tensor | None = given.get("condition") if isinstance(given, Mapping) else None
    return batch.targets.new_full((len(batch),), UNKNOWN).long() if classes is None else classes


def asked(logits: Tensor, classes: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy [B] in float32 and whether the class is the most probable [B] float32, both 0 where the class is not known.

    Args:
        logits: [B, K]. classes: [B] int64, negative where not known.
    """
    known, wanted = classes >= 0, classes.clamp(min=0)
    losses = F.cross_entropy(logits.float(), wanted, reduction="none", label_smoothing=label_smoothing)
    return losses.where(known, 0.0), ((logits.argmax(1) == wanted) & known).float()
