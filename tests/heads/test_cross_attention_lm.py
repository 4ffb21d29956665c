"""Cross-attention in a language model's last layers: nothing changes before it is learned, and all that is learned is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tiny
from eyegraft.config import Settings
from eyegraft.errors import PartError, RecipeError
from eyegraft.heads.cross_attention_lm import Config, CrossAttentionLM, build, input_dim
from eyegraft.objectives.cross_entropy import CrossEntropy
from eyegraft.training.checkpoints import load_weights, save_checkpoint
from eyegraft.tuning import make_plan, prove, set_training_mode
from eyegraft.types import IGNORE, Tokens

Make = Callable[..., Any]
FAMILIES = ["llama", "mistral", "qwen2", "phi", "gpt2"]
PAIRS = [("What is drawn here?", "a red square"), ("Name it:", "파란 동그라미"), ("What?", "a green triangle and more")]
PROMPTS = [(prompt, None) for prompt, _ in PAIRS]
LORA = {"mode": "lora", "lora": {"rank": 2}}


def made(folders: Any, family: str = "llama", **options: Any) -> CrossAttentionLM:
    torch.manual_seed(0)
    config = Config(model=folders.lm(family), **{"num_layers": 2, **options})
    return build(config, in_dim=input_dim(config), num_outputs=0).eval()


def bare(folders: Any, family: str = "llama") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folders.lm(family)).eval()


def image_tokens(rows: int, count: int = 4, width: int = 32, *, real: bool = True) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return Tokens(torch.randn(rows, count, width, generator=generator), torch.full((rows, count), real))


def learned_logits(head: Any, tokens: Tokens, batch: Any) -> torch.Tensor:
    """[L, K] at the learned positions of all rows, without padding's."""
    with torch.no_grad():
        logits, labels = head(tokens, batch)
    return logits[labels != IGNORE]


def bare_logits(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.text_mask.long()).logits
    return logits[:, :-1][batch.labels[:, 1:] != IGNORE]


# ── before it is learned ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_gate_leaves_the_language_model_as_it_was(folders: Any, family: str) -> None:
    """Bit for bit in float32: logits, and what is generated."""
    head, model = made(folders, family), bare(folders, family)
    batch = tiny.text_batch(head.tokenizer, PAIRS)
    assert torch.equal(learned_logits(head, image_tokens(3), batch), bare_logits(model, batch))
    prompt = tiny.text_batch(head.tokenizer, PROMPTS[:1])
    said = model.generate(
        prompt.input_ids,
        attention_mask=prompt.text_mask.long(),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=head.tokenizer.pad_token_id,
    )
    theirs = head.tokenizer.decode(said[0, prompt.input_ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd").strip()
    assert head.generate(image_tokens(1), prompt, max_new_tokens=6) == [theirs]


@pytest.mark.parametrize("options", [{}, {"gate": "none"}, {"gate": "none", "norm": "post"}], ids=["gate", "no-gate", "post-norm"])
def test_a_row_without_an_image_is_read_as_the_language_model_reads_it(folders: Any, options: dict[str, Any]) -> None:
    head, model = tiny.lively(made(folders, **options)), bare(folders)
    model.load_state_dict({name: tensor for name, tensor in head.backbone.state_dict().items() if ".cross." not in name})
    batch = tiny.text_batch(head.tokenizer, PAIRS)
    counts = (batch.labels != IGNORE).sum(1).tolist()
    tokens = image_tokens(3)
    tokens.mask[1] = False
    tokens.values[1] = float("nan")
    ours, theirs = (found.split(counts) for found in (learned_logits(head, tokens, batch), bare_logits(model, batch)))
    assert torch.equal(ours[1], theirs[1])
    assert not torch.allclose(ours[0], theirs[0])
    assert not torch.allclose(ours[2], theirs[2])
    assert torch.equal(learned_logits(head, image_tokens(3, count=0), batch), bare_logits(model, batch))


def test_without_gate_and_with_the_norm_after_it_is_the_published_form(folders: Any) -> None:
    """LayerNorm(h + MultiheadAttention(h, image, image)) on the self-attention's output, in torch's own layers."""
    head, model = tiny.lively(made(folders, "phi", num_layers=1, gate="none", norm="post")), bare(folders, "phi")
    model.load_state_dict({name: tensor for name, tensor in head.backbone.state_dict().items() if ".cross." not in name})
    (cross,) = head._crosses
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([cross.query.weight, cross.key.weight, cross.value.weight]),
            "in_proj_bias": torch.cat([cross.query.bias, torch.ones(32), cross.value.bias]),  # a key's bias changes nothing
            "out_proj.weight": cross.output.weight,
            "out_proj.bias": cross.output.bias,
        }
    )
    tokens, batch = image_tokens(3), tiny.text_batch(head.tokenizer, PAIRS)

    def after(_: Any, __: Any, output: Any) -> Any:
        return cross.norm(output[0] + theirs(output[0], tokens.values, tokens.values)[0]), output[1]

    model.model.layers[-1].self_attn.register_forward_hook(after)
    torch.testing.assert_close(learned_logits(head, tokens, batch), bare_logits(model, batch), rtol=1e-4, atol=1e-4)


