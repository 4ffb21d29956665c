"""COCO captions: official files, tables and shards become tables of pairs; what cannot be used is counted and named."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from command_line import environment, eyegraft
from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError
from eyegraft.prepare._cut import cut, picture_name
from eyegraft.prepare.coco_captions import Columns, Config, prepare

SHARES = {"train": {"train": 0.98, "val": 0.02}, "val": {"test": 1.0}}
SPLITS = {"train": {"train": 0.75, "val": 0.25}, "val": {"test": 1.0}}


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def official(folder: Path, first: int, count: int, **changes: Any) -> dict[str, Any]:
    """`count` pictures in `folder`, and what the official file of them holds: two captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = range(first, first + count)
    for number in ids:
        (folder / f"{number:012d}.png").write_bytes(picture(number))
    return {
        "info": {},
        "images": [{"id": number, "file_name": f"{number:012d}.png"} for number in ids],
        "annotations": [
            {"id": 10 * number + place, "image_id": number, "caption": caption}
            for place, caption in enumerate(("a picture", "그림 한 장"))
            for number in ids
        ],
    } | changes


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder as COCO's archives give it: 8 pictures for training, 3 for validation."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for source, first, count in (("train", 1, 8), ("val", 101, 3)):
        found = official(folder / f"{source}2017", first, count)
        (folder / "annotations" / f"captions_{source}2017.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def config(folder: Path | str = ".", **changes: Any) -> Config:
    """As `conf/prepare/coco_captions.yaml` has it, with larger shares for few pictures."""
    option = yaml.safe_load((CONF / "prepare" / "coco_captions.yaml").read_text(encoding="utf-8"))
    del option["kind"]
    return Config(**{**option, "folder": str(folder), "splits": SPLITS, "workers": 1, **changes})


def one(place: str, **changes: Any) -> Config:
    """A single source, all of it for training."""
    return Config(**{"annotations": {"all": place}, "splits": {"all": {"train": 1.0}}, "workers": 1, **changes})


def read(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text(encoding="utf-8").split("\n")[:-1]]


def rows_of(target: Path, splits: Sequence[str] = ("train", "val", "test")) -> dict[str, list[dict[str, Any]]]:
    return {split: read(target / f"{split}.jsonl") for split in splits}


# ── official files ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_caption_is_a_row_and_a_picture_stands_in_one_split(coco: Path, tmp_path: Path) -> None:
    facts = prepare(config(coco), tmp_path / "made")
    rows = rows_of(tmp_path / "made")
    assert facts["rows"] == {split: len(found) for split, found in rows.items()} == {"train": 14, "val": 2, "test": 6}
    assert {row["group"] for row in rows["test"]} == {"101", "102", "103"}
    assert not {row["group"] for row in rows["train"]} & {row["group"] for row in rows["val"]}
    assert {row["caption"] for row in rows["val"]} == {"a picture", "그림 한 장"}
    first = next(row for row in rows["test"] if row["id"] == "101-1011")
    assert first == {"id": "101-1011", "image": (coco / "val2017" / "000000000101.png").as_posix(), "caption": "그림 한 장", "group": "101"}
    sizes = [path.stat().st_size for path in (coco / "val2017").iterdir()]
    assert facts["pictures"]["test"] == {"count": 3, "bytes": sum(sizes)}
    assert not any((tmp_path / "made").glob("images*")), "pictures stay where they are"


def test_the_data_option_reads_it_with_several_references(coco: Path) -> None:
    prepare(config(), coco)  # beside the pictures, as the defaults have it
    assert read(coco / "train.jsonl")[0]["image"] == "train2017/" + Path(read(coco / "train.jsonl")[0]["image"]).name
    option = yaml.safe_load((CONF / "data" / "coco.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(coco)}))
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 14, "val": 1, "test": 3}
    assert not data.quarantined
    assert {sample.references for sample in data.splits["test"]} == {("a picture", "그림 한 장")}
    assert {sample.references for sample in data.splits["train"]} == {("a picture",), ("그림 한 장",)}


def test_it_is_the_same_again_whatever_the_order_of_the_file(coco: Path, tmp_path: Path) -> None:
    prepare(config(coco), tmp_path / "one")
    path = coco / "annotations" / "captions_train2017.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, "annotations": found["annotations"][::-1], "images": found["images"][::-1]}), encoding="utf-8")
    prepare(config(coco), tmp_path / "two")
    assert (tmp_path / "one" / "test.jsonl").read_bytes() == (tmp_path / "two" / "test.jsonl").read_bytes()
    for split in ("train", "val"):
        assert sorted(map(str, read(tmp_path / "one" / f"{split}.jsonl"))) == sorted(map(str, read(tmp_path / "two" / f"{split}.jsonl")))
    prepare(config(coco, seed=1), tmp_path / "three")
    assert {row["group"] for row in read(tmp_path / "three" / "val.jsonl")} != {
        row["group"] for row in read(tmp_path / "one" / "val.jsonl")
    }


def test_what_cannot_be_used_is_counted_by_reason_and_named(coco: Path, tmp_path: Path) -> None:
    images = coco / "train2017"
    found = official(images, 1, 8)
    (images / "000000000002.png").unlink()
    found["images"] += [
        {"id": 50, "file_name": "../../secret.png"},
        {"id": 51, "file_name": "000000000001.png"},
        {"id": 51, "file_name": "000000000003.png"},
        {"id": 52, "file_name": "000000000004.png"},
        {"file_name": "no id"},
    ]
    found["annotations"] += [
        {"id": 900, "image_id": 50, "caption": "outside"},
        {"id": 901, "image_id": 51, "caption": "which of two"},
        {"id": 902, "image_id": 999, "caption": "of no image"},
        {"id": 903, "image_id": 3, "caption": " \n"},
        {"id": 904, "image_id": 3, "caption": None},
        {"id": 10, "image_id": 4, "caption": "an id that is taken"},
        {"id": 905, "image_id": 4, "caption": "half \ud83d"},
        "no object",
    ]
    (coco / "annotations" / "captions_train2017.json").write_text(json.dumps(found), encoding="utf-8")
    facts = prepare(config(coco, max_bad_fraction=0.5), tmp_path / "made")
    assert facts["left_out"] == {
        "missing file": 2,
        "outside the folder": 1,
        "duplicate image id": 1,
        "no image entry": 1,
        "empty caption": 2,
        "duplicate annotation id": 1,
        "broken text": 1,
        "broken entry": 2,
        "image without a caption": 1,
    }
    listed = read(tmp_path / "made" / "quarantine.jsonl")
    assert len(listed) == sum(facts["left_out"].values())
    outside = next(row for row in listed if row["reason"] == "outside the folder")
    assert (outside["source"], outside["id"], outside["image"]) == ("train", "50-900", "../../secret.png")
    assert all(row["detail"] for row in listed if row["reason"] in ("missing file", "no image entry"))
    assert "2" not in {row["group"] for rows in rows_of(tmp_path / "made").values() for row in rows}
    with pytest.raises(DataError, match=r"11 of 31 rows \(35.5%\) cannot be used: .*2 missing file"):
        prepare(config(coco), tmp_path / "made")


def spoilt(coco: Path, content: str | bytes) -> Path:
    path = coco / "annotations" / "captions_train2017.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "given", "fix"),
    [
        ('{"images": [],\n "annotations": [{"id": 1,', r"captions_train2017.json: Expecting .* line 2 column \d+", "is it whole"),
        (b'{"images": "\xff"}', "captions_train2017.json: 'utf-8' codec can't decode byte 0xff in position 12", "is it whole"),
        ('{"images": [], "categories": []}', "no list `annotations` (categories, images)", "captions_train2017.json and"),
        ('{"images": [], "annotations": [{"id": 1, "bbox": [1]}]}', "no annotation has a `caption`", "instances_*.json"),
        ("3", "no list `images` (int)", "another of COCO's files"),
    ],
)
def test_a_broken_file_stops_with_its_place(coco: Path, tmp_path: Path, content: str | bytes, given: str, fix: str) -> None:
    spoilt(coco, content)
    with pytest.raises(DataError) as caught:
        prepare(config(coco), tmp_path / "made")
    assert given in caught.value.given or re.search(given, caught.value.given)
    assert fix in caught.value.fix
    assert not (tmp_path / "made" / "train.jsonl").exists()


def test_wrong_folders_are_named(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did you mean 'captions_train2017.json'"):
        prepare(config(coco, annotations={"train": "annotations/caption_train2017.json"}), tmp_path / "made")
    with pytest.raises(DataError, match=r"none of the 22 rows can be used: 22 missing file(.|\n)*no file .*elsewhere(.|\n)*prepare.images"):
        prepare(config(coco, images="elsewhere"), tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"splits": {"train": {"train": 1.0}}}, "splits says nothing of the source 'val'"),
        ({"splits": {**SPLITS, "train": {"train": 0.9}}}, "splits.train sums to 0.9"),
        ({"images": {"train": "train2017"}}, "images names no folder for the source 'val'"),
        ({"annotations": {"train": None}}, "every source is null"),
        ({"splits": {**SPLITS, "val": {"../test": 1.0}}}, "should match pattern"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(fault)):
        config(**changes)


def test_a_table_of_somebody_else_is_not_replaced_and_an_old_one_of_ours_goes(coco: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    prepare(config(coco), made)
    (made / "manifest.json").write_text(json.dumps({"files": {f"{name}.jsonl": "" for name in ("train", "val", "test", "quarantine")}}))
    prepare(config(coco, annotations={"train": "annotations/captions_train2017.json", "val": None}), made)
    assert not (made / "test.jsonl").exists(), "it would stand beside splits that know nothing of it"
    (made / "test.jsonl").write_text("mine\n")
    (made / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"test.jsonl is there, and no manifest says that eyegraft wrote it"):
        prepare(config(coco), made)
    assert (made / "test.jsonl").read_text() == "mine\n"


def test_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two sources that both count from 1, as many files in COCO's form do."""
    for source in ("train", "val"):
        (tmp_path / f"{source}.json").write_text(json.dumps(official(tmp_path / source, 1, 4)), encoding="utf-8")
        (tmp_path / source / "000000000001.png").write_bytes(picture(200 + len(source)))
    both = Config(
        folder=str(tmp_path),
        annotations={"train": "train.json", "val": "val.json"},
        images={"train": "train", "val": "val"},
        splits={"train": {"train": 1.0}, "val": {"test": 1.0}},
    )
    prepare(both, tmp_path / "made")
    rows = rows_of(tmp_path / "made", ("train", "test"))
    assert {row["group"] for row in rows["train"]} == {f"train/{number:012d}.png" for number in range(1, 5)}
    assert not {row["group"] for row in rows["train"]} & {row["group"] for row in rows["test"]}


def test_names_may_be_spelled_in_either_form_of_unicode(tmp_path: Path) -> None:
    found = official(tmp_path, 1, 1, images=[{"id": 1, "file_name": "사진 하나.png"}])
    (tmp_path / unicodedata.normalize("NFD", "사진 하나.png")).write_bytes(picture(1))
    (tmp_path / "captions.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    prepare(one("captions.json", folder=str(tmp_path)), tmp_path)
    [row, _] = read(tmp_path / "train.jsonl")
    assert (tmp_path / row["image"]).is_file()
    assert row["group"] == "사진 하나"


# ── the cut ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_one_cut_holds_out_lies_within_what_a_wider_one_holds_out() -> None:
    groups = [str(number) for number in range(5000)]
    captions = cut(groups, {"train": 0.9, "val": 0.1}, 0, "train")
    talks = cut(groups[::3], {"train": 0.9, "val": 0.05, "test": 0.05}, 0, "all")
    held_out = {group for group, split in talks.items() if split != "train"}
    assert {captions[group] for group in held_out} == {"val"}
    assert len(held_out) / len(talks) == pytest.approx(0.1, abs=0.02)
    assert cut(groups, {"train": 0.9, "val": 0.1}, 0, "train") == cut(groups[::-1], {"train": 0.9, "val": 0.1}, 0, "train")


def test_every_split_gets_a_picture_or_it_is_said() -> None:
    shares = {"train": 0.98, "val": 0.01, "test": 0.01}
    assert sorted(cut(["a", "b", "c"], shares, 0, "all").values()) == ["test", "train", "val"]
    with pytest.raises(DataError, match=r"prepare.splits.all: 3 splits from 2 pictures"):
        cut(["a", "b"], shares, 0, "all")


def test_one_picture_has_one_name_in_all_data_sets() -> None:
    names = ["000000033471.jpg", "coco/train2017/000000033471.jpg", "COCO_train2014_000000033471.jpg", "33471", "a\\000000033471.png"]
    assert {picture_name(name) for name in names} == {"33471"}
    assert [picture_name(name) for name in ("a/b.tar.jpg", ".jpg", "０1.png")] == ["b", ".jpg", "０1"]


# ── tables of `datasets` ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_embedded_pictures_of_a_saved_data_set_come_into_the_folder(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": picture(number), "path": None} for number in range(3)],
        "answer": [["one", "하나"], ["two", " "], ["three"]],
        "cocoid": [7, 8, 9],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "answer": datasets.List(datasets.Value("string")), "cocoid": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    wanted = one("saved", folder=str(tmp_path), columns=Columns(caption="answer", id="cocoid"), max_bad_fraction=0.5)
    facts = prepare(wanted, tmp_path / "made")
    made = read(tmp_path / "made" / "train.jsonl")
    assert [(row["id"], row["caption"], row["group"]) for row in made] == [
        ("7-1", "one", "7"),
        ("7-2", "하나", "7"),
        ("8-1", "two", "8"),
        ("9", "three", "9"),
    ]
    assert facts["left_out"] == {"empty caption": 1}
    for number, name in ((0, made[0]["image"]), (2, made[3]["image"])):
        assert (tmp_path / "made" / name).read_bytes() == picture(number)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "images").rglob("*.png")}
    prepare(wanted, tmp_path / "made")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "made" / "images").rglob("*.png")} == before
    with pytest.raises(DataError, match=r"prepare.columns.caption: no column 'caption'"):
        prepare(one("saved", folder=str(tmp_path)), tmp_path / "made")


