"""The report room: one self-contained page per run, and a listing for tasks of labels and numbers, from the files that the run left."""

from __future__ import annotations

from pathlib import Path


def write_report(run_dir: Path | str) -> Path:
    """Write `<run>/report.html` and return its path; of a task of labels or numbers also `<run>/<split>_report.md` for every
    split that was evaluated.

    See `eyegraft.report.page` and `eyegraft.report.listing`.

    Raises:
        RunError: there is no readable `run.json`.
    """
    from eyegraft.report.listing import write_listings
    from eyegraft.report.page import write_page  # templates and charts are paid for only when a page is written
    from eyegraft.report.reading import read_run

    run = read_run(Path(run_dir))
    write_listings(run)
    return write_page(run)


__all__ = ["write_report"]
