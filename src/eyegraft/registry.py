"""A folder is a registry: `kind: mlp` in a recipe is the file `connectors/mlp.py`, found when it is asked for."""

from __future__ import annotations

import pkgutil
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType

from eyegraft.config import Part, Strict
from eyegraft.errors import PartError, nearest

_plugins: list[str] = []


def use_plugin(package: str) -> None:
    """Look for parts in `package.encoders`, `package.heads` … too. Named by the user, never by a recipe: a recipe runs no code."""
    try:
        import_module(package)
    except ImportError as error:
        raise PartError(
            f"--plugin {package}: {error}", "the name of an importable package", "install it, or add its parent folder to PYTHONPATH"
        ) from error
    if package not in _plugins:
        _plugins.append(package)


def named_plugins() -> tuple[str, ...]:
    """The packages that the user named."""
    return tuple(_plugins)


def plugins() -> tuple[str, ...]:
    """The packages named by the user, and the installed ones that offer themselves under the entry point `eyegraft.plugins`."""
    return tuple(dict.fromkeys([*_plugins, *_offered(tuple(sys.path))]))


@cache
def _offered(search_path: tuple[str, ...]) -> tuple[str, ...]:
    """Looked up once for a search path: it reads the metadata of all that is installed, and a recipe asks 70 times."""
    return tuple(point.value for point in entry_points(group="eyegraft.plugins"))


def _room_packages(room: str) -> list[ModuleType]:
    packages = [import_module(f"eyegraft.{room}")]
    for plugin in plugins():
        try:
            packages.append(import_module(f"{plugin}.{room}"))
        except ModuleNotFoundError as error:
            if error.name != f"{plugin}.{room}":
                raise
    return packages


def kinds(room: str) -> dict[str, str]:
    """The parts of a room: kind -> module name. Files that start with an underscore are shared code, not parts."""
    found: dict[str, str] = {}
    for package in _room_packages(room):
        for info in pkgutil.iter_modules(package.__path__):
            if not info.name.startswith("_"):
                found[info.name] = f"{package.__name__}.{info.name}"
    return found


def module_of(room: str, kind: str) -> ModuleType:
    """Import the file behind a kind."""
    available = kinds(room)
    if kind not in available:
        raise PartError(f"{room}: unknown kind {kind!r}", f"one of {', '.join(sorted(available))}", nearest(kind, available))
    return import_module(available[kind])


def configured(room: str, part: Part) -> tuple[ModuleType, Strict]:
    """The module behind a part and its validated `Config`. Call `module.build(config, ...)` with measured widths."""
    module = module_of(room, part.kind)
    return module, module.Config.model_validate(part.options)
