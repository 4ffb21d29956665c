"""Answers about images that lie anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eyegraft.answering import answer_samples
from eyegraft.data.images import check_image
from eyegraft.errors import DataError
from eyegraft.training.runs import read_run
from eyegraft.training.stages import load_model
from eyegraft.types import Sample


class Predictor:
    """A trained model of a run.

    Attributes:
        checkpoint: where its weights came from.
    """

    def __init__(self, run: Path | str, *, stage: str | None = None) -> None:
        opened = read_run(run)
        self._recipe = opened.recipe
        self._model, self._task, self.checkpoint = load_model(opened, stage)

    def predict(self, images: Sequence[Path | str], *, prompt: str | None = None) -> list[str]:
        """One answer an image, in order.

        Args:
            prompt: None takes the one that the model was trained with.

        Raises:
            DataError: an image is missing, broken or too large; nothing is answered then.
        """
        samples = []
        for place, image in enumerate(images):
            path = Path(image).expanduser()
            facts = check_image(path, self._recipe.data.max_pixels, decode=True)
            if not facts.ok:
                given = f"image {path}: {facts.reason}: {facts.detail}"
                raise DataError(given, "a whole picture of at most data.max_pixels pixels", "give another file")
            samples.append(Sample(id=f"{place}:{path.name}", image=path, prompt=prompt))
        return answer_samples(self._model, self._task, samples, batch_size=self._recipe.evaluation.batch_size)
