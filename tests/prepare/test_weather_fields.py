"""Weather maps of real fields: the fields are as measured, texts say what the fields show, and what is held out is held out."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from eyegraft.composition import CONF
from eyegraft.config import Data
from eyegraft.data.samples import load_samples
from eyegraft.errors import DataError, RecipeError
from eyegraft.prepare import weather_fields as source
from eyegraft.prepare.weather_fields import Cases, Config, case_of, prepare
from eyegraft.prepare.weather_fields import fields as physics
from eyegraft.prepare.weather_fields.cases import BLOCKS, HELD_OUT_REGION, KNOWN_REGION, SPLITS, Case, planned
from eyegraft.prepare.weather_fields.conditions import CLASSES, CONDITIONS, OF_SOURCE, WEATHERQA
from eyegraft.prepare.weather_fields.draw import MAP_SIZE, MARGIN, colours_of, drawn
from eyegraft.prepare.weather_fields.facts import agreement, facts_of, sentences_of
from eyegraft.prepare.weather_fields.fields import (
    COLUMNS,
    ROWS,
    SIZE_KM,
    STEP_KM,
    Window,
    barnes,
    fields_of,
    reports,
    sampled,
    stored,
    time_of,
)
from eyegraft.prepare.weather_fields.measure import feature_of, places_of
from eyegraft.prepare.weather_fields.projection import AWIPS_211, MAP
from eyegraft.prepare.weather_fields.styles import STYLES

SMALL = Config(
    train=Cases(storm=3, stations=2, model=1),
    val=Cases(storm=2),
    test=Cases(storm=2),
    test_region=Cases(stations=2),
    windows_per_time=2,
    seed=0,
)
MIDDLE = Window("middle", 0.0, 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("weather_fields")
    facts = prepare(SMALL, place)
    assert facts["rows"] == {split: len(read(place, split)) for split in SPLITS}
    assert facts["outputs"] == sorted(set(facts["outputs"]), key=facts["outputs"].index), "each file once"
    assert all((place / name).is_file() for name in facts["outputs"])
    return place


def read(place: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def all_rows(place: Path) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in read(place, split)]


# ── tables ──


def test_the_tables_load_and_nothing_crosses_splits(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    option = yaml.safe_load((CONF / "data" / "weather_fields.yaml").read_text(encoding="utf-8"))
    data = load_samples(Data(**{**option, "base_dir": str(made)}))  # refuses groups, pictures and lookalikes in two splits
    assert not data.reasons
    for task in ("element_caption", "summary", "element_summary_link", "text_summary", "questions"):
        for split in SPLITS:
            assert len(data.of_task(task).splits[split]) == sum(row["task"] == task for row in read(made, split)), (task, split)
    sample = data.of_task("text_summary").splits["train"][0]
    assert sample.meta["captions"][0]["condition"] == sample.meta["condition"]


def test_the_options_of_the_yaml_are_those_of_the_source() -> None:
    option = yaml.safe_load((CONF / "prepare" / "weather_fields.yaml").read_text(encoding="utf-8"))
    assert option.pop("kind") == "weather_fields"
    assert Config(**option) == Config()


def test_a_caption_has_four_sentences_and_the_link_is_its_last(made: Path) -> None:
    rows = all_rows(made)
    captions = {(row["case"], row["condition"]): row for row in rows if row["task"] == "element_caption"}
    for row in captions.values():
        assert sentences_of(row["caption"]) == row["sentences"]
        assert len(row["sentences"]) == 4
    for row in rows:
        if row["task"] == "element_summary_link":
            assert row["caption"] == captions[row["case"], row["condition"]]["sentences"][3]
        assert row["text_source"] == "rule"


def test_every_text_states_the_facts_of_its_row(made: Path) -> None:
    stated = [row for row in all_rows(made) if row["task"] in ("element_caption", "summary", "text_summary")]
    assert len(stated) > 100
    for row in stated:
        assert facts_of(row["caption"]) == row["facts"], row["caption"]
        assert set(agreement(row["facts"], row["caption"]).values()) == {1.0}


def test_short_texts_state_the_same_facts_in_half_as_many_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.prepare.weather_fields.draw.drawn", lambda *words: b"")
    plan = planned("train", {"storm": 12, "stations": 4, "model": 2}, 2, 0)
    words = dict.fromkeys(("full", "short"), 0)
    for case in plan:
        full, short = (case_of(case, SMALL.model_copy(update={"texts": texts}))[0] for texts in words)
        assert full["concern"] == short["concern"]
        for name, record in (("full", full), ("short", short)):
            assert facts_of(record["global_summary"]) == record["concern"], record["global_summary"]
            words[name] += len(record["global_summary"].split())
        for long, brief in zip(full["elements"], short["elements"], strict=True):
            assert long["facts"] == brief["facts"] == facts_of(brief["caption"]), brief["caption"]
            assert brief["sentences"] == sentences_of(brief["caption"])
            assert len(brief["sentences"]) == 4
            words["full"] += len(long["caption"].split())
            words["short"] += len(brief["caption"].split())
    assert words["short"] < 0.6 * words["full"]


def test_the_same_cases_lie_there_in_the_layout_of_weatherqa(made: Path) -> None:
    rows = read(made, "train")
    cases = json.loads((made / "cases" / "train.json").read_text(encoding="utf-8"))
    captions = {row["image"]: row for row in rows if row["task"] == "element_caption"}
    assert sum(len(case["elements"]) for case in cases) == len(captions)
    for case in cases:
        for element in case["elements"]:
            row = captions[element["image_rel_path"]]
            assert (element["caption"], element["error"], element["type_name"]) == (row["caption"], None, row["condition"])
            assert case["global_summary"] == row["summary"]
    classes = json.loads((made / "classes.json").read_text(encoding="utf-8"))
    assert [classes[name] for name in sorted(WEATHERQA)] == list(range(20))
    assert set(CONDITIONS) <= set(classes)
    assert sorted(classes.values()) == list(range(len(CLASSES)))


def test_questions_have_four_choices_and_the_answer_is_among_them(made: Path) -> None:
    rows = [row for row in read(made, "train") if row["task"] == "questions"]
    assert {row["kind"] for row in rows} == {"area", "concern"}
    summaries = {row["case"]: row for row in read(made, "train") if row["task"] == "text_summary"}
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert row["choices"].count(row["caption"]) == 1
        assert row["caption"] in summaries[row["case"]]["caption"]
        if row["kind"] == "area":
            named = [facts_of(f"Areas affected...{choice}")["area"] for choice in row["choices"]]
            assert len({name for names in named for name in names}) == sum(map(len, named)), "no state stands in two choices"
    test = json.loads((made / "questions" / "train.json").read_text(encoding="utf-8"))
    for sample in test["samples"]:
        answer = next(row["caption"] for row in rows if row["case"] == sample["md_id"] and row["kind"] == "area")
        assert sample["choices"]["ABCD".index(sample["area_ans"])] == answer


def test_maps_may_be_shuffled_within_an_hour_and_type() -> None:
    config = Config()
    for split in SPLITS:
        cases = planned(split, getattr(config, split).model_dump(), config.windows_per_time, config.seed)
        alone = [case for case in cases if sum(other.hour == case.hour for other in cases) < 2]
        assert not alone, split


# ── what is held out ──


def test_blocks_of_time_have_gaps_and_the_held_out_region_touches_no_other() -> None:
    for name, hours in {"storm": 30, "stations": 4}.items():
        blocks = [[time_of(name, index) for index in BLOCKS[name][split]] for split in ("train", "val", "test")]
        for earlier, later in pairwise(blocks):
            assert min(later) - max(earlier) >= timedelta(hours=hours), name
        assert set(BLOCKS[name]["test_region"]) <= set(BLOCKS[name]["test"])
    gap = min(window.x for window in HELD_OUT_REGION) - max(window.x for window in KNOWN_REGION) - SIZE_KM[0]
    assert gap >= 150


def test_a_style_that_is_tested_is_never_learned(made: Path) -> None:
    styles = {split: {row["style"] for row in read(made, split)} for split in SPLITS}
    assert not styles["train"] & (styles["val"] | styles["test"])
    assert not styles["val"] & styles["test"]
    with pytest.raises(ValidationError, match="held out"):
        Config(test_style="paper")
    with pytest.raises(RecipeError, match=r"no drawing style 'slat'.*\n.*\n.*did you mean 'slate'"):
        prepare(Config(test_style="slat"), made)


# ── running again ──


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    torn = next(path for path in sorted(before) if path.suffix == ".png")
    torn.write_bytes(b"")
    drawn_again: list[str] = []
    real = case_of
    monkeypatch.setattr(source, "case_of", lambda case, config: (drawn_again.append(case.id), real(case, config))[1])
    prepare(SMALL, made)
    assert drawn_again == [torn.stem]
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_another_configuration_leaves_no_old_picture_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    few = Config(train=Cases(storm=1), val=Cases(), test=Cases(), test_region=Cases(), seed=0, workers=1)
    other = few.model_copy(update={"seed": 1})
    ids = [planned("train", {"storm": 1}, 3, seed)[0].id for seed in (0, 1)]
    assert ids[0] != ids[1]
    prepare(few, tmp_path)
    prepare(other, tmp_path)
    assert {path.stem for path in (tmp_path / "images").rglob("*.png")} == {ids[1]}
    (tmp_path / source.PLAN).unlink()
    with pytest.raises(DataError, match=r"files without \.plan\.json"):
        prepare(few, tmp_path)


def test_a_case_whose_field_is_missing_is_left_out_and_counted() -> None:
    missing = next(index for index in range(64) if np.isnan(stored()["storm/north_ms"][index]).all())
    record, pictures = case_of(Case("storm", missing, MIDDLE, "train"), SMALL)
    assert (record["elements"], record["left_out"], pictures) == ([], [source.NO_CASE], {})


# ── fields ──


def test_the_projection_goes_there_and_back_and_knows_the_corner_of_grid_211() -> None:
    lon, lat = np.array([-120.0, -96.0, -75.5]), np.array([47.0, 38.5, 25.0])
    for place in (MAP, AWIPS_211):
        back = place.to_degrees(*place.to_km(lon, lat))
        assert np.allclose(back, (lon, lat))
    x, y = AWIPS_211.to_km(226.541 - 360, 12.19)
    corner = AWIPS_211.to_degrees(x + 92 * 81.271, y + 64 * 81.271)
    assert np.allclose(corner, (-49.385, 57.290), atol=0.02), "NCEP gives 57.290 N, 49.385 W"
    east, north = MAP.to_earth(*MAP.to_map(3.0, -4.0, -120.0), -120.0)
    assert np.allclose((east, north), (3.0, -4.0))


def test_humidity_is_that_of_tables() -> None:
    warm, dew, pressure = np.array([30.0]), np.array([20.0]), np.array([1000.0])
    assert physics.vapour_hpa(np.array([0.0]))[0] == pytest.approx(6.112)
    assert physics.mixing_ratio_gkg(dew, pressure)[0] == pytest.approx(14.9, abs=0.1)
    assert physics.theta_e_k(warm, dew, pressure)[0] == pytest.approx(347.6, abs=1.0)
    assert physics.wet_bulb_c(warm, dew, pressure)[0] == pytest.approx(22.9, abs=0.3)
    assert physics.wet_bulb_c(dew, dew, pressure)[0] == pytest.approx(20.0, abs=0.01), "saturated air"


def test_advection_of_an_even_slope_is_wind_times_slope() -> None:
    x, y = MIDDLE.nodes()
    wind = np.full((ROWS, COLUMNS), 10.0)
    assert np.allclose(physics._advection(0.02 * x, wind, 0 * wind), -10 * 0.02 / 1000)
    assert np.allclose(physics._advection(0.02 * y, 0 * wind, wind), -10 * 0.02 / 1000), "y grows northward, rows run southward"
    assert np.allclose(physics._divergence(x * 1e-3, y * 1e-3), 2e-6)
    assert np.allclose(physics.slope(0.02 * x), 2.0), "in 100 km"


def test_sampling_is_exact_on_slopes_and_keeps_what_is_unknown_unknown() -> None:
    rows, columns = np.meshgrid(np.linspace(1, 6, 11), np.linspace(1, 7, 13), indexing="ij")
    field = np.add.outer(2.0 * np.arange(9), -3.0 * np.arange(10))
    assert np.allclose(sampled(field, rows, columns), 2 * rows - 3 * columns)
    field[4, 4] = np.nan
    assert np.isnan(sampled(field, np.array([4.5]), np.array([4.5]))[0])
    assert np.isnan(sampled(field, np.array([-5.0]), np.array([2.0]))[0])


def test_station_analysis_follows_the_stations_and_drops_a_false_report() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-1100, 1100, 900), generator.uniform(-900, 900, 900)
    truth = 15 - 0.01 * y + 4 * np.sin(x / 400)
    values = truth + generator.normal(0, 0.3, len(x))
    place = int(np.argmin(x**2 + y**2))
    values[place] += 40
    field = barnes(x, y, values, MIDDLE)
    node_x, node_y = MIDDLE.nodes()
    rest = field - (15 - 0.01 * node_y + 4 * np.sin(node_x / 400))
    assert np.sqrt(np.mean(rest**2)) < 0.5
    assert np.abs(rest).max() < 2.5, "40 degrees too warm, and no trace of it"
    west = x < 0
    assert np.isnan(barnes(x[west], y[west], values[west], MIDDLE)[:, -10:]).all()


def test_packaged_fields_are_physical() -> None:
    for name, index in (("stations", 19), ("storm", 30), ("model", 0)):
        fields = fields_of(name, index, KNOWN_REGION[6])
        assert 940 < np.nanmin(fields["pressure_hpa"]) < np.nanmax(fields["pressure_hpa"]) < 1060
        assert -50 < np.nanmin(fields["temperature_c"]) < np.nanmax(fields["temperature_c"]) < 40
        assert np.nanmax(fields["speed_ms"]) < 40
        assert all(CONDITIONS[condition].fill in fields for condition in OF_SOURCE[name] if CONDITIONS[condition].fill)
    x, _, temperatures = reports(12, "temperature_c")
    assert len(x) > 800
    assert -45 < temperatures.min() < temperatures.max() < 45


# ── facts ──


@pytest.mark.parametrize(
    ("across", "down", "place"), [(0.9, 0.1, "northeast"), (0.5, 0.5, "center"), (0.1, 0.6, "west"), (0.5, 0.95, "south")]
)
@pytest.mark.parametrize(("depth", "sign"), [(-20.0, "low"), (20.0, "high")])
def test_the_place_and_sign_of_a_feature_are_those_of_the_field(across: float, down: float, place: str, depth: float, sign: str) -> None:
    rows, columns = np.indices((ROWS, COLUMNS))
    bump = np.exp(-(((rows - down * ROWS) / 8) ** 2) - ((columns - across * COLUMNS) / 8) ** 2)
    fields = {"pressure_hpa": 1010 + depth * bump, "wind_x": np.full((ROWS, COLUMNS), 5.0), "wind_y": np.full((ROWS, COLUMNS), 5.0)}
    found = feature_of(CONDITIONS["pmsl"], fields, MIDDLE)
    assert (found.place, found.sign, found.level, found.flow) == (place, sign, "strong", "southwest")
    assert found.value == f"{1010 + 0.98 * depth:.0f} hPa"


def test_places_are_named() -> None:
    lon, lat = (
        np.array([-98.5, -84.4, -90.0, -72.0, -76.0, -125.5, -100.0, -102.0]),
        np.array([38.5, 33.7, 27.5, 34.0, 46.5, 38.0, 50.5, 26.0]),
    )
    names = ["Kansas", "Georgia", "the Gulf of Mexico", "the Atlantic", "Canada", "the Pacific", "Canada", "Mexico"]
    assert places_of(lon, lat) == names


def test_facts_are_read_from_free_wording() -> None:
    text = (
        "The map shows 2-hour pressure change. Sharp drops appear in the northwestern part, over North Dakota, with a southerly wind. "
        "A low is near. This backs the idea of falling pressure."
    )
    expected = {
        "variable": "pchg", "place": "northwest", "over": "North Dakota", "sign": "falls", "level": "strong", "flow": "south",
        "relation": "supports", "concern": "falling pressure",
    }  # fmt: skip
    assert facts_of(text) == expected
    assert facts_of("") == {}
    wrong = agreement({"variable": "pchg", "place": "south", "sign": "rises", "flow": "north"}, text)
    assert wrong == {"variable": 1.0, "place": 0.0, "sign": 0.0, "flow": 0.0}
    summary = (
        "Areas affected...portions of Kansas, Iowa and Texas Concerning...strong wind Probability of impact...60 percent SUMMARY...Wind."
    )
    assert agreement({"area": ["Iowa", "Ohio"], "percent": 60, "concern": "quiet weather"}, summary) == {
        "area": 0.25,
        "percent": 1.0,
        "concern": 0.0,
    }


# ── pictures ──


def test_a_map_is_filled_with_the_colours_of_its_values() -> None:
    _, y = MIDDLE.nodes()
    fields = {"temperature_c": 7 + y / 40, "wind_x": np.zeros_like(y), "wind_y": np.zeros_like(y)}
    style = STYLES["paper"]
    content = drawn(CONDITIONS["ltmp"], fields, MIDDLE, style, time_of("storm", 4), None)
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))[MARGIN : MARGIN + MAP_SIZE[1], MARGIN : MARGIN + MAP_SIZE[0]]
    colours = colours_of(CONDITIONS["ltmp"], style)
    for row in (20, 175, 335):
        value = 7 + (ROWS / 2 * STEP_KM - row * 3) / 40
        wanted = np.array(colours[int(np.digitize(value, CONDITIONS["ltmp"].levels))])
        near = np.abs(pixels[row].astype(int) - wanted).max(1) < 12  # colours are few
        assert near.mean() > 0.5, (row, value)


def test_calm_is_a_ring_and_unknown_ground_is_grey() -> None:
    field = np.full((ROWS, COLUMNS), 1000.0)
    field[:, :30] = np.nan
    still = np.where(np.isnan(field), np.nan, 0.0)
    content = drawn(
        CONDITIONS["pmsl"],
        {"pressure_hpa": field, "wind_x": still, "wind_y": still},
        Window("sea", -9000, 0),
        STYLES["paper"],
        time_of("storm", 0),
        None,
    )
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))[MARGIN : MARGIN + MAP_SIZE[1], MARGIN : MARGIN + MAP_SIZE[0]].astype(int)
    left, right = pixels[:, :190].reshape(-1, 3), pixels[:, 205:].reshape(-1, 3)
    assert np.ptp(left, axis=0).max() < 8, "no barb where nothing is known"
    assert np.abs(left.mean(0) - 209).max() < 8
    barbs = np.abs(right - np.array(STYLES["paper"].barb)).max(1) < 25
    assert 200 < barbs.sum() < 2000


def test_every_kind_of_map_can_be_drawn_in_every_style() -> None:
    fields = {name: fields_of(name, index, KNOWN_REGION[6]) for name, index in (("stations", 21), ("storm", 30), ("model", 0))}
    kinds = {condition: name for name, conditions in OF_SOURCE.items() for condition in conditions}
    sizes = set()
    for number, (condition, name) in enumerate(sorted(kinds.items())):
        style = STYLES[sorted(STYLES)[number % len(STYLES)]]
        content = drawn(CONDITIONS[condition], fields[name], KNOWN_REGION[6], style, time_of(name, 0), 21 if name == "stations" else None)
        with Image.open(io.BytesIO(content)) as image:
            assert image.mode == "P"
            assert len(image.convert("RGB").getcolors(4096) or []) > 8, condition
            sizes.add(image.size)
    assert sizes == {(488, 416), (534, 386)}
