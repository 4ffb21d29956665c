"""What a person sees while something runs: a bar on a terminal, plain lines elsewhere (logs, CI, a pipe)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_PLAIN_SECONDS = 10.0


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
    lines.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] == "eyegraft")  # some set their own level
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[lines])
    logging.getLogger("eyegraft").setLevel(level)
    for name in ("httpx", "bitsandbytes"):  # the second warns of kernels for 4 bits whenever adapters are built
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def progress(label: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show how far a long thing is: `with progress("decoding", 600) as advance: advance()`."""
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

            yield advance
        return

    count, shown, started = done, time.monotonic(), time.monotonic()

    def advance_plainly(done: int = 1, note: str = "") -> None:
        nonlocal count, shown
        count += done
        now = time.monotonic()
        if now - shown >= _PLAIN_SECONDS:
            shown = now
            print(
                f"{label}: {count}/{total if total is not None else '?'} after {now - started:.0f} s {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )

    yield advance_plainly


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Pass items on and show how many have gone by."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(label, total) as advance:
        for item in items:
            yield item
            advance()
