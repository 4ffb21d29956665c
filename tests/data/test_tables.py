"""Tables as people really have them, and what is said about those that cannot be read."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eyegraft.data.tables import read_table, store_image
from eyegraft.errors import DataError
from eyegraft.pretrained import cache_dir


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def png(colour: str, size: tuple[int, int] = (4, 4)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def fault(place: str, folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_table(place, folder)
    assert caught.value.expected
    assert caught.value.fix
    return caught.value


# ── delimited text ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_is_text_and_nothing_else(tmp_path: Path) -> None:
    content = 'image,caption,n\na.png,NA,007\nb.png,,1e3\nc.png,"two\nlines, ""quoted""",null\n\n'
    write(tmp_path / "t.csv", content)
    rows, sha256 = read_table("t.csv", tmp_path)
    assert rows == [
        {"image": "a.png", "caption": "NA", "n": "007"},
        {"image": "b.png", "caption": "", "n": "1e3"},
        {"image": "c.png", "caption": 'two\nlines, "quoted"', "n": "null"},
    ]
    assert sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "two marks"])
def test_korean_in_every_usual_encoding(tmp_path: Path, encoding: str, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    text = ending.join(["이미지,설명", "가.png,파란 하늘과 뭉게구름", ""])
    write(tmp_path / "t.csv", ("\ufeff" + text).encode("utf-8-sig") if encoding == "two marks" else text.encode(encoding))
    with caplog.at_level(logging.WARNING):
        rows, _ = read_table("t.csv", tmp_path)
    assert rows == [{"이미지": "가.png", "설명": "파란 하늘과 뭉게구름"}]
    assert ("CP949" in caplog.text) == (encoding == "cp949")


def test_tsv_and_windows_path_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "t.tsv", "image\tcaption\na.png\tone, two\n")
    assert read_table("sub\\t.tsv", tmp_path)[0] == [{"image": "a.png", "caption": "one, two"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image,caption\na.png,x\0y\n", "NUL byte at offset 21"),
        ("image,caption\na,b\n".encode("utf-16"), "UTF-16"),
        (b"image,caption\na.png,\xff\xff\xff\n", "neither UTF-8 nor CP949 (byte 0xff at offset 20)"),
        (b"image,caption\na.png,b,c\n", "line 2: 3 cells under 2 column names (image, caption)"),
        (b"image,caption\na.png,b\nc.png\n", "line 3: 1 cells under 2"),
        (b'image,caption\na.png,"open\nb.png,x\n', "starting at line 2: unexpected end of data"),
        (b"image,image\na,b\n", "column image stands twice"),
        (b"image;caption\na.png;b, c\n", "its columns are parted by semicolons (image;caption)"),
        (b"image\tcaption\na.png\tb\n", "its columns are parted by tabs"),
        (b"image,caption\n", "no rows"),
        (b"", "no rows"),
    ],
)
def test_damaged_csv_is_refused_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    write(tmp_path / "t.csv", content)
    error = fault("t.csv", tmp_path)
    assert said in error.given
    assert "t.csv" in error.given


