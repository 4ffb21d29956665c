"""Rows to samples: every row is used or named, and no split leaks into another."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import unicodedata
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eyegraft.config import Data
from eyegraft.data.samples import PreparedData, load_samples
from eyegraft.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(folder: Path, name: str, shade: int = 0) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(path)
    return name


def table(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def load(folder: Path, quarantine_file: Path | None = None, **settings: Any) -> PreparedData:
    data = Data.model_validate({"name": "toy", "base_dir": str(folder), **settings})
    return load_samples(data, quarantine_file=quarantine_file)


def fault(folder: Path, quarantine_file: Path | None = None, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(folder, quarantine_file, **settings)
    assert caught.value.expected
    assert caught.value.fix
    return caught.value


def two_splits(folder: Path, train: int = 4) -> dict[str, str]:
    """`train` and `test` of different pictures."""
    for split, count, first in (("train", train, 0), ("test", 2, 1000)):
        rows = [{"image": picture(folder, f"{split}{n}.png", first + n), "caption": f"{split} {n}"} for n in range(count)]
        table(folder, f"{split}.jsonl", rows)
    return {"train": "train.jsonl", "test": "test.jsonl"}


# ── good rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_tables(tmp_path: Path) -> None:
    found = load(tmp_path, tables=two_splits(tmp_path))
    assert [sample.id for sample in found.splits["train"]] == ["train-1", "train-2", "train-3", "train-4"]
    first = found.splits["test"][0]
    assert (first.image, first.prompt, first.references, first.group) == (tmp_path / "test0.png", None, ("test 0",), None)
    assert found.num_rows == {"train": 4, "test": 2}
    assert (found.reasons, found.quarantined) == (Counter(), [])
    assert {len(value) for value in (*found.table_sha256.values(), *found.split_sha256.values())} == {64}


def test_every_column_has_its_place(tmp_path: Path) -> None:
    picture(tmp_path, "img/가.png")
    content = '그림,답,질문,번호,묶음,지역\nimg\\가.png,"[""하나"", ""둘""]",무엇?,k1,g1,서울\n'
    (tmp_path / "t.csv").write_bytes(content.encode("cp949"))
    columns = {"image": "그림", "references": "답", "prompt": "질문", "id": "번호", "group": "묶음", "meta": ["지역"]}
    (sample,) = load(tmp_path, tables={"test": "t.csv"}, columns=columns).splits["test"]
    assert sample.image == tmp_path / "img" / "가.png"
    assert sample.references == ("하나", "둘")
    assert (sample.prompt, sample.id, sample.group, sample.meta) == ("무엇?", "k1", "g1", {"지역": "서울"})


def test_bracketed_text_is_text_except_a_json_list_in_csv(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    texts = ["[1, 2]", "[a cat", '["x"']
    (tmp_path / "t.tsv").write_text("image\tcaption\n" + "".join(f"a.png\t{text}\n" for text in texts[:2]))
    table(tmp_path, "t.jsonl", [{"image": "a.png", "caption": '["x"]'}])
    assert load(tmp_path, tables={"test": "t.tsv"}).splits["test"][0].references == ("[1, 2]", "[a cat")
    assert load(tmp_path, tables={"test": "t.jsonl"}).splits["test"][0].references == ('["x"]',)


def test_rows_of_one_question_merge_where_they_are_evaluated(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "image": picture(tmp_path, "a.png"), "caption": "one", "q": "what?"},
        {"id": "x", "image": "./a.png", "caption": ["two", " ", "three"], "q": "what? "},
        {"id": "y", "image": "a.png", "caption": "four", "q": "who?"},
    ]
    columns = {"prompt": "q", "id": "id"}
    found = load(tmp_path, tables={"test": table(tmp_path, "t.jsonl", rows)}, columns=columns).splits["test"]
    assert [(sample.id, sample.references) for sample in found] == [("x", ("one", "two", "three")), ("y", ("four",))]
    kept = load(tmp_path, tables={"train": table(tmp_path, "t.jsonl", rows)}, columns={"prompt": "q"}).splits["train"]
    assert [sample.references for sample in kept] == [("one",), ("two", "three"), ("four",)]


def test_rows_without_references_are_all_answered(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("image\na.png\na.png\n")
    assert len(load(tmp_path, tables={"predict": "t.csv"}, columns={"references": None}).splits["predict"]) == 2


def test_base_dir_expands_and_root_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    two_splits(tmp_path / "deep")
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    tables = {"test": "test.jsonl"}
    expanded = load_samples(Data(name="toy", base_dir="$SOMEWHERE/deep", tables=tables))
    assert expanded.splits == load_samples(Data(name="toy", base_dir="deep", tables=tables), root=tmp_path).splits
    with pytest.raises(DataError, match=r"data\.base_dir: '\$ELSEWHERE/deep'[\s\S]*environment variable"):
        load_samples(Data(name="toy", base_dir="$ELSEWHERE/deep", tables=tables))
    with pytest.raises(DataError, match="did you mean 'deep'"):
        load_samples(Data(name="toy", base_dir="depe", tables=tables), root=tmp_path)


def test_embedded_pictures_of_either_kind(tmp_path: Path) -> None:
    content = (tmp_path / picture(tmp_path, "a.png")).read_bytes()
    pq.write_table(pa.table({"image": [content], "caption": ["raw"]}), tmp_path / "raw.parquet")
    pq.write_table(pa.table({"image": [{"bytes": content, "path": None}], "caption": ["struct"]}), tmp_path / "struct.parquet")
    found = load(tmp_path, tables={"test": "raw.parquet", "test_unseen": "struct.parquet"})
    assert found.splits["test"][0].image == found.splits["test_unseen"][0].image
    assert found.splits["test"][0].sha256 == hashlib.sha256(content).hexdigest()


def advert_rows(folder: Path) -> list[dict[str, Any]]:
    texts = ("특가 세일 50%", "", None, float("nan"), " spaced ")
    return [{"image": picture(folder, f"{n}.png", n), "label": n % 2 == 0, "words": text} for n, text in enumerate(texts)]


def test_words_beside_the_picture(tmp_path: Path) -> None:
    columns = {"references": "label", "text": "words"}
    rows = advert_rows(tmp_path)
    found = load(tmp_path, tables={"train": table(tmp_path, "t.jsonl", rows)}, columns=columns)
    samples = found.splits["train"]
    assert [sample.text for sample in samples] == ["특가 세일 50%", "", "", "", "spaced"]
    assert [sample.references for sample in samples] == [("True",), ("False",)] * 2 + [("True",)]
    assert samples[0].sha256 == hashlib.sha256((tmp_path / "0.png").read_bytes()).hexdigest()
    rows[0]["words"] = "특가 세일 60%"
    changed = load(tmp_path, tables={"train": table(tmp_path, "t.jsonl", rows)}, columns=columns)
    assert changed.split_sha256 != found.split_sha256
    without = [load(tmp_path, tables={"train": "t.jsonl"}, columns={"references": "label"})]
    without += [load(tmp_path, tables={"train": table(tmp_path, "t.jsonl", advert_rows(tmp_path))}, columns={"references": "label"})]
    assert without[0].split_sha256 == without[1].split_sha256, "a column that is not read changes nothing"
    rows[1]["words"] = "half \ud83d"
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(tmp_path, tables={"train": "t.jsonl"}, columns=columns, max_bad_fraction=0.2).reasons == Counter({"broken text": 1})


def test_rows_of_one_picture_stay_apart_where_they_are_told_to_or_their_words_differ(tmp_path: Path) -> None:
    name = picture(tmp_path, "a.png")
    rows = [{"image": name, "label": label, "words": words} for label, words in (("1", "x"), ("0", "x"), ("1", "y"))]
    tables = {"test": table(tmp_path, "t.jsonl", rows)}
    merged = load(tmp_path, tables=tables, columns={"references": "label", "text": "words"}).splits["test"]
    assert [(sample.text, sample.references) for sample in merged] == [("x", ("1", "0")), ("y", ("1",))]
    apart = load(tmp_path, tables=tables, columns={"references": "label", "text": "words"}, merge_references=False).splits["test"]
    assert [sample.references for sample in apart] == [("1",), ("0",), ("1",)]


def test_a_row_may_have_no_picture_only_where_that_is_said(tmp_path: Path) -> None:
    cells = [picture(tmp_path, "a.png"), "", None, "gone.png", ""]
    rows = [{"image": cell, "label": 1, "words": f"w{n}" if n < 4 else ""} for n, cell in enumerate(cells)]
    settings = {"columns": {"references": "label", "text": "words"}, "max_bad_fraction": 0.9}
    tables = {"train": table(tmp_path, "t.jsonl", rows)}
    strict = load(tmp_path, tables=tables, **settings)
    assert strict.reasons == Counter({"missing file": 4})
    assert "data.image_optional" in strict.quarantined[0]["detail"]
    found = load(tmp_path, tables=tables, image_optional=True, **settings)
    assert [(sample.image, sample.sha256 == "", sample.text) for sample in found.splits["train"]] == [
        (tmp_path / "a.png", False, "w0"),
        (None, True, "w1"),
        (None, True, "w2"),
    ]
    assert [item["reason"] for item in found.quarantined] == ["missing file", "no input"]
    table(tmp_path, "u.jsonl", rows[1:3])
    assert load(tmp_path, tables={**tables, "test": "u.jsonl"}, image_optional=True, **settings).splits["test"], "no picture is no leak"
    rows = [{"image": "", "label": 1, "words": f"w{n % 10}"} for n in range(40)]
    split = {"table": table(tmp_path, "all.jsonl", rows), "fractions": {"train": 0.5, "test": 0.5}}
    cut = load(tmp_path, split=split, image_optional=True, **settings).splits
    assert len(cut["train"]) == 20
    assert not {sample.text for sample in cut["train"]} & {sample.text for sample in cut["test"]}


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_korean_file_names_of_a_mac_archive(tmp_path: Path, in_table: Any, on_disk: Any) -> None:
    picture(tmp_path, unicodedata.normalize(on_disk, "하늘.png"))
    rows = [{"image": unicodedata.normalize(in_table, "하늘.png"), "caption": "sky"}]
    assert load(tmp_path, tables={"test": table(tmp_path, "t.jsonl", rows)}).reasons == Counter()


def test_split_hash_follows_content_and_not_place(tmp_path: Path) -> None:
    hashes = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        hashes.append(load(tmp_path / name, tables=two_splits(tmp_path / name)).split_sha256)
    assert hashes[0] == hashes[1]
    picture(tmp_path / "there", "test0.png", 9)
    changed = load(tmp_path / "there", tables={"train": "train.jsonl", "test": "test.jsonl"}).split_sha256
    assert changed["train"] == hashes[0]["train"]
    assert changed["test"] != hashes[0]["test"]


# ── the quarantine ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def bad_rows(folder: Path) -> list[dict[str, Any]]:
    """One row for each reason, after one good row."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b""))
    packed = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    Image.effect_noise((64, 64), 50).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-500])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    good = picture(folder, "good.png", 5000)
    images = [good, "none.png", "C:\\data\\a.png", "https://example.org/a.png", "", "a\0.png", "cut.jpg", "empty.png", "text.jpg"]
    images += ["bomb.png", "../secret.png", "sub/../../secret.png", good, good, good]
    rows = [{"id": f"r{n}", "image": image, "caption": "c"} for n, image in enumerate(images)]
    rows[-3]["caption"], rows[-2]["id"], rows[-1]["id"] = "  ", "r0", " "
    return rows


