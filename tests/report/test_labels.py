"""The page of a label task: errors first, what validation chose, calibration, what each input is worth, gates, slices."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from eyegraft.report import write_report
from eyegraft.report.labels import kind_of, read_answer
from eyegraft.report.words import probability

_spec = importlib.util.spec_from_file_location("report_label_run_folder", Path(__file__).with_name("run_folder.py"))
assert _spec is not None
assert _spec.loader is not None
folders = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = folders
_spec.loader.exec_module(folders)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = folders.make_label_run(tmp_path_factory.mktemp("label-run"))
    return folder


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def text_of(html: str) -> str:
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def cards(html: str) -> list[tuple[str, str]]:
    """(outcome, text) of every card, in the order of the page."""
    found = re.findall(r'<article class="card" data-outcome="([^"]+)">(.*?)</article>', html, flags=re.DOTALL)
    return [(outcome, text_of(inside)) for outcome, inside in found]


def evaluation(folder: Path, split: str = "test") -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "evaluation" / f"{split}.json").read_text(encoding="utf-8"))
    return entry


def test_cards_stand_by_outcome_and_the_most_confident_errors_first(run_dir: Path, html: str) -> None:
    outcomes = [outcome for outcome, _ in cards(html)]
    confusion = evaluation(run_dir)["details"]["confusion"]
    capped = {key.upper(): min(number, 60) for key, number in confusion.items()}  # 240 cards over four outcomes
    assert outcomes == [outcome for outcome in ("FP", "FN", "TP", "TN") for _ in range(capped[outcome])]
    assert min(capped.values()) > 2
    for outcome, falling in (("FP", True), ("FN", False), ("TP", False), ("TN", True)):
        said = [float(re.findall(r"p\(true\) [<>]?([\d.]+)", text)[0]) for found, text in cards(html) if found == outcome]
        assert said == sorted(said, reverse=falling), outcome
    assert f"{confusion['fp']} False positives called true, labelled false {confusion['fn']} False negatives" in text_of(html)


def test_a_card_holds_label_answer_words_and_gate(run_dir: Path, html: str) -> None:
    shown = {text.rsplit(" ", 1)[1]: (outcome, text) for outcome, text in cards(html)}
    lines = (run_dir / "evaluation" / "test.samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["id"] in shown]
    assert len(rows) > 100
    for row in rows:
        outcome, text = shown[row["id"]]
        answer = row["answers"]["model"]
        assert outcome == ("T" if row["scores"]["accuracy"] else "F") + ("P" if answer["label"] == "true" else "N")
        assert f"{answer['label']} p(true) " in text
        assert f"Label: {row['references'][0]}" in text
        assert (" ".join(row["text"].split()) or "no text") in text
        weights = answer["weights"]
        assert f"image {weights['image']:.2f} text {weights['text']:.2f}" in text
        assert f"without texts: p(true) {probability(row['answers']['absent_text']['probability'])}" in text
    assert sum("no picture" in text or "picture missing" in text for _, text in cards(html)) == 2


def test_says_what_was_found(run_dir: Path, html: str) -> None:
    entry, words = evaluation(run_dir), text_of(html)
    lead = entry["differences"]["absent_text"]["auroc"]
    calibration = entry["details"]["calibration"]
    best = entry["details"]["chosen_on_validation"]["f1"]
    for expected in (
        f"AUROC · 120 samples {entry['systems']['model']['auroc']['value']:.3f} 95 % interval",
        f"It uses the text: better than without: lead +{lead['value']:.3f}, from +{lead['low']:.3f} to +{lead['high']:.3f}.",
        "AUROC ↑ PR AUC ↑ accuracy ↑",
        "F1 ↑ Brier ↓ ECE ↓ log loss ↓",
        "Without texts texts absent; an empty text counts as absent ▲ The texts help.",
        "Without images images absent ▲ The images help.",
        "Shuffled texts shown the text of another sample",
        "Without looking: the share of each class in training, always.",
        "Chosen on validation alone and applied to test: no threshold was tried on these samples.",
        f"best F1 on validation {best['threshold']:.3f} {best['accuracy']:.3f} {best['precision']:.3f} {best['recall']:.3f} {best['f1']:.3f} "
        f"{best['fp']} {best['fn']} {best['tp']} {best['tn']}",
        "set in the recipe in use 0.500",
        f"The temperature {calibration['temperature']:.3f} was chosen on validation",
        "By hand",
        "(empty) 40",
        "웹툰 6 too few to tell",
        folders.INJECTION.split("<img")[0],
    ):
        assert expected in words, expected
    assert words.count("too few to tell") == 1


def test_charts_of_calibration_and_of_the_gate(run_dir: Path, html: str) -> None:
    calibration = evaluation(run_dir)["details"]["calibration"]
    drawn = " ".join(unescape(found) for found in re.findall(r"<text[^>]*>([^<]*)</text>", html))
    assert f"as trained: ECE {calibration['ece_before']:.3f}" in drawn
    assert f"temperature {calibration['temperature']:.3f}: ECE {calibration['ece']:.3f}" in drawn
    assert "with a text: 80 samples, mean 0.3" in drawn
    assert "without a text: 40 samples, mean 0.8" in drawn
    style = html.split("<style>")[1].split("</style>")[0]
    colours = set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{3,8})"', html))
    assert all(f'[fill="{colour}"]' in style for colour in colours)


def test_several_classes_show_wrong_before_right(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path, 60, classes=("cat", "dog", "새"), fused=False)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    found, words = cards(html), text_of(html)
    outcomes = [outcome for outcome, _ in found]
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"wrong", "right"}
    certain = [float(re.findall(r"\) >?([\d.]+)", text)[0]) for outcome, text in found if outcome == "wrong"]
    assert certain == sorted(certain, reverse=True)
    assert "Most often taken for" in words
    for absent in ("Confusion", "Thresholds", "Gate:", "Without texts", "The texts help"):
        assert absent not in words


def test_several_labels_a_sample(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path, 60, classes=("cat", "dog", "새"), multi_label=True)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert [outcome for outcome, _ in cards(html)] == sorted((outcome for outcome, _ in cards(html)), reverse=True)
    assert "Label: none" in text_of(html)
    assert '<th scope="row">cat</th>' in html
    assert '<th scope="row">none</th>' not in html  # the word for a row without labels, no class
    assert "Most often taken for" not in text_of(html)
    path = tmp_path / "evaluation" / "test.samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    unanswered = next(row for row in rows if row["references"] == ["none"])
    unanswered |= {"answers": {"model": None}, "scores": {}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert '<th scope="row">none</th>' not in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_split_of_one_class_has_no_auroc_and_says_so(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path, 40)
    folders.add_label_evaluation(tmp_path, "test", 40, labels=("False",))
    assert evaluation(tmp_path)["systems"]["model"]["auroc"]["value"] is None
    words = text_of(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "test · accuracy · 40 samples" in words
    assert "–: no value, as AUROC where all labels are of one class." in words
    assert "Reading, by accuracy" in words


def test_few_samples_are_not_read(tmp_path: Path) -> None:
    words = text_of(write_report(folders.make_label_run(tmp_path, 6)).read_text(encoding="utf-8"))
    assert "Too few samples to tell." in words
    assert "The texts help" not in words


def test_the_threshold_in_use_is_marked_and_validation_is_no_test(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path, 40, threshold="f1")
    folders.add_label_evaluation(tmp_path, "val", 40, threshold="f1")
    words = text_of(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "best F1 on validation in use" in words
    assert "set in the recipe" not in words
    assert "Chosen on these very samples: the scores at these thresholds look better than they are." in words


@pytest.mark.parametrize(("by", "said"), [("f1", "default until validation chooses in use"), (0.5, "set in the recipe in use")])
def test_a_threshold_that_validation_has_not_chosen(tmp_path: Path, by: str | float, said: str) -> None:
    folders.make_label_run(tmp_path, 40, threshold=by)
    path = tmp_path / "evaluation" / "test.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    entry["details"] |= {"threshold": 0.5, "chosen_on_validation": {}}  # of a stage that has not trained to its end
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert said in text_of(write_report(tmp_path).read_text(encoding="utf-8"))


def test_a_row_without_a_readable_answer_is_shown_first(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path, 30)
    path = tmp_path / "evaluation" / "test.samples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[7] |= {"answers": {"model": None}, "scores": {}, "references": None, "text": None}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert cards(html)[0][0] == "?"
    assert "1 Not scored" in text_of(html)
    assert len(cards(html)) == 30


def test_a_large_split_shows_every_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.report.label_view.MAX_CARDS", 12)
    monkeypatch.setattr("eyegraft.report.label_view.PICTURE_BUDGET", 9_000)
    html = write_report(folders.make_label_run(tmp_path, 120)).read_text(encoding="utf-8")
    assert [outcome for outcome, _ in cards(html)] == ["FP"] * 3 + ["FN"] * 3 + ["TP"] * 3 + ["TN"] * 3
    assert "; the first 3 are shown" in html
    assert "picture left out" in cards(html)[-1][1]
    assert "picture left out" not in cards(html)[0][1]


def test_text_tasks_are_not_label_tasks() -> None:
    assert kind_of([{"answers": {"model": "a cat"}}, {"answers": None}]) is None


@pytest.mark.parametrize(
    ("answer", "references", "right", "error"),
    [
        ({"label": "true", "probability": 0.9}, ["0"], 0, 0.9),
        ({"label": "false", "probability": 0.2}, ["True"], 0, 0.8),
        ({"label": "true", "probability": 0.9}, ["1"], 1, 0.1),
        ({"label": "false", "probability": 0.2}, ["false"], 1, 0.2),
        # under a threshold of 0.95 the answer is no, though the probability is above one half
        ({"label": "false", "probability": 0.9}, ["true"], 0, 0.1),
    ],
)
def test_the_error_is_the_distance_from_the_label(answer: dict[str, Any], references: list[str], right: int, error: float) -> None:
    row = {"id": 1, "answers": {"model": answer}, "references": references, "scores": {"accuracy": right}}
    assert read_answer(row, "binary").error == pytest.approx(error)


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (0.0, "0.000"), (4e-9, "<0.001"), (0.9996, ">0.999"), (1.0, "1.000"), (None, "–")]
)
def test_probabilities(value: float | None, text: str) -> None:
    assert probability(value) == text


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
    tab.wait_for_timeout(100)
    assert asked == [target]
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [box for chart in tab.query_selector_all(".chart svg") if (box := chart.bounding_box()) and box["width"]]
    assert len(boxes) == 5  # scores, calibration, gate, loss, learning rate
    assert max(box["x"] + box["width"] for box in boxes) <= width
    gates = tab.evaluate("[...document.querySelectorAll('.gate')].map(bar => [...bar.children].map(part => part.offsetWidth))")
    assert len(gates) > 100
    assert all(len(bar) == 2 and min(bar) > 0 for bar in gates)
    tops = tab.evaluate("[...document.querySelectorAll('[data-outcome]')].map(card => card.getBoundingClientRect().top)")
    assert tops == sorted(tops)
    inside = "[...document.querySelectorAll('.card')].every(card => card.scrollWidth <= card.clientWidth + 1)"
    assert tab.evaluate(inside)
    tab.click("a[href='#split-1-tp']")
    assert abs(tab.evaluate("document.getElementById('split-1-tp').getBoundingClientRect().top")) < 60
    assert asked == [target]
    context.close()
