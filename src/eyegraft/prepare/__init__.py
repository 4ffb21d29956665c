"""A raw source to a prepared data set on disk. One file (or folder) a source; each has `Config` and `prepare(config, target) -> dict`.

A prepared data set is a folder with one table a split, the images, and `manifest.json`: what it is, where it came from, under which
licence, how many rows were left out and why, and the SHA-256 of every file.

A source whose raw material may lie in that folder too gives `outputs`, the files that are its own, and only these are listed. A patch store
in it is listed by its own manifest, which has the hashes of its shards.

A source that adds single files to what the user has, as `ocr` does, gives `{"files": {path: facts}}` instead: then each of these files has
its own `NAME.manifest.json`, and nothing else in the folder is read or written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eyegraft.config import Recipe
from eyegraft.errors import RecipeError
from eyegraft.files import file_sha256, write_atomically
from eyegraft.registry import configured

log = logging.getLogger(__name__)


def prepare_data(recipe: Recipe) -> Path:
    """Make the data set that a recipe reads; gives its folder, or the single file that was made. What is there and whole is left as it is.

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
    made: dict[str, Any] = module.prepare(config, target)
    origin = {"source": recipe.prepare.kind, "options": recipe.prepare.options}
    files: dict[Path, dict[str, Any]] | None = made.get("files")
    left_out = made.get("left_out") or {}
    if said := ", ".join(f"{count} {reason}" for reason, count in left_out.items() if isinstance(count, int)):
        log.info("left out of %s: %s", target, said)
    if files is None:
        outputs = made.pop("outputs", None)
        inside = _inside(target) if outputs is None else [target / name for name in outputs]
        _write_manifest(target / "manifest.json", {**origin, **made}, sorted(inside))
        return target
    for file, facts in files.items():
        _write_manifest(manifest_of(file), {**origin, **facts}, [file])
    return next(iter(files)) if len(files) == 1 else target


def _inside(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json" and not path.name.startswith(".")]


def manifest_of(file: Path) -> Path:
    """The manifest of a single file that was prepared beside others."""
    return file.with_name(f"{file.name}.manifest.json")


def unchanged(file: Path) -> bool:
    """Whether a single prepared file is still as its manifest says: then nobody has worked on it, and it may be made again."""
    try:
        recorded = json.loads(manifest_of(file).read_text(encoding="utf-8"))["files"][file.name]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(recorded == file_sha256(file))


def _write_manifest(place: Path, facts: Mapping[str, Any], files: Iterable[Path]) -> None:
    hashes = {path.relative_to(place.parent).as_posix(): file_sha256(path) for path in files}
    write_atomically(place, json.dumps({**facts, "files": hashes}, indent=1, ensure_ascii=False))
