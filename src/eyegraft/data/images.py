"""Pictures: what a file holds, opening it the same way everywhere, and the encoder's own transform.

`check_image` never decodes a picture before its header has said how large it is, so a decompression bomb costs nothing. `open_image`
gives upright 8-bit RGB (or grey) pixels whatever the file holds. `to_pixels` is the evaluation transform that the encoder was trained with.
"""

from __future__ import annotations

import binascii
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eyegraft.data.duplicates import LENGTH, fingerprint
from eyegraft.errors import DataError
from eyegraft.files import file_sha256
from eyegraft.types import ImageSpec

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MISSING = "missing file"
UNREADABLE = "unreadable image"
TOO_LARGE = "image too large"

Progress = Callable[[int, int], None]
"""Called as progress(done, total)."""

# Formats that Pillow decodes itself. EPS, for one, is left out: Pillow hands it to Ghostscript, and a data set must start no program.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO", "TGA", "PCX", "ICO")
_FORMATS_IN_WORDS = "JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF, JPEG 2000 or PPM"
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_CHANNELS = ("1 or 3: picture files have no others", "choose an encoder for grey or RGB pictures")
_GREY = 128
_LONGEST_SHAPE = 20  # of long to short side; beyond it a resize of the whole strip would need gigabytes for pixels that the crop discards
_SWAPPED_ORIENTATIONS = range(5, 9)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageFacts:
    """What a check found.

    Attributes:
        sha256: of the file's bytes; empty when the picture cannot be used.
        width, height: pixels as the header says, before any EXIF rotation; 0 when not even the header could be read.
        reason: empty, or why the picture cannot be used: `missing file`, `unreadable image` or `image too large`.
        detail: the reason with its numbers, or what the decoder said.
        fingerprint: what alike pictures are found by (see `data.duplicates`); empty when the pixels were not decoded.
    """

    sha256: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""
    detail: str = ""
    fingerprint: bytes = field(default=b"", repr=False)

    @property
    def ok(self) -> bool:
        return not self.reason


