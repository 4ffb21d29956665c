"""The report page: complete, self-contained, harmless whatever text is on it, and fit for a phone."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import struct
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eyegraft.errors import RunError
from eyegraft.report import write_report
from eyegraft.report.gallery import thumbnail
from eyegraft.report.page import Figure, _verdict
from eyegraft.report.words import duration, higher_is_better, number

_spec = importlib.util.spec_from_file_location("report_run_folder", Path(__file__).with_name("run_folder.py"))
assert _spec is not None
assert _spec.loader is not None
folders = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = folders
_spec.loader.exec_module(folders)


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)


def read(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = folders.make_run(tmp_path_factory.mktemp("run"))
    return folder


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return read(run_dir)


def test_says_what_was_found(page: Page) -> None:
    words = " ".join(page.text.split())
    for expected in (
        "Name the drawing",
        "0.604 95 % interval 0.584 to 0.624",
        "Better than the best baseline, nearest neighbour (0.521, 0.501 to 0.541): lead +0.083, from +0.023 to +0.143.",
        "It uses the picture",
        "held out as unseen pictures of known concepts",
        "The model beats nearest-neighbour retrieval",
        "max_new_tokens = 16",
        "NFC, casefold, single spaces",
        "language_model",
        "460,800",
        "unreadable image: 2",
        "torch 2.13.0",
        "Best val loss 0.914, epoch 3, step 180",
        "finished",
        "100410041004",
        folders.KOREAN,
    ):
        assert expected in words, expected


def test_loads_nothing_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith("data:"), (tag, name, value)
        assert tag not in {"script", "iframe", "object", "embed", "base"}
    policy = [found["content"] or "" for tag, found in page.tags if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'")


def test_text_of_models_and_data_stays_text(page: Page) -> None:
    assert folders.INJECTION in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_styles_fetch_nothing_and_dark_mode_covers_the_chart_colours(run_dir: Path) -> None:
    html = write_report(run_dir).read_text(encoding="utf-8")
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    drawn = set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{3,8})"', html))
    assert drawn
    assert all(f'[fill="{colour}"]' in style for colour in drawn), drawn


def test_worst_errors_come_first_and_the_mark_is_a_word(page: Page) -> None:
    marks = re.findall(r"[✓✗] (right|wrong)", page.text)
    assert marks == sorted(marks, reverse=True)
    assert len(marks) == 96
    assert {"right", "wrong"} == set(marks)


def test_a_missing_picture_leaves_a_note(page: Page) -> None:
    missing = sum(index % 13 == 5 for index in range(96))
    assert page.text.count("picture missing") == missing
    assert page.count("img") == 96 - missing


def _bad_picture(path: Path, kind: str) -> None:
    if kind == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    elif kind == "huge":
        header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\4IDAT" + b"\0" * 8
        )
    elif kind == "torn":
        Image.effect_noise((64, 64), 90).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "float":
        Image.new("F", (4, 4)).save(path, "TIFF")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "picture missing"),
        ("postscript", "picture unreadable"),
        ("huge", "picture too large"),
        ("torn", "picture unreadable"),
        ("float", "picture unreadable"),
    ],
)
def test_a_picture_that_cannot_be_shown_is_a_note(tmp_path: Path, kind: str, said: str) -> None:
    """They are opened under the same limits as for training, and never stop the page."""
    _bad_picture(tmp_path / "a.png", kind)
    assert thumbnail("a.png", tmp_path) == (None, said)


def test_thumbnails_are_upright_small_and_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (800, 400), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 400)).save(tmp_path / "turned.jpg", exif=exif)
    shown = {}
    for name in ("clear.png", "turned.jpg"):
        uri, _ = thumbnail(name, tmp_path)
        assert uri is not None
        shown[name] = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert shown["clear.png"].size == (160, 80)
    assert shown["clear.png"].convert("RGB").getpixel((5, 5)) == (255, 255, 255)
    assert shown["turned.jpg"].size == (80, 160)


def test_a_large_gallery_is_capped_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.report.gallery.PICTURE_BUDGET", 20_000)
    page = read(folders.make_run(tmp_path, num_samples=300))
    assert page.count("article", **{"class": "card"}) == 240
    assert "The page shows the 240 worst of 300 samples" in page.text
    assert "stand without a picture" in page.text
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_few_samples_give_no_verdict(tmp_path: Path) -> None:
    page = read(folders.make_run(tmp_path, num_samples=4))
    assert "Too few samples (4) to tell it from a baseline." in page.text
    assert "Better than" not in page.text


def test_a_lost_comparison_is_plain(tmp_path: Path) -> None:
    folders.make_run(tmp_path, num_samples=12)
    path = tmp_path / "evaluation" / "test.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    entry["differences"]["nearest_neighbour"]["exact_match"] = {"value": -0.2, "low": -0.3, "high": -0.1}
    entry["systems"]["nearest_neighbour"]["exact_match"] = {"value": 0.804, "low": 0.75, "high": 0.85}
    entry["differences"]["blank_image"]["exact_match"] = {"value": 0.01, "low": -0.02, "high": 0.04}
    folders.write_json(path, entry)
    page = read(tmp_path)
    assert "Worse than the best baseline, nearest neighbour" in page.text
    assert "No clear sign that it uses the picture" in page.text
    assert page.count("p", **{"class": "verdict bad"}) == 1
    assert page.count("p", **{"class": "verdict unclear"}) == 1


@pytest.mark.parametrize(
    ("figure", "higher", "tone"),
    [
        (Figure(0.1, 0.05, 0.2), True, "good"),
        (Figure(0.1, -0.05, 0.2), True, "unclear"),
        (Figure(-0.1, -0.2, -0.05), True, "bad"),
        (Figure(-0.1, -0.2, -0.05), False, "good"),
        (Figure(0.1, 0.05, 0.2), False, "bad"),
        (Figure(0.1), True, "unclear"),
        (Figure(0.1), False, "bad"),
    ],
)
def test_a_lead_counts_when_its_interval_leaves_zero(figure: Figure, higher: bool, tone: str) -> None:
    assert _verdict(figure, higher, "better", "worse", "unclear").tone == tone


def test_other_tasks_bring_their_own_metrics(tmp_path: Path) -> None:
    folders.make_run(tmp_path, num_samples=12)
    systems = {
        "model": {"rmse_kelvin": {"value": 2.1, "low": 2.0, "high": 2.2}, "r2": {"value": 0.9, "low": None, "high": None}},
        "climatology": {"rmse_kelvin": {"value": 4.4, "low": 4.2, "high": 4.6}},
    }
    differences = {"climatology": {"rmse_kelvin": {"value": -2.3, "low": -2.5, "high": -2.1}}}
    folders.add_evaluation(tmp_path, "test", 12, systems=systems, differences=differences)
    rows = [{"id": i, "references": [270.5 + i], "answers": {"model": 271.0}, "scores": {"rmse_kelvin": float(i)}} for i in range(3)]
    (tmp_path / "evaluation" / "test.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = " ".join(read(tmp_path).text.split())
    assert "RMSE (K), lower is better" in text
    assert "Better than the best baseline, climatology (4.400, 4.200 to 4.600): lead +2.300" in text
    assert text.index("272.5") < text.index("271.5") < text.index("270.5")
    assert "✓" not in text


def test_a_bare_run_gives_a_page(tmp_path: Path) -> None:
    folders.write_json(tmp_path / "run.json", {})
    text = read(tmp_path).text
    assert "No evaluation yet" in text
    assert "This run has not finished" in text
    assert "recipe.yaml is missing" in text


def test_an_unfinished_run_with_two_stages_and_torn_lines(tmp_path: Path) -> None:
    stages = {"align": folders.stage_entry(), "caption": {"status": "running", "trainable": []}, "polish": {"status": "waiting"}}
    folders.make_run(tmp_path, num_samples=3, finished=False, stages=stages)
    folders.add_curves(tmp_path, "align")
    with (tmp_path / "caption" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 241, "loss": NaN}\n{"kind": "train", "st')
    text = read(tmp_path).text
    assert "Stage 1: align" in text
    assert "Stage 3: polish" in text
    assert "No curve was written for this stage yet" in text
    assert "caption/metrics.jsonl: 1 unreadable line left out" in text


def test_several_splits_and_a_damaged_one(tmp_path: Path) -> None:
    folders.make_run(tmp_path, num_samples=3)
    folders.add_evaluation(tmp_path, "val", 3)
    folders.add_evaluation(tmp_path, "test_new_concepts", 3, systems={}, samples=None)
    (tmp_path / "evaluation" / "broken.json").write_text("{", encoding="utf-8")
    text = read(tmp_path).text
    assert text.index("Evaluation: test") < text.index("Evaluation: test_new_concepts") < text.index("Evaluation: val")
    assert "evaluation/broken.json cannot be read" in text


def test_nulls_and_strange_shapes_do_not_stop_the_page(tmp_path: Path) -> None:
    strange: dict[str, Any] = {
        "stages": {"a": None, "b": {"best": None, "trainable": None, "seconds": None, "steps": None}},
        "data": None,
        "versions": [],
    }
    folders.make_run(tmp_path, num_samples=2, **strange)
    nothing = dict.fromkeys(folders.evaluation_entry("val", 1))
    folders.write_json(tmp_path / "evaluation" / "val.json", nothing)
    folders.write_json(tmp_path / "evaluation" / "other.json", {"systems": {"model": {"accuracy": 0.5}, "chance": {"accuracy": None}}})
    (tmp_path / "evaluation" / "other.samples.jsonl").write_text('{"id": 1}\n{"id": 2, "image": 3, "answers": [], "scores": {"x": null}}\n')
    (tmp_path / "images" / "test-0.png").write_bytes(b"not a picture")
    page = read(tmp_path)
    assert "picture unreadable" in page.text
    assert "There is no baseline to compare with" in page.text


def test_without_run_json_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        write_report(str(tmp_path))
    assert not list(tmp_path.glob("*.html"))


def test_writing_again_replaces_the_page_and_leaves_no_draft(run_dir: Path) -> None:
    first = write_report(run_dir).read_text(encoding="utf-8")
    assert write_report(run_dir).read_text(encoding="utf-8") == first
    assert [path.name for path in run_dir.glob("*report*")] + [path.name for path in run_dir.glob(".*")] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (-0.25, "−0.250"),
        (2e-4, "2e-4"),
        (12.345, "12.35"),
        (1234.5, "1,234"),
        (None, "–"),
        (float("nan"), "–"),
        (0, "0.000"),
    ],
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_durations() -> None:
    assert [duration(12), duration(210.3), duration(7322)] == ["12.0 s", "3 min 30 s", "2 h 02 min"]


def test_which_way_is_better() -> None:
    assert higher_is_better("exact_match", {})
    assert not higher_is_better("rmse_kelvin", {})
    assert higher_is_better("rmse_kelvin", {"higher_is_better": {"rmse_kelvin": True}})


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, run_dir: Path, width: int, scheme: str) -> None:
    target = write_report(run_dir).as_uri()
    asked: list[str] = []
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.route(re.compile(r"^(?!data:)"), lambda route: (asked.append(route.request.url), route.continue_()))
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.goto(target)
    tab.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    tab.wait_for_timeout(200)
    assert asked == [target]
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    drawn = [box["width"] for chart in tab.query_selector_all(".chart svg") if (box := chart.bounding_box()) and box["width"]]
    assert len(drawn) == 3
    assert max(drawn) <= width
    ground, ink = tab.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (_lightness(ground) > _lightness(ink)) == (scheme == "light")
    context.close()


def _lightness(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3])
