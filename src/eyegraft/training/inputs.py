"""What encoders know of the training split: learned before a stage, and put back with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eyegraft.config import Recipe
from eyegraft.data.columns import check_columns
from eyegraft.data.inputs import learn_inputs, with_learned
from eyegraft.data.maps import check_classes
from eyegraft.data.samples import PreparedData, base_folder
from eyegraft.model import Graft
from eyegraft.types import ColumnSpec, ImageSpec


def teach_inputs(recipe: Recipe, model: Graft, data: PreparedData) -> dict[str, Any]:
    """Let every encoder know what it must of the training split: means and standard deviations of its inputs. Gives them by modality.

    Raises:
        DataError: a further column of any split cannot be used, or a map is of no class that there is.
    """
    for encoder in model.encoders.values():
        if isinstance(encoder.spec, ColumnSpec):
            for split, samples in data.splits.items():
                check_columns(encoder.spec, samples, split)
        elif isinstance(encoder.spec, ImageSpec) and encoder.spec.classes:
            for split, samples in data.splits.items():
                check_classes(encoder.spec, samples, split)
    satellite = recipe.data.satellite
    file = base_folder(recipe.data.base_dir) / satellite.statistics if satellite is not None else None
    found = {modality: learn_inputs(encoder.spec, data.splits["train"], file) for modality, encoder in model.encoders.items()}  # type: ignore[arg-type]
    learned = {modality: facts for modality, facts in found.items() if facts}
    restore_inputs(model, learned)
    return learned


def restore_inputs(model: Graft, learned: Mapping[str, Any]) -> None:
    """Put what `teach_inputs` found back, as a checkpoint holds it."""
    for modality, facts in learned.items():
        encoder: Any = model.encoders[modality]
        encoder.spec = with_learned(encoder.spec, facts)
