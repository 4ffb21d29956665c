"""Caption metrics: agreement with the COCO code, Korean, and the edges where scores tend to lie."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyegraft.errors import DataError
from eyegraft.metrics.captions import (
    HIGHER_IS_BETTER,
    TOKENISATION,
    Unit,
    characters,
    counted,
    longest_common_subsequence,
    normalised,
    score,
    tokens,
)

PREDICTIONS = [
    "A dog runs over the wet grass.",
    "two cats, asleep on a red sofa",
    "",
    "a man",
    "비가 내리는 서울의 거리",
    "The temperature is -3.5 degrees, don't go out!",
    "the the the the the",
    "grass",
]
REFERENCES = [
    ["A brown dog is running over the grass.", "the dog runs across wet grass"],
    ["Two cats sleep on a red couch.", "two cats asleep on a red sofa", "cats"],
    ["a bicycle leans on a wall"],
    ["a man rides a horse", "a man"],
    ["비가 내리는 부산의 거리", "서울의 거리에 비가 내린다"],
    ["It is -3.5 degrees outside; don't go out."],
    ["the cat is on the mat", "there is a cat on the mat"],
    ["grass", "a field of tall grass under the sky"],
]

words = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "wet", "grass", "비가", "내리는", "거리"]), max_size=9).map(" ".join)
spoken = words.filter(bool)
corpora = st.lists(st.tuples(words, st.lists(spoken, min_size=1, max_size=3)), min_size=1, max_size=6)


KOREAN = [
    "비가 내리는 서울의 거리",
    "고양이가 소파에서 잔다",
    "붉은 사과",
    "자전거",
    "눈 덮인 산과 호수, 그리고 오두막 한 채가 보이는 풍경",
]
FIVE = [  # captions of each of three pictures, as COCO has them
    [
        "A woman stands at a table in a bright kitchen.",
        "a person beside a kitchen table",
        "A kitchen with a woman and a table in it.",
        "Someone is standing in a room with chairs and a window",
        "A woman in a kitchen by the window.",
    ],
    [
        "A brown bear sits in the grass.",
        "A large bear is sitting on green grass.",
        "close up of a bear's face in a field",
        "The bear has a black nose.",
        "A big brown bear, looking at the camera",
    ],
    [
        "A bedroom with a bed and a bookshelf full of books.",
        "a neat bed with blue sheets next to a window",
        "A room has a blue bed and a large bookcase",
        "A bed and a mirror in a small bedroom.",
        "A blue bed stands under a shelf of books",
    ],
]
OTHERS = ["a woman in a kitchen", "a bear in the grass", "A bedroom with a blue bed"]


def coco(predictions: list[str], references: list[list[str]], unit: Unit) -> dict[str, tuple[float, list[float]]]:
    """Corpus and per-sample values of pycocoevalcap on our tokens, without its Java tokeniser."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    parted = characters if unit == "characters" else tokens
    answers = {index: [" ".join(parted(text))] for index, text in enumerate(predictions)}
    targets = {index: [" ".join(parted(text)) for text in group] for index, group in enumerate(references)}
    bleu, bleu_each = Bleu(4).compute_score(targets, answers, verbose=0)
    values = {f"bleu_{order + 1}": (bleu[order], bleu_each[order]) for order in range(4)}
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider())):
        corpus, each = scorer.compute_score(targets, answers)
        values[name] = (float(corpus), list(each))
    return values


def assert_agrees(predictions: list[str], references: list[list[str]], unit: Unit = "words") -> None:
    ours, theirs = score(predictions, references, unit), coco(predictions, references, unit)
    for name, (corpus, each) in theirs.items():
        assert ours.corpus[name] == pytest.approx(corpus, abs=1e-9), name
        if name in ours.per_sample:
            assert list(ours.per_sample[name]) == pytest.approx(each, abs=1e-9), name


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_agrees_with_the_coco_code(unit: Unit) -> None:
    assert_agrees(PREDICTIONS, REFERENCES, unit)


@settings(max_examples=60, deadline=None)
@given(corpora, st.sampled_from(["words", "characters"]))
def test_agrees_with_the_coco_code_on_anything(corpus: list[tuple[str, list[str]]], unit: Unit) -> None:
    assert_agrees([answer for answer, _ in corpus], [group for _, group in corpus], unit)


