"""An image and a question, or a conversation, to an answer: free text, or one of the answers that are allowed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from eyegraft.config import Positive, Strict
from eyegraft.data.text import QUESTION, Encoded, Overflow, Template, answer_tokens, encode_question, encode_turns, said_of
from eyegraft.errors import DataError, shown
from eyegraft.metrics import answers as short_answers
from eyegraft.metrics import captions
from eyegraft.metrics.captions import Unit
from eyegraft.tasks._choices import SCORING, mean_log_likelihoods
from eyegraft.types import Batch, Sample, Scores, Tokens

NUM_NEIGHBOURS = 50
"""Training samples among which retrieval looks for one that was asked the same: the nearest pictures may have many questions each."""


def _quoted(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()}: YAML reads yes and no as true and false; write them in quotes")
    return value


class Config(Strict):
    """Attributes:
    prompt: the question to samples that bring none.
    choices: the only allowed answers, to samples that bring none of their own. Empty: any text.
    template: `chat` uses the tokenizer's chat template, `plain` writes `Question: … Answer: …`, `auto` takes what there is.
    max_question_tokens: of the words of each question.
    max_text_tokens: of a whole conversation; image tokens are counted apart and never cut.
    overflow: what happens to more than that. `truncate` drops the earliest turns first.
    metric_unit: what the caption metrics count: `words`, or the `characters` of Korean and of scripts without spaces.
    """

    prompt: str = ""
    choices: tuple[Annotated[str, Field(coerce_numbers_to_str=True), BeforeValidator(_quoted)], ...] = ()
    template: Template = "auto"
    max_question_tokens: Positive = 256
    max_text_tokens: Positive = 512
    overflow: Overflow = "error"
    max_new_tokens: Positive = 64
    num_beams: Positive = 1
    metric_unit: Unit = "words"

    @model_validator(mode="after")
    def _sensible(self) -> Config:
        if self.choices and (fault := _fault_of(self.choices)):
            raise ValueError(f"choices={list(self.choices)}: {fault}: two or more different answers, or none for any text")
        return self


class VqaTask:
    objectives = ("cross_entropy",)
    num_neighbours = NUM_NEIGHBOURS
    reads_logits = False
    takes_choices = True

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.prompt = name, config.prompt
        self.directions = {"accuracy": True, **({"accuracy_by_generation": True} if config.choices else {}), **captions.HIGHER_IS_BETTER}
        self.decoding = {
            "max_new_tokens": config.max_new_tokens,
            "num_beams": config.num_beams,
            "do_sample": False,
            "template": config.template,
            "plain_template": f"{QUESTION.before}…{QUESTION.after} …",
            "max_question_tokens": config.max_question_tokens,
            "max_text_tokens": config.max_text_tokens,
            "overflow": config.overflow,
            **({"choices": list(config.choices)} if config.choices else {}),
            "choice_scoring": SCORING,
            "answers_compared": short_answers.FORM,
            "metric_tokens": captions.counted(config.metric_unit),
        }
        self.decision: dict[str, Any] = {}
        self.learned: dict[str, Any] = {}
        self._config = config

    def learn(self, train: Sequence[Sample]) -> dict[str, Any]:
        return {}

    def check(self, samples: Sequence[Sample], split: str) -> None:
        faults = [f"sample {sample.id}: {fault}" for sample in samples if (fault := self._fault(sample))]
        if faults:
            raise DataError(
                f"split {split}: {len(faults)} of {len(samples)} rows cannot be used:" + "".join(f"\n  {fault}" for fault in faults),
                "a question and an answer in every row; choices that differ, and the answer among them",
                f"mend the rows, data.columns, or tasks.{self.name}.choices",
            )

    def _fault(self, sample: Sample) -> str | None:
        choices = self._choices(sample)
        if not self._question(sample).strip():
            return "no question"
        if not sample.references or not all(text.strip() for turn in sample.turns for text in turn):
            return "no answer"
        if empty := [text for text in sample.references if not text.strip()]:
            return f"an empty answer {empty[0]!r}"
        if choices and (fault := _fault_of(choices)):
            return f"choices {shown(list(choices), 12)}: {fault}"
        outside = [text for text in sample.references if choices and not short_answers.is_right(text, choices)]
        return f"answer {outside[0]!r} is none of the choices {shown(list(choices), 12)}" if outside else None

    # ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, sample: Sample, tokenizer: Any, *, learn: bool) -> Encoded:
        config, question = self._config, self._question(sample)
        limits: dict[str, Any] = {
            "max_tokens": config.max_text_tokens,
            "max_question_tokens": config.max_question_tokens,
            "template": config.template,
            "overflow": config.overflow,
        }
        try:
            if not question:
                raise DataError("no question", "one in data.columns.prompt or turns", "name the column, or set tasks.NAME.prompt")
            if sample.choices and (fault := _fault_of(sample.choices)):
                raise DataError(f"choices {shown(list(sample.choices), 12)}: {fault}", "two or more that differ", "mend the choices")
            if not learn:
                return encode_question(tokenizer, question, before=sample.turns[:-1], **limits)
            if not sample.references:
                raise DataError("no answer to learn", "one in data.columns.references or turns", "name the column that holds the answer")
            return encode_turns(tokenizer, [*sample.turns[:-1], (question, self._target(sample))], **limits)
        except DataError as error:
            raise said_of(error, sample.id, self.name) from error

    def _question(self, sample: Sample) -> str:
        return sample.turns[-1][0] if sample.turns else sample.prompt or self.prompt

    def _target(self, sample: Sample) -> str:
        """What is learned: the first reference, and where there are choices, as they spell it."""
        target = sample.references[0]
        return next((choice for choice in self._choices(sample) if short_answers.is_right(choice, [target])), target)

    def _choices(self, sample: Sample) -> tuple[str, ...]:
        return sample.choices or self._config.choices

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, logits: Tensor) -> list[Any]:
        raise NotImplementedError("a text is generated, token by token")

    def answer(self, head: Any, tokens: Tokens, batch: Batch) -> list[Any]:
        """A text; to a question with choices {answer: the most likely of them, scores: choice -> mean log-likelihood, generated: text}."""
        said = head.generate(tokens, batch, max_new_tokens=self._config.max_new_tokens, num_beams=self._config.num_beams)
        endings = [[self._ending(head.tokenizer, sample, choice) for choice in self._choices(sample)] for sample in batch.samples]
        if not any(endings):
            return list(said)
        found = mean_log_likelihoods(head, tokens, batch, endings)
        return [
            self._chosen(sample, values, text) if values else text for sample, values, text in zip(batch.samples, found, said, strict=True)
        ]

    def _ending(self, tokenizer: Any, sample: Sample, choice: str) -> tuple[int, ...]:
        try:
            return answer_tokens(tokenizer, self._question(sample), choice, template=self._config.template)
        except DataError as error:
            raise said_of(error, sample.id, self.name) from error

    def _chosen(self, sample: Sample, values: Sequence[float], generated: str) -> dict[str, Any]:
        scores = dict(zip(self._choices(sample), values, strict=True))
        return {"answer": max(scores, key=lambda choice: scores[choice]), "scores": scores, "generated": generated}

    def settle(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        return {}

    # ── baselines ────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def prior(self, train: Sequence[Sample]) -> str:
        return _most_frequent(Counter(answer for sample in train for _, answers in self._asked(sample) for answer in answers))

    def priors(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
        """The most frequent answer to each sample's question in training: to the same words; else to a question with the same first three
        words, two, one; else to any. Of a question with choices the most frequent of them."""
        tallies: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for sample in train:
            for question, answers in self._asked(sample):
                for kind in _kinds(question):
                    tallies[kind].update(answers)
        return [self._best([tallies[kind] for kind in _kinds(self._question(sample)) if kind in tallies], sample) for sample in samples]

    def from_neighbours(self, neighbours: Sequence[Sample]) -> str:
        return neighbours[0].references[0]

    def from_neighbours_of(self, sample: Sample, neighbours: Sequence[Sample]) -> str:
        """What the most similar of the neighbours was answered that was asked the most similar question, in the sense of `priors`."""
        tallies = []
        for kind in _kinds(self._question(sample)):
            for neighbour in neighbours:
                tallies += [Counter(answers[:1]) for question, answers in self._asked(neighbour) if kind in _kinds(question)]
        return self._best(tallies, sample)

    def _asked(self, sample: Sample) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every question of a sample with its answers."""
        if sample.turns:
            yield from ((question, (answer,)) for question, answer in sample.turns[:-1])
        yield self._question(sample), sample.references

    def _best(self, tallies: Sequence[Counter[str]], sample: Sample) -> str:
        """The most frequent answer of the first tally that has an allowed one."""
        choices = self._choices(sample)
        allowed = {short_answers.plain_form(choice): choice for choice in choices}
        for tally in tallies:
            counted = tally
            if allowed:
                counted = Counter()
                for answer, count in tally.items():
                    if (form := short_answers.plain_form(answer)) in allowed:
                        counted[allowed[form]] += count
            if counted:
                return _most_frequent(counted)
        return choices[0] if choices else ""

    # ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def truth(self, sample: Sample) -> list[str]:
        return list(sample.references)

    def score(self, answers: Sequence[Any], samples: Sequence[Sample]) -> Scores:
        """`accuracy` and the caption metrics of the answers; where any sample has choices, also the accuracy of what was generated."""
        references = [sample.references for sample in samples]
        texts = captions.score([_text(answer) for answer in answers], references, self._config.metric_unit)
        right = {"accuracy": _right([_text(answer) for answer in answers], references)}
        signature = {"accuracy": short_answers.SIGNATURE}
        if any(self._choices(sample) for sample in samples):
            right["accuracy_by_generation"] = _right([_generated(answer) for answer in answers], references)
            signature["accuracy_by_generation"] = f"of the generated text; {short_answers.SIGNATURE}"
            signature["accuracy"] += f"; of a question with choices the one with the highest {SCORING}"
        return Scores(
            corpus={**{name: sum(values) / len(values) for name, values in right.items()}, **texts.corpus},
            per_sample={**right, **texts.per_sample},
            signature={**signature, **texts.signature},
            higher_is_better={**dict.fromkeys(right, True), **texts.higher_is_better},
            statistics=texts.statistics,
        )

    def details(self, answers: Sequence[Any], samples: Sequence[Sample]) -> dict[str, Any]:
        """Of the questions with choices alone: how many, how often each way of answering is right, and by luck."""
        chosen = [(answer, sample) for answer, sample in zip(answers, samples, strict=True) if isinstance(answer, Mapping)]
        if not chosen:
            return {}
        references = [sample.references for _, sample in chosen]
        by_likelihood = _right([_text(answer) for answer, _ in chosen], references)
        by_generation = _right([_generated(answer) for answer, _ in chosen], references)
        allowed = [short_answers.is_right(_generated(answer), self._choices(sample)) for answer, sample in chosen]
        luck = [
            sum(short_answers.is_right(choice, sample.references) for choice in self._choices(sample)) / len(self._choices(sample))
            for _, sample in chosen
        ]
        return {
            "choices": {
                "num_samples": len(chosen),
                "accuracy_by_likelihood": sum(by_likelihood) / len(chosen),
                "accuracy_by_generation": sum(by_generation) / len(chosen),
                "generated_a_choice": sum(allowed) / len(chosen),
                "accuracy_by_luck": sum(luck) / len(chosen),
            }
        }


