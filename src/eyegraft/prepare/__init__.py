"""A raw source to a prepared data set on disk. One file (or folder) a source; each has `Config` and `prepare(config, target) -> dict`.

A prepared data set is a folder with one table a split, the images, and `manifest.json`: what it is, where it came from, under which
licence, how many rows were left out and why, and the SHA-256 of every file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eyegraft.config import Recipe
from eyegraft.errors import RecipeError
from eyegraft.files import file_sha256, write_atomically
from eyegraft.registry import configured


def prepare_data(recipe: Recipe) -> Path:
    """Make the data set that a recipe reads; gives its folder. What is there and whole is left as it is.

    Raises:
        RecipeError: the recipe reads the user's own tables and has nothing to prepare.
    """
    if recipe.prepare is None:
        raise RecipeError(
            f"recipe={recipe.recipe} has no `prepare`",
            "a recipe that makes its own data",
            "this one reads tables as they are: run `eyegraft train`",
        )
    module, config = configured("prepare", recipe.prepare)
    target = Path(recipe.data.base_dir).expanduser()
    facts: dict[str, Any] = module.prepare(config, target)
    _write_manifest(target, {"source": recipe.prepare.kind, "options": recipe.prepare.options, **facts})
    return target


def _write_manifest(target: Path, facts: Mapping[str, Any]) -> None:
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.name != "manifest.json" and not path.name.startswith("."))
    hashes = {path.relative_to(target).as_posix(): file_sha256(path) for path in files}
    write_atomically(target / "manifest.json", json.dumps({**facts, "files": hashes}, indent=1, ensure_ascii=False))