EXPECTED = (
    ["missing file"] * 5 + ["unreadable image"] * 3 + ["image too large"]
    + ["outside the base folder"] * 2 + ["empty text", "duplicate id", "empty id"]
)  # fmt: skip


def test_every_bad_row_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    picture(tmp_path, "secret.png")
    file = tmp_path / "run" / "quarantine.jsonl"
    place = table(tmp_path / "base", "t.jsonl", bad_rows(tmp_path / "base"))
    found = load(tmp_path / "base", file, tables={"train": place}, columns={"id": "id"}, max_bad_fraction=0.95)
    assert [sample.id for sample in found.splits["train"]] == ["r0"]
    assert [item["reason"] for item in found.quarantined] == EXPECTED
    assert found.reasons == Counter(EXPECTED)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == found.quarantined
    assert found.quarantined[0].keys() == {"split", "row", "id", "image", "reason", "detail"}
    assert (found.quarantined[0]["row"], found.quarantined[0]["id"]) == (2, "r1")
    assert len(found.splits["train"]) + len(found.quarantined) == found.num_rows["train"]
    said = ["no such file", "another machine", "web address", "empty", "NUL", "truncated", "0 bytes", "not a picture", "Pillow"]
    said += ["leads out", "leads out", "'caption' holds no text", "row 1 already", "'id' is empty"]
    assert all(words in item["detail"] for words, item in zip(said, found.quarantined, strict=True))
    assert [path.name for path in file.parent.iterdir()] == ["quarantine.jsonl"], "no draft is left over"


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    """Valid JSON, but every tokenizer would fail on it in the middle of training."""
    picture(tmp_path, "a.png")
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "sky \\ud83d"}\n{"image": "a.png", "caption": "\\ud83d\\ude00"}\n')
    found = load(tmp_path, tmp_path / "q.jsonl", tables={"train": "t.jsonl"}, max_bad_fraction=0.5)
    assert [sample.references for sample in found.splits["train"]] == [("😀",)]
    assert found.reasons == Counter({"broken text": 1})
    assert "sky \\ud83d" in json.loads((tmp_path / "q.jsonl").read_text(encoding="utf-8"))["detail"]
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "sky"}\n{"image": "\\ud83d.png", "caption": "sun"}\n')
    error = fault(tmp_path, split={"table": "t.jsonl", "fractions": {"train": 0.5, "test": 0.5}}, max_bad_fraction=0.5)
    assert "no usable row is left: 1 missing file" in error.given


