"""A whole case of weather maps: what is asked in which order, what each prompt is made of, and what a person is told of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import maps
import tiny
from cli.running import TESTS, kept_registry, refused, run
from eyegraft import load_recipe, train
from eyegraft.composition import use_config_dir
from eyegraft.errors import DataError, RunError
from eyegraft.files import file_sha256
from eyegraft.registry import use_plugin
from eyegraft.serving._cases import case_of_words, read_case
from eyegraft.serving.case_report import NOTICE, report_case
from serving.weather_run import case_file, sentences, trained

PLUGIN = ("--plugin", "tinyparts")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weather")


@pytest.fixture(scope="module")
def all_tasks(folder: Path) -> Path:
    return trained(folder)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the model writes, by how the prompt begins: here it can write."""
    use_plugin("tinyparts")
    from tinyparts.heads.tiny_gru import TinyGRU

    said = {"Sum": "SUMMARY...Of the map.", "Texts": "SUMMARY...Of the texts.", "Link": "It supports it."}
    said |= {f"Map {kind}": " ".join(sentences(kind)) for kind in maps.CLASSES}

    def generate(self: Any, tokens: Any, batch: Any, **settings: Any) -> list[str]:
        asked = [self.tokenizer.decode(ids[mask].tolist()) for ids, mask in zip(batch.input_ids, batch.text_mask, strict=True)]
        return [next(text for start, text in said.items() if prompt.startswith(start)) for prompt in asked]

    monkeypatch.setattr(TinyGRU, "generate", generate)
    return said


def test_what_comes_later_is_asked_with_what_was_written_before(all_tasks: Path, tmp_path: Path, writes: dict[str, str]) -> None:
    report = report_case(all_tasks, read_case(case_file(tmp_path)))
    assert [entry["task"] for entry in report["asked"]] == ["element_caption"] * 3 + ["text_summary"] + ["link"] * 3
    assert [entry["element"] for entry in report["asked"]] == [0, 1, 2, 0, 0, 1, 2]
    kinds = [element["condition"] for element in report["elements"]]
    assert [element["condition_from"] for element in report["elements"]] == ["given", "predicted", "given"]
    assert (kinds[0], kinds[2]) == ("mcon", "thea")
    assert kinds[1] == report["elements"][1]["condition_seen"]["name"]
    assert [element["caption"] for element in report["elements"]] == [" ".join(sentences(kind)) for kind in kinds]
    captions = "\n".join(f"{number}. {kind}: {' '.join(sentences(kind))}" for number, kind in enumerate(kinds, 1))
    assert report["asked"][3]["prompt"] == f"Texts {captions}\nAnswer:"
    assert report["summary"] == {"text": "SUMMARY...Of the texts.", "made_of": "the captions written here, and the first image"}
    for kind, entry in zip(kinds, report["asked"][4:], strict=True):
        assert entry["prompt"] == f"Link {' '.join(sentences(kind)[:3])} | SUMMARY...Of the texts.\nAnswer:", "without the caption's end"
    assert {element["link"] for element in report["elements"]} == {"It supports it."}
    assert not any("온다" in entry["prompt"] or "곧" in entry["prompt"] for entry in report["asked"]), "nothing that the case brings"
    assert (report["summary_of_case"], report["elements"][0]["caption_of_case"]) == (
        "Rain <script>alert(1)</script> 곧",
        "비가 <b>온다</b>.",
    )
    assert report["left_out"] == [{"task": "summary", "why": "the summary was made of the captions"}]


def test_it_says_what_answered_and_that_a_model_wrote_it(all_tasks: Path, tmp_path: Path, writes: dict[str, str]) -> None:
    report = report_case(all_tasks, read_case(case_file(tmp_path)))
    facts = report["model"]
    assert facts["checkpoint"]["sha256"] == file_sha256(all_tasks / facts["checkpoint"]["path"] / "manifest.json")
    assert (facts["run"], facts["seed"], facts["data"]) == (all_tasks.name, 0, "palette maps")
    assert facts["decoding"]["link"]["max_new_tokens"] == 60
    assert report["notices"] == [NOTICE, "It learned from palette maps: Bands of colour. Their texts follow from the class by rule."]