# ── generation ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing(folders: Any, family: str) -> None:
    """A batch of prompts of several lengths, against the whole text read again for every new token, one row at a time."""
    head = tiny.lively(made(folders, family), scale=10)
    tokens, batch = image_tokens(3), tiny.text_batch(head.tokenizer, PROMPTS)
    together = head.generate(tokens, batch, max_new_tokens=8)
    for row in range(3):
        ids = batch.input_ids[row : row + 1, : int(batch.text_mask[row].sum())]
        prompt = ids.shape[1]
        image = head._image(Tokens(tokens.values[row : row + 1], tokens.mask[row : row + 1]))
        for _ in range(8):
            with torch.no_grad():
                following = head.backbone(input_ids=ids, use_cache=False, **image).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], dim=1)
            if following.item() == head.tokenizer.eos_token_id:
                break
        assert head.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True).rstrip("\ufffd").strip() == together[row]
    assert len(set(together)) > 1


def test_images_take_up_no_room_in_the_text(make_graft: Make, folders: Any) -> None:
    """GPT-2 has 256 positions and no more: a prompt of 255 leaves one for the answer, beside any number of image tokens."""
    from eyegraft.answering import num_tokens

    _, model = make_graft(head={"kind": "cross_attention_lm", "model": folders.lm("gpt2"), "num_layers": 2})
    assert num_tokens(model) == 0
    head = made(folders, "gpt2")
    batch = tiny.text_batch(head.tokenizer, PROMPTS[:1])
    batch = replace(batch, input_ids=torch.full((1, 255), 50), text_mask=torch.ones(1, 255).bool(), labels=torch.full((1, 255), IGNORE))
    with torch.no_grad():
        head.backbone.lm_head.weight[head.tokenizer.eos_token_id] = 0
    assert len(head.tokenizer(head.generate(image_tokens(1, count=50), batch, max_new_tokens=9)[0])["input_ids"]) <= 1


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def grafted(make_graft: Make, folders: Any, tune: Any = None, family: str = "llama", **options: Any) -> tuple[Any, Any, Any]:
    """(recipe, model, plan)."""
    recipe, model = make_graft(head={"kind": "cross_attention_lm", "model": folders.lm(family), "num_layers": 2, **options})
    plan = make_plan(model, Settings.model_validate({"tune": {"head": tune} if tune else {}, "learning_rate": 0.01}))
    return recipe, model, plan


def batch_for(model: Any) -> Any:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return tiny.text_batch(model.head.tokenizer, PAIRS, pixels)