def test_a_hub_name_is_handed_on_and_paths_in_tables_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> datasets.Dataset:
        asked.append((*names, options["split"]))
        sentences = [[{"raw": "a sentence"}], [{"raw": "another"}]]
        return datasets.Dataset.from_dict({"filepath": ["a.png", "../b.png"], "sentences": sentences})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (tmp_path / "a.png").write_bytes(picture(1))
    columns = Columns(image="filepath", caption="sentences")
    facts = prepare(one("hub:owner/coco:karpathy:test", folder=str(tmp_path), columns=columns, max_bad_fraction=0.5), tmp_path)
    assert asked == [("owner/coco", "karpathy", "test")]
    assert read(tmp_path / "train.jsonl") == [{"id": "all-1", "image": "a.png", "caption": "a sentence", "group": "a"}]
    assert facts["left_out"] == {"outside the folder": 1}


# ── shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shard(path: Path, members: Sequence[tuple[str, bytes | str]], change: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            if change is not None:
                change(facts)
            archive.addfile(facts, io.BytesIO(data) if facts.isreg() else None)
    return path


def shards(folder: Path, count: int = 3) -> None:
    """Four pictures in each, with a Korean name among them."""
    for number in range(count):
        members: list[tuple[str, bytes | str]] = []
        for place in range(4):
            key = f"강아지-{number}" if place == 3 else f"./{number}{place:04d}"
            members += [(f"{key}.png", picture(10 * number + place)), (f"{key}.txt", f"caption {number} {place}\n한글 자막\n")]
        shard(folder / f"part-{number:03d}.tar", members)


