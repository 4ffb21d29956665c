"""Eight views of one 4096 x 2048 panorama: eyegraft, py360convert and plain numpy in turn, in one run, on one thread.

    pip install --no-deps py360convert==1.0.4
    python benchmarks/panorama_views.py

All three draw the same eight perspective views of 224 pixels (90 degrees wide, 45 apart) again and again; what each of them keeps between
pictures it has. Their pixels are compared with the mean of 144 points in every pixel. Fails when eyegraft is not three times as fast as
py360convert, or not the nearest to that mean.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eyegraft.data.panorama import render, shrunk
from eyegraft.views import Views

VIEWS = Views(strategy="e2p")
SIDE = 224
ENOUGH = 3.0
Pixels = NDArray[np.uint8]


def natural(width: int, seed: int = 0) -> Pixels:
    """A picture whose detail falls with its fineness as that of photographs does (amplitude 1 / frequency), [width / 2, width, 3]."""
    draw = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(width // 2)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / width)
    layers = [np.fft.irfft2(np.fft.rfft2(draw.normal(size=(width // 2, width))) * falling) for _ in range(3)]
    return np.stack([np.clip(128 + 45 * layer / layer.std(), 0, 255) for layer in layers], axis=-1).astype(np.uint8)


def places(picture: Pixels, view: int, side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Column and row of the panorama behind every pixel of a view."""
    height, width = picture.shape[:2]
    looks = VIEWS.views[view].cells(side, side)
    column = (np.arctan2(looks[..., 0], looks[..., 2]) / (2 * np.pi) + 0.5) * width - 0.5
    return column, (0.5 - np.arcsin(looks[..., 1]) / np.pi) * height - 0.5


def plain(picture: Pixels, side: int = SIDE) -> NDArray[np.float32]:
    """Between the four nearest pixels, in numpy, everything anew for every picture."""
    height, width = picture.shape[:2]
    seen = []
    for view in range(VIEWS.num_views):
        column, row = places(picture, view, side)
        c, r = np.floor(column).astype(int), np.floor(row).astype(int)
        across, down = (column - c)[..., None].astype(np.float32), (row - r)[..., None].astype(np.float32)
        left, right, upper, lower = c % width, (c + 1) % width, np.clip(r, 0, height - 1), np.clip(r + 1, 0, height - 1)
        above = picture[upper, left] * (1 - across) + picture[upper, right] * across
        below = picture[lower, left] * (1 - across) + picture[lower, right] * across
        seen.append(above * (1 - down) + below * down)
    return np.stack(seen)


def reference(picture: Pixels, points: int = 12) -> NDArray[np.float32]:
    """The mean of points x points bilinear readings in every pixel."""
    fine = plain(picture, SIDE * points)
    return fine.reshape(len(fine), SIDE, points, SIDE, points, 3).mean(axis=(2, 4))


def py360convert() -> Callable[[Pixels], Pixels] | None:
    try:
        from py360convert import e2p
    except ImportError:
        return None
    return lambda picture: np.stack([e2p(picture, 90.0, view.yaw, view.pitch, (SIDE, SIDE)) for view in VIEWS.views])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, help="a panorama, brought to 4096 x 2048; without one, a drawn picture")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    picture = natural(4096) if given.image is None else np.asarray(Image.open(given.image).convert("RGB").resize((4096, 2048)))

    drawers: dict[str, Callable[[Pixels], Pixels]] = {
        "eyegraft": lambda picture: render(picture, VIEWS, (SIDE, SIDE)),
        "eyegraft, with the whole": lambda picture: render(picture, Views(strategy="anyres_e2p"), (SIDE, SIDE)),
        "numpy": lambda picture: np.rint(plain(picture)).astype(np.uint8),
    }
    peer = py360convert()
    if peer is None:
        print("py360convert is not installed: left out, and no claim can be made")
    else:
        drawers["py360convert"] = peer
    cv2.setNumThreads(1)
    exact = reference(picture)
    seen = {name: draw(picture) for name, draw in drawers.items()}  # maps are made and kept here
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in drawers}
    for _ in range(given.rounds):
        for name, draw in drawers.items():
            clock, processor = time.perf_counter(), time.process_time()
            draw(picture)
            spent[name].append((time.perf_counter() - clock, time.process_time() - processor))

    print(f"load {os.getloadavg()[0]:.1f}, {given.rounds} rounds; shrunk first to {shrunk(picture, VIEWS, (SIDE, SIDE)).shape[1]} columns")
    print(f"{'':26}{'ms':>8}{'best':>8}{'CPU ms':>8}{'dB':>8}{'levels':>8}")
    quality = {}
    for name, times in spent.items():
        error = seen[name][-8:].astype(np.float32) - exact
        quality[name] = 10 * np.log10(255**2 / float((error**2).mean()))
        clock, processor = ([pair[place] * 1e3 for pair in times] for place in (0, 1))
        shown = (statistics.median(clock), min(clock), statistics.median(processor), quality[name], float(np.abs(error).mean()))
        print(f"{name:26}" + "".join(f"{value:8.2f}" for value in shown))
    if peer is None:
        return 1
    ratios = [theirs[0] / ours[0] for ours, theirs in zip(spent["eyegraft"], spent["py360convert"], strict=True)]
    faster, nearest = statistics.median(ratios), quality["eyegraft"] > max(quality["numpy"], quality["py360convert"])
    print(f"{faster:.1f} times py360convert (median of rounds; at least {ENOUGH:g}): {'holds' if faster >= ENOUGH else 'FAILS'}")
    print(f"nearest to the mean of 144 points: {'holds' if nearest else 'FAILS'}")
    return 0 if faster >= ENOUGH and nearest else 1


if __name__ == "__main__":
    sys.exit(main())
