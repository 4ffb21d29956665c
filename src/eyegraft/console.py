"""What a person sees while something runs: a bar on a terminal, plain lines elsewhere (logs, CI, a pipe); and what a file keeps of it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_PLAIN_SECONDS = 10.0
_FILE_SECONDS = 60.0


class Advance(Protocol):
    def __call__(self, done: int = 1, note: str = "") -> None: ...


@cache
def _terminal() -> Any:
    """The one rich console of standard error: bars and log lines must share it, or they write over each other."""
    from rich.console import Console

    return Console(stderr=True)


class _BareLines(logging.StreamHandler[Any]):
    """Log lines as bare text, above a bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream.isatty():
            _terminal().print(self.format(record), markup=False, highlight=False, soft_wrap=True)
        else:
            super().emit(record)


def setup_logging(level: int = logging.INFO) -> None:
    """Our own log lines to standard error as bare text; other libraries only from warnings on."""
    lines = _BareLines(sys.stderr)
    lines.addFilter(_is_told)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[lines])
    logging.getLogger("eyegraft").setLevel(level)
    for name in ("httpx", "bitsandbytes"):  # the second warns of kernels for 4 bits whenever adapters are built
        logging.getLogger(name).setLevel(logging.ERROR)


def _is_told(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.split(".")[0] == "eyegraft"  # some libraries set their own level


class _TimedLines(logging.Formatter):
    """The time before every line, also of a message of many."""

    def format(self, record: logging.LogRecord) -> str:
        start = f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} {record.levelname:<7} "
        return "\n".join(f"{start}{line}".rstrip() for line in super().format(record).splitlines())


class _LogFile(logging.FileHandler):
    """Log lines with their time. A file that can no longer be written, as on a full disk, is said once and stops nothing."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.failed:
            self.failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


_silent = False


@contextmanager
def silenced() -> Iterator[None]:
    """Say only errors meanwhile, and not how far anything is: of several processes that do the same one speaks."""
    global _silent
    ours = logging.getLogger("eyegraft")
    level, before = ours.level, _silent
    ours.setLevel(logging.ERROR)
    _silent = True
    try:
        yield
    finally:
        ours.setLevel(level)
        _silent = before


_log_files: list[_LogFile] = []
"""Those that are open."""


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Keep the log lines that come meanwhile in a file too (UTF-8, each with its time), how far long things are once a minute, and, of an
    error that ends it, the traceback. Log lines of `quiet` commands are kept as well. Folders are made; an existing file goes on.
    """
    ours, root = logging.getLogger("eyegraft"), logging.getLogger()
    level, shown = ours.level, ours.getEffectiveLevel()
    quiet = [] if shown <= logging.INFO else [*ours.handlers, *root.handlers]

    def as_before(record: logging.LogRecord) -> bool:
        return record.levelno >= shown or record.name.split(".")[0] != "eyegraft"

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        logging.getLogger(__name__).warning("%s cannot be written: %s", file, error)
        yield
        return
    handler.setFormatter(_TimedLines())
    handler.addFilter(_is_told)
    added: list[logging.Handler] = [handler]
    if not root.handlers and logging.lastResort is not None:
        added.append(logging.lastResort)  # which shows warnings only where there is no handler, and now there is one
    for one in added:
        root.addHandler(one)
    for one in quiet:
        one.addFilter(as_before)
    ours.setLevel(min(shown, logging.INFO))
    _log_files.append(handler)
    try:
        yield
    except BaseException:
        _write(handler, "stopped", logging.ERROR, exc_info=True)
        raise
    finally:
        _log_files.remove(handler)
        ours.setLevel(level)
        for one in quiet:
            one.removeFilter(as_before)
        for one in added:
            root.removeHandler(one)
        with suppress(OSError):  # what was not written then will not be now
            handler.close()


def _write(handler: logging.Handler, line: str, level: int = logging.INFO, *, exc_info: bool = False) -> None:
    """A line for the file alone."""
    found = sys.exc_info() if exc_info else None
    handler.handle(logging.LogRecord("eyegraft.console", level, __file__, 0, line, None, found))


class _PlainLines:
    """How far a long thing is, now and then: a line to standard error where it is said aloud, and less often one to the open log files."""

    def __init__(self, label: str, total: int | None, done: int) -> None:
        self.label, self.total, self.count = label, total, done
        self.started = self.said = self.kept = time.monotonic()

    def __call__(self, done: int = 1, note: str = "", *, aloud: bool = True) -> None:
        self.count += done
        now = time.monotonic()
        if aloud and now - self.said >= _PLAIN_SECONDS:
            self.said = now
            print(self._line(now, note), file=sys.stderr, flush=True)
        if _log_files and now - self.kept >= _FILE_SECONDS:
            self.kept = now
            for file in _log_files:
                _write(file, self._line(now, note))

    def _line(self, now: float, note: str) -> str:
        total = self.total if self.total is not None else "?"
        return f"{self.label}: {self.count}/{total} after {now - self.started:.0f} s {note}".rstrip()


@contextmanager
def progress(label: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show how far a long thing is: `with progress("decoding", 600) as advance: advance()`."""
    if _silent:
        yield lambda done=1, note="": None
        return
    lines = _PlainLines(label, total, done)
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=_terminal()) as bar:
            task = bar.add_task(label, total=total, completed=done, note="")

            def advance(done: int = 1, note: str = "") -> None:
                bar.advance(task, done)
                if note:
                    bar.update(task, note=note)
                lines(done, note, aloud=False)

            yield advance
        return

    yield lines


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Pass items on and show how many have gone by."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(label, total) as advance:
        for item in items:
            yield item
            advance()
