"""Stages on the page: a panel a task, features before and after, and how texts changed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from eyegraft.report import write_report
from eyegraft.report.reading import Stage
from eyegraft.report.stages import MAX_TELLINGS, likeness_of, tasks_of, told_by
from report.run_folder import INJECTION, KOREAN, LONG_WORD, make_run, stage_entry

TASKS = ("element_caption", "summary", "link")


def add_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage over views, and one that learns three tasks at once."""
    stages = {"vision": stage_entry(best={"epoch": 2, "step": 20, "metric": "val_loss", "value": 1.0}), "reports": stage_entry()}
    folder: Path = make_run(tmp_path_factory.mktemp("stages") / "run", 4, stages=stages)
    views = [{"kind": "train", "epoch": 0, "step": step, "loss": 3 - step / 20} for step in range(1, 31)]
    for step, overlap in ((0, 0.31), (10, 0.5), (20, 0.777), (30, 0.6)):
        likeness = {"val_cosine_overlap": overlap, "val_cosine_apart": 0.125, "val_feature_std": 0.4 + step}
        views.append({"kind": "val", "epoch": 0, "step": step, "val_loss": 2.0, **likeness})
    add_rows(folder / "vision" / "metrics.jsonl", views)
    rows = []
    for step in range(1, 61):
        losses = {f"loss_{task}": 1 + number + 9 / step for number, task in enumerate(TASKS) if step % 2 or number}
        rows.append({"kind": "train", "epoch": step // 20, "step": step, "loss": 2.0, "learning_rate": 1e-3, **losses})
        if step % 20 == 0:
            of_tasks = {f"val_loss_{task}": 1.1 + number for number, task in enumerate(TASKS)}
            rows.append({"kind": "val", "epoch": step // 20, "step": step, "val_loss": 2.1, **of_tasks})
    add_rows(folder / "reports" / "metrics.jsonl", rows)
    texts = [
        {"epoch": epoch, "step": 20 * epoch, "id": f"{task}-1", "task": task, "prompt": KOREAN, "answer": answer, "reference": INJECTION}
        for epoch, answer in enumerate(["", INJECTION, INJECTION, f"last {LONG_WORD}"])
        for task in TASKS
    ]
    add_rows(folder / "reports" / "samples.jsonl", texts)
    return folder


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_each_task_has_a_panel(html: str) -> None:
    for title in ("element caption", "summary", "link"):
        assert len(re.findall(rf"<text[^>]*>{title}</text>", html)) == 2, "on a wide page and on a narrow one"
    assert html.count("Each task apart") == 1


def test_features_before_and_after_stand_in_a_table(html: str) -> None:
    row = html[html.index('<th scope="row">cosine overlap<') :]
    assert re.findall(r"<td>(.*?)</td>", row)[:2] == ["0.310", "0.777"], "after is the best checkpoint, not the last"
    assert "cosine apart centred" not in html, "what was not measured has no row"
    assert html.count("Before the first step") == 1


def test_texts_stay_texts_and_an_answer_that_stayed_stands_once(html: str) -> None:
    told = html[html.index('<details class="told">') :]
    told = told[: told.index("</details>")]
    assert re.findall(r"<dt>(epoch.*?)</dt>", told) == ["epoch 1", "epochs 2 to 3", "epoch 4"] * 3
    assert "<script" not in told
    assert told.count("&lt;script&gt;") == 6
    assert told.count(KOREAN) == 3
    assert "3 sampled texts" in told


def test_of_many_answers_the_first_the_last_and_some_between() -> None:
    rows = [{"epoch": epoch, "id": "a", "task": "t", "answer": f"answer {epoch}", "reference": None} for epoch in range(30)]
    (told,) = told_by(rows)
    assert len(told.answers) == MAX_TELLINGS
    assert (told.answers[0], told.answers[-1]) == (("epoch 1", "answer 0"), ("epoch 30", "answer 29"))
    (one,) = told_by(rows[:1])
    assert one.answers == [("epoch 1", "answer 0")]


def test_strange_rows_do_not_stop_the_page() -> None:
    (told,) = told_by([{"epoch": "?", "answer": {"answer": "x", "generated": "y"}}])
    assert told.answers == [("epoch 1", "x (says: y)")]
    assert tasks_of(Stage("s", {}, [{"step": 1, "loss": 1.0}], [])) == []
    assert likeness_of(Stage("s", {}, [], [{"step": 0, "val_cosine_overlap": 0.3}])) == [], "only one of the two is known"


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(browser: Any, run_dir: Path, html: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    tab = context.new_page()
    tab.goto((run_dir / "report.html").as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    drawn = [box["width"] for chart in tab.query_selector_all(".chart svg") if (box := chart.bounding_box()) and box["width"]]
    assert len(drawn) == 7, "scores, three curves, two rates, the tasks"
    assert max(drawn) <= width
    context.close()