def test_paths_of_another_machine_say_where_the_files_are(tmp_path: Path) -> None:
    """The table of advertisements as it is usually handed over: Korean, CP949, absolute paths of the machine that it was written on."""
    picture(tmp_path, "images/a.png")
    rows = ["/gone/images/a.png,True,특가", "D:\\gone\\images\\a.png,False,", "/gone/b.png,0,세일", "images\\a.png,1,무료"]
    (tmp_path / "t.csv").write_bytes("\n".join(["local_image_path,label,text_info", *rows]).encode("cp949"))
    columns = {"image": "local_image_path", "references": "label", "text": "text_info"}
    found = load(tmp_path, tables={"train": "t.csv"}, columns=columns, max_bad_fraction=0.9)
    assert [(sample.references, sample.text) for sample in found.splits["train"]] == [(("1",), "무료")]
    details = [item["detail"] for item in found.quarantined]
    there = f"but {tmp_path / 'images' / 'a.png'} exists: write 'images/a.png', relative to data.base_dir"
    assert details[0] == f"no folder {Path('/gone')}; {there}"
    assert "a path of another machine" in details[1]
    assert there in details[1]
    assert details[2] == f"no folder {Path('/gone')}"
    error = fault(tmp_path, tables={"train": "t.csv"}, columns=columns)
    assert f"set data.base_dir, which is {tmp_path}" in error.fix


