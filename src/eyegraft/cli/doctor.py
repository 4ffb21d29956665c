"""`eyegraft doctor`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

HELP = "look over this machine, or with recipe=NAME what a recipe would train on"

_EXTRAS = {
    "timm": ("timm", "torchvision"),
    "gguf": ("gguf",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "sweep": ("optuna",),
    "ocr": ("rapidocr",),
    "panorama": ("cv2",),
    "quantize": ("bitsandbytes",),
    "satellite": ("dask", "h5netcdf", "pyorbital", "pyproj", "sklearn", "scipy", "xarray", "zarr"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="recipe=NAME key=value", help="a recipe, then overrides")


def run(arguments: argparse.Namespace) -> None:
    import sys

    from eyegraft.training.processes import launched

    if launched().rank:  # the first process says it for all
        return
    for line in _machine():
        print(line)
    if arguments.overrides:
        from eyegraft.cli.show import named
        from eyegraft.composition import compose, to_plain, validate
        from eyegraft.training.budget import budget_of
        from eyegraft.training.checkup import check_recipe

        recipe = validate(to_plain(compose(named(arguments.overrides))))
        print(f"\nrecipe {recipe.recipe}: {recipe.title}")
        for line in budget_of(recipe):  # first: neither weights nor data need be there
            print(line, flush=True)
        for line in check_recipe(recipe, colour=sys.stdout.isatty()):
            print(line, flush=True)


def _machine() -> Iterator[str]:
    import platform
    import shutil
    from importlib.util import find_spec

    import psutil
    import torch

    from eyegraft.pretrained import cache_dir
    from eyegraft.training.processes import launched
    from eyegraft.training.runs import versions

    threads = torch.get_num_threads()
    cores = f"{psutil.cpu_count(logical=False)} cores, torch uses {threads}"
    yield f"{platform.system()} {platform.machine()}, {cores}"
    yield "  ".join(f"{name} {number}" for name, number in versions().items())
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    yield f"memory {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free, disk {disk.free / 2**30:.1f} GiB free here"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.1f} GiB"
    elif torch.backends.mps.is_available():
        yield "mps"
    else:
        yield "no GPU: everything runs on the CPU"
    yield f"processes {launched().world}" + ("" if launched().world > 1 else " (torchrun starts several, which then train together)")
    yield f"cache {cache_dir()}"
    for extra, packages in _EXTRAS.items():
        missing = [name for name in packages if find_spec(name) is None]
        yield f"extra {extra:<12}" + (f"missing {', '.join(missing)}: pip install 'eyegraft[{extra}]'" if missing else "ok")