def test_shards_give_pictures_and_all_captions(tmp_path: Path) -> None:
    shards(tmp_path)
    img2dataset = [("9.jpg", picture(99)), ("9.txt", "the same"), ("9.json", json.dumps({"caption": "the same", "url": "x", "key": "9"}))]
    shard(tmp_path / "part-003.tar", [*img2dataset, ("8.PNG", picture(98)), ("8.json", '{"captions": ["one", "two"]}'), ("8.npy", b"\0")])
    facts = prepare(one("part-*.tar", folder=str(tmp_path), workers=2), tmp_path / "made")
    rows = read(tmp_path / "made" / "train.jsonl")
    assert facts["rows"] == {"train": 27}
    assert facts["pictures"]["train"]["count"] == 14
    assert [row["caption"] for row in rows if row["group"] == "9"] == ["the same"]
    assert [row["caption"] for row in rows if row["group"] == "8"] == ["one", "two"]
    korean = next(row for row in rows if row["id"] == "강아지-1-2")
    assert (korean["caption"], korean["group"]) == ("한글 자막", "강아지-1")
    assert (tmp_path / "made" / korean["image"]).read_bytes() == picture(13)
    assert list(facts["read"]["all"]["sha256"]) == [f"part-{number:03d}.tar" for number in range(4)]
    assert facts["outputs"] == ["quarantine.jsonl", "train.jsonl"], "names of pictures are their hashes"


