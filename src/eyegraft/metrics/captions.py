"""Scores of generated text against one or more references: captions, short answers, reports.

All values lie in [0, 1] except CIDEr-D, which lies in [0, 10]. ROUGE-L, CIDEr-D and BLEU agree with the COCO caption code
(pycocoevalcap 1.2) on the same tokens; only the tokenisation differs, because that code runs a Java program made for English.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sacrebleu import __version__ as sacrebleu_version
from sacrebleu.metrics.chrf import CHRF

from eyegraft.errors import DataError, shown
from eyegraft.metrics._bootstrap import OfSums
from eyegraft.types import Scores

TOKENISATION = "eyegraft-caption-1"
"""Name and version of `tokens`; a change of a single token needs a new number, because old scores stop being comparable."""

Unit = Literal["words", "characters"]
"""What the metrics count. Characters suit scripts written without spaces, and Korean, whose particles cling to its words."""

HIGHER_IS_BETTER: Mapping[str, bool] = dict.fromkeys(
    ("exact_match", "token_f1", "rouge_l", "cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "chrf"), True
)

ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
MAX_ORDER = 4
"""Longest n-gram of BLEU and CIDEr-D."""

NGrams = Counter[tuple[str, ...]]

_JOINERS = "'.,-"
_STRAY_JOINER = re.compile(r"(?<![^\W_])'|'(?![^\W_])|(?<!\d)[.,]|[.,](?!\d)|(?<!\s)-|-(?!\d)")


def score(predictions: Sequence[str], references: Sequence[Sequence[str]], unit: Unit = "words") -> Scores:
    """Score every prediction against the references of its sample.

    `per_sample` holds the metrics whose corpus value is the mean over samples, so that an interval resampled from it belongs to the
    reported number. BLEU and chrF pool their counts over the corpus: of BLEU `statistics` gives the value over any samples, chrF has no
    interval. A prediction without a word scores 0.

    Args:
        predictions: one answer per sample; may be empty.
        references: the acceptable answers of each sample, at least one.
        unit: what all but `exact_match` and `chrf` count.

    Raises:
        DataError: no samples, lists of different length, a sample without references, or references given as one string.
    """
    _check(predictions, references)
    parted: Callable[[str], list[str]] = characters if unit == "characters" else tokens
    hypotheses = [parted(text) for text in predictions]
    targets = [[parted(text) for text in group] for group in references]
    per_sample = {
        "exact_match": [_exact_match(text, group) for text, group in zip(predictions, references, strict=True)],
        "token_f1": [max(_token_f1(words, target) for target in group) for words, group in zip(hypotheses, targets, strict=True)],
        "rouge_l": [_rouge_l(words, group) for words, group in zip(hypotheses, targets, strict=True)],
        "cider": _cider_d(hypotheses, targets),
    }
    corpus = {name: math.fsum(values) / len(values) for name, values in per_sample.items()}
    bleu = _bleu_statistics(hypotheses, targets)
    everything = np.arange(len(hypotheses))
    corpus |= {name: statistic(everything) for name, statistic in bleu.items()}
    corpus["chrf"] = _corpus_chrf(predictions, references)
    return Scores(corpus, per_sample, _signature(unit), HIGHER_IS_BETTER, bleu)


def tokens(text: str) -> list[str]:
    """Split text into the words that every metric but `exact_match` and `chrf` counts (`eyegraft-caption-1`).

    Lower case, then Unicode NFC; letters, marks and digits make words, all else parts them. Three signs stay where they carry meaning:
    an apostrophe between letters (don't), a point or comma between digits (36.5), a minus before a number that follows a space (-3).
    Korean comes out as its words between spaces (eojeol, particles included); scripts written without spaces come out as one word per
    run, and are better served by `chrf`.
    """
    folded = unicodedata.normalize("NFC", text.lower()).replace("’", "'").replace("−", "-")
    kept = "".join(char if char in _JOINERS or unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return _STRAY_JOINER.sub(" ", f" {kept}").split()


def characters(text: str) -> list[str]:
    """The letters, digits and signs of `tokens`, one by one, with the marks that belong to them."""
    found: list[str] = []
    for word in tokens(text):
        for place, char in enumerate(word):
            if place and unicodedata.category(char)[0] == "M":
                found[-1] += char
            else:
                found.append(char)
    return found


def normalised(text: str) -> str:
    """The form in which `exact_match` compares: NFC, casefold, single spaces, no final `.`, `!` or `?`."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".!? ")


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise DataError(
            f"{len(predictions)} predictions and {len(references)} reference lists",
            "one list of references per prediction",
            "pass the answers and references of the same samples in the same order",
        )
    if not predictions:
        raise DataError("no predictions", "at least one sample to score", "choose a split that has rows")
    plain = [index for index, group in enumerate(references) if isinstance(group, str)]
    if plain:
        raise DataError(f"references[{plain[0]}] is a string", "a list of strings", "wrap a single reference in a list")
    empty = [index for index, group in enumerate(references) if not group]
    if empty:
        raise DataError(
            f"no reference at index {shown(empty)}", "at least one reference per sample", "add references, or leave the rows out"
        )


def counted(unit: Unit) -> str:
    """Name and version of what the metrics count."""
    return f"{TOKENISATION}, each word parted into its characters" if unit == "characters" else TOKENISATION


def _signature(unit: Unit) -> dict[str, str]:
    by = counted(unit)
    bleu = f"{by}; corpus counts, closest reference length, as pycocoevalcap 1.2; 0 to 1"
    return {
        "exact_match": "NFC, casefold, single spaces, final .!? dropped; best reference; 0 to 1",
        "token_f1": f"{by}; bag of words, best reference; 0 to 1",
        "rouge_l": f"{by}; beta {ROUGE_BETA}, as pycocoevalcap 1.2; 0 to 1",
        "cider": f"{by}; CIDEr-D, n 1-{MAX_ORDER}, sigma {CIDER_SIGMA:g}, document frequencies of these references; 0 to 10",
        **{f"bleu_{order}": bleu for order in range(1, MAX_ORDER + 1)},
        "chrf": f"sacrebleu {sacrebleu_version}; NFC, case kept, characters 1-6, words 0, beta 2, whitespace ignored; 0 to 1",
    }


def _exact_match(prediction: str, references: Sequence[str]) -> float:
    answer = normalised(prediction)
    return float(bool(answer) and any(answer == normalised(reference) for reference in references))


def _token_f1(hypothesis: Sequence[str], target: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the bags of words (Rajpurkar et al. 2016, SQuAD)."""
    shared = (Counter(hypothesis) & Counter(target)).total()
    return 2 * shared / (len(hypothesis) + len(target)) if shared else 0.0


def _rouge_l(hypothesis: Sequence[str], targets: Sequence[Sequence[str]]) -> float:
    """F-measure of the longest common subsequence (Lin 2004); precision and recall take their best reference separately, as COCO does."""
    common = [longest_common_subsequence(hypothesis, target) for target in targets]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(length / len(target) for length, target in zip(common, targets, strict=True) if target)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one machine-word operation per element of b (Hyyrö 2004, bit-parallel LCS)."""
    places: dict[str, int] = {}
    for index, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full  # a zero bit marks a place where the common subsequence grows
    for item in b:
        matched = row & places.get(item, 0)
        row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


def _ngrams(words: Sequence[str]) -> NGrams:
    """Counts of all n-grams, n = 1..MAX_ORDER."""
    return Counter(tuple(words[start : start + n]) for n in range(1, MAX_ORDER + 1) for start in range(len(words) - n + 1))


def _cider_d(hypotheses: Sequence[Sequence[str]], targets: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of every sample (Vedantam et al. 2015, section 5), mean over n = 1..4 and over references, times 10.

    An n-gram that stands in the references of every sample weighs nothing, so one sample alone scores 0; an answer of one word has no
    longer n-grams and reaches 2.5 at most.
    """
    target_counts = [[_ngrams(words) for words in group] for group in targets]
    frequency: Counter[tuple[str, ...]] = Counter()
    for group in target_counts:
        frequency.update({ngram for counts in group for ngram in counts})
    log_samples = math.log(len(targets))

    def weighted(counts: NGrams) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        vector = {ngram: count * (log_samples - math.log(max(1, frequency[ngram]))) for ngram, count in counts.items()}
        squares = [0.0] * MAX_ORDER
        for ngram, weight in vector.items():
            squares[len(ngram) - 1] += weight * weight
        # COCO measures length by the number of bigrams
        return vector, [math.sqrt(value) for value in squares], sum(count for ngram, count in counts.items() if len(ngram) == 2)

    scores = []
    for words, group in zip(hypotheses, target_counts, strict=True):
        answer = weighted(_ngrams(words))
        total = math.fsum(_cider_similarity(answer, weighted(counts)) for counts in group)
        scores.append(10.0 * total / (MAX_ORDER * len(group)))
    return scores


def _cider_similarity(
    answer: tuple[dict[tuple[str, ...], float], list[float], int], target: tuple[dict[tuple[str, ...], float], list[float], int]
) -> float:
    """Sum over n of the clipped cosine between two weighted n-gram vectors, damped by the difference in length."""
    (vector, norms, length), (target_vector, target_norms, target_length) = answer, target
    products = [0.0] * MAX_ORDER
    for ngram, weight in vector.items():
        target_weight = target_vector.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, target_weight) * target_weight  # clipped, so that repeating a word does not pay
    cosines = (
        product / (norm * target_norm) if norm and target_norm else product
        for product, norm, target_norm in zip(products, norms, target_norms, strict=True)
    )
    return math.fsum(cosines) * math.exp(-((length - target_length) ** 2) / (2 * CIDER_SIGMA**2))


def _bleu_statistics(hypotheses: Sequence[Sequence[str]], targets: Sequence[Sequence[Sequence[str]]]) -> dict[str, OfSums]:
    """BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), with the closest reference length, as functions of drawn samples."""
    terms = np.array([_bleu_counts(words, group) for words, group in zip(hypotheses, targets, strict=True)], np.float64)
    return {f"bleu_{order}": _bleu_statistic(terms, order) for order in range(1, MAX_ORDER + 1)}


def _bleu_counts(words: Sequence[str], group: Sequence[Sequence[str]]) -> list[int]:
    """[2 + 2·MAX_ORDER] of one sample: its length, that of the closest reference, n-grams that match, n-grams."""
    closest = min((abs(len(target) - len(words)), len(target)) for target in group)[1]
    allowed: NGrams = Counter()
    for target in group:
        allowed |= _ngrams(target)
    matched = [0] * MAX_ORDER
    for ngram, count in (_ngrams(words) & allowed).items():
        matched[len(ngram) - 1] += count
    return [len(words), closest, *matched, *(max(0, len(words) - n) for n in range(MAX_ORDER))]


def _bleu_statistic(terms: NDArray[np.float64], order: int) -> OfSums:
    small, tiny = 1e-9, 1e-15  # COCO's guards against division by zero; kept because they show in the value of an unmatched order

    def of(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        length, closest, matched, guessed = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + order], sums[:, 2 + MAX_ORDER : 2 + MAX_ORDER + order]
        brevity = np.exp(np.minimum(0.0, 1 - (closest + small) / (length + tiny)))
        values: NDArray[np.float64] = np.prod((matched + tiny) / (guessed + small), axis=1) ** (1 / order) * brevity
        return values

    def value(rows: NDArray[np.int64]) -> float:
        return float(of(terms[rows].sum(axis=0, keepdims=True), np.array([len(rows)], np.float64))[0])

    return OfSums(value, terms, of)


def _corpus_chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """chrF2 of the corpus (Popović 2015) by sacrebleu, scaled to [0, 1]."""
    answers = [unicodedata.normalize("NFC", text) for text in predictions]
    groups = [[unicodedata.normalize("NFC", text) for text in group] for group in references]
    # sacrebleu wants one list per reference number; None stands where a sample has fewer references
    streams = [[group[number] if number < len(group) else None for group in groups] for number in range(max(map(len, groups)))]
    return float(CHRF().corpus_score(answers, streams).score) / 100
