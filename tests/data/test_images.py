"""Every kind of picture file, good and bad, and the encoder's transform."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyegraft.data.images import check_image, check_images, open_image, to_pixels
from eyegraft.errors import DataError
from eyegraft.pretrained import ready
from eyegraft.types import ImageSpec

SPEC = ImageSpec(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
LIMIT = 1_000_000


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bomb(path: Path, width: int = 50_000, height: int = 50_000) -> Path:
    """A PNG of a few bytes whose header promises gigabytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b""))
    return path


# ── checking ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decode", [True, False])
def test_a_good_picture_is_hashed_and_measured(tmp_path: Path, decode: bool) -> None:
    path = tmp_path / "a.png"
    noise(7, 5).save(path)
    facts = check_image(path, LIMIT, decode)
    assert facts.ok
    assert (facts.width, facts.height) == (7, 5)
    assert len(facts.sha256) == 64


def test_a_truncated_jpeg_is_found_by_decoding_only(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    facts = check_image(path, LIMIT, decode=True)
    assert facts.reason == "unreadable image"
    assert "truncated" in facts.detail
    assert check_image(path, LIMIT, decode=False).ok
    with pytest.raises(DataError, match=r"cut\.jpg: .*truncated.*\n  expected: .*JPEG.*\n  fix: .*data\.check: decode"):
        open_image(path)


@pytest.mark.parametrize(("content", "said"), [(b"", "empty"), (b"this is no picture, whatever its name says", "not a picture")])
def test_files_that_are_no_pictures_say_so(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    facts = check_image(path, LIMIT, decode=False)
    assert facts.reason == "unreadable image"
    assert said in facts.detail
    with pytest.raises(DataError, match=said):
        open_image(path)


def test_missing_files_and_folders_are_missing(tmp_path: Path) -> None:
    assert check_image(tmp_path / "none.png", LIMIT, True).reason == "missing file"
    assert check_image(tmp_path, LIMIT, True).detail == "not a regular file"
    assert check_image(tmp_path / "nul\0.png", LIMIT, True).reason == "missing file"
    with pytest.raises(DataError, match="no such file"):
        open_image(tmp_path / "none.png")


def test_a_decompression_bomb_is_never_decoded(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.png")
    tracemalloc.start()
    facts = check_image(path, 100_000_000, decode=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts.reason == "image too large"
    assert peak < 5e6
    assert "Pillow" in check_image(path, 10**12, decode=True).detail, "Pillow's own limit holds whatever the recipe allows"
    smaller = check_image(bomb(tmp_path / "b.png", 5000, 5000), LIMIT, decode=True)
    assert smaller.detail == "5000 x 5000 = 25,000,000 pixels, more than data.max_pixels = 1,000,000"


def test_postscript_under_another_name_starts_no_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert "not a picture" in check_image(path, LIMIT, decode=True).detail


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (40, 20), "white")
    image.paste((255, 0, 0), (0, 0, 20, 20))  # stored: red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown: turned clockwise, red on top
    image.save(path, exif=exif, quality=95)
    shown = open_image(path)
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5))[1] < 50 < 200 < shown.getpixel((10, 35))[1]
    reduced = open_image(path, target=(4, 2))
    assert reduced.size in [(10, 20), (5, 10)]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    palette.save(tmp_path / "palette.gif", transparency=0)
    assert open_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)
    assert open_image(tmp_path / "clear.png", channels=1).getpixel((1, 1)) == 255
    shown = open_image(tmp_path / "palette.gif")
    assert (shown.getpixel((1, 1)), shown.getpixel((0, 0))) == ((255, 255, 255), (200, 0, 0))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(open_image(tmp_path / "deep.png", channels=1)).tolist() == [[0, 0, 1, 128, 255]]
    assert open_image(tmp_path / "deep.png").mode == "RGB"


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    red, green, blue = open_image(tmp_path / "print.jpg").getpixel((8, 8))
    assert red > 240
    assert green < 15
    assert blue < 15


def test_floats_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tif")
    assert "32 bits" in check_image(tmp_path / "float.tif", LIMIT, decode=True).detail
    with pytest.raises(DataError, match="save the picture with 8 or 16 bits"):
        open_image(tmp_path / "float.tif")


