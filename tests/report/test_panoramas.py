"""Panoramas on pages: outlines where the views look, and pages that turn them in a browser, alone and harmless."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from eyegraft.evaluation.compare import compare_runs
from eyegraft.report import write_report
from eyegraft.report.comparison import write_comparison
from eyegraft.report.panorama import outline, panorama, script
from eyegraft.views import View, Views

_spec = importlib.util.spec_from_file_location("report_run_folder_of_panoramas", Path(__file__).with_name("run_folder.py"))
assert _spec is not None
assert _spec.loader is not None
folders = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = folders
_spec.loader.exec_module(folders)

LAYOUT = Views(strategy="anyres_e2p").views
KOREAN = "창문이 많은 넓은 홀입니다."
NUM_SAMPLES = 12


def panorama_run(folder: Path, pictures: Path, *, seed: int, best: float, num_measured: int = NUM_SAMPLES) -> Path:
    """A run of captions about six panoramas, two questions each; the fourth view carries every measured answer."""
    info = {"seed": 0, "stages": {"only": folders.stage_entry(best={"epoch": 1, "step": 1, "metric": "val_loss", "value": best})}}
    folders.make_run(folder, 1, **info)
    recipe = {"recipe": "r", "seed": 0, "experiment_name": "e", "head": {"kind": "prefix_lm"}, "tasks": {"say": {"kind": "caption"}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "train": {}, "stages": {"only": {}}}), encoding="utf-8")
    rng, rows = random.Random(seed), []
    for number in range(NUM_SAMPLES):
        cider = rng.choice([0.0, 4.0])
        row = {
            "id": f"test-{number:03}",
            "image": str(pictures / f"{number // 2}.jpg"),
            "prompt": ["무엇이 보이나요?", "windows"][number % 2],
            "references": ["A wide hall.", KOREAN],
            "answers": {"model": [folders.INJECTION, KOREAN][int(cider > 0)], "blank_image": "sky"},
            "scores": {"cider": cider},
            "meta": {},
        }
        rows.append(row | ({"views": {"worth": [0.9 if view == 3 else -0.01 for view in range(9)]}} if number < num_measured else {}))
    (folder / "evaluation" / "test.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    value = {"value": sum(row["scores"]["cider"] for row in rows) / NUM_SAMPLES, "low": None, "high": None}
    views = {"layout": [asdict(view) for view in LAYOUT], "measure": "fall of the log-likelihood", "num_samples": num_measured}
    changes = {"views": views, "systems": {"model": {"cider": value}}, "differences": {}, "num_resamples": 100}
    folders.write_json(folder / "evaluation" / "test.json", folders.evaluation_entry("test", NUM_SAMPLES) | changes)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panoramas")
    for number in range(6):
        picture = Image.new("RGB", (1400, 700), (40 * number, 120, 160))
        pen = ImageDraw.Draw(picture)
        for column in range(0, 1400, 100):
            pen.rectangle((column, 300, column + 40, 400), fill=(column % 255, 200, 60))
        picture.save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    runs = [panorama_run(root / name, pictures, seed=seed, best=best) for name, seed, best in (("a", 1, 0.9), ("b", 2, 0.8))]
    compared = write_comparison(compare_runs(runs, every_metric=True), root / "compared.html")
    return {"report": write_report(runs[0]), "comparison": compared}


# ── outlines ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def points(path: str) -> list[list[tuple[float, float]]]:
    """The closed lines of a path."""
    lines = [part for part in re.split("[MZ]", path) if part]
    return [[(float(x), float(y)) for x, y in (pair.split() for pair in line.split("L"))] for line in lines]


def is_inside(line: list[tuple[float, float]], x: float, y: float) -> bool:
    crossings = 0
    for (x0, y0), (x1, y1) in zip(line, [*line[1:], line[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            crossings += 1
    return crossings % 2 == 1


@pytest.mark.parametrize(
    "view",
    [
        View("perspective", 0, 0, 90, 90),
        View("perspective", 180, 0, 90, 90),
        View("perspective", -170, 20, 60, 60),
        View("perspective", 30, 80, 90, 90),
        View("perspective", 300, -75, 70, 70),
        View("equirect", 315, 0, 90, 90),
    ],
)
def test_an_outline_holds_exactly_what_the_view_sees(view: View) -> None:
    """Also over the seam of the picture, and around a pole."""
    import numpy as np

    wrong = 0
    for longitude in range(-176, 180, 8):
        for latitude in range(-86, 90, 8):
            a, b = np.radians(longitude), np.radians(latitude)
            x, y = view.places(np.array([np.cos(b) * np.sin(a), np.sin(b), np.cos(b) * np.cos(a)]))
            seen = bool(abs(x) <= 1 and abs(y) <= 1)
            drawn = any(is_inside(line, longitude + 180, 90 - latitude) for line in points(outline(view)))
            near_edge = max(abs(x), abs(y)) == pytest.approx(1, abs=0.03)
            wrong += seen != drawn and not near_edge
    assert wrong == 0


def test_the_tint_follows_the_worth_and_stays_pale_where_none_is_worth_much() -> None:
    row = {"views": {"worth": [0.2, 0.4, -0.3, 0, 0, 0, 0, 0, 0]}}
    shown = panorama("p1", LAYOUT, row)
    assert [mark.strength for mark in shown.marks[:4]] == [0.5, 1.0, 0.0, 0.0]
    assert (shown.yaw, shown.measured) == (0.0, True)
    faint = panorama("p1", LAYOUT, {"views": {"worth": [0.0, 0.001, *[0.0] * 7]}})
    assert max(mark.strength for mark in faint.marks) == pytest.approx(0.02)
    assert not panorama("p1", LAYOUT, {}).measured
    assert not panorama("p1", LAYOUT, {"views": {"worth": [0.1]}}).measured, "of another layout"


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_picture_stands_once_on_a_page(pages: dict[str, Path]) -> None:
    for page in pages.values():
        text = page.read_text(encoding="utf-8")
        assert text.count("data:image/webp;base64,") == 6
        assert text.count('<use href="#p1"/>') >= 2
        assert page.stat().st_size < 1_500_000
        assert "Copyright (c) 2011-2026 Matthew Petroff" in text


def test_a_page_without_panoramas_has_no_script(tmp_path: Path) -> None:
    folders.make_run(tmp_path, 4)
    assert "<script" not in re.sub("&lt;script", "", write_report(tmp_path).read_text(encoding="utf-8"))


def test_where_the_runs_differ_most_comes_first(pages: dict[str, Path]) -> None:
    text = pages["comparison"].read_text(encoding="utf-8")
    scores = [re.findall(r'class="score">([\d.]+)', card) for card in text.split('<article class="sample">')[1:]]
    gaps = [abs(float(one) - float(other)) for one, other in scores]
    assert len(gaps) == NUM_SAMPLES
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] == 4
    assert gaps[-1] == 0
    assert KOREAN in text
    assert "무엇이 보이나요?" in text
    assert folders.INJECTION not in text


def test_pictures_beyond_the_budget_are_left_out_and_said(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.report.panorama.BUDGET", 1000)
    text = write_report(panorama_run(tmp_path / "a", pictures, seed=1, best=0.9)).read_text(encoding="utf-8")
    assert text.count("data:image/webp;base64,") == 1
    assert "10 cards stand without a picture" in text


def test_runs_without_answers_to_the_same_samples_give_a_table(tmp_path: Path, pictures: Path) -> None:
    runs = [panorama_run(tmp_path / name, pictures, seed=1, best=0.9) for name in "ab"]
    (runs[1] / "evaluation" / "test.samples.jsonl").unlink()
    text = write_comparison(compare_runs(runs, every_metric=True), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Scores" in text
    assert "Answers side by side" not in text
    assert script() not in text


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def webgl() -> Iterator[Any]:
    """Chromium that draws WebGL in software."""
    import shutil

    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        wanted = ["--no-sandbox", "--disable-background-networking", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        opened = driver.chromium.launch(executable_path=path, args=wanted)
        yield opened
        opened.close()


class Tab:
    """A page with everything it asked for and said."""

    def __init__(self, browser: Any, page: Path, **context: Any) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page = page
        self.context = browser.new_context(**context)
        self.context.route(re.compile(r"^(?!data:)"), lambda route: (self.asked.append(route.request.url), route.continue_()))
        self.tab = self.context.new_page()
        # a driver that draws in software warns of its own slowness: no fault of the page
        self.tab.on("console", lambda message: None if "GL Driver Message" in message.text else self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))

    def open(self) -> Any:
        self.tab.goto(self.page.as_uri())
        return self.tab

    def close(self) -> None:
        assert self.asked == [self.page.as_uri()]
        assert self.said == []
        self.context.close()


def looks(box: Any) -> tuple[int, int]:
    """Yaw and pitch, as the viewer says them."""
    text = box.locator(".where").text_content(timeout=10_000)
    yaw, pitch = re.findall(r"[−\d]+(?=°)", text)
    return int(yaw.replace("−", "-")), int(pitch.replace("−", "-"))


def until(tab: Any, box: Any, wanted: Any) -> tuple[int, int]:
    for _ in range(100):
        if box.locator(".where").count() and wanted(looks(box)):
            break
        tab.wait_for_timeout(100)
    return looks(box)


@pytest.mark.browser
@pytest.mark.parametrize(("name", "width"), [("report", 1280), ("comparison", 1280), ("comparison", 390)])
def test_mouse_and_keys_turn_a_panorama(webgl: Any, pages: dict[str, Path], name: str, width: int) -> None:
    opened = Tab(webgl, pages[name], viewport={"width": width, "height": 900})
    tab = opened.open()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator(".pano").first
    box.locator(".turn").focus()
    tab.keyboard.press("Enter")
    assert until(tab, box, lambda at: True) == (90, 0), "it begins in the view that was worth most"
    place = box.bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x - 80, y + 40, steps=4)
    tab.mouse.up()
    dragged = until(tab, box, lambda at: at[0] > 95 and at[1] > 3)
    assert dragged[0] > 95
    assert dragged[1] > 3
    box.locator(".stage").focus()
    tab.keyboard.down("ArrowLeft")
    assert until(tab, box, lambda at: at[0] < dragged[0] - 2)[0] < dragged[0] - 2
    tab.keyboard.up("ArrowLeft")
    tab.keyboard.press("Escape")
    assert box.locator("canvas").count() == 0
    assert tab.evaluate("document.activeElement.className") == "turn"
    opened.close()


@pytest.mark.browser
def test_a_finger_turns_it_and_a_view_is_turned_to(webgl: Any, pages: dict[str, Path]) -> None:
    opened = Tab(webgl, pages["comparison"], viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    tab = opened.open()
    box = tab.locator(".pano").first
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    tab.touchscreen.tap(place["x"] + place["width"] * 0.25, place["y"] + place["height"] / 2)
    at = until(tab, box, lambda at: True)
    assert at[0] == pytest.approx(-90, abs=2), "a quarter from the left"
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    session = opened.context.new_cdp_session(tab)
    for kind, shift in (("touchStart", 0), ("touchMove", 20), ("touchMove", 60), ("touchMove", 90), ("touchEnd", None)):
        touches = [] if shift is None else [{"x": x + shift, "y": y}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
        tab.wait_for_timeout(40)
    assert until(tab, box, lambda now: now[0] < at[0] - 5)[0] < at[0] - 5
    tab.locator("button.view", has_text="+45°").first.click()
    assert until(tab, box, lambda now: abs(now[0] - 45) < 2)[0] == pytest.approx(45, abs=2)
    opened.close()


SMALL = """
header, section > :not(.cards), section:not(#split-1), .card > :last-child, .views { display: none !important }
.cards { grid-template-columns: repeat(4, 1fr) !important }
"""
"""Panoramas alone, so that a dozen stand on one screen."""


@pytest.mark.browser
def test_few_viewers_live_at_once(webgl: Any, pages: dict[str, Path]) -> None:
    """A browser gives up old WebGL contexts, with an error, when a page asks for too many."""
    opened = Tab(webgl, pages["report"], viewport={"width": 800, "height": 600})
    tab = opened.open()
    tab.add_style_tag(content=SMALL)
    boxes = tab.locator(".pano")
    for number in range(7):
        boxes.nth(number).locator(".turn").focus()
        tab.keyboard.press("Enter")
        until(tab, boxes.nth(number), lambda at: True)
    assert tab.locator(".pano canvas").count() == 4
    tab.add_style_tag(content="main { padding-top: 2000px !important }")  # away from the screen
    canvases = tab.locator(".pano canvas")
    for _ in range(100):
        if canvases.count() == 0:
            break
        tab.wait_for_timeout(100)
    assert canvases.count() == 0
    opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("lacking", ["WebGL", "JavaScript"])
def test_the_flat_picture_needs_no_webgl_and_no_script(webgl: Any, pages: dict[str, Path], lacking: str) -> None:
    opened = Tab(webgl, pages["comparison"], viewport={"width": 800, "height": 900}, java_script_enabled=lacking != "JavaScript")
    opened.context.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    tab = opened.open()
    assert not tab.locator(".turn").first.is_visible()
    box = tab.locator(".pano svg").first
    box.scroll_into_view_if_needed()
    import io

    colours = Image.open(io.BytesIO(box.screenshot())).convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 50, "the picture is there"
    opened.close()
