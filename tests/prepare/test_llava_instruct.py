"""LLaVA's conversations: turns are pairs of question and answer, `<image>` goes, and what is no conversation is counted and named."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from command_line import eyegraft
from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError
from eyegraft.prepare import coco_captions
from eyegraft.prepare._pairs import Refused
from eyegraft.prepare.llava_instruct import Columns, Config, prepare, read_turns


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def talk(*texts: str, first: str = "human") -> list[dict[str, str]]:
    """Turns in the original's form, speaker after speaker."""
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


TWO_TURNS = talk("<image>\nWhat is this?", "A dog.", "무슨 색인가요?", "갈색입니다.")


def row(number: int, conversation: Any = TWO_TURNS, **changes: Any) -> dict[str, Any]:
    return {"id": f"{number:012d}", "image": f"{number:012d}.png", "conversations": conversation, **changes}


def written(folder: Path, rows: Any, *pictures: int) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in pictures:
        (folder / "images" / f"{number:012d}.png").write_bytes(picture(number))
    (folder / "talks.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def config(folder: Path, **changes: Any) -> Config:
    plain = {"annotations": {"all": "talks.json"}, "images": "images", "splits": {"all": {"train": 1.0}}, "workers": 1}
    return Config(**{**plain, "folder": str(folder), **changes})


def read(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", ["<image>\nWhat is this?", "What is this?\n<image>", "<image> What is this?", "What is this?"])
def test_turns_are_pairs_without_the_mark(first: str) -> None:
    assert read_turns(talk(first, "A dog. ", "무슨 색?\n하나만.", "갈색")) == [
        {"question": "What is this?", "answer": "A dog."},
        {"question": "무슨 색?\n하나만.", "answer": "갈색"},
    ]


@pytest.mark.parametrize(
    ("conversation", "reason", "detail"),
    [
        (talk("A dog.", "What is this?", first="gpt"), "starts with the assistant", "A dog."),
        (talk("<image>\n<image>\nWhich?", "Both."), "two <image>", "2 of them"),
        (talk("<image>\nWhich?", "This.", "<image>\nAnd now?", "That."), "two <image>", "2 of them"),
        (talk("Which?", "This.", "<image>\nAnd now?", "That."), "<image> out of place", "later turn"),
        (talk("Look at <image> and tell.", "A dog."), "<image> out of place", "amid the first question"),
        (talk("<image>\nWhat?", " \n"), "empty answer", "answer 1 of 1"),
        (talk("<image>\nWhat?", "A dog.", "", "Brown."), "empty question", "question 2 of 2"),
        (talk("<image>", "A dog."), "empty question", "question 1 of 1"),
        ([*talk("<image>\nWhat?", "A dog."), *talk("Brown.", first="gpt")], "two turns of one speaker", "turns 2 and 3 are both of gpt"),
        ([*talk("<image>\nWhat?"), *talk("Well?", "A dog.")], "two turns of one speaker", "turns 1 and 2 are both of human"),
        (talk("<image>\nWhat?", "A dog.", "And?"), "odd number of turns", "3 turns"),
        ([{"from": "system", "value": "Be kind."}, *talk("<image>\nWhat?", "A dog.")], "unknown speaker", "'system'"),
        (talk("<image>\nWhat?", None), "empty answer", ""),  # type: ignore[arg-type]
        (["<image>", "A dog."], "unknown speaker", "None"),
        ([], "no conversation", "[]"),
        (None, "no conversation", "None"),
    ],
)
def test_what_is_no_conversation_is_refused_by_reason(conversation: Any, reason: str, detail: str) -> None:
    with pytest.raises(Refused) as caught:
        read_turns(conversation)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_messages_in_parts_and_an_object_of_lists_are_the_same() -> None:
    wanted = [{"question": "What is this?", "answer": "A dog."}]
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image", "text": None}]
    assert (
        read_turns([{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]) == wanted
    )
    assert read_turns({"from": ["human", "gpt"], "value": ["<image>\nWhat is this?", "A dog."]}) == wanted


# ── the JSON file ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_have_their_turns_and_ids_of_their_own(tmp_path: Path) -> None:
    rows = [row(1), row(1, talk("<image>\nHow many?", "Two.")), row(2, image="000000000002.png")]
    facts = prepare(config(written(tmp_path, rows, 1, 2)), tmp_path)
    assert facts["rows"] == {"train": 3}
    assert facts["pictures"]["train"]["count"] == 2
    first, second, third = read(tmp_path / "train.jsonl")
    assert first == {
        "id": "000000000001",
        "image": "images/000000000001.png",
        "turns": [{"question": "What is this?", "answer": "A dog."}, {"question": "무슨 색인가요?", "answer": "갈색입니다."}],
        "group": "1",
    }
    assert (second["id"], second["group"], third["group"]) == ("000000000001-2", "1", "2")


def test_what_cannot_be_used_is_counted_by_reason_and_named(tmp_path: Path) -> None:
    rows = [
        row(1),
        row(2),
        row(1, image="../secret.png"),
        row(1, image="/etc/passwd"),
        row(1, talk("A dog.", "What?", first="gpt")),
        row(1, image=None),
        row(1, talk("What is two and two?", "Four."), image=None),
        row(1, talk("What is here?", "A dog.")),
        row(1, image=["000000000001.png", "000000000002.png"]),
        row(1, talk("<image>\nHalf?", "\ud83d")),
    ]
    facts = prepare(config(written(tmp_path, rows, 1), max_bad_fraction=0.9), tmp_path)
    assert facts["rows"] == {"train": 1}
    assert facts["left_out"] == {
        "missing file": 2,
        "outside the folder": 2,
        "starts with the assistant": 1,
        "several pictures": 1,
        "broken text": 1,
        "no <image>": 2,
    }
    listed = read(tmp_path / "quarantine.jsonl")
    assert {item["row"]: item["reason"] for item in listed} == {
        2: "missing file",
        3: "outside the folder",
        4: "outside the folder",
        5: "starts with the assistant",
        6: "missing file",
        7: "no <image>",
        8: "no <image>",
        9: "several pictures",
        10: "broken text",
    }
    with pytest.raises(DataError, match=r"7 of 8 rows \(87.5%\) cannot be used") as caught:
        prepare(config(tmp_path), tmp_path / "other")
    assert "no <image>" not in str(caught.value), "what is left out on purpose is no fault"


def test_rows_of_text_may_be_kept(tmp_path: Path) -> None:
    alone = {"id": "words", "conversations": talk("What is two and two?", "Four.")}
    rows = [row(1), alone, row(1, talk("What is here?", "A dog."))]
    facts = prepare(config(written(tmp_path, rows, 1), without_image="keep"), tmp_path)
    assert facts["left_out"] == {}
    made = read(tmp_path / "train.jsonl")
    assert [(item["image"], item["group"]) for item in made] == [
        ("images/000000000001.png", "1"),
        ("", "text words"),
        ("images/000000000001.png", "1"),
    ]
    option = yaml.safe_load((CONF / "data" / "llava.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(tmp_path), "tables": {"train": "train.jsonl"}, "image_optional": True}))
    assert [sample.image is None for sample in data.splits["train"]] == [False, True, False]
    assert data.splits["train"][0].turns == (("What is this?", "A dog."), ("무슨 색인가요?", "갈색입니다."))


def test_a_broken_file_stops_with_its_place(tmp_path: Path) -> None:
    written(tmp_path, [])
    with pytest.raises(DataError, match="it has no rows"):
        prepare(config(tmp_path), tmp_path)
    (tmp_path / "talks.json").write_text('[{"id": "1",\n "image": }]', encoding="utf-8")
    with pytest.raises(DataError, match=r"talks.json: Expecting value: line 2 column 11"):
        prepare(config(tmp_path), tmp_path)
    (tmp_path / "talks.json").write_text(json.dumps([{"id": "1", "image": "a.png", "messages": []}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"prepare.columns.conversations: no column 'conversations'(.|\n)*id, image, messages"):
        prepare(config(tmp_path), tmp_path)
    with pytest.raises(DataError, match=r"prepare.annotations.all: table .*talk.json: no such file(.|\n)*prepare.folder"):
        prepare(config(tmp_path, annotations={"all": "talk.json"}), tmp_path)


def test_no_stage_has_seen_what_is_held_out(tmp_path: Path) -> None:
    """With the shares of the two options, and COCO's pictures under both."""
    numbers = range(1, 301)
    folder = written(tmp_path, [row(number) for number in numbers], *numbers)
    official = {
        "images": [{"id": number, "file_name": f"{number:012d}.png"} for number in numbers],
        "annotations": [{"id": number, "image_id": number, "caption": "a picture"} for number in numbers],
    }
    (folder / "captions.json").write_text(json.dumps(official), encoding="utf-8")
    options = {
        name: yaml.safe_load((CONF / "prepare" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("coco_captions", "llava_instruct")
    }
    same = {"folder": str(folder), "images": "images"}
    shares = options["coco_captions"]["splits"]["train"]
    captions = coco_captions.Config(**same, annotations={"all": "captions.json"}, splits={"all": shares})
    coco_captions.prepare(captions, tmp_path / "coco")
    prepare(config(folder, splits=options["llava_instruct"]["splits"]), tmp_path / "llava")
    groups = {
        (name, split): {item["group"] for item in read(tmp_path / name / f"{split}.jsonl")}
        for name, split in [("coco", "train"), ("llava", "train"), ("llava", "val"), ("llava", "test")]
    }
    held_out = groups["llava", "val"] | groups["llava", "test"]
    assert held_out
    assert not held_out & (groups["coco", "train"] | groups["llava", "train"])
    assert groups["coco", "train"] == groups["llava", "train"]


# ── tables and shards ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_saved_data_set_with_embedded_pictures(tmp_path: Path) -> None:
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = datasets.Features({"image": datasets.Image(), "conversations": datasets.List(turn), "id": datasets.Value("string")})
    rows = {
        "image": [{"bytes": picture(1), "path": None}] * 2,
        "conversations": [TWO_TURNS, talk("<image>\n몇 마리?", "둘")],
        "id": ["a", "b"],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    facts = prepare(config(tmp_path, annotations={"all": "saved"}), tmp_path / "made")
    first, second = read(tmp_path / "made" / "train.jsonl")
    assert facts["pictures"]["train"]["count"] == 1
    assert (tmp_path / "made" / first["image"]).read_bytes() == picture(1)
    assert second["turns"] == [{"question": "몇 마리?", "answer": "둘"}]
    assert first["group"] == second["group"]


def test_messages_of_the_hub_and_conversations_in_csv(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image", "text": None}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    written(tmp_path, [], 1)
    rows = [{"images": ["000000000001.png"], "messages": messages}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    columns = Columns(image="images", conversations="messages", id=None)
    prepare(config(tmp_path, annotations={"all": "rows.jsonl"}, columns=columns), tmp_path / "one")
    cell = json.dumps(talk("<image>\nWhat?", "A dog.")).replace('"', '""')
    (tmp_path / "rows.csv").write_text(f'image,conversations\n000000000001.png,"{cell}"\n000000000001.png,[{{\n', encoding="utf-8")
    wanted = config(tmp_path, annotations={"all": "rows.csv"}, columns=Columns(id=None), max_bad_fraction=0.5)
    assert prepare(wanted, tmp_path / "two")["left_out"] == {"broken JSON": 1}
    assert read(tmp_path / "one" / "train.jsonl") == read(tmp_path / "two" / "train.jsonl")
    assert read(tmp_path / "one" / "train.jsonl")[0]["turns"] == [{"question": "What?", "answer": "A dog."}]


def test_shards_of_conversations(tmp_path: Path) -> None:
    members = {
        "강아지.png": picture(1),
        "강아지.json": json.dumps({"id": "x", "conversations": TWO_TURNS}).encode(),
        "two.png": picture(2),
        "two.json": json.dumps([row(2), row(2, talk("<image>\nHow many?", "Two."))]).encode(),
        "bare.png": picture(3),
        "bare.json": json.dumps(talk("<image>\nWhat?", "A cat.")).encode(),
        "words.png": picture(4),
        "words.json": json.dumps(talk("What?", "A cat.")).encode(),
        "none.png": picture(5),
        "none.txt": b"a caption",
    }
    with tarfile.open(tmp_path / "talks-0.tar", "w") as archive:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            archive.addfile(facts, io.BytesIO(content))
    facts = prepare(config(tmp_path, annotations={"all": "talks-*.tar"}, max_bad_fraction=0.2), tmp_path / "made")
    made = read(tmp_path / "made" / "train.jsonl")
    assert [(item["id"], item["group"], len(item["turns"])) for item in made] == [
        ("강아지", "강아지", 2),
        ("two-1", "two", 2),
        ("two-2", "two", 1),
        ("bare", "bare", 1),
    ]
    assert facts["left_out"] == {"no conversation": 1, "no <image>": 1}


# ── the real thing ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_conversations_about_real_pictures_through_the_command_line(tmp_path: Path) -> None:
    place = os.environ.get("EYEGRAFT_TEST_DATA")
    if not place or not (Path(place) / "coco").is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder with coco")
    found = json.loads((Path(place) / "coco" / "captions_train2017.json").read_text(encoding="utf-8"))
    captions = {item["image_id"]: item["caption"] for item in found["annotations"]}
    rows = [
        {"id": item["file_name"][:-4], "image": item["file_name"], "conversations": talk("<image>\nWhat is here?", captions[item["id"]])}
        for item in found["images"]
    ]
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "llava_instruct_150k.json").write_text(json.dumps(rows), encoding="utf-8")
    words = ["recipe=demo", "prepare=llava_instruct", "data=llava", f"prepare.images={place}/coco/images"]
    done = eyegraft("prepare", *words, cwd=tmp_path, env={"DATA_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    option = yaml.safe_load((CONF / "data" / "llava.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(tmp_path / "llava"), "near_duplicates": "refuse"}))
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 24, "val": 1, "test": 1}
    sample = data.splits["test"][0]
    assert (sample.prompt, sample.references) == ("What is here?", (captions[int(sample.group or 0)].strip(),))