def test_other_channel_counts_are_refused(tmp_path: Path) -> None:
    noise(4, 4).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="asked for 4 channels\n  expected: 1 or 3"):
        open_image(tmp_path / "a.png", channels=4)
    with pytest.raises(DataError, match="takes 2 channels"):
        to_pixels(noise(4, 4), ImageSpec((4, 4), (0.5, 0.5), (0.5, 0.5)))


# ── the transform ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (31, 57), (32, 32), (333, 97)])
@pytest.mark.parametrize("crop_fraction", [0.875, 1.0, 0.9])
def test_crop_is_short_side_then_centre(size: tuple[int, int], crop_fraction: float) -> None:
    image = noise(*size)
    short = int(32 / crop_fraction)
    width, height = (short, int(short * size[1] / size[0])) if size[0] <= size[1] else (int(short * size[0] / size[1]), short)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    cut = torch.from_numpy(np.array(resized.crop((left, top, left + 32, top + 32)))).permute(2, 0, 1) / 255
    expected = (cut - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    torch.testing.assert_close(to_pixels(image, replace(SPEC, crop_fraction=crop_fraction)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (31, 57), (224, 224), (333, 97), (90, 640)])
@pytest.mark.parametrize(("target", "crop_fraction"), [((224, 224), 0.875), ((224, 224), 0.95), ((64, 96), 0.9), ((96, 64), 1.0)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_agrees_with_timm(size: tuple[int, int], target: tuple[int, int], crop_fraction: float, interpolation: str) -> None:
    ready()
    pytest.importorskip("timm")
    from timm.data import create_transform

    image = noise(*size)
    theirs = create_transform(
        input_size=(3, *target), interpolation=interpolation, mean=SPEC.mean, std=SPEC.std, crop_pct=crop_fraction, is_training=False
    )
    spec = replace(SPEC, size=target, interpolation=interpolation, crop_fraction=crop_fraction)
    torch.testing.assert_close(to_pixels(image, spec), theirs(image), rtol=0, atol=1e-6)


def test_squash_and_pad_keep_the_whole_picture() -> None:
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    plain = ImageSpec((16, 16), (0, 0, 0), (1, 1, 1), fit="pad")
    padded = to_pixels(image, plain)
    assert torch.equal(padded[:, 0, 0], torch.full((3,), 128 / 255))
    assert padded[:, 8, 8].tolist() == [1, 0, 0]
    assert (padded[0] == 1).sum() == 16 * 8
    assert to_pixels(image, replace(plain, fit="squash"))[0].eq(1).all()


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90), height=st.integers(1, 90), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["crop", "squash", "pad"]), channels=st.sampled_from([1, 3]), crop_fraction=st.floats(0.3, 1),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)  # fmt: skip
def test_any_picture_gives_the_declared_shape(
    width: int, height: int, size: tuple[int, int], fit: str, channels: int, crop_fraction: float, interpolation: str
) -> None:
    spec = ImageSpec(size, (0.5,) * channels, (0.5,) * channels, interpolation, fit, crop_fraction)  # type: ignore[arg-type]
    pixels = to_pixels(noise(width, height), spec)
    assert pixels.shape == (channels, *size)
    assert pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1


def test_an_endless_strip_is_cut_before_it_is_enlarged() -> None:
    started = time.perf_counter()
    pixels = to_pixels(Image.new("L", (1, 200_000), 255), ImageSpec((64, 64), (0.0,), (1.0,)))
    assert pixels.eq(1).all()
    assert time.perf_counter() - started < 1


# ── many pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def settled(path: Path) -> Path:
    old = time.time() - 60
    os.utime(path, (old, old))
    return path


