"""WebDataset shards: tar files in which the members of one sample share a name, `000123.jpg` and `000123.txt` or `.json`.

Nothing is ever extracted under a name that an archive gives. Pictures are written once, named by their SHA-256, so that no name can lead
anywhere and one picture in many samples is one file; what else a shard holds is kept beside them in `.shards/`, one file a shard, which is
also how a second run knows what is done.

The format: https://github.com/webdataset/webdataset (a name up to the first dot of its last part, then a suffix).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import multiprocessing
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from eyegraft.console import progress
from eyegraft.errors import DataError, EyegraftError, shown
from eyegraft.files import file_sha256, write_atomically

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_PICTURES = {"jpg": ".jpg", "jpeg": ".jpg", "png": ".png", "webp": ".webp", "gif": ".gif", "bmp": ".bmp", "tif": ".tif", "tiff": ".tif"}
_TEXTS = ("txt", "text", "caption", "json")
_LONGEST_TEXT, _LARGEST_PICTURE = 1 << 24, 1 << 28  # bytes: what is larger is no caption and no photograph, and would fill the memory
_VERSION = 1  # of what stands in `.shards/`; another one is made again
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 512


@dataclass
class Sample:
    """What a shard has under one name.

    Attributes:
        key: the name, in the composed form of Unicode.
        image: the picture's file, relative to the prepared folder; size: in bytes.
        texts: suffix -> what stands in the member.
        reason, detail: why it cannot be used.
    """

    key: str
    image: str = ""
    size: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""

    def refuse(self, reason: str, detail: str) -> None:
        if not self.reason:
            self.reason, self.detail = reason, detail


def is_shards(place: str) -> bool:
    return place.lower().endswith(SUFFIXES)


def shard_files(place: str, folder: Path) -> list[Path]:
    """The files that `train-*.tar` or `train-{0000..0011}.tar` stands for, in the order of their names.

    Raises:
        DataError: none, or one of those in braces is not there.
    """
    numbers = _BRACES.search(place)
    if numbers is None:
        absolute = Path(place).is_absolute()
        start, pattern = (Path(place).anchor, str(Path(place).relative_to(Path(place).anchor))) if absolute else (folder, place)
        found = sorted(Path(start).glob(pattern))
        if not found:
            raise DataError(f"shards {place}: no such file in {folder}", "tar files", "check prepare.folder and prepare.annotations")
        return found
    first, last = numbers.groups()
    names = [f"{place[: numbers.start()]}{number:0{len(first)}d}{place[numbers.end() :]}" for number in range(int(first), int(last) + 1)]
    found = [folder / name for name in names]
    if absent := [str(path) for path in found if not path.is_file()]:
        raise DataError(f"shards {place}: {len(absent)} of {len(found)} are not there: {shown(absent, 3)}", "all of them", "fetch the rest")
    return found


def read_shards(files: Sequence[Path], target: Path, workers: int) -> Iterator[tuple[Path, str, list[Sample]]]:
    """(file, SHA-256, samples) of each shard. Their pictures are written into `target/images` by `workers` processes at once; what an
    earlier run has done is not done again.

    Raises:
        DataError: a shard is damaged or cut short. What was read of the others stays.
    """
    todo = [path for path in files if _kept(path, target) is None]
    spawn = multiprocessing.get_context("spawn")
    shares = max(1, min(workers, len(todo)))
    others = [spawn.Process(target=_read_beside, args=(todo[number::shares], target), daemon=True) for number in range(1, shares)]
    for process in others:
        process.start()
    try:
        with progress("reading shards", len(todo)) as advance:
            for path in todo[::shares]:
                _read(path, target)
                advance(min(shares, len(todo)))
        for process in others:
            process.join()
        for path in todo:  # what another process could not do: here its error is told
            if _kept(path, target) is None:
                _read(path, target)
    finally:
        for process in others:
            process.kill()
            process.join()
    for draft in (target / "images").glob("*/.*.tmp"):  # of a run that was killed
        draft.unlink(missing_ok=True)
    for path in files:
        kept = _kept(path, target)
        assert kept is not None, path
        yield path, kept[0], kept[1]


def _read_beside(files: Sequence[Path], target: Path) -> None:
    """A share of the shards in a process of its own, which ends with its parent and leaves errors to it."""
    parent = multiprocessing.parent_process()
    with suppress(EyegraftError, KeyboardInterrupt):
        for path in files:
            if parent is None or not parent.is_alive():
                return
            _read(path, target)


# ── one shard ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _note(path: Path, target: Path) -> Path:
    return (
        target / ".shards" / f"{path.name}-{hashlib.sha256(str(path.absolute()).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.json"
    )


def _state(path: Path) -> dict[str, Any]:
    facts = path.stat()
    return {"version": _VERSION, "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}


def _kept(path: Path, target: Path) -> tuple[str, list[Sample]] | None:
    """What an earlier run has read of a shard that is as it was, all of whose pictures are there."""
    try:
        note = json.loads(_note(path, target).read_bytes())
        samples = [Sample(**sample) for sample in note["samples"]]
        whole = note["state"] == _state(path) and all((target / item.image).stat().st_size == item.size for item in samples if item.image)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (note["sha256"], samples) if whole else None


def _read(path: Path, target: Path) -> None:
    state = _state(path)
    samples: dict[str, Sample] = {}
    with _opened(path) as (archive, end):
        for member in archive:
            if (place := _key(member)) is None:
                continue
            key, suffix = place
            sample = samples.setdefault(key, Sample(key))
            fault = _fault(member, suffix)
            if fault is not None:
                sample.refuse(*fault)
                continue
            stream = archive.extractfile(member)
            assert stream is not None, member.name  # `_fault` has let only plain files through
            _take(sample, suffix, stream.read(), target)
        end()
    rows = [vars(sample) for sample in samples.values()]
    note = {"state": state, "sha256": file_sha256(path), "samples": rows}
    write_atomically(_note(path, target), json.dumps(note), durable=False)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tarfile.TarFile, Any]]:
    """The archive, and what must be called at its end: `tarfile` takes a damaged header in the middle for the end."""
    zipped = not path.name.lower().endswith(".tar")
    try:
        with (
            gzip.open(path, "rb") if zipped else path.open("rb") as raw,
            io.BufferedReader(raw, 1 << 20) as stream,
            tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive,
        ):

            def end() -> None:
                stream.seek(archive.offset)
                if stream.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset:,}")

            yield archive, end
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        given = f"shard {path}: {type(error).__name__}: {error}"
        raise DataError(given, "a whole tar file", "it may be cut short: fetch it again, then run the same command") from error


def _key(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """(name of the sample, suffix in small letters) of a member; None for folders, hidden files and what has no suffix of ours."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    if member.isdir() or not stem or stem.startswith("__") or suffix.rpartition(".")[2] not in (*_PICTURES, *_TEXTS):
        return None
    return unicodedata.normalize("NFC", f"{folder}/{stem}" if folder else stem).removeprefix("./"), suffix


