"""Views as pixels: right at every pixel, closed all around, and pictures that are no panorama are said before training."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyegraft.config import Augmentation, Data
from eyegraft.data import panorama
from eyegraft.data.inputs import reader
from eyegraft.data.panorama import NOT_WHOLE, PARTIAL, fault, fault_of, finest, render, shrunk
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError, PartError
from eyegraft.types import ImageSpec, Sample
from eyegraft.views import WHOLE, Views

STRATEGIES = ("resize", "e2p", "sliding_window", "cubemap", "anyres", "anyres_e2p")
SPEC = ImageSpec(size=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2))
PHOTO_SPHERE = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>'
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def colours(looks: Any) -> Any:
    """A smooth function of the direction [..., 3] with three values between 20 and 235; half a pixel of 256 matters to it."""
    tilted = looks @ np.array([[0.8, -0.36, 0.48], [0.6, 0.48, -0.64], [0.0, 0.8, 0.6]])
    return 127.5 + 107 * np.sin(2.5 * tilted + np.array([0.0, 1.0, 2.0]))


def drawn(width: int, height: int | None = None) -> Any:
    """The panorama of it."""
    return np.rint(colours(WHOLE.cells(height or width // 2, width))).astype(np.uint8)


def noise(width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (width // 2, width, 3), dtype=np.uint8)


def worst(views: Views, picture: Any, size: tuple[int, int]) -> int:
    """The largest difference, in levels of 255, between rendered views and the function that the picture shows."""
    exact = np.rint([colours(view.cells(*size)) for view in views.views])
    return int(np.abs(render(picture, views, size) - exact).max())


# ── right at every pixel ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("width", [320, 512, 1030])  # coarser than the views, about as fine, and much finer
def test_a_function_of_direction_is_drawn_to_one_level(strategy: Any, width: int) -> None:
    assert worst(Views(strategy=strategy), drawn(width), (96, 96)) <= 1


@pytest.mark.parametrize("width", [256, 1024])
@pytest.mark.parametrize("kind", ["e2p", "sliding_window"])
def test_at_the_poles_too(kind: Any, width: int) -> None:
    views = Views(strategy=kind, pitch_range_degrees=(-90, 90), fov_degrees=60, overlap=0.2)
    assert len({view.pitch for view in views.views}) > 2
    assert worst(views, drawn(width), (64, 64)) <= 1


def test_beyond_a_pole_lies_the_other_side() -> None:
    """Of 32 rows the last is 3 degrees from the pole: what lies between them is between it and its other side."""
    picture = np.rint(128 + 100 * WHOLE.cells(32, 64)).astype(np.uint8)
    views = Views(strategy="e2p", fov_degrees=60, pitch_range_degrees=(-90, 90))
    exact = np.rint([128 + 100 * view.cells(48, 48) for view in views.views])
    assert np.abs(render(picture, views, (48, 48)) - exact).max() <= 1


def test_views_need_not_be_square_nor_the_panorama_exact() -> None:
    assert worst(Views(strategy="anyres_e2p"), drawn(512, 254), (48, 72)) <= 1


def test_half_a_pixel_would_be_seen() -> None:
    """The tests above can fail: a function that is shifted by half a pixel of the panorama is more than one level away."""
    shifted = np.rint(colours(replace(WHOLE, yaw=0.5 * 360 / 256).cells(128, 256))).astype(np.uint8)
    assert worst(Views(strategy="e2p"), shifted, (96, 96)) > 1


def test_the_whole_picture_at_its_own_size_is_itself() -> None:
    picture = noise(64)
    assert np.array_equal(render(picture, Views(strategy="resize"), (32, 64))[0], picture)


def test_what_is_finer_than_a_pixel_is_averaged() -> None:
    """Stripes a pixel wide are grey; read at single points they would be black or white."""
    stripes = np.zeros((512, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    seen = render(stripes, Views(strategy="anyres_e2p"), (32, 32))
    assert np.abs(seen.astype(int) - 127).max() < 12


def test_a_pixel_is_the_mean_of_what_it_covers() -> None:
    """254 columns are too few to be shrunk first, and eight to a pixel: a point of each would be 25 levels off."""
    picture, views = noise(254), Views(strategy="resize")
    assert shrunk(picture, views, (32, 32)) is picture
    means = cv2.resize(picture.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(render(picture, views, (32, 32))[0] - means).mean() < 4


@pytest.mark.parametrize("width", [64, 100, 450, 2000, 6080])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shrinking_keeps_twice_what_is_seen_and_is_done_once(width: int, strategy: Any) -> None:
    views, size, picture = Views(strategy=strategy), (32, 32), np.zeros((width // 2, width), np.uint8)
    small = shrunk(picture, views, size)
    assert small.shape[1] == width or 2 * finest(views, size) - 1 <= small.shape[1] <= 4 * finest(views, size)
    assert shrunk(small, views, size) is small


def test_grey_panoramas() -> None:
    picture, views = noise(128), Views(strategy="anyres_e2p")
    grey = render(np.ascontiguousarray(picture[..., 1]), views, (24, 24))
    assert grey.shape == (9, 24, 24, 1)
    assert np.array_equal(grey[..., 0], render(Image.fromarray(picture), views, (24, 24))[..., 1])


# ── closed all around ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=25)
@given(
    strategy=st.sampled_from(("e2p", "sliding_window", "cubemap")),
    turn=st.integers(0, 7),
    width=st.sampled_from((64, 128, 512)),
    offset=st.sampled_from((0.0, 13.3, -170.0)),
)
def test_turning_the_panorama_shifts_the_views(strategy: Any, turn: int, width: int, offset: float) -> None:
    views = Views(strategy=strategy, yaw_degrees=offset)
    picture, step = noise(width), width // views.num_views
    still, turned = (render(made, views, (20, 20)) for made in (picture, np.roll(picture, turn * step, axis=1)))
    assert np.array_equal(turned, np.roll(still, turn, axis=0)), "not one level differs"


def test_a_yaw_offset_is_a_turn_of_the_panorama() -> None:
    picture = noise(256)
    for strategy in STRATEGIES:
        offset = render(picture, Views(strategy=strategy, yaw_degrees=45), (20, 20))
        assert np.array_equal(offset, render(np.roll(picture, -32, axis=1), Views(strategy=strategy), (20, 20)))


@pytest.mark.parametrize("strategy", ["e2p", "sliding_window", "anyres_e2p"])
def test_neighbours_agree_on_their_overlap(strategy: Any) -> None:
    """What a view shows at a place, its neighbour shows where it sees the same direction; the last one's neighbour is the first."""
    views, side = Views(strategy=strategy), 64
    seen = render(drawn(512), views, (side, side)).astype(float)
    assert (views.num_views - 1, int(views.has_whole)) in views.neighbours()
    for left, right in views.neighbours():
        x, y = views.views[right].places(views.views[left].cells(side, side))
        column, row = (x + 1) * side / 2 - 0.5, (y + 1) * side / 2 - 0.5
        inside = (column > 0) & (column < side - 1) & (row > 0) & (row < side - 1)
        assert inside.mean() > 0.3
        column, row = column[inside], row[inside]
        c, r = column.astype(int), row.astype(int)
        across, down = (column - c)[:, None], (row - r)[:, None]
        other = seen[right]
        upper = other[r, c] * (1 - across) + other[r, c + 1] * across
        lower = other[r + 1, c] * (1 - across) + other[r + 1, c + 1] * across
        assert np.abs(upper * (1 - down) + lower * down - seen[left][inside]).max() < 2


