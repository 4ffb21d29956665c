"""Pictures that look alike although their bytes differ: resized, saved again, cropped a little, brightened, stamped with a mark.

A fingerprint is a picture shrunk to 16 x 16. Candidates are found by a difference hash of it (Krawetz, "Kind of Like That", 2013; here 32
differences along rows and 32 along columns) and multi-index hashing (Norouzi, Punjani and Fleet 2012), so that 100,000 pictures take
seconds and not the square of it. A candidate is confirmed when one fingerprint can be explained by the other, another gain, another
black level, and a small shift and stretch along its own gradient (the tangent distance of Simard, LeCun and Denker 1993). The worst cells
are left out of that, so that a stamp in a corner does not hide a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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

_STEP = 3.0  # grey levels that a difference must exceed to set its bit: flat ground must not make bits of noise
_MIN_CONTRAST = 4.0  # grey levels of standard deviation; a flatter picture has nothing to be known by
_MIN_BITS = 4  # differences, either way, that a picture must have at least; a page with one speck on it has fewer
_MAX_OFFSET = 12.0  # grey levels; median over cells of what is left between candidates after their levels were matched
_WORST_CELLS = 0.04  # share of the cells that the fit may disregard
_PAIRS_AT_ONCE = 1 << 20
_FITS_AT_ONCE = 1 << 10

Wanted = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Places of the first, places of the second, and their misfit: 0 for equal fingerprints, at most `MAX_MISFIT`."""


def fingerprint(image: Image.Image) -> bytes:
    """What a picture is compared by: [16, 16, 3] bytes. The picture is upright RGB, whatever its size and aspect ratio."""
    pixels: bytes = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=3.0).tobytes()
    return pixels


def alike_pairs(prints: Sequence[bytes], wanted: Wanted | None = None) -> Pairs:
    """All pairs of fingerprints that look alike, each once, in the order of their places.

    Nearly blank pictures (and empty fingerprints) are like nothing. Pictures that differ in little but small print are alike.

    Args:
        prints: of `fingerprint`, or empty where there is none.
        wanted: (places [M], later places [M]) -> [M] bool, the pairs to look at; the cheap way to leave out those within one split.
    """
    usable = np.array([place for place, item in enumerate(prints) if len(item) == LENGTH], dtype=np.int64)
    if len(usable) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    thumbs = np.frombuffer(b"".join(prints[place] for place in usable), np.uint8).reshape(-1, SIZE, SIZE, 3)
    hashes, cells, told = _hashes(thumbs)
    places, thumbs = usable[told], thumbs[told]
    found: list[Pairs] = []
    for first, second in _candidates(hashes[told]):
        if wanted is not None:
            keep = wanted(places[first], places[second])
            first, second = first[keep], second[keep]
        near = _levelled(cells[told], first, second)
        first, second = first[near], second[near]
        for start in range(0, len(first), _FITS_AT_ONCE):
            one, other = first[start : start + _FITS_AT_ONCE], second[start : start + _FITS_AT_ONCE]
            misfit = np.minimum(_misfit(thumbs[one], thumbs[other]), _misfit(thumbs[other], thumbs[one]))
            keep = misfit <= MAX_MISFIT
            found.append((places[one[keep]], places[other[keep]], misfit[keep]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    left, right, misfits = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return left[order], right[order], misfits[order]


def alike_across(here: Mapping[str, bytes], there: Mapping[str, bytes]) -> list[tuple[str, str, float]]:
    """(name here, name there, misfit) of the pictures that look alike, closest first; both map names to fingerprints."""
    names, border = [*here, *there], len(here)
    left, right, misfits = alike_pairs([*here.values(), *there.values()], lambda first, second: (first < border) & (second >= border))
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


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of places, first < second, whose hashes differ in at most `MAX_BITS`, each once, in batches.

    Seven differing bits fall on four words: one word has at most one of them. So each word's table is looked up at the word itself and at
    its 16 neighbours, and nothing is missed.
    """
    words = hashes.view(np.uint16).reshape(-1, 4)
    for band in range(4):
        column = words[:, band]
        order = np.argsort(column, kind="stable")
        starts = np.searchsorted(column[order], np.arange(1 << 16, dtype=np.int64))
        ends = np.append(starts[1:], len(column))
        for flipped in (0, *(1 << bit for bit in range(16))):
            probed = column ^ np.uint16(flipped)
            counts = (ends - starts)[probed]
            for low, high in _batches(counts):
                repeats = counts[low:high]
                first = np.repeat(np.arange(low, high), repeats)
                ahead = np.arange(len(first)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
                second = order[np.repeat(starts[probed[low:high]], repeats) + ahead]
                keep = first < second
                first, second = first[keep], second[keep]
                keep = np.bitwise_count(hashes[first] ^ hashes[second]) <= MAX_BITS
                first, second = first[keep], second[keep]
                earlier = np.bitwise_count(words[first, :band] ^ words[second, :band]) <= 1
                keep = ~earlier.any(axis=1)  # else that word's table has given this pair already
                yield first[keep], second[keep]


def _batches(counts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of places whose counts sum to about `_PAIRS_AT_ONCE`."""
    totals = np.cumsum(counts)
    low = 0
    while low < len(counts):
        done = totals[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(totals, done + _PAIRS_AT_ONCE, side="right")))
        yield low, high
        low = high


# ── confirming ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _levelled(cells: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs lie near enough for a fit to be worth its time: [M]."""
    near = np.empty(len(first), dtype=bool)
    for start in range(0, len(first), 1 << 16):
        stop = start + (1 << 16)
        gap = cells[first[start:stop]] - cells[second[start:stop]]
        gap -= np.median(gap, axis=1, keepdims=True)
        near[start:stop] = np.median(np.abs(gap), axis=1) <= _MAX_OFFSET
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
