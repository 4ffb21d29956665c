"""The trainable plan: the one place that decides what requires a gradient, at which rate, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.config import Lora, Settings, Tune
from eyegraft.errors import RecipeError, TrainingError, shown
from eyegraft.model import Graft
from eyegraft.pretrained import ready


@dataclass(frozen=True)
class PlanRow:
    """One line of the table that is printed at the start of a stage. Counts are of single numbers, not of tensors."""

    part: str
    mode: str
    parameters: int
    trainable: int
    learning_rate: float | None


@dataclass
class TrainablePlan:
    """What one stage trains.

    Attributes:
        rows: one a part.
        groups: optimiser parameter groups; each has `params`, `lr`, `weight_decay` and `names`.
        saved: canonical names of all tensors outside adapters that a checkpoint must hold (trained now or by an earlier stage).
    """

    rows: list[PlanRow] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    saved: set[str] = field(default_factory=set)

    def table(self) -> str:
        lines = [f"{'part':<16}{'mode':<10}{'parameters':>14}{'trainable':>14}{'lr':>10}"]
        for row in self.rows:
            rate = f"{row.learning_rate:.1e}" if row.learning_rate else "-"
            lines.append(f"{row.part:<16}{row.mode:<10}{row.parameters:>14,}{row.trainable:>14,}{rate:>10}")
        return "\n".join(lines)


def canonical(name: str) -> str:
    """A parameter's name without the wrapping that adapters add, so that it is the same with and without them."""
    return name.replace("base_model.model.", "").replace(".base_layer.", ".")


def default_tune(part: nn.Module) -> Tune:
    """Pretrained parts are frozen, new ones train."""
    return Tune(mode="frozen" if getattr(part, "backbone", None) is not None else "full")


def make_plan(model: Graft, settings: Settings, *, objective: nn.Module | None = None, saved: Iterable[str] = ()) -> TrainablePlan:
    """Apply a stage's `tune` to a model: adapters are added, `requires_grad` is set, parameter groups are made.

    Args:
        objective: may bring parameters of its own; they train fully.
        saved: what earlier stages trained, which every later checkpoint must hold too.
    """
    plan = TrainablePlan(saved=set(saved))
    parts = model.parts()
    if objective is not None and any(True for _ in objective.parameters()):
        parts["objective"] = objective
    names = {id(parameter): name for root in (model, objective) if root is not None for name, parameter in root.named_parameters()}
    for part_name, part in parts.items():
        tune = settings.tune_of(part_name) or default_tune(part)
        for parameter in part.parameters():
            parameter.requires_grad_(False)
        chosen = _chosen(part_name, part, tune)
        for parameter in chosen:
            parameter.requires_grad_(True)
        if tune.mode == "lora":
            names |= {id(parameter): name for name, parameter in model.named_parameters()}
        rate = tune.learning_rate or settings.learning_rate
        total = sum(parameter.numel() for parameter in part.parameters())
        trainable = sum(parameter.numel() for parameter in chosen)
        if total:
            plan.rows.append(PlanRow(part_name, tune.mode, total, trainable, rate if chosen else None))
        plan.groups += _groups(part_name, chosen, names, rate, settings.weight_decay)
        if tune.mode != "lora":
            plan.saved |= {canonical(names[id(parameter)]) for parameter in chosen}
    plan.saved |= {canonical(name) for name in _buffers_beside(model, plan.saved)}
    if not plan.groups:
        raise RecipeError(
            "every part is frozen: nothing would train", "at least one part with mode last_n, full or lora", "set train.tune.connector=full"
        )
    return plan


