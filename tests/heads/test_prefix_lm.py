"""The prefix language model against Hugging Face's own loss, in its precisions, and where it cannot be built."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from eyegraft.errors import PartError
from eyegraft.heads.prefix_lm import Config, PrefixLM, build, input_dim
from eyegraft.types import IGNORE, Tokens

PAIRS = [("What is drawn here?", "a red square"), ("Name it:", "파란 동그라미"), ("What?", "a green triangle and more")]


def made(folders: Any, family: str = "llama", **options: Any) -> PrefixLM:
    torch.manual_seed(0)
    config = Config(model=folders.lm(family), **options)
    return build(config, in_dim=input_dim(config), num_outputs=0).eval()


def image_tokens(rows: int, count: int = 4, width: int = 32) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return Tokens(torch.randn(rows, count, width, generator=generator), torch.ones(rows, count, dtype=torch.bool))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi", "gpt2"])
def test_the_loss_is_hugging_faces_own(folders: Any, family: str) -> None:
    """On image embeddings, text embeddings and -100 for all that is not the answer, laid out by hand, one sample at a time."""
    head = tiny.lively(made(folders, family))
    tokens, batch = image_tokens(3), tiny.text_batch(head.tokenizer, PAIRS)
    logits, labels = head(tokens, batch)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    for row in range(3):
        length = int(batch.text_mask[row].sum())
        words = head.backbone.get_input_embeddings()(batch.input_ids[row : row + 1, :length])
        embeds = torch.cat([tokens.values[row : row + 1], words], 1)
        wanted = torch.cat([torch.full((1, 4), IGNORE), batch.labels[row : row + 1, :length]], 1)
        theirs = head.backbone(inputs_embeds=embeds, labels=wanted).loss
        ours = losses[row].sum() / (labels[row] != IGNORE).sum()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_logits_are_made_only_where_something_is_learned(folders: Any) -> None:
    """The vocabulary's logits at every position are what fills the memory."""
    head = made(folders)
    batch = tiny.text_batch(head.tokenizer, PAIRS)
    logits, labels = head(image_tokens(3), batch)
    assert logits.shape[1] == labels.shape[1] < batch.input_ids.shape[1]
    assert ((labels != IGNORE).any(0)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_loads_in_the_asked_precision_and_takes_float32_tokens(folders: Any, dtype: str) -> None:
    head = made(folders, dtype=dtype)
    assert {parameter.dtype for parameter in head.parameters()} == {getattr(torch, dtype)}
    batch = tiny.text_batch(head.tokenizer, PAIRS)
    logits, _ = head(image_tokens(3), batch)
    assert logits.dtype == getattr(torch, dtype)
    assert logits.isfinite().all()
    assert len(head.generate(image_tokens(3), batch, max_new_tokens=2)) == 3


def test_weights_come_from_the_folder_unless_told_otherwise(folders: Any) -> None:
    from safetensors.torch import load_file

    file = load_file(Path(folders.lm()) / "model.safetensors")
    loaded, fresh = made(folders), made(folders, pretrained=False)
    torch.manual_seed(5)
    other = build(Config(model=folders.lm(), pretrained=False), in_dim=32, num_outputs=0)
    assert all(torch.equal(loaded.backbone.state_dict()[name], tensor) for name, tensor in file.items())
    assert not torch.equal(fresh.backbone.get_input_embeddings().weight, other.backbone.get_input_embeddings().weight)


def test_the_width_is_read_without_weights(folders: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(folders.lm("gpt2")) / "config.json").read_text())
    assert input_dim(Config(model=str(tmp_path))) == 32


def test_the_context_length_is_the_models(folders: Any) -> None:
    assert made(folders).context_length == 256
    assert made(folders, "gpt2").context_length == 256


@pytest.mark.parametrize(
    ("model", "match"),
    [("no/such-model-anywhere", "cannot be loaded"), ("packaged:smollm3", "unknown packaged weights"), ("EMPTY", "cannot be loaded")],
)
def test_a_model_that_is_not_there_says_what_would_be(tmp_path: Path, model: str, match: str) -> None:
    config = Config(model=str(tmp_path) if model == "EMPTY" else model)
    with pytest.raises(PartError, match=match) as caught:
        build(config, in_dim=32, num_outputs=0)
    assert caught.value.expected


