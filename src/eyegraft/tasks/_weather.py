"""What the tasks about weather maps share: prompts that the row fills, limits, checks of form, and the score of facts.

A task of its own differs in what it asks (`Asking`); all else stands here once.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eyegraft.config import Positive, Strict
from eyegraft.data.sentences import sentences_of
from eyegraft.data.text import Encoded, Overflow, Template, Wording, encode_pair, encode_question, said_of
from eyegraft.errors import DataError, nearest
from eyegraft.metrics import captions, facts
from eyegraft.types import Batch, Sample, Scores, Tokens

WORDING = Wording("", "\nAnswer:")
"""Of the plain template: a prompt that was cut at its end still says that an answer follows."""

FIRST = "rouge_l"
"""What results are compared by where no row has facts: no long text is ever an exact match."""

COUNT, ENDED = "sentence_count_right", "ends_in_full"
FORM = "eyegraft-sentences-1: parted behind . ! ? and a space; 0 or 1"
SUMMARY_FACTS = ("concern", "place", "area")
_CLOSING = "\"')]”’"


class Limits(Strict):
    """Attributes:
    template: `chat` uses the tokenizer's chat template, `plain` puts prompt and answer side by side, `auto` takes what there is.
    max_text_tokens: prompt and answer together; image tokens are counted apart and never cut.
    overflow: what happens to a longer text. `truncate` keeps of the answer what the prompt leaves free, at least half of the limit, and
        cuts the end of the prompt; where an answer is asked for, the prompt leaves room for `max_new_tokens`, half of the limit at most.
    metric_unit: what the caption metrics count: `words`, or the `characters` of Korean and of scripts without spaces.
    """

    template: Template = "auto"
    max_text_tokens: Positive = 512
    overflow: Overflow = "truncate"
    max_new_tokens: Positive = 256
    num_beams: Positive = 1
    metric_unit: captions.Unit = "words"


Materials = Mapping[str, Callable[[Sample], str]]
"""Name in a prompt -> what a row puts there; raises a `DataError` about what the row lacks."""


def checked_prompt(prompt: str, materials: Materials) -> str:
    """A prompt whose `{names}` are all known; for validators.

    Raises:
        ValueError: another name, or braces that are none.
    """
    allowed = ", ".join(f"{{{name}}}" for name in materials)
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ValueError(f"{prompt!r}: {error}; a row fills {allowed}, and a brace that stands for itself is written twice") from error
    for _, name, spec, conversion in parts:
        if name is not None and (name not in materials or spec or conversion):
            raise ValueError(f"{{{name}}} is nothing that a row fills: {allowed}. {nearest(name, materials)}".rstrip(" ."))
    return prompt


@dataclass(frozen=True)
class Asking:
    """What makes a task.

    Attributes:
        prompt: with `{names}` of materials.
        num_sentences: the least and the most that an answer should have; None: any number.
        facts: those of a row that its text should state, by name.
        fault: why the answer of a row cannot be learned; None: it can.
        gives_away: whether a prompt holds what the row should be answered.
    """

    prompt: str
    materials: Materials
    num_sentences: tuple[int, int] | None
    facts: tuple[str, ...]
    fault: Callable[[Sample], str | None] = lambda sample: None
    gives_away: Callable[[Sample, str], bool] = lambda sample, prompt: False


class WeatherTask:
    objectives = ("cross_entropy",)
    num_neighbours = 1
    reads_logits = False

    def __init__(self, name: str, config: Limits, asking: Asking) -> None:
        self.name, self.prompt = name, asking.prompt
        form = (COUNT, ENDED) if asking.num_sentences else (ENDED,)
        self.directions = dict.fromkeys((*facts.names_of(asking.facts), FIRST, *captions.HIGHER_IS_BETTER, *form), True)
        self.decoding = {
            "max_new_tokens": config.max_new_tokens,
            "num_beams": config.num_beams,
            "do_sample": False,
            "template": config.template,
            "max_text_tokens": config.max_text_tokens,
            "overflow": config.overflow,
            "metric_tokens": captions.counted(config.metric_unit),
        }
        self.decision: dict[str, Any] = {}
        self.learned: dict[str, Any] = {}
        self._config, self._asking = config, asking
        self._names = tuple(name for _, name, _, _ in string.Formatter().parse(asking.prompt) if name)

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def check(self, samples: Sequence[Sample], split: str) -> None:
        faults = [f"sample {sample.id}: {fault}" for sample in samples if (fault := self._fault(sample))]
        if faults:
            raise DataError(
                f"split {split}: {len(faults)} of {len(samples)} rows of task {self.name!r} cannot be used:"
                + "".join(f"\n  {fault}" for fault in faults[:20])
                + (f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""),
                "rows with a text to learn, and in data.columns.meta the columns that the prompt is made of",
                "mend the rows, or leave them out; `prepare=weatherqa` sets them aside by itself",
            )

    def _fault(self, sample: Sample) -> str | None:
        if empty := [text for text in sample.references if not text.strip()]:
            return f"an empty text {empty[0]!r}"
        try:
            self._asked(sample)
            stated_facts(sample)
        except DataError as error:
            return error.given
        return self._asking.fault(sample) if sample.references else "no text to learn"

    # ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        config = self._config
        how: dict[str, Any] = {"template": config.template, "wording": WORDING, "overflow": config.overflow}
        try:
            prompt = self._asked(sample)
            if not learn:
                limit = config.max_text_tokens
                if config.overflow == "truncate":  # as training leaves room for the answer
                    limit -= min(config.max_new_tokens, limit // 2) - 1
                return encode_question(tokenizer, prompt, max_tokens=limit, max_question_tokens=limit, **how)
            if not sample.references:
                raise DataError("no text to learn", "a reference in data.columns.references", "name the column that holds the text")
            return encode_pair(tokenizer, prompt, sample.references[0], max_tokens=config.max_text_tokens, **how)
        except DataError as error:
            raise said_of(error, sample.id, self.name) from error

    def _asked(self, sample: Sample) -> str:
        """The row's own prompt as it stands, or the task's, filled from the row."""
        prompt = sample.prompt
        if not prompt:
            prompt = self.prompt.format_map({name: self._asking.materials[name](sample) for name in self._names})
        if self._asking.gives_away(sample, prompt):
            raise DataError("its prompt holds the answer", "a prompt without the sentences to learn", "mend data.columns.prompt")
        return prompt

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, logits: Tensor) -> list[str]:
        raise NotImplementedError("a text is generated, token by token")

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[str]:
        return list(head.generate(tokens, batch, max_new_tokens=self._config.max_new_tokens, num_beams=self._config.num_beams))

    def settle(self, answers: Sequence[str], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def prior(self, train: Sequence[Sample]) -> str:
        return _most_frequent(Counter(text for sample in train for text in sample.references))

    def priors(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
        """The most frequent training text of each sample's kind of map; of a kind that training has not, of any."""
        tallies: defaultdict[Any, Counter[str]] = defaultdict(Counter)
        for sample in train:
            tallies[sample.meta.get("condition")].update(sample.references)
        best, any_kind = {kind: _most_frequent(tally) for kind, tally in tallies.items()}, self.prior(train)
        return [best.get(sample.meta.get("condition"), any_kind) for sample in samples]

    def from_neighbours(self, neighbours: Sequence[Sample]) -> str:
        return neighbours[0].references[0]

    # ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def truth(self, sample: Sample) -> list[str]:
        return list(sample.references)

    def score(self, answers: Sequence[str], samples: Sequence[Sample]) -> Scores:
        """The facts first, where rows have some; the caption metrics, of which `FIRST` leads; the form."""
        parts = [
            facts.score(answers, [stated_facts(sample) for sample in samples], self._asking.facts, _agreement()),
            captions.score(answers, [sample.references for sample in samples], self._config.metric_unit),
            self._form(answers),
        ]
        found = _joined(part.corpus for part in parts)
        return Scores(
            corpus={name: found[name] for name in self.directions if name in found},
            per_sample=_joined(part.per_sample for part in parts),
            signature=_joined(part.signature for part in parts),
            higher_is_better=_joined(part.higher_is_better for part in parts),
            statistics=_joined(part.statistics for part in parts),
        )

    def _form(self, answers: Sequence[str]) -> Scores:
        values, signature = dict[str, list[float]](), dict[str, str]()
        if wanted := self._asking.num_sentences:
            low, high = wanted
            values[COUNT] = [float(low <= len(sentences_of(text)) <= high) for text in answers]
            signature[COUNT] = f"{FORM}; {low if low == high else f'{low} to {high}'} sentences"
        values[ENDED] = [float(_ends(text)) for text in answers]
        signature[ENDED] = f"{FORM}; the last one, and so all of them, ends in . ! or ?"
        means = {name: sum(column) / len(column) for name, column in values.items()}
        return Scores(means, values, signature, dict.fromkeys(values, True))

    def details(self, answers: Sequence[str], samples: Sequence[Sample]) -> dict[str, Any]:
        """How many answers have how many sentences, and of every fact that rows state, scored or not, how many and which share is right."""
        known = [(answer, stated) for answer, sample in zip(answers, samples, strict=True) if (stated := stated_facts(sample))]
        names = list(dict.fromkeys(name for _, stated in known for name in stated))
        found = facts.score([answer for answer, _ in known], [stated for _, stated in known], names, _agreement()).corpus if known else {}
        counts = Counter(len(sentences_of(text)) for text in answers)
        told: dict[str, Any] = {"sentences": {str(number): counts[number] for number in sorted(counts)}}
        if known:
            told["facts"] = {"num_samples": len(known), **{name: found[f"fact_{name}"] for name in names if f"fact_{name}" in found}}
        return told