def test_what_is_remembered_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory" / "checks.jsonl"
    paths = []
    for number in range(4):
        noise(8, 8, seed=number).save(tmp_path / f"{number}.png")
        paths.append(settled(tmp_path / f"{number}.png"))
    (tmp_path / "bad.png").write_bytes(b"no")
    everything = [*paths, settled(tmp_path / "bad.png"), paths[0]]
    seen: list[tuple[int, int]] = []
    first = check_images(everything, max_pixels=LIMIT, decode=True, memory=memory, progress=lambda *state: seen.append(state))
    assert seen == [(number, 5) for number in range(1, 6)]
    assert len(memory.read_text().split()) > 4
    with memory.open("ab") as file:
        file.write(b'["torn by a kill')

    decoded: list[Path] = []

    def counted(path: Path, max_pixels: int, decode: bool):  # type: ignore[no-untyped-def]
        decoded.append(path)
        return check_image(path, max_pixels, decode)

    monkeypatch.setattr("eyegraft.data.images.check_image", counted)
    assert check_images(everything, max_pixels=LIMIT, decode=True, memory=memory) == first
    assert decoded == [tmp_path / "bad.png"], "bad pictures are looked at again, good ones are not"

    noise(9, 9).save(paths[0])
    settled(paths[0])
    changed = check_images(everything, max_pixels=LIMIT, decode=True, memory=memory)
    assert changed[paths[0]].width == 9
    assert json.loads(memory.read_bytes().splitlines()[-1])[0] == str(paths[0]), "the torn line did not swallow the next one"
    assert check_images(paths, max_pixels=10, decode=True, memory=memory)[paths[1]].reason == "image too large"


def test_fingerprints_are_remembered_and_old_lines_checked_again(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "checks.jsonl"
    noise(64, 64).save(path)
    settled(path)
    facts = check_images([path], max_pixels=LIMIT, decode=True, memory=memory)[path]
    assert len(facts.fingerprint) == 16 * 16 * 3
    assert check_image(path, LIMIT, decode=False).fingerprint == b""
    assert check_images([path], max_pixels=LIMIT, decode=True, memory=memory)[path] == facts
    whole = json.loads(memory.read_bytes())
    for broken in (whole[:-1], [*whole[:-1], whole[-1][:40]], [*whole[:-1], "no base64!"], [*whole[:-1], None]):
        memory.write_text(json.dumps(broken) + "\n")
        assert check_images([path], max_pixels=LIMIT, decode=True, memory=memory)[path] == facts
        assert json.loads(memory.read_bytes().splitlines()[-1]) == whole


def test_a_header_check_is_no_proof_of_pixels(tmp_path: Path) -> None:
    path, memory = tmp_path / "cut.jpg", tmp_path / "checks.jsonl"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    settled(path)
    assert check_images([path], max_pixels=LIMIT, decode=False, memory=memory)[path].ok
    assert not check_images([path], max_pixels=LIMIT, decode=True, memory=memory)[path].ok
    assert check_images([path], max_pixels=LIMIT, decode=False, memory=memory)[path].ok


def test_fresh_files_are_not_remembered(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "checks.jsonl"
    noise(8, 8).save(path)
    check_images([path], max_pixels=LIMIT, decode=True, memory=memory)
    assert memory.read_bytes() == b"", "it could change again within one tick of the clock"


def test_an_unwritable_memory_is_said_and_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(8, 8).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("in the way")
    found = check_images([tmp_path / "a.png"], max_pixels=LIMIT, decode=True, memory=tmp_path / "file" / "checks.jsonl")
    assert found[tmp_path / "a.png"].ok
    assert "EYEGRAFT_CACHE" in caplog.text


def test_two_processes_may_share_a_memory(tmp_path: Path) -> None:
    memory = tmp_path / "checks.jsonl"
    for number in range(40):
        noise(4, 4, seed=number).save(tmp_path / f"{number}.png")
        settled(tmp_path / f"{number}.png")
    code = (
        "import sys; from pathlib import Path; from eyegraft.data.images import check_images; folder = Path(sys.argv[1]);"
        "check_images(sorted(folder.glob('*.png')), max_pixels=100, decode=True, memory=folder / 'checks.jsonl')"
    )
    source = str(Path(__file__).parents[2] / "src")
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": source}) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    lines = [json.loads(line) for line in memory.read_bytes().split(b"\n") if line.strip()]
    assert {Path(line[0]).name for line in lines} == {f"{number}.png" for number in range(40)}