def test_nothing_leaves_the_folder_and_bad_members_are_counted(tmp_path: Path) -> None:
    def linked(facts: tarfile.TarInfo) -> None:
        if facts.name.startswith("link"):
            facts.type, facts.linkname, facts.size = tarfile.SYMTYPE, "/etc/passwd", 0

    good = [("good.png", picture(1)), ("good.txt", "fine")]
    bad: list[tuple[str, bytes | str]] = [
        ("../../escaped.png", picture(2)),
        ("/absolute.png", picture(3)),
        ("C:\\drive.png", picture(3)),
        ("link.png", b""),
        ("alone.png", picture(4)),
        ("words.txt", "no picture"),
        ("two.png", picture(5)),
        ("two.jpg", picture(6)),
        ("two.txt", "which"),
        ("latin.png", picture(7)),
        ("latin.txt", b"caf\xe9"),
        ("torn.png", picture(8)),
        ("torn.json", "{"),
        ("twice.png", picture(9)),
        ("twice.txt", "a"),
        ("twice.txt", "b"),
        ("._good.png", b"of a Mac"),
    ]
    shard(tmp_path / "a.tar", [*good, *bad], linked)
    facts = prepare(one("a.tar", folder=str(tmp_path), max_bad_fraction=1.0), tmp_path / "deep" / "made")
    assert [row["id"] for row in read(tmp_path / "deep" / "made" / "train.jsonl")] == ["good"]
    assert facts["left_out"] == {
        "unsafe name": 3,
        "not a plain file": 1,
        "empty caption": 1,
        "no picture": 1,
        "several pictures": 1,
        "broken text": 1,
        "broken JSON": 1,
        "duplicate member": 1,
    }
    assert not list(tmp_path.rglob("escaped*")) + list(tmp_path.rglob("*absolute*"))


