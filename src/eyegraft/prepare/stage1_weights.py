"""Vision weights of the earlier weather-report system to a folder that `vision_encoder.weights` takes.

It wrote an encoder by itself (`stage1_vision_encoder_mae.pt`, and `stage1_encoder_finetuned.pt` after text was learned), a Lightning
checkpoint of the masked autoencoder (`checkpoint_best.ckpt`) and a classifier (`standalone_classifier_efficientnet_b0_best.pt`). What is
known of them is what they are made of; what the tensors are called in them is not. The names below are those that such modules commonly
have. Where a file has others, the message lists what found no place and what is still missing, each with its shape, and `rename` tells
which is which.

Files are read as tensors and plain values alone. One that holds more, such as an optimiser's own classes, is refused: it could run code.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from eyegraft.config import Strict
from eyegraft.encoders._map_classifier import stop_at_misfits
from eyegraft.encoders._perceiver_layers import Trunk
from eyegraft.encoders.patch_perceiver import WEATHERQA
from eyegraft.encoders.timm import named_model
from eyegraft.errors import DataError, PartError, shown
from eyegraft.files import write_atomically

log = logging.getLogger(__name__)


class Config(Strict):
    """Attributes:
    encoder: file of the perceiver; it may hold the classifier too, below `classifier.`. None: the classifier alone is converted.
    classifier: file of the classifier, of timm or torchvision. None takes what the encoder's file has of it.
    classifier_model: its name in timm.
    classes: in the order of their numbers.
    folder: where `model.safetensors` is written, from data.base_dir.
    rename: regular expression -> replacement, for whole names, wrappers taken off; tried before the common names.
    leave: regular expressions of names that are left, beside decoders and heads that tell the class while pretraining.
    """

    encoder: str | None = None
    classifier: str | None = None
    classifier_model: str = "efficientnet_b0"
    classes: Annotated[tuple[str, ...], Field(min_length=2)] = WEATHERQA
    folder: str = "stage1_weights"
    rename: dict[str, str] = {}
    leave: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _something(self) -> Config:
        if self.encoder is None and self.classifier is None:
            raise ValueError("give encoder=FILE, classifier=FILE, or both")
        for pattern in (*self.rename, *self.leave):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return self


WRAPPERS = (
    "module",
    "model",
    "_orig_mod",
    "mae",
    "net",
    "encoder",
    "vision_encoder",
    "image_encoder",
    "stage1_encoder",
    "perceiver",
    "backbone",
)
"""First parts of names that say who holds a module, not what it is."""
LEFT = (
    r"(decoder|mask_token|recon|pixel_head|cond_head|condition_head|cond_classifier|to_pixels)(\b|_).*",
    r"(head|classifier)\.(weight|bias)",
)
_BLOCK, _MIXTURE = r"(?:blocks|layers)\.(\d+)\.", r"(?:moe|mlp|ffn|mixture)\."
NAMES = {
    r"(?:patch_embed(?:ding)?|to_patch(?:_embedding)?|patches|conv)(?:\.proj)?\.(weight|bias)": r"patches.\1",
    r"(?:pos(?:ition(?:al)?)?_embed(?:ding)?s?|positions)(?:\.weight)?": "positions",
    r"(?:(?:type|cond|condition|class)_embed(?:ding)?s?|types)\.weight": "types.weight",
    r"latents?(?:_tokens|_queries)?(?:\.weight)?": "latents",
    r"(?:cross_attn|cross_attention|reading)\.(.+)": r"reading.\1",
    r"(?:norm_latents|norm_q|ln_q|cross_norm_q|cross_attn_norm_q)\.(weight|bias)": r"norm_latents.\1",
    r"(?:norm_patches|norm_kv|ln_kv|cross_norm_kv|cross_attn_norm_kv)\.(weight|bias)": r"norm_patches.\1",
    r"(?:norm|ln_f|final_norm|norm_out|out_norm)\.(weight|bias)": r"norm.\1",
    rf"{_BLOCK}(?:attn|self_attn|self_attention|attention)\.(.+)": r"blocks.\1.attention.\2",
    rf"{_BLOCK}(?:norm1|ln1|ln_1|norm_attention|attn_norm)\.(weight|bias)": r"blocks.\1.norm_attention.\2",
    rf"{_BLOCK}(?:norm2|ln2|ln_2|norm_mixture|moe_norm|mlp_norm)\.(weight|bias)": r"blocks.\1.norm_mixture.\2",
    rf"{_BLOCK}{_MIXTURE}(?:gate|router)\.(weight|bias)": r"blocks.\1.mixture.router.\2",
    rf"{_BLOCK}{_MIXTURE}experts\.(\d+)\.(?:net\.)?(?:0|fc1|w1)\.(weight|bias)": r"blocks.\1.mixture.in.\2.\3",
    rf"{_BLOCK}{_MIXTURE}experts\.(\d+)\.(?:net\.)?(?:2|3|fc2|w2)\.(weight|bias)": r"blocks.\1.mixture.out.\2.\3",
}
"""Common name -> ours. Names that are ours already pass."""


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `model.safetensors` with the perceiver, the classifier or both.

    Raises:
        DataError: a file is missing, damaged, or holds more than tensors.
        PartError: its tensors are not those of the module; the message lists them.
    """
    from safetensors.torch import save

    found: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"about": "weights of the earlier weather-report system", "classes": list(config.classes)}
    beside: dict[str, Tensor] = {}
    if config.encoder is not None:
        tensors, beside = _parts_of(bare(read_tensors(Path(config.encoder).expanduser(), "prepare.encoder")))
        perceiver = perceiver_of(tensors, config)
        found |= {f"perceiver.backbone.{name}": tensor for name, tensor in perceiver.items()}
        facts |= {"encoder": Path(config.encoder).name, "sizes": sizes_of(perceiver, config.encoder)}
        log.info("give vision_encoder these sizes, and num_heads, which no tensor tells: %s", facts["sizes"])
    if config.classifier is not None:
        beside = read_tensors(Path(config.classifier).expanduser(), "prepare.classifier")
        facts |= {"classifier": Path(config.classifier).name}
    if beside:
        place = "classifier" if config.classifier is not None else "encoder"
        classifier = classifier_of(beside, config, f"prepare.{place}: the classifier in {getattr(config, place)}")
        found |= {f"classifier.backbone.{name}": tensor for name, tensor in classifier.items()}
    file = target / config.folder / "model.safetensors"
    whole = {name: tensor.contiguous().clone() for name, tensor in found.items()}
    write_atomically(file, save(whole, metadata={"format": "pt", "classes": json.dumps(list(config.classes))}))
    return {"files": {file: facts}}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_tensors(file: Path, place: str) -> dict[str, Tensor]:
    """Name -> tensor of what `torch.save` or safetensors wrote: a state dict, or a mapping that holds one.

    Args:
        place: the recipe's key, for messages.

    Raises:
        DataError: no such file, a damaged one, or one that is more than tensors and plain values.
    """
    if not file.is_file():
        raise DataError(f"{place}: no file at {file}", "a .pt, .ckpt or .safetensors file", "check the path")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))  # the rest of torch's message advises to run what the file holds
        raise DataError(
            f"{place}: {file} {f'holds more than tensors and plain values: {refused[1]}' if refused else 'is no file of torch.save'}",
            "tensors, numbers, texts, lists and mappings alone: anything else could run code",
            "where you trust it, save its state_dict as .safetensors with a tool of your own",
        ) from error
    except Exception as error:  # safetensors and torch raise many types for a damaged file
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{place}: {file} cannot be read: {said}", "a whole file", "copy it again") from error
    state = next((content[key] for key in ("state_dict", "model_state_dict", "model", "encoder") if _is_state(content, key)), content)
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise DataError(f"{place}: {file} holds no tensors by name", "a state_dict", "give the file with the weights")
    return tensors


