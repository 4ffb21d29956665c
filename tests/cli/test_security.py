"""A recipe and a model's folder are data: neither runs code, whatever is written in them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import SMALL, refused, run, small_words
from command_line import eyegraft
from eyegraft.composition import stop_at_hydra_settings, use_config_dir
from eyegraft.errors import PartError, RecipeError
from eyegraft.registry import module_of

RECIPE, PART = 2, 4  # the exit codes
CALLBACK = "hydra:\n  callbacks:\n    c:\n      _target_: evil_module.Callback\n"
COMMANDS = [["train"], ["train", "-m"], ["train", "--cfg", "job"], ["train", "--cfg", "hydra"], ["show"]]


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def evil_module(folder: Path) -> Path:
    """A module that leaves a file where it is imported; gives the file."""
    mark = folder / "ran"
    put(folder / "path" / "evil_module.py", f"open({str(mark)!r}, 'w').close()\n")
    return mark


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_recipe_with_a_callback_of_hydra_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    mark = evil_module(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "path")
    put(tmp_path / "conf" / "recipe" / "evil.yaml", f"# @package _global_\n{CALLBACK}")
    done = run(*command, "recipe=evil", "--config-dir", "conf", cwd=tmp_path)
    refused(done, RECIPE, "evil.yaml: the key 'hydra'", "Hydra's own settings come from the command line alone", "fix: ")
    assert not mark.exists()


def test_a_recipe_with_a_callback_in_a_real_process(tmp_path: Path) -> None:
    mark = evil_module(tmp_path)
    put(tmp_path / "conf" / "recipe" / "evil.yaml", f"# @package _global_\n{CALLBACK}")
    path = {"PYTHONPATH": str(tmp_path / "path")}
    refused(eyegraft("train", "recipe=evil", "-m", "--config-dir", "conf", cwd=tmp_path, env=path), RECIPE, "the key 'hydra'")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recipe/a.yaml", "# @package _global_\nhydra.launcher: {_target_: x}\n"),
        ("recipe/a.yaml", "# @package _global_\n<<: {hydra: {launcher: {_target_: x}}}\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - override hydra/launcher: x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - override /hydra/launcher: x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - optional hydra/launcher: x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - /hydra/launcher/x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - /connector@hydra.callbacks: x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - ../../outside/x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - //outside/x\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults:\n  - /connector: [mlp, ../../outside/x]\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults: ${entries}\nentries: [{override hydra/launcher: x}]\n"),
        ("recipe/a.yaml", "# @package _global_\ndefaults: ['${entry}']\nentry: {override hydra/launcher: x}\n"),
        ("connector/a.yaml", "# @package hydra.callbacks\nc: {_target_: x}\n"),
        ("connector/a.yaml", "# @package _global_.hydra\nlauncher: {_target_: x}\n"),
        ("connector/hydra.yaml", "# @package _name_\nlauncher: {_target_: x}\n"),
        ("connector/deep/a.yaml", "hydra: {launcher: {_target_: x}}\n"),
        ("hydra/launcher/a.yaml", "_target_: x\n"),
    ],
)
def test_every_way_to_a_setting_of_hydra_is_refused(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path / name, text)
    use_config_dir(str(tmp_path))
    with pytest.raises(RecipeError, match="come from the command line alone"):
        stop_at_hydra_settings(["recipe=demo"])


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object/apply:os.getcwd []", "a: 1\n---\na: 2\n", "a: 2024-13-45"])
def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, text: str) -> None:
    put(tmp_path / "data" / "broken.yaml", text)
    refused(run("show", "demo", "--config-dir", ".", cwd=tmp_path), RECIPE, "broken.yaml: ", "YAML in UTF-8")


@pytest.mark.parametrize(
    "word", ["-cd=conf", "-cp=conf", "-cn=x", "--config-path=conf", "hydra.searchpath=[conf]", "++hydra.searchpath=[conf]"]
)
def test_folders_come_by_config_dir_alone(tmp_path: Path, word: str) -> None:
    refused(run("train", "recipe=demo", word, cwd=tmp_path), RECIPE, word, "--config-dir")


def test_plain_files_and_settings_that_a_person_types_are_fine(tmp_path: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - demo\n  - override /connector: mlp\n  - _self_\nexperiment_name: mine\n"
    put(tmp_path / "conf" / "recipe" / "mine.yaml", text)
    put(tmp_path / "conf" / ".hidden" / "hydra.yaml", "hydra: {}\n")
    done = run("train", "mine", "hydra.job.name=x", "--cfg", "job", "--config-dir", "conf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "experiment_name: mine" in done.stdout


# ── folders of models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def models(tmp_path: Path, folders: Any) -> dict[str, Path]:
    """A folder of our own for each of the two kinds of part."""
    return {
        "vision_encoder": Path(shutil.copytree(folders.vision("siglip"), tmp_path / "vision")),
        "head": Path(shutil.copytree(folders.lm("llama"), tmp_path / "lm")),
    }


@pytest.mark.parametrize("part", ["vision_encoder", "head"])
def test_code_in_a_model_folder_is_not_run_and_nobody_is_asked(tmp_path: Path, models: dict[str, Path], part: str) -> None:
    mark = tmp_path / "ran"
    folder = models[part]
    put(folder / "configuration_evil.py", f"open({str(mark)!r}, 'w').close()\n")
    names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "configuration_evil.Evil")
    put(folder / "config.json", json.dumps({"model_type": "evil", "auto_map": names}))
    with pytest.raises(PartError, match=rf"{part}\.model: .* cannot be loaded: .*custom code") as caught:
        _build(part, folder)
    assert "never run" in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("part", ["vision_encoder", "head"])
def test_pickled_weights_are_not_read(models: dict[str, Path], part: str) -> None:
    import torch
    from safetensors.torch import load_file

    weights = models[part] / "model.safetensors"
    torch.save(load_file(weights), models[part] / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(PartError, match=rf"{part}\.model: .* cannot be loaded: .*") as caught:
        _build(part, models[part])
    assert "convert pickled weights (*.bin) to safetensors" in str(caught.value)


def test_code_in_a_model_folder_on_the_command_line(tmp_path: Path, models: dict[str, Path], folders: Any) -> None:
    mark = tmp_path / "ran"
    put(models["head"] / "configuration_evil.py", f"open({str(mark)!r}, 'w').close()\n")
    put(models["head"] / "config.json", json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}))
    tiny.shapes(tmp_path / "data", {"train": 6, "val": 2, "test": 3})
    words = small_words(folders, f"head.model={models['head']}")
    refused(eyegraft("train", *words, *SMALL, cwd=tmp_path, stdin=subprocess.DEVNULL), PART, "head.model", "custom code", "never run")
    assert not mark.exists()


def _build(part: str, folder: Path) -> None:
    room, kind, given = {
        "vision_encoder": ("encoders", "huggingface", {}),
        "head": ("heads", "prefix_lm", {"in_dim": 32, "num_outputs": 0}),
    }[part]
    module = module_of(room, kind)
    module.build(module.Config(model=str(folder)), **given)