def test_copies_of_a_picture_in_many_samples_are_one_group(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = []
    for number in range(20):
        members += [(f"{number}.png", picture(number // 5)), (f"{number}.txt", f"caption {number}")]
    shard(tmp_path / "a.tar", members)
    prepare(one("a.tar", folder=str(tmp_path), splits={"all": {"train": 0.5, "test": 0.5}}), tmp_path / "made")
    rows = rows_of(tmp_path / "made", ("train", "test"))
    assert {row["group"] for found in rows.values() for row in found} == {"0", "5", "10", "15"}
    assert not {row["image"] for row in rows["train"]} & {row["image"] for row in rows["test"]}


@pytest.mark.parametrize("kept", [0.5, 512, -1024])
def test_a_shard_that_is_cut_short_stops_and_the_others_stay(tmp_path: Path, kept: float) -> None:
    shards(tmp_path, 2)
    torn = tmp_path / "part-001.tar"
    content = torn.read_bytes()
    with tarfile.open(torn) as archive:
        end = archive.getmembers()[-1].offset_data + 512
    torn.write_bytes(content[: {0.5: end // 2, 512: 512, -1024: end}[kept]])  # in a member, in the first one, before the end mark
    with pytest.raises(DataError, match=r"part-001.tar: .*(.|\n)*a whole tar file"):
        prepare(one("part-*.tar", folder=str(tmp_path)), tmp_path / "made")
    assert len(list((tmp_path / "made" / ".shards").iterdir())) == 1
    torn.write_bytes(content)
    assert prepare(one("part-*.tar", folder=str(tmp_path)), tmp_path / "made")["rows"] == {"train": 16}


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("1.png", picture(1)), ("1.txt", "one"), ("2.png", picture(2)), ("2.txt", "two")])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        content[archive.getmembers()[2].offset + 150] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="no header and no end mark at byte"):
        prepare(one("a.tar", folder=str(tmp_path)), tmp_path / "made")


def test_zipped_shards_and_numbers_in_braces(tmp_path: Path) -> None:
    shards(tmp_path)
    for path in sorted(tmp_path.glob("*.tar")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    prepare(one("part-{000..002}.tar.gz", folder=str(tmp_path)), tmp_path / "zipped")
    prepare(one(str(tmp_path / "part-*.tar")), tmp_path / "plain")
    assert (tmp_path / "zipped" / "train.jsonl").read_bytes() == (tmp_path / "plain" / "train.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"1 of 4 are not there: .*part-003.tar"):
        prepare(one("part-{000..003}.tar", folder=str(tmp_path)), tmp_path / "plain")
    with pytest.raises(DataError, match="no such file in"):
        prepare(one("parts-*.tar", folder=str(tmp_path)), tmp_path / "plain")


def everything(folder: Path) -> dict[str, bytes]:
    """All that the user sees, byte by byte."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    for number in range(4):
        members: list[tuple[str, bytes | str]] = []
        for place in range(200):
            content = picture(1) + f"{number} {place}".encode()  # Pillow reads no further than the picture's end
            members += [(f"{number}-{place}.png", content), (f"{number}-{place}.txt", f"{number} {place}")]
        shard(tmp_path / "shards" / f"{number}.tar", members)
    annotations = {"train": "[0-2].tar", "val": "3.tar"}
    wanted = config(tmp_path / "shards", annotations=annotations, splits=SHARES, workers=2)
    code = "import sys, pathlib; from eyegraft.prepare.coco_captions import *; "
    code += "prepare(Config.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, wanted.model_dump_json(), str(tmp_path / "made")]
    with subprocess.Popen(command, env=environment(EYEGRAFT_CACHE=str(tmp_path / "cache")), start_new_session=True) as killed:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "made").glob("images/*/*.png")) and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(killed.pid, signal.SIGKILL)  # with its workers
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "made" / "train.jsonl").exists()
    facts = prepare(wanted, tmp_path / "made")
    assert sum(facts["rows"].values()) == 800
    assert facts == prepare(config(tmp_path / "shards", annotations=annotations, splits=SHARES, workers=1), tmp_path / "again")
    assert everything(tmp_path / "made") == everything(tmp_path / "again")


def test_a_shard_is_read_again_when_it_or_a_picture_changed(tmp_path: Path) -> None:
    shards(tmp_path, 1)
    wanted = one("part-000.tar", folder=str(tmp_path))
    prepare(wanted, tmp_path / "made")
    before = everything(tmp_path / "made")
    [first, *_] = sorted((tmp_path / "made" / "images").rglob("*.png"))
    first.write_bytes(b"torn")
    prepare(wanted, tmp_path / "made")
    assert everything(tmp_path / "made") == before
    shard(tmp_path / "part-000.tar", [("1.png", picture(1)), ("1.txt", "another")])
    assert prepare(wanted, tmp_path / "again")["rows"] == {"train": 1}


# ── the real thing ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_real_captions_through_the_command_line(tmp_path: Path) -> None:
    place = os.environ.get("EYEGRAFT_TEST_DATA")
    if not place or not (Path(place) / "coco").is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder with coco")
    words = ["prepare=coco_captions", "data=coco", "prepare.images=images", "prepare.splits.train={train: 0.9, val: 0.1}"]
    words += [f"prepare.annotations.{name}=captions_{name}2017.json" for name in ("train", "val")]
    done = eyegraft("prepare", "recipe=demo", *words, cwd=tmp_path, env={"COCO_DIR": f"{place}/coco", "DATA_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "coco" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows"]["train"] + manifest["rows"]["val"] == 130
    assert manifest["rows"]["test"] == 125
    assert manifest["left_out"] == {}
    option = yaml.safe_load((CONF / "data" / "coco.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(tmp_path / "coco"), "near_duplicates": "refuse"}))
    assert [len(sample.references) for sample in data.splits["test"]] == [5] * 25
