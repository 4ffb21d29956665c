"""The page of a case: every map beside its texts, harmless whatever they are, and fit for a phone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import maps
from eyegraft.report import case

INJECTION = "<script>alert('x')</script><img src=\"https://example.org/x.png\" onerror=alert(1)>"
KOREAN = "남쪽에서 습한 공기가 들어온다.\n서울에 비가 온다."
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def element(image: str, **changes: Any) -> dict[str, Any]:
    plain = {"image": image, "sha256": "a" * 64, "condition": "thea", "condition_from": "given", "condition_seen": None}
    return {**plain, "caption": KOREAN, "link": INJECTION, "caption_of_case": None, **changes}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    root = tmp_path_factory.mktemp("case")
    for kind in range(3):
        maps.draw(root / "maps" / f"{kind}.gif", kind, kind)
    seen = {"name": "mcon", "probability": 0.8312}
    elements = [
        element("maps\\0.gif", caption=f"{LONG_WORD} {INJECTION}", caption_of_case=INJECTION),
        element("maps/1.gif", condition="mcon", condition_from="predicted", condition_seen=seen, link=""),
        element("maps/2.gif", condition_seen=seen, link=None),
        element("maps/gone.gif", condition=None, condition_from=None),
    ]
    asked = [{"task": "element_caption", "element": 0, "made_of": "its image", "prompt": f"{INJECTION} {LONG_WORD}", "answer": "?"}]
    left = [{"task": "summary", "why": "this stage did not learn it"}, {"task": "link", "element": 2, "why": INJECTION}]
    checkpoint = {"stage": "all", "epoch": 2, "step": 40, "path": "all/checkpoints/best", "sha256": "ab1" * 20}
    model = {"run": "r", "experiment": "w", "recipe": "w", "checkpoint": checkpoint, "seed": 0, "data": "fields", "versions": {}}
    return {
        "case": f"2018 {INJECTION}",
        "summary": {"text": KOREAN, "made_of": "the first image"},
        "summary_of_case": INJECTION,
        "elements": elements,
        "asked": asked,
        "left_out": left,
        "notices": ["A model wrote this.", INJECTION],
        "model": {**model, "decoding": {"element_caption": {"num_beams": 1}}},
    }, root


@pytest.fixture(scope="module")
def html(report: tuple[dict[str, Any], Path]) -> str:
    written, root = report
    return case.write_case_page(written, root, root / "pages" / "case.html").read_text(encoding="utf-8")


def test_every_map_stands_beside_its_texts(html: str) -> None:
    page = Page(html)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [str(picture["src"]).startswith("data:image/webp;base64,") for picture in pictures] == [True] * 3
    assert [picture["alt"] for picture in pictures] == [f"Map {number}: maps/{number - 1}.gif" for number in (1, 2, 3)]
    assert "picture missing" in page.text
    heads = re.findall(r"<h2>(.*?)</h2>", html)
    assert heads == ["thea, as given", "mcon, predicted (0.831)", "thea, as given", "class unknown", "How it came to this"]
    assert "its own classifier, which sees mcon (0.831)" in page.text
    assert page.text.count("How it bears on the summary") == 3
    assert page.text.count("(empty)") == 1
    assert KOREAN in page.text
    assert "link left out for map 3" in page.text


def test_texts_stay_texts_and_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    assert [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "link")] == ["link"]
    assert ("link", {"rel": "icon", "href": "data:,"}) in page.tags
    assert page.text.count(INJECTION) == 10, "all of them are shown, as they are"
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)
    assert "script-src" not in str(policy)


def test_maps_beyond_the_budget_are_left_out_and_said(
    report: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case, "BUDGET", 1)
    written, root = report
    text = case.write_case_page(written, root, tmp_path / "case.html").read_text(encoding="utf-8")
    assert text.count("data:image/webp") == 1
    assert text.count("picture left out") == 3


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(browser: Any, report: tuple[dict[str, Any], Path], html: str, width: int) -> None:
    target = (report[1] / "pages" / "case.html").as_uri()
    asked: list[str] = []
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.route(re.compile(r"^(?!data:)"), lambda route: (asked.append(route.request.url), route.continue_()))
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.goto(target)
    tab.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert (asked, said) == ([target], [])
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    picture, text = (tab.query_selector(f".map:first-child {name}").bounding_box() for name in ("figure", "h2"))
    beside = text["x"] >= picture["x"] + picture["width"]
    assert beside == (width == 1280)
    assert beside or text["y"] >= picture["y"] + picture["height"]
    context.close()