def test_a_cubemap_is_front_right_back_left() -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    for column, colour in enumerate([(0, 0, 255), (255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 0, 255)]):  # back is at both ends
        picture[:, max(0, column * 32 - 16) : column * 32 + 16] = colour
    front, right, back, left = render(picture, Views(strategy="cubemap"), (16, 16))[:, 8, 8].tolist()
    assert (front, right, back, left) == ([0, 255, 0], [255, 255, 0], [0, 0, 255], [255, 0, 0])


# ── what encoders are given ──────────────────────────────────────────────────────────────────────────────────────────────────────


def saved(path: Path, picture: Any, **how: Any) -> Path:
    Image.fromarray(picture).save(path, **how)
    return path


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, fit="pad"), replace(SPEC, crop_fraction=0.875)])
def test_views_are_normalised_and_not_cropped_again(tmp_path: Path, spec: ImageSpec) -> None:
    picture, views = noise(128), Views(strategy="anyres_e2p")
    made = reader(replace(spec, views=views))
    pixels = made.read([Sample("a", saved(tmp_path / "a.png", picture)), Sample("b", None)], [None, None])
    assert pixels.shape == (2, 9, 3, 16, 16)
    values = torch.from_numpy(render(picture, views, (16, 16))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (spec.mean, spec.std))
    assert torch.allclose(pixels[0], (values - mean) / std, atol=1e-6)
    assert torch.allclose(pixels[1], ((0 - mean) / std).expand(9, 3, 16, 16)), "a row without a picture is black, as elsewhere"
    assert made.blank().shape == (1, 9, 3, 16, 16)
    assert not made.blank().any()


def test_a_view_may_have_its_own_size(tmp_path: Path) -> None:
    made = reader(replace(SPEC, views=Views(strategy="cubemap", size=24)))
    assert made.read([Sample("a", saved(tmp_path / "a.png", noise(64)))], [None]).shape == (1, 4, 3, 24, 24)