def check_image(path: Path, max_pixels: int, decode: bool) -> ImageFacts:
    """Look at one picture file: its header, its size, with `decode` all of its pixels, and its SHA-256. Raises nothing for a bad file.

    Args:
        path: the file.
        max_pixels: width x height above which the picture is refused without being decoded. Pillow's own limit holds too.
        decode: False trusts the pixels behind a good header.
    """
    width = height = 0
    looks = b""
    try:
        if not path.is_file():
            return ImageFacts(reason=MISSING, detail="not a regular file" if path.exists() else _absent(path))
        with opened(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                detail = f"{width} x {height} = {width * height:,} pixels, more than data.max_pixels = {max_pixels:,}"
                return ImageFacts("", width, height, TOO_LARGE, detail)
            if decode:
                looks = fingerprint(_as_mode(image, 3))
        sha256 = file_sha256(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return ImageFacts("", width, height, TOO_LARGE, f"refused by Pillow: {error}")
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError …
        return ImageFacts("", width, height, UNREADABLE, _in_words(path, error))
    return ImageFacts(sha256, width, height, fingerprint=looks)


def open_image(path: Path, channels: int = 3, target: tuple[int, int] | None = None) -> Image.Image:
    """The picture of a file, upright, 8 bits a channel: mode `RGB` for 3 channels, `L` for 1.

    EXIF orientation is applied, transparency is laid on white, an animation gives its first frame, 16-bit grey keeps its upper 8 bits.

    Args:
        path: the file.
        channels: 3 or 1.
        target: (height, width) that will be needed at most. A JPEG is then decoded at a half, quarter or eighth of its size where that
            still leaves twice the target: faster, and slightly different pixels.

    Raises:
        DataError: the file is missing, damaged, or holds values without a declared range (32-bit integers, floats).
    """
    if channels not in (1, 3):
        raise DataError(f"image {path}: asked for {channels} channels", *_CHANNELS)
    try:
        with opened(path) as image:
            if target is not None:
                height, width = target if upright_size(image) == image.size else reversed(target)
                image.draft(None, (2 * width, 2 * height))
            return _as_mode(image, channels)
    except Exception as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else _in_words(path, error)
        fix = "restore the file; `data.check: decode` finds such files before training starts"
        raise DataError(f"image {path}: {what}", f"a whole {_FORMATS_IN_WORDS} file", fix) from error


def to_pixels(image: Image.Image, spec: ImageSpec) -> Tensor:
    """A picture as the encoder takes it: [C, H, W] float32, ((value / 255) - mean) / std.

    `crop` follows timm's evaluation transform to the last bit: the short side becomes floor(size / crop_fraction), then the centre is cut.

    Raises:
        DataError: the encoder wants other than 1 or 3 channels.
    """
    import torch

    if spec.channels not in (1, 3):
        raise DataError(f"an encoder that takes {spec.channels} channels", *_CHANNELS)
    mode = "L" if spec.channels == 1 else "RGB"
    fitted = _fitted(image if image.mode == mode else image.convert(mode), spec)
    values = torch.from_numpy(np.array(fitted, copy=True)).view(*spec.size, spec.channels)
    pixels = values.permute(2, 0, 1).contiguous().to(torch.float32).div(255)  # [C, H, W]
    mean = torch.tensor(spec.mean, dtype=torch.float32).view(-1, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float32).view(-1, 1, 1)
    return pixels.sub_(mean).div_(std)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture with only its header read."""
    with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
        yield image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once the picture is turned as its EXIF orientation says."""
    turned = image.getexif().get(_ORIENTATION) in _SWAPPED_ORIENTATIONS
    return (image.height, image.width) if turned else image.size


def _as_mode(image: Image.Image, channels: int) -> Image.Image:
    """Decode, turn upright and convert to 8-bit grey or RGB."""
    image.load()
    from_png = image.format == "PNG"
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and from_png):  # Pillow's own conversion clips at 255 in place of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no declared range; save the picture with 8 or 16 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("L" if channels == 1 else "RGB")


def _absent(path: Path) -> str:
    """`no such file`, or the first folder on its way that does not exist."""
    absent = path
    while not absent.parent.exists() and absent.parent != absent:
        absent = absent.parent
    return "no such file" if absent == path else f"no folder {absent}"


def _in_words(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty (0 bytes)" if path.stat().st_size == 0 else f"not a picture: the bytes are no {_FORMATS_IN_WORDS}"
    return f"{type(error).__name__}: {error}"


# ── the encoder's transform ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _fitted(image: Image.Image, spec: ImageSpec) -> Image.Image:
    height, width = spec.size
    resampling = _RESAMPLING[spec.interpolation]
    if spec.fit == "squash":
        return image.resize((width, height), resampling)
    if spec.fit == "pad":
        scale = min(height / image.height, width / image.width)
        inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resampling)
        ground = Image.new(image.mode, (width, height), _GREY if image.mode == "L" else (_GREY,) * 3)
        ground.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return ground
    image = _shortened(image)
    image = image.resize(_covering(image.size, math.floor(width / spec.crop_fraction), math.floor(height / spec.crop_fraction)), resampling)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _covering(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The (width, height) of a picture scaled to just cover a box, rounded as timm does (it differs for square and other boxes)."""
    if width == height:
        short, long = min(size), max(size)
        longer = int(width * long / short)
        return (width, longer) if size[0] <= size[1] else (longer, width)
    ratio = min(size[0] / width, size[1] / height)
    return round(size[0] / ratio), round(size[1] / ratio)


def _shortened(image: Image.Image) -> Image.Image:
    """The middle of an extremely long strip; any other picture unchanged."""
    width, height = image.size
    longest = _LONGEST_SHAPE * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))


# ── many pictures, and what is remembered of them ────────────────────────────────────────────────────────────────────────────────

_SETTLED_NS = 2_000_000_000  # a file written within a clock tick of its check could change again unnoticed; only older ones are remembered

_Key = tuple[str, int, int]


def check_images(
    paths: Iterable[Path], *, max_pixels: int, decode: bool, memory: Path | None = None, progress: Progress | None = None
) -> dict[Path, ImageFacts]:
    """Check pictures in up to 8 threads: path -> facts.

    Args:
        paths, max_pixels, decode: as in `check_image`; a path that stands twice is checked once.
        memory: an append-only JSON-lines file of good pictures by (path, size, modification time). What it knows is not decoded again. Bad
            pictures are never remembered: the network drive may be back next time. Two processes may share it.
        progress: called in this thread as (done, total).
    """
    wanted = list(dict.fromkeys(paths))
    known = _recalled(memory) if memory is not None else {}

    def one(path: Path) -> tuple[ImageFacts, _Key | None]:
        key = _key(path)
        facts = known.get((key, True)) or (None if decode else known.get((key, False)))
        if facts is not None and facts.width * facts.height <= max_pixels:
            return facts, None
        return check_image(path, max_pixels, decode), key

    found: dict[Path, ImageFacts] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, _remembering(memory) as file:
        remembers = file is not None
        for number, (path, (facts, key)) in enumerate(zip(wanted, pool.map(one, wanted), strict=True), 1):
            found[path] = facts
            if remembers and file is not None and facts.ok and key is not None and time.time_ns() - key[2] > _SETTLED_NS:
                looks = binascii.b2a_base64(facts.fingerprint, newline=False).decode()
                line = json.dumps([*key, decode, facts.sha256, facts.width, facts.height, looks])
                remembers = _written(file, line.encode() + b"\n")
            if progress is not None:
                progress(number, len(wanted))
    return found


def _key(path: Path) -> _Key:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


def _recalled(memory: Path) -> dict[tuple[_Key, bool], ImageFacts]:
    """What earlier checks wrote; torn, foreign and old lines (without fingerprint) are passed over, their pictures checked again."""
    known: dict[tuple[_Key, bool], ImageFacts] = {}
    try:
        lines = memory.read_bytes().split(b"\n")
    except OSError:
        return known
    for line in lines:
        try:
            path, size, mtime_ns, decoded, sha256, width, height, looks = json.loads(line)
            seen = binascii.a2b_base64(looks)
        except (ValueError, TypeError):
            continue
        sound = isinstance(sha256, str) and len(sha256) == 64 and isinstance(width, int) and isinstance(height, int)
        if sound and len(seen) == (LENGTH if decoded else 0):
            known[(path, size, mtime_ns), bool(decoded)] = ImageFacts(sha256, width, height, fingerprint=seen)
    return known


def _written(file: BinaryIO, line: bytes) -> bool:
    """Append one whole line in one call (the file is unbuffered); False when the disk is full."""
    try:
        file.write(line)
    except OSError as error:
        log.warning("image checks are no longer remembered: %s", error)
        return False
    return True


@contextmanager
def _remembering(memory: Path | None) -> Iterator[BinaryIO | None]:
    """The memory opened for appending, or None. Being unable to remember costs time, not results: it is said, and the check goes on."""
    if memory is None:
        yield None
        return
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        file = memory.open("ab", buffering=0)  # closed below: only the opening may fail quietly
    except OSError as error:
        log.warning("image checks are not remembered: %s (set EYEGRAFT_CACHE to a folder that can be written)", error)
        yield None
        return
    with file:
        if file.tell() > 0:
            file.write(b"\n")  # ends a line that a killed run left torn
        yield file
