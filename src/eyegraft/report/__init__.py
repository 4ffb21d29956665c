"""The report room: one self-contained page per run, written from the files that the run left behind."""

from __future__ import annotations

from pathlib import Path


def write_report(run_dir: Path | str) -> Path:
    """Write `<run>/report.html` and return its path; see `eyegraft.report.page`."""
    from eyegraft.report.page import write_page  # templates and charts are paid for only when a page is written

    return write_page(Path(run_dir))


__all__ = ["write_report"]