def test_patches_of_every_view(tmp_path: Path) -> None:
    spec = replace(SPEC, size=(24, 24), patch_size=8, max_patches=12, views=Views(strategy="cubemap"))
    given: Any = reader(spec).read([Sample("a", saved(tmp_path / "a.png", noise(64)))] * 2, [None] * 2)
    assert {name: tuple(item.shape) for name, item in given.items()} == {"pixels": (2, 4, 12, 192), "mask": (2, 4, 12), "grid": (2, 4, 2)}
    blank: Any = reader(spec).blank()
    assert {name: tuple(item.shape) for name, item in blank.items()} == {"pixels": (1, 4, 12, 192), "mask": (1, 4, 12), "grid": (1, 4, 2)}
    assert not blank["pixels"].any()
    assert blank["mask"].any()


def test_grey_encoders(tmp_path: Path) -> None:
    spec = replace(SPEC, mean=(0.5,), std=(0.5,), views=Views(strategy="cubemap"))
    assert reader(spec).read([Sample("a", saved(tmp_path / "a.png", noise(64)))], [None]).shape == (1, 4, 1, 16, 16)


def test_a_random_turn_is_a_turn_and_comes_by_seed(tmp_path: Path) -> None:
    picture, views = noise(64), Views(strategy="anyres_e2p")
    sample = Sample("a", saved(tmp_path / "a.png", picture))
    spec = replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3, views=views)
    turning = reader(spec, augmentation=Augmentation(yaw_degrees=180))
    turns = [render(np.roll(picture, columns, axis=1), views, (16, 16)) for columns in range(64)]
    found = []
    for seed in range(12):
        pixels = turning.read([sample], [seed])[0]
        assert torch.equal(pixels, turning.read([sample], [seed])[0])
        levels = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
        found.append(next(columns for columns, turned in enumerate(turns) if np.array_equal(levels, turned)))
    assert len(set(found)) > 6
    assert torch.equal(turning.read([sample], [None]), reader(spec).read([sample], [None])), "no seed, no turn"
    narrow = reader(spec, augmentation=Augmentation(yaw_degrees=12)).read([sample] * 12, list(range(12)))
    narrow = (narrow * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    assert all(any(np.array_equal(levels, turns[columns % 64]) for columns in range(-2, 3)) for levels in narrow), "64 · 12 / 360 = 2.1"


def test_colours_change_in_all_views_alike(tmp_path: Path) -> None:
    sample = Sample("a", saved(tmp_path / "a.png", drawn(128) // 2))
    spec = replace(SPEC, views=Views(strategy="e2p"))
    plain, changed = (reader(spec, augmentation=Augmentation(brightness=shift)).read([sample], [3])[0] for shift in (0, 0.4))
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (spec.mean, spec.std))
    factors = ((changed * std + mean) / (plain * std + mean)).mean(dim=(1, 2, 3))
    assert abs(factors.mean() - 1) > 0.02
    assert factors.std() < 0.01


def test_a_large_jpeg_keeps_what_views_need(tmp_path: Path) -> None:
    """It may be decoded at a part of its size; the views must not show it."""
    views = Views(strategy="e2p", fov_degrees=30, overlap=0)
    spec = replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3, views=views)
    wave = 127.5 + 100 * np.sin(np.arange(4096) * 2 * np.pi / 64)  # three pixels of a view
    picture = np.broadcast_to(np.rint(wave).astype(np.uint8)[None, :, None], (2048, 4096, 3))
    part, whole = (
        reader(spec).read([Sample("a", saved(tmp_path / name, picture, **how))], [None])
        for name, how in (("a.jpg", {"quality": 95}), ("a.bmp", {}))
    )
    assert whole.std() > 0.15
    assert (part - whole).abs().max() <= 2 / 255


def test_the_error_of_a_picture_that_is_no_panorama_names_its_sample(tmp_path: Path) -> None:
    flat = Sample("flat", saved(tmp_path / "flat.png", np.zeros((48, 64, 3), np.uint8)))
    with pytest.raises(DataError, match=r"sample 'flat': image .*flat.png: 64 x 48 pixels, 1.33:1, and not 2:1") as caught:
        reader(replace(SPEC, views=Views(strategy="e2p"))).read([flat], [None])
    assert "views=none" in caught.value.fix, "as the command line takes it"
    with pytest.raises(DataError, match="a picture: 64 x 48 pixels"):
        render(np.zeros((48, 64, 3), np.uint8), Views(strategy="e2p"), (8, 8))


def test_without_opencv_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    panorama._opencv.cache_clear()
    try:
        with pytest.raises(PartError, match=r"pip install 'eyegraft\[panorama\]'"):
            render(noise(32), Views(strategy="resize"), (8, 8))
        data = Data.model_validate({"name": "toy", "base_dir": "not/even/looked/at", "tables": {"train": "train.jsonl"}})
        with pytest.raises(PartError, match=r"pip install 'eyegraft\[panorama\]'"):
            load_samples(data, panoramas=True)
    finally:
        panorama._opencv.cache_clear()


# ── what is no panorama ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_to_one_within_a_hundredth() -> None:
    assert [bool(fault(width, 1000)) for width in (1979, 1981, 2000, 2019, 2021, 1500, 4000)] == [
        True,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert "1500 x 1000 pixels, 1.5:1" in fault(1500, 1000)


def gpano(cropped: tuple[int, int], whole: tuple[int, int], elements: bool = False) -> bytes:
    numbers = dict(zip(("CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels"), cropped, strict=True))
    numbers |= dict(zip(("FullPanoWidthPixels", "FullPanoHeightPixels"), whole, strict=True))
    attributes = "" if elements else " ".join(f'GPano:{name}="{number}"' for name, number in numbers.items())
    inner = "".join(f"<GPano:{name}>{number}</GPano:{name}>" for name, number in numbers.items()) if elements else ""
    return PHOTO_SPHERE.format(attributes=attributes, elements=inner).encode()


def hugin(across: float, down: float) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + f"Projection: Equirectangular (2)\nFOV: {across:g} x {down:g}\nEv: 12.50".encode()
    return exif


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("size", "how", "reason", "said"),
    [
        ((128, 64), {}, "", ""),
        ((127, 64), {}, "", ""),
        ((96, 64), {}, NOT_WHOLE, "96 x 64 pixels, 1.5:1"),
        ((128, 64), {"exif": turned()}, NOT_WHOLE, "64 x 128 pixels"),
        ((64, 128), {"exif": turned()}, "", ""),
        ((128, 64), {"xmp": gpano((4096, 2048), (4096, 2048))}, "", ""),
        ((128, 64), {"xmp": gpano((4096, 2048), (8192, 4096))}, PARTIAL, "4096 of 8192 pixels of the width"),
        ((128, 64), {"xmp": gpano((4096, 1024), (4096, 2048), elements=True)}, PARTIAL, "1024 of 2048 pixels of the height"),
        ((128, 32), {"xmp": gpano((4096, 1024), (4096, 2048))}, PARTIAL, "the height"),
        ((128, 64), {"exif": hugin(360, 180)}, "", ""),
        ((128, 64), {"exif": hugin(220, 110)}, PARTIAL, "220 x 110 degrees of 360 x 180"),
        ((128, 64), {"xmp": b"GPano:FullPanoWidthPixels=\"4...0\" GPano:CroppedAreaImageWidthPixels=''"}, "", ""),
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_what_the_header_tells(tmp_path: Path, kind: str, size: tuple[int, int], how: dict[str, Any], reason: str, said: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", size).save(path, **how)
    found = fault_of(path)
    assert found[0] == reason
    assert said in found[1]


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_damaged_metadata_stops_nothing(xmp: bytes, exif: bytes) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (8, 4)).save(whole, "JPEG", xmp=xmp, exif=b"Exif\0\0" + exif)
    path = Path("/dev/null")

    class Held(type(path)):  # type: ignore[misc]
        def open(self, *_: Any, **__: Any) -> Any:
            return io.BytesIO(whole.getvalue())

    assert fault_of(Held("a.jpg")) == ("", "")


def test_rows_without_a_whole_panorama_are_named_and_counted_before_training(tmp_path: Path) -> None:
    for number in range(5):
        saved(tmp_path / f"{number}.png", noise(16, seed=number))
    saved(tmp_path / "flat.png", noise(16, seed=7)[:, :12])
    Image.fromarray(noise(32, seed=8)).save(tmp_path / "part.jpg", xmp=gpano((10, 5), (20, 10)))
    names = [*(f"{number}.png" for number in range(5)), "flat.png", "part.jpg", "gone.png"]
    rows = [{"image": name, "caption": name} for name in names]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data.model_validate({"name": "toy", "base_dir": str(tmp_path), "tables": {"train": "train.jsonl"}, "max_bad_fraction": 0.5})
    plain = load_samples(data)
    assert dict(plain.reasons) == {"missing file": 1}, "where pictures are pictures, any shape is good"
    found = load_samples(data, panoramas=True, quarantine_file=tmp_path / "quarantine.jsonl")
    assert dict(found.reasons) == {NOT_WHOLE: 1, PARTIAL: 1, "missing file": 1}
    assert len(found.splits["train"]) == 5
    named = {row["image"]: row for row in map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())}
    assert "12 x 8 pixels" in named["flat.png"]["detail"]
    assert "pad it to the whole sphere" in named["part.jpg"]["detail"]
    strict = data.model_copy(update={"max_bad_fraction": 0.0})
    with pytest.raises(DataError, match="1 not 2:1"):
        load_samples(strict, panoramas=True)