def test_a_caption_without_an_end_has_no_link(all_tasks: Path, tmp_path: Path, writes: dict[str, str]) -> None:
    writes["Map thea"] = "One sentence."
    report = report_case(all_tasks, read_case(case_file(tmp_path)))
    assert [element["link"] is None for element in report["elements"]] == [element["condition"] == "thea" for element in report["elements"]]
    why = [left["why"] for left in report["left_out"] if left.get("element") == 2]
    assert why == ["a caption of 1 sentence leaves none before its end"]


def test_captions_that_are_empty_leave_the_summary_to_the_first_image(all_tasks: Path, tmp_path: Path, writes: dict[str, str]) -> None:
    writes |= {f"Map {kind}": "" for kind in maps.CLASSES}
    report = report_case(all_tasks, read_case(case_file(tmp_path)))
    assert report["summary"] == {"text": "SUMMARY...Of the map.", "made_of": "the first image"}
    assert [element["link"] for element in report["elements"]] == [None] * 3


def test_tasks_that_were_not_learned_are_left_out_and_said(folder: Path, tmp_path: Path, writes: dict[str, str]) -> None:
    short = trained(folder, "stages.all.tasks.summary=0", "stages.all.tasks.text_summary=0", "experiment_name=short")
    report = report_case(short, read_case(case_file(tmp_path)))
    assert report["summary"] == {"text": "Rain <script>alert(1)</script> 곧", "made_of": "the case itself"}, "a link needs one"
    assert {left["task"] for left in report["left_out"]} == {"summary", "text_summary"}
    report = report_case(short, read_case(case_file(tmp_path, global_summary=None)))
    assert report["summary"] is None
    assert {element["link"] for element in report["elements"]} == {None}
    assert {"task": "link", "why": "there is no summary to link to"} in report["left_out"]


def test_maps_that_are_named_one_by_one(all_tasks: Path, tmp_path: Path, writes: dict[str, str]) -> None:
    case_file(tmp_path)
    odd = tmp_path / "a=b.gif"
    shutil.copy(tmp_path / "maps" / "sbcp.gif", odd)
    case = case_of_words([f"{tmp_path}/maps/thea.gif=thea", str(odd), f"{odd}=mcon"])
    assert [(element.path.name, element.condition) for element in case.elements] == [
        ("thea.gif", "thea"),
        ("a=b.gif", None),
        ("a=b.gif", "mcon"),
    ]
    report = report_case(all_tasks, case)
    assert report["case"] is None
    assert report["elements"][0]["condition"] == "thea"