def _chosen(name: str, part: nn.Module, tune: Tune) -> list[nn.Parameter]:
    if tune.mode == "frozen":
        return []
    if tune.mode == "lora":
        return add_adapter(name, part, tune.lora)
    chosen = list(part.parameters())
    if tune.mode == "last_n":
        blocks = getattr(part, "blocks", None)
        if blocks is None:
            raise RecipeError(f"tune.{name}.mode=last_n, but this part has no blocks", "frozen or full", f"set train.tune.{name}=full")
        if tune.last_n > len(blocks):
            raise RecipeError(f"tune.{name}.last_n={tune.last_n}", f"at most {len(blocks)} blocks", "use mode full")
        chosen = [parameter for block in blocks[-tune.last_n :] for parameter in block]
    low = [parameter.dtype for parameter in chosen if parameter.dtype in (torch.float16, torch.bfloat16)]
    if low:
        raise RecipeError(
            f"tune.{name}.mode={tune.mode} on weights in {str(low[0]).removeprefix('torch.')}",
            "float32 weights: small updates round away in half precision and nothing would move",
            "set dtype=float32 for that part and train.precision=bf16-mixed, or train it by lora",
        )
    return chosen


def _groups(part: str, chosen: list[nn.Parameter], names: Mapping[int, str], rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and single vectors do not."""
    groups = []
    for suffix, decay, members in (
        ("decay", weight_decay, [p for p in chosen if p.ndim > 1]),
        ("no_decay", 0.0, [p for p in chosen if p.ndim <= 1]),
    ):
        if members:
            groups.append(
                {"params": members, "names": [names[id(p)] for p in members], "name": f"{part}/{suffix}", "lr": rate, "weight_decay": decay}
            )
    return groups


def _buffers_beside(model: nn.Module, saved: set[str]) -> set[str]:
    """Persistent buffers of modules that hold a saved parameter, such as running statistics."""
    found = set()
    persistent = set(model.state_dict())
    for prefix, module in model.named_modules():
        own = [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if any(canonical(name) in saved for name in own):
            found |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)} & persistent
    return found


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_adapted(backbone: Any) -> bool:
    """Whether a backbone wears PEFT's adapter (asked without importing PEFT, which takes seconds)."""
    return hasattr(backbone, "peft_config") and hasattr(backbone, "base_model")


def add_adapter(name: str, part: nn.Module, lora: Lora) -> list[nn.Parameter]:
    """Wrap a part's backbone with PEFT's LoRA, or find the adapter that an earlier stage left there; gives its parameters."""
    ready()
    from peft import LoraConfig, get_peft_model

    backbone: Any = getattr(part, "backbone", None)
    if backbone is None:
        raise RecipeError(
            f"tune.{name}.mode=lora, but this part has no pretrained backbone",
            "lora on vision_encoder or head",
            f"set train.tune.{name}=full",
        )
    targets = _adapted_modules(name, part, lora)
    if not is_adapted(backbone):
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            use_dora=lora.use_dora,
            use_rslora=lora.use_rslora,
            fan_in_fan_out=any(not isinstance(backbone.get_submodule(target), nn.Linear) for target in targets),
            task_type="CAUSAL_LM" if hasattr(backbone, "generate") else None,
        )
        part.backbone = get_peft_model(backbone, config)
    else:
        there = backbone.peft_config["default"]
        wearing = {canonical(key) for key, module in backbone.named_modules() if hasattr(module, "lora_A")}  # PEFT shortens long lists
        before = (there.r, there.lora_alpha, there.lora_dropout, there.use_dora, there.use_rslora)
        if before != (lora.rank, lora.alpha, lora.dropout, lora.use_dora, lora.use_rslora) or wearing != set(targets):
            raise RecipeError(
                f"tune.{name}.lora differs from the adapter of an earlier stage",
                "rank {}, alpha {}, dropout {}, use_dora {}, use_rslora {}, and the same modules".format(*before),
                "keep one adapter a part",
            )
    adapted: Any = part.backbone
    return [parameter for key, parameter in adapted.named_parameters() if "lora_" in key]


