"""Tasks about weather maps: prompts from rows, answers that no prompt holds, limits, form and facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eyegraft.data.sentences import parted, sentences_of
from eyegraft.errors import DataError
from eyegraft.tasks import element_caption, element_summary_link, summary, text_summary
from eyegraft.types import IGNORE, Sample

FIRST = "The color fill shows two-hour pressure change, and the lines mark its contours."
SECOND = "An area of strong pressure falls lies in the north part of the map, over Nebraska."
THIRD = "Such a pattern points to a low that comes nearer."
FOURTH = "It supports the summary's concern for falling pressure over Nebraska and Kansas."
CAPTION = " ".join((FIRST, SECOND, THIRD, FOURTH))
SUMMARY = (
    "Areas affected...portions of Nebraska and Kansas Concerning...falling pressure Probability of impact...40 percent "
    "SUMMARY...Pressure drops quickly. In the north part of the domain the change is largest."
)


def row(*answers: str, **meta: Any) -> Sample:
    return Sample("row-17", Path("a.png"), references=answers, meta=meta)


def link_row(sentences: Any, told: str = SUMMARY, answer: str | None = None) -> Sample:
    texts = sentences_of(sentences) if isinstance(sentences, str) else sentences
    return row(answer if answer is not None else " ".join(parted(texts)[1]), sentences=sentences, summary=told)


def texts_of(made: Any, sample: Sample, tokenizer: Any) -> tuple[str, str]:
    """(what is asked, what is learned) as a model sees them."""
    text = made.encode(sample, tokenizer, learn=True)
    pairs = list(zip(text.input_ids, text.labels, strict=True))
    asked = [token for token, label in pairs if label == IGNORE]
    return tokenizer.decode(asked), tokenizer.decode([token for token, label in pairs if label != IGNORE])


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_sentence_is_the_end_and_a_short_one_takes_the_one_before_it_along() -> None:
    assert parted([FIRST, SECOND, THIRD, FOURTH]) == ([FIRST, SECOND, THIRD], [FOURTH])
    assert parted([FIRST, SECOND, THIRD, "So it is."]) == ([FIRST, SECOND], [THIRD, "So it is."])
    assert parted([FIRST]) == ([], [FIRST])
    assert parted(["Short one."]) == ([], ["Short one."])
    assert parted([]) == ([], [])
    assert sentences_of(" At 0.5 km it is warm!  Is it?\nYes... it is. ") == ["At 0.5 km it is warm!", "Is it?", "Yes...", "it is."]
    assert sentences_of(SUMMARY)[0].startswith("Areas affected...portions"), "no space follows"


LEAKS = {
    "once": (link_row([FIRST, SECOND, THIRD, FOURTH]), (FIRST, SECOND, THIRD)),
    "as a text": (link_row(CAPTION), (FIRST, SECOND, THIRD)),
    "twice": (link_row([FIRST, FOURTH, THIRD, FOURTH]), (FIRST, THIRD)),
    "twice, spelled otherwise": (link_row([FIRST, FOURTH.upper().replace(".", "!"), THIRD, FOURTH]), (FIRST, THIRD)),
    "within a longer sentence": (link_row([FIRST, f"Again: {FOURTH[:-1]}, as was said.", THIRD, FOURTH]), (FIRST, THIRD)),
    "in the summary": (link_row([FIRST, SECOND, THIRD, FOURTH], f"Pressure drops. {FOURTH} It will go on."), ("Pressure drops. It will",)),
    "a short end": (link_row([FIRST, SECOND, THIRD, "So it is."]), (FIRST, SECOND)),
    "a short end, and its long part in the summary": (
        link_row([FIRST, SECOND, THIRD, "So it is."], f"It falls. {THIRD}"),
        (FIRST, "It falls."),
    ),
    "a short end twice": (link_row([FIRST, "So it is.", THIRD, "So it is."]), (FIRST,)),
    "other words to learn": (link_row([FIRST, SECOND, THIRD, FOURTH], answer=f"{SECOND} That supports it."), (FIRST, THIRD)),
}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", LEAKS)
def test_the_link_prompt_never_holds_its_answer(name: str, chat: bool, folders: Any) -> None:
    sample, given = LEAKS[name]
    made = element_summary_link.build("link", element_summary_link.Config(max_text_tokens=4096))
    asked, learned = texts_of(made, sample, folders.tokenizer(chat=chat))
    assert sample.references[0] in learned
    for sentence in (*sentences_of(sample.references[0]), parted(sentences_of(CAPTION))[1][0] if "short" not in name else THIRD):
        assert " ".join(sentence.casefold().rstrip(".!").split()) not in asked.casefold()
    assert all(text in asked for text in given)
    assert given[0] in folders.tokenizer(chat=chat).decode(made.encode(sample, folders.tokenizer(chat=chat), learn=False).input_ids)


def test_a_prompt_that_spells_the_answer_out_is_refused(folders: Any) -> None:
    made = element_summary_link.build("link", element_summary_link.Config())
    sample = Sample("row-17", None, prompt=f"{CAPTION} Why?", references=(FOURTH,), meta={"sentences": [FIRST, SECOND, THIRD, FOURTH]})
    for learn in (True, False):
        with pytest.raises(DataError, match="sample row-17: its prompt holds the answer"):
            made.encode(sample, folders.tokenizer(), learn=learn)


def test_prompts_are_filled_from_the_row_and_may_be_other_ones(folders: Any) -> None:
    tokenizer = folders.tokenizer()
    captions = [{"condition": "thea", "caption": CAPTION}, "A second one.", *(["Further."] * 12)]
    made = text_summary.build("text", text_summary.Config(max_text_tokens=4096))
    asked, learned = texts_of(made, row(SUMMARY, captions=captions), tokenizer)
    assert f"1. thea: {CAPTION}\n2. A second one.\n3. Further." in asked
    assert "10. Further." in asked
    assert "11." not in asked
    assert SUMMARY in learned
    made = element_caption.build("caption", element_caption.Config(prompt="{{{condition}}}: say all."))
    assert "{thea}: say all." in texts_of(made, row(CAPTION, condition="thea"), tokenizer)[0]
    own = Sample("row-17", None, prompt="{braces} stay", references=(CAPTION,))
    assert "{braces} stay" in texts_of(made, own, tokenizer)[0]


@pytest.mark.parametrize(
    ("module", "prompt", "said"),
    [
        (summary, "{summary}", "nothing that a row fills: {condition}"),
        (element_summary_link, "{sumary}", "did you mean 'summary'"),
        (element_summary_link, "{sentences}", "{condition}, {description}, {summary}"),
        (element_caption, "{condition.__class__}", "nothing that a row fills"),
        (element_caption, "{condition!r}", "nothing that a row fills"),
        (text_summary, "{}", "nothing that a row fills"),
        (text_summary, "what { is", "written twice"),
    ],
)
def test_a_prompt_with_other_names_is_refused_with_the_recipe(module: Any, prompt: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        module.Config(prompt=prompt)
    assert said in str(caught.value)


BAD = {
    "a caption of one sentence": (element_caption, row("All in one.", condition="thea"), "a caption of one sentence: 'All in one.'"),
    "a link of one sentence": (element_summary_link, link_row([FOURTH]), "a caption of 1 sentence leaves none before its end"),
    "a link of two, the last short": (element_summary_link, link_row([THIRD, "It is."]), "a caption of 2 sentences leaves none"),
    "no sentences": (element_summary_link, row(FOURTH, summary=SUMMARY), "no sentences"),
    "an empty summary": (element_summary_link, link_row([FIRST, FOURTH], "  "), "summary '  '"),
    "no summary": (element_summary_link, row(FOURTH, sentences=[FIRST, FOURTH]), "no summary"),
    "a summary that is the answer": (element_summary_link, link_row([FIRST, FOURTH], FOURTH), "says the answer and nothing else"),
    "an empty summary to learn": (summary, row(" "), "an empty text ' '"),
    "nothing to learn": (summary, row(), "no text to learn"),
    "no captions": (text_summary, row(SUMMARY, captions=[]), "no captions"),
    "an empty caption": (text_summary, row(SUMMARY, captions=["A.", {"caption": ""}]), "caption 2 of its case is ''"),
    "facts as text": (summary, row(SUMMARY, facts="north"), "facts 'north'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_of_no_use_is_named(name: str, folders: Any) -> None:
    module, sample, said = BAD[name]
    made = module.build("made", module.Config())
    good = row(f"{FOURTH} It does so in full.", sentences=[FIRST, SECOND, THIRD, FOURTH], summary=SUMMARY, captions=[CAPTION])
    with pytest.raises(DataError, match="split val: 1 of 2 rows of task 'made'") as caught:
        made.check([good, sample], "val")
    assert "sample row-17: " in str(caught.value)
    assert said in str(caught.value)


def test_what_the_prompt_lacks_names_sample_and_task(folders: Any) -> None:
    made = text_summary.build("report", text_summary.Config())
    with pytest.raises(DataError, match="sample row-17: no captions") as caught:
        made.encode(row(SUMMARY), folders.tokenizer(), learn=False)
    assert "tasks.report.prompt" in caught.value.fix


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("chat", [True, False])
def test_the_answer_keeps_half_the_limit_and_the_prompt_the_rest(chat: bool, folders: Any) -> None:
    tokenizer = folders.tokenizer(chat=chat)
    limit = 300
    made = text_summary.build("text", text_summary.Config(max_text_tokens=limit, max_new_tokens=100))
    for answer in ("It is quiet.", SUMMARY * 3):
        text = made.encode(row(answer, captions=[CAPTION] * 10), tokenizer, learn=True)
        learned = [label for label in text.labels if label != IGNORE]
        whole = len(tokenizer(f" {answer}")["input_ids"]) + 1
        assert text.truncated
        assert len(text.input_ids) <= limit
        assert len(text.input_ids) > limit - 8, "the prompt takes what is left"
        if whole <= limit // 2:
            assert learned[-1] == tokenizer.eos_token_id
            assert answer in tokenizer.decode(learned)
        else:
            assert limit // 2 - 4 <= len(learned) <= limit // 2
            assert tokenizer.eos_token_id not in learned, "a text that was cut has not ended"
    asked = made.encode(row(captions=[CAPTION] * 10), tokenizer, learn=False)
    assert asked.truncated
    assert limit - 100 - 8 < len(asked.input_ids) <= limit - 100, "room for the answer"
    assert text_summary.Config().prompt.partition("{")[0].strip() in tokenizer.decode(asked.input_ids), "the question is never cut"


def test_a_short_limit_leaves_half_of_it_to_the_answer(folders: Any) -> None:
    made = summary.build("summary", summary.Config(prompt="Word " * 100, max_text_tokens=80, max_new_tokens=256))
    asked = made.encode(row(), folders.tokenizer(), learn=False)
    assert 30 < len(asked.input_ids) <= 40


def test_overflow_may_be_an_error(folders: Any) -> None:
    made = summary.build("report", summary.Config(overflow="error", max_text_tokens=64))
    with pytest.raises(DataError, match="sample row-17") as caught:
        made.encode(row(SUMMARY * 3), folders.tokenizer(), learn=True)
    assert "tasks.report.overflow=truncate" in caught.value.fix


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

FACTS = {"variable": "pchg", "place": "north", "over": "Nebraska", "sign": "falls", "level": "strong"}


def test_facts_and_form_of_captions() -> None:
    made = element_caption.build("caption", element_caption.Config())
    samples = [row(CAPTION, facts=FACTS), row(CAPTION, facts={**FACTS, "place": "south", "sign": "rises"})]
    scores = made.score([CAPTION, f"{FIRST} {SECOND}"], samples)
    assert next(iter(scores.corpus)) == "fact_score", "results are compared by the first"
    assert scores.per_sample["fact_score"] == [1.0, 0.5]
    assert {name: scores.corpus[f"fact_{name}"] for name in element_caption.FACTS} == {"variable": 1, "place": 0.5, "sign": 0.5, "level": 1}
    assert scores.per_sample["sentence_count_right"] == [1.0, 0.0]
    assert scores.per_sample["ends_in_full"] == [1.0, 1.0]
    assert scores.per_sample["exact_match"] == [1.0, 0.0]
    assert list(scores.corpus) == [name for name in made.directions if name in scores.corpus]
    assert set(scores.signature) == set(scores.corpus) == set(made.directions)
    told = made.details([CAPTION, f"{FIRST} {SECOND}"], samples)
    assert told["sentences"] == {"2": 1, "4": 1}
    assert told["facts"] == {"num_samples": 2, "variable": 1, "place": 0.5, "over": 1, "sign": 0.5, "level": 1}


def test_rows_without_facts_leave_them_out() -> None:
    made = element_caption.build("caption", element_caption.Config())
    scores = made.score([CAPTION], [row(CAPTION)])
    assert not [name for name in (*scores.corpus, *scores.per_sample) if name.startswith("fact")]
    assert next(iter(scores.corpus)) == "rouge_l"
    assert "facts" not in made.details([CAPTION], [row(CAPTION)])
    some = made.score([CAPTION, ""], [row(CAPTION, facts=FACTS), row(CAPTION)])
    assert some.corpus["fact_score"] == 1.0
    assert "fact_score" in some.statistics
    assert "fact_score" not in some.per_sample


def test_facts_of_summaries_and_links() -> None:
    facts = {"concern": "falling pressure", "area": ["Nebraska", "Kansas"], "place": "north", "percent": 40}
    for module in (summary, text_summary):
        scores = module.build("made", module.Config()).score([SUMMARY, "Quiet."], [row(SUMMARY, facts=facts)] * 2)
        assert scores.per_sample["fact_score"] == [1.0, 0.0]
        assert "sentence_count_right" not in scores.corpus
    made = element_summary_link.build("link", element_summary_link.Config())
    known = row(FOURTH, facts={"relation": "supports", "concern": "falling pressure"})
    other = "On its own it says little about the concern for falling pressure. It is what it is."
    scores = made.score([FOURTH, other, "Fine."], [known] * 3)
    assert scores.per_sample["fact_score"] == [1.0, 0.5, 0.0]
    assert scores.per_sample["fact_relation"] == [1.0, 0.0, 0.0]
    scores = made.score(["One. Two", "One. Two. Three.", "", 'She said "so it is."'], [row(FOURTH)] * 4)
    assert scores.per_sample["sentence_count_right"] == [1.0, 0.0, 0.0, 1.0]
    assert scores.per_sample["ends_in_full"] == [0.0, 1.0, 0.0, 1.0]


def test_the_best_blind_answer_is_that_of_the_same_kind_of_map() -> None:
    made = element_caption.build("caption", element_caption.Config())
    train = [row(text, condition=kind) for text, kind in (("A.", "thea"), ("B.", "thea"), ("B.", "thea"), ("C.", "mcon"))]
    asked = [row(condition="mcon"), row(condition="thea"), row(condition="scp")]
    assert made.priors(train, asked) == ["C.", "B.", "B."]
    assert made.prior(train) == "B."
