"""Several processes that train one model together, as torchrun starts them: each takes a share of every batch.

What they do not share is small: the order of batches, the random start and every learned tensor are the same in all of them. After the
backward passes of a step their gradients are added up, once, in an order that is the same in each; so it does not matter how many passes
each of them had, whether it had any, or which tensors they reached. The first process alone writes.

Collective calls have a limit of time. Where one process has work of its own (checking pictures, filling a cache), the others wait without
one, through the store that torchrun keeps; there a process that fails says so, and the others end too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from eyegraft.console import silenced
from eyegraft.errors import RecipeError, RunError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
LIMIT = timedelta(minutes=30)
"""Of one collective call: how far apart processes may be in the work that all of them do."""
BUCKET = 16 * 2**20
"""Numbers of gradients that are added up at once."""
_LOOKS_EVERY = 0.05  # seconds


@dataclass(frozen=True)
class Launch:
    """How torchrun started this process: its number, of how many, and the same on this machine alone."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


class Stopped(RunError):
    """This process ends because another one did."""

    def __init__(self, given: str = "", expected: str = "", fix: str = "") -> None:
        super().__init__(
            given or "another process of this training ended, or did not answer",
            expected or "all of them, to the end",
            fix or "see what it said; the same command goes on from the last checkpoint",
        )


def launched() -> Launch:
    """What the environment says; alone where it says nothing."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in names))


def stop_if_several(what: str) -> None:
    """Raises:
    RunError: torchrun started several processes for what one does.
    """
    if launched().world > 1:
        raise RunError(f"{what} in {launched().world} processes", "torchrun for one training", "start it without torchrun")


# ── meeting and parting ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_store: Any = None
"""Of torchrun, shared by all processes while they live."""
_joins, _keys = count(), count()
_training = "eyegraft"
"""What the store's keys of the training at hand begin with: one process may train again and again."""
_claimed: bool | None = None


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Meet the other processes that torchrun started, if any; all but the first say only errors from then on. At the end all wait for each
    other.

    Args:
        device: of the recipe.

    Raises:
        RecipeError: there are more processes than GPUs, or the device is of no use to several.
    """
    global _store, _training, _claimed
    import torch.distributed as dist

    place = launched()
    if place.world == 1 or dist.is_initialized():
        yield
        return
    backend = _backend(device, place)
    _store = _store or _rendezvous(LIMIT)
    _training, _claimed = f"eyegraft/{next(_joins)}", None
    with answered():
        own = dist.PrefixStore(_training, _store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.world, timeout=LIMIT)
    whole = False
    try:
        with silenced() if place.rank else nullcontext():
            yield
            meet()
        whole = True
    finally:
        if not whole:
            speaks()  # before connections close: what others see of this comes after it
        if whole or backend == "gloo":  # NCCL would wait for what will not come
            dist.destroy_process_group()


def _rendezvous(limit: timedelta) -> Any:
    import torch.distributed as dist

    with answered():
        store, _, _ = next(dist.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
    return store


def _backend(device: str, place: Launch) -> str:
    import torch

    if _on_gpus(device):
        if place.local_world > torch.cuda.device_count():
            raise RecipeError(
                f"{place.local_world} processes on a machine with {torch.cuda.device_count()} GPUs",
                "a GPU for each process",
                f"torchrun --nproc-per-node={max(1, torch.cuda.device_count())}, or device=cpu",
            )
        torch.cuda.set_device(place.local_rank)
        return "cpu:gloo,cuda:nccl"
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        raise RecipeError(f"device={device}, here mps, with {place.world} processes", "cuda or cpu", "set device=cpu, or start one process")
    return "gloo"


def devices(device: str) -> Any:
    """What Lightning Fabric is to take of a recipe's device: one, and where each process has a GPU of its own, which one."""
    return [launched().local_rank] if several() and _on_gpus(device) else 1


