"""Checkpoints: whole or not there, verified, without pickle, and equal to the model that they came from."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from eyegraft.config import Settings
from eyegraft.errors import RunError
from eyegraft.training import checkpoints
from eyegraft.training.checkpoints import (
    damage,
    find_checkpoint,
    load_objective,
    load_weights,
    read_config,
    save_checkpoint,
    settle,
)
from eyegraft.tuning import make_plan

Make = Callable[..., Any]
TUNE = {"head": {"mode": "lora", "lora": {"rank": 2}}, "vision_encoder": {"mode": "last_n", "last_n": 1}}
PAIRS = [("What?", "a red square"), ("Name it:", "파란 동그라미")]


def trained(make_graft: Make, tune: dict[str, Any] = TUNE, **changes: Any) -> tuple[Any, Any, Any]:
    """(recipe, model, plan), with every trainable tensor and running statistic moved as training would."""
    recipe, model = make_graft(**changes)
    plan = make_plan(model, Settings.model_validate({"tune": tune}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, buffer in model.named_buffers():
            if name in plan.saved and buffer.is_floating_point():
                buffer.mul_(1.5)
    return recipe, model.eval(), plan


def saved(folder: Path, parts: tuple[Any, Any, Any], *, step: int = 1, **options: Any) -> Path:
    recipe, model, plan = parts
    save_checkpoint(
        folder, model, recipe, saved=plan.saved, facts={"stage": "only", "step": step, "epoch": 0, "lineage": ["only"]}, **options
    )
    return folder


def logits(model: Any) -> torch.Tensor:
    pixels = torch.randn(2, 3, *model.encoders["image"].spec.size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model.eval()(tiny.text_batch(model.head.tokenizer, PAIRS, pixels)).logits.all()


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tune", "changes"),
    [
        (TUNE, {}),
        ({"head": "full", "vision_encoder": "frozen"}, {"lm": "gpt2"}),
        ({"head": {"mode": "last_n", "last_n": 1}, "vision_encoder": "lora"}, {}),
        ({"head": "lora", "vision_encoder": "lora"}, {"lm": "gpt2", "vision": "clip"}),
        ({"vision_encoder": {"mode": "last_n", "last_n": 2}}, {"vision": "resnet"}),
        ({"vision_encoder": "full"}, {"vision_encoder": {"kind": "timm", "model": "test_efficientnet", "pretrained": False}}),
        (
            {"head": {"mode": "lora", "lora": {"use_dora": True, "target_modules": ["q_proj"], "target_layers": 1}}},
            {"pooling": {"kind": "mean"}},
        ),
    ],
    ids=["lora+last_n", "full-gpt2", "last_n+lora", "lora+lora", "batch-norm", "timm", "dora"],
)
def test_a_fresh_model_with_the_checkpoint_is_the_trained_one(
    make_graft: Make, tmp_path: Path, tune: dict[str, Any], changes: dict[str, Any]
) -> None:
    parts = trained(make_graft, tune, **changes)
    place = saved(tmp_path / "latest", parts)
    _, fresh = make_graft(**changes)
    expected = logits(parts[1])
    assert not torch.equal(logits(fresh), expected)
    names = load_weights(place, fresh)
    assert torch.equal(logits(fresh), expected)
    assert names == set(load_file(place / "model.safetensors"))
    assert names == parts[2].saved


def test_only_what_was_trained_is_kept(make_graft: Make, tmp_path: Path) -> None:
    parts = trained(make_graft)
    place = saved(tmp_path / "latest", parts)
    assert set(load_file(place / "model.safetensors")) == parts[2].saved
    assert not any(name.startswith("head.") for name in parts[2].saved)
    config = read_config(place)
    assert (config["stage"], config["step"], config["adapters"]) == ("only", 1, ["head"])
    assert config["tensors"] == sorted(parts[2].saved)


def test_a_loaded_checkpoint_saves_the_same_again(make_graft: Make, tmp_path: Path) -> None:
    parts = trained(make_graft)
    first = saved(tmp_path / "first", parts)
    recipe, fresh = make_graft()
    names = load_weights(first, fresh)
    plan = make_plan(fresh, Settings.model_validate({"tune": TUNE}), saved=names)
    second = saved(tmp_path / "second", (recipe, fresh, plan))
    for file in ("model.safetensors", "adapter/head/adapter_model.safetensors"):
        one, other = load_file(first / file), load_file(second / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_objective_with_parameters_comes_along(make_graft: Make, tmp_path: Path) -> None:
    objective, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    place = saved(tmp_path / "latest", trained(make_graft), extra_modules={"objective": objective})
    _, fresh = make_graft()
    assert not [name for name in load_weights(place, fresh) if name.startswith("objective.")]
    load_objective(place, other)
    assert torch.equal(other.weight, objective.weight)
    with pytest.raises(RunError, match="does not fit this objective: bias, weight"):
        load_objective(place, torch.nn.Linear(4, 2))
    with pytest.raises(RunError, match="does not fit this objective"):
        load_objective(place, torch.nn.Identity())


def test_peft_itself_reads_the_adapter(make_graft: Make, folders: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, model, _ = parts = trained(make_graft)
    place = saved(tmp_path / "latest", parts)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders.lm()), place / "adapter" / "head").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, model.head.backbone(input_ids=ids).logits)


def test_transformers_itself_reads_the_tokenizer(make_graft: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    place = saved(tmp_path / "latest", trained(make_graft))
    assert AutoTokenizer.from_pretrained(place / "tokenizer")("빨간 사각형")["input_ids"]


def test_no_file_holds_a_pickle(make_graft: Make, tmp_path: Path) -> None:
    import pickletools
    import zipfile

    place = saved(tmp_path / "latest", trained(make_graft), optimizer={"a|exp_avg": torch.ones(2)}, trainer={"step": 1})
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".yaml", ".safetensors", ".jinja"}
    for path in files:
        assert not zipfile.is_zipfile(path)
        assert path.read_bytes()[:1] != b"\x80"
        if path.suffix != ".safetensors":
            with pytest.raises(ValueError):
                list(pickletools.genops(path.read_bytes()))


def test_the_recipe_beside_it_is_the_recipe(make_graft: Make, tmp_path: Path) -> None:
    import yaml

    from eyegraft.composition import validate

    parts = trained(make_graft)
    place = saved(tmp_path / "latest", parts)
    assert validate(yaml.safe_load((place / "recipe.yaml").read_text(encoding="utf-8"))) == parts[0]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_one_flipped_bit_is_found_in_any_file(make_graft: Make, tmp_path: Path) -> None:
    whole = saved(tmp_path / "latest", trained(make_graft), optimizer={"a|exp_avg": torch.ones(2)}, trainer={"step": 1})
    assert damage(whole) is None
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(names) > 6
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        flip(copy / name, -1)
        assert damage(copy) == f"{name.as_posix()} missing or changed"
        (copy / name).unlink()
        assert damage(copy) == f"{name.as_posix()} missing or changed"
        shutil.rmtree(copy)


def test_a_damaged_checkpoint_is_not_loaded(make_graft: Make, tmp_path: Path) -> None:
    place = saved(tmp_path / "latest", trained(make_graft))
    flip(place / "model.safetensors", -1)
    _, fresh = make_graft()
    before = logits(fresh)
    with pytest.raises(RunError, match=r"model\.safetensors missing or changed") as caught:
        load_weights(place, fresh)
    assert "latest.previous" in caught.value.fix
    assert torch.equal(logits(fresh), before)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"a": 3}', "\ufffd"])
def test_a_damaged_manifest_is_damage(make_graft: Make, tmp_path: Path, text: str) -> None:
    place = saved(tmp_path / "latest", trained(make_graft))
    (place / "manifest.json").write_text(text, encoding="utf-8")
    assert damage(place)


def test_a_checkpoint_of_another_model_is_refused(make_graft: Make, tmp_path: Path) -> None:
    place = saved(tmp_path / "latest", trained(make_graft))
    _, other = make_graft(connector={"kind": "mlp", "hidden_dim": 5})
    with pytest.raises(RunError, match=r"does not fit this model: connectors\.image"):
        load_weights(place, other)
    _, other = make_graft(vision="resnet")
    with pytest.raises(RunError, match="does not fit this model"):
        load_weights(place, other)


@pytest.mark.parametrize("lm", ["gpt2", "phi"])
def test_an_adapter_of_another_model_is_refused_in_words(make_graft: Make, tmp_path: Path, lm: str) -> None:
    place = saved(tmp_path / "latest", trained(make_graft, {"head": "lora"}))
    _, other = make_graft(lm=lm)
    with pytest.raises(RunError, match="does not fit this model"):
        load_weights(place, other)


def test_another_format_is_refused(make_graft: Make, tmp_path: Path) -> None:
    place = saved(tmp_path / "latest", trained(make_graft))
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(RunError, match="format 99"):
        read_config(place)


# ── killed while saving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_one_before_is_kept(make_graft: Make, tmp_path: Path) -> None:
    parts, place = trained(make_graft), tmp_path / "latest"
    for step in (1, 2, 3):
        saved(place, parts, step=step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "latest.previous"]
    assert [read_config(tmp_path / name)["step"] for name in ("latest", "latest.previous")] == [3, 2]
    assert find_checkpoint(place) == place


def test_nothing_is_there(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "latest") is None
    (tmp_path / "latest").mkdir()
    assert find_checkpoint(tmp_path / "latest") is None


@pytest.mark.parametrize("step", ["save_file", "_save_adapters", "_write_manifest"])
def test_killed_while_writing(make_graft: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Half a checkpoint is never taken for one, and the next save puts it out of the way."""
    parts, place = trained(make_graft), tmp_path / "latest"
    saved(place, parts, step=1)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, step, killed)
        with pytest.raises(KeyboardInterrupt):
            saved(place, parts, step=2)
    assert (tmp_path / "latest.writing").is_dir()
    assert find_checkpoint(place) == place
    assert read_config(place)["step"] == 1
    saved(place, parts, step=2)
    assert read_config(place)["step"] == 2
    assert not (tmp_path / "latest.writing").exists()