def _is_state(content: Any, key: str) -> bool:
    found = content.get(key) if isinstance(content, Mapping) else None
    return isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values())


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the wrappers before them. Of two that would become one, neither is touched."""
    short: dict[str, list[str]] = {}
    for name in tensors:
        rest = name.split(".")
        while len(rest) > 1 and rest[0] in WRAPPERS:
            rest = rest[1:]
        short.setdefault(".".join(rest), []).append(name)
    return {new if len(olds) == 1 else old: tensors[old] for new, olds in short.items() for old in olds}


_CLASSIFIER = re.compile(
    r"(?:classifier|cls|cls_model|efficientnet|condition_classifier)\.(?=.*(?:features\.|conv_stem|blocks\.|classifier))"
)


def _parts_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the perceiver's, a classifier's)"""
    if not any(_CLASSIFIER.match(name) for name in tensors):
        return dict(tensors), {}
    inside = ("classifier.", "cls.", "cls_model.", "efficientnet.", "condition_classifier.")
    theirs = {name.split(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(inside)}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(inside)}, theirs


# ── the perceiver ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def perceiver_of(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Tensors by common names -> those of `Trunk`, in float32.

    Raises:
        PartError: lists what found no place, and what is missing.
    """
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in (*config.leave, *LEFT)):
            continue
        new = _renamed(name, config.rename)
        if new is None:
            strange.append(f"{name} {list(tensor.shape)}")
        elif new in found:
            raise PartError(f"prepare.encoder: two tensors are {new}, one of them {name}", "one", "leave one out by prepare.leave")
        else:
            found[new] = tensor.to(torch.float32)
    found = _stacked(_with_thirds(found))
    for name in ("positions", "latents"):
        if name in found and found[name].ndim == 3 and len(found[name]) == 1:
            found[name] = found[name][0]
    types = found.get("types.weight")
    if types is not None and len(types) == len(config.classes):  # one more stands for a class that is not told: the middle of all
        found["types.weight"] = torch.cat([types, types.mean(0, keepdim=True)])
    _stop(found, strange, config)
    return found


def _renamed(name: str, rename: Mapping[str, str]) -> str | None:
    for pattern, new in [*rename.items(), *NAMES.items()]:
        matched = re.fullmatch(pattern, name)
        if matched:
            return matched.expand(new)
    return None


def _with_thirds(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's attention keeps query, key and value in one tensor."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        packed = re.fullmatch(r"(.+)\.(?:in_proj_|qkv\.)(weight|bias)", name)
        if packed:
            made |= {
                f"{packed[1]}.{part}.{packed[2]}": piece for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            }
        else:
            made[re.sub(r"\.(?:out_proj|proj)\.(weight|bias)$", r".out.\1", name)] = tensor
    return made


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one -> one tensor of all; their matrices are kept the other way round."""
    made = {name: tensor for name, tensor in tensors.items() if not re.search(r"\.mixture\.(in|out)\.", name)}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        matched = re.fullmatch(r"(.+\.mixture)\.(in|out)\.(\d+)\.(weight|bias)", name)
        if matched:
            kind = "w" if matched[4] == "weight" else "b"
            experts.setdefault(f"{matched[1]}.{kind}_{matched[2]}", {})[int(matched[3])] = tensor.T if kind == "w" else tensor
    for name, found in experts.items():
        if sorted(found) != list(range(len(found))) or len({tensor.shape for tensor in found.values()}) > 1:
            raise PartError(f"prepare.encoder: {name} of experts {sorted(found)}", "experts 0, 1, 2 … of one shape", "give a whole file")
        made[name] = torch.stack([found[number] for number in range(len(found))])
    return made


