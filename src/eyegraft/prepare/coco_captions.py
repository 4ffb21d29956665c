"""Pictures with captions by people: COCO Captions from its official files, or the same from `datasets` and WebDataset shards.

Every caption is a row; rows of one picture become one sample with several references outside `train` (see `data.merge_references`).

The official files: https://cocodataset.org/#format-data, {images: [{id, file_name}], annotations: [{id, image_id, caption}]}
(Chen et al. 2015, Microsoft COCO Captions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eyegraft.config import Strict
from eyegraft.errors import DataError, shown
from eyegraft.prepare._pairs import Gathering, Refused, Sources, parsed
from eyegraft.prepare._shards import is_shards

NO_CAPTION = "empty caption"
NO_ENTRY = "no image entry"
DUPLICATE = "duplicate annotation id"
AMBIGUOUS = "duplicate image id"
UNUSED = "image without a caption"
BROKEN = "broken entry"


class Columns(Strict):
    """Of tables that are no official file; shards have none.

    Attributes:
        image: the picture or its path.
        caption: a text, or a list of texts.
        id: of the picture; None numbers the rows.
    """

    image: str = "image"
    caption: str = "caption"
    id: str | None = None


class Config(Sources):
    """What every source of pictures with texts takes, and `columns`."""

    columns: Columns = Columns()


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test.jsonl` and `quarantine.jsonl` into `target`. Pictures stay where they are, but for those of tables and shards
    that hold them, which are written once into `target/images`.

    Raises:
        DataError: annotations are missing, broken or of another kind; too many rows cannot be used.
    """
    return gather(config, target).finish()


def gather(config: Config, target: Path) -> Gathering:
    """The rows, before they are cut and written."""
    found = Gathering(config, target)
    for source, place in config.places.items():
        if is_shards(place):
            _from_shards(found, source, place)
        elif place.lower().endswith(".json") and not isinstance(official := found.json(source, place), list):
            _from_official(found, source, place, official)
        else:
            _from_table(found, source, place, config.columns)
    return found


# ── official files ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_official(found: Gathering, source: str, place: str, official: Any) -> None:
    files, ambiguous = _files(found, source, _list(official, "images", place))
    captions = _list(official, "annotations", place)
    if captions and not any(isinstance(item, Mapping) and "caption" in item for item in captions):
        given = f"annotations {place}: no annotation has a `caption`; the first is {captions[0]!r:.80}"
        raise DataError(given, "captions_train2017.json or the like", "instances_*.json and person_keypoints_*.json hold no captions")
    seen: set[Any] = set()
    described: set[Any] = set()
    for number, item in enumerate(captions, 1):
        if not isinstance(item, Mapping) or not _is_id(item.get("id")) or not _is_id(item.get("image_id")):
            found.refuse(source, number, "", "", Refused(BROKEN, f"no {{id, image_id, caption}}: {item!r:.80}"))
            continue
        image_id, name = item["image_id"], f"{item['image_id']}-{item['id']}"
        described.add(image_id)
        file = files.get(image_id)
        try:
            if image_id in ambiguous:
                raise Refused(AMBIGUOUS, f"image {image_id} is {shown(ambiguous[image_id])}")
            if file is None:
                raise Refused(NO_ENTRY, f"no image has the id {image_id!r}")
            if item["id"] in seen:
                raise Refused(DUPLICATE, f"another caption has the id {item['id']!r}")
            seen.add(item["id"])
            caption = _caption(item.get("caption"))
            found.take(source, name, found.picture(source, file), file, caption=caption)
        except Refused as why:
            found.refuse(source, number, name, file or "", why)
    for number, (image_id, file) in enumerate(files.items(), 1):
        if image_id not in described:
            found.set_aside(source, number, str(image_id), file, Refused(UNUSED))


def _list(official: Any, key: str, place: str) -> list[Any]:
    items = official.get(key) if isinstance(official, Mapping) else None
    if not isinstance(items, list):
        keys = shown(sorted(official)) if isinstance(official, Mapping) else type(official).__name__
        fix = "is it another of COCO's files? Captions stand in captions_train2017.json and captions_val2017.json"
        raise DataError(f"annotations {place}: no list `{key}` ({keys})", "{images: […], annotations: […]}", fix)
    return items


def _files(found: Gathering, source: str, images: list[Any]) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Image id -> file name, and the ids that stand for several files."""
    files: dict[Any, str] = {}
    ambiguous: dict[Any, list[str]] = {}
    for number, item in enumerate(images, 1):
        if not isinstance(item, Mapping) or not _is_id(item.get("id")) or not isinstance(item.get("file_name"), str):
            found.refuse(source, number, "", "", Refused(BROKEN, f"no {{id, file_name}}: {item!r:.80}"))
        elif files.setdefault(item["id"], item["file_name"]) != item["file_name"]:
            ambiguous.setdefault(item["id"], [files[item["id"]]]).append(item["file_name"])
    return files, ambiguous


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _caption(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        raise Refused(NO_CAPTION, "" if isinstance(value, str | None) else f"{value!r:.80} is no text")
    return text


# ── tables and shards ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_table(found: Gathering, source: str, place: str, columns: Columns) -> None:
    for number, row in found.table(source, place, columns.model_dump()):
        name = str(row.get("id") if row.get("id") is not None else f"{source}-{number}")
        given = row["image"]
        try:
            image = found.picture(source, given)
        except Refused as why:
            found.refuse(source, number, name, given, why)
            continue
        _take_all(found, source, number, name, image, name if columns.id is not None else given, list(_captions(row["caption"])))


def _from_shards(found: Gathering, source: str, place: str) -> None:
    for number, key, image, texts in found.shards(source, place):
        captions: list[Any] = []
        try:
            for suffix, text in sorted(texts.items()):
                captions += _captions(parsed(text, f"{key}.{suffix}")) if suffix.endswith("json") else text.split("\n")
        except Refused as why:
            found.refuse(source, number, key, image, why)
            continue
        # a caption stands in both files where img2dataset made the shard, and empty lines are no captions
        _take_all(found, source, number, key, image, key, list(dict.fromkeys(text for text in captions if text and str(text).strip())))


def _take_all(found: Gathering, source: str, number: int, name: str, image: str, given: str, captions: list[Any]) -> None:
    for place, caption in enumerate(captions or [None], 1):
        own = f"{name}-{place}" if len(captions) > 1 else name
        try:
            found.take(source, own, image, given, caption=_caption(caption))
        except Refused as why:
            found.refuse(source, number, own, image, why)


def _captions(value: Any) -> Iterator[Any]:
    """The captions of a cell or of a JSON member: a text, a list of them, or objects with `captions`, `caption` or `raw`."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _captions(item)
    elif isinstance(value, Mapping):
        key = next((key for key in ("captions", "caption", "raw") if value.get(key)), None)
        yield from _captions(value[key]) if key is not None else ()
    else:
        yield value
