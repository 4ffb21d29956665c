"""Pictures that look alike although their bytes differ: resized, saved again, cropped a little, brightened, stamped with a mark.

A fingerprint is a picture shrunk to 16 x 16. Candidates are found by a difference hash of it (Krawetz, "Kind of Like That", 2013; here 32
differences along rows and 32 along columns) and multi-index hashing (Norouzi, Punjani and Fleet 2012), so that 100,000 pictures take
seconds and not the square of it. A candidate is confirmed when one fingerprint can be explained by the other, another gain, another
black level, and a small shift and stretch along its own gradient (the tangent distance of Simard, LeCun and Denker 1993). The worst cells
are left out of that, so that a stamp in a corner does not hide a copy.

Where thousands of pictures are alike, such as advertisements of one template, their pairs are too many to look at or to keep. A pair is
passed over when those found before it join its pictures already and each of the two has enough partners without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 16
LENGTH = SIZE * SIZE * 3
"""Bytes of a fingerprint."""

MAX_BITS = 7
"""Bits of 64 in which the hashes of candidates may differ. Four words of 16 bits then agree in one but for one bit."""

MAX_MISFIT = 0.09
"""What the fit may leave unexplained, as a share of the contrast: the largest that raises no false alarm (docs/data.md)."""

ENOUGH = 3
"""Partners of a picture on one side from which on more of them are not looked for."""

_STEP = 3.0  # grey levels that a difference must exceed to set its bit: flat ground must not make bits of noise
_MIN_CONTRAST = 4.0  # grey levels of standard deviation; a flatter picture has nothing to be known by
_MIN_BITS = 4  # differences, either way, that a picture must have at least; a page with one speck on it has fewer
_MAX_OFFSET = 12.0  # grey levels; median over cells of what is left between candidates after their levels were matched
_WORST_CELLS = 0.04  # share of the cells that the fit may disregard
_PAIRS_AT_ONCE = 1 << 20
_PAIRS_A_ROUND = 1 << 16
_FITS_AT_ONCE = 1 << 10
_ONE_SIDE = ((0, 0),)

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Places of the first, places of the second, and their misfit: 0 for equal fingerprints, at most `MAX_MISFIT`."""


def fingerprint(image: Image.Image) -> bytes:
    """What a picture is compared by: [16, 16, 3] bytes. The picture is upright RGB, whatever its size and aspect ratio."""
    pixels: bytes = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=3.0).tobytes()
    return pixels


