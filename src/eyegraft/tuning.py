"""The trainable plan: the one place that decides what requires a gradient, at which rate, and what a checkpoint holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.config import Lora, Settings, Tune
from eyegraft.errors import RecipeError, TrainingError, shown
from eyegraft.model import ENCODER_NAMES, Graft
from eyegraft.pretrained import ready, tame_bitsandbytes

log = logging.getLogger(__name__)


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
    """Pretrained parts are frozen, new ones train. A part may name another mode: without its new layers it would teach nothing."""
    own: Any = getattr(part, "default_mode", "frozen")
    return Tune(mode=own if getattr(part, "backbone", None) is not None else "full")


def make_plan(model: Graft, settings: Settings, *, objective: nn.Module | None = None, saved: Iterable[str] = ()) -> TrainablePlan:
    """Apply a stage's `tune` to a model: adapters are added, `requires_grad` is set, parameter groups are made.

    A layer that is new inside a pretrained part (its `new_parameters`) trains wherever the part does, under `last_n` and `lora` too, and
    alone under `new`: no file of weights holds it, and every checkpoint does. A frozen part is frozen whole: the layer stays as it was
    drawn, as the log says.

    Args:
        objective: meets the model here (`attach`), when its parts are as they will train. It may bring parameters of its own; those that
            require a gradient train fully. Parts behind the encoders that it `reads` get no gradient, and are frozen.
        saved: what earlier stages trained, which every later checkpoint must hold too.

    Raises:
        RecipeError: `tune` asks for what a part cannot do, or nothing would train.
    """
    plan = TrainablePlan(saved=set(saved))
    reached = _reached(model, objective)
    for name, part in model.parts().items():
        _add(plan, model, name, part, _tune_of(name, part, settings, objective, reached), settings)
    if objective is not None:
        _stop_where_nothing_read_trains(plan, objective, reached, settings)
        attach: Any = getattr(objective, "attach", None)
        if attach is not None:
            attach(model)
        _add_objective(plan, objective, settings)
    plan.saved |= {canonical(name) for name in _buffers_beside(model, plan.saved)}
    if not plan.groups:
        raise RecipeError(
            "every part is frozen: nothing would train", "at least one part with mode last_n, full or lora", "set train.tune.connector=full"
        )
    return plan


def _reached(model: Graft, objective: nn.Module | None) -> set[str]:
    """The parts that a loss can reach: all of them, or the encoders alone whose tokens the objective reads."""
    reads = getattr(objective, "reads", ())
    absent = [modality for modality in reads if modality not in model.encoders]
    if absent:
        raise RecipeError(
            f"objective {_kind(objective)} reads tokens of {shown(absent)}, but the model encodes {shown(sorted(model.encoders))}",
            f"a recipe with {shown([ENCODER_NAMES[modality] for modality in absent])}",
            "name that encoder, or another objective",
        )
    trains, parts = set(getattr(objective, "trains", ())), set(model.parts())
    if not trains <= parts:
        raise RecipeError(
            f"objective {_kind(objective)} trains {shown(sorted(trains))}, but the model has {shown(sorted(parts), 12)}",
            f"a vision_encoder with {shown(sorted(trains - parts))}",
            "choose vision_encoder=patch_perceiver with a classifier, or another objective",
        )
    return trains or {ENCODER_NAMES[modality] for modality in reads} or parts


def _kind(objective: Any) -> str:
    """`mae` of `eyegraft.objectives.mae.MAE`."""
    return type(objective).__module__.split(".")[-1]


def _tune_of(name: str, part: nn.Module, settings: Settings, objective: Any, reached: set[str]) -> Tune:
    told = settings.tune_of(name)
    if name in reached:
        return told or default_tune(part)
    if told is not None and told.mode != "frozen":
        raise RecipeError(
            f"tune.{name}={told.mode} under objective {_kind(objective)}, which reads {shown(sorted(reached))} and nothing behind it",
            f"frozen: no gradient reaches {name}",
            f"set stages.NAME.tune.{name}=frozen there, or move tune.{name} to the stages that read it",
        )
    return Tune(mode="frozen")


def _stop_where_nothing_read_trains(plan: TrainablePlan, objective: Any, reached: set[str], settings: Settings) -> None:
    """An objective that learns from tokens alone would teach its own decoder, and no later stage would know of it."""
    if getattr(objective, "reads", ()) and not plan.groups:
        names, way = shown(sorted(reached)), f"set stages.NAME.tune.{min(reached)}=full (or lora, last_n)"
        if settings.freeze_backbone is not None and "vision_encoder" in reached:
            way = "set stages.NAME.freeze_backbone=false with finetune_layers=-1 (or N, or lora.enabled=true)"
        raise RecipeError(
            f"objective {_kind(objective)} in a stage where {names} is frozen: nothing that it learns would be kept",
            f"{names} with mode lora, last_n or full",
            f"{way} for the stage of this objective",
        )


def _add(plan: TrainablePlan, model: Graft, name: str, part: nn.Module, tune: Tune, settings: Settings) -> None:
    """Set `requires_grad` of a part and write it into the plan."""
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    chosen = _chosen(name, part, tune)
    for parameter in chosen:
        parameter.requires_grad_(True)
    names = {id(parameter): key for key, parameter in model.named_parameters()}  # after adapters were put in
    rate = tune.learning_rate or settings.learning_rate
    total = sum(_numbers(parameter) for parameter in part.parameters())
    if total:
        plan.rows.append(PlanRow(name, tune.mode, total, sum(p.numel() for p in chosen), rate if chosen else None))
    plan.groups += _groups(name, chosen, names, rate, settings.weight_decay)
    kept = {canonical(names[id(parameter)]) for parameter in [*chosen, *_new_parameters(part)]}
    plan.saved |= {key for key in kept if ".lora_" not in key}  # adapters have a file of their own


def _add_objective(plan: TrainablePlan, objective: nn.Module, settings: Settings) -> None:
    """Its own parameters train unless it made them otherwise, as those of a teacher; checkpoints of its stage hold all its state."""
    names = {id(parameter): f"objective.{key}" for key, parameter in objective.named_parameters()}
    chosen = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if names:
        total, trainable = (sum(parameter.numel() for parameter in found) for found in (objective.parameters(), chosen))
        plan.rows.append(PlanRow("objective", "full", total, trainable, settings.learning_rate if chosen else None))
    plan.groups += _groups("objective", chosen, names, settings.learning_rate, settings.weight_decay)


def _numbers(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for: in 4 bits two of them share a byte."""
    state: Any = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def _new_parameters(part: nn.Module) -> list[nn.Parameter]:
    """Layers inside a pretrained part that its weights do not hold."""
    return list(getattr(part, "new_parameters", ()))


