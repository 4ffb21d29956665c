"""How much memory a stage that writes texts will take on a GPU, from the recipe alone: no weights are read, modules have shapes only.

In bytes, for P parameters of which Q train (in float32), T tokens in one forward (image and text, all rows of a batch), a bytes a number
(2 under bf16 or fp16, else 4):

    weights        the size of every parameter; in 4 bits with double quantisation 4.127 bits a number (Dettmers et al. 2023, section 3)
    training       12 Q: a gradient and Adam's two moments in float32 (Rajbhandari et al. 2020, ZeRO, section 3.1)
    copies         2 for each float32 number, which autocast keeps in half precision until the backward
    activations    T · L · (8 h + 2 a q + 2 a k + 3 a f + Σ d (a + 1)), for L layers of width h, queries of width q, keys of width k and a
                   gated MLP of width f (2 f in place of 3 f without gate); the sum is over adapted linear layers with inputs of width d,
                   with a byte of dropout mask. What a layer keeps is counted as Korthikanti et al. 2022 (Reducing Activation
                   Recomputation in Large Transformer Models, section 4.1) do, with these differences: norms keep float32, attention keeps
                   no scores (Dao et al. 2022), and frozen linear layers do not keep their inputs.
    answers        10 V for each text token: logits of V words in half precision, in float32, and their gradient
    device         0.5 GiB of context and kernels

Left out: what an encoder keeps for the backward, little beside a language model, and what a frozen one needs for a moment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from eyegraft.answering import of_blank
from eyegraft.config import Part, Recipe, Settings
from eyegraft.model import Graft
from eyegraft.registry import configured
from eyegraft.training.building import build_model, build_objective, build_task
from eyegraft.tuning import make_plan

GIB = 2**30
GPUS = (8, 12, 16, 24, 32, 40, 48, 80, 141)
"""GiB of usual cards."""
DEVICE = 0.5 * GIB
FOUR_BITS = 4.127 / 8


def budget_of(recipe: Recipe) -> Iterator[str]:
    """A line for each stage that trains through a language model; nothing where there is none. Why it cannot be told is a line too."""
    _, head = configured("heads", recipe.head)
    if not hasattr(head, "quantize"):
        return
    try:
        with _quietly(), torch.device("meta"):
            model = build_model(_bare(recipe))
        packed = set(_linear_of(model.head)) if head.quantize != "none" else set()
        for name in recipe.stage_names:
            with _quietly(), torch.device("meta"):
                line = _of_stage(recipe, name, model, packed)
            if line:
                yield line
    except Exception as error:  # what has shapes alone, libraries refuse in many ways, and the check-up must go on
        yield f"memory budget: not known, {getattr(error, 'given', None) or str(error).splitlines()[0]}"


def _of_stage(recipe: Recipe, name: str, model: Graft, packed: set[int]) -> str | None:
    """Args:
    packed: ids of the parameters that will be held in 4 bits.
    """
    settings = recipe.stage(name)
    task = build_task(recipe, settings)
    if getattr(build_objective(task, settings), "reads", ()):  # encoders alone
        return None
    plan = make_plan(model, settings)
    half = settings.precision != "32-true"
    tokens, words = _tokens(recipe, settings, model)
    sizes = [p.numel() * (FOUR_BITS if id(p) in packed else p.element_size()) for p in model.parameters()]
    parts = {
        "weights": sum(sizes),
        "gradients and Adam": 12 * sum(row.trainable for row in plan.rows),
        "copies in half precision": sum(2 * p.numel() for p in model.parameters() if p.dtype == torch.float32) if half else 0,
        "activations": activations(model.head, tokens, half) + 10 * words * _config_of(model.head).vocab_size,
        "the device": DEVICE,
    }
    total = sum(parts.values()) / GIB
    card = next((size for size in GPUS if size >= total), None)
    told = " + ".join(f"{what} {size / GIB:.1f}" for what, size in parts.items() if size)
    fits = f"fits a GPU of {card} GB, {card - total:.1f} GiB to spare" if card else f"more than a GPU of {GPUS[-1]} GB has"
    return f"memory budget of {name}, batches of {settings.batch_size}, {words} tokens of text: {told} = {total:.1f} GiB: {fits}"


def activations(head: nn.Module, tokens: int, half: bool) -> float:
    """Bytes that the language model keeps for the backward of so many tokens, adapters included."""
    config, width = _config_of(head), 2 if half or next(head.parameters()).dtype != torch.float32 else 4
    hidden, heads = config.hidden_size, config.num_attention_heads
    each = getattr(config, "head_dim", None) or hidden // heads
    keys = each * (getattr(config, "num_key_value_heads", None) or heads)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    gated = any(name.endswith("gate_proj") for name, _ in head.named_modules())
    layer = 8 * hidden + 2 * width * each * heads + 2 * width * keys + (3 if gated else 2) * width * inner
    kept = 2 if half else 4  # adapters compute in float32 where nothing casts them
    layers: list[Any] = [module for module in head.modules() if hasattr(module, "lora_A")]
    adapted = sum(int(adapter.in_features) * (kept + 1) for adapter in layers)
    return float(tokens * (config.num_hidden_layers * layer + adapted))


def _tokens(recipe: Recipe, settings: Settings, model: Graft) -> tuple[int, int]:
    """(all, of text) in one forward at the limits of the tasks. Image tokens are left out where shapes alone do not tell them."""
    limits = [getattr(configured("tasks", recipe.tasks[name])[1], "max_text_tokens", 0) for name in recipe.tasks_of(settings)]
    words = settings.packing or settings.batch_size * max(limits)
    if not getattr(model.head, "tokens_in_context", True):
        return words, words
    try:
        with torch.no_grad():
            images = model.fusion(of_blank(model)).mask.shape[1]
    except (NotImplementedError, RuntimeError):  # a forward that looks at values
        images = 0
    return words + (0 if settings.packing else settings.batch_size * images), words


def _config_of(head: Any) -> Any:
    return head.backbone.config.get_text_config()


def _linear_of(head: nn.Module) -> Iterator[int]:
    """The matrices that 4 bits hold: all but the output layer and the embeddings."""
    last = head.backbone.get_output_embeddings()  # type: ignore[operator,union-attr]
    for module in head.modules():
        if isinstance(module, nn.Linear) and module is not last:
            yield id(module.weight)


def _bare(recipe: Recipe) -> Recipe:
    """The same parts with no weights to read."""
    named = {"vision_encoder": "encoders", "text_encoder": "encoders", "context_encoder": "encoders", "head": "heads"}
    parts = {key: _without_weights(room, part) for key, room in named.items() if (part := getattr(recipe, key)) is not None}
    return recipe.model_copy(update=parts)


def _without_weights(room: str, part: Part) -> Part:
    _, config = configured(room, part)
    return Part(kind=part.kind, **_emptied(config.model_dump()))


_NONE = {"pretrained": False, "weights": None, "checkpoint": None, "quantize": "none"}


def _emptied(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _NONE[key] if key in _NONE else _emptied(value) if isinstance(value, dict) and key != "architecture" else value
        for key, value in options.items()
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Parts warn of random weights, which these are not meant to be."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