def alike_pairs(
    prints: Sequence[bytes], sides: Sequence[int] | None = None, between: Iterable[tuple[int, int]] = _ONE_SIDE, *, enough: int = ENOUGH
) -> Pairs:
    """Pairs of fingerprints that look alike, each once, in the order of their places.

    Nearly blank pictures (and empty fingerprints) are like nothing. Pictures that differ in little but small print are alike.

    Not every pair is given: one is left out when the others join its two pictures, by way of further pictures perhaps, and each of the two
    has `enough` partners on the other's side. So the connected sets are those of all pairs, a picture with any partner on a side has one
    there, and the pairs of n pictures that are all alike are about `enough` times n.

    Args:
        prints: of `fingerprint`, or empty where there is none.
        sides: a number for each fingerprint, from 0; None puts all on side 0.
        between: pairs of sides; only these are compared.
        enough: at least 1, which gives little more than the connected sets.
    """
    usable = np.array([place for place, item in enumerate(prints) if len(item) == LENGTH], dtype=np.int64)
    if len(usable) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    thumbs = np.frombuffer(b"".join(prints[place] for place in usable), np.uint8).reshape(-1, SIZE, SIZE, 3)
    hashes, cells, told = _hashes(thumbs)
    places, thumbs, hashes, cells = usable[told], thumbs[told], hashes[told], cells[told]
    known = _Known(np.zeros(len(places), np.int64) if sides is None else np.asarray(sides, np.int64)[places], enough)
    found: list[Pairs] = []
    for batch in _candidates(hashes, known, between):
        for first, second in _rounds(*batch, known):
            near = _levelled(cells[first], cells[second])
            first, second = first[near], second[near]
            for start in range(0, len(first), _FITS_AT_ONCE):
                one, other = first[start : start + _FITS_AT_ONCE], second[start : start + _FITS_AT_ONCE]
                misfit = np.minimum(_misfit(thumbs[one], thumbs[other]), _misfit(thumbs[other], thumbs[one]))
                keep = misfit <= MAX_MISFIT
                one, other = one[keep], other[keep]
                known.add(one, other)
                found.append((places[np.minimum(one, other)], places[np.maximum(one, other)], misfit[keep]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    left, right, misfits = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return left[order], right[order], misfits[order]


def alike_across(here: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[tuple[str, str, float]]:
    """(name here, name there, misfit) of the pictures that look alike, closest first; both map names to fingerprints.

    Every picture with a copy on the other side is there, with `ENOUGH` of its copies at least where it has as many.
    """
    names = [*here, *there]
    left, right, misfits = alike_pairs([*here.values(), *there.values()], [0] * len(here) + [1] * len(there), [(0, 1)])
    rows = [(names[one], names[other], float(misfit)) for one, other, misfit in zip(left, right, misfits, strict=True)]
    return sorted(rows, key=lambda row: (row[2], row[0], row[1]))


# ── candidates ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _hashes(thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.int64]]:
    """Hashes [N], grey cells [N, 64], and the places of pictures that have anything to be known by."""
    grey = thumbs.mean(3, dtype=np.float32)  # [N, 16, 16]
    marks = np.linspace(0, SIZE - 1, 9).round().astype(int)
    across = np.diff(grey.reshape(-1, 4, 4, SIZE).mean(2)[:, :, marks], axis=2)  # [N, 4, 8]
    down = np.diff(grey.reshape(-1, SIZE, 4, 4).mean(3)[:, marks, :], axis=1)  # [N, 8, 4]
    steps = np.stack([across.transpose(0, 2, 1), down], axis=1).reshape(len(grey), 8, 8)
    # each word of 16 bits takes its bits from all over the picture, because empty margins would give many pictures the same word
    words = np.stack([np.roll(steps[:, row], row, axis=1) for row in range(8)], axis=1).transpose(0, 2, 1)
    bits = np.packbits((words > _STEP).reshape(len(grey), 64), axis=1)
    contrast = thumbs.reshape(len(grey), -1, 3).std(axis=1, dtype=np.float32).max(axis=1)
    told = (contrast >= _MIN_CONTRAST) & ((np.abs(steps) > _STEP).sum((1, 2)) >= _MIN_BITS)
    cells = grey.reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(len(grey), 64)
    return bits.view(np.uint64).ravel(), cells, np.flatnonzero(told)


class _Known:
    """Which pictures the pairs found so far join, and how many partners each has on each side."""

    def __init__(self, sides: NDArray[np.int64], enough: int) -> None:
        self.sides, self.enough = sides, enough
        self.root = np.arange(len(sides))  # the first picture of its connected set: [N]
        self.partners = np.zeros((len(sides), int(sides.max(initial=0)) + 1), np.int64)
        self.changes = 0

    def settled(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs would show nothing new: [M]."""
        joined: NDArray[np.bool_] = self.root[first] == self.root[second]
        return joined & ~self.lacking(first, second) & ~self.lacking(second, first)

    def lacking(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the first have too few partners on the side of the second: [M]."""
        few: NDArray[np.bool_] = self.partners[first, self.sides[second]] < self.enough
        return few

    def sets(self, places: NDArray[np.int64], side: int) -> NDArray[np.int64]:
        """The connected set of each picture that has enough partners on a side, counted from 1, and 0 for the others: [M]."""
        return np.where(self.partners[places, side] >= self.enough, self.root[places] + 1, 0)

    def add(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        if not len(first):
            return
        np.add.at(self.partners, (first, self.sides[second]), 1)
        np.add.at(self.partners, (second, self.sides[first]), 1)
        self.changes += 1
        root = self.root
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            while root[one] != one:
                one = root[one]
            while root[other] != other:
                other = root[other]
            root[max(one, other)] = min(one, other)
        while (root[root] != root).any():
            root = root[root]
        self.root = root


def _candidates(hashes: NDArray[np.uint64], known: _Known, between: Iterable[tuple[int, int]]) -> Iterator[Places]:
    """Pairs of places whose hashes differ in at most `MAX_BITS`, each once, in batches; what is settled meanwhile is left out.

    Seven differing bits fall on four words: one word has at most one of them. So each word's table is looked up at the word itself and at
    its 16 neighbours, and nothing is missed.
    """
    words = hashes.view(np.uint16).reshape(-1, 4)
    for low, high in between:
        here, there = np.flatnonzero(known.sides == low), np.flatnonzero(known.sides == high)
        for band in range(4 if len(here) and len(there) else 0):
            table = _Table(words[:, band].astype(np.int64), there, low, known)
            for flipped in (0, *(1 << bit for bit in range(16))):
                for first, second in table.look_up(here, high, flipped):
                    if low == high:
                        once = first < second
                        first, second = first[once], second[once]
                    near = np.bitwise_count(hashes[first] ^ hashes[second]) <= MAX_BITS
                    first, second = first[near], second[near]
                    earlier = np.bitwise_count(words[first, :band] ^ words[second, :band]) <= 1
                    new = ~earlier.any(axis=1)  # else that word's table has given this pair already
                    yield first[new], second[new]


def _rounds(first: NDArray[np.int64], second: NDArray[np.int64], known: _Known) -> Iterator[Places]:
    """The pairs in parts: a few of every picture that lacks partners and of every two sets that are not joined, drawn by a fixed seed, then
    twice as many of those that are not settled by them."""
    for start in range(0, len(first), _PAIRS_A_ROUND):
        one, other = first[start : start + _PAIRS_A_ROUND], second[start : start + _PAIRS_A_ROUND]
        order = np.random.default_rng(start).permutation(len(one))  # the first few of each would all be of the same few pictures
        one, other, few = one[order], other[order], known.enough
        while len(one):
            new = ~known.settled(one, other)
            one, other = one[new], other[new]
            lacking, lacked = known.lacking(one, other), known.lacking(other, one)
            ends = known.root[one] * len(known.root) + known.root[other]
            now = np.where(lacking | lacked, lacking & (_turns(one) < few) | lacked & (_turns(other) < few), _turns(ends) < few)
            yield one[now], other[now]
            one, other, few = one[~now], other[~now], 2 * few


def _turns(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each value stood before: [M]."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    turns = np.empty(len(values), np.int64)
    turns[order] = np.arange(len(values)) - np.searchsorted(ranked, ranked)
    return turns


class _Table:
    """Pictures by one word of their hash. Under a word, those of one connected set that have enough partners stand together, so that a
    picture of the same set skips them all."""

    def __init__(self, words: NDArray[np.int64], there: NDArray[np.int64], side: int, known: _Known) -> None:
        self.words, self.there, self.side, self.known = words, there, side, known
        self._sort()

    def _sort(self) -> None:
        self.changes = self.known.changes
        codes = self._codes(self.words[self.there], self.known.sets(self.there, self.side))
        order = np.argsort(codes, kind="stable")
        self.order, self.codes = self.there[order], codes[order]
        self.starts = np.searchsorted(self.codes, np.arange((1 << 16) + 1, dtype=np.int64) << 32)

    def _codes(self, words: NDArray[np.int64], sets: NDArray[np.int64]) -> NDArray[np.int64]:
        return (words << 32) | sets

    def look_up(self, here: NDArray[np.int64], high: int, flipped: int) -> Iterator[Places]:
        """Pairs of a picture and one under its word, or its word's neighbour, in batches of about `_PAIRS_AT_ONCE`."""
        done, changes = 0, -1
        while done < len(here):
            if changes != self.known.changes:  # a batch has shown more, and the rest needs fewer pairs
                if self.changes != self.known.changes:
                    self._sort()
                changes, start = self.changes, done
                first = here[start:]
                probed, own = self.words[first] ^ flipped, self.known.sets(first, high)
                begins, ends = self.starts[probed], self.starts[probed + 1]
                skip_from, skipped = begins.copy(), np.zeros_like(begins)
                inside = np.flatnonzero((own > 0) & (ends > begins))
                wanted = self._codes(probed[inside], own[inside])
                skip_from[inside] = np.searchsorted(self.codes, wanted)
                skipped[inside] = np.searchsorted(self.codes, wanted, side="right") - skip_from[inside]
                counts = ends - begins - skipped
                totals = np.concatenate([[0], np.cumsum(counts)])
            at = done - start
            stop = max(at + 1, int(np.searchsorted(totals, totals[at] + _PAIRS_AT_ONCE, side="right")) - 1)
            repeats = counts[at:stop]
            ahead = np.arange(repeats.sum()) - np.repeat(totals[at:stop] - totals[at], repeats)
            place = np.repeat(begins[at:stop], repeats) + ahead
            place += np.where(place >= np.repeat(skip_from[at:stop], repeats), np.repeat(skipped[at:stop], repeats), 0)
            yield np.repeat(first[at:stop], repeats), self.order[place]
            done = start + stop


# ── confirming ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _levelled(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pairs of cells [M, 64] lie near enough for a fit to be worth its time: [M]."""
    gap = first - second
    gap -= np.median(gap, axis=1, keepdims=True)
    near: NDArray[np.bool_] = np.median(np.abs(gap), axis=1) <= _MAX_OFFSET
    return near


def _misfit(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What is left of target [M, 16, 16, 3] after the best fit of source, as a share of the target's contrast: [M]."""
    given, wished = source.astype(np.float64), target.astype(np.float64).reshape(len(target), -1, 3)
    slope_y, slope_x = np.gradient(given, axis=(1, 2))
    y, x = np.meshgrid(*(np.linspace(-1, 1, SIZE),) * 2, indexing="ij")
    y, x = y[..., None], x[..., None]
    parts = [given, np.ones_like(given), slope_x, x * slope_x, slope_y, y * slope_y]
    design = np.stack(parts, axis=-1).reshape(len(given), SIZE * SIZE, 3, len(parts))
    kept = np.ones(wished.shape[:2])  # [M, 256]
    for turn in range(3):
        weighted = design * kept[:, :, None, None]
        normal = np.einsum("mpck,mpcl->mkl", weighted, design, optimize=True) + 1e-3 * np.eye(len(parts))
        fitted = np.linalg.solve(normal, np.einsum("mpck,mpc->mk", weighted, wished, optimize=True)[..., None])
        left = wished - np.einsum("mpck,mk->mpc", design, fitted[..., 0], optimize=True)
        worst = (left**2).sum(axis=2)  # [M, 256]
        if turn < 2:
            kept = (worst <= np.quantile(worst, 1 - _WORST_CELLS, axis=1, keepdims=True)).astype(np.float64)
    count = 3 * kept.sum(axis=1)
    mean = (wished * kept[..., None]).sum((1, 2)) / count
    contrast = np.sqrt((((wished - mean[:, None, None]) ** 2) * kept[..., None]).sum((1, 2)) / count)
    misfit: NDArray[np.float64] = np.sqrt((worst * kept).sum(axis=1) / count) / np.maximum(contrast, _MIN_CONTRAST)
    return np.where(contrast < _MIN_CONTRAST, np.inf, misfit)  # all that was to be seen lay in the cells that are left out
