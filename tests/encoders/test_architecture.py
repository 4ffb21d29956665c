"""An architecture that a recipe ships: random weights without any file, and a check on the weights that a name brings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eyegraft.encoders.huggingface import Config, build
from eyegraft.errors import PartError

SQUARE = {"size": 32, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
NAFLEX = {"max_num_patches": 16, "patch_size": 8, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def shipped(folder: str, **changes: Any) -> dict[str, Any]:
    """What a recipe would ship for a folder: the content of its `config.json`, without the text tower."""
    content = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    for key in ("text_config", "architectures", "dtype", "transformers_version", "text_config_dict", "vision_config_dict"):
        content.pop(key, None)
    tower = content.get("vision_config", content)
    tower.update(changes)
    return dict(content)


@pytest.mark.parametrize("family", ["siglip", "naflex", "clip", "dinov2", "vit", "resnet"])
def test_random_weights_need_no_file(folders: Any, family: str) -> None:
    """The name is never looked at."""
    folder = folders.vision(family)
    config = Config(
        model="no/such-model-anywhere",
        pretrained=False,
        architecture=shipped(folder),
        preprocessor=json.loads((Path(folder) / "preprocessor_config.json").read_text(encoding="utf-8")),
    )
    made, read = build(config), build(Config(model=folder))
    assert {name: tensor.shape for name, tensor in made.state_dict().items()} == {
        name: tensor.shape for name, tensor in read.state_dict().items()
    }
    assert made.spec == read.spec
    assert made.token_dim == read.token_dim


@pytest.mark.parametrize("family", ["siglip", "naflex", "vit"])
def test_weights_of_the_shipped_architecture_load(folders: Any, family: str) -> None:
    folder = folders.vision(family)
    config = Config(model=folder, architecture=shipped(folder), preprocessor=NAFLEX if family == "naflex" else SQUARE)
    loaded, plain = build(config), build(Config(model=folder))
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.spec == plain.spec, "weights bring their own preprocessing"


@pytest.mark.parametrize(
    ("changes", "given", "expected"),
    [
        ({"hidden_size": 64}, "has hidden_size 32", "hidden_size 64"),
        ({"num_hidden_layers": 27}, "has num_hidden_layers 2", "num_hidden_layers 27"),
        ({"patch_size": 16, "hidden_size": 64}, "has hidden_size 32, patch_size 8", "hidden_size 64, patch_size 16"),
    ],
)
def test_weights_of_another_architecture_are_refused(folders: Any, changes: dict[str, Any], given: str, expected: str) -> None:
    folder = folders.vision("siglip")
    with pytest.raises(PartError) as caught:
        build(Config(model=folder, architecture=shipped(folder, **changes), preprocessor=SQUARE))
    assert given in caught.value.given
    assert caught.value.expected.startswith(expected)
    assert "vision_encoder.architecture=null" in caught.value.fix


def test_weights_of_another_kind_are_refused(folders: Any) -> None:
    """SigLIP 2 of one size is no NaFlex, and the other way."""
    with pytest.raises(PartError, match="has model_type siglip2_vision_model") as caught:
        build(Config(model=folders.vision("naflex"), architecture=shipped(folders.vision("siglip")), preprocessor=SQUARE))
    assert "model_type siglip_vision_model" in caught.value.expected


@pytest.mark.parametrize(
    ("architecture", "given", "fix"),
    [
        ({"model_type": "sigclip"}, "transformers has no 'sigclip'", "did you mean 'siglip'?"),
        ({"model_type": "vit", "hiden_size": 32}, "vit has no hiden_size", "did you mean 'hidden_size'?"),
        (
            {"model_type": "siglip", "vision_config": {"num_hiden_layers": 2}},
            "siglip has no vision_config.num_hiden_layers",
            "did you mean 'vision_config.num_hidden_layers'?",
        ),
        ({"model_type": "vit", "hidden_size": "wide"}, "'hidden_size' expected int, got str", ""),
        ({"model_type": "siglip", "vision_config": {"hidden_size": 30, "num_attention_heads": 4}}, "divisible by num_heads", ""),
        ({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, "takes no pictures", ""),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(architecture: dict[str, Any], given: str, fix: str) -> None:
    with pytest.raises(PartError) as caught:
        build(Config(model="some/model", pretrained=False, architecture=architecture, preprocessor=SQUARE))
    assert given in caught.value.given
    assert caught.value.expected
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("family", "preprocessor", "said"),
    [
        ("siglip", NAFLEX, "gives patches of 8, but SiglipVisionModel takes whole pictures"),
        ("naflex", SQUARE, "gives whole pictures, but Siglip2VisionModel takes patches of 8"),
        ("naflex", {**NAFLEX, "patch_size": 4}, "gives patches of 4, but Siglip2VisionModel takes patches of 8"),
        ("naflex", {**NAFLEX, "patch_size": None}, "vision_encoder.preprocessor: no patch_size"),
        ("siglip", {**SQUARE, "image_std": None}, "vision_encoder.preprocessor: no image_std"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused(folders: Any, family: str, preprocessor: dict[str, Any], said: str) -> None:
    with pytest.raises(PartError) as caught:
        build(Config(model="some/model", pretrained=False, architecture=shipped(folders.vision(family)), preprocessor=preprocessor))
    assert said in caught.value.given
    assert caught.value.fix


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": {"model_type": "vit"}}, "stand together"),
        ({"preprocessor": SQUARE}, "stand together"),
        ({"architecture": {"hidden_size": 32}, "preprocessor": SQUARE}, "model_type"),
    ],
)
def test_half_an_architecture_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config(model="some/model", **options)


def test_a_missing_tensor_is_refused(folders: Any, tmp_path: Path) -> None:
    """transformers would leave it random and say so in a table."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders.vision("siglip"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vision_model.encoder.layers.1.mlp.fc1.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PartError, match=r"lack 1 tensors: encoder.layers.1.mlp.fc1.bias"):
        build(Config(model=str(tmp_path)))


def test_a_text_tower_is_neither_loaded_nor_reported(folders: Any, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = build(Config(model=folders.vision("naflex")))
    assert not [name for name, _ in encoder.named_parameters() if "text" in name]
    assert "UNEXPECTED" not in capfd.readouterr().err