def test_an_absolute_path_may_lead_anywhere(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    picture(tmp_path, "a.png")
    rows = [{"image": str(tmp_path / "base" / ".." / "a.png"), "caption": "c"}]
    assert load(tmp_path / "base", tables={"test": table(tmp_path / "base", "t.jsonl", rows)}).splits["test"][0].image == tmp_path / "a.png"


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    rows = [{"image": picture(tmp_path, f"{n}.png", n), "caption": "c"} for n in range(8)]
    place = table(tmp_path, "t.jsonl", [*rows, {"image": "none.png", "caption": "c"}, {"image": "0.png", "caption": ""}])
    file = tmp_path / "quarantine.jsonl"
    error = fault(tmp_path, file, tables={"train": place}, max_bad_fraction=0.15)
    assert "2 of 10 rows (20.0%) cannot be used: 1 missing file, 1 empty text" in error.given
    assert "train row 9 (train-9, none.png): missing file: no such file" in error.given
    assert "data.max_bad_fraction = 15.0%" in error.expected
    assert "data.max_bad_fraction" in error.fix
    assert str(file) in error.fix
    assert len(file.read_text().splitlines()) == 2, "the list is written before the run stops"
    assert len(load(tmp_path, file, tables={"train": place}, max_bad_fraction=0.2).splits["train"]) == 8
    table(tmp_path, "t.jsonl", rows)
    load(tmp_path, file, tables={"train": place})
    assert file.read_text() == "", "an old list does not outlive its rows"


def test_ids_that_are_no_ids_are_explained(tmp_path: Path) -> None:
    rows = [{"image": picture(tmp_path, "a.png"), "caption": f"c{n}"} for n in range(5)]
    error = fault(tmp_path, tables={"train": table(tmp_path, "t.jsonl", rows)}, columns={"id": "image"})
    assert "4 duplicate id" in error.given
    assert "data.columns.id" in error.fix


def test_nothing_left_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    tables = two_splits(tmp_path)
    table(tmp_path, "val.jsonl", [{"image": "none.png", "caption": "c"}])
    error = fault(tmp_path, tables={**tables, "val": "val.jsonl"}, max_bad_fraction=1)
    assert "split val: no usable row is left: 1 missing file" in error.given
    error = fault(tmp_path, tables={"val": "val.jsonl"}, max_bad_fraction=1)
    assert "none of the 1 rows can be used" in error.given
    assert "base_dir" in error.expected


def test_missing_columns_are_named_all_at_once(tmp_path: Path) -> None:
    tables = two_splits(tmp_path)
    error = fault(tmp_path, tables=tables, columns={"image": "imgae", "text": "ocr", "references": "text", "meta": ["region"]})
    given = ("image: no column 'imgae'", "text: no column 'ocr'", "references: no column 'text'", "meta[0]: no column 'region'")
    for said in (f"data.columns.{words}" for words in given):
        assert said in error.given
    assert error.expected == "columns among: image, caption"
    assert "did you mean 'image'?" in error.fix


def test_a_header_check_leaves_pixels_alone(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-500])
    place = table(tmp_path, "t.jsonl", [{"image": "cut.jpg", "caption": "c"}])
    assert len(load(tmp_path, tables={"test": place}, check="header").splits["test"]) == 1
    assert "unreadable image" in fault(tmp_path, tables={"test": place}).given


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_leaks_between_given_splits_are_refused(tmp_path: Path) -> None:
    tables = two_splits(tmp_path)
    (tmp_path / "copy.png").write_bytes((tmp_path / "train2.png").read_bytes())
    table(tmp_path, "test.jsonl", [{"image": "copy.png", "caption": "c"}, {"image": "test0.png", "caption": "c"}])
    error = fault(tmp_path, tables=tables)
    assert "1 picture stands in more than one split: train2.png (train) = copy.png (test)" in error.given
    assert "data.split" in error.fix
    for split, names in (("train", ["train0.png"]), ("val", ["train1.png"]), ("test", ["test0.png"])):
        table(tmp_path, f"{split}.jsonl", [{"image": name, "caption": "c", "case": "k" if split != "test" else "t"} for name in names])
    error = fault(tmp_path, tables={**tables, "val": "val.jsonl"}, columns={"group": "case"})
    assert "1 group stands in more than one split: k (train) = k (val)" in error.given


