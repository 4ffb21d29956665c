"""The two OCR engines: lines of words with a place and a confidence, out of an upright RGB picture.

Tesseract is called as a program: its TSV output needs no binding, and a crash of it costs one picture, not the run. RapidOCR is a Python
package that carries its models: English and Chinese, no Korean.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from logging import getLogger
from typing import TYPE_CHECKING, Any, Literal, Protocol

from eyegraft.errors import PartError, shown

if TYPE_CHECKING:
    from PIL import Image

log = getLogger(__name__)

Word = tuple[str, float]
"""A word (of RapidOCR: a whole line) and how sure the engine is, 0 to 1."""

_SECONDS = 120  # for one picture: a program that hangs must not hold up the table
_RAPIDOCR_READS = {"eng", "chi_sim", "chi_tra"}
_DEBIAN = "on Debian and Ubuntu: apt-get install tesseract-ocr"


@dataclass(frozen=True)
class Line:
    """A line of text.

    Attributes:
        words: left to right.
        box: left, top, right, bottom in pixels.
    """

    words: tuple[Word, ...]
    box: tuple[float, float, float, float]


class Engine(Protocol):
    """What reads pictures.

    Attributes:
        name: `tesseract` or `rapidocr`.
        key: name, version and all settings that change what is read; results of one key may be used again.
    """

    name: str
    key: str

    def read(self, image: Image.Image) -> list[Line]: ...


def choose(wanted: Literal["auto", "tesseract", "rapidocr"], languages: Sequence[str]) -> Engine:
    """The engine for these languages. `auto` takes Tesseract where Korean is asked for and its data are there, else RapidOCR.

    Args:
        wanted: an engine, or `auto`.
        languages: Tesseract's codes: kor, eng, jpn, chi_sim …

    Raises:
        PartError: the engine, or its data for a language, is not installed.
    """
    found = _tesseract()
    absent = [language for language in languages if found is None or language not in found[2]]
    if found is not None and not absent and (wanted == "tesseract" or (wanted == "auto" and "kor" in languages)):
        return Tesseract(*found[:2], languages)
    if wanted == "tesseract":
        raise _no_tesseract(found, absent)
    if find_spec("rapidocr") and find_spec("onnxruntime"):
        if foreign := [language for language in languages if language not in _RAPIDOCR_READS]:
            mend = f"install tesseract with its data ({_DEBIAN} {_packages(foreign)})"
            log.warning("RapidOCR reads English and Chinese, not %s: %s, or leave it out of prepare.languages", shown(foreign), mend)
        return RapidOcr()
    if wanted == "auto" and found is not None and not absent:
        return Tesseract(*found[:2], languages)
    fix = f"pip install 'eyegraft[ocr]' for English and Chinese, or, {_DEBIAN} {_packages(languages)}"
    if wanted == "rapidocr":
        raise PartError("prepare.engine=rapidocr: the packages rapidocr and onnxruntime are not installed", "both of them", fix)
    raise PartError(f"no OCR engine for {', '.join(languages)}", "tesseract with these languages, or the package rapidocr", fix)


def in_reading_order(lines: Iterable[Line]) -> list[Line]:
    """Top to bottom, and left to right where lines stand side by side: their middles lie within half of the lower height."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=_middle):
        last = rows[-1][-1] if rows else None
        if last is not None and abs(_middle(line) - _middle(last)) < min(_height(line), _height(last)) / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.box[0])]


def _middle(line: Line) -> float:
    return (line.box[1] + line.box[3]) / 2


def _height(line: Line) -> float:
    return line.box[3] - line.box[1]


