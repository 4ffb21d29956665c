"""Files of the earlier weather-report system become weights that answer the same; what does not fit is listed, and nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import maps
from eyegraft.encoders import patch_perceiver
from eyegraft.errors import DataError, PartError
from eyegraft.prepare import stage1_weights
from eyegraft.types import UNTOLD

D, HEADS, EXPERTS, TOP = 8, 2, 3, 2


# ── a model as anybody would write it, and what it saves ─────────────────────────────────────────────────────────────────────────


class Mixture(nn.Module):
    """Experts one by one, as PyTorch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(D, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D)) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        odds, best = self.gate(x).softmax(-1).topk(TOP, -1)
        weights = torch.zeros(*x.shape[:2], EXPERTS).scatter(-1, best, odds / odds.sum(-1, keepdim=True))
        return sum(weights[..., number : number + 1] * expert(x) for number, expert in enumerate(self.experts))  # type: ignore[return-value]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn, self.moe = nn.MultiheadAttention(D, HEADS, batch_first=True), Mixture()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.moe(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, D, 4, 4)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, D))
        self.type_embed = nn.Embedding(3, D)
        self.latents = nn.Parameter(torch.randn(1, 5, D))
        self.norm_q, self.norm_kv, self.norm = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.cross_attn = nn.MultiheadAttention(D, HEADS, batch_first=True)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, pixels: Tensor, classes: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.pos_embed + self.type_embed(classes)[:, None]
        x, read = self.latents.expand(len(pixels), -1, -1), self.norm_kv(patches)
        x = x + self.cross_attn(self.norm_q(x), read, read)[0]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.fixture(scope="module")
def original() -> Encoder:
    torch.manual_seed(0)
    made = Encoder().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


def ours(folder: Path, **options: Any) -> Any:
    return maps.encoder(weights=str(folder / "stage1_weights"), classes=list(maps.CLASSES), **options)


def converted(target: Path, **options: Any) -> dict[str, Any]:
    return stage1_weights.prepare(stage1_weights.Config(classes=maps.CLASSES, **options), target)


def same(encoder: Any, original: Encoder) -> None:
    pixels, classes = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    with torch.no_grad():
        found = encoder({"pixels": pixels, "condition": classes}).values
        torch.testing.assert_close(found[:, 1:], original(pixels, classes), rtol=1e-4, atol=1e-4)
        assert torch.equal(found[:, 0], original.type_embed.weight)
        untold = encoder({"pixels": pixels, "condition": torch.full((3,), UNTOLD)}).values[:, 0]
    torch.testing.assert_close(untold, original.type_embed.weight.mean(0).expand(3, -1))


