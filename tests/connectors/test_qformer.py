"""A Q-Former that BLIP-2 has trained, read out of a folder in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eyegraft.connectors.qformer import Config, QFormer, build
from eyegraft.errors import PartError
from eyegraft.pretrained import ready
from eyegraft.types import Tokens

IN = 16


@pytest.fixture(scope="module")
def blip2() -> Any:
    ready()
    import transformers as t

    former = t.Blip2QFormerConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, encoder_hidden_size=IN)
    eye = t.Blip2VisionConfig(hidden_size=IN, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    words = t.OPTConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16)
    config = t.Blip2Config(vision_config=eye, qformer_config=former, text_config=words, num_query_tokens=3)
    torch.manual_seed(4)
    model = t.Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)
    return model


@pytest.fixture(scope="module")
def folder(blip2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("blip2")
    blip2.save_pretrained(place)
    return place


def tokens() -> Tokens:
    values = torch.randn(2, 7, IN, generator=torch.Generator().manual_seed(2))
    return Tokens(values, torch.ones(2, 7, dtype=torch.bool))


def made(folder: Path, **options: Any) -> QFormer:
    torch.manual_seed(0)
    return build(Config(weights=str(folder), **options), in_dim=IN, out_dim=10).eval()


def queried(model: Any) -> torch.Tensor:
    """What BLIP-2 itself hands to its projection."""
    found: torch.Tensor = model.qformer(
        query_embeds=model.query_tokens.expand(2, -1, -1), encoder_hidden_states=tokens().values
    ).last_hidden_state
    return found


@torch.no_grad()
def test_it_gives_what_blip2_gives(blip2: Any, folder: Path) -> None:
    connector = made(folder)
    connector.projection = torch.nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(connector(tokens()).values, queried(blip2))
    assert all(parameter.requires_grad for parameter in connector.parameters())


@torch.no_grad()
def test_of_a_model_in_shards_only_those_that_hold_it_are_opened(blip2: Any, tmp_path: Path) -> None:
    blip2.save_pretrained(tmp_path, max_shard_size="4KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {place for key, place in places.items() if key.startswith(("qformer", "query_tokens"))}
    spare = set(places.values()) - needed
    assert len(needed) > 1
    assert spare
    for place in spare:
        (tmp_path / place).unlink()
    connector = made(tmp_path)
    connector.projection = torch.nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(connector(tokens()).values, queried(blip2))


def test_a_model_that_also_reads_words_is_read_without_that(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["qformer_config"]["use_qformer_text_input"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    connector = made(tmp_path)
    connector(tokens()).values.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in connector.parameters())


def test_settings_may_repeat_what_the_weights_have(folder: Path) -> None:
    connector = made(folder, num_queries=3, dim=8, per_view=True)
    assert connector(tokens()).values.shape == (2, 3, 10)


@pytest.mark.parametrize(
    ("options", "in_dim", "match"),
    [
        ({"num_queries": 4, "depth": 2}, IN, "has num_queries 3"),
        ({}, IN + 1, "width 16, the encoder gives 17"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, options: dict[str, Any], in_dim: int, match: str) -> None:
    with pytest.raises(PartError, match=match) as caught:
        build(Config(weights=str(folder), **options), in_dim=in_dim, out_dim=10)
    assert "connector.weights=null" in caught.value.fix


def test_folders_of_something_else_are_refused(folder: Path, folders: Any, tmp_path: Path) -> None:
    with pytest.raises(PartError, match="is a clip model"):
        made(Path(folders.vision("clip")))
    with pytest.raises(PartError, match="cannot be loaded"):
        made(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(PartError, match="cannot be loaded") as caught:
        made(tmp_path)
    assert "pickled" in caught.value.fix
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(PartError, match="cannot be loaded"):
        made(tmp_path)


def test_weights_that_lack_a_layer_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["qformer_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PartError, match=r"lacks \d+ tensors: encoder\.layer\.2"):
        made(tmp_path)


def test_random_weights_have_the_published_size() -> None:
    with torch.device("meta"):
        published = build(Config(), in_dim=1408, out_dim=2560)
    number = sum(parameter.numel() for parameter in published.transformer.parameters())
    assert number == pytest.approx(105.1e6, rel=2e-3)
    assert published.queries.shape == (32, 768)
    with pytest.raises(PartError, match="num_heads=12 does not divide"):
        build(Config(dim=100), in_dim=16, out_dim=8)
