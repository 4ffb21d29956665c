"""Augmentation is a pure function of picture, settings and seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyegraft.config import Augmentation
from eyegraft.data.augment import augment, is_random

MOVES = {"rotation_degrees": 20, "translation": 0.1, "scale": 0.2, "flip": 0.5}
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "grayscale": 0.3, "blur": 0.5}
EVERYTHING = Augmentation(**MOVES, **COLOURS)


def picture(mode: str = "RGB") -> Image.Image:
    """Smooth colours around a white block."""
    down, across = np.mgrid[0:48, 0:64]
    image = Image.fromarray(np.stack([across * 4, down * 5, (across + down) * 2], -1).astype(np.uint8))
    image.paste((255, 255, 255), (20, 15, 40, 30))
    return image if mode == "RGB" else image.convert(mode)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_all_zero_is_the_picture_itself() -> None:
    image = picture()
    assert augment(image, Augmentation(), 3) is image
    assert not is_random(Augmentation())


@pytest.mark.parametrize("name", Augmentation.model_fields)
def test_each_setting_alone_changes_pixels(name: str) -> None:
    alone = Augmentation(**{name: 20 if name.endswith("_degrees") else 0.4 if name in ("hue", "scale") else 1})
    assert is_random(alone)
    image = picture()
    before = pixels(image)
    variants = [augment(image, alone, seed) for seed in range(5)]
    assert {(changed.size, changed.mode) for changed in variants} == {(image.size, "RGB")}
    assert any(np.abs(pixels(changed) - before).max() > 0 for changed in variants)
    assert np.array_equal(pixels(image), before), "the picture itself is not touched"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), mode=st.sampled_from(["RGB", "L"]))
def test_the_same_seed_gives_the_same_pixels(seed: int, mode: str) -> None:
    once, again = augment(picture(mode), EVERYTHING, seed), augment(picture(mode), EVERYTHING, seed)
    assert once.tobytes() == again.tobytes()
    assert (once.size, once.mode) == ((64, 48), mode)


def test_seeds_differ() -> None:
    assert len({augment(picture(), EVERYTHING, seed).tobytes() for seed in range(20)}) == 20


def test_switching_one_change_on_leaves_the_others_as_they_were() -> None:
    both = Augmentation(rotation_degrees=20, flip=1)
    turned = augment(picture(), Augmentation(rotation_degrees=20), 7)
    assert np.array_equal(pixels(augment(picture(), both, 7)), pixels(turned)[:, ::-1])


def test_the_affine_map_matches_its_formula() -> None:
    """A dot goes where rotation, scale about the centre and shift send it."""
    import random

    image = Image.new("L", (101, 101), 0)
    image.paste(255, (70, 48, 75, 53))  # centre (72.5, 50.5)
    setting = Augmentation(rotation_degrees=40, translation=0.1, scale=0.3)
    draw = random.Random(11)
    angle, across, down, zoom = (draw.uniform(-1, 1) for _ in range(4))
    found = pixels(augment(image, setting, 11))
    rows, columns = np.mgrid[0:101, 0:101] + 0.5
    centre = np.array([(found * columns).sum(), (found * rows).sum()]) / found.sum()
    radians, scale = np.radians(angle * 40), 1 + zoom * 0.3
    expected = 50.5 + scale * 22 * np.array([np.cos(radians), np.sin(radians)]) + 10.1 * np.array([across, down])
    assert np.abs(centre - expected).max() < 0.2


def test_uncovered_corners_take_the_ground() -> None:
    image = Image.new("RGB", (40, 40), (30, 160, 90))
    image.paste((255, 255, 255), (12, 12, 28, 28))
    image.putpixel((0, 0), (255, 0, 0))  # one odd corner does not decide
    turned = augment(image, Augmentation(rotation_degrees=45, translation=0.2), 2)
    assert turned.getpixel((39, 0)) == (30, 160, 90)


def test_hue_keeps_brightness_and_grey() -> None:
    grey = Image.new("RGB", (8, 8), (90, 90, 90))
    assert augment(grey, Augmentation(hue=0.5), 1).getpixel((0, 0)) == (90, 90, 90)
    assert max(augment(Image.new("RGB", (8, 8), (200, 0, 0)), Augmentation(hue=0.5), 1).getpixel((0, 0))) == 200


def test_a_turn_is_a_roll_of_columns_and_leaves_the_other_draws_as_they_were() -> None:
    image = picture()
    for seed in range(5):
        turned = pixels(augment(image, Augmentation(yaw_degrees=180), seed))
        both = pixels(augment(image, Augmentation(yaw_degrees=180, flip=1.0), seed))
        rolls = [columns for columns in range(image.width) if np.array_equal(turned, np.roll(pixels(image), columns, axis=1))]
        assert rolls, "its pixels only change places"
        assert np.array_equal(both, np.roll(pixels(image)[:, ::-1], rolls[0], axis=1))