# ── tesseract ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tesseract:
    """The `tesseract` program, one process a picture."""

    name = "tesseract"

    def __init__(self, program: str, release: str, languages: Sequence[str]) -> None:
        joined = "+".join(languages)
        # 11 is sparse text. On photographs and banners the default (3) often finds no page and reads nothing, 6 (one block) reads noise.
        self._command = [program, "stdin", "stdout", "-l", joined, "--psm", "11", "-c", "tessedit_create_tsv=1"]
        self.key = f"tesseract-{release}-{joined}-psm11"

    def read(self, image: Image.Image) -> list[Line]:
        if min(image.size) < 3:
            return []  # which the program calls an error
        stream = io.BytesIO()
        image.save(stream, "PPM")
        # one thread each: several processes at once share the cores better than its OpenMP does
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        done = subprocess.run(self._command, input=stream.getvalue(), capture_output=True, timeout=_SECONDS, env=environment, check=False)
        if done.returncode != 0:
            raise OSError(f"tesseract ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}")
        return _lines_of(done.stdout.decode("utf-8", errors="replace"))


def _lines_of(tsv: str) -> list[Line]:
    """Tesseract's TSV: level, page, block, paragraph, line, word, left, top, width, height, confidence in percent, text."""
    words: dict[tuple[str, ...], list[Word]] = {}
    boxes: dict[tuple[str, ...], tuple[float, float, float, float]] = {}
    for row in tsv.splitlines()[1:]:
        cells = row.split("\t", 11)
        if len(cells) < 12:
            continue
        line = tuple(cells[1:5])
        if cells[0] == "4":
            left, top, width, height = map(float, cells[6:10])
            boxes[line] = (left, top, left + width, top + height)
        elif cells[0] == "5" and cells[11].strip():
            words.setdefault(line, []).append((cells[11].strip(), max(0.0, float(cells[10]) / 100)))
    return [Line(tuple(found), boxes[line]) for line, found in words.items()]


@cache
def _tesseract() -> tuple[str, str, frozenset[str]] | None:
    """(program, version, languages) of the installed Tesseract; None where there is none."""
    program = shutil.which("tesseract")
    if program is None:
        return None
    try:
        first = _printed(program, "--version").split("\n")[0]
        listed = _printed(program, "--list-langs").split("\n")[1:]
    except (OSError, subprocess.SubprocessError):
        return None
    return program, first.removeprefix("tesseract").strip(), frozenset(line.strip() for line in listed if line.strip())


def _printed(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_SECONDS, check=True)
    return done.stdout.decode(errors="replace")


def _no_tesseract(found: tuple[str, str, frozenset[str]] | None, absent: Sequence[str]) -> PartError:
    if found is None:
        fix = f"{_DEBIAN} {_packages(absent)}"
        return PartError("prepare.engine=tesseract: there is no program `tesseract`", "Tesseract on the path", fix)
    given = f"prepare.languages: Tesseract {found[1]} has no data for {shown(absent)}"
    return PartError(given, f"some of {', '.join(sorted(found[2]))}", f"{_DEBIAN} {_packages(absent)}")


def _packages(languages: Iterable[str]) -> str:
    """Debian's packages of language data: `kor` is in tesseract-ocr-kor, `chi_sim` in tesseract-ocr-chi-sim."""
    return " ".join(f"tesseract-ocr-{language.replace('_', '-')}" for language in languages if language != "eng")


# ── rapidocr ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RapidOcr:
    """RapidOCR on onnxruntime; a thread has its own models, for their sessions are locked while they run."""

    name = "rapidocr"

    def __init__(self) -> None:
        self.key = f"rapidocr-{version('rapidocr')}"
        self._threads = threading.local()

    def read(self, image: Image.Image) -> list[Line]:
        import numpy as np

        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # it takes arrays as BGR
        read = self._models()(pixels)
        if read.txts is None:
            return []
        found = zip(read.txts, read.scores, read.boxes, strict=True)  # boxes: four corners (x, y) each
        return [
            Line(((" ".join(text.split()), float(score)),), (*map(float, box.min(axis=0)), *map(float, box.max(axis=0))))  # type: ignore[arg-type]
            for text, score, box in found
            if text.strip()
        ]

    def _models(self) -> Any:
        if not hasattr(self._threads, "models"):
            from rapidocr import RapidOCR

            threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
            self._threads.models = RapidOCR(params={"Global.log_level": "critical", **threads})
        return self._threads.models


def file_name(key: str) -> str:
    """A key as part of a file's name."""
    return re.sub(r"[^\w.+-]", "_", key)