def test_killed_between_the_two_renames(make_graft: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one is moved away, the new one is whole but not yet in place: it is found."""
    parts, place = trained(make_graft), tmp_path / "latest"
    saved(place, parts, step=1)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "latest.writing":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(place, parts, step=2)
    assert not place.exists()
    found = find_checkpoint(place)
    assert found == tmp_path / "latest.writing"
    assert read_config(found)["step"] == 2
    _, fresh = make_graft()
    load_weights(found, fresh)
    assert torch.equal(logits(fresh), logits(parts[1]))
    saved(place, parts, step=3)
    assert read_config(place)["step"] == 3
    assert find_checkpoint(place) == place


def test_a_whole_one_that_was_not_put_in_place_is_the_newest(make_graft: Make, tmp_path: Path) -> None:
    parts, place = trained(make_graft), tmp_path / "latest"
    saved(place, parts, step=1)
    saved(tmp_path / "other", parts, step=2).rename(tmp_path / "latest.writing")
    assert find_checkpoint(place) == tmp_path / "latest.writing"


def test_a_damaged_one_gives_way_to_the_one_before(make_graft: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts, place = trained(make_graft), tmp_path / "latest"
    saved(place, parts, step=1)
    saved(place, parts, step=2)
    flip(place / "model.safetensors", -1)
    assert find_checkpoint(place) == tmp_path / "latest.previous"
    assert "model.safetensors missing or changed" in caplog.text


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_disk_while_tensors_are_written(make_graft: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors wraps the system's error into its own."""
    from safetensors import SafetensorError

    def full(*_: Any) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")

    parts = trained(make_graft)
    saved(tmp_path / "latest", parts, step=1)
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match="no room to write"):
        saved(tmp_path / "latest", parts, step=2)
    assert find_checkpoint(tmp_path / "latest") == tmp_path / "latest"


def test_a_save_killed_before_its_renames_is_finished_first(make_graft: Make, tmp_path: Path) -> None:
    """Else the next save would begin by deleting the only copy of the newest step, and a second kill would lose it."""
    parts, place = trained(make_graft), tmp_path / "latest"
    saved(place, parts, step=1)
    saved(tmp_path / "other", parts, step=2).rename(tmp_path / "latest.writing")
    settle(place)
    assert read_config(place)["step"] == 2
    assert read_config(tmp_path / "latest.previous")["step"] == 1
    assert not (tmp_path / "latest.writing").exists()
    settle(place)
    assert read_config(place)["step"] == 2, "nothing to finish changes nothing"
