"""`<split>_report.md`: read by a Markdown parser, as an editor would read it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from eyegraft.report import markdown as md
from eyegraft.report import write_report
from eyegraft.report.words import probability

_spec = importlib.util.spec_from_file_location("report_listing_run_folder", Path(__file__).with_name("run_folder.py"))
assert _spec is not None
assert _spec.loader is not None
folders = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = folders
_spec.loader.exec_module(folders)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = folders.make_label_run(tmp_path_factory.mktemp("run of 한글"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(run_dir: Path) -> list[Token]:
    """Blocks and their parts, in order."""
    return parsed((run_dir / "test_report.md").read_text(encoding="utf-8"))


def parsed(text: str) -> list[Token]:
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    return [token for block in blocks for token in (block, *(block.children or []))]


def samples_of(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "evaluation" / "test.samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def shown_text(token: Token) -> str:
    """What a reader sees of an inline block."""
    return "".join(" " if part.type == "softbreak" else part.content for part in token.children or [])


def test_every_sample_stands_there_once_by_outcome(run_dir: Path, tokens: list[Token]) -> None:
    headings = [shown_text(tokens[place + 1]) for place, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h4"]
    outcomes = [heading.split(" · ")[0] for heading in headings]
    names = [heading.split(" · ")[1] for heading in headings]
    order = ["FP", "FN", "TP", "TN"]
    assert outcomes == sorted(outcomes, key=order.index)
    assert set(outcomes) == set(order)
    rows = samples_of(run_dir)
    assert sorted(names) == sorted(rows)
    for outcome, name in zip(outcomes, names, strict=True):
        assert (outcome[0] == "T") == (rows[name]["scores"]["accuracy"] == 1)
        assert (outcome[1] == "P") == (rows[name]["answers"]["model"]["label"] == "true")


def test_fields_of_a_sample(run_dir: Path, tokens: list[Token]) -> None:
    items = [shown_text(token) for token in tokens if token.type == "inline"]
    row = samples_of(run_dir)["test-0005"]
    start = items.index(f"path: {row['image']}")
    answer = row["answers"]["model"]
    assert items[start + 1 : start + 6] == [
        f"label: {row['references'][0]}",
        f"pred: {answer['label']}",
        f"prob: {probability(answer['probability'])}",
        f"text: {' '.join(row['text'].split())}",
        f"weights: image {answer['weights']['image']:.2f}, text {answer['weights']['text']:.2f}",
    ]
    assert "text: (none)" in items
    assert "path: none" in items


def test_pictures_are_found_from_the_run_folder(run_dir: Path, tokens: list[Token]) -> None:
    places = [unquote(str(token.attrs["src"])) for token in tokens if token.type == "image"]
    assert len(places) == 119  # one row has no picture
    assert not any(Path(place).is_absolute() for place in places)
    lost = [place for place in places if not (run_dir / place).is_file()]
    assert lost == ["missing [x](y).png"]
    assert "광고 사진 (1) #2 & 100%.png" in places
    assert "](광고%20사진" in (run_dir / "test_report.md").read_text(encoding="utf-8")


def test_words_of_the_data_are_never_markup(run_dir: Path, tokens: list[Token]) -> None:
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "strong_open", "em_open", "fence", "code_block"}
    row = samples_of(run_dir)["test-0002"]
    assert f"text: {row['text']}" in [shown_text(token) for token in tokens if token.type == "inline"]


def test_tables_of_scores_thresholds_and_confusion(run_dir: Path, tokens: list[Token]) -> None:
    entry = json.loads((run_dir / "evaluation" / "test.json").read_text(encoding="utf-8"))
    cells = [shown_text(tokens[place + 1]) for place, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    auroc, confusion = entry["systems"]["model"]["auroc"], entry["details"]["confusion"]
    start = cells.index("AUROC ↑")
    assert cells[start + 1 : start + 3] == [f"{auroc['value']:.3f}", f"{auroc['low']:.3f} to {auroc['high']:.3f}"]
    assert {"Without texts", "Without images", "Shuffled texts"} <= set(cells)
    assert {f"{confusion[key]} {key.upper()}" for key in ("tp", "fp", "fn", "tn")} <= set(cells)
    best = entry["details"]["chosen_on_validation"]["accuracy"]
    start = cells.index("best accuracy on validation")
    assert cells[start + 1 : start + 3] == [f"{best['threshold']:.3f}", f"{best['accuracy']:.3f}"]
    shown = {shown_text(token) for token in tokens if token.type == "inline"}
    assert entry["conclusions"]
    assert set(entry["conclusions"]) <= shown
    assert "Chosen on validation alone" in (run_dir / "test_report.md").read_text(encoding="utf-8")


def test_one_file_for_each_split_of_labels_and_none_for_texts(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path, 20, classes=("cat", "dog"), fused=False)
    folders.add_label_evaluation(tmp_path, "val", 20, classes=("cat", "dog"), fused=False)
    folders.add_evaluation(tmp_path, "captions", 3)
    write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*_report.md")) == ["test_report.md", "val_report.md"]
    assert not list(tmp_path.glob(".*"))
    text = (tmp_path / "test_report.md").read_text(encoding="utf-8")
    assert text.index("### Wrong: ") < text.index("### Right: ")
    assert "## Thresholds" not in text


def test_another_drive_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: object) -> str:
        raise ValueError("path is on mount 'D:'")

    folders.make_label_run(tmp_path, 12)
    monkeypatch.setattr("os.path.relpath", elsewhere)
    write_report(tmp_path)
    found = re.findall(r"^!\[[^\]]*\]\((.*)\)$", (tmp_path / "test_report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(found) == 11
    assert all(place.startswith("file:///") for place in found)


@pytest.mark.parametrize("value", ["a*b*", "`x` ``y``", "[a](b)", "<b>", "1 | 2", "\\*", "&amp;", "~~no~~", "$x$", "![a](b)", "__a__"])
def test_any_text_is_shown_as_it_is(value: str) -> None:
    inline = parsed(f"- text: {md.text(value)}")
    assert [shown_text(token) for token in inline if token.type == "inline"] == [f"text: {value}"]
    code = [token for token in parsed(f"- path: {md.code(value)}") if token.type == "code_inline"]
    assert [token.content for token in code] == [value]


def test_samples_of_another_folder_are_not_read(tmp_path: Path) -> None:
    folders.make_label_run(tmp_path / "run", 20)
    (tmp_path / "run" / "evaluation" / "test.samples.jsonl").rename(tmp_path / "outside.jsonl")
    path = tmp_path / "run" / "evaluation" / "test.json"
    entry = json.loads(path.read_text(encoding="utf-8")) | {"samples": "../../outside.jsonl"}
    path.write_text(json.dumps(entry), encoding="utf-8")
    write_report(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*_report.md"))
