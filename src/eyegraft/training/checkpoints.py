"""Checkpoint directories: written whole or not at all, verified by hash, and free of pickle.

config.json          what this is: stage, step, epoch, lineage, tensors and adapters inside
model.safetensors    every tensor outside adapters that was ever trained
adapter/<part>/      adapters in PEFT's own format
tokenizer/           the language model's, where there is one
recipe.yaml          the resolved recipe
optimizer.safetensors, trainer.json    what resuming needs; only in `latest`
manifest.json        SHA-256 of every file above
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eyegraft.config import Recipe
from eyegraft.errors import RunError, shown
from eyegraft.files import disk_errors, file_sha256
from eyegraft.model import Graft
from eyegraft.pretrained import ready, tame_bitsandbytes
from eyegraft.tuning import canonical, is_adapted

log = logging.getLogger(__name__)
FORMAT = 1
OBJECTIVE = "objective."
"""How names of an objective's own tensors begin."""
FINAL = "model_final.safetensors"
"""In a stage's folder once it has ended: the tensors of its best checkpoint."""
_NAMES = tuple(f"{name}{state}" for name in ("best", "latest") for state in ("", ".writing", ".previous"))


def checkpoints_of(stage: Path) -> Path:
    """The folder of a stage's `best` and `latest`: `checkpoints`. In runs of before there was one they lie in the stage's folder itself,
    and go on there."""
    before = not (stage / "checkpoints").is_dir() and any((stage / name).is_dir() for name in _NAMES)
    return stage if before else stage / "checkpoints"


def keep_final(stage: Path, checkpoint: Path) -> None:
    """Give the tensors of a checkpoint their place in the stage's folder, whole or not at all, and without a second copy where the file
    system can do without. Adapters stay in the checkpoint, in PEFT's own format."""
    draft = stage / f".{FINAL}.tmp"
    source = checkpoint / "model.safetensors"
    with disk_errors(stage / FINAL):
        draft.unlink(missing_ok=True)
        try:
            os.link(source, draft)  # a checkpoint's files are never written again: a new one is a new folder
        except OSError:  # such as FAT, or some network drives
            shutil.copyfile(source, draft)
            with draft.open("rb+") as stream:
                os.fsync(stream.fileno())
        draft.replace(stage / FINAL)
        draft.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing
        _sync_folder(stage)