def identical_korean(others: list[str], references: list[list[str]], unit: Unit) -> None:
    """Its n-grams stand in no English reference, so they weigh most; one word alone has no longer n-grams, as everywhere."""
    predictions, references = [*KOREAN, *others], [*([text, "다른 말로 적은 설명"] for text in KOREAN), *references]
    assert_agrees(predictions, references, unit)
    found = score(predictions, references, unit)
    for place, text in enumerate(KOREAN):
        assert [found.per_sample[name][place] for name in ("exact_match", "token_f1", "rouge_l")] == pytest.approx([1, 1, 1])
        long = len((characters if unit == "characters" else tokens)(text)) > 3
        assert found.per_sample["cider"][place] > (4.9 if long else 1.2)
    assert all(value > 0.01 for value in found.corpus.values())


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_identical_korean_among_english_never_scores_zero(unit: Unit) -> None:
    identical_korean(OTHERS, FIVE, unit)
    alone = score(KOREAN, [[text] for text in KOREAN], unit)
    assert alone.corpus == pytest.approx({**dict.fromkeys(alone.corpus, 1.0), "cider": alone.corpus["cider"]})
    assert all(value > 2 for value in alone.per_sample["cider"])


def test_identical_korean_among_the_references_of_coco_never_scores_zero() -> None:
    place = Path(os.environ.get("EYEGRAFT_TEST_DATA") or "nowhere", "coco", "captions_val2017.json")
    if not place.is_file():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder with coco")
    captions: dict[int, list[str]] = {}
    for row in json.loads(place.read_text(encoding="utf-8"))["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    groups = list(captions.values())
    for unit in ("words", "characters"):
        identical_korean([group[0] for group in groups], [group[1:] for group in groups], unit)


def test_characters_see_a_word_under_another_particle() -> None:
    answer, reference = ["고양이를 보았다"], [["고양이가 보인다"]]
    assert score(answer, reference).corpus["token_f1"] == 0
    assert score(answer, reference, "characters").corpus["token_f1"] == pytest.approx(2 * 5 / 14)


def test_chrf_is_sacrebleu_over_100() -> None:
    from sacrebleu.metrics import CHRF

    predictions, references = PREDICTIONS[:2], [group[:2] for group in REFERENCES[:2]]
    theirs = CHRF().corpus_score(predictions, [[group[number] for group in references] for number in range(2)])
    assert score(predictions, references).corpus["chrf"] == pytest.approx(theirs.score / 100, abs=1e-12)


def test_chrf_takes_an_uneven_number_of_references() -> None:
    both = score(["cat", "dog"], [["cat"], ["bird", "dog"]])
    assert both.corpus["chrf"] == pytest.approx(1.0)


def test_identical_text_is_perfect() -> None:
    texts = ["a brown dog runs over wet grass", "비가 내리는 서울의 늦은 밤 거리", "two cats sleep on a sofa"]
    result = score(texts, [[text] for text in texts])
    best = dict.fromkeys(result.corpus, 1.0) | {"cider": 10.0}
    assert dict(result.corpus) == pytest.approx(best, abs=1e-8)


def test_an_empty_prediction_scores_zero() -> None:
    for empty in ("", "   ", "?!", "。"):
        result = score([empty, "a dog"], [["a cat", "?!"], ["a dog"]])
        assert {name: values[0] for name, values in result.per_sample.items()} == dict.fromkeys(result.per_sample, 0.0)
    alone = score([""], [["a cat"]])
    assert alone.corpus == dict.fromkeys(alone.corpus, 0.0)


def test_the_best_reference_counts() -> None:
    result = score(["a red car", "bus"], [["a bicycle", "A  red car."], ["a tram"]])
    assert list(result.per_sample["exact_match"]) == [1.0, 0.0]
    assert list(result.per_sample["token_f1"]) == [1.0, 0.0]


def test_token_f1_by_hand() -> None:
    # two of three words are right, two of four are found
    assert score(["a red car"], [["a big old car"]]).corpus["token_f1"] == pytest.approx(2 * 2 / (3 + 4))


def test_rouge_by_hand() -> None:
    # the longest common subsequence of "a b c" and "a x c d" is "a c": precision 2/3, recall 2/4
    precision, recall, beta_squared = 2 / 3, 2 / 4, 1.44
    expected = (1 + beta_squared) * precision * recall / (recall + beta_squared * precision)
    assert score(["a b c"], [["a x c d"]]).corpus["rouge_l"] == pytest.approx(expected)


def test_korean_composed_and_decomposed_are_one_text() -> None:
    text = "고양이가 소파에서 잔다"
    result = score([unicodedata.normalize("NFD", text), "개가 뛴다"], [[text], ["개가 뛴다"]])
    assert result.corpus["exact_match"] == 1.0
    assert result.corpus["rouge_l"] == pytest.approx(1.0)
    assert result.corpus["chrf"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, running!", ["a", "dog", "running"]),
        ("Don’t stop", ["don't", "stop"]),
        ("'quoted' dogs'", ["quoted", "dogs"]),
        ("36.5 °C, -3 and −4, 1,000.", ["36.5", "c", "-3", "and", "-4", "1,000"]),
        ("well-known snake_case", ["well", "known", "snake", "case"]),
        ("비가 내린다.", ["비가", "내린다"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_characters_keep_their_marks() -> None:
    assert characters("한글, ABC 36.5") == [*"한글abc36.5"]
    assert characters("हिन्दी") == ["हि", "न्", "दी"]


@given(st.text(max_size=40))
def test_tokens_of_tokens_are_the_same(text: str) -> None:
    assert tokens(" ".join(tokens(text))) == tokens(text)


@pytest.mark.parametrize(("text", "expected"), [(" A  Dog . ", "a dog"), ("Straße!?", "strasse"), ("e.g. this", "e.g. this"), ("...", "")])
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


@given(st.text(alphabet="abc", max_size=80), st.text(alphabet="abc", max_size=80))
def test_longest_common_subsequence(a: str, b: str) -> None:
    rows = [0] * (len(b) + 1)
    for left in a:
        previous = rows[:]
        for index, right in enumerate(b):
            rows[index + 1] = previous[index] + 1 if left == right else max(previous[index + 1], rows[index])
    assert longest_common_subsequence(a, b) == rows[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=3)), min_size=1, max_size=5))
def test_any_text_gives_finite_values_in_range(corpus: list[tuple[str, list[str]]]) -> None:
    result = score([answer for answer, _ in corpus], [group for _, group in corpus])
    for name, values in [*result.per_sample.items(), *((name, [value]) for name, value in result.corpus.items())]:
        assert all(0.0 <= value <= (10.0 if name == "cider" else 1.0) + 1e-6 for value in values), name
    for name, values in result.per_sample.items():
        assert result.corpus[name] == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_every_metric_says_how_it_was_computed_and_which_way_is_better(unit: Unit) -> None:
    result = score(["a dog"], [["a dog"]], unit)
    assert list(result.corpus) == list(result.signature) == list(HIGHER_IS_BETTER)
    assert TOKENISATION in counted("words") != counted("characters")
    assert all(result.signature[name].startswith(f"{counted(unit)}; ") for name in result.corpus if name not in ("exact_match", "chrf"))


def test_a_missing_reference_names_the_index() -> None:
    with pytest.raises(DataError, match=r"no reference at index 1, 3"):
        score(["a", "b", "c", "d"], [["a"], [], ["c"], []])


def test_references_as_one_string_are_refused() -> None:
    with pytest.raises(DataError, match=r"references\[0\] is a string"):
        score(["a dog"], ["a dog"])


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], [["a"], ["b"]])])
def test_sizes_must_match(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(DataError, match="expected: "):
        score(predictions, references)


def test_bleu_over_drawn_samples_is_bleu_of_these_samples() -> None:
    """An interval of BLEU must be of the very number that is reported."""
    scores = score(OTHERS, FIVE)
    for rows in ([0, 1, 2], [2, 0, 0], [1]):
        drawn = score([OTHERS[row] for row in rows], [FIVE[row] for row in rows])
        for order in range(1, 5):
            assert scores.statistics[f"bleu_{order}"](np.array(rows)) == pytest.approx(drawn.corpus[f"bleu_{order}"])