def test_the_command_line_gives_text_one_object_or_a_page(all_tasks: Path, tmp_path: Path) -> None:
    case_file(tmp_path)
    told = run("predict", str(all_tasks), "--case", "case.json", "--json", "--html", "out/page.html", *PLUGIN, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert [len(report[name]) for name in ("elements", "asked", "notices")] == [3, len(report["asked"]), 2]
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 3
    assert "2018_md0398" in page
    told = run("predict", str(all_tasks), "--case", "maps/thea.gif=thea", "maps/sbcp.gif", *PLUGIN, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "maps/thea.gif  thea (given)" in told.stdout
    assert "(predicted)" in told.stdout
    assert NOTICE in told.stdout


def element(**changes: Any) -> list[dict[str, Any]]:
    return [{"image_rel_path": "maps/thea.gif", "type_name": "thea", **changes}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"elements": []}, ["case '2018_md0398' has no elements"]),
        ({"elements": element(type_name="tea")}, ["element 1", "'tea'", "did you mean 'thea'?"]),
        ({"elements": element(image_rel_path="../secret.gif")}, ["element 1", "lies outside", "--image-root"]),
        ({"elements": element(image_rel_path="a\\..\\..\\secret.gif")}, ["lies outside"]),
        ({"elements": element(image_rel_path="C:/secret.gif")}, ["lies outside"]),
        ({"elements": element(image_rel_path="maps/link.gif")}, ["element 1", "'maps/link.gif' lies outside"]),
        ({"elements": element(image_rel_path="/etc/hostname")}, ["lies outside"]),
        ({"elements": element(image_rel_path="maps/none.gif")}, ["no image", "none.gif", "--image-root"]),
        ({"elements": element(image_rel_path="case.json")}, ["element 1", "not a picture"]),
        ({"elements": element(cond_name="mcon")}, ["of two classes, mcon and thea"]),
        ({"elements": [{"type_name": "thea"}]}, ["element 1 names no image"]),
        ({"elements": 3}, ["elements 3", "image_rel_path"]),
    ],
)
def test_a_case_that_cannot_be_read_is_one_clear_error(all_tasks: Path, tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    case_file(tmp_path, **changes)
    (tmp_path / "maps" / "link.gif").symlink_to(next((all_tasks.parent.parent.parent / "data" / "maps").iterdir()))
    refused(run("predict", str(all_tasks), "--case", "case.json", *PLUGIN, cwd=tmp_path), 3, *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--case", "none.json"], ["none.json", "No such file"]),
        (["--case", "torn.json"], ["torn.json is not JSON"]),
        (["--case", "list.json"], ["has 2 cases", "a, b", "--case-id a"]),
        (["--case", "list.json", "--case-id", "bb"], ["no cases 'bb'", "did you mean 'b'"]),
        (["--case", "maps/thea.gif=thea", "--case-id", "a"], ["beside images"]),
        (["--case", "maps/tea.gif=thea"], ["no image maps/tea.gif"]),
        (["--case", "list.json", "--task", "link"], ["--case beside --task"]),
        (["maps/thea.gif", "--html", "a.html"], ["without --case"]),
    ],
)
def test_words_that_do_not_fit_are_one_clear_error(all_tasks: Path, tmp_path: Path, words: list[str], said: list[str]) -> None:
    case_file(tmp_path)
    (tmp_path / "torn.json").write_text('{"case_id": ', encoding="utf-8")
    (tmp_path / "list.json").write_text('[{"case_id": "a"}, {"case_id": "b"}]', encoding="utf-8")
    refused(run("predict", str(all_tasks), *words, *PLUGIN, cwd=tmp_path), 3, *said)


def test_one_of_several_cases_with_its_own_image_root(tmp_path: Path) -> None:
    case = json.loads(case_file(tmp_path).read_text(encoding="utf-8"))
    (tmp_path / "cases").mkdir()
    file = tmp_path / "cases" / "all.json"
    file.write_text(json.dumps([{**case, "case_id": 7}, {**case, "global_summary": ""}]), encoding="utf-8")
    with pytest.raises(DataError, match="no image"):
        read_case(file, case_id="7")
    found = read_case(file, case_id="7", image_root=tmp_path)
    assert (found.id, len(found.elements), found.elements[0].path) == ("7", 3, tmp_path / "maps" / "mcon.gif")
    assert read_case(file, case_id="2018_md0398", image_root=tmp_path).summary is None


def test_a_run_of_other_tasks_says_so(tmp_path: Path) -> None:
    data = tiny.shapes(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    with kept_registry():
        use_plugin("tinyparts")
        use_config_dir(str(TESTS / "tinyparts" / "conf"))
        captions = train(load_recipe("tiny", f"data.base_dir={data}", f"run_root={tmp_path / 'runs'}", "train.max_steps=1"))
    use_plugin("tinyparts")
    with pytest.raises(RunError, match="that learned caption"):
        report_case(captions, read_case(case_file(tmp_path)))
