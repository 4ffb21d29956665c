"""Reading many pictures, each content once: what was read is remembered by the SHA-256 of the file, for this run and all later ones."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from eyegraft.console import progress, track
from eyegraft.files import file_sha256
from eyegraft.prepare.ocr.engines import Engine, Word, file_name, in_reading_order
from eyegraft.pretrained import cache_dir

log = logging.getLogger(__name__)

MISSING = "missing file"
UNREADABLE = "unreadable image"
TOO_LARGE = "image too large"
FAILED = "OCR failed"

_LONGEST_SIDE = 4096  # a scan of a hundred megapixels is read as well at this size, in a hundredth of the time
_PREPROCESSING = f"rgb{_LONGEST_SIDE}"  # part of the cache's key: change it when `_upright` gives other pixels
# What Pillow decodes itself. EPS is left out: Pillow hands it to Ghostscript, and a table of pictures must start no such program.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO", "TGA", "PCX", "ICO")


@dataclass(frozen=True)
class Reading:
    """What became of one picture.

    Attributes:
        words: in reading order, with confidences; empty where there is no text.
        reason, detail: why the picture could not be read; empty where it was.
        cached: whether an earlier run had read it.
    """

    words: tuple[Word, ...] = ()
    reason: str = ""
    detail: str = ""
    cached: bool = False

    def text(self, min_confidence: float) -> str:
        """The words that the engine is sure enough of, with a space between: one line, for a table's cell."""
        return " ".join(" ".join(word for word, confidence in self.words if confidence >= min_confidence).split())


def read_pictures(paths: Iterable[Path], engine: Engine, *, max_pixels: int, workers: int) -> dict[Path, Reading]:
    """Read pictures: path -> what is there. Raises nothing for a bad picture.

    Each result is appended to `cache_dir()/ocr/ENGINE-VERSION-SETTINGS.jsonl` as soon as it is there, so a killed run goes on where it was.

    Args:
        max_pixels: width x height above which a picture is refused by its header, before anything is decoded.
        workers: pictures at once.
    """
    wanted = list(dict.fromkeys(paths))
    memory = cache_dir() / "ocr" / f"{file_name(engine.key)}-{_PREPROCESSING}.jsonl"
    known = _recalled(memory)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda path: _look(path, max_pixels), wanted)
        looks = dict(zip(wanted, track(found, "looking at pictures", len(wanted)), strict=True))
    first = {look: path for path, look in reversed(looks.items()) if isinstance(look, str) and look not in known}
    read = _read_all(first, engine, memory, workers) if first else {}
    done = {**known, **read}
    return {path: done[look] if isinstance(look, str) else look for path, look in looks.items()}


def _read_all(pictures: dict[str, Path], engine: Engine, memory: Path, workers: int) -> dict[str, Reading]:
    """SHA-256 -> reading, for pictures that no earlier run has read."""
    found: dict[str, Reading] = {}
    with _remembering(memory) as remember, progress(f"reading text with {engine.name}", len(pictures)) as advance:

        def one(sha256: str) -> None:
            reading = _read(pictures[sha256], engine)
            if not reading.reason:
                remember(sha256, reading)
            found[sha256] = reading

        pool = ThreadPoolExecutor(workers)
        try:
            for _ in pool.map(one, pictures):
                advance()
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C the pictures that are being read end, the others never start
    return found


def _look(path: Path, max_pixels: int) -> str | Reading:
    """The SHA-256 of a picture's bytes, or why it cannot be read; only its header is decoded."""
    try:
        if not path.is_file():
            return Reading(reason=MISSING, detail="not a regular file" if path.exists() else "no such file")
        with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            width, height = image.size
        if width * height > max_pixels:
            detail = f"{width} x {height} = {width * height:,} pixels, more than prepare.max_pixels = {max_pixels:,}"
            return Reading(reason=TOO_LARGE, detail=detail)
        return file_sha256(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Reading(reason=TOO_LARGE, detail=f"refused by Pillow: {error}")
    except Exception as error:  # on damaged bytes Pillow raises nearly anything: OSError, SyntaxError, struct.error, KeyError …
        return Reading(reason=UNREADABLE, detail=_in_words(error))


def _read(path: Path, engine: Engine) -> Reading:
    try:
        image = _upright(path)
    except Exception as error:  # as above: the pixels behind a good header may be damaged
        return Reading(reason=UNREADABLE, detail=_in_words(error))
    try:
        lines = in_reading_order(engine.read(image))
    except Exception as error:  # one picture that an engine stumbles over must not end a table of thousands
        return Reading(reason=FAILED, detail=_in_words(error))
    return Reading(tuple(word for line in lines for word in line.words))


def _upright(path: Path) -> Image.Image:
    """The picture as RGB: turned as its EXIF says, transparency on white, at most `_LONGEST_SIDE` pixels long."""
    with path.open("rb") as file, Image.open(file, formats=_formats()) as image:
        image.draft(None, (_LONGEST_SIDE, _LONGEST_SIDE))
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {upright.mode} (32 bits) have no declared range; save the picture with 8 or 16 bits")
    if upright.mode.startswith("I;16"):
        upright = upright.point(lambda value: value / 256).convert("L")  # Pillow's own conversion clips at 255 in place of scaling
    if upright.has_transparency_data:
        seen = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    upright = upright.convert("RGB")
    upright.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return upright


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _in_words(error: Exception) -> str:
    return "the bytes are no picture" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"


# ── what is remembered ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _recalled(memory: Path) -> dict[str, Reading]:
    """What earlier runs wrote; a torn or foreign line is passed over, its picture is simply read again."""
    known: dict[str, Reading] = {}
    try:
        lines = memory.read_bytes().split(b"\n")
    except OSError:
        return known
    for line in lines:
        try:
            sha256, words = json.loads(line)
            if isinstance(sha256, str) and len(sha256) == 64:
                known[sha256] = Reading(tuple((str(word), float(confidence)) for word, confidence in words), cached=True)
        except (ValueError, TypeError):
            continue
    return known


class _Remember:
    """Appends readings to a file, one whole line in one call, from any thread; stops at the first failure."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file, self._lock = file, threading.Lock()

    def __call__(self, sha256: str, reading: Reading) -> None:
        words = [[word, round(confidence, 4)] for word, confidence in reading.words]
        line = json.dumps([sha256, words], ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(line)
            except OSError as error:
                log.warning("what OCR reads is no longer remembered: %s", error)
                self._file = None


@contextmanager
def _remembering(memory: Path) -> Iterator[_Remember]:
    """The memory opened for appending. Being unable to remember costs time, not results: it is said, and the reading goes on."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        file = memory.open("ab", buffering=0)
    except OSError as error:
        log.warning("what OCR reads is not remembered: %s (set EYEGRAFT_CACHE to a folder that can be written)", error)
        yield _Remember(None)
        return
    with file:
        if os.fstat(file.fileno()).st_size > 0:
            file.write(b"\n")  # ends a line that a killed run left torn
        yield _Remember(file)