def test_a_tokenizer_without_an_end_is_refused(folders: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = folders.tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(folders.lm()).save_pretrained(tmp_path)
    with pytest.raises(PartError, match="no end-of-text token"):
        build(Config(model=str(tmp_path)), in_dim=32, num_outputs=0)


def test_a_tokenizer_without_padding_pads_with_what_is_masked(folders: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = folders.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(folders.lm()).save_pretrained(tmp_path)
    head, usual = build(Config(model=str(tmp_path)), in_dim=32, num_outputs=0).eval(), made(folders)
    assert head.tokenizer.pad_token_id == head.tokenizer.eos_token_id
    ours, theirs = (item(image_tokens(3), tiny.text_batch(item.tokenizer, PAIRS)) for item in (head, usual))
    assert torch.equal(ours[1], theirs[1])
    learned = ours[1] != IGNORE
    torch.testing.assert_close(ours[0][learned], theirs[0][learned])
    prompts = tiny.text_batch(head.tokenizer, [(prompt, None) for prompt, _ in PAIRS])
    assert head.generate(image_tokens(3), prompts, max_new_tokens=6) == usual.generate(image_tokens(3), prompts, max_new_tokens=6)


def test_generation_ends_at_the_end_token(folders: Any) -> None:
    """A model that always says end-of-text says nothing."""
    head = tiny.lively(made(folders, "phi"))
    with torch.no_grad():
        head.backbone.lm_head.bias[head.tokenizer.eos_token_id] = 1e4
    assert head.generate(image_tokens(3), tiny.text_batch(head.tokenizer, PAIRS), max_new_tokens=8) == ["", "", ""]
    with torch.no_grad():
        head.backbone.lm_head.bias[head.tokenizer.eos_token_id] = -1e4
        head.backbone.lm_head.bias[head.tokenizer("a", add_special_tokens=False)["input_ids"][0]] = 1e4
    assert head.generate(image_tokens(3), tiny.text_batch(head.tokenizer, PAIRS), max_new_tokens=8) == ["a" * 8] * 3


# ── one image, many texts ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "gpt2"])
def test_an_image_before_many_texts_is_read_once(folders: Any, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every text is answered as it is alone, whatever its length and the image beside its own."""
    head = tiny.lively(made(folders, family), scale=10)
    prompts = [(prompt, None) for prompt in ("What is drawn here?", "Name it:", "What?", "무엇이 그려져 있나요?", "a red square", "a")]
    images, rows = image_tokens(3), [0, 0, 0, 1, 2, 2]
    tokens, batch = Tokens(images.values[rows], images.mask[rows]), tiny.text_batch(head.tokenizer, prompts)
    seen: list[int] = []
    whole = type(head.backbone).forward

    @wraps(whole)  # generation asks which arguments it takes
    def counted(self: Any, *given: Any, **named: Any) -> Any:
        if named.get("inputs_embeds") is not None:
            seen.append(int(torch.tensor(named["inputs_embeds"].shape[:2]).prod()))
        return whole(self, *given, **named)

    monkeypatch.setattr(type(head.backbone), "forward", counted)
    together = head.generate(tokens, batch, max_new_tokens=8)
    assert seen == [3 * 4, batch.input_ids.numel()], "each image once, then the texts alone"
    for place, prompt in enumerate(prompts):
        row = Tokens(tokens.values[[place]], tokens.mask[[place]])
        assert head.generate(row, tiny.text_batch(head.tokenizer, [prompt]), max_new_tokens=8) == [together[place]]
    assert len(set(together)) > 2


def test_where_a_window_slides_each_text_has_its_image_before_it(folders: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MistralConfig

    tokenizer = tiny.tokenizer(tmp_path)
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MistralConfig(vocab_size=len(tokenizer), sliding_window=8, **wide)).save_pretrained(tmp_path)
    head = tiny.lively(build(Config(model=str(tmp_path)), in_dim=32, num_outputs=0).eval(), scale=10)
    images = image_tokens(1)
    tokens = Tokens(images.values[[0, 0]], images.mask[[0, 0]])
    assert head._images_once(tokens) is None
    prompts = [("What is drawn here?", None), ("a", None)]
    together = head.generate(tokens, tiny.text_batch(head.tokenizer, prompts), max_new_tokens=8)
    assert together == [head.generate(images, tiny.text_batch(head.tokenizer, [prompt]), max_new_tokens=8)[0] for prompt in prompts]