def _fault_of(choices: Sequence[str]) -> str | None:
    """What keeps answers from being told apart."""
    forms = [short_answers.plain_form(choice) for choice in choices]
    if len(choices) < 2:
        return "only one"
    if not all(forms):
        return "one without a word"
    alike = [choice for place, choice in enumerate(choices) if forms[place] in forms[:place]]
    return f"{alike[0]!r} equals another but for case, punctuation, articles or the spelling of a number" if alike else None


@lru_cache(maxsize=65_536)
def _kinds(question: str) -> tuple[tuple[str, ...], ...]:
    """The words of a question, and what it shares with more and more others: its first three words, two, one, none."""
    words = tuple(captions.tokens(question))
    return tuple(dict.fromkeys((("", *words), *(words[:count] for count in (3, 2, 1, 0)))))


def _most_frequent(tally: Counter[str]) -> str:
    return min(tally, key=lambda text: (-tally[text], text))  # the first in order of the alphabet among equals


def _text(answer: Any) -> str:
    return str(answer["answer"] if isinstance(answer, Mapping) else answer)


def _generated(answer: Any) -> str:
    return str(answer["generated"] if isinstance(answer, Mapping) else answer)


def _right(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return [float(short_answers.is_right(text, group)) for text, group in zip(texts, references, strict=True)]


def num_outputs(config: Config) -> int:
    return 0


def build(name: str, config: Config) -> VqaTask:
    return VqaTask(name, config)
