"""Statistics of patches: fitted on train alone, the same after writing and reading, and refused wherever they do not fit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eyegraft.data.patch_chunks import CHANNELS
from eyegraft.data.patch_statistics import fit, read_documents, read_statistics, write_statistics
from eyegraft.data.patch_store import Field, PatchStore, Schema
from eyegraft.data.patch_writer import write_shards
from eyegraft.errors import DataError

NAMES = ["ir", "dem", "lsmask"]


def produced(values: np.ndarray, job: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    return {"x": values, "y": values[:, 0, 0, 0] + 1}, {}


def store(folder: Path, values: np.ndarray, split: str = "train") -> PatchStore:
    schema = Schema(
        fields={"x": Field(dtype="float32", shape=values.shape[1:]), "y": Field(dtype="float32")}, split=split, facts={"channels": NAMES}
    )
    write_shards(folder, schema, [1], partial(produced, values))
    return PatchStore(folder)


def values(seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(280, 12, (40, 3, 5, 5)).astype(np.float32)
    made[:, 2] = made[:, 2] > 280
    return made


def test_fitted_on_what_was_measured_and_read_back_the_same(tmp_path: Path) -> None:
    x = values()
    x[3, 0, 1] = np.nan
    with store(tmp_path / "train", x) as train:
        fitted = fit(train)
        assert list(fitted["inputs"]) == ["ir", "dem"]  # what is 0 and 1 already is not scaled
        assert fitted["inputs"]["ir"]["mean"] == pytest.approx(np.nanmean(x[:, 0], dtype=np.float64), rel=1e-9)
        assert fitted["inputs"]["dem"]["std"] == pytest.approx(x[:, 1].std(dtype=np.float64), rel=1e-9)
        assert fitted["target"]["mean"] == pytest.approx((x[:, 0, 0, 0] + 1).mean(dtype=np.float64), rel=1e-6)
        write_statistics(tmp_path / "statistics.json", fitted, train_store=train.identity, source="patches/train")
        again = read_statistics(tmp_path / "statistics.json", NAMES, train=train)
    assert again["inputs"] == fitted["inputs"]
    assert again["target"] == fitted["target"]
    assert again["source"] == "patches/train"


def test_no_other_split_is_looked_at(tmp_path: Path) -> None:
    with store(tmp_path / "val", values(), "val") as val, pytest.raises(DataError, match="the split 'train'"):
        fit(val)


@pytest.mark.parametrize("flat", [np.nan, 0.0])
def test_a_channel_without_spread_is_named(tmp_path: Path, flat: float) -> None:
    x = values()
    x[:, 1] = flat
    with store(tmp_path / "train", x) as train, pytest.raises(DataError, match="dem has no spread in 40 rows"):
        fit(train)


def test_statistics_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    one = {"mean": 280.0, "std": 12.0}
    with pytest.raises(DataError, match=r"is not there(.|\n)*`eyegraft prepare` does"):
        read_statistics(path, NAMES)
    write_statistics(path, {"inputs": {"B11": one, "ir": one}, "target": one}, train_store="0" * 64, source="patches/train")
    with pytest.raises(DataError, match="other channels: none for dem; some for B11, which the patches lack"):
        read_statistics(path, NAMES)
    write_statistics(path, {"inputs": {"ir": one, "dem": one}, "target": one}, train_store="0" * 64, source="patches/train")
    with store(tmp_path / "train", values()) as train, pytest.raises(DataError, match="fitted on the train split 000000000000, but"):
        read_statistics(path, NAMES, train=train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": {"mean": 1.0, "std": 0.0}}, "mean or std of y, as in mean 1, std 0"),
        ({"target": {"mean": float("nan"), "std": 1.0}}, "mean or std of y, as in mean nan"),
        ({"inputs": {"ir": {"mean": 1.0, "std": -2.0}}}, "mean or std of ir, as in mean 1, std -2"),
        ({"inputs": {"ir": {"mean": 1.0}}}, "KeyError 'std'"),
        ({"inputs": {"ir": {"mean": "warm", "std": 1}}}, "could not convert"),
        ({"inputs": None}, "statistics of patches as this program writes them"),
        ({"format": 2}, "format 2"),
    ],
)
def test_numbers_that_cannot_scale(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "statistics.json"
    one = {"mean": 280.0, "std": 12.0}
    write_statistics(path, {"inputs": {"ir": one}, "target": one}, train_store=None, source="elsewhere")
    assert read_statistics(path)["train_store"] is None
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        read_statistics(path)


def test_the_older_files_are_read(tmp_path: Path) -> None:
    inputs, target = tmp_path / "input_statistics_2022.json", tmp_path / "statistics_2022.json"
    one = {"mean": 250.0, "std": 9.0}
    inputs.write_text(json.dumps({"year": 2022, **dict.fromkeys(CHANNELS[:-1], one)}))
    target.write_text(json.dumps({"TA": {"mean": 286.0, "std": 10.5}, "HM": {"mean": 60, "std": 20}}))
    fitted = read_documents(inputs, target, CHANNELS)
    assert (len(fitted["inputs"]), fitted["target"]) == (18, {"mean": 286.0, "std": 10.5})
    with pytest.raises(DataError, match="none for TA"):
        read_documents(inputs, inputs, CHANNELS)
    inputs.write_text(json.dumps({**dict.fromkeys(CHANNELS[:-1], one), "bt_10": one}))
    with pytest.raises(DataError, match="some for bt_10, which the patches lack"):
        read_documents(inputs, target, CHANNELS)
