"""Rows of patch stores as samples: nothing is made before it is asked for, and whole batches equal single rows."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import weather
from eyegraft.config import Augmentation, Data
from eyegraft.data.batches import Examples, load_batches
from eyegraft.data.columns import numbers_of
from eyegraft.data.inputs import learn_inputs, reader, with_learned
from eyegraft.data.patch_rows import PatchRows, load_patches, opened, row_of
from eyegraft.data.patch_statistics import fit, write_statistics
from eyegraft.data.text import Targets
from eyegraft.errors import DataError, PartError
from eyegraft.sensors import Sensor
from eyegraft.types import ColumnSpec, PatchSpec, Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("patches")
    weather.rows(base, "train", range(100, 110), times=40)
    weather.rows(base, "val", range(100, 110), times=10, first_day=365)
    weather.rows(base, "test", range(100, 104), times=10, first_day=730)
    return base


@pytest.fixture
def rows(folder: Path) -> PatchRows:
    return PatchRows(opened(folder / "train"))


SPEC = PatchSpec(Sensor.model_validate(weather.SENSOR), (weather.SIDE, weather.SIDE), ("dem", "sza"), time_and_place=True)
COLUMNS = ColumnSpec(("lat", "elevation_m"), {"hour_utc": 24.0}, {"igbp": 3, "season": ("DJF", "JJA")})


def data(folder: Path, **satellite: Any) -> Data:
    patches = {split: split for split in ("train", "val", "test")}
    return Data.model_validate({"name": "toy", "base_dir": str(folder), "satellite": {"patches": patches, **satellite}})


def test_a_sample_says_what_its_row_says(rows: PatchRows) -> None:
    sample, x = rows[17], rows.x()[17]
    assert sample.record == row_of(sample.sha256) == 17
    assert sample.image == rows.store.path
    assert [float(text) for text in sample.references] == [rows.targets[17]]
    assert sample.group == sample.meta["station"] == "100"
    moment = str(rows.column("time")[17])
    assert sample.meta["time"] == f"{moment[:16]}Z"
    assert sample.id == f"100-{moment[:16].replace('-', '').replace(':', '')}Z"
    assert sample.meta["elevation_m"] == x[3, 2, 2] == 40.0 * (100 % 23)
    assert sample.meta["sza_deg"] == pytest.approx(x[2, 2, 2])
    assert sample.meta["igbp"] == 100 % 3
    assert sample.meta["land_cover"] == "evergreen needleleaf forest"
    assert sample.meta["elevation"] == "300-600 m"
    hour = int(moment[11:13])
    assert sample.meta["hour_utc"] == hour
    assert sample.meta["hour"] == f"{hour // 3 * 3:02}-{hour // 3 * 3 + 2:02} h UTC"
    month = int(moment[5:7])
    assert sample.meta["season"] == {12: "DJF", 1: "DJF", 2: "DJF"}.get(month, ("MAM", "JJA", "SON")[(month - 3) // 3])
    assert 1 <= sample.meta["day_of_year"] < 366
    assert [one.id for one in rows][17] == sample.id


def test_selections_stay_rows(rows: PatchRows) -> None:
    picked = rows.take([5, 3, 3])
    assert [sample.record for sample in picked] == [5, 3, 3]
    assert [sample.record for sample in picked[1:]] == [3, 3]
    assert np.array_equal(picked.centre(), rows.centre()[[5, 3, 3]], equal_nan=True)
    assert picked[-1] == rows[3]


def test_a_list_of_the_samples_is_read_like_the_rows(rows: PatchRows, folder: Path) -> None:
    """Shuffled and mixed rows of several stores stand in lists; what an encoder sees of each is the same."""
    spec = with_learned(SPEC, learn_inputs(SPEC, rows))
    made, columns = reader(spec), reader(with_learned(COLUMNS, learn_inputs(COLUMNS, rows)))
    other = PatchRows(opened(folder / "val"))
    mixed: list[Sample] = [rows[3], other[7], rows[4], other[0]]
    together, apart = made.read(mixed, [None] * 4), made.read(rows.take([3, 4]), [None] * 2)
    for key, values in together.items():
        assert torch.equal(values[[0, 2]], apart[key]), key
        assert torch.equal(values[[1, 3]], made.read(other.take([7, 0]), [None] * 2)[key]), key
    assert torch.allclose(columns.read(mixed, [None] * 4)[[0, 2]], columns.read(rows.take([3, 4]), [None] * 2), atol=1e-6)
    moved = replace(rows[3], image=other[7].image, record=other[7].record)
    assert torch.equal(made.read([moved], [None])["pixels"], together["pixels"][1:2])


def test_channels_are_scaled_by_the_training_split(rows: PatchRows) -> None:
    learned = learn_inputs(SPEC, rows)
    assert learned["sensor"]["bands"][1]["mean"] == pytest.approx(np.nanmean(rows.x()[:, 1]))
    assert learned["extra_statistics"]["dem"] == pytest.approx([rows.x()[:, 3].mean(), rows.x()[:, 3].std()])
    inputs = reader(with_learned(SPEC, learned)).read(rows, [None] * len(rows))
    measured = inputs["pixels"][:, 0]
    assert (measured.mean().item(), measured.std().item()) == pytest.approx((0, 1), abs=2e-3)
    dark = torch.from_numpy(np.isnan(rows.x()[:, 1]))
    assert dark.any()
    assert torch.equal(inputs["mask"][:, 1], ~dark)
    assert not inputs["pixels"][:, 1][dark].any(), "what was not measured is the mean"
    assert inputs["extra"][:, 0].mean().item() == pytest.approx(0, abs=1e-5), "dem first, as the spec says, whatever the store's order"
    assert torch.equal(inputs["extra"][:, 0], (torch.from_numpy(rows.x()[:, 3]) - learned["extra_statistics"]["dem"][0]) / learned["extra_statistics"]["dem"][1])  # fmt: skip
    assert inputs["time"].shape == inputs["latlon"].shape == (len(rows), 4)


def test_statistics_of_other_patches_are_refused(rows: PatchRows, tmp_path: Path) -> None:
    fitted = fit(rows.store)
    file = tmp_path / "statistics.json"
    fitted["inputs"]["bt_00"]["mean"] = 250.0
    write_statistics(file, fitted, train_store=None, source="given")
    assert learn_inputs(SPEC, rows, file)["sensor"]["bands"][0]["mean"] == 250.0
    write_statistics(file, fitted, train_store="0" * 64, source="patches/train")
    with pytest.raises(DataError, match="fitted on the train split 0000"):
        learn_inputs(SPEC, rows, file)


def test_another_sensor_size_or_map_is_refused(rows: PatchRows) -> None:
    nanometres = {**weather.SENSOR, "bands": [{**weather.SENSOR["bands"][0], "wavelength_um": 11.2}, weather.SENSOR["bands"][1]]}  # type: ignore[index,dict-item]
    with pytest.raises(PartError, match=r"band ir: wavelength_um 11.2, there 10.5"):
        learn_inputs(replace(SPEC, sensor=Sensor.model_validate(nanometres)), rows)
    with pytest.raises(DataError, match=r"5 x 5 pixels.*\n.*9 x 9.*\n.*vision_encoder.side=5"):
        learn_inputs(replace(SPEC, size=(9, 9)), rows)
    with pytest.raises(DataError, match="extra_channels: lsmask not in"):
        learn_inputs(replace(SPEC, extra_channels=("lsmask",)), rows)
    with pytest.raises(DataError, match="pictures, and vision_encoder reads patches"):
        learn_inputs(SPEC, [Sample("a", Path("a.png"))])
    with pytest.raises(DataError, match="sample 'a' is a picture file"):
        reader(SPEC).read([Sample("a", Path("a.png"))], [None])


def test_columns_become_one_vector() -> None:
    spec = replace(COLUMNS, statistics={"lat": (36.0, 2.0), "elevation_m": (100.0, 0.0)})
    rows = [
        Sample("a", None, meta={"lat": 38, "elevation_m": None, "hour_utc": 6, "igbp": 2, "season": "JJA"}),
        Sample("b", None, meta={"lat": "34.0", "elevation_m": 101.0, "hour_utc": "", "igbp": -1, "season": "other"}),
    ]
    values = reader(spec).read(rows, [None] * 2)
    assert values.tolist() == [
        pytest.approx([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1], abs=1e-6),
        pytest.approx([-1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], abs=1e-6),
    ]
    assert values.shape[1] == spec.width
    assert reader(spec).blank().shape == (1, spec.width)
    with pytest.raises(DataError, match=r"sample 'c' has no column 'lat'(.|\n)*add lat to data.columns.meta"):
        reader(spec).read([Sample("c", None)], [None])
    with pytest.raises(DataError, match=r"column 'lat': could not convert"):
        numbers_of("lat", np.array(["north"], dtype=object))


@pytest.mark.parametrize("shuffle", ["block", "full", "none"])
def test_an_epoch_has_every_row_once(rows: PatchRows, shuffle: str) -> None:
    mixed = PatchRows(rows.store, shuffle=shuffle)
    examples = Examples(mixed, Targets(mixed.targets.astype(np.float32)[:, None]), {"image": reader(SPEC)})
    order = examples.order(64, seed=1, epoch=2)
    assert sorted(np.concatenate(order).tolist()) == list(range(len(rows)))
    batches = list(load_batches(examples, order, pad_id=0, seed=(1,)))
    assert [len(batch) for batch in batches] == [64] * 6 + [16]
    assert all(batch.targets[:, 0].numpy() == pytest.approx(batch.samples.targets) for batch in batches)  # type: ignore[attr-defined]
    late = list(load_batches(examples, order, pad_id=0, seed=(1,), start=5))
    assert [batch.inputs["image"]["pixels"].sum().item() for batch in late] == [
        batch.inputs["image"]["pixels"].sum().item() for batch in batches[5:]
    ]


def test_splits_are_opened_and_compared(folder: Path) -> None:
    prepared = load_patches(data(folder))
    assert {split: len(samples) for split, samples in prepared.splits.items()} == {"train": 400, "val": 100, "test": 40}
    assert prepared.split_sha256["train"] == opened(folder / "train").identity


def test_a_reading_in_two_splits_is_a_leak(folder: Path, tmp_path: Path) -> None:
    weather.rows(tmp_path, "again", range(100, 101), times=40)
    settings = data(folder)
    assert settings.satellite is not None
    patches = {**settings.satellite.patches, "test": str(tmp_path / "again")}
    with pytest.raises(DataError, match="40 readings stand in train and in test, first station 100 at 2022-"):
        load_patches(data(folder, patches=patches))


def test_other_layouts_and_empty_stores_are_refused(folder: Path, tmp_path: Path) -> None:
    weather.rows(tmp_path, "celsius", range(1, 2), times=4, target={"name": "ta", "unit": "°C"})
    with pytest.raises(DataError, match=r"target .*°C.*of the patches of test"):
        load_patches(data(folder, patches={"train": "train", "test": str(tmp_path / "celsius")}))
    weather.rows(tmp_path, "nothing", range(0), times=4)
    with pytest.raises(DataError, match=r"satellite.patches.test: .* has no rows"):
        load_patches(data(folder, patches={"train": "train", "test": str(tmp_path / "nothing")}))
    with pytest.raises(DataError, match="no patch store"):
        load_patches(data(folder, patches={"train": "absent"}))


def test_pictures_and_patches_are_told_apart(rows: PatchRows) -> None:
    from eyegraft.types import ImageSpec

    pictures = reader(ImageSpec((8, 8), (0.5,) * 3, (0.5,) * 3), augmentation=Augmentation())
    with pytest.raises(DataError, match=r"a row of a patch store, and this encoder reads pictures"):
        pictures.read([rows[0]], [None])


@pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors as POSIX has them")
def test_stores_that_were_written_anew_leave_no_files_open(tmp_path: Path) -> None:
    """A server lives for months, and a map and its file are a descriptor each."""

    def descriptors() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    weather.rows(tmp_path, "train", range(100, 103), times=5, side=20)
    gc.collect()
    before = descriptors()
    for seconds in range(1, 4):
        os.utime(tmp_path / "train" / "manifest.json", (seconds, seconds))
        assert len(opened(tmp_path / "train")) == 15
        gc.collect()
        assert descriptors() == before
    assert opened(tmp_path / "train") is opened(tmp_path / "train")


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_store_of_many_shards_opens_under_a_low_limit(folder: Path) -> None:
    code = "\n".join(
        [
            "import os, resource, sys",
            "from pathlib import Path",
            "from eyegraft.data.patch_rows import opened",
            "used = len(os.listdir('/dev/fd'))",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
            "assert opened(Path(sys.argv[1])).read([0, 1])['y'].shape == (2,)",
        ]
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "train")], check=True)


def test_the_middle_is_read_once_and_patches_only_where_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen encoders read their features from a cache: then height and sun must not bring every patch from the disk in every epoch."""
    rows = weather.rows(tmp_path, "train", range(100, 104), times=10)
    asked: list[str] = []
    plain, ahead = rows.store.read, PatchRows.ahead

    def counted(places: Any, fields: Any = None) -> Any:
        asked.extend(["x"] * (fields is None or "x" in fields))
        return plain(places, fields)

    monkeypatch.setattr(rows.store, "read", counted)
    monkeypatch.setattr(PatchRows, "ahead", lambda self, *given: asked.append("ahead") or ahead(self, *given))

    def epoch(**specs: Any) -> list[torch.Tensor]:
        examples = Examples(rows, Targets(np.zeros((len(rows), 1), np.float32)), {name: reader(spec) for name, spec in specs.items()})
        asked.clear()
        return [next(iter(batch.inputs.values())) for batch in load_batches(examples, rows.order(16, seed=0, epoch=0), pad_id=0)]

    epoch(context=ColumnSpec(("lat",)))
    assert not asked
    first = epoch(context=COLUMNS)
    assert asked.count("x") == 3
    again = epoch(context=COLUMNS)
    assert not asked
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    epoch(image=SPEC, context=COLUMNS)
    assert asked.count("x") == 3, "once for both"
    assert asked.count("ahead") == 1


def test_stations_of_one_name_stay_apart(tmp_path: Path) -> None:
    """Every larger city of Korea has a Jung-gu."""
    rows = weather.rows(tmp_path, "train", range(100, 103), times=2)
    rows.store.schema.facts["stations"] = {"100": "Jung-gu", "101": "Seoul", "102": "Jung-gu"}
    assert rows.column("station").tolist() == ["Jung-gu 100"] * 2 + ["Seoul"] * 2 + ["Jung-gu 102"] * 2
    assert rows[5].group == "Jung-gu 102"