def sizes_of(tensors: Mapping[str, Tensor], file: str | None) -> dict[str, int]:
    """What `vision_encoder` must be given, read off the shapes.

    Raises:
        PartError: the tensors that tell it are not there.
    """
    needed = ("patches.weight", "positions", "latents", "types.weight", "blocks.0.mixture.router.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise PartError(
            f"prepare.encoder: {file}: nothing in it is {shown(missing)}",
            "patches, positions, latents, types of maps and a mixture of experts",
            'name what is which by prepare.rename, such as \'{"embed\\.conv\\.(weight|bias)": "patches.\\1"}\'',
        )
    patch = tensors["patches.weight"].shape[-1]
    return {
        "image_size": round(len(tensors["positions"]) ** 0.5) * patch,
        "patch_size": patch,
        "dim": tensors["latents"].shape[-1],
        "num_latents": len(tensors["latents"]),
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_experts": len(tensors["blocks.0.mixture.router.weight"]),
    }


def _stop(found: dict[str, Tensor], strange: Sequence[str], config: Config) -> None:
    """Compare with the module of these sizes; a router may come without bias."""
    try:
        sizes = sizes_of(found, config.encoder)
    except PartError as error:
        raise PartError(f"{error.given}; {len(strange)} found no place: {shown(strange, 12)}", error.expected, error.fix) from error
    for name in [name for name in found if name.endswith("router.weight")]:
        found.setdefault(name.replace("weight", "bias"), torch.zeros(len(found[name])))
    with torch.device("meta"):
        wanted = Trunk(
            patch=sizes["patch_size"],
            num_patches=len(found["positions"]),
            num_classes=len(config.classes),
            dim=sizes["dim"],
            num_latents=sizes["num_latents"],
            heads=1,
            depth=sizes["depth"],
            experts=sizes["num_experts"],
            top_k=1,
        ).state_dict()
    faults = {
        "without a place": strange,
        "missing": [f"{name} {list(tensor.shape)}" for name, tensor in wanted.items() if name not in found],
        "unknown": [f"{name} {list(tensor.shape)}" for name, tensor in found.items() if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)} for {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    said = [f"\n  {len(names)} {what}: {shown(names, 12)}" for what, names in faults.items() if names]
    if said:
        raise PartError(
            f"prepare.encoder: {config.encoder}, wrappers taken off:{''.join(said)}",
            f"the {len(wanted)} tensors of a patch perceiver with {sizes}",
            "say which is which by prepare.rename, and name by prepare.leave what is not of the encoder",
        )


# ── the classifier ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def classifier_of(tensors: Mapping[str, Tensor], config: Config, place: str) -> dict[str, Tensor]:
    """A classifier's tensors -> timm's names, in float32. torchvision's EfficientNets are the same layers in the same order.

    Raises:
        PartError: timm has no such model, or lists what does not fit.
    """
    given = {name: tensor for name, tensor in bare(tensors).items() if not name.endswith("num_batches_tracked")}
    with torch.device("meta"):
        made = named_model("prepare.classifier_model", config.classifier_model, pretrained=False, num_classes=len(config.classes))
    counters = {name: torch.zeros((), dtype=torch.int64) for name in made.state_dict() if name.endswith("num_batches_tracked")}
    wanted = {name: tensor for name, tensor in made.state_dict().items() if name not in counters}
    if any(name.startswith("features.0.") for name in given) and len(given) == len(wanted):
        pairs = list(zip(given.items(), wanted.items(), strict=True))
        if all(old.shape == new.shape and a.rsplit(".", 1)[1] == b.rsplit(".", 1)[1] for (a, old), (b, new) in pairs):
            given = {new: tensor for (_, tensor), (new, _) in pairs}
    expected = f"{config.classifier_model} of timm or torchvision with {len(config.classes)} outputs"
    stop_at_misfits(place, given, wanted, expected, "check prepare.classifier_model and prepare.classes")
    return {**{name: given[name].to(torch.float32) for name in wanted}, **counters}