def _adapted_modules(name: str, part: Any, lora: Lora) -> list[str]:
    """Full names of the linear layers to adapt. Read off the module, so that a misspelt name cannot silently adapt nothing."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, stored transposed

    layers = {
        canonical(key): module
        for key, module in part.backbone.named_modules()
        if isinstance(module, nn.Linear | Conv1D) or key.endswith(".base_layer")
    }
    layers = {key.removesuffix(".base_layer"): module for key, module in layers.items() if ".lora_" not in key}
    if not layers:
        raise RecipeError(
            f"tune.{name}.mode=lora on {type(part.backbone).__name__}, which has no linear layer",
            "a transformer; a convolutional network trains by its last blocks or in full",
            f"set train.tune.{name}.mode=last_n (train.freeze_backbone=false train.finetune_layers=N in recipes that say it so)",
        )
    head = part.backbone.get_output_embeddings() if hasattr(part.backbone, "get_output_embeddings") else None
    if lora.target_modules == "all-linear":
        chosen = {key: module for key, module in layers.items() if module is not head}
    else:
        chosen = {key: module for key, module in layers.items() if key.split(".")[-1] in lora.target_modules or key in lora.target_modules}
        unknown = [word for word in lora.target_modules if not any(key == word or key.split(".")[-1] == word for key in layers)]
        if unknown:
            raise RecipeError(
                f"tune.{name}.lora.target_modules: no linear layer is called {', '.join(unknown)}",
                f"names such as {shown(sorted({key.split('.')[-1] for key in layers}), 12)}",
                "or all-linear",
            )
    if lora.target_layers is not None:
        last = {id(parameter) for block in part.blocks[-lora.target_layers :] for parameter in block}
        chosen = {key: module for key, module in chosen.items() if id(module.weight) in last}
    if not chosen:
        raise RecipeError(
            f"tune.{name}.lora finds no linear layer",
            "target_modules and target_layers that meet somewhere",
            "use target_modules=all-linear",
        )
    return sorted(chosen)


# ── modes and proof ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def set_training_mode(model: nn.Module) -> None:
    """Training mode for what trains. Frozen parts stay in evaluation mode (no dropout), and batch norms keep their pretrained statistics:
    small batches would spoil them, and gradient accumulation would no longer equal one large batch."""

    def descend(module: nn.Module, inherited: bool) -> None:
        parameters = list(module.parameters())
        trains = any(parameter.requires_grad for parameter in parameters) if parameters else inherited  # a bare dropout follows its owner
        module.training = trains and not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for child in module.children():
            descend(child, trains)

    descend(model, False)


def prove(step: Any, model: nn.Module, batches: Iterable[Any], backward: Any, planned: Iterable[nn.Parameter]) -> None:
    """One probe step: the tensors that require a gradient are those that the optimiser holds, and each of them gets one. Nothing changes.

    Tensors that start at exactly zero (LoRA's B, gates) hide the gradient of their neighbours: for the probe they get small values.

    Args:
        step: batch -> (summed losses [B], counts [B], …).
        batches: together they reach every tensor: the samples as they are, and without each modality that something learned stands for.
        backward: what takes the loss back (Fabric's own, for scaled precisions).
        planned: the parameters of all optimiser groups.

    Raises:
        TrainingError: names the tensors at fault.
    """
    generator = torch.Generator().manual_seed(0)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = {id(parameter) for parameter in planned}
    astray = [name for name, parameter in model.named_parameters() if parameter.requires_grad != (id(parameter) in held)]
    if astray:
        raise TrainingError(
            f"{len(astray)} tensors are trained by the model and not by the optimiser, or the other way: {shown(astray, 4)}",
            "one trainable plan for both",
            "leave `requires_grad` to train.tune",
        )
    zeroed = {name: parameter for name, parameter in trainable.items() if not parameter.detach().any()}
    originals: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in zeroed.items()}
    try:
        with torch.no_grad():
            for parameter in zeroed.values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1e-2)
        for batch in batches:
            sums, counts, *_ = step(batch)
            loss = sums.sum() / counts.sum()
            if loss.requires_grad:  # else nothing trains, which is said below
                backward(loss)
        without = [name for name, parameter in trainable.items() if parameter.grad is None or not parameter.grad.any()]
    finally:
        with torch.no_grad():
            for name, value in originals.items():
                zeroed[name].copy_(value)
        model.zero_grad(set_to_none=True)
    if without:
        raise TrainingError(
            f"{len(without)} of {len(trainable)} trainable tensors get no gradient: {shown(without, 4)}",
            "a gradient for each tensor of the trainable plan",
            "freeze what the forward does not use, or reload a quantised model that was switched to inference",
        )
