"""Copies that are no longer the same bytes, and pictures that only have something in common."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from eyegraft.data.duplicates import LENGTH, alike_across, alike_pairs, fingerprint
from eyegraft.data.images import open_image

DRAWINGS = Path(__file__).parents[2] / "src" / "eyegraft" / "prepare" / "drawings" / "images"


def scene(seed: int, side: int = 160) -> Image.Image:
    """Shapes of a few colours on a gradient: as far from another seed's as two photographs are."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, side)
    ground = sum(rng.uniform(-120, 120, 3) * axis[..., None] for axis in np.meshgrid(ramp, ramp)) + rng.uniform(60, 200, 3)
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        left, top = rng.integers(-20, side, 2)
        width, height = rng.integers(20, 90, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + width, top + height), fill=tuple(int(value) for value in rng.integers(0, 256, 3)))
    return image


def drawings() -> dict[str, Image.Image]:
    return {f"{path.parent.name}/{path.stem}": open_image(path) for path in sorted(DRAWINGS.rglob("*.webp"))[::12]}


def saved_again(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=quality)
    return Image.open(stream).convert("RGB")


def cropped(image: Image.Image, fraction: float) -> Image.Image:
    side, cut = image.width, round(image.width * fraction / 2)
    return image.crop((cut, cut, side - cut, side - cut))


