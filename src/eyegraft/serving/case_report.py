"""A whole case of weather maps, asked task by task: a caption of every map, the summary of the case, how each map bears on it.

What comes later is prompted with what came before: a link with the sentences and the summary that the model itself wrote. No text that the
case brings goes into a prompt, but for a summary that the run did not learn to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from eyegraft.answering import asked_of, readers_of
from eyegraft.data.batches import Examples, batches_in_order, load_batches
from eyegraft.data.images import check_image
from eyegraft.data.maps import COLUMN, class_of
from eyegraft.data.sentences import sentences_of
from eyegraft.data.text import Encoded
from eyegraft.errors import DataError, RunError
from eyegraft.files import file_sha256
from eyegraft.model import Graft
from eyegraft.serving._cases import Case, Element
from eyegraft.serving.predictor import Predictor
from eyegraft.training.checkpoints import read_config
from eyegraft.training.runs import versions
from eyegraft.types import UNKNOWN, ImageSpec, Sample

SCHEMA = 1
CAPTION, SUMMARY, LINK, OF_TEXTS = "element_caption", "summary", "element_summary_link", "text_summary"
TASKS = (CAPTION, SUMMARY, LINK, OF_TEXTS)
"""The kinds of tasks that a case is asked. A recipe may call them otherwise."""
NOTICE = (
    "The texts here were written by a model, but for those that the case is said to bring. No forecaster wrote or checked what the model "
    "wrote, and no weather service issued it."
)


@dataclass(frozen=True)
class Kind:
    """Which map it is.

    Attributes:
        name: None where nobody says and nothing can tell.
        source: `given` or `predicted`.
        seen: what the encoder's classifier says, where it was asked, and how sure it is.
    """

    name: str | None
    source: str | None
    seen: tuple[str, float] | None = None


@dataclass
class Told:
    """What has been asked so far.

    Attributes:
        asked: in order, one entry a text.
        left_out: what could not be asked, and why.
    """

    asked: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)


def report_case(run: Path | str, case: Case, *, stage: str | None = None) -> dict[str, Any]:
    """The report of a case as plain data (docs/case_report.md tells what stands where).

    Args:
        stage: whose best checkpoint; None: the last.

    Raises:
        RunError: the stage learned none of the tasks.
        DataError: an image is broken or too large, or of a class that the encoder does not know.
    """
    return Reporter(Predictor(run, stage=stage)).report(case)


class Reporter:
    """Args:
    predictor: of a stage that learned one or more of `TASKS`.

    Raises:
        RunError: it did not.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.model = predictor, predictor.model
        parts = predictor.recipe.tasks
        self.tasks = {parts[name].kind: task for name, task in predictor.tasks.items() if parts[name].kind in TASKS}
        if not self.tasks:
            learned = ", ".join(predictor.tasks)
            raise RunError(
                f"--case of a run that learned {learned}", f"one of {', '.join(TASKS)}", "name images instead: predict RUN IMAGE"
            )

    def report(self, case: Case) -> dict[str, Any]:
        samples, kinds = self._samples(case)
        told = Told()
        captions = self._captions(samples, told)
        summary = self._summary(case, samples, kinds, captions, told)
        links = self._links(samples, captions, summary, told)
        elements = [
            _element(element, sample, kind, caption, link)
            for element, sample, kind, caption, link in zip(case.elements, samples, kinds, captions, links, strict=True)
        ]
        data = self.predictor.run.facts.get("data", {})
        about = str(data.get("about") or "").strip()
        return {
            "schema": SCHEMA,
            "case": case.id,
            "summary": summary,
            "summary_of_case": case.summary,
            "elements": elements,
            "asked": told.asked,
            "left_out": [*self._not_learned(), *told.left_out],
            "notices": [NOTICE, *([f"It learned from {data.get('name')}: {about}"] if about else [])],
            "model": self._facts(),
        }

    # ── what is asked about ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _samples(self, case: Case) -> tuple[list[Sample], list[Kind]]:
        samples = []
        for number, element in enumerate(case.elements, 1):
            facts = check_image(element.path, self.predictor.recipe.data.max_pixels, decode=True)
            if not facts.ok:
                given = f"element {number}, image {element.path}: {facts.reason}: {facts.detail}"
                raise DataError(given, "a whole picture of at most data.max_pixels pixels", "give another file")
            name = f"element {number} ({element.image})"
            samples.append(Sample(name, element.path, sha256=facts.sha256, meta={COLUMN: element.condition}))
        kinds = self._kinds(samples)
        return [replace(sample, meta={COLUMN: kind.name}) for sample, kind in zip(samples, kinds, strict=True)], kinds

    def _kinds(self, samples: Sequence[Sample]) -> list[Kind]:
        """The class of each map: as given, else as the encoder's classifier sees it."""
        given = [sample.meta[COLUMN] for sample in samples]
        encoder = dict(self.model.encoders.items()).get("image")
        spec, believes = getattr(encoder, "spec", None), getattr(encoder, "believes_rows", True)
        if not isinstance(spec, ImageSpec) or not spec.classes:
            return [Kind(name, "given" if name else None) for name in given]
        numbers = [class_of(sample, spec.classes) for sample in samples]
        seen = _classified(self.model, self.predictor, samples)
        kinds = []
        for number, found in zip(numbers, seen, strict=True):
            asked = found is not None and (number == UNKNOWN or not believes)  # else it goes by what the row says
            sight = (spec.classes[found[0]], found[1]) if found is not None and asked else None
            if number != UNKNOWN:
                kinds.append(Kind(spec.classes[number], "given", sight))
            else:
                kinds.append(Kind(sight[0], "predicted", sight) if sight else Kind(None, None))
        return kinds

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, kind: str, samples: Sequence[Sample], numbers: Sequence[int], made_of: str, told: Told) -> list[str]:
        """One text a sample, written down with the prompt that the model was given.

        Args:
            numbers: of their elements.
        """
        task = self.tasks[kind]
        prompts = [asked_of(self.model, task, sample) for sample in samples]
        answers = [str(answer) for answer in self.predictor.ask(samples, task.name)] if samples else []
        for number, prompt, answer in zip(numbers, prompts, answers, strict=True):
            told.asked.append({"task": task.name, "element": number, "made_of": made_of, "prompt": prompt, "answer": answer})
        return answers

    def _captions(self, samples: Sequence[Sample], told: Told) -> list[str | None]:
        if CAPTION not in self.tasks:
            return [None] * len(samples)
        return list(self._ask(CAPTION, samples, range(len(samples)), "its image", told))

    def _summary(
        self, case: Case, samples: Sequence[Sample], kinds: Sequence[Kind], captions: Sequence[str | None], told: Told
    ) -> dict[str, str] | None:
        """From the captions where the run learned that, else from the first image, else as the case brings it."""
        written = [
            {COLUMN: kind.name, "caption": caption} for kind, caption in zip(kinds, captions, strict=True) if caption and caption.strip()
        ]
        if OF_TEXTS in self.tasks and written:
            first = replace(samples[0], meta={**samples[0].meta, "captions": written})
            made_of = "the captions written here, and the first image"
            if SUMMARY in self.tasks:
                told.left_out.append({"task": self.tasks[SUMMARY].name, "why": "the summary was made of the captions"})
            return {"text": self._ask(OF_TEXTS, [first], [0], made_of, told)[0], "made_of": made_of}
        if OF_TEXTS in self.tasks:
            told.left_out.append({"task": self.tasks[OF_TEXTS].name, "why": "there is no caption to make it of"})
        if SUMMARY in self.tasks:
            return {"text": self._ask(SUMMARY, samples[:1], [0], "the first image", told)[0], "made_of": "the first image"}
        return {"text": case.summary, "made_of": "the case itself"} if case.summary else None

    def _links(
        self, samples: Sequence[Sample], captions: Sequence[str | None], summary: dict[str, str] | None, told: Told
    ) -> list[str | None]:
        links: list[str | None] = [None] * len(samples)
        if LINK not in self.tasks:
            return links
        task = self.tasks[LINK]
        if summary is None or not summary["text"].strip():
            told.left_out.append({"task": task.name, "why": "there is no summary to link to"})
            return links
        ready: dict[int, Sample] = {}
        for number, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
            meta = {**sample.meta, "sentences": sentences_of(caption or ""), "summary": summary["text"]}
            linked = replace(sample, meta=meta)
            try:
                asked_of(self.model, task, linked)
            except DataError as error:  # what the model wrote before leaves nothing to ask with
                told.left_out.append({"task": task.name, "element": number, "why": error.given.removeprefix(f"sample {sample.id}: ")})
                continue
            ready[number] = linked
        made_of = f"its image, the caption written here but for its end, and the summary ({summary['made_of']})"
        for number, answer in zip(ready, self._ask(LINK, list(ready.values()), list(ready), made_of, told), strict=True):
            links[number] = answer
        return links

    # ── what answered ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _not_learned(self) -> list[dict[str, Any]]:
        return [{"task": kind, "why": "this stage of the run did not learn it"} for kind in TASKS if kind not in self.tasks]

    def _facts(self) -> dict[str, Any]:
        run, checkpoint = self.predictor.run, self.predictor.checkpoint
        recipe, config = self.predictor.recipe, read_config(self.predictor.checkpoint)
        return {
            "run": run.folder.name,
            "experiment": recipe.experiment_name,
            "recipe": recipe.recipe,
            "checkpoint": {
                **{key: config[key] for key in ("stage", "epoch", "step", "lineage")},
                "path": checkpoint.relative_to(run.folder).as_posix(),
                "sha256": file_sha256(checkpoint / "manifest.json"),
            },
            "seed": recipe.seed,
            "data": recipe.data.name,
            "decoding": {task.name: task.decoding for task in self.tasks.values()},
            "versions": versions(),
        }


def _element(element: Element, sample: Sample, kind: Kind, caption: str | None, link: str | None) -> dict[str, Any]:
    seen = {"name": kind.seen[0], "probability": round(kind.seen[1], 4)} if kind.seen else None
    return {
        "image": element.image,
        "sha256": sample.sha256,
        "condition": kind.name,
        "condition_from": kind.source,
        "condition_seen": seen,
        "caption": caption,
        "link": link,
        "caption_of_case": element.caption,
    }


@torch.inference_mode()
def _classified(model: Graft, predictor: Predictor, samples: Sequence[Sample]) -> list[tuple[int, float] | None]:
    """The class that the encoder sees in each map with its probability; None where the encoder goes by what the row says."""
    size, found = predictor.recipe.evaluation.batch_size, list[tuple[int, float] | None]()
    pictures = Examples(samples, [Encoded()] * len(samples), {"image": readers_of(model, predictor.recipe)["image"]})
    device = next(model.parameters()).device
    for batch in load_batches(pictures, batches_in_order(len(samples), size), pad_id=0):
        logits = model.encode(batch.to(device), only=("image",))["image"].condition
        best = None if logits is None else logits.float().softmax(1).max(1)
        found += [None] * len(batch) if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return found
