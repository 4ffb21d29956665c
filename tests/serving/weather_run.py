"""A run that learned the four tasks about weather maps at once, on palette maps with texts of a few words, and a case of such maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import maps
from cli.running import TESTS, kept_registry
from eyegraft import load_recipe, train
from eyegraft.composition import use_config_dir
from eyegraft.registry import use_plugin

RECIPE = """
# @package _global_
defaults:
  - override /vision_encoder: patch_perceiver_small
  - override /pooling: class_mean
  - override /connector: class_prefix
  - override /head: tiny_gru

recipe: weather
experiment_name: weather
num_threads: 1
vision_encoder:
  {classes: [mcon, sbcp, thea], image_size: 16, patch_size: 4, dim: 8, num_latents: 5, num_heads: 2, depth: 2, num_experts: 3}
data:
  name: palette maps
  about: Bands of colour. Their texts follow from the class by rule.
  tables: {train: train.jsonl, val: val.jsonl}
  columns: {image: image, references: caption, task: task, id: id, group: case, meta: [condition, sentences, summary, captions]}
  near_duplicates: allow
tasks:
  element_caption: {kind: element_caption, prompt: "Map {condition}:", max_new_tokens: 60, template: plain}
  summary: {kind: summary, prompt: "Sum:", max_new_tokens: 60, template: plain}
  link: {kind: element_summary_link, prompt: "Link {description} | {summary}", max_new_tokens: 60, template: plain}
  text_summary: {kind: text_summary, prompt: "Texts {captions}", max_new_tokens: 60, template: plain}
train:
  {batch_size: 12, learning_rate: 0.01, log_every: 1, max_steps: 2, tune: {vision_encoder: full}}
stages:
  all:
    tasks: {element_caption: 1, summary: 1, link: 1, text_summary: 1}
evaluation: {batch_size: 3}
"""
SUMMARY = "SUMMARY...Calm and dry."


def sentences(kind: str) -> list[str]:
    return [f"The map shows {kind}.", "It is weak here.", "Little will happen.", "It supports the calm summary."]


def prepared(folder: Path) -> Path:
    """Cases of three maps, with the rows of every task."""
    number = 0
    for split, count in {"train": 4, "val": 1}.items():
        rows = []
        for _ in range(count):
            case, captions = f"{split}-{number}", [{"condition": kind, "caption": " ".join(sentences(kind))} for kind in maps.CLASSES]
            for place, kind in enumerate(maps.CLASSES):
                image = f"maps/{number}.gif"
                maps.draw(folder / image, place, number)
                texts = sentences(kind)
                shared = {"image": image, "condition": kind, "case": case, "sentences": texts, "summary": SUMMARY}
                answers = {"element_caption": " ".join(texts), "summary": SUMMARY, "link": texts[-1]}
                rows += [{**shared, "id": f"{number}/{task}", "task": task, "caption": text} for task, text in answers.items()]
                number += 1
            first = {"image": f"maps/{number - 3}.gif", "condition": maps.CLASSES[0], "case": case, "captions": captions}
            rows.append({**first, "id": f"{number}/text_summary", "task": "text_summary", "caption": SUMMARY})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def recipe(folder: Path, *words: str) -> Any:
    """The recipe on data that are made in `folder`, where it runs too."""
    use_plugin("tinyparts")
    use_config_dir(str(TESTS / "tinyparts" / "conf"))
    conf, data = folder / "conf", folder / "data"
    if not conf.exists():
        (conf / "recipe").mkdir(parents=True)
        (conf / "recipe" / "weather.yaml").write_text(RECIPE.lstrip(), encoding="utf-8")
        (folder / "classifier").mkdir()
        maps.classifier_weights(folder / "classifier")
        prepared(data)
    use_config_dir(str(conf))
    classifier = f"{{model: test_efficientnet, weights: {folder / 'classifier'}}}"
    places = (f"data.base_dir={data}", f"run_root={folder / 'runs'}", f"vision_encoder.classifier={classifier}")
    return load_recipe("weather", *places, *words)


def trained(folder: Path, *words: str) -> Path:
    with kept_registry():
        return train(recipe(folder, *words))


def case_file(folder: Path, **changes: Any) -> Path:
    """`case.json` with three maps in the layout of WeatherQA's users, the second without a class, beside its images."""
    elements = []
    for place, kind in enumerate(maps.CLASSES):
        maps.draw(folder / "maps" / f"{kind}.gif", place, 90 + place)
        elements.append({"image_rel_path": f"maps\\{kind}.gif", "type_name": f"wqa:{kind}", "caption": "비가 <b>온다</b>.", "error": None})
    del elements[1]["type_name"]
    case = {"case_id": "2018_md0398", "global_summary": "Rain <script>alert(1)</script> 곧", "elements": elements, **changes}
    path = folder / "case.json"
    path.write_text(json.dumps(case, ensure_ascii=False), encoding="utf-8")
    return path