def save_checkpoint(
    folder: Path,
    model: Graft,
    recipe: Recipe,
    *,
    saved: set[str],
    facts: Mapping[str, Any],
    extra_modules: Mapping[str, nn.Module] | None = None,
    optimizer: Mapping[str, Tensor] | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint beside `folder` and put it in its place; the one before stays as `<folder>.previous` until the next save.

    Args:
        saved: canonical names of the tensors to keep (see `TrainablePlan.saved`).
        facts: stage, step, epoch, lineage and metric, for `config.json`.
        extra_modules: an objective with parameters, as {"objective": module}.
        optimizer: flat optimiser tensors; trainer: loop position.
    """
    working = folder.with_name(f"{folder.name}.writing")
    with disk_errors(folder):
        _remove(working)
        working.mkdir(parents=True)
        tensors = _trained_tensors(model, saved, extra_modules or {})
        save_file(tensors, working / "model.safetensors")
        adapters = _save_adapters(model, working)
        tokenizer = getattr(model.head, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(working / "tokenizer")
        (working / "recipe.yaml").write_text(yaml.safe_dump(recipe.plain(), allow_unicode=True, sort_keys=False), encoding="utf-8")
        config = {"format": FORMAT, **facts, "tensors": sorted(tensors), "adapters": adapters}
        (working / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
        if optimizer is not None and trainer is not None:
            save_file(dict(optimizer), working / "optimizer.safetensors")
            (working / "trainer.json").write_text(json.dumps(trainer), encoding="utf-8")
        _write_manifest(working)
        _put_in_place(folder)


def settle(folder: Path) -> None:
    """Finish a save that was killed after its last file and before its renames, so that the next save finds nothing half-way."""
    if damage(folder.with_name(f"{folder.name}.writing")) is None:
        _put_in_place(folder)


def _put_in_place(folder: Path) -> None:
    working, previous = folder.with_name(f"{folder.name}.writing"), folder.with_name(f"{folder.name}.previous")
    if folder.exists():
        _remove(previous)
        folder.rename(previous)
    working.rename(folder)
    _sync_folder(folder.parent)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def find_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under a name: itself, one that was complete but not yet in place, or the one before. Damaged ones are
    passed over with a message."""
    found: list[tuple[int, Path]] = []
    for candidate in (folder, folder.with_name(f"{folder.name}.writing"), folder.with_name(f"{folder.name}.previous")):
        if not candidate.is_dir():
            continue
        fault = damage(candidate)
        if fault is None:
            found.append((int(read_config(candidate)["step"]), candidate))
        elif candidate == folder or fault != "not finished":
            log.warning("passing over %s: %s", candidate, fault)
    return max(found, key=lambda item: item[0])[1] if found else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None when every file is there and has its hash."""
    try:
        manifest: Any = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "not finished"
    except (OSError, ValueError) as error:
        return f"manifest.json cannot be read ({error})"
    if not isinstance(manifest, dict):
        return "manifest.json is no manifest"
    wrong = [name for name, digest in manifest.items() if not (folder / name).is_file() or file_sha256(folder / name) != digest]
    return f"{shown(wrong)} missing or changed" if wrong else None


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        raise RunError(
            f"{folder}: checkpoint format {config.get('format')!r}", f"format {FORMAT}", "use the version of eyegraft that wrote it"
        )
    return config


def load_weights(folder: Path, model: Graft) -> set[str]:
    """Put a checkpoint's tensors and adapters into a freshly assembled model; gives the canonical names of the tensors. Those of an
    objective are left (see `load_objective`).

    Raises:
        RunError: the checkpoint is damaged or does not fit the model.
    """
    fault = damage(folder)
    if fault:
        raise RunError(f"{folder}: {fault}", "a whole checkpoint", "use another checkpoint of the run, such as latest or latest.previous")
    config = read_config(folder)
    for part in config["adapters"]:
        _load_adapter(folder / "adapter" / part, model.parts()[part])
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if not name.startswith(OBJECTIVE)}
    targets = _state(model, {})
    unknown = sorted(set(tensors) - set(targets))
    wrong = [name for name in tensors if name in targets and tensors[name].shape != targets[name].shape]
    if unknown or wrong:
        raise RunError(
            f"{folder} does not fit this model: {shown(unknown + wrong, 3)}",
            "a checkpoint of a model of the same parts",
            "take the parts that the recipe.yaml beside it names, or start from an earlier stage that lacks these (init_from=RUN/STAGE)",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)
    return set(tensors)


def with_state(objective: Any) -> dict[str, nn.Module]:
    """An objective that has tensors of its own, under the name that checkpoints give it."""
    return {"objective": objective} if isinstance(objective, nn.Module) and objective.state_dict() else {}


def load_objective(folder: Path, objective: Any) -> None:
    """Put back what an objective had of its own at a checkpoint of its stage, into one that met the same model.

    Raises:
        RunError: the checkpoint is of another objective.
    """
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name.removeprefix(OBJECTIVE): file.get_tensor(name) for name in file.keys() if name.startswith(OBJECTIVE)}  # noqa: SIM118
    state: Mapping[str, Tensor] = objective.state_dict() if isinstance(objective, nn.Module) else {}
    wrong = [name for name in {*state, *tensors} if name not in state or name not in tensors or state[name].shape != tensors[name].shape]
    if wrong:
        raise RunError(
            f"{folder} does not fit this objective: {shown(sorted(wrong), 3)}",
            "a checkpoint of the same stage, with the same objective",
            "load it with the recipe.yaml beside it",
        )
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _state(model: nn.Module, extra_modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    state = {canonical(name): tensor for name, tensor in model.state_dict(keep_vars=False).items() if ".lora_" not in name}
    for prefix, module in extra_modules.items():
        state |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
    return state


def _trained_tensors(model: nn.Module, saved: set[str], extra_modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    state = _state(model, extra_modules)
    wanted = {name for name in state if name in saved or name.split(".")[0] in extra_modules}
    return {name: state[name].detach().cpu().contiguous() for name in sorted(wanted)}


def _save_adapters(model: Graft, folder: Path) -> list[str]:
    names = []
    for name, part in model.parts().items():
        backbone: Any = getattr(part, "backbone", None)
        if is_adapted(backbone):
            from peft import get_peft_model_state_dict

            place = folder / "adapter" / name
            place.mkdir(parents=True)
            state = get_peft_model_state_dict(backbone, save_embedding_layers=False)
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, place / "adapter_model.safetensors")
            backbone.peft_config["default"].save_pretrained(str(place))
            names.append(name)
    return names


def _load_adapter(folder: Path, part: Any) -> None:
    ready()
    tame_bitsandbytes()
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    try:
        if not is_adapted(part.backbone):
            config = LoraConfig.from_pretrained(str(folder))
            config.base_model_name_or_path = None  # the recipe says where it is now, which need not be where it was
            part.backbone = get_peft_model(part.backbone, config)
        result = set_peft_model_state_dict(part.backbone, load_file(folder / "adapter_model.safetensors"))
        wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if ".lora_" in key)]
    except (ValueError, RuntimeError) as error:  # no module of that name, or another shape
        wrong = [str(error).splitlines()[0]]
    if wrong:
        raise RunError(f"{folder} does not fit this model: {shown(wrong, 3)}", "the adapter of the same base model", "check head.model")


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in (*files, path):
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
