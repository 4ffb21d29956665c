"""WeatherQA's files become tables of tasks: every kind of file, cases in one split, and all that is left out is named."""

from __future__ import annotations

import json
import os
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.data.sentences import sentences_of
from eyegraft.errors import DataError
from eyegraft.prepare.weather_fields.conditions import WEATHERQA
from eyegraft.prepare.weatherqa import Config, prepare
from eyegraft.prepare.weatherqa.names import Classes, case_of, day_of, hour_of
from eyegraft.tasks import element_caption, element_summary_link, summary, text_summary, vqa

CAPTION = "The color fill shows {kind}. It is largest in the north, under southerly flow. Moisture pools there. It supports the watch over {case}."
KINDS = ("rgnlrad_cropped", "thea", "mcon")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def path_of(number: int, kind: str, year: int = 2018) -> str:
    return f"md_image/{year}/{kind}/md{number:04d}_{year}0513_17_{kind.removesuffix('_cropped')}.gif"


def gif(folder: Path, path: str) -> str:
    """A paletted map of two frames, its own colours in the first."""
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    shade = int.from_bytes(sha256(path.encode()).digest()[:3])
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((shade % 256, shade // 256 % 256, shade // 65536), (0, 0, 0))]
    for frame, corner in zip(frames, ((255, 0, 0), (0, 255, 0)), strict=True):
        frame.putpixel((39, 0), corner)
    frames[0].save(place, save_all=True, append_images=frames[1:])
    return path


def element(folder: Path, number: int, kind: str, **changes: Any) -> dict[str, Any]:
    caption = CAPTION.format(kind=kind, case=number)
    return {"image_rel_path": gif(folder, path_of(number, kind)), "type_name": kind, "caption": caption, "error": None, **changes}


def case(folder: Path, number: int, **changes: Any) -> dict[str, Any]:
    elements = [element(folder, number, kind) for kind in KINDS]
    return {"case_id": f"2018_md{number:04d}", "global_summary": told(number), "elements": elements, **changes}


def told(number: int) -> str:
    return f"Areas affected...county {number} Concerning...Severe potential SUMMARY...Storms form over county {number}."


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def config(folder: Path, splits: dict[str, dict[str, float]] | None = None, **annotations: str) -> Config:
    """By case, for all maps of these tests are of one day."""
    sources = annotations or {"captions": "captions.json"}
    shares = {source: (splits or {}).get(source, {"train": 1.0}) for source in sources}
    return Config(folder=str(folder), annotations=sources, splits=shares, max_bad_fraction=1.0, workers=1, cut_by="case")


def made(
    folder: Path, given: Config, target: Path | None = None
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """(facts, split -> rows, what was left out)."""
    target = target or folder
    facts = prepare(given, target)
    tables = {split: lines(target / f"{split}.jsonl") for split in facts["rows"]}
    assert facts["rows"] == {split: len(rows) for split, rows in tables.items()}
    return facts, tables, lines(target / "quarantine.jsonl")


def lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_classes_and_cases_in_every_spelling() -> None:
    classes = Classes(WEATHERQA)
    for given in ("bigsfc", "bigsfc_cropped", "wqa:bigsfc", "wqa:bigsfc_cropped"):
        assert classes.named(given, None) == "bigsfc_cropped"
    assert classes.named(None, path_of(1, "rgnlrad_cropped")) == "rgnlrad_cropped"
    assert classes.named("", "flat/md0001_20180513_17_thea.gif") == "thea"
    assert classes.named(None, "archive/srh1/today.gif") == "srh1"
    for given in ("2018_md0398", "md0398_2018", "2018md398", 5, None):
        assert case_of(given, path_of(398, "thea")) == "2018_md0398"
    assert case_of("storm-7", "maps/a.gif") == "storm-7"
    assert hour_of(path_of(398, "thea")) == "2018-05-13T17"
    assert hour_of("maps/a.gif") is None


# ── captions ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_map_gives_a_row_a_task_and_each_case_one_more(tmp_path: Path) -> None:
    cases = [case(tmp_path, number) for number in (1, 2)]
    cases[0]["elements"][0] |= {"cond_name": "wqa:rgnlrad", "error": False}  # the same class in other words, and no error
    for item in cases[1]["elements"]:  # as newer files call it
        item["cond_name"] = f"wqa:{item.pop('type_name').removesuffix('_cropped')}"
    write(tmp_path, "captions.json", cases)
    facts, tables, left = made(tmp_path, config(tmp_path))
    assert not left
    assert facts["rows_of_task"] == {"train": {"element_caption": 6, "summary": 6, "element_summary_link": 6, "text_summary": 2}}
    assert facts["cases"] == {"train": 2}
    rows = {row["id"]: row for row in tables["train"]}
    first = rows["2018_md0001/thea/element_caption"]
    caption = CAPTION.format(kind="thea", case=1)
    assert first == {
        "id": "2018_md0001/thea/element_caption",
        "image": path_of(1, "thea"),
        "task": "element_caption",
        "caption": caption,
        "case": "2018_md0001",
        "prompt": None,
        "choices": None,
        "condition": "thea",
        "sentences": sentences_of(caption),
        "summary": told(1),
        "captions": None,
        "kind": None,
        "hour": "2018-05-13T17",
        "source": "captions",
        "group": "2018_md0001",
    }
    assert rows["2018_md0002/rgnlrad_cropped/summary"]["caption"] == told(2)
    assert rows["2018_md0002/mcon/element_summary_link"]["caption"] == "It supports the watch over 2."
    all_of_it = rows["2018_md0001/rgnlrad_cropped/text_summary"]
    assert [item["condition"] for item in all_of_it["captions"]] == list(KINDS)
    assert all_of_it["captions"][1]["caption"] == caption
    assert all_of_it["caption"] == told(1)


def test_the_data_option_and_all_tasks_read_it(tmp_path: Path, folders: Any) -> None:
    write(tmp_path, "captions.json", [case(tmp_path, number) for number in range(1, 13)])
    samples = [question(number, 1) for number in range(1, 13)]
    write(tmp_path, "questions.json", {"samples": samples})
    shares = {source: {"train": 0.5, "val": 0.25, "test": 0.25} for source in ("captions", "questions")}
    given = config(tmp_path, shares, captions="captions.json", questions="questions.json").model_copy(update={"concern_choices": CONCERNS})
    facts, tables, _ = made(tmp_path, given)
    option = yaml.safe_load((CONF / "data" / "weatherqa.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(tmp_path)}))
    assert not data.reasons
    tokenizer = folders.tokenizer()
    for split, rows in tables.items():
        assert len(data.splits[split]) == len(rows)
        assert {row["case"] for row in rows}.isdisjoint(row["case"] for other in tables if other != split for row in tables[other])
    for name, module in {**{module.__name__.rpartition(".")[2]: module for module in TASKS}, "questions": vqa}.items():
        task = module.build(name, module.Config())
        for split, found in data.of_task(name).splits.items():
            task.check(found, split)
            assert len(found) == facts["rows_of_task"][split][name]
            assert task.encode(found[0], tokenizer, learn=True).labels


TASKS = (element_caption, summary, element_summary_link, text_summary)


BAD = {
    "an error": ({"error": "safety filter"}, "caption with an error", "safety filter"),
    "one sentence": ({"caption": "All in one sentence."}, "caption of one sentence", "All in one"),
    "no caption": ({"caption": " "}, "empty caption", ""),
    "a caption that is none": ({"caption": 5}, "empty caption", "5 is no text"),
    "an unknown class": ({"type_name": "wqa:thae"}, "unknown condition class", "did you mean 'thea'?"),
    "a class like none": ({"type_name": "x"}, "unknown condition class", "one of bigsfc_cropped, effh"),
    "a path that climbs": ({"image_rel_path": "../outside.gif"}, "outside the folder", "leads out of"),
    "an absolute path": ({"image_rel_path": "/etc/hostname"}, "outside the folder", "/etc/hostname"),
    "a link": ({"image_rel_path": "link.gif"}, "outside the folder", "outside.gif"),
    "a folder that is a link": ({"image_rel_path": "elsewhere/outside.gif"}, "outside the folder", "outside.gif"),
    "two classes": ({"cond_name": "wqa:mcon"}, "broken entry", "of two classes: type_name 'thea' and cond_name 'wqa:mcon'"),
    "no such file": ({"image_rel_path": "md_image/none.gif"}, "missing file", "none.gif"),
    "no path": ({"image_rel_path": None}, "missing file", "no name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_map_of_no_use_is_named_and_the_rest_of_its_case_stays(name: str, tmp_path: Path) -> None:
    changes, reason, detail = BAD[name]
    folder = tmp_path / "maps"
    whole = case(folder, 1)
    gif(tmp_path, "outside.gif")
    (folder / "link.gif").symlink_to(tmp_path / "outside.gif")
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    whole["elements"][1] |= changes
    write(folder, "captions.json", [whole])
    facts, tables, left = made(folder, config(folder), tmp_path / "made")
    assert [(row["id"], row["reason"]) for row in left] == [("2018_md0001/2", reason)]
    assert detail in left[0]["detail"]
    assert facts["left_out"] == {reason: 1}
    assert Counter(row["condition"] for row in tables["train"]) == {"rgnlrad_cropped": 4, "mcon": 3}
    if name == "an error":
        made(folder, config(folder).model_copy(update={"max_bad_fraction": 0.0}), tmp_path / "made")  # counted, and no fault
    else:
        listed = tmp_path / "made" / "refused.jsonl"
        with pytest.raises(DataError, match=f"1 {reason}") as caught:
            prepare(config(folder).model_copy(update={"max_bad_fraction": 0.01}), tmp_path / "made")
        assert str(listed) in caught.value.fix
        assert lines(listed) == left
        made(folder, config(folder), tmp_path / "made")
        assert not listed.exists()


def test_links_within_the_folder_and_a_folder_that_is_one_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    whole = case(folder, 1)
    (folder / "link.gif").symlink_to(folder / path_of(1, "thea"))
    whole["elements"][1]["image_rel_path"] = "link.gif"
    write(folder, "captions.json", [whole])
    (tmp_path / "maps").symlink_to(folder, target_is_directory=True)
    facts, _, left = made(tmp_path / "maps", config(tmp_path / "maps"), tmp_path / "made")
    assert not left
    assert facts["rows"] == {"train": 10}


def test_cases_of_no_use_are_named(tmp_path: Path) -> None:
    cases = [
        case(tmp_path, 1),
        case(tmp_path, 2, elements=[]),
        case(tmp_path, 3, global_summary=""),
        "no case",
        {
            **case(tmp_path, 4),
            "case_id": None,
            "elements": [{**element(tmp_path, 4, "thea"), "image_rel_path": gif(tmp_path, "plain.gif")}],
        },
        case(tmp_path, 5, elements=[element(tmp_path, 1, "thea")]),
        case(tmp_path, 6, elements=[element(tmp_path, 6, "thea", caption="It shows dew. So be it.")]),
    ]
    write(tmp_path, "captions.json", cases)
    _, tables, left = made(tmp_path, config(tmp_path))
    assert [(row["row"], row["id"], row["reason"]) for row in left if row["row"]] == [
        (2, "2018_md0002", "case without elements"),
        (3, "2018_md0003", "empty summary"),
        (4, "", "broken entry"),
        (5, "", "case without a name"),
        (6, "2018_md0005/1", "map of another case"),
    ]
    assert [row["reason"] for row in left if not row["row"]] == ["link with nothing before its end"]
    tasks = {name: [row["task"] for row in tables["train"] if row["case"] == name] for name in ("2018_md0003", "2018_md0006")}
    assert tasks["2018_md0003"] == ["element_caption"] * 3, "captions need no summary"
    assert tasks["2018_md0006"] == ["element_caption", "summary", "text_summary"]


# ── several files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def discussions(folder: Path, *numbers: int, **changes: str) -> dict[str, Any]:
    paths = {number: [f"./{gif(folder, path_of(number, kind))}" for kind in (*KINDS, "sbcp")] for number in numbers}
    return {
        f"2018_md{number:04d}": {"para_paths": paths[number], "annotations": told(number), "time": "05 / 13, 17UTC"} for number in numbers
    }


def test_files_of_one_case_are_put_together(tmp_path: Path) -> None:
    write(tmp_path, "public.json", discussions(tmp_path, 1, 2))
    write(tmp_path, "a.json", [case(tmp_path, 1, case_id="md0001_2018", global_summary="storms  form over county 1.")])
    write(tmp_path, "b.json", [case(tmp_path, 1)])
    write(tmp_path, "s.json", [{"image": path_of(1, "thea"), "annotation": told(1), "cond_name": "thea"}])
    facts, tables, left = made(tmp_path, config(tmp_path, public="public.json", a="a.json", b="b.json", s="s.json"))
    assert [row["reason"] for row in left] == ["caption given twice"] * 3
    assert facts["rows_of_task"]["train"] == {"element_caption": 3, "summary": 8, "element_summary_link": 3, "text_summary": 1}
    texts = {row["case"]: row["caption"] for row in tables["train"] if row["task"] == "summary"}
    assert texts == {"2018_md0001": "storms  form over county 1.", "2018_md0002": told(2)}, "the words of the file of captions, one a case"
    by_map = Counter(row["image"] for row in tables["train"] if row["task"] == "summary")
    assert set(by_map.values()) == {1}


def test_two_summaries_of_one_case_leave_it_out_and_name_both(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [case(tmp_path, 1), case(tmp_path, 2)])
    write(
        tmp_path, "b.json", [case(tmp_path, 3), case(tmp_path, 1, global_summary="Fair weather.", elements=[element(tmp_path, 1, "ttd")])]
    )
    given = config(tmp_path, a="a.json", b="b.json")
    _, tables, left = made(tmp_path, given)
    assert {row["case"] for row in tables["train"]} == {"2018_md0002", "2018_md0003"}
    assert [(row["source"], row["row"], row["id"], row["reason"]) for row in left] == [
        ("a", 1, "2018_md0001", "case with two summaries"),
        ("b", 2, "2018_md0001", "case with two summaries"),
    ]
    assert "a entry 1: 'Areas affected" in left[0]["detail"]
    assert "b entry 2: 'Fair weather.'" in left[0]["detail"]
    with pytest.raises(DataError, match="2 case with two summaries"):
        prepare(given.model_copy(update={"max_bad_fraction": 0.01}), tmp_path)


def test_another_caption_of_a_map_is_set_aside(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [case(tmp_path, 1)])
    other = element(tmp_path, 1, "thea", caption="Something else. And more than that.")
    write(tmp_path, "b.json", [case(tmp_path, 1, elements=[other])])
    _, tables, left = made(tmp_path, config(tmp_path, a="a.json", b="b.json"))
    assert [(row["source"], row["reason"]) for row in left] == [("b", "another caption of the same map")]
    assert not [row for row in tables["train"] if "Something else" in row["caption"]]


def test_a_summary_of_a_picture_without_a_case_finds_the_one_that_has_it(tmp_path: Path) -> None:
    plain = gif(tmp_path, "maps/one.gif")
    whole = case(tmp_path, 1, case_id="storm", elements=[element(tmp_path, 1, "thea", image_rel_path=plain)])
    alone = gif(tmp_path, "maps/two.gif")
    items = [{"image": image, "annotation": told(1), "cond_name": "thea"} for image in (plain, alone)]
    write(tmp_path, "s.json", items)
    write(tmp_path, "a.json", [whole])
    _, tables, left = made(tmp_path, config(tmp_path, s="s.json", a="a.json"))
    assert not left
    assert {row["image"]: row["case"] for row in tables["train"] if row["task"] == "summary"} == {plain: "storm", alone: alone}


def test_cases_are_cut_whole_and_files_may_be_splits(tmp_path: Path) -> None:
    write(tmp_path, "a.json", [case(tmp_path, number) for number in range(1, 31)])
    write(tmp_path, "b.json", discussions(tmp_path, *range(1, 21)))
    write(tmp_path, "c.json", [case(tmp_path, number) for number in range(31, 34)])
    shares = {"a": {"train": 0.7, "val": 0.3}, "b": {"train": 0.7, "val": 0.3}, "c": {"test": 1.0}}
    facts, tables, _ = made(tmp_path, config(tmp_path, shares, a="a.json", b="b.json", c="c.json"))
    stands = {split: {row["group"] for row in rows} for split, rows in tables.items()}
    assert stands["test"] == {f"2018_md{number:04d}" for number in range(31, 34)}
    assert stands["train"].isdisjoint(stands["val"])
    assert len(stands["train"] | stands["val"]) == 30
    assert facts["cases"] == {split: len(found) for split, found in stands.items()}
    for rows in tables.values():
        order = [row["case"] for row in rows]
        assert sum(here != there for here, there in pairwise(order)) == len(set(order)) - 1, "cases stand together"
    again, _, _ = made(tmp_path, config(tmp_path, shares, a="a.json", b="b.json", c="c.json"))
    assert again == facts
    with pytest.raises(DataError, match=r"20 cases stand in two splits: 2018_md0001 \((train|val) by a, test by b\)"):
        prepare(config(tmp_path, {**shares, "b": {"test": 1.0}}, a="a.json", b="b.json", c="c.json"), tmp_path)


def test_all_cases_of_a_day_stand_in_one_split(tmp_path: Path) -> None:
    cases = []
    for number in range(1, 41):  # four cases a day: 11 UTC is of the day before
        day, hour = 1 + (number - 1) // 4, (12, 23, 0, 11)[(number - 1) % 4]
        path = gif(tmp_path, f"maps/md{number:04d}_2018{5:02d}{day + (hour < 12):02d}_{hour:02d}_thea.gif")
        cases.append(case(tmp_path, number, elements=[element(tmp_path, number, "thea", image_rel_path=path)]))
    write(tmp_path, "captions.json", cases)
    given = config(tmp_path, {"captions": {"train": 0.5, "val": 0.5}})
    _, tables, _ = made(tmp_path, given.model_copy(update={"cut_by": "day"}))
    days = {split: {(int(row["case"][-4:]) - 1) // 4 for row in rows} for split, rows in tables.items()}
    assert days["train"].isdisjoint(days["val"])
    assert len(days["train"] | days["val"]) == 10
    _, tables, _ = made(tmp_path, given, tmp_path / "other")
    days = {split: {(int(row["case"][-4:]) - 1) // 4 for row in rows} for split, rows in tables.items()}
    assert days["train"] & days["val"]
    assert day_of("md0001_20180231_12_thea.gif") is None, "no such day"


# ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

CONCERNS = ("Watch likely", "Watch possible", "Watch unlikely")


def question(number: int, answer: Any, **changes: Any) -> dict[str, Any]:
    choices = [f"county {number + step}" for step in range(4)]
    paths = [path_of(number, kind) for kind in KINDS]
    return {"md_id": f"2018_md{number:04d}", "para_paths": paths, "choices": choices, "area_ans": answer, "concern_ans": 2, **changes}


@pytest.mark.parametrize(("answer", "right"), [(0, "county 7"), ("B", "county 8"), ("d", "county 10"), ("county 9", "county 9")])
def test_questions_become_rows_with_choices(answer: Any, right: str, tmp_path: Path) -> None:
    case(tmp_path, 7)
    write(tmp_path, "q.json", {"sys_prompt": "", "prompt_template": "", "para_description": {}, "samples": [question(7, answer)]})
    _, tables, left = made(tmp_path, config(tmp_path, {"q": {"test": 1.0}}, q="q.json"))
    (row,) = tables["test"]
    assert (row["task"], row["kind"], row["condition"]) == ("questions", "area", "rgnlrad_cropped")
    assert (row["prompt"], row["caption"]) == ("Which area is affected?", right)
    assert row["choices"] == ["county 7", "county 8", "county 9", "county 10"]
    assert [item["reason"] for item in left] == ["concern question without choices"]
    assert "prepare.concern_choices" in left[0]["detail"]


def test_questions_about_other_maps_and_concerns(tmp_path: Path) -> None:
    case(tmp_path, 7)
    own = question(8, 1, concern_choices=["quiet", "not quiet"], concern_ans="A")
    for kind in KINDS:
        gif(tmp_path, path_of(8, kind))
    write(tmp_path, "q.json", {"samples": [question(7, 1), own]})
    given = config(tmp_path, q="q.json").model_copy(update={"question_maps": (), "concern_choices": CONCERNS})
    _, tables, left = made(tmp_path, given)
    assert not left
    concerns = [row for row in tables["train"] if row["kind"] == "concern"]
    assert {(row["case"], row["caption"]) for row in concerns} == {("2018_md0007", "Watch unlikely"), ("2018_md0008", "quiet")}
    assert Counter(row["condition"] for row in concerns) == dict.fromkeys(KINDS, 2)
    _, tables, left = made(tmp_path, given.model_copy(update={"question_maps": ("thea", "sbcp")}), tmp_path / "other")
    assert {row["condition"] for row in tables["train"]} == {"thea"}


def test_questions_of_no_use_are_named(tmp_path: Path) -> None:
    case(tmp_path, 7)
    samples = [
        question(7, 4),
        question(7, "E"),
        question(7, None),
        question(7, 0, choices=["a", "b", "b", "c"]),
        question(7, 0, para_paths=[]),
        question(7, 0, para_paths=[path_of(7, "thea")], concern_ans=None),
        question(9, 0, concern_ans=None),
        question(7, 0, concern_ans=None),
    ]
    write(tmp_path, "q.json", {"samples": samples})
    _, tables, left = made(tmp_path, config(tmp_path, q="q.json"))
    assert len(tables["train"]) == 1
    assert Counter(row["reason"] for row in left) == {"broken entry": 5, "question without its map": 1, "missing file": 1}
    assert sorted(row["row"] for row in left) == [1, 2, 3, 4, 5, 6, 7]


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("content", [[], {}, "text", [{"image": "a.gif", "caption": "x"}], {"images": [], "annotations": []}])
def test_a_file_of_another_kind_is_refused(content: Any, tmp_path: Path) -> None:
    write(tmp_path, "captions.json", content)
    with pytest.raises(DataError, match=r"annotations captions\.json: a file of another kind") as caught:
        prepare(config(tmp_path), tmp_path)
    assert "prepare.annotations.captions" in caught.value.fix


def test_options_that_contradict_themselves_are_refused() -> None:
    base = {"annotations": {"a": "a.json"}, "splits": {"a": {"train": 1.0}}}
    for changes, said in (
        ({"question_maps": ["rgnlrat_cropped"]}, "did you mean 'rgnlrad_cropped'"),
        ({"concern_choices": ["one"]}, "two or more that differ"),
        ({"splits": {}}, "splits says nothing of the source 'a'"),
    ):
        with pytest.raises(ValidationError, match=said):
            Config(**{**base, **changes})


def test_the_option_is_whole() -> None:
    option = yaml.safe_load((CONF / "prepare" / "weatherqa.yaml").read_text(encoding="utf-8"))
    assert option.pop("kind") == "weatherqa"
    assert set(Config(**{**option, "folder": "."}).places) == {"captions", "captions_2020"}


def test_real_maps_load(tmp_path: Path) -> None:
    """Maps of the archive that WeatherQA draws on; the captions here are the test's."""
    place = Path(os.environ.get("EYEGRAFT_TEST_DATA") or "nowhere", "weather_maps")
    if not place.is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder with weather_maps")
    elements = {path.name: {**element(tmp_path, 1, "mcon"), "image_rel_path": path.name} for path in sorted(place.glob("*.gif"))}
    cases = [{"case_id": name, "global_summary": told(number), "elements": [elements[name]]} for number, name in enumerate(elements)]
    write(tmp_path, "captions.json", cases)
    given = config(tmp_path).model_copy(update={"images": str(place)})
    facts, _, left = made(tmp_path, given)
    assert not left
    assert facts["pictures"]["train"]["count"] == 3
    option = yaml.safe_load((CONF / "data" / "weatherqa.yaml").read_text(encoding="utf-8"))
    data = Data(**{**option, "base_dir": str(tmp_path), "tables": {"train": "train.jsonl"}})
    samples = load_samples(data).splits["train"]
    assert len(samples) == facts["rows"]["train"] == 12
    assert {sample.meta["condition"] for sample in samples} == {"mcon"}
    from eyegraft.data.images import open_image, to_pixels
    from eyegraft.types import ImageSpec

    spec = ImageSpec(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, fit=data.fit)  # type: ignore[arg-type]
    pixels = [to_pixels(open_image(sample.image), spec) for sample in samples[::4] if sample.image is not None]
    assert all(values.shape == (3, 224, 224) and values.std() > 0.1 for values in pixels)


def test_a_map_is_read_whole_and_from_its_first_frame(tmp_path: Path) -> None:
    from eyegraft.data.images import open_image, to_pixels
    from eyegraft.types import ImageSpec

    path = tmp_path / gif(tmp_path, path_of(1, "thea"))
    pixels = to_pixels(open_image(path), ImageSpec(size=(30, 40), mean=(0.0,) * 3, std=(1.0,) * 3, fit="squash", interpolation="nearest"))
    assert pixels[:, 0, 39].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02), "the corner of the first frame"