def _chosen(name: str, part: nn.Module, tune: Tune) -> list[nn.Parameter]:
    new = _new_parameters(part)
    if tune.mode == "frozen":
        if new:
            number = sum(parameter.numel() for parameter in new)
            log.info(
                "%s is frozen: %s new numbers inside it stay as they are; they train under new, lora, last_n or full", name, f"{number:,}"
            )
        return []
    if tune.mode == "new":
        if not new:
            raise RecipeError(f"tune.{name}.mode=new, but nothing in this part is new", "frozen, last_n, full or lora", "use mode frozen")
        return new
    if tune.mode == "lora":
        return [*add_adapter(name, part, tune.lora), *new]
    chosen = list(part.parameters())
    if tune.mode == "last_n":
        blocks = getattr(part, "blocks", None)
        if blocks is None:
            raise RecipeError(f"tune.{name}.mode=last_n, but this part has no blocks", "frozen or full", f"set train.tune.{name}=full")
        if tune.last_n > len(blocks):
            raise RecipeError(f"tune.{name}.last_n={tune.last_n}", f"at most {len(blocks)} blocks", "use mode full")
        chosen = [parameter for block in blocks[-tune.last_n :] for parameter in block]
        last = {id(parameter) for parameter in chosen}
        chosen += [parameter for parameter in new if id(parameter) not in last]
    packed = [parameter for parameter in chosen if not parameter.is_floating_point()]
    if packed:
        raise RecipeError(
            f"tune.{name}.mode={tune.mode} on quantised weights, which hold no gradient",
            "lora, which trains beside them" + (", or new" if new else ""),
            f"set train.tune.{name}=lora, or {name}.quantize=none",
        )
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
    tame_bitsandbytes()
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
    new = {id(parameter) for parameter in _new_parameters(part)}  # they train themselves
    layers = {
        key.removesuffix(".base_layer"): module for key, module in layers.items() if ".lora_" not in key and id(module.weight) not in new
    }
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