def stamped(image: Image.Image) -> Image.Image:
    marked, (width, height) = image.copy(), image.size
    ImageDraw.Draw(marked).rectangle((width * 0.78, height * 0.9, width * 0.98, height * 0.98), fill="white")
    return marked


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], float]] = {
    "half the size": (lambda image: image.resize((image.width // 2, image.height // 2)), 1.0),
    "squashed": (lambda image: image.resize((224, 120)), 1.0),
    "JPEG of quality 50": (lambda image: saved_again(image, 50), 0.98),
    "2 % cropped": (lambda image: cropped(image, 0.02), 0.95),
    "10 % brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.1), 0.6),
    "stamped": (stamped, 0.95),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(change: str) -> None:
    changed, expected = CHANGES[change]
    pictures = {**drawings(), **{f"scene {seed}": scene(seed) for seed in range(40)}}
    here = {name: fingerprint(picture) for name, picture in pictures.items()}
    found = alike_across(here, {name: fingerprint(changed(picture)) for name, picture in pictures.items()})
    assert sum(one == other for one, other, _ in found) >= expected * len(pictures)


def test_different_pictures_are_not_alike() -> None:
    prints = [fingerprint(scene(seed)) for seed in range(300)]
    assert len(alike_pairs(prints)[0]) == 0


def test_the_drawings_of_the_demo_are_not_alike_across_its_splits() -> None:
    """One thing drawn by two artists, on white: the hardest pictures at hand to keep apart."""
    styles = sorted(path.name for path in DRAWINGS.iterdir())
    prints = {style: {path.stem: fingerprint(open_image(path)) for path in (DRAWINGS / style).glob("*.webp")} for style in styles}
    train = {f"{style}/{name}": item for style in styles if style not in ("fxemoji", "twemoji") for name, item in prints[style].items()}
    assert alike_across(train, prints["fxemoji"]) == []
    assert alike_across(train, prints["twemoji"]) == []
    assert alike_across(prints["fxemoji"], prints["twemoji"]) == []


def test_blank_pictures_are_like_nothing() -> None:
    rng = np.random.default_rng(0)
    blank = [Image.new("RGB", (60, 60), colour) for colour in ("white", "white", "black", (250, 250, 250))]
    grain = [Image.fromarray((245 + rng.integers(-4, 5, (60, 60, 3))).astype(np.uint8)) for _ in range(6)]
    specks = [Image.new("RGB", (60, 60), "white") for _ in range(2)]
    specks[0].paste("black", (10, 10, 14, 14))
    specks[1].paste("black", (11, 10, 15, 14))
    assert len(alike_pairs([fingerprint(image) for image in (*blank, *grain, *specks)])[0]) == 0


def test_misfit_orders_and_names_pairs() -> None:
    first, second = scene(1), scene(2)
    here = {"a": fingerprint(first), "b": fingerprint(second), "none": b""}
    there = {"noisy": fingerprint(saved_again(first, 20)), "same": here["b"], "other": fingerprint(scene(3))}
    found = alike_across(here, there)
    assert [(one, other) for one, other, _ in found] == [("b", "same"), ("a", "noisy")]
    assert found[0][2] < 1e-3 < found[1][2]
    assert alike_across({}, there) == alike_across(here, {}) == []
    assert len(here["a"]) == LENGTH


def test_pairs_are_found_among_many_as_by_comparing_each_with_each() -> None:
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (1500, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    small[1200:1350] = (small[:150] * 0.95 + rng.normal(size=small[:150].shape) * 4).clip(0, 255).astype(np.uint8)
    small[1490] = small[1491] = small[0]
    prints = [item.tobytes() for item in small]
    left, right, _ = alike_pairs(prints)
    expected = {(place, 1200 + place) for place in range(150)} | {(0, 1490), (0, 1491), (1490, 1491), (1200, 1490), (1200, 1491)}
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == sorted(expected)
    left, right, _ = alike_pairs(prints, [0] * 100 + [1] * 1200 + [2] * 200, [(0, 1)])
    assert left.tolist() == list(range(100))
    started = time.perf_counter()
    alike_pairs([*prints, *(item.tobytes() for item in rng.integers(0, 256, (20_000, 16, 16, 3), dtype=np.uint8))])
    assert time.perf_counter() - started < 10


def template(count: int, noise: float = 3, seed: int = 0) -> list[bytes]:
    """Fingerprints of pictures of one layout that differ in little."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
    return [(base + rng.normal(size=base.shape) * noise).clip(0, 255).astype(np.uint8).tobytes() for _ in range(count)]


def sets(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The least place that each place is connected to."""
    least = list(range(count))
    for one, other in pairs:
        low, high = sorted((least[one], least[other]))
        least = [low if place == high else place for place in least]
    return least


def test_what_is_left_out_of_large_sets_changes_no_set_and_no_count() -> None:
    rng = np.random.default_rng(2)
    prints = [item for seed in range(10) for item in template(int(rng.integers(1, 40)), float(rng.uniform(1, 14)), seed)]
    rng.shuffle(prints)
    count, sides, between = len(prints), rng.integers(0, 4, len(prints)).tolist(), [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]

    def found(*given: object, enough: int) -> list[tuple[int, int]]:
        left, right, _ = alike_pairs(prints, *given, enough=enough)
        return list(zip(left.tolist(), right.tolist(), strict=True))

    def partners(pairs: list[tuple[int, int]]) -> Counter[tuple[int, int]]:
        return Counter(end for one, other in pairs for end in ((one, sides[other]), (other, sides[one])))

    every = found(enough=count)
    joining = found(enough=1)
    assert len(joining) < len(every) / 3
    assert sets(count, joining) == sets(count, every)
    across = [(one, other) for one, other in every if tuple(sorted((sides[one], sides[other]))) in between]
    some = found(sides, between, enough=2)
    assert len(set(some)) == len(some) < len(across)
    assert set(some) <= set(across)
    assert sets(count, some) == sets(count, across)
    before, after = partners(across), partners(some)
    assert all(after[end] >= min(2, number) for end, number in before.items())


def test_thousands_of_pictures_of_one_template_take_seconds() -> None:
    prints = template(5000)
    for sides, between, enough in ((None, [(0, 0)], 1), ([place % 2 for place in range(5000)], [(0, 1)], 3)):
        started = time.process_time()
        left, right, _ = alike_pairs(prints, sides, between, enough=enough)
        assert time.process_time() - started < 12, "of every pair with every other: half an hour"
        assert len(left) < 10 * len(prints)
        assert set(left.tolist()) | set(right.tolist()) == set(range(5000))
