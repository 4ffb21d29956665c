"""Rows for tests of the patch store; alone, so that a worker that makes them starts fast."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from eyegraft.data.patch_store import Field, Schema
from eyegraft.data.patch_writer import write_shards

SCHEMA = Schema(
    fields={
        "x": Field(dtype="float32", shape=(3, 10, 10), unit="K"),  # 1,200 bytes: a field that is fetched block by block
        "y": Field(dtype="float32", unit="K"),
        "row": Field(dtype="int64"),
        "pixel": Field(dtype="int16", shape=(2,)),
    },
    split="train",
    facts={"simulated": True},
)


def produced(job: dict[str, int]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Rows whose every number follows from the row's own number."""
    rows = np.arange(job["first"], job["first"] + job["rows"])
    time.sleep(job.get("milliseconds", 0) / 1000)
    columns = {
        "x": (rows[:, None] + np.arange(300) / 1000).astype(np.float32).reshape(-1, 3, 10, 10),
        "y": rows.astype(np.float32) / 2,
        "row": rows.astype(np.int64),
        "pixel": np.stack([rows % 900, rows % 7], axis=1).astype(np.int16),
    }
    return columns, {"NaN": job["first"] % 3, "outside the grid": 1}


if __name__ == "__main__":
    write_shards(Path(sys.argv[1]), SCHEMA, json.loads(sys.argv[2]), produced)
