"""Answers about images and patches that lie anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eyegraft.answering import answer_samples, readers_of
from eyegraft.data.images import check_image
from eyegraft.data.patch_rows import PatchRows, opened
from eyegraft.errors import DataError, RunError, nearest
from eyegraft.sensors import Sensor
from eyegraft.tasks._mixture import each_task
from eyegraft.training.runs import read_place
from eyegraft.training.trained import load_model
from eyegraft.types import PatchSpec, Sample


class Predictor:
    """A trained model of a run.

    Args:
        stage: whose best checkpoint; None: the last.
        task: which of several tasks is asked; None: the first.

    Attributes:
        run, recipe: what it is of.
        model: ready to answer.
        tasks: all that its stage learned, by name.
        checkpoint: where its weights came from.
    """

    def __init__(self, run: Path | str, *, stage: str | None = None, task: str | None = None) -> None:
        found, inside, which = read_place(run)
        if stage is not None and inside not in (None, stage):
            raise RunError(
                f"stage {stage!r} of {run}, which is of stage {inside!r}", "one stage", f"give {found.folder}, or leave --stage out"
            )
        self.run, self.recipe = found, found.recipe
        self.model, learned, self.checkpoint = load_model(found, stage or inside, which)
        self.tasks = tasks = each_task(learned)
        if task not in (None, *tasks):
            given = f"task {task!r}, which stage {stage or inside or found.recipe.stage_names[-1]!r} did not learn"
            raise RunError(given, f"one of {', '.join(tasks)}", nearest(str(task), tasks))
        self._task = tasks[task] if task is not None else next(iter(tasks.values()))

    def predict(
        self,
        images: Sequence[Path | str],
        *,
        prompt: str | None = None,
        texts: Sequence[str] | None = None,
        choices: Sequence[str] = (),
    ) -> list[Any]:
        """One answer an image, in order: a text, or of a label task a mapping with `label` and probabilities.

        A model that reads no pictures answers the texts; images beside them may be left out, and are not opened.

        Args:
            prompt: None takes the one that the model was trained with.
            texts: the words beside each image, for models that read them; None where there are none.
            choices: the only answers that are allowed; each answer is then {answer, scores: choice -> mean log-likelihood, generated}.

        Raises:
            RunError: choices for a task that takes none.
            DataError: an image is missing, broken or too large, or there are more or fewer texts than images; nothing is answered then.
        """
        if self.recipe.data.satellite is not None:
            given = f"{len(images)} images, and recipe {self.recipe.recipe} reads patches of a satellite"
            raise DataError(given, "a patch store", "eyegraft predict RUN --patches STORE, or eyegraft map RUN --scene PATH")
        if choices and not getattr(self._task, "takes_choices", False):
            given = f"choices for tasks.{self._task.name}, which answers in its own way"
            raise RunError(given, "a run of a task that answers questions (kind: vqa)", "leave the choices out")
        reads = self.recipe.reads_images
        if texts and not images:
            if reads:
                given = f"no image beside {len(texts)} text{'s' if len(texts) > 1 else ''}"
                raise DataError(given, "an image for each text: the model reads pictures", "name the image files")
            allowed = tuple(choices)
            samples = [Sample(id=str(place), image=None, text=text, prompt=prompt, choices=allowed) for place, text in enumerate(texts)]
            return self._answers(samples)
        if texts is not None and len(texts) != len(images):
            raise DataError(
                f"{len(texts)} texts beside {len(images)} images", "one text an image", "give an empty text where there is none"
            )
        samples = []
        for place, image in enumerate(images):
            path = Path(image).expanduser()
            facts = check_image(path, self.recipe.data.max_pixels, decode=True) if reads else None
            if facts is not None and not facts.ok:
                given = f"image {path}: {facts.reason}: {facts.detail}"
                raise DataError(given, "a whole picture of at most data.max_pixels pixels", "give another file")
            text = texts[place] if texts is not None else ""
            sha256 = facts.sha256 if facts is not None else ""
            samples.append(Sample(id=f"{place}:{path.name}", image=path, sha256=sha256, text=text, prompt=prompt, choices=tuple(choices)))
        return self._answers(samples)

    def predict_patches(self, store: Path | str, rows: Sequence[int] | None = None) -> tuple[PatchRows, list[Any]]:
        """Rows of a patch store and an answer to each, in order.

        Args:
            rows: which; None for all.

        Raises:
            RunError: the run reads no patches.
            PartError: they are another sensor's.
            DataError: no store, no such rows, or patches of another size.
        """
        if self.recipe.data.satellite is None:
            fix = "name image files, or a run of recipe=ta_small, for one"
            raise RunError(f"recipe {self.recipe.recipe} reads no patches of a satellite", "a run on patch stores", fix)
        kept = opened(Path(store).expanduser())
        beyond = [row for row in rows or () if not 0 <= row < len(kept)]
        if beyond:
            raise DataError(f"row {beyond[0]} of {kept.path}", f"0 to {len(kept) - 1}", "name rows that are there")
        spec = getattr(dict(self.model.encoders.items()).get("image"), "spec", None)
        if isinstance(spec, PatchSpec):
            declared, size = Sensor.model_validate(kept.schema.facts["sensor"]), kept.schema.fields["x"].shape[1:]
            spec.sensor.require_same(declared, here=f"the checkpoint {self.checkpoint}", there=f"the patches in {kept.path}")
            if size != tuple(spec.size):
                given = f"patches of {size[0]} x {size[1]} pixels in {kept.path}"
                raise DataError(given, f"{spec.size[0]} x {spec.size[1]}, as in training", "prepare them with that prepare.patch_size")
        asked = PatchRows(kept, None if rows is None else np.array(rows, dtype=np.int64))
        return asked, self._answers(asked)

    def ask(self, samples: Sequence[Sample], task: str) -> list[Any]:
        """One answer a sample, in order, of any of `tasks`."""
        readers = readers_of(self.model, self.recipe)
        return answer_samples(self.model, self.tasks[task], samples, readers, batch_size=self.recipe.evaluation.batch_size)

    def _answers(self, samples: Sequence[Sample]) -> list[Any]:
        return self.ask(samples, self._task.name)