# ── JSON and Parquet ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_keeps_types(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "captions": ["하나", "둘\u2028"], "n": 3}, {"image": "b.png", "captions": [], "n": None}]
    write(tmp_path / "t.json", json.dumps(rows))
    write(tmp_path / "t.jsonl", "\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_table("t.json", tmp_path)[0] == rows
    assert read_table(str(tmp_path / "t.jsonl"), Path("/nowhere"))[0] == rows


@pytest.mark.parametrize(
    ("name", "content", "said", "fix"),
    [
        ("t.jsonl", '{"a": 1}\n\n{"a": \n', "line 3", "mend or remove that line"),
        ("t.jsonl", '{"a": 1}\n[1, 2]\n', "line 2: '[1, 2]'", '{"name": value, …}'),
        ("t.jsonl", '[\n{"a": 1}\n]', "line 1", "name it .json"),
        ("t.json", '{"a": 1}\n{"a": 2}', "line 2 column 1", ".jsonl"),
        ("t.json", '{"a": [1]}', "a JSON dict", "list of rows alone"),
        ("t.json", "[1]", "item 1: '1'", '{"name": value, …}'),
        ("t.json", "[" * 100_000, "t.json", "mend"),
        ("t.json", "[]", "no rows", "check the file"),
    ],
)
def test_damaged_json_is_refused_with_its_line(tmp_path: Path, name: str, content: str, said: str, fix: str) -> None:
    write(tmp_path / name, content)
    error = fault(name, tmp_path)
    assert said in error.given
    assert fix in error.fix


def test_parquet_with_embedded_pictures(tmp_path: Path) -> None:
    images = [{"bytes": png("red"), "path": "red.png"}, {"bytes": None, "path": "b.png"}]
    table = pa.table({"image": images, "caption": [["a", "b"], ["c"]]})
    pq.write_table(table, tmp_path / "t.parquet")
    rows, sha256 = read_table("t.parquet", tmp_path)
    assert Path(rows[0]["image"]).read_bytes() == png("red")
    assert rows[0]["image"].startswith(str(cache_dir()))
    assert rows[1] == {"image": "b.png", "caption": ["c"]}
    assert sha256 == hashlib.sha256((tmp_path / "t.parquet").read_bytes()).hexdigest()


def test_cut_short_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
    write(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes()[:-5])
    assert "cut short" in fault("t.parquet", tmp_path).fix


# ── data sets ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def dataset() -> Any:
    import datasets

    features = {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"]), "caption": datasets.Value("string")}
    rows = {"image": [Image.new("RGB", (4, 4), "red"), {"bytes": png("blue"), "path": None}], "kind": [1, None], "caption": ["a", "b"]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_saved_data_set_with_pictures(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    rows, sha256 = read_table("saved", tmp_path)
    assert [(row["kind"], row["caption"]) for row in rows] == [("dog", "a"), (None, "b")]
    assert [Image.open(row["image"]).getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 0, 255)]
    stamp = Path(rows[0]["image"]).stat().st_mtime_ns
    assert read_table("saved", tmp_path) == (rows, sha256)
    assert Path(rows[0]["image"]).stat().st_mtime_ns == stamp, "written once"


def test_saved_folders_that_are_no_single_split(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict(train=dataset(), test=dataset()).save_to_disk(tmp_path / "both")
    error = fault("both", tmp_path)
    assert "several splits (test, train)" in error.given
    assert "both/test" in error.fix
    (tmp_path / "plain").mkdir()
    assert "no state.json" in fault("plain", tmp_path).given
    next((tmp_path / "both" / "train").glob("*.arrow")).write_bytes(b"damaged")
    assert "write it again" in fault("both/train", tmp_path).fix


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, *, split: str) -> Any:
        asked.append((name, config, split))
        return dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows, sha256 = read_table("hub:owner/pets:test", tmp_path)
    assert Image.open(rows[1]["image"]).getpixel((0, 0)) == (0, 0, 255)
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "elsewhere"))
    assert read_table("hub:owner/pets:small:train[:10%]", tmp_path)[1] == sha256, "the hash knows no machine"
    assert asked == [("owner/pets", None, "test"), ("owner/pets", "small", "train[:10%]")]
    assert "hub:NAME[:CONFIG]:SPLIT" in fault("hub:owner/pets", tmp_path).expected


@pytest.mark.parametrize(
    ("error", "fix"), [(ConnectionError("no route"), "go online once"), (ValueError("Unknown split"), "configuration and split")]
)
def test_hub_failures_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, fix: str) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = fault("hub:owner/pets:test", tmp_path)
    assert str(error) in found.given
    assert fix in found.fix


# ── files that are not there, and pictures that cannot be kept ───────────────────────────────────────────────────────────────────


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "a\n1\n")
    assert fault("trian.csv", tmp_path).fix == "did you mean 'train.csv'?"
    assert "holds train.csv" in fault("zzz.jsonl", tmp_path).fix
    deep = fault("data/x/train.csv", tmp_path)
    assert f"no folder {tmp_path / 'data'}" in deep.given
    write(tmp_path / "t.xlsx", "PK")
    assert "unknown kind '.xlsx'" in fault("t.xlsx", tmp_path).given


def test_pictures_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store_image(png("red"))
    assert store_image(png("red")) == first
    assert (first.suffix, store_image(b"unknown").suffix) == (".png", ".img")
    assert sorted(path.suffix for path in (tmp_path / "cache").rglob("*.*")) == [".img", ".png"], "no draft is left over"
    first.write_bytes(b"cut")
    assert store_image(png("red")).read_bytes() == png("red")
    monkeypatch.setenv("EYEGRAFT_CACHE", str(write(tmp_path / "file", "in the way")))
    with pytest.raises(DataError, match=r"cannot be written[\s\S]*EYEGRAFT_CACHE"):
        store_image(png("red"))
