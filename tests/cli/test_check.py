"""`eyegraft check`: what a person sees of a patch, a chunk, an index row, a scene; and `prepare step=…` down to old chunks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.running import refused, run
from eyegraft.data.patch_chunks import CHANNELS
from eyegraft.data.patch_statistics import read_statistics
from eyegraft.data.patch_store import PatchStore
from eyegraft.prepare.gk2a.bands import BANDS
from eyegraft.prepare.gk2a.grid import grid_of, nearest
from eyegraft.prepare.gk2a.write import write_band

NOON = datetime(2022, 8, 1, 3, tzinfo=UTC)
SEOUL = (37.5714, 126.9658)
CONF = """# @package _global_
defaults:
  - override /vision_encoder: efficientnet_lite0
  - override /head: smollm2
  - override /prepare: gk2a
recipe: patches
title: Patches
experiment_name: patches
data:
  name: patches
  base_dir: base
  satellite: {patches: {train: patches/train, val: patches/val, test: patches/test}}
prepare:
  observations: [asos.txt]
  stations: stations.csv
  new_station_fraction: 0.0
tasks:
  ta: {kind: regress, target: air temperature, unit: K}
stages:
  ta: {}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a recipe, and in `base` scenes of three years around one station, its records, and old chunks."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "conf" / "recipe").mkdir(parents=True)
    (folder / "conf" / "recipe" / "patches.yaml").write_text(CONF)
    base, lines = folder / "base", []
    column, row = (int(nearest(value)) for value in grid_of("ko").to_pixel(SEOUL[1], SEOUL[0]))
    draw = np.random.default_rng(0)
    for time in (NOON, NOON + timedelta(hours=3), NOON.replace(year=2023), NOON.replace(year=2024)):
        for band in BANDS.values():
            counts = draw.integers(600, 1400, (13, 13)).astype(np.uint16)
            window = (slice(row - 6, row + 7), slice(column - 6, column + 7))
            write_band(base / "scenes", band, "ko", 2000, time, counts, window)
        cells = ["-9"] * 46
        cells[0], cells[1], cells[11], cells[13] = f"{time + timedelta(hours=9):%Y%m%d%H%M}", "108", f"{29.4 + time.hour / 10:.1f}", "50"
        lines.append(" ".join(cells))
    (base / "asos.txt").write_text("\n".join(lines))
    (base / "stations.csv").write_text(f"station,lat,lon\n108,{SEOUL[0]},{SEOUL[1]}\n")
    for split, count in (("train", 4), ("val", 2)):
        content = {
            "x": torch.from_numpy(draw.normal(0, 1, (count, 19, 9, 9)).astype(np.float32)),
            "y": torch.linspace(-1, 1, count),
            "time7": torch.zeros(count, 7),
            "loc": torch.tensor([[*SEOUL, 2000.0]] * count),
            "landcover_onehot": torch.eye(17)[torch.full((count,), 13)],
            "meta": [(f"2022-08-0{number + 1} 03:00:00", 108, 491, 472) for number in range(count)],
        }
        (base / "old").mkdir(exist_ok=True)
        torch.save(content, base / "old" / f"{split}_chunk_00000.pt")
    (base / "old" / "input_statistics_2022.json").write_text(json.dumps({name: {"mean": 250.0, "std": 10.0} for name in CHANNELS[:-1]}))
    (base / "old" / "statistics_2022.json").write_text(json.dumps({"TA": {"mean": 286.0, "std": 10.0}}))
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> Path:
    done = run("prepare", "recipe=patches", "step=build_index", "--config-dir", "conf", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "base" / "patches").exists()
    done = run("prepare", "recipe=patches", "step=build_patches", "--config-dir", "conf", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "base"


def test_steps_leave_one_manifest_that_names_what_was_made_and_not_the_scenes(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["rows"] == {"train": 2, "val": 1, "test": 1}
    assert manifest["index"]["rows"]["train"] == 2
    assert manifest["simulated"] is True
    assert "patches/train/manifest.json" in manifest["files"]
    assert "patches/statistics.json" in manifest["files"]
    assert not [name for name in manifest["files"] if name.startswith(("scenes", "asos")) or name.endswith(".npy")]


def test_a_patch_is_shown_with_its_units_place_and_statistics(prepared: Path, folder: Path) -> None:
    done = run("check", "base/patches/train", "--idx", "-1", cwd=folder)
    assert done.returncode == 0, done.stderr
    for words in (
        "row 1 of 2 · split train · simulated",
        "x [19, 9, 9] float32",
        "station  108",
        "37.5714 N  126.9658 E  pixel x 491, y 472, 2000 m a pixel",
        "2022-08-01 06:00:00 UTC, 14:27 by the sun",
        "303.15 K (30.00 °C), +1.00 std from the mean of train",
        "urban (IGBP 13)",
        "from patches/train",
    ):
        assert words in done.stdout
    with PatchStore(prepared / "patches" / "train") as store:
        x = store.read(np.array([1]))["x"][0]
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["bt_06"].split()[1:3] == ["IR105", "10.35"]
    assert lines["bt_06"].split()[5:9] == [f"{value:.2f}" for value in (x[6].min(), x[6].mean(), x[6].max(), x[6, 4, 4])]
    assert "●" in lines["bt_06"]
    assert set("░▒▓█") & set(done.stdout)
    assert done.stdout == run("check", "base/train", "--idx", "1", cwd=folder).stdout.replace("base/train", "base/patches/train")


def test_missing_pixels_are_said(prepared: Path, folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(prepared / "patches" / "val", tmp_path / "val")
    x = np.load(tmp_path / "val" / "shard-00000" / "x.npy", mmap_mode="r+")
    x[0, 6, :2] = np.nan
    x.flush()
    done = run("check", str(tmp_path / "val"), cwd=folder)
    assert "18 of 81 pixels missing" in done.stdout
    assert "··" in done.stdout
    assert "statistics: none beside the split" in done.stdout


def test_an_index_row_a_band_and_a_scene_are_shown(prepared: Path, folder: Path) -> None:
    row = run("check", "base/index/index_train.csv", "--idx", "1", cwd=folder)
    assert "row 1 of 2" in row.stdout
    assert "1 stations, 2 scenes, 2022-08-01 03:00:00 to 2022-08-01 06:00:00 UTC" in row.stdout
    assert "303.15 K (30.00 °C)" in row.stdout
    band = run("check", "base/scenes/gk2a_ami_le1b_ir105_ko020lc_202208010300.nc", cwd=folder)
    for words in ("IR105, 10.4 µm, K, 13 bits", "ko, 900 x 900 pixels of 2000 m", "03:00:00 to 03:01:40 UTC", "the file", "16 of 16 bands"):
        assert words in band.stdout
    scene = run("check", "base/scenes", "--idx", "2", cwd=folder)
    assert "scene 2 of 4 (4 with all bands)" in scene.stdout
    assert "2023-08-01 03:00 UTC · ko · 16 of 16 bands" in scene.stdout
    assert sum(line.strip().startswith(tuple(BANDS)) for line in scene.stdout.splitlines()) == 16


def test_an_old_chunk_is_shown_and_converted(folder: Path, prepared: Path) -> None:
    done = run("check", "base/old/train_chunk_00000.pt", "--idx", "3", cwd=folder)
    assert "row 3 of 4 · old chunk" in done.stdout
    assert "z-scores" in done.stdout
    assert "2022-08-04 03:00:00 UTC" in done.stdout
    assert "beside it input_statistics_2022.json, statistics_2022.json" in done.stdout
    step = ("prepare", "recipe=patches", "step=convert_chunks", "prepare.chunks=../base/old", "data.base_dir=new")
    (folder / "new").mkdir()
    refused(run(*step, "--config-dir", "conf", cwd=folder), 3, "without input_statistics_2022.json", "name the input_statistics_2022.json")
    given = (
        "prepare.input_statistics=../base/old/input_statistics_2022.json",
        "prepare.target_statistics=../base/old/statistics_2022.json",
    )
    done = run(*step, *given, "--config-dir", "conf", cwd=folder)
    assert done.returncode == 0, done.stderr
    with PatchStore(folder / "new" / "patches" / "train") as store:
        columns = store.read(np.arange(4))
        assert store.schema.facts["sensor"]["name"] == "gk2a_ami"
        assert store.schema.facts["extra"] == ["sza", "dem", "lsmask"]
        old = torch.load(folder / "base" / "old" / "train_chunk_00000.pt")
        assert np.allclose(columns["x"][:, :18], old["x"][:, :18].numpy() * 10 + 250, atol=1e-3)
    assert columns["y"].tolist() == pytest.approx([276, 286 - 10 / 3, 286 + 10 / 3, 296])
    told = read_statistics(folder / "new" / "patches" / "statistics.json", CHANNELS)
    assert told["target"] == {"mean": 286.0, "std": 10.0}
    assert told["source"].endswith("input_statistics_2022.json")
    assert run("check", "new/val", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base/patches/train", "--idx", "2"], ["--idx 2", "has 2 rows", "give --idx 0 to 1"]),
        (["base/patches/train", "--idx", "-3"], ["--idx -3", "has 2 rows"]),
        (["base/old/val_chunk_00000.pt", "--idx", "2"], ["has 2 rows"]),
        (["base/index/index.csv", "--idx", "4"], ["has 4 rows"]),
        (["base/scenes", "--idx", "9"], ["has 4 scenes"]),
        (["base/scenes/gk2a_ami_le1b_ir105_ko020lc_202208010300.nc", "--idx", "1"], ["is one picture"]),
        (["base"], ["has the splits test, train, val", "eyegraft check base/patches/test --idx 0"]),
        (["base/asos.txt"], ["nothing that is known here", "a level 1B file"]),
        (["base/stations.csv"], ["has no column timestamp_utc"]),
        (["nowhere"], ["nowhere is not there", "check the path"]),
        (["conf"], ["no file gk2a_ami_le1b_"]),
    ],
)
def test_what_cannot_be_shown(prepared: Path, folder: Path, words: list[str], said: list[str]) -> None:
    refused(run("check", *words, cwd=folder), 3, *said)


def test_a_step_that_there_is_not(folder: Path) -> None:
    refused(run("prepare", "recipe=patches", "step=build", "--config-dir", "conf", cwd=folder), 2, "prepare.step", "'build_patches'")
