"""The page of a task of numbers: charts, intervals, maps of stations, patches drawn from their store, and what is said where they are gone."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from eyegraft.report import write_report
from eyegraft.report.number_charts import _steps, hexagons, panels_of
from eyegraft.report.number_view import levels_of, shelves_of
from eyegraft.report.numbers import Numbers, Station, levels, read_numbers, tenths
from eyegraft.report.reading import Figure, read_run
from eyegraft.report.slices import Slice, in_order
from eyegraft.report.station_map import _edges, station_maps
from eyegraft.report.words import fixed

_spec = importlib.util.spec_from_file_location("report_number_folder", Path(__file__).with_name("number_folder.py"))
assert _spec is not None
assert _spec.loader is not None
folders = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = folders
_spec.loader.exec_module(folders)

SPLIT = "test_new_station"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = folders.make_number_run(tmp_path_factory.mktemp("numbers") / "run")
    return folder


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def copied(run_dir: Path, folder: Path) -> Path:
    """The run and its store, without the split of validation, which doubles the time."""
    shutil.copytree(run_dir, folder / "run")
    shutil.copytree(run_dir.with_name(f"{run_dir.name}-patches"), folder / "run-patches")
    for path in (folder / "run" / "evaluation").glob("val*"):
        path.unlink()
    return folder / "run"


def text_of(html: str) -> str:
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(html: str, number: int = 1) -> str:
    return html.split(f'<section id="split-{number}">')[1].split("</section>")[0]


def cards(html: str) -> list[list[str]]:
    """Of the first split: texts of the cards of each shelf."""
    shelves = re.split(r'<h4 class="outcome"', section(html))[1:]
    return [[text_of(card) for card in re.findall(r'<article class="card number">(.*?)</article>', shelf, re.DOTALL)] for shelf in shelves]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "evaluation" / f"{SPLIT}.samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def change(folder: Path, with_rows: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = rows_of(folder)
    with_rows(rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "evaluation" / f"{SPLIT}.samples.jsonl").write_text(text, encoding="utf-8")


def entry_of(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "evaluation" / f"{SPLIT}.json").read_text(encoding="utf-8"))
    return entry


def error_of(row: dict[str, Any]) -> float:
    return float(row["answers"]["model"]["value"] - float(row["references"][0]))


def test_says_what_was_found(run_dir: Path, html: str) -> None:
    entry, words = entry_of(run_dir), text_of(html)
    model = entry["systems"]["model"]
    errors = np.abs([error_of(row) for row in rows_of(run_dir)])
    half, most, nearly = (f"{value:.1f}" for value in np.quantile(errors, (0.5, 0.9, 0.99)))
    for expected in (
        "Simulated data. What stands here was measured on data that a simulation made",
        f"{SPLIT} · RMSE (K), lower is better · 600 samples {model['rmse_kelvin']['value']:.3f}",
        "Noise floor 0.850 K",
        "best baseline, gradient boosting",
        "It uses the picture: better than with a blank one",
        "It uses time and place: better than without",
        "Time and place help.",
        "Climatology: the mean course of year and day",
        f"Half of the errors are within {half} K, nine of ten within {most}, 99 of 100 within {nearly}; the largest is {errors.max():.1f}.",
        "Their widths come from the errors on 400 validation samples",
        f"in {100 * model['interval_coverage']['value']:.1f}".removesuffix(".0"),
        "48 stations, the largest RMSE first.",
        "RMSE (K) by land cover",
        "the 24 samples that it answers worst",
        "춘천",
        folders.INJECTION,
    ):
        assert expected in words, expected


def test_the_largest_errors_then_random_ones_then_the_smallest(run_dir: Path, html: str) -> None:
    rows = sorted(rows_of(run_dir), key=lambda row: -abs(error_of(row)))
    worst, random, best = cards(html)
    assert [len(worst), len(random), len(best)] == [24, 6, 6]
    for text, row in zip(worst, rows, strict=False):
        truth, answer = float(row["references"][0]), row["answers"]["model"]
        assert f"{fixed(error_of(row), 1, signed=True)} K" in text
        assert f"truth {truth:.1f} K answer {answer['value']:.1f} K {answer['interval'][0]:.1f} to {answer['interval'][1]:.1f}" in text
        said = row["answers"]["climatology"]["value"]
        assert f"climatology {said:.1f} {fixed(said - truth, 1, signed=True)}" in text
        assert f"station {row['meta']['station']}" in text
        assert row["meta"]["land_cover"] in text
        assert ("night" in text) == (row["meta"]["sza_deg"] >= 90)
        assert "blank image" not in text  # that is the model itself, and stands in its own table
        held = answer["interval"][0] <= truth <= answer["interval"][1]
        assert ("✓ inside" in text) == held
        assert ("✗ outside" in text) != held
    assert all(re.search(r"(?<![\d.])0\.0 K [✓✗]", text) for text in best)
    assert len({re.findall(r"([+−]?[\d.]+) K [✓✗]", text)[0] for text in random}) > 3


def test_patches_are_drawn_pixel_by_pixel(run_dir: Path, html: str) -> None:
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"[^>]*class="patch"', section(html))
    assert len(found) > 36  # some by day have a picture of the visible bands too
    pictures = [(Image.open(io.BytesIO(base64.b64decode(data))), caption) for data, caption in found]
    assert {picture.size for picture, _ in pictures} == {(9, 9)}
    assert {caption.split(" ")[0] for _, caption in pictures} == {"IR105", "visible"}
    assert sum(len(data) for data, _ in found) < 60_000
    rows = sorted(rows_of(run_dir), key=lambda row: -abs(error_of(row)))
    first = folders.PatchStore(Path(rows[0]["image"]))
    heat = first.read(np.array([rows[0]["record"]]), ["x"])["x"][0, 6]
    drawn = np.asarray(pictures[0][0].convert("L"), dtype=float)
    assert pictures[0][1] == f"IR105 {np.nanmin(heat):.0f}–{np.nanmax(heat):.0f} K"
    inside = heat > 230  # below, colours are at their end
    if inside.sum() > 2:
        assert np.corrcoef(heat[inside], drawn[inside])[0, 1] > 0.9
    first.close()


def test_pixels_that_were_not_measured_are_clear(run_dir: Path) -> None:
    rows = rows_of(run_dir)
    rows[17]["answers"]["model"]["value"] += 90  # every 17th record lacks three pixels of its first row
    heat = shelves_of(read_numbers(rows), run_dir)[0].cards[0].pictures[0]
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat.uri.partition(",")[2]))))[..., 3]
    assert (alpha == 0).sum() == 3
    assert (alpha[0, :3] == 0).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder, rows: shutil.rmtree(folder), "patch store gone"),
        (lambda folder, rows: (folder / "manifest.json").unlink(), "patch store unreadable"),
        (lambda folder, rows: (folder / "shard-00000" / "x.npy").write_bytes(b"torn"), "patch store unreadable"),
        (lambda folder, rows: [row.update(record=10**9) for row in rows], "not in the patch store"),
        (lambda folder, rows: [row.update(record=(row["record"] + 1) % 600) for row in rows], "patch store changed since"),
    ],
)
def test_a_store_that_is_gone_is_a_note(
    run_dir: Path, tmp_path: Path, damage: Callable[[Path, list[dict[str, Any]]], Any], said: str
) -> None:
    store = tmp_path / SPLIT
    shutil.copytree(run_dir.with_name(f"{run_dir.name}-patches") / SPLIT, store)
    rows = rows_of(run_dir)
    for row in rows:
        row["image"] = str(store)
    damage(store, rows)
    for card in shelves_of(read_numbers(rows), run_dir)[0].cards:
        assert card.pictures == []
        assert card.no_picture == said
        assert card.answer


def test_pictures_in_files_and_rows_without_anything(run_dir: Path, tmp_path: Path) -> None:
    """A task of numbers need not be of patches: the picture is shown, or words, and further columns."""
    folder = copied(run_dir, tmp_path)
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "house.png")

    def of_files(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row |= {"image": str(tmp_path / "house.png"), "text": "three rooms", "meta": {"district": "north"}, "group": None}
            del row["record"]
        rows[3] |= {"answers": {"model": None}}
        rows[4] |= {"references": ["no number"]}

    change(folder, of_files)
    entry = entry_of(folder)
    for name in ("stations", "intervals"):
        del entry["details"][name]
    for name in ("simulated", "noise_floor", "slices"):
        del entry[name]
    (folder / "evaluation" / f"{SPLIT}.json").write_text(json.dumps(entry), encoding="utf-8")
    html = write_report(folder).read_text(encoding="utf-8")
    words = text_of(html)
    assert "data:image/webp;base64" in html
    assert "district: north" in words
    assert "three rooms" in words
    assert "2 rows without a readable number left out." in words
    for absent in ("Simulated data", "Noise floor", "By hour", "the largest RMSE first", "Pictures are the patches", "hold the truth"):
        assert absent not in words, absent


def test_the_map_has_every_station_in_its_place(run_dir: Path, html: str) -> None:
    stations = entry_of(run_dir)["details"]["stations"]
    maps = re.findall(r'<svg class="stations" viewBox[^>]*role="img".*?</svg>', section(html), re.DOTALL)
    assert len(maps) == 4  # RMSE and bias, for wide pages and for narrow ones
    for drawn in maps:
        assert len(re.findall(r"<title>", drawn)) == len(stations)
        for label in ("36°N", "128°E"):
            assert f">{label}</text>" in drawn
        assert 'href="data:image/png;base64,' in drawn  # the land of Korea
    circles = re.findall(r'<circle class="s\d[^"]*" cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+"><title>([^<]*)</title>', maps[0])
    shown = {unescape(title).split(": RMSE")[0]: (float(x), float(y)) for x, y, title in circles}
    assert set(shown) == {station["station"] for station in stations}
    places = np.array([shown[station["station"]] for station in stations])
    lat, lon = (np.array([station[name] for station in stations]) for name in ("lat", "lon"))
    assert np.corrcoef(places[:, 0], lon)[0, 1] > 0.99999
    assert np.corrcoef(places[:, 1], -lat)[0, 1] > 0.99999
    per_lon, per_lat = np.ptp(places[:, 0]) / np.ptp(lon), np.ptp(places[:, 1]) / np.ptp(lat)
    assert per_lon / per_lat == pytest.approx(math.cos(math.radians((lat.min() + lat.max()) / 2)), rel=0.01)
    certain = [station for station in stations if station["n"] >= 10]
    for drawn, column in ((maps[0], "rmse_kelvin"), (maps[2], "bias_kelvin")):
        worst = max(certain, key=lambda station: abs(station[column]))["station"]
        assert next(unescape(name) for name in re.findall(r'class="name"[^>]*>([^<]*)<', drawn)).rstrip("…") == worst[:15]


def _station(number: int, lat: float, lon: float, rmse: float, bias: float = 0.0) -> Station:
    return Station(f"s{number}", lat, lon, 100, rmse, bias, rmse)


def test_a_station_far_off_leaves_the_others_apart() -> None:
    assert _edges([1.0, 1.1, 1.3, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 9.0]) == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert _edges([0.5, 0.5]) == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert _edges([0.0, 0.0]) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_too_warm_and_too_cold_differ_in_shape() -> None:
    stations = [_station(0, 45.1, 14.0, 2, 2.0), _station(1, 45.3, 14.4, 2, -2.0), _station(2, 45.2, 14.2, 1, 0.0)]
    rmse, bias = station_maps(stations, "K")
    assert len(re.findall(r'<path class="p2" d="M[\d.]+,[\d.]+l[\d.]+,[\d.]+', bias.wide)) == 1  # downwards from its tip
    assert len(re.findall(r'<path class="n2" d="M[\d.]+,[\d.]+l[\d.]+,-[\d.]+', bias.wide)) == 1
    assert len(re.findall(r'<circle class="z"', bias.wide)) == 1
    assert "<image" not in rmse.wide  # the land mask that ships does not reach there
    assert "45.2°N" in rmse.wide


def test_a_map_over_the_antimeridian_goes_the_short_way() -> None:
    drawn = str(station_maps([_station(0, -17, 178.0, 1), _station(1, -18, -179.0, 2)], "K")[0].wide)
    assert "180°" in drawn
    assert re.findall(r">(\d+°W)<", drawn)
    assert "0°<" not in drawn.replace("180°<", "")


def test_one_place_or_none_gives_no_map() -> None:
    assert station_maps([_station(0, 45, 14, 1)], "K") == []
    assert station_maps([Station("a", None, None, 5, 1, 0, 1), Station("b", 95.0, 10.0, 5, 1, 0, 1)], "K") == []


def numbers_of(truth: Any, answer: Any, half: float | None = None) -> Numbers:
    rows = [
        {
            "references": [repr(float(a))],
            "answers": {"model": {"value": float(b), "interval": None if half is None else [b - half, b + half]}},
        }
        for a, b in zip(truth, answer, strict=True)
    ]
    return read_numbers(rows)


def test_hexagons_hold_every_sample_once_at_its_place() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(280, 8, 20_000)
    answer = truth + draw.normal(0, 2, len(truth))
    bins = hexagons(truth, answer)
    assert sum(count for _, _, count in bins.cells) == 20_000
    assert len(bins.cells) < 700
    width = (bins.high - bins.low) / 36
    x, y, count = np.array(bins.cells).T
    assert np.average(x, weights=count) == pytest.approx(truth.mean(), abs=width / 10)
    assert np.average(y, weights=count) == pytest.approx(answer.mean(), abs=width / 10)
    apart = np.hypot(x[:, None] - x, y[:, None] - y) + 1e9 * np.eye(len(x))
    assert apart.min() == pytest.approx(width, rel=1e-4)  # a honeycomb: the six neighbours of a cell are as far as one column is wide
    steps = _steps(int(count.max()))
    assert steps == sorted(set(steps))
    assert steps[0] == 1
    assert len(hexagons(np.full(3, 5.0), np.full(3, 5.0)).cells) == 1


def test_tenths_show_answers_that_are_drawn_towards_the_mean() -> None:
    truth = np.linspace(260, 300, 1000)
    found = tenths(numbers_of(truth, 280 + 0.8 * (truth - 280)))
    assert [tenth.count for tenth in found] == [100] * 10
    assert found[0].bias == pytest.approx(0.2 * (280 - truth[:100].mean()))
    assert [tenth.bias > 0 for tenth in found] == [True] * 5 + [False] * 5
    assert all(tenth.p10 <= tenth.p25 <= tenth.p75 <= tenth.p90 for tenth in found)
    assert tenths(numbers_of([1.0, 2.0], [1.0, 2.0])) == []


def test_levels_come_from_the_errors_of_validation() -> None:
    draw = np.random.default_rng(1)
    truth = draw.normal(0, 5, 4000)
    val, test = numbers_of(truth, truth + draw.normal(0, 1, 4000)), numbers_of(truth, truth + draw.normal(0, 1, 4000), half=1.645)
    found = levels(test, 0.9, val)
    assert [level.nominal for level in found] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    for level in found:
        assert level.measured == pytest.approx(level.nominal, abs=0.03)
    assert [level.in_use for level in found] == [False] * 4 + [True, False]
    assert found[4].width == pytest.approx(3.29)
    harder = levels(numbers_of(truth, truth + draw.normal(0, 2, 4000)), None, val)
    assert all(level.measured < level.nominal - 0.1 for level in harder)
    assert levels(val, 0.9, None) == []


def test_levels_follow_each_answers_own_spread() -> None:
    draw = np.random.default_rng(2)
    spread = draw.uniform(0.5, 4, 4000)

    def drawn() -> Numbers:
        found = numbers_of(np.zeros(4000), draw.normal(0, spread))
        return replace(found, std=spread)

    for level in levels(drawn(), None, drawn()):
        assert level.measured == pytest.approx(level.nominal, abs=0.03)
        assert level.width == pytest.approx(2 * NormalDist().inv_cdf((1 + level.nominal) / 2) * spread.mean(), rel=0.05)


def test_validation_of_another_checkpoint_says_nothing_of_levels(run_dir: Path) -> None:
    run = read_run(run_dir)
    numbers = read_numbers(run.samples[SPLIT])
    assert len(levels_of(run, SPLIT, numbers)) == 6
    run.evaluations["val"] = {**run.evaluations["val"], "checkpoint": {"sha256": "another"}}
    assert [level.in_use for level in levels_of(run, SPLIT, numbers)] == [True]
    assert [level.in_use for level in levels_of(run, "val", read_numbers(run.samples["val"]))] == [True]


def test_parts_stand_in_their_natural_order() -> None:
    def ordered(*values: str) -> list[str]:
        return [row.value for row in in_order([Slice(value, 20, False, [], "", Figure()) for value in values])]

    assert ordered("JJA", "SON", "DJF", "MAM") == ["DJF", "MAM", "JJA", "SON"]
    assert ordered("above 1000 m", "300-600 m", "0-100 m", "100-300 m", "unknown")[:4] == [
        "0-100 m",
        "100-300 m",
        "300-600 m",
        "above 1000 m",
    ]
    assert ordered("12-14 h UTC", "00-02 h UTC") == ["00-02 h UTC", "12-14 h UTC"]
    assert ordered("water", "cropland") == ["water", "cropland"]


def test_few_samples_and_equal_ones_do_not_stop_the_page(tmp_path: Path) -> None:
    folders.make_number_run(tmp_path / "run", 3, val=False)
    text = text_of(write_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "Too few samples (3) to tell it from a baseline." in text
    assert "Error against truth" not in text

    def equal(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["answers"]["model"] = {"value": float(row["references"][0]), "unit": "K", "std": None, "interval": None}

    change(tmp_path / "run", equal)
    assert "Residuals" in text_of(write_report(tmp_path / "run").read_text(encoding="utf-8"))


def test_twenty_thousand_rows_stay_small_drawings() -> None:
    draw = np.random.default_rng(3)
    truth = draw.normal(285, 9, 20_000)
    numbers = numbers_of(truth, truth + draw.standard_t(3, 20_000), half=2.0)
    panels = panels_of(numbers, tenths(numbers), levels(numbers, 0.9, numbers), None)
    assert [panel.name for panel in panels] == ["answers", "tenths", "residuals", "levels"]
    assert sum(len(panel.wide) + len(panel.narrow) for panel in panels) < 400_000
    assert [least for _, least in panels[0].shades] == sorted({least for _, least in panels[0].shades})


def test_colours_of_the_charts_have_a_dark_twin(html: str) -> None:
    style = html.split("<style>")[1].split("</style>")[0]
    colours = set(re.findall(r'(?:fill|stroke)="(#[0-9a-fA-F]{3,8})"', html))
    assert colours
    assert all(f'[fill="{colour}"]' in style for colour in colours), colours
    used = set(re.findall(r"var\((--[\w-]+)\)", style)) - {"--line", "--fill"}
    assert all(style.count(f"{name}:") == 2 for name in used), [name for name in used if style.count(f"{name}:") != 2]


def test_the_listing_names_the_largest_errors_and_every_station(run_dir: Path, html: str) -> None:
    text = (run_dir / f"{SPLIT}_report.md").read_text(encoding="utf-8")
    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {token.type for block in blocks for token in (block, *(block.children or []))}
    assert not kinds & {"html_block", "html_inline", "link_open", "strong_open", "em_open", "fence", "code_block"}
    cells = [
        "".join(part.content for part in blocks[place + 1].children or [])
        for place, token in enumerate(blocks)
        if token.type in ("td_open", "th_open")
    ]
    entry, rows = entry_of(run_dir), sorted(rows_of(run_dir), key=lambda row: -abs(error_of(row)))
    assert cells[cells.index("RMSE (K) ↓") + 1] == f"{entry['systems']['model']['rmse_kelvin']['value']:.3f}"
    assert "bias (K)" in cells  # neither way is better
    for station in entry["details"]["stations"]:
        start = cells.index(station["station"])
        assert cells[start + 1 : start + 3] == [str(station["n"]), f"{station['rmse_kelvin']:.2f}"]
    names = cells[cells.index("where and when") + 1 :]
    width = names.index(rows[1]["id"])
    assert names[::width] == [row["id"] for row in rows[:100]]
    assert names[1] == fixed(error_of(rows[0]), 1, signed=True)
    shown = " ".join(token.content for token in blocks if token.type == "inline")
    for expected in ("Simulated data", "Noise floor 0.850", "The 100 largest of 600 samples.", "split conformal prediction"):
        assert expected in shown, expected


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, run_dir: Path, html: str, width: int, scheme: str) -> None:
    target = (run_dir / "report.html").as_uri()
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
    assert max(box["x"] + box["width"] for box in boxes) <= width
    assert min(box["x"] for box in boxes) >= 0
    lettering = "[...document.querySelectorAll('.chart text')].map(text => text.getBoundingClientRect()).filter(box => box.width)"
    assert tab.evaluate(f"Math.max(...{lettering}.map(box => box.right))") <= width
    assert tab.evaluate(f"Math.min(...{lettering}.map(box => box.left))") >= 0
    assert tab.evaluate("[...document.querySelectorAll('.card')].every(card => card.scrollWidth <= card.clientWidth + 1)")
    sides = tab.evaluate("[...document.querySelectorAll('img.patch')].map(img => [img.naturalWidth, img.offsetWidth, img.offsetHeight])")
    assert len(sides) > 70
    assert {tuple(side) for side in sides} == {(9, 104, 104)}
    # a class of the map must be told from the ground and from its neighbours by its lightness alone
    shades = tab.evaluate("[0, 1, 2, 3, 4].map(n => getComputedStyle(document.querySelector(`.mapkey .s${n}`)).fill)")
    light = [sum(map(float, re.findall(r"[\d.]+", shade)[:3])) for shade in shades]
    assert light == sorted(light, reverse=scheme == "light")
    assert min(abs(a - b) for a, b in pairwise(light)) > 60
    context.close()
