"""Language models in 4 bits, under both heads: they train by adapters on a CPU, before and after an evaluation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import tiny
from eyegraft.config import Settings
from eyegraft.errors import PartError, RecipeError
from eyegraft.heads import cross_attention_lm, prefix_lm
from eyegraft.objectives.cross_entropy import CrossEntropy
from eyegraft.tuning import make_plan, prove, set_training_mode
from eyegraft.types import IGNORE, Tokens

Make = Callable[..., Any]
PAIRS = [("What is drawn here?", "a red square"), ("Name it:", "파란 동그라미")]
HEADS: dict[str, dict[str, Any]] = {"prefix_lm": {}, "cross_attention_lm": {"num_layers": 2}}
both = pytest.mark.parametrize("kind", HEADS)


def grafted(make_graft: Make, model: str, kind: str, tune: Any, **options: Any) -> tuple[Any, Any]:
    """(model, plan)."""
    _, graft = make_graft(head={"kind": kind, "model": model, "quantize": "nf4", **HEADS[kind], **options})
    return graft, make_plan(graft, Settings.model_validate({"tune": {"head": tune}, "learning_rate": 0.01}))


def batch_for(model: Any) -> Any:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return tiny.text_batch(model.head.tokenizer, PAIRS, pixels)


def losses(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    loss = CrossEntropy()(model(batch), batch)
    return loss.sums, loss.counts


def evaluated(model: Any) -> None:
    """What a validation does: a loss and an answer, in evaluation mode and without gradients."""
    model.eval()
    batch = batch_for(model)
    with torch.inference_mode():
        losses(model, batch)
        model.head.generate(model.connect(model.encode(batch)), batch, max_new_tokens=3)


LORAS: dict[str, dict[str, Any]] = {
    "named": {"rank": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "dense"], "dropout": 0.05},
    "all-linear": {"rank": 4},
    "dora": {"rank": 4, "use_dora": True},
    "rslora": {"rank": 4, "use_rslora": True},
}


@both
@pytest.mark.parametrize("lora", LORAS)
def test_adapters_learn_after_an_evaluation_as_before(make_graft: Make, folders: Any, kind: str, lora: str) -> None:
    """bitsandbytes repacks weights in evaluation on some CPUs, for a kernel without gradients: then all that follows would learn nothing."""
    model, plan = grafted(make_graft, folders.lm("phi"), kind, {"mode": "lora", "lora": LORAS[lora]}, dtype="bfloat16")
    planned = [parameter for group in plan.groups for parameter in group["params"]]
    packed = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    assert len(packed) == 12, "every linear layer but the output"
    optimizer = torch.optim.AdamW(plan.groups)
    found = []
    for _ in range(3):
        evaluated(model)
        set_training_mode(model)
        prove(lambda batch: losses(model, batch), model, [batch_for(model)], lambda loss: loss.backward(), planned)
        before = [parameter.detach().clone() for parameter in planned]
        sums, counts = losses(model, batch_for(model))
        loss = sums.sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert not any(torch.equal(parameter, old) for parameter, old in zip(planned, before, strict=True))
    assert found[-1] < found[0]
    assert all(torch.equal(parameter, packed[name]) for name, parameter in model.named_parameters() if name in packed)


@both
def test_four_bits_say_nearly_the_same(folders: Any, kind: str) -> None:
    module = {"prefix_lm": prefix_lm, "cross_attention_lm": cross_attention_lm}[kind]
    tokens = Tokens(torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1)), torch.ones(2, 4).bool())
    found = []
    for quantize in ("none", "nf4"):
        torch.manual_seed(0)
        config = module.Config(model=folders.lm(), quantize=quantize, **HEADS[kind])
        head = module.build(config, in_dim=32, num_outputs=0).eval()
        with torch.no_grad():
            logits, labels = head(tokens, tiny.text_batch(head.tokenizer, PAIRS))
        found.append(logits[labels != IGNORE].flatten())
    assert 0.95 < float(torch.corrcoef(torch.stack(found))[0, 1]) < 0.9999


@both
@pytest.mark.parametrize("tune", ["full", {"mode": "last_n", "last_n": 1}], ids=["full", "last_n"])
def test_weights_in_four_bits_do_not_train_themselves(make_graft: Make, folders: Any, kind: str, tune: Any) -> None:
    with pytest.raises(RecipeError, match=r"on quantised weights(.|\n)*set train.tune.head=lora"):
        grafted(make_graft, folders.lm(), kind, tune)


def test_the_plan_counts_numbers_and_not_bytes(make_graft: Make, folders: Any) -> None:
    model, plan = grafted(make_graft, folders.lm(), "cross_attention_lm", "new")
    _, whole = make_graft(head={"kind": "cross_attention_lm", "model": folders.lm(), **HEADS["cross_attention_lm"]})
    row = next(row for row in plan.rows if row.part == "head")
    assert row.parameters == sum(parameter.numel() for parameter in whole.head.parameters())
    assert row.trainable == sum(parameter.numel() for parameter in model.head.new_parameters)


@both
def test_random_weights_are_not_quantised(folders: Any, kind: str) -> None:
    module = {"prefix_lm": prefix_lm, "cross_attention_lm": cross_attention_lm}[kind]
    with pytest.raises(ValidationError, match="quantize=nf4 of random weights"):
        module.Config(model=folders.lm(), quantize="nf4", pretrained=False)


def test_without_bitsandbytes_the_remedy_is_named(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.heads._language_model.find_spec", lambda name: None)
    with pytest.raises(PartError, match=r"bitsandbytes is not installed(.|\n)*pip install 'eyegraft\[quantize\]'"):
        prefix_lm.build(prefix_lm.Config(model=folders.lm(), quantize="nf4"), in_dim=32, num_outputs=0)


def test_where_bitsandbytes_cannot_work_the_remedy_is_named(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its library for the machine does not load."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Attempted to use bitsandbytes native library functionality but it's not available.\nmore")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", broken)
    with pytest.raises(PartError, match=r"bitsandbytes cannot quantise here(.|\n)*set head.quantize=none"):
        prefix_lm.build(prefix_lm.Config(model=folders.lm(), quantize="nf4"), in_dim=32, num_outputs=0)


def test_importing_bitsandbytes_fetches_no_code(tmp_path: Path) -> None:
    """Where the package `kernels` is beside it, its import asks the hub for compiled code, on some CPUs."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    print('fetched')\n", encoding="utf-8")
    code = "from eyegraft.pretrained import tame_bitsandbytes as tame; tame(); import sys; print('bitsandbytes' in sys.modules, 'kernels' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True
    )
    assert done.stdout == "True False\n"
    assert "kernels" not in done.stderr
