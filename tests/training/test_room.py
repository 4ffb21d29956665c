"""Image tokens against the context of the language model: counted, and refused before anything is read or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.running import SMALL, refused, run, small_words, write_table
from eyegraft.errors import PartError
from eyegraft.training.room import room_of

TILES = {"strategy": "anyres_e2p"}
MANY = {**TILES, "overlap": 0.75}  # 16 tiles and the whole picture, of 16 tokens each: 272, where the language model takes 256
Make = Callable[..., tuple[Any, Any]]


@pytest.mark.parametrize(
    ("changes", "words", "tokens"),
    [
        ({}, "16 image tokens", 16),
        ({"views": {"strategy": "resize"}}, "1 view of resize x 16 tokens = 16 image tokens", 16),
        ({"views": TILES}, "9 views of anyres_e2p x 16 tokens = 144 image tokens", 144),
        ({"views": MANY, "pooling": {"kind": "spatial_pool", "size": [2, 2]}}, "17 views of anyres_e2p x 4 tokens = 68 image tokens", 68),
        ({"views": MANY, "pooling": {"kind": "avg"}}, "17 views of anyres_e2p x 1 token = 17 image tokens", 17),
        ({"views": MANY, "connector": {"kind": "perceiver", "num_latents": 8}}, "8 image tokens for 17 views of anyres_e2p", 8),
    ],
)
def test_what_stands_before_the_text(make_graft: Make, changes: dict[str, Any], words: str, tokens: int) -> None:
    _, model = make_graft(**changes)
    room = room_of(model)
    assert room is not None
    assert room.context == 256
    assert (str(room), room.tokens) == (words, tokens)
    room.stop_if_full()


def test_no_text_and_no_context_is_no_fault(make_graft: Make, folders: Any) -> None:
    _, beside = make_graft(views=MANY, head={"kind": "cross_attention_lm", "model": folders.lm(), "num_layers": 1})
    assert room_of(beside) is None


def test_more_than_the_context(make_graft: Make) -> None:
    _, model = make_graft(views=MANY)
    room = room_of(model)
    assert room is not None
    with pytest.raises(PartError) as caught:
        room.stop_if_full()
    assert caught.value.given == "17 views of anyres_e2p x 16 tokens = 272 image tokens alone are more than the language model can take"
    assert caught.value.expected == "fewer than 256, its context, text included"
    for way in ("smaller views.overlap", "pooling=spatial_pool", "avg", "connector=perceiver", "views=resize"):
        assert way in caught.value.fix


def test_no_room_left(make_graft: Make) -> None:
    """16 views of 16 tokens are just what the language model takes: not one word fits."""
    _, model = make_graft(views={"strategy": "e2p", "overlap": 0.75})
    room = room_of(model)
    assert room is not None
    assert room.tokens == room.context
    with pytest.raises(PartError, match="16 views of e2p x 16 tokens = 256 image tokens leave no room for text"):
        room.stop_if_full()


@pytest.fixture
def panoramas(tmp_path: Path) -> Path:
    """Three panoramas of noise in the tables of the recipe `small`."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 16, 3), dtype=np.uint8)
        Image.fromarray(np.kron(pixels, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "data" / "images" / f"{number}.png")
        row = {"image": f"images/{number}.png", "caption": f"a red square {number}", "group": str(number)}
        write_table(tmp_path / "data" / f"{split}.jsonl", [{**row, "id": f"{split}/{place}"} for place in range(3)])
    return tmp_path


def test_doctor_and_train_say_it_at_once(panoramas: Path, folders: Any) -> None:
    words = [*small_words(folders), "views=anyres_e2p", "augmentation=none"]
    done = run("doctor", *words, *SMALL, cwd=panoramas)
    assert done.returncode == 0, done.stderr
    for line in (
        "train                  1 panoramas: 1 of 128 x 64 pixels",
        "before the text: 9 views of anyres_e2p x 16 tokens = 144 image tokens, of 256 that the language model takes (56%)",
    ):
        assert line in done.stdout
    for verb in ("doctor", "train"):
        said = refused(
            run(verb, *words, "views.overlap=0.75", *SMALL, cwd=panoramas),
            PartError.exit_code,
            "17 views of anyres_e2p x 16 tokens = 272",
            "fewer than 256",
        )
        assert said.count("272") == 1, "once, not for every sample"
    assert not list(panoramas.rglob("metrics.jsonl"))