def step_of(model: Any) -> Callable[[Any], Any]:
    objective = CrossEntropy()

    def step(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss = objective(model(batch), batch)
        return loss.sums, loss.counts

    return step


def trained(model: Any, plan: Any, steps: int = 3) -> list[float]:
    """The losses of some optimiser steps on one batch."""
    set_training_mode(model)
    optimizer = torch.optim.AdamW(plan.groups)
    losses = []
    for _ in range(steps):
        sums, counts = step_of(model)(batch_for(model))
        loss = sums.sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


MODES: dict[str, tuple[Any, set[str]]] = {
    "by-default": (None, {"cross"}),
    "new": ("new", {"cross"}),
    "lora": (LORA, {"cross", "lora"}),
    "dora": ({"mode": "lora", "lora": {"rank": 2, "use_dora": True}}, {"cross", "lora"}),
    "rslora": ({"mode": "lora", "lora": {"rank": 2, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}}, {"cross", "lora"}),
    "last_n": ({"mode": "last_n", "last_n": 1}, {"cross", "own"}),
    "full": ("full", {"cross", "own"}),
}


@pytest.mark.parametrize("mode", MODES)
def test_new_layers_train_in_every_mode_and_the_language_model_in_its_own(make_graft: Make, folders: Any, mode: str) -> None:
    """Every tensor of the plan gets a gradient through the closed gate, moves, and no other does."""
    tune, wanted = MODES[mode]
    _, model, plan = grafted(make_graft, folders, tune)
    new = {id(parameter) for parameter in model.head.new_parameters}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    prove(step_of(model), model, [batch_for(model)], lambda loss: loss.backward(), [p for group in plan.groups for p in group["params"]])
    losses = trained(model, plan)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = {
        "cross" if id(parameter) in new else "lora" if ".lora_" in name else "own"
        for name, parameter in model.head.named_parameters()
        if parameter.requires_grad
    }
    assert kinds == wanted
    assert all(parameter.requires_grad for parameter in model.head.new_parameters)
    assert not [name for name in before if "cross" in name and "lora" in name], "adapters on layers that train themselves"
    assert losses[-1] < losses[0]
    row = next(row for row in plan.rows if row.part == "head")
    assert row.trainable == sum(parameter.numel() for parameter in model.head.parameters() if parameter.requires_grad)


def test_a_frozen_head_is_frozen_whole(make_graft: Make, folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="eyegraft"):
        _, model, plan = grafted(make_graft, folders, "frozen")
    assert not any(parameter.requires_grad for parameter in model.head.parameters())
    assert "head is frozen: 8,514 new numbers inside it stay as they are; they train under new, lora" in caplog.text
    assert {name for name in plan.saved if ".cross." in name}, "no file of weights holds them"


def test_a_part_without_new_layers_has_no_mode_for_them(make_graft: Make) -> None:
    _, model = make_graft()
    with pytest.raises(RecipeError, match=r"tune.head.mode=new, but nothing in this part is new"):
        make_plan(model, Settings.model_validate({"tune": {"head": "new"}}))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_checkpoint_holds_the_new_layers_under_one_name(make_graft: Make, folders: Any, tmp_path: Path, family: str) -> None:
    """With adapters and without; read back into a fresh model it gives the same logits, and PEFT puts the adapter on the bare model."""
    from peft import PeftModel

    names = []
    for tune in ("new", LORA):
        recipe, model, plan = grafted(make_graft, folders, tune, family)
        trained(model, plan)
        place = tmp_path / str(len(names))
        save_checkpoint(place, model, recipe, saved=plan.saved, facts={"stage": "only", "step": 1, "epoch": 0, "lineage": ["only"]})
        _, fresh, _ = grafted(make_graft, folders, tune if tune == "new" else None, family)
        names.append({name for name in load_weights(place, fresh) if name.startswith("head.")})
        model.eval(), fresh.eval()
        ours, theirs = (learned_logits(each.head, each.connect(each.encode(batch_for(each))), batch_for(each)) for each in (model, fresh))
        assert torch.equal(ours, theirs)
    assert names[0] == names[1]
    assert len(names[0]) == 2 * 10
    own = {name for name, _ in bare(folders, family).named_parameters()}
    assert {name.removeprefix("head.backbone.") for name in names[0]}.isdisjoint(own)
    assert PeftModel.from_pretrained(bare(folders, family), place / "adapter" / "head")


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gate_with_the_norm_after_it_would_not_close(folders: Any) -> None:
    with pytest.raises(ValidationError, match="gate=tanh with norm=post"):
        Config(model=folders.lm(), norm="post")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_layers": 3}, r"num_layers=3 of a language model with 2 layers(.|\n)*set head.num_layers=2"),
        ({"num_heads": 5}, r"5 heads over a language model of width 32(.|\n)*set head.num_heads=4"),
    ],
)
def test_a_number_that_does_not_fit_says_which_would(folders: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(PartError, match=match):
        made(folders, **options)


def _bloom(size: dict[str, Any]) -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(**size, n_layer=2, n_head=4))


def _falcon(size: dict[str, Any]) -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    return FalconForCausalLM(FalconConfig(**size, num_hidden_layers=2, num_attention_heads=4))


@pytest.mark.parametrize("family", [_bloom, _falcon])
def test_a_family_that_would_not_hand_the_image_down_is_refused(tmp_path: Path, family: Callable[[dict[str, Any]], Any]) -> None:
    family({"vocab_size": len(tiny.tokenizer(tmp_path)), "hidden_size": 32}).save_pretrained(tmp_path)
    with pytest.raises(PartError, match=r"no image reaches the layers(.|\n)*fix: choose such a model, or head.kind=prefix_lm"):
        build(Config(model=str(tmp_path), num_layers=1), in_dim=32, num_outputs=0)


def test_a_layer_without_self_attention_is_refused(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.heads.cross_attention_lm._SELF_ATTENTION", ("linear_attn",))
    with pytest.raises(PartError, match="a LlamaDecoderLayer, has no self-attention"):
        made(folders)


def test_a_forward_without_an_image_is_an_error_and_no_silence(folders: Any) -> None:
    with pytest.raises(PartError, match="no image reaches the layers"):
        made(folders).backbone(input_ids=torch.zeros(1, 3).long())


# ── real weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.packaged
def test_a_real_language_model_keeps_its_words_and_learns_two_pictures() -> None:
    """SmolLM2 with image tokens that stand for two pictures: same words first, then a caption each."""
    from transformers import AutoModelForCausalLM

    from eyegraft.pretrained import resolve

    torch.manual_seed(0)
    config = Config(model="packaged:smollm2-135m-instruct")
    head = build(config, in_dim=input_dim(config), num_outputs=0).eval()
    batch = tiny.text_batch(head.tokenizer, [("What is drawn here?", "a red square"), ("What is drawn here?", "a blue circle")])
    tokens = image_tokens(2, width=576)
    model = AutoModelForCausalLM.from_pretrained(resolve(config.model), dtype=torch.float32).eval()
    assert torch.equal(learned_logits(head, tokens, batch), bare_logits(model, batch))
    del model
    for parameter in head.parameters():
        parameter.requires_grad_(False)
    for parameter in head.new_parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.new_parameters, lr=1e-2)
    losses = []
    for _ in range(6):
        logits, labels = head(tokens, batch)
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses
    prompts = tiny.text_batch(head.tokenizer, [("What is drawn here?", None)] * 2)
    assert len(set(head.generate(tokens, prompts, max_new_tokens=6))) == 2