def test_splits_that_are_only_evaluated_may_share(tmp_path: Path) -> None:
    tables = two_splits(tmp_path)
    assert len(load(tmp_path, tables={**tables, "test_unseen": "test.jsonl"}).splits["test_unseen"]) == 2


def grouped(folder: Path, groups: int = 20) -> str:
    rows = []
    for n in range(groups * 3):
        rows.append({"image": picture(folder, f"{n}.png", n), "caption": f"c{n}", "case": f"case {n // 3}"})
    return table(folder, "all.jsonl", rows)


def test_one_table_is_cut_by_group(tmp_path: Path) -> None:
    split = {"table": grouped(tmp_path), "fractions": {"train": 0.6, "val": 0.2, "test": 0.2, "none": 0.0}, "seed": 3}
    found = load(tmp_path, split=split, columns={"group": "case"})
    assert {name: len(samples) for name, samples in found.splits.items()} == {"train": 36, "val": 12, "test": 12}
    groups = [{sample.group for sample in samples} for samples in found.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    assert len(set(found.table_sha256.values())) == 1
    ids = [sample.id for samples in found.splits.values() for sample in samples]
    assert len(set(ids)) == 60
    assert load(tmp_path, split=split, columns={"group": "case"}) == found
    assert load(tmp_path, split={**split, "seed": 4}, columns={"group": "case"}).splits != found.splits


def test_without_a_group_column_the_picture_is_the_group(tmp_path: Path) -> None:
    rows = [{"image": picture(tmp_path, f"{n % 10}.png", n % 10), "caption": f"c{n}"} for n in range(40)]
    split = {"table": table(tmp_path, "all.jsonl", rows), "fractions": {"train": 0.5, "test": 0.5}}
    found = load(tmp_path, split=split)
    assert (len(found.splits["train"]), len(found.splits["test"])) == (20, 5)
    assert all(len(sample.references) == 4 for sample in found.splits["test"])


def test_groups_that_share_a_picture_are_cut_as_one(tmp_path: Path) -> None:
    """Else the cut itself would make the leak that is then refused."""
    rows = [{"image": picture(tmp_path, f"{n}.png", n // 2), "caption": "c", "case": f"g{(n + 1) // 2}"} for n in range(20)]
    rows += [{"image": picture(tmp_path, f"o{n}.png", 900 + n), "caption": "c", "case": f"o{n}"} for n in range(20)]
    split = {"table": table(tmp_path, "all.jsonl", rows), "fractions": {"train": 0.5, "test": 0.5}}
    found = load(tmp_path, split=split, columns={"group": "case"})
    chained = [{sample.group for sample in samples if str(sample.group).startswith("g")} for samples in found.splits.values()]
    assert sorted(map(len, chained)) == [0, 11]


def test_more_splits_than_groups_is_refused(tmp_path: Path) -> None:
    split = {"table": grouped(tmp_path, 2), "fractions": {"train": 0.8, "val": 0.1, "test": 0.1}}
    error = fault(tmp_path, split=split, columns={"group": "case"})
    assert "3 splits (train, val, test) from a table with 2 groups" in error.given
    assert "data.columns.group" in error.fix


def test_a_second_load_reads_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = two_splits(tmp_path)
    for path in tmp_path.glob("*.png"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    first = load(tmp_path, tables=tables)
    monkeypatch.setattr("eyegraft.data.images.check_image", lambda *_: pytest.fail("a picture was read again"))
    assert load(tmp_path, tables=tables) == first


# ── pictures that look alike ─────────────────────────────────────────────────────────────────────────────────────────────────────


def photograph(folder: Path, name: str, seed: int) -> str:
    """Soft noise: as many seeds, as many pictures that have nothing in common."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((96, 96), Image.Resampling.BICUBIC).save(folder / name)
    return name


def copy(folder: Path, name: str, of: str) -> str:
    Image.open(folder / of).resize((60, 64)).save(folder / name, quality=60)
    return name


def copied_splits(folder: Path) -> dict[str, str]:
    """Of train's eight pictures (two a case), the second has a copy in test, the sixth in val and the seventh in both tests."""
    names = {
        split: [photograph(folder, f"{split}{n}.png", 100 * k + n) for n in range(8)] for k, split in enumerate(("train", "val", "test"))
    }
    names["val"] += [copy(folder, "val-copy.jpg", "train5.png")]
    names["test"] += [copy(folder, "test-copy.jpg", "train1.png"), copy(folder, "both.jpg", "train6.png")]
    names["test_unseen"] = [photograph(folder, "unseen.png", 900), copy(folder, "unseen-copy.jpg", "train6.png")]
    for split, images in names.items():
        table(
            folder,
            f"{split}.jsonl",
            [{"id": n, "image": name, "caption": name, "case": f"{split} {n // 2}"} for n, name in enumerate(images)],
        )
    return {split: f"{split}.jsonl" for split in names}


def test_copies_across_splits_stop_the_run(tmp_path: Path) -> None:
    tables = copied_splits(tmp_path)
    error = fault(tmp_path, tmp_path / "run" / "quarantine.jsonl", tables=tables)
    assert "3 pictures of train look like a picture of test or test_unseen or val" in error.given
    assert "train1.png (train) ~ test-copy.jpg (test), misfit 0.0" in error.given
    listed = [json.loads(line) for line in (tmp_path / "run" / "near_duplicates.jsonl").read_text().splitlines()]
    assert {(item["image"], item["like_image"]) for item in listed} == {
        ("train1.png", "test-copy.jpg"),
        ("train5.png", "val-copy.jpg"),
        ("train6.png", "both.jpg"),
        ("train6.png", "unseen-copy.jpg"),
    }
    assert str(tmp_path / "run" / "near_duplicates.jsonl") in error.fix
    assert "data.near_duplicates=move" in error.fix
    (tmp_path / "same.png").write_bytes((tmp_path / "train0.png").read_bytes())
    table(tmp_path, "test.jsonl", [{"image": "same.png", "caption": "c"}])
    given = fault(tmp_path, tables=tables).given
    assert "1 picture stands in more than one split: train0.png (train) = same.png (test); 2 pictures of train look like" in given


def test_copies_are_moved_out_of_training_with_their_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = copied_splits(tmp_path)
    settings = {"columns": {"id": "id", "group": "case"}, "near_duplicates": "move"}
    found = load(tmp_path, tmp_path / "quarantine.jsonl", tables=tables, **settings)
    captions = {split: [sample.references[0] for sample in samples] for split, samples in found.splits.items()}
    assert captions["train"] == ["train2.png", "train3.png"]
    assert captions["val"] == ["train4.png", "train5.png", *(f"val{n}.png" for n in range(8)), "val-copy.jpg"]
    assert captions["test"][:4] == ["train0.png", "train1.png", "train6.png", "train7.png"]
    assert len(captions["test"]) == 14
    assert captions["test_unseen"] == ["unseen.png", "unseen-copy.jpg"], "nothing is taken from a split that is evaluated on"
    assert [sample.id for sample in found.splits["test"]][:5] == ["train/0", "train/1", "train/6", "train/7", "0"]
    assert found.reasons == Counter()
    assert [(item["image"], item["moved_to"]) for item in found.near_duplicates] == [
        *((f"train{n}.png", "test") for n in (0, 1)),
        *((f"train{n}.png", "val") for n in (4, 5)),
        *((f"train{n}.png", "test") for n in (6, 7)),
    ]
    assert [json.loads(line) for line in (tmp_path / "near_duplicates.jsonl").read_text().splitlines()] == found.near_duplicates
    assert "6 rows moved with their groups (4 from train to test, 2 from train to val)" in caplog.text
    assert load(tmp_path, tables=tables, **settings).split_sha256 == found.split_sha256
    rows = [{"id": n, "image": f"train{n}.png", "caption": "c", "case": "one"} for n in range(8)]
    table(tmp_path, "train.jsonl", rows)
    assert "nothing would be left of train" in fault(tmp_path, tables=tables, **settings).given
    table(tmp_path, "train.jsonl", [{**row, "case": "test 0"} for row in rows])
    assert "1 group stands in more than one split" in fault(tmp_path, tables=tables, **settings).given


def test_equal_files_move_like_copies(tmp_path: Path) -> None:
    tables = two_splits(tmp_path)
    (tmp_path / "copy.png").write_bytes((tmp_path / "train2.png").read_bytes())
    table(tmp_path, "test.jsonl", [{"image": "copy.png", "caption": "c"}])
    found = load(tmp_path, tables=tables, near_duplicates="move").splits
    assert [sample.id for sample in found["train"]] == ["train-1", "train-2", "train-4"]
    assert sorted(sample.id for sample in found["test"]) == ["test-1", "train-3"]


def test_allowed_copies_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = copied_splits(tmp_path)
    found = load(tmp_path, tables=tables, near_duplicates="allow")
    assert len(found.splits["train"]) == 8
    assert len(found.near_duplicates) == 4
    assert "near_duplicates=allow: 3 pictures of train look like" in caplog.text


def test_copies_are_not_looked_for_without_pixels_or_without_a_training_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = copied_splits(tmp_path)
    with caplog.at_level("INFO"):
        assert load(tmp_path, tables=tables, check="header").fingerprints == {}
        assert load(tmp_path, tables={name: tables[name] for name in ("test", "test_unseen")})
    assert caplog.text.count("not looked for: data.check=header") == 1


def test_a_cut_keeps_copies_together(tmp_path: Path) -> None:
    names = [photograph(tmp_path, f"{n}.png", n) for n in range(12)]
    names += [copy(tmp_path, f"{n}.jpg", f"{n}.png") for n in range(12)]
    split = {
        "table": table(tmp_path, "all.jsonl", [{"image": name, "caption": name} for name in names]),
        "fractions": {"train": 0.5, "test": 0.5},
    }
    found = load(tmp_path, split=split).splits
    stems = [{sample.image.stem for sample in samples if sample.image} for samples in found.values()]
    assert not stems[0] & stems[1]
    assert len(found["train"]) == len(found["test"]) == 12
    apart = load(tmp_path, split=split, near_duplicates="allow")
    assert apart.near_duplicates


def test_many_pictures_of_one_template_are_all_counted(tmp_path: Path) -> None:
    cells = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    layout = Image.fromarray(cells).resize((48, 48), Image.Resampling.BICUBIC)
    for split, count in (("train", 40), ("val", 30), ("test", 20)):
        rows = []
        for number in range(count):
            layout.putpixel((3, 3), (number, len(split), count))
            layout.save(tmp_path / f"{split}{number}.png")
            rows.append({"image": f"{split}{number}.png", "caption": "c"})
        table(tmp_path, f"{split}.jsonl", rows)
    tables = {split: f"{split}.jsonl" for split in ("train", "val", "test")}
    error = fault(tmp_path, tmp_path / "quarantine.jsonl", tables=tables)
    assert "70 pictures of train and val look like a picture of test or val" in error.given
    assert error.given.count(" ~ ") == 5
    listed = [json.loads(line) for line in (tmp_path / "near_duplicates.jsonl").read_text().splitlines()]
    assert {(item["split"], item["like_split"]) for item in listed} == {("train", "val"), ("train", "test"), ("val", "test")}
    assert len({item["image"] for item in listed}) == 70
    assert len(listed) < (40 * 30 + 70 * 20) / 2
    split = {"table": table(tmp_path, "all.jsonl", rows), "fractions": {"train": 0.5, "test": 0.5}}
    assert "2 splits (train, test) from a table with 1 group" in fault(tmp_path, split=split).given, "all of them stay together"


# ── pictures that are not read ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_all_pictures_there_the_data_are_the_same_read_or_not(tmp_path: Path) -> None:
    """So a model of words stands beside one of pictures on the same samples."""
    rows = [{"image": picture(tmp_path, f"{n}.png", n), "caption": f"c{n}"} for n in range(4)]
    data = Data.model_validate({"name": "toy", "base_dir": str(tmp_path), "tables": {"train": table(tmp_path, "t.jsonl", rows)}})
    assert load_samples(data, read_images=False).split_sha256 == load_samples(data).split_sha256


def test_pictures_that_are_not_read_need_not_be_there(tmp_path: Path) -> None:
    names = ["a.png", "gone.png", "https://example.org/a.png", "../outside.png", "a\0.png", "", ""]
    rows = [{"image": name, "label": 1, "words": f"w{n}" if n < 6 else ""} for n, name in enumerate(names)]
    data = Data.model_validate(
        {
            "name": "toy",
            "base_dir": str(tmp_path),
            "tables": {"train": table(tmp_path, "t.jsonl", rows)},
            "columns": {"references": "label", "text": "words"},
            "max_bad_fraction": 0.2,
        }
    )
    (tmp_path / "a.png").write_bytes(b"no picture at all")
    there = load_samples(data, read_images=False)
    assert [sample.image for sample in there.splits["train"]] == [tmp_path / "a.png", *[None] * 5]
    assert there.reasons == Counter({"no input": 1})
    (tmp_path / "a.png").unlink()
    gone = load_samples(data, read_images=False)
    assert [sample.image for sample in gone.splits["train"]] == [None] * 6
    assert gone.split_sha256 == there.split_sha256
    table(tmp_path, "t.jsonl", [{**rows[0], "image": "b.png"}, *rows[1:]])
    assert load_samples(data, read_images=False).split_sha256 != gone.split_sha256, "another picture is another row"
    none = data.model_copy(update={"columns": data.columns.model_copy(update={"image": None})})
    assert len(load_samples(none, read_images=False).splits["train"]) == 6


def test_splits_are_cut_and_compared_by_paths_where_pictures_are_not_read(tmp_path: Path) -> None:
    rows = [{"image": picture(tmp_path, f"{n % 10}.png", n % 10), "caption": f"c{n}"} for n in range(40)]
    split = {"table": table(tmp_path, "all.jsonl", rows), "fractions": {"train": 0.5, "test": 0.5}}
    data = Data.model_validate({"name": "toy", "base_dir": str(tmp_path), "split": split, "near_duplicates": "allow"})
    read = load_samples(data)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    unread = load_samples(data, read_images=False)
    ids = [{name: [sample.id for sample in samples] for name, samples in found.splits.items()} for found in (read, unread)]
    assert ids[0] == ids[1], "a cut of different pictures is the same cut"
    tables = {name: table(tmp_path, f"{name}.jsonl", rows[:3]) for name in ("train", "test")}
    given = Data.model_validate({"name": "toy", "base_dir": str(tmp_path), "tables": tables})
    with pytest.raises(DataError, match=r"3 pictures stand in more than one split: 0\.png \(train\) = 0\.png \(test\)"):
        load_samples(given, read_images=False)


# ── conversations, choices and tasks ─────────────────────────────────────────────────────────────────────────────────────────────

TALK = {"image": "image", "references": "caption", "turns": "turns", "choices": "choices", "task": "task", "id": "id"}


def test_rows_of_several_tasks_stand_in_one_table(tmp_path: Path) -> None:
    one, other = picture(tmp_path, "a.png", 1), picture(tmp_path, "b.png", 200)
    turns = [{"question": "무엇인가요?", "answer": "배"}, {"question": "무슨 색인가요?", "answer": "빨강"}]
    rows = [
        {"id": "c", "image": one, "task": "captions", "caption": "a boat", "turns": None, "choices": []},
        {"id": "t", "image": one, "task": "talk", "caption": None, "turns": turns, "choices": ["빨강", "파랑"]},
        {"id": "any", "image": one, "task": "", "caption": "a red boat", "turns": [], "choices": None},
    ]
    last = [{"id": "x", "image": other, "task": "captions", "caption": "a tree", "turns": None, "choices": None}]
    found = load(
        tmp_path, tables={"train": table(tmp_path, "train.jsonl", rows), "test": table(tmp_path, "test.jsonl", last)}, columns=TALK
    )
    assert found.quarantined == []
    talk = found.splits["train"][1]
    assert talk.turns == (("무엇인가요?", "배"), ("무슨 색인가요?", "빨강"))
    assert (talk.prompt, talk.references, talk.choices) == ("무슨 색인가요?", ("빨강",), ("빨강", "파랑"))
    assert [sample.id for sample in found.of_task("talk").splits["train"]] == ["t", "any"]
    assert [sample.id for sample in found.of_task("captions").splits["train"]] == ["c", "any"]
    assert set(found.of_task("talk").splits) == {"train"}, "no test row of this task"
    before = found.split_sha256["train"]
    rows[0]["task"] = "talk"
    again = load(tmp_path, tables={"train": table(tmp_path, "train.jsonl", rows), "test": "test.jsonl"}, columns=TALK)
    assert again.split_sha256["train"] != before


def test_a_picture_of_several_rows_is_seen_once(tmp_path: Path) -> None:
    first, second = picture(tmp_path, "first.png"), picture(tmp_path, "second.png", 9)
    rows = [
        {"id": f"{image}/{task}", "image": image, "caption": f"{task} of {image}", "task": task}
        for image in (first, second)
        for task in ("captions", "talk")
    ]
    tables = {"train": table(tmp_path, "train.jsonl", rows)}
    found = load(tmp_path, tables=tables, columns={"image": "image", "task": "task", "id": "id"}).each_picture_once()
    assert [sample.id for sample in found.splits["train"]] == ["first.png/captions", "second.png/captions"]


def test_bad_conversations_and_choices_are_named(tmp_path: Path) -> None:
    image = picture(tmp_path, "a.png", 1)
    good = {"id": "good", "image": image, "task": "", "caption": "a boat", "turns": None, "choices": None}
    turns = [{"question": "what?", "answer": "a boat"}]
    rows = [
        good,
        {**good, "id": "empty answer", "turns": [{"question": "what?", "answer": " "}]},
        {**good, "id": "no list", "turns": "what?"},
        {**good, "id": "neither", "caption": None, "turns": []},
        {**good, "id": "half", "turns": [*turns, {"question": "and?"}]},
        {**good, "id": "equal", "turns": turns, "choices": ["boat", "tree", "boat"]},
    ]
    found = load(tmp_path, tables={"train": table(tmp_path, "train.jsonl", rows)}, columns=TALK, max_bad_fraction=1.0)
    assert [sample.id for sample in found.splits["train"]] == ["good"]
    details = {row["id"]: row["detail"] for row in found.quarantined}
    assert details["empty answer"] == details["half"] == "column 'turns': an empty question or answer"
    assert details["no list"] == details["neither"] == "column 'turns' holds no list of {question, answer}"
    assert details["equal"] == "column 'choices': two choices are equal: boat, boat, tree"
