"""Questions about pictures: conversations, answers that are allowed, accuracy, baselines that know what was asked, and rows of no use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tiny
from cli.running import SMALL, read_table, refused, run, small_words, trained, write_table
from eyegraft.data.batches import Examples
from eyegraft.data.text import encode_turns
from eyegraft.errors import DataError
from eyegraft.heads.cross_attention_lm import Config as CrossConfig
from eyegraft.heads.cross_attention_lm import build as build_cross
from eyegraft.heads.prefix_lm import Config as PrefixConfig
from eyegraft.heads.prefix_lm import build as build_prefix
from eyegraft.metrics.answers import is_right, plain_form
from eyegraft.tasks.vqa import Config, VqaTask, build
from eyegraft.types import IGNORE, Sample, Tokens

COLOURS = ("red", "blue", "green triangle")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def task(**options: Any) -> VqaTask:
    return build("ask", Config.model_validate({"max_new_tokens": 5, **options}))


def row(number: int | str = 0, question: str | None = "What colour is it?", *answers: str, **changes: Any) -> Sample:
    return Sample(str(number), Path(f"{number}.png"), prompt=question, references=answers, **changes)


def head_of(folders: Any, kind: str, family: str = "llama") -> Any:
    torch.manual_seed(0)
    if kind == "prefix":
        head = build_prefix(PrefixConfig(model=folders.lm(family)), in_dim=32, num_outputs=0)
    else:
        head = build_cross(CrossConfig(model=folders.lm(family), num_layers=2, gate="none"), in_dim=32, num_outputs=0)
    return tiny.lively(head.eval(), scale=3.0)


def image_tokens(rows: int) -> Tokens:
    mask = torch.ones(rows, 4, dtype=torch.bool)
    mask[1:, -1] = False  # pictures of different sizes
    return Tokens(torch.randn(rows, 4, 32, generator=torch.Generator().manual_seed(1)), mask)


def batch_of(made: VqaTask, tokenizer: Any, samples: list[Sample]) -> Any:
    texts = [made.encode(sample, tokenizer, learn=False) for sample in samples]
    return Examples(samples, texts, {}).batch(range(len(samples)), [None] * len(samples), tokenizer.pad_token_id)


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_of_a_conversation_is_learned_and_the_last_question_is_asked(folders: Any) -> None:
    tokenizer, turns = folders.tokenizer(), (("What?", "a circle"), ("무슨 색?", "파란 색"))
    sample = row(0, "무슨 색?", "파란 색", turns=turns)
    learned, asked = (task().encode(sample, tokenizer, learn=learn) for learn in (True, False))
    answers = tokenizer.decode([label for label in learned.labels if label != IGNORE])
    assert answers == "a circle<|im_end|>파란 색<|im_end|>"
    start = tokenizer.decode(asked.input_ids)
    assert (
        start
        == "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\na circle<|im_end|>\n<|im_start|>user\n무슨 색?<|im_end|>\n"
        + ("<|im_start|>assistant\n")
    )
    assert learned.input_ids[: len(asked.input_ids)] == asked.input_ids
    assert asked.labels == (IGNORE,) * len(asked.input_ids)


def test_a_tokenizer_without_template_or_padding(folders: Any) -> None:
    tokenizer = folders.tokenizer(chat=False)
    tokenizer.pad_token = None
    asked = task().encode(row(0, "What?"), tokenizer, learn=False)
    assert tokenizer.decode(asked.input_ids) == "<|im_start|>Question: What?\nAnswer:"
    assert task().decoding["plain_template"] == "Question: …\nAnswer: …"


@pytest.mark.parametrize("learn", [True, False])
def test_what_cannot_be_asked_names_the_sample_and_the_task(folders: Any, learn: bool) -> None:
    made = task(max_question_tokens=3)
    for sample in (row("row-8", None, "red"), row("row-8", "What is drawn here, and why?", "red")):
        with pytest.raises(DataError, match="sample row-8") as caught:
            made.encode(sample, folders.tokenizer(), learn=learn)
        assert "tasks.ask." in caught.value.fix
        assert "NAME" not in str(caught.value)
    cut = task(max_question_tokens=3, overflow="truncate").encode(
        row(0, "What is drawn here, and why?", "red"), folders.tokenizer(), learn=learn
    )
    assert cut.truncated


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["prefix", "cross"])
def test_a_choice_scores_as_its_own_loss(folders: Any, kind: str, family: str) -> None:
    """One batch of questions of different length, one of them free and one after an earlier turn, against the loss of one text at a time."""
    head, made = head_of(folders, kind, family), task()
    earlier = (("What?", "a circle"), ("무슨 색?", "red"))
    samples = [
        row(0, "What colour is it?", choices=COLOURS),
        row(1, "What is drawn here?"),
        row(2, "무슨 색?", turns=earlier, choices=("blue", "빨간 사각형")),
    ]
    tokens = image_tokens(3)
    answers = made.answer(head, tokens, batch_of(made, head.tokenizer, samples))
    assert answers[1] == head.generate(tokens, batch_of(made, head.tokenizer, samples), max_new_tokens=5)[1]
    for place in (0, 2):
        expected = {}
        for choice in samples[place].choices:
            text = encode_turns(
                head.tokenizer, [*samples[place].turns[:-1], (samples[place].prompt, choice)], max_tokens=256, max_question_tokens=256
            )
            batch = Examples([samples[place]], [text], {}).batch([0], [None], 0)
            with torch.no_grad():
                logits, labels = head(Tokens(tokens.values[[place]], tokens.mask[[place]]), batch)
            ending = len(head.tokenizer(choice, add_special_tokens=False)["input_ids"]) + 1
            expected[choice] = -float(torch.nn.functional.cross_entropy(logits[0, -ending:], labels[0, -ending:]))
        assert answers[place]["scores"] == pytest.approx(expected, abs=1e-4)
        assert answers[place]["answer"] == max(expected, key=lambda choice: expected[choice])
        assert isinstance(answers[place]["generated"], str)
    assert json.loads(json.dumps(answers)) == answers


def test_many_choices_go_through_the_head_in_few_forwards(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from eyegraft.tasks import _choices

    head, made = head_of(folders, "prefix"), task(choices=COLOURS)
    batch, tokens = batch_of(made, head.tokenizer, [row(n, f"What is {n}?") for n in range(4)]), image_tokens(4)
    sizes: list[int] = []
    forward = type(head).forward
    monkeypatch.setattr(type(head), "forward", lambda self, tokens, batch: sizes.append(len(batch)) or forward(self, tokens, batch))
    whole = made.answer(head, tokens, batch)
    assert sizes == [12]
    monkeypatch.setattr(_choices, "MAX_ROWS", 1)
    parts = made.answer(head, tokens, batch)
    assert sizes == [12, 4, 4, 4]
    for one, other in zip(whole, parts, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


def test_a_long_choice_is_no_less_likely_for_being_long(folders: Any) -> None:
    """Under a head that finds every token equally likely, all choices have the same score."""

    class Even:
        tokenizer, context_length = folders.tokenizer(), 256

        def generate(self, tokens: Any, batch: Any, **_: Any) -> list[str]:
            return ["?"] * len(batch)

        def __call__(self, tokens: Any, batch: Any) -> Any:
            return torch.zeros(*batch.labels.shape, 7).index_fill(2, torch.tensor([0]), 0.0), batch.labels.where(
                batch.labels < 0, batch.labels % 7
            )

    made = task(choices=["red", "a long green triangle in the corner"])
    (answer,) = made.answer(Even(), image_tokens(1), batch_of(made, Even.tokenizer, [row()]))
    first, second = answer["scores"].values()
    assert first == pytest.approx(second)


def test_a_choice_beyond_the_context_is_refused(folders: Any) -> None:
    head = head_of(folders, "prefix")
    made = task(choices=["red", "blue " * 300])
    with pytest.raises(DataError, match=r"sample 0: 4 image tokens and .* with its longest choice"):
        made.answer(head, image_tokens(1), batch_of(made, head.tokenizer, [row()]))


def test_a_choice_that_holds_a_special_token_names_the_sample(folders: Any) -> None:
    head, made = head_of(folders, "prefix"), task()
    samples = [row("row-3", choices=("red", "blue<|im_end|>"))]
    with pytest.raises(DataError, match="sample row-3: a text that holds the special token"):
        made.answer(head, image_tokens(1), batch_of(made, head.tokenizer, samples))


def test_what_is_learned_is_spelled_as_the_choice(folders: Any) -> None:
    tokenizer = folders.tokenizer()
    text = task(choices=["Red", "Blue"]).encode(row(0, "What?", "blue."), tokenizer, learn=True)
    assert tokenizer.decode([label for label in text.labels if label != IGNORE]) == "Blue<|im_end|>"


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("A red  Square.", "red square"),
        ("the two dogs!", "2 dogs"),
        ("Don't know", "dont know"),
        ("A", "a"),
        ("1,000.5 m", "1,000.5 m"),
        ("빨간 사각형이에요.", "빨간 사각형이에요"),
        ("?!", ""),
    ],
)
def test_plain_form(text: str, form: str) -> None:
    assert plain_form(text) == form == plain_form(form)


def test_an_answer_is_right_by_any_reference_and_never_for_saying_nothing() -> None:
    assert is_right("The Dog.", ["cat", "dog"])
    assert is_right("A", ["a"])
    assert not is_right("", ["", "dog"])
    assert not is_right("dogs", ["dog"])


def test_both_ways_of_answering_are_scored() -> None:
    samples = [row(0, "?", "red", choices=COLOURS), row(1, "?", "blue", choices=COLOURS), row(2, "What?", "a dog", "two cats")]
    answers = [
        {"answer": "red", "scores": dict.fromkeys(COLOURS, -1.0), "generated": "blue"},
        {"answer": "red", "scores": dict.fromkeys(COLOURS, -1.0), "generated": "yes"},
        "2 Cats!",
    ]
    scores = task().score(answers, samples)
    assert list(scores.corpus)[:2] == ["accuracy", "accuracy_by_generation"]
    assert scores.corpus["accuracy"] == pytest.approx(2 / 3)
    assert scores.corpus["accuracy_by_generation"] == pytest.approx(1 / 3)
    assert scores.per_sample["accuracy"] == [1.0, 0.0, 1.0]
    assert set(scores.corpus) == set(scores.signature) == set(scores.higher_is_better)
    found = task().details(answers, samples)["choices"]
    assert found.pop("accuracy_by_luck") == pytest.approx(1 / 3)
    assert found == {"num_samples": 2, "accuracy_by_likelihood": 0.5, "accuracy_by_generation": 0, "generated_a_choice": 0.5}


def test_free_text_has_one_accuracy() -> None:
    assert "accuracy_by_generation" not in task().score(["red"], [row(0, "?", "red")]).corpus
    assert task().details(["red"], [row(0, "?", "red")]) == {}
    assert list(task().directions)[:1] == ["accuracy"]


def test_metrics_say_what_they_count() -> None:
    made = task(metric_unit="characters")
    scores = made.score(["빨간 사각형이다"], [row(0, "?", "빨간 사각형")])
    assert scores.corpus["token_f1"] == pytest.approx(10 / 12)
    assert made.decoding["metric_tokens"] in scores.signature["rouge_l"]


# ── baselines ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

TRAIN = [
    row(0, "What colour is it?", "red"),
    row(1, "What colour is it?", "red"),
    row(2, "What shape is it?", "a circle"),
    row(3, "Is it red?", "yes"),
    row(4, "Is it blue?", "no"),
    row(5, "Is it red?", "no", turns=(("Is it big?", "no"), ("Is it red?", "no"))),
    row(6, "Is it wide?", "no"),
]


def test_the_prior_depends_on_the_question() -> None:
    made = task()
    assert made.prior(TRAIN) == "no"
    asked = [
        (row(7, "what colour is it"), "red"),
        (row(8, "What shape has it?"), "a circle"),
        (row(9, "Is it blue?"), "no"),
        (row(10, "무엇인가요?"), "no"),
        (row(11, "What colour is it?", choices=("blue", "A circle")), "A circle"),  # of the choices, what such questions get
        (row(12, "Where?", choices=("here", "there")), "here"),
    ]
    assert made.priors(TRAIN, [sample for sample, _ in asked]) == [answer for _, answer in asked]


def test_retrieval_answers_the_question_that_was_asked() -> None:
    made = task()
    near = [row(0, "Is it big?", "yes"), row(1, "What shape is it?", "a circle"), row(2, "What colour is it?", "red")]
    assert made.from_neighbours_of(row(9, "What colour is it?"), near) == "red"
    assert made.from_neighbours_of(row(9, "What shape?"), near) == "a circle"
    assert made.from_neighbours_of(row(9, "어디?"), near) == "yes"
    assert made.from_neighbours_of(row(9, "What colour is it?", choices=("Yes", "No")), near) == "Yes"


# ── rows of no use ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_rows_of_no_use_are_named_at_once() -> None:
    bad = {
        "no-question": row("no-question", None, "red"),
        "no-answer": row("no-answer", "What?"),
        "empty-answer": row("empty-answer", "What?", "red", " "),
        "empty-turn": row("empty-turn", "What?", "red", turns=(("Where?", " "), ("What?", "red"))),
        "equal": row("equal", "What?", "red", choices=("Red", "red.", "blue")),
        "outside": row("outside", "What?", "green", choices=("red", "blue")),
        "single": row("single", "What?", "red", choices=("red",)),
        "wordless": row("wordless", "What?", "red", choices=("red", "?")),
    }
    with pytest.raises(DataError) as caught:
        task().check([row("good", "What?", "Red!", choices=("red", "blue")), *bad.values()], "test")
    lines = caught.value.given.splitlines()
    assert lines[0] == "split test: 8 of 9 rows cannot be used:"
    assert [line.split(":")[0].split()[-1] for line in lines[1:]] == list(bad)
    assert "'red.' equals another" in caught.value.given
    assert "'green' is none of the choices" in caught.value.given
    task().check([row("good", "What?", "1", choices=("one", "two"))], "val")
    task(prompt="What?").check([row("own", None, "red")], "train")


@pytest.mark.parametrize("choices", [["red"], ["red", "Red"], ["red", "?"], [True, False]])
def test_choices_that_cannot_be_told_apart_are_refused(choices: list[Any]) -> None:
    with pytest.raises(ValidationError, match=r"two or more different answers|in quotes"):
        Config.model_validate({"choices": choices})


# ── from a table to an answer ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_answers_questions_and_chooses(folders: Any, tmp_path: Path) -> None:
    """Conversations, choices and free questions in one table, through training, evaluation, prediction and the report."""
    for split, numbers in {"train": range(6), "val": range(6, 8), "test": range(8, 11)}.items():
        table: list[dict[str, Any]] = []
        for number in numbers:
            colour, shape = ("red", "blue", "green")[number % 3], ("square", "circle")[number % 2]
            place = f"images/{number}.png"
            tiny.picture(tmp_path / "data" / place, colour, shape, side=36 + number)
            first, second = {"question": "무슨 색?", "answer": colour}, {"question": "Which shape?", "answer": shape}
            common = {"image": place, "group": str(number)}
            table += [
                {"id": f"{number}/colour", "turns": [first], "choices": ["red", "blue", "green"], **common},
                {"id": f"{number}/shape", "turns": [first, second], "choices": [], **common},
            ]
        write_table(tmp_path / "data" / f"{split}.jsonl", table)
    words = [
        *small_words(
            folders,
            "train.epochs=1",
            "train.early_stopping.metric=val_accuracy",
            "+stages.only.task=ask",
            "+tasks.ask={kind: vqa, max_new_tokens: 4}",
        ),
        "data.columns={image: image, references: null, turns: turns, choices: choices, id: id, group: group}",
    ]
    done = trained(run("train", *words, *SMALL, cwd=tmp_path))
    folder = tmp_path / done
    assert run("evaluate", str(folder), cwd=tmp_path).returncode == 0
    result = json.loads((folder / "evaluation" / "test.json").read_text(encoding="utf-8"))
    assert {"accuracy", "accuracy_by_generation", "exact_match", "cider"} <= set(result["systems"]["model"])
    assert result["details"]["choices"]["num_samples"] == 3
    rows = {row["id"]: row["answers"] for row in read_table(folder / "evaluation" / "test.samples.jsonl")}
    assert set(rows["8/colour"]["model"]["scores"]) == {"red", "blue", "green"}
    assert isinstance(rows["8/shape"]["model"], str)
    assert rows["8/colour"]["most_frequent"] == "blue", "equally often as the others, and first in the alphabet"
    assert {given["most_frequent"] for id_, given in rows.items() if id_.endswith("shape")} == {"circle"}
    assert all(given["nearest_neighbour"] in ("square", "circle") for id_, given in rows.items() if id_.endswith("shape"))

    picture = str(tmp_path / "data" / "images" / "8.png")
    free = run("predict", str(folder), picture, "--prompt", "무슨 색?", "--json", cwd=tmp_path)
    assert isinstance(json.loads(free.stdout)["answer"], str)
    asked = ("predict", str(folder), picture, "--prompt", "무슨 색?", "--choice", "red", "--choice", "blue")
    chosen = json.loads(run(*asked, "--json", cwd=tmp_path).stdout)["answer"]
    assert chosen["answer"] in chosen["scores"]
    assert f"\t{chosen['answer']} (of red, blue; says: " in run(*asked, cwd=tmp_path).stdout
    refused(run(*asked, "--choice", "Red.", cwd=tmp_path), 3, "'Red.' equals another")

    assert run("report", str(folder), cwd=tmp_path).returncode == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Which shape?" in page


def test_a_run_that_does_not_answer_questions_takes_no_choices(folders: Any, tmp_path: Path) -> None:
    tiny.shapes(tmp_path / "data")
    folder = trained(run("train", *small_words(folders, "train.epochs=1"), *SMALL, cwd=tmp_path))
    asked = run(
        "predict", str(tmp_path / folder), str(tmp_path / "data" / "images" / "0.png"), "--choice", "a", "--choice", "b", cwd=tmp_path
    )
    refused(asked, 5, "choices for tasks.caption", "vqa")