# ── what a row brings ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_of(sample: Sample, column: str) -> str:
    """A column of the row that is a text.

    Raises:
        DataError: it is not there, or empty.
    """
    value = sample.meta.get(column)
    if not isinstance(value, str) or not value.strip():
        given = f"{column} {value!r:.60}" if value else f"no {column}"
        raise DataError(given, f"a text in the column {column!r}", "name it in data.columns.meta, or ask otherwise in tasks.NAME.prompt")
    return value.strip()


def list_of(sample: Sample, column: str) -> list[Any]:
    """A column of the row that is a list with something in it.

    Raises:
        DataError: it is not there, or empty.
    """
    value = sample.meta.get(column)
    if not isinstance(value, list | tuple) or not value:
        given = f"{column} {value!r:.60}" if value else f"no {column}"
        raise DataError(given, f"a list in the column {column!r}", "name it in data.columns.meta, or ask otherwise in tasks.NAME.prompt")
    return list(value)


def stated_facts(sample: Sample) -> Mapping[str, Any] | None:
    """What the text of a row states, where the row says so.

    Raises:
        DataError: the column holds something else.
    """
    value = sample.meta.get("facts")
    if value is None or value == "":
        return None
    if not isinstance(value, Mapping):
        raise DataError(
            f"facts {value!r:.60}", "an object {name: value}", "a JSONL table holds objects; name another column in data.columns.meta"
        )
    return value


def condition_of(sample: Sample) -> str:
    """The class of the map, by name."""
    return text_of(sample, "condition")


def summary_of(sample: Sample) -> str:
    """The summary of the map's case."""
    return text_of(sample, "summary")


def _agreement() -> facts.Agreement:
    """The reader of the facts of weather texts, which stands with the data that were made by its rules."""
    from eyegraft.prepare.weather_fields.facts import agreement

    return agreement


def _joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def _ends(text: str) -> bool:
    return text.rstrip().rstrip(_CLOSING).endswith((".", "!", "?"))


def _most_frequent(tally: Counter[str]) -> str:
    return min(tally, key=lambda text: (-tally[text], text))  # the first in order of the alphabet among equals


def num_outputs(config: Limits) -> int:
    return 0
