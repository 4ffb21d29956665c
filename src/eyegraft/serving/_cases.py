"""A case of weather maps as its users keep it, or as a command line names it: what is in it, checked before a model is asked."""

from __future__ import annotations

import json
import ntpath
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyegraft.errors import DataError, nearest, shown

_CLASS_KEYS = ("type_name", "cond_name")
_LAYOUT = '{"case_id": …, "elements": [{"image_rel_path": …, "type_name": …}]}'


@dataclass(frozen=True)
class Element:
    """One map of a case.

    Attributes:
        image: as the case names it.
        path: where the picture lies.
        condition: the class that the case names, None where it names none.
        caption: the text that the case itself brings; no prompt holds it.
    """

    image: str
    path: Path
    condition: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Case:
    """Attributes:
    id: None where the maps were named one by one.
    root: the folder that relative images lie in.
    elements: at least one.
    summary: the text that the case itself brings.
    """

    id: str | None
    root: Path
    elements: tuple[Element, ...]
    summary: str | None = None


def read_case(file: Path, *, image_root: Path | None = None, case_id: str | None = None) -> Case:
    """A case of a JSON file in the layout of WeatherQA's users: an object with `elements`, or a list of such.

    Args:
        image_root: where `image_rel_path` starts; None: the file's folder.
        case_id: which of several.

    Raises:
        DataError: no such file or case, no elements, an image that is missing or outside the root.
    """
    entry = _picked(file, _entries(file), case_id)
    name = _text(entry.get("case_id"))
    said = f"{file}: case {name!r}" if name else str(file)
    elements = entry.get("elements")
    if not isinstance(elements, list) or not elements:
        given = f"{said} has {'no elements' if not elements else f'elements {elements!r:.60}'}"
        raise DataError(given, f"one map or more: {_LAYOUT}", "name the maps of the case, or take another")
    root = file.parent if image_root is None else image_root
    found = tuple(_element(element, root, f"{said}, element {number}") for number, element in enumerate(elements, 1))
    return Case(name, root, found, _text(entry.get("global_summary")))


def case_of_words(words: Sequence[str]) -> Case:
    """Maps that are named one by one, `IMAGE=condition` or, where the run can tell the class itself, `IMAGE`.

    Raises:
        DataError: an image is missing.
    """
    elements = []
    for word in words:
        image, _, condition = (word, "", "") if Path(word).expanduser().is_file() else word.rpartition("=")
        path = Path(image or word).expanduser()
        if not path.is_file():
            raise DataError(f"--case {word}: no image {path}", "image files, each as IMAGE=condition, or one JSON file", "check the path")
        elements.append(Element(image or word, path, condition or None))
    return Case(None, Path(), tuple(elements))


def _entries(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"--case {file}: {error.strerror or error}", f"a JSON file: {_LAYOUT}", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}", _LAYOUT, "mend the file") from error
    return content if isinstance(content, list) else [content]


def _picked(file: Path, entries: Sequence[Any], case_id: str | None) -> Mapping[str, Any]:
    strange = [entry for entry in entries if not isinstance(entry, Mapping)]
    if strange or not entries:
        given = f"{file} holds {f'{strange[0]!r:.60}' if strange else 'no case'}"
        raise DataError(given, f"a case or a list of cases: {_LAYOUT}", "give a file in this layout")
    names = [_text(entry.get("case_id")) for entry in entries]
    fitting = [entry for entry, name in zip(entries, names, strict=True) if case_id is None or name == case_id]
    if len(fitting) != 1:
        known = [name for name in names if name]
        which = f"{len(fitting)} cases" if case_id is None else f"{len(fitting) or 'no'} cases {case_id!r}"
        fix = nearest(case_id or "", known) or f"name one: --case-id {known[0]}" if known else "give each case a case_id of its own"
        raise DataError(f"{file} has {which}", f"one of {shown(known)}", fix)
    found: Mapping[str, Any] = fitting[0]
    return found


def _element(entry: Any, root: Path, place: str) -> Element:
    given = entry if isinstance(entry, Mapping) else {}
    image = _text(given.get("image_rel_path"))
    if image is None:
        raise DataError(f"{place} names no image: {entry!r:.80}", '{"image_rel_path": …, "type_name": …}', "give image_rel_path")
    classes = {value for key in _CLASS_KEYS if (value := _text(given.get(key))) is not None}
    if len(classes) > 1:
        raise DataError(f"{place} is of two classes, {' and '.join(sorted(classes))}", "one of type_name and cond_name", "keep one")
    inside = posixpath.normpath(image.replace("\\", "/"))
    path = root / inside
    leads_out = posixpath.isabs(inside) or ntpath.splitdrive(inside)[0] or inside.split("/")[0] == ".."
    if leads_out or (path.is_file() and not path.resolve().is_relative_to(root.resolve())):  # a link out of the root is out of it too
        given_place = f"{place}: image {image!r} lies outside {root}"
        raise DataError(given_place, "a path within the image root", "name the folder that all images lie in: --image-root FOLDER")
    if not path.is_file():
        fix = "name the folder that images lie in: --image-root FOLDER, or restore the file"
        raise DataError(f"{place}: no image {path}", f"a file within {root}", fix)
    caption = None if given.get("error") else _text(given.get("caption"))
    return Element(image, path, next(iter(classes), None), caption)


def _text(value: Any) -> str | None:
    """A text or number as text; None where there is nothing."""
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text or None
