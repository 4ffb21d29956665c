"""Files: written whole or not at all, known by their hash, and a full disk said in words."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident

from eyegraft.errors import FULL, EyegraftError, RunError


def write_atomically(path: Path, content: str | bytes | Iterable[str], *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it. Missing folders are made.

    Args:
        path: the file. The draft beside it starts with a dot and ends in `.tmp`.
        content: text is written as UTF-8 with the line ends that it has; of a long file, piece by piece.
        durable: wait until it is on the disk, so that no power failure takes it back. Off for the many files that can be made again.

    Raises:
        RunError: the disk is full.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as stream:
                for piece in (content,) if isinstance(content, str | bytes) else content:
                    stream.write(piece.encode() if isinstance(piece, str) else piece)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file unless the same bytes lie there already, so that a copy that was torn is made whole. Missing folders are made.

    Raises:
        RunError: the disk is full.
    """
    content = source.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        write_atomically(target, content, durable=False)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what is safe."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise RunError(
            f"no room to write {place}: {error}",
            "free disk space",
            "free some space and run the same command: it goes on from the last whole checkpoint",
        ) from error


def _is_full(error: Exception) -> bool:
    """Libraries in Rust (safetensors) wrap the system's error into one of their own, and only its text has the number."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return not isinstance(error, EyegraftError) and any(f"(os error {number})" in str(error) for number in FULL)