def _fault(member: tarfile.TarInfo, suffix: str) -> tuple[str, str] | None:
    name = member.name
    if not member.isreg():
        return "not a plain file", f"{name!a} is a link or a device"
    leads_out = PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts or PureWindowsPath(name).drive
    if leads_out or "\0" in name:
        return "unsafe name", f"{name!a} leads out of the archive"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "unsafe name", f"{name!a} is not UTF-8"
    limit = _LARGEST_PICTURE if suffix.rpartition(".")[2] in _PICTURES else _LONGEST_TEXT
    if member.size > limit:
        return "too large", f"{name} has {member.size:,} bytes, more than {limit:,}"
    return None


def _take(sample: Sample, suffix: str, content: bytes, target: Path) -> None:
    ending = _PICTURES.get(suffix.rpartition(".")[2])
    if ending is None:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return sample.refuse("broken text", f"{sample.key}.{suffix} is not UTF-8: byte {error.start}")
        if suffix in sample.texts:
            return sample.refuse("duplicate member", f"{sample.key}.{suffix} stands twice in the shard")
        sample.texts[suffix] = text
        return None
    digest = hashlib.sha256(content).hexdigest()
    image = f"images/{digest[:2]}/{digest}{ending}"
    if sample.image and sample.image != image:
        return sample.refuse("several pictures", f"{sample.key} has more than one")
    path = target / image
    if not path.is_file() or path.stat().st_size != len(content):
        write_atomically(path, content, durable=False)
    sample.image, sample.size = image, len(content)
    return None
