"""Every recipe is run from preparation to report through the real command line: its own data in small, its models in miniature."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import drawn
from cli.running import read_table, run, trained, write_table
from eyegraft.composition import CONF, load_recipe, recipe_files
from eyegraft.config import Recipe
from eyegraft.data.patch_rows import opened
from eyegraft.prepare.panoramas import Config as Panoramas
from eyegraft.prepare.panoramas import prepare as prepare_panoramas
from prepare.test_coco_llava import written as coco_and_llava
from recipes import weather_files
from recipes.test_istra import simulated

NUM_RECIPES = 13

# What turns a recipe into its twin: folders -> overrides. A new recipe needs one here, and NUM_RECIPES one more.
TWINS: dict[str, Callable[[Any], list[str]]] = {
    "ad_classifier": lambda folders: [*drawn.ad_words(folders), "train.max_steps=2"],
    "ad_classifier_small": lambda folders: [*_tiny_eye(folders), *drawn.text_words(folders)],
    "captioner_small": lambda folders: [
        *_tiny_eye(folders),
        "head=cross_attention_lm",
        f"head.model={folders.lm('llama')}",
        "head.num_layers=1",
    ],
    "demo": lambda folders: [*_tiny_eye(folders), "head=prefix_lm", f"head.model={folders.lm('llama')}"],
    "lst_stations": lambda folders: [],
    "pano_llava": lambda folders: [
        *_tiny_eye(folders),
        *(f"head.model={folders.lm('qwen2')}", "head.dtype=float32", "train.precision=32-true", "train.max_steps=2"),
        *(
            "stages.vision.objective.expander=[16]",
            "stages.vision.batch_size=4",
            "stages.vision.tune.vision_encoder.last_n=1",
            "stages.resampler.tune.vision_encoder.last_n=1",
        ),
    ],
    "pano_small": lambda folders: [
        *_tiny_eye(folders),
        *("head=prefix_lm", f"head.model={folders.lm('llama')}", "train.max_steps=2", "stages.vision.objective.expander=[16]"),
    ],
    "phi2_clip": lambda folders: [
        *_tiny_eye(folders, "clip_vit_b32", "clip"),
        *(f"head.model={folders.lm('phi')}", "head.num_layers=2", "head.quantize=none", "head.dtype=float32", "train.precision=32-true"),
    ],
    "sphere_small": lambda folders: [
        *_tiny_eye(folders),
        *(f"head.model={folders.lm('llama')}", "head.num_layers=2", "head.dtype=float32", "train.tune.head.lora.target_layers=2"),
        *("tasks.describe.overflow=truncate", "tasks.answer.overflow=truncate"),
    ],
    "ta_regression": lambda folders: ["vision_encoder=clay_tiny", "vision_encoder.checkpoint=null", "train.precision=32-true"],
    "ta_small": lambda folders: [],
    "weather_mtl": lambda folders: [*_small_maps(folders), "head.dtype=float32", "train.precision=32-true"],
    "weather_small": lambda folders: [
        *_small_maps(folders),
        *(f"stages.{stage}.{key}" for stage in ("report_warmup", "report") for key in ("max_steps=2", "batch_size=4")),
    ],
}
# Recipes that read what their user has: such files, in the folder that DATA_DIR names.
FILES: dict[str, Callable[[Path], object]] = {
    "ad_classifier": lambda place: drawn.adverts(place, {"train": 8, "val": 8, "test": 8}),
    "lst_stations": lambda place: simulated(place / "istra" / "raw"),
    "pano_llava": lambda place: prepare_panoramas(Panoramas(), place / "quic360"),
    "phi2_clip": coco_and_llava,
    "ta_regression": lambda place: _small_world(place / "gk2a"),
    "weather_mtl": weather_files.written,
}
# What makes preparing small, or names the user's files.
FEW: dict[str, list[str]] = {
    "captioner_small": ["prepare.pictures={train: 150, val: 25, test: 60}"],
    "sphere_small": ["prepare.panoramas={train: 12, val: 4, test: 4}", "prepare.width=128"],
    "ta_regression": [
        f"prepare.observations=[{', '.join(f'observations/asos_{year}.txt' for year in (2022, 2023, 2024))}]",
        "prepare.stations=stations.csv",
    ],
    "ta_small": ["prepare.scenes_per_year={train: 5, val: 3, test: 3}", "prepare.num_stations=8", "prepare.whole_scenes=0"],
    "weather_mtl": ["prepare.splits.captions={train: 0.5, val: 0.5}"],
    "weather_small": [
        *("prepare.train={storm: 2, stations: 1, model: 0}", "prepare.val={storm: 1, stations: 0}", "prepare.test={storm: 1, stations: 0}"),
        *("prepare.test_region={storm: 1, stations: 0, model: 0}", "prepare.windows_per_time=1"),
    ],
}
WEATHER_TASKS = ("element_caption", "summary", "element_summary_link")
SHORT = ("train.epochs=1", "train.batch_size=4", "num_threads=1", "evaluation.num_resamples=100", "evaluation.batch_size=8")


def _tiny_eye(folders: Any, option: str = "siglip_base", family: str = "siglip") -> list[str]:
    model = folders.vision(family)
    return [
        f"vision_encoder={option}",
        f"vision_encoder.model={model}",
        "vision_encoder.architecture=null",
        "vision_encoder.preprocessor=null",
    ]


def _small_maps(folders: Any) -> list[str]:
    """A patch perceiver, its classifier and a language model in miniature, and texts that fit its context."""
    encoder = ["image_size=32", "dim=8", "num_latents=4", "num_heads=2", "depth=2", "num_experts=2"]
    classifier = ["model=test_efficientnet", "weights=null", "pretrained=false"]
    return [
        *(f"vision_encoder.{word}" for word in encoder),
        *(f"vision_encoder.classifier.{word}" for word in classifier),
        *("head=prefix_lm", f"head.model={folders.lm('llama')}", "train.max_steps=2"),
        *(f"tasks.{task}.{key}" for task in WEATHER_TASKS for key in ("max_text_tokens=160", "max_new_tokens=16")),
    ]


def _small_world(folder: Path) -> None:
    """Scenes, records and stations as a user of GK-2A has them; simulated."""
    done = run("prepare", "recipe=ta_small", f"data.base_dir={folder}", *FEW["ta_small"], cwd=folder.parent.parent)
    assert done.returncode == 0, done.stderr
    for made in ("index", "patches"):
        shutil.rmtree(folder / made)


def names() -> list[str]:
    return sorted(path.stem for path in (CONF / "recipe").rglob("*.yaml"))


def test_no_recipe_is_left_out() -> None:
    assert names() == sorted(recipe_files()), "a recipe lies directly in conf/recipe"
    assert len(names()) == NUM_RECIPES, f"{len(names())} recipes, {NUM_RECIPES} counted here: {', '.join(names())}; count the new one"
    assert set(TWINS) == set(names()), f"without a twin: {set(names()) - set(TWINS)}; twins of nothing: {set(TWINS) - set(names())}"


@pytest.mark.parametrize("name", names())
def test_recipe_is_whole(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe.recipe == name
    assert recipe.title, "`eyegraft recipes` shows it"
    assert recipe.data.about, "reports say what the pictures are"
    assert set(recipe.evaluation.splits) <= set(recipe.data.held_out), "each evaluated split says what held out means there"
    text = (CONF / "recipe" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n# "), "the second line says in a sentence what the recipe is"


@pytest.mark.parametrize("name", names())
def test_twin_runs_from_data_to_report(name: str, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    words = [f"recipe={name}", *TWINS[name](folders), *SHORT]

    recipe = load_recipe(name)
    (tmp_path / "data").mkdir()
    if name in FILES:
        FILES[name](tmp_path / "data")
    if recipe.prepare is not None:
        prepare_in_small(recipe, tmp_path)

    looked_over = run("doctor", *words, cwd=tmp_path)
    assert looked_over.returncode == 0, looked_over.stderr
    assert "every trainable tensor got a gradient" in looked_over.stdout

    done = run("train", *words, cwd=tmp_path)
    folder = tmp_path / trained(done)
    assert ("report: " in done.stdout) == recipe.evaluation.after_training
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert facts["finished"] is True
    assert set(facts["stages"]) == set(recipe.stages)
    assert recipe.data.satellite or facts["quarantined"] == {}

    evaluated = run("evaluate", str(folder), cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    for split in recipe.evaluation.splits:
        for task, name_of_result in results_of(recipe, split).items():
            result = json.loads((folder / "evaluation" / f"{name_of_result}.json").read_text(encoding="utf-8"))
            assert result["num_samples"] == count(recipe, split, task)
            assert result["held_out"] == recipe.data.held_out[split]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert recipe.title in page

    first_result = next(iter(results_of(recipe, recipe.evaluation.splits[0]).values()))
    row = read_table(folder / "evaluation" / f"{first_result}.samples.jsonl")[0]
    if recipe.data.satellite is None:
        asked = ["--prompt", "what is it?"] if recipe.data.columns.prompt or recipe.data.columns.turns else []
        answered = run("predict", str(folder), row["image"], *asked, "--json", cwd=tmp_path)
        assert json.loads(answered.stdout)["image"] == row["image"]
    else:
        answered = run("predict", str(folder), "--patches", row["image"], "--rows", str(row["record"]), "--json", cwd=tmp_path)
        assert json.loads(answered.stdout)["answer"]["value"] == pytest.approx(row["answers"]["model"]["value"], abs=1e-3)
    if recipe.data.columns.task is not None and len(results_of(recipe, "test")) > 1:
        each_answers(recipe, folder, row["image"], tmp_path)
    elif recipe.data.columns.task is not None:
        both_answer(recipe, folder, row["image"], tmp_path)
    assert yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["recipe"] == name


def both_answer(recipe: Recipe, folder: Path, image: str, root: Path) -> None:
    """The first stage of two is tested on rows of its own, and a question may bring the answers that are allowed."""
    first = recipe.stage_names[0]
    evaluated = run("evaluate", str(folder), "--stage", first, cwd=root)
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads((folder / "evaluation" / f"test@{first}.json").read_text(encoding="utf-8"))
    assert result["num_samples"] == count(recipe, "test", next(iter(recipe.tasks_of(recipe.stage(first)))))
    answered = run("predict", str(folder), image, "--prompt", "what is it?", "--choice", "a cat", "--choice", "a dog", "--json", cwd=root)
    assert json.loads(answered.stdout)["answer"]["answer"] in ("a cat", "a dog")
    described = run("predict", str(folder), image, "--stage", first, "--json", cwd=root)
    assert isinstance(json.loads(described.stdout)["answer"], str)


def each_answers(recipe: Recipe, folder: Path, image: str, root: Path) -> None:
    """Every task that the last stage learned at once is asked by its name."""
    for task in list(results_of(recipe, "test"))[:2]:
        answered = run("predict", str(folder), image, "--task", task, "--prompt", "what is it?", "--json", cwd=root)
        assert isinstance(json.loads(answered.stdout)["answer"], str), answered.stderr


def results_of(recipe: Recipe, split: str) -> dict[str, str]:
    """Task -> what its result is called, of the tasks of the last stage."""
    tasks = list(recipe.tasks_of(recipe.stage(recipe.stage_names[-1])))
    return {task: f"{split}.{task}" if len(tasks) > 1 else split for task in tasks}


def count(recipe: Recipe, split: str, task: str) -> int:
    """The rows of a split in small that are of a task."""
    if recipe.data.satellite is None:
        table, column = Path(recipe.data.base_dir) / recipe.data.tables[split], recipe.data.columns.task
        rows = drawn.read_csv(table) if table.suffix == ".csv" else read_table(table)
        return sum(column is None or row[column] == task for row in rows)
    return len(opened(Path(recipe.data.base_dir) / recipe.data.satellite.patches[split]))


def prepare_in_small(recipe: Recipe, root: Path) -> None:
    """Prepare the recipe's data, and keep eight rows of each table, of each task where rows name one."""
    prepared = run("prepare", f"recipe={recipe.recipe}", *FEW.get(recipe.recipe, []), cwd=root)
    assert prepared.returncode == 0, prepared.stderr
    place = Path(prepared.stdout.strip())
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    for split, table in recipe.data.tables.items():
        read, write = (drawn.read_csv, drawn.write_csv) if table.endswith(".csv") else (read_table, write_table)
        found = read(place / table)
        assert len(found) == manifest["rows"][split]
        of_task: dict[Any, list[dict[str, Any]]] = {}
        for row in found:
            of_task.setdefault(row.get("task"), []).append(row)
        write(place / table, [row for rows in of_task.values() for row in rows[:: max(1, len(rows) // 8)][:8]])


def test_prepared_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    manifests = []
    for _ in range(2):
        place = Path(run("prepare", "recipe=demo", cwd=tmp_path).stdout.strip())
        manifests.append((place / "manifest.json").read_text(encoding="utf-8"))
    assert manifests[0] == manifests[1]


def test_recipe_without_data_of_its_own_says_so(tmp_path: Path) -> None:
    done = run("prepare", "recipe=ad_classifier", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no `prepare`" in done.stderr


def test_a_torn_copy_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed `prepare` left half-written is not taken for a picture."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    assert run("prepare", "recipe=demo", cwd=tmp_path).returncode == 0
    image = next((tmp_path / "data").rglob("*.webp"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-1] + b"?")  # of the same size
    assert run("prepare", "recipe=demo", cwd=tmp_path).returncode == 0
    assert image.read_bytes() == whole