@pytest.mark.parametrize("layout", ["stage1_vision_encoder_mae.pt", "checkpoint_best.ckpt", "stage1_encoder_finetuned.pt", "a.safetensors"])
def test_each_file_answers_the_same(tmp_path: Path, original: Encoder, layout: str) -> None:
    state = original.state_dict()
    file = tmp_path / layout
    if layout.endswith("mae.pt"):
        torch.save(state, file)
    elif layout.endswith(".ckpt"):
        decoder = {
            "model.decoder.layers.0.weight": torch.zeros(2, 2),
            "model.mask_token": torch.zeros(1, 1, D),
            "model.cond_head.weight": state["latents"],
        }
        inside = {f"model.encoder.{name}": tensor for name, tensor in state.items()} | decoder
        torch.save(
            {"epoch": 3, "state_dict": inside, "hyper_parameters": {"dim": D, "names": ["a"]}, "optimizer_states": [{"lr": 1e-4}]}, file
        )
    elif layout.endswith("finetuned.pt"):
        torch.save({"model_state_dict": {f"module.encoder.{name}": tensor for name, tensor in state.items()}}, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    made = converted(tmp_path / "out", encoder=str(file))
    (written, facts), *others = made["files"].items()
    assert not others
    assert facts["sizes"] == {"image_size": 16, "patch_size": 4, "dim": D, "num_latents": 5, "depth": 2, "num_experts": EXPERTS}
    with safe_open(written, "pt") as opened:
        assert json.loads(opened.metadata()["classes"]) == list(maps.CLASSES)
    same(ours(tmp_path / "out"), original)


def test_other_names_are_listed_and_can_be_told(tmp_path: Path, original: Encoder) -> None:
    state = {name.replace("latents", "queries"): tensor for name, tensor in original.state_dict().items()}
    state["teacher.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(PartError, match=r"nothing in it is latents; 2 found no place: queries \[1, 5, 8\], teacher.weight \[2\]"):
        converted(tmp_path, encoder=str(tmp_path / "a.pt"))
    with pytest.raises(PartError, match=r"1 without a place: teacher.weight \[2\]"):
        converted(tmp_path, encoder=str(tmp_path / "a.pt"), rename={"queries": "latents"})
    converted(tmp_path, encoder=str(tmp_path / "a.pt"), rename={"queries": "latents"}, leave=[r"teacher\..*"])
    same(ours(tmp_path), original)


def test_what_is_missing_or_of_another_shape_is_listed(tmp_path: Path, original: Encoder) -> None:
    state = dict(original.state_dict())
    del state["norm_kv.weight"]
    state["blocks.1.norm2.bias"] = torch.zeros(D + 1)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(PartError) as caught:
        converted(tmp_path, encoder=str(tmp_path / "a.pt"))
    assert "1 missing: norm_patches.weight [8]" in caught.value.given
    assert "1 of another shape: blocks.1.norm_mixture.bias [9] for [8]" in caught.value.given
    assert not (tmp_path / "stage1_weights").exists()


# ── the classifier ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("wrapped", ["", "model."])
def test_a_classifier_of_torchvision(tmp_path: Path, wrapped: str) -> None:
    """EfficientNet-B0 under torchvision's names answers the same under timm's."""
    from eyegraft.pretrained import ready

    ready()
    from torchvision.models import efficientnet_b0

    torch.manual_seed(0)
    original = efficientnet_b0(weights=None, num_classes=3)
    with torch.no_grad():
        for module in original.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        original.train()(torch.randn(4, 3, 64, 64))
    torch.save(
        {"model_state_dict": {f"{wrapped}{name}": tensor for name, tensor in original.eval().state_dict().items()}}, tmp_path / "c.pt"
    )
    converted(tmp_path, classifier=str(tmp_path / "c.pt"))
    encoder = maps.encoder(weights=str(tmp_path / "stage1_weights"), classes=list(maps.CLASSES), classifier=None)
    assert encoder.classifier is None, "the file holds no perceiver and the encoder no classifier: nothing is loaded"
    config = patch_perceiver.Config(**maps.SMALL, classifier={}, weights=str(tmp_path / "stage1_weights"))
    encoder = patch_perceiver.build(config).eval()
    picture = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = original(picture)
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(encoder.classifier(picture), wanted, rtol=1e-3, atol=1e-4)  # both scale by the statistics of ImageNet
    assert not encoder.classifier.new_parameters


def test_both_in_one_file(tmp_path: Path, original: Encoder) -> None:
    from eyegraft.pretrained import ready

    ready()
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", pretrained=False, num_classes=3).state_dict()
    state = {f"encoder.{name}": tensor for name, tensor in original.state_dict().items()}
    torch.save(state | {f"classifier.model.{name}": tensor for name, tensor in network.items()}, tmp_path / "a.pt")
    made = converted(tmp_path, encoder=str(tmp_path / "a.pt"), classifier_model="test_efficientnet")
    tensors = load_file(next(iter(made["files"])))
    assert {name.removeprefix("classifier.backbone.") for name in tensors if name.startswith("classifier.")} == set(network)
    torch.testing.assert_close(tensors["classifier.backbone.classifier.weight"], network["classifier.weight"])
    same(ours(tmp_path), original)


def test_a_classifier_of_other_classes(tmp_path: Path) -> None:
    from eyegraft.pretrained import ready

    ready()
    import timm

    torch.save(timm.create_model("test_efficientnet", pretrained=False, num_classes=4).state_dict(), tmp_path / "c.pt")
    with pytest.raises(PartError, match=r"of another shape: classifier.weight \[4, 256\] for \[3, 256\]"):
        converted(tmp_path, classifier=str(tmp_path / "c.pt"), classifier_model="test_efficientnet")


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo run > harm",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"latents": torch.zeros(1)}, "optimizer": Harmful()}, "a.pt")
    for key in ("encoder", "classifier"):
        with pytest.raises(DataError, match=f"prepare.{key}: a.pt holds more than tensors and plain values: (posix|nt).system"):
            converted(tmp_path, **{key: "a.pt"})
    assert not Path("harm").exists()


@pytest.mark.parametrize(("content", "said"), [(b"", "cannot be read|is no file"), (b"no tensors", "cannot be read|is no file")])
def test_a_damaged_file(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            converted(tmp_path, encoder=str(tmp_path / name))


def test_a_missing_file_and_one_without_tensors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare\.encoder: no file at"):
        converted(tmp_path, encoder=str(tmp_path / "none.pt"))
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="holds no tensors by name"):
        converted(tmp_path, encoder=str(tmp_path / "a.pt"))


def test_options() -> None:
    with pytest.raises(ValidationError, match="give encoder=FILE, classifier=FILE, or both"):
        stage1_weights.Config()
    with pytest.raises(ValidationError, match="is no regular expression"):
        stage1_weights.Config(encoder="a.pt", rename={"(": "latents"})
