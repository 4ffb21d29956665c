"""Maps of known classes: how a row names one, what the reader gives, and palette GIFs read whole."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eyegraft.answering import _pictures
from eyegraft.data.inputs import ConstantReader, reader
from eyegraft.data.maps import check_classes, class_of
from eyegraft.encoders.patch_perceiver import MEAN, STD, WEATHERQA
from eyegraft.errors import DataError
from eyegraft.types import UNKNOWN, ImageSpec, Sample, Tokens, moved_to, taken_from

SPEC = ImageSpec((16, 16), MEAN, STD, fit="squash", classes=WEATHERQA)


def row(named: Any, image: Path | None = None) -> Sample:
    return Sample("a", image, meta={"condition": named})


@pytest.mark.parametrize(
    ("named", "number"),
    [
        ("bigsfc_cropped", 0),
        ("bigsfc", 0),
        ("wqa:bigsfc", 0),
        ("wqa:ttd", 19),
        ("rgnlrad", 10),
        ("thea", 18),
        (None, UNKNOWN),
        ("", UNKNOWN),
        (float("nan"), UNKNOWN),
    ],
)
def test_forms_of_a_name(named: Any, number: int) -> None:
    assert class_of(row(named), WEATHERQA) == number


def test_a_row_without_the_column() -> None:
    assert class_of(Sample("a", None), WEATHERQA) == UNKNOWN


def test_classes_that_differ_by_the_suffix_stay_apart() -> None:
    assert [class_of(row(name), ("x", "x_cropped")) for name in ("x", "x_cropped")] == [0, 1]


def test_a_hidden_map_is_blank_and_its_class_is_told(tmp_path: Path) -> None:
    """Otherwise a model that was given the class would seem to read it off the map."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    plain: Any = reader(SPEC)
    samples = [row("ttd", tmp_path / "a.png"), row(None, tmp_path / "a.png")]
    given, seen = plain.hidden().read(samples, [None, None]), plain.read(samples, [None, None])
    assert given["condition"].tolist() == seen["condition"].tolist() == [19, UNKNOWN]
    assert given["pixels"].shape == seen["pixels"].shape
    assert not given["pixels"].any()
    assert seen["pixels"].any()


def test_an_unknown_class() -> None:
    with pytest.raises(DataError, match="sample 'a': condition 'wqa:mconn'") as caught:
        class_of(row("wqa:mconn"), WEATHERQA)
    assert caught.value.fix == "did you mean 'mcon'?"


def test_all_faults_of_a_split_at_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(name) for name in ("mcon", "tead", "tead", "zz")]
    with pytest.raises(DataError, match="test: 3 rows name a class that there is not: 'tead' 2 times, 'zz' 1 times; samples a, a, a"):
        check_classes(SPEC, rows, "test")
    with caplog.at_level(logging.WARNING, "eyegraft"):
        check_classes(SPEC, rows[:1], "train")
        assert not caplog.text
        check_classes(SPEC, [row(None)], "train")
    assert "train: no row names the class of its map; where they do, data.columns.meta must list condition" in caplog.text


def gif(place: Path, *, frames: int = 1, transparent: bool = False) -> Path:
    """A palette picture whose four corners have four colours; further frames are black."""
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:15, 20:], pixels[15:, :20], pixels[15:, 20:] = 1, 2, 3
    first = Image.fromarray(pixels, "P")
    first.putpalette([255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])
    black = Image.fromarray(np.full_like(pixels, 4), "P")
    black.putpalette(first.getpalette() or [])
    extra: dict[str, Any] = {"transparency": 0} if transparent else {}
    first.save(place, format="GIF", save_all=frames > 1, append_images=[black] * (frames - 1), **extra)
    return place


@pytest.mark.parametrize("options", [{}, {"frames": 3}, {"transparent": True}])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_a_palette_gif_is_read_whole(tmp_path: Path, options: dict[str, Any], fit: Any) -> None:
    """Its first frame, in its true colours, to the corners."""
    given = reader(replace(SPEC, fit=fit)).read([row("thea", gif(tmp_path / "a.gif", **options))], [None])
    assert given["condition"].tolist() == [18]
    pixels = given["pixels"][0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    edge = 2 if fit == "pad" else 0  # 4:3 in a square leaves two grey lines above and below
    found = [pixels[:, down, across] for down in (edge, 15 - edge) for across in (0, 15)]
    torch.testing.assert_close(torch.stack(found), torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]), atol=0.06, rtol=0)
    if fit == "pad":
        torch.testing.assert_close(pixels[:, 0], torch.full((3, 16), 128 / 255), atol=1e-3, rtol=0)


def test_a_blank_map_has_no_class() -> None:
    blank = reader(SPEC).blank()
    assert blank["condition"].tolist() == [UNKNOWN]
    assert not blank["pixels"].any()


def test_an_encoder_of_plain_pictures_reads_no_class(tmp_path: Path) -> None:
    given = reader(replace(SPEC, classes=())).read([row("no class at all", gif(tmp_path / "a.gif"))], [None])
    assert isinstance(given, torch.Tensor)


# ── what tokens carry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def carrying() -> Tokens:
    return Tokens(torch.randn(3, 2, 4), torch.ones(3, 2, dtype=torch.bool), condition=torch.randn(3, 5), auxiliary=torch.arange(3.0))


def test_rows_keep_their_own_logits_and_losses() -> None:
    given = carrying()
    for taken in (taken_from(given, [2, 0]), given.take([2, 0])):
        assert torch.equal(taken.condition, given.condition[[2, 0]])
        assert taken.auxiliary.tolist() == [2, 0]
    moved = moved_to(given, "meta")
    assert moved.condition.is_meta
    assert moved.auxiliary.is_meta
    assert given.with_values(given.values * 2).condition is given.condition


def test_one_blank_for_all_rows_says_no_class() -> None:
    found = ConstantReader(taken_from(carrying(), [0])).read([row("thea")] * 3, [None] * 3)
    assert (found.condition, found.auxiliary, len(found.values)) == (None, None, 3)


def test_the_same_picture_under_another_class_is_read_again() -> None:
    model: Any = type("Model", (), {"encoders": {"image": None}})()
    rows = [row(name, Path("a.gif")) for name in ("thea", "thea", "mcon")]
    assert _pictures(rows, model) == ([0, 2], [0, 0, 1])
