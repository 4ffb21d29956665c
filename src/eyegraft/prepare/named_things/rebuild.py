"""Rebuild ``keywords.csv`` from the npm tarball of ``emojibase-data``.

A maintainer's tool: the library never imports it.  Fetch the package that
``README.md`` names (``npm pack NAME@VERSION``), then run::

    python rebuild.py TARBALL
"""

from __future__ import annotations

import argparse
import csv
import json
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the keywords of every drawn thing next to this script, in the order of ``drawings.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tarball", type=Path)
    args = parser.parse_args()
    with tarfile.open(args.tarball) as tar:
        stream = tar.extractfile("package/en/data.json")
        assert stream is not None
        keywords = {entry["hexcode"].lower(): entry["tags"] for entry in json.load(stream) if "tags" in entry}
    with (HERE.parent / "drawings" / "drawings.csv").open(encoding="utf-8", newline="") as table:
        codes = [row["codepoint"] for row in csv.DictReader(table)]
    with (HERE / "keywords.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["codepoint", "keywords"])
        writer.writerows((code, ", ".join(keywords[code])) for code in codes)


if __name__ == "__main__":
    main()