def _on_gpus(device: str) -> bool:
    import torch

    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def speaks() -> bool:
    """Whether this process is the one to say why all of them end: the first that fails."""
    global _claimed, _store
    place = launched()
    if place.world == 1:
        return True
    if _claimed is None:
        try:
            _store = _store or _rendezvous(timedelta(seconds=20))
            _claimed = _store.add(f"{_training}/failed", 1) == 1
        except (RuntimeError, Stopped):
            _claimed = place.rank == 0
    return _claimed


def world() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def several() -> bool:
    return world() > 1


def rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if several() else 0


def first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def share() -> tuple[int, int]:
    """(number of this process, how many there are), as `eyegraft.data.batches.share_of` takes them."""
    return rank(), world()


def own_seed(*parts: object) -> tuple[object, ...]:
    """What a seed is derived from, so that chance differs between processes; of one process nothing is added."""
    return (*parts, "process", rank()) if several() else parts


@contextmanager
def answered() -> Iterator[None]:
    """Raises:
    Stopped: in place of what torch says when a connection ends or time is up.
    """
    try:
        yield
    except RuntimeError as error:  # all of torch's errors of communication are
        raise Stopped() from error


def meet() -> None:
    """Wait, without a limit, until all processes are here.

    Raises:
        Stopped: one of them failed.
    """
    if not several():
        return
    key = f"{_training}/met/{next(_keys)}"
    if _store is None:  # the group is not ours: it may have no store that is known to all
        import torch.distributed as dist

        with answered():
            dist.barrier()
        return
    with answered():
        there = _store.add(key, 1)
        while there < world():
            if _store.check([f"{_training}/failed"]):
                raise Stopped()
            time.sleep(_LOOKS_EVERY)
            there = _store.add(key, 0)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it without a limit."""
    if not several():
        return make()
    import torch.distributed as dist

    made: list[Any] = [make() if first() else None]
    meet()
    with answered():
        dist.broadcast_object_list(made, src=0)
    found: T = made[0]
    return found


def first_then_others(make: Callable[[], T]) -> T:
    """Every process makes it, the others when the first one has: they find what it left on the disk."""
    made = [make()] if first() else []
    meet()
    return made[0] if made else make()


# ── what is added up ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def gathered(value: T) -> list[T]:
    """What every process has, in the order of their numbers, in all of them. Tensors in it should lie on the CPU."""
    if not several():
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    with answered():
        dist.all_gather_object(found, value)
    return found


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values."""
    if not several():
        return
    import torch
    import torch.distributed as dist

    with torch.no_grad(), answered():
        for tensor in (tensor for tensor in tensors if tensor.numel()):
            values = tensor.detach().contiguous()
            dist.broadcast(values.view(-1).view(torch.uint8), src=0)  # as bytes, whatever the type
            tensor.copy_(values)


def same_everywhere(tensors: Iterable[Tensor]) -> bool:
    """Whether all processes hold the same bits, by a sum of them as whole numbers."""
    if not several():
        return True
    import torch

    mine = sum(int(tensor.detach().contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64)) for tensor in tensors)
    return len(set(gathered(mine))) == 1


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in each of them, in float32 or better. A tensor that none has a gradient of stays without."""
    if not several():
        return
    import torch

    mine = [place for place, parameter in enumerate(parameters) if parameter.grad is not None]
    reached = sorted({place for places in gathered(mine) for place in places})
    bucket: list[Tensor] = []
    for place in reached:
        parameter = parameters[place]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (bucket[0].dtype != parameter.grad.dtype or sum(map(torch.numel, bucket)) + parameter.numel() > BUCKET):
            _add(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _add(bucket)


def _add(gradients: Sequence[Tensor]) -> None:
    import torch
    import torch.distributed as dist

    dtype = torch.promote_types(gradients[0].dtype, torch.float32)
    flat = torch.cat([gradient.reshape(-1).to(dtype) for gradient in gradients])
    with answered():
        dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
