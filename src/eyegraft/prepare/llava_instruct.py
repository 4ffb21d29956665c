"""Conversations about pictures: LLaVA-Instruct from its JSON, or the same from `datasets` and WebDataset shards.

A row has all turns of a conversation, and all its answers are learned. The mark `<image>` is taken out of the first question: the picture
stands before the text whatever the model.

The file: https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K, [{id, image, conversations: [{from: human | gpt, value}]}]
(Liu et al. 2023, Visual Instruction Tuning).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from eyegraft.config import Strict
from eyegraft.prepare._pairs import Gathering, Refused, Sources, parsed
from eyegraft.prepare._shards import is_shards

MARK = "<image>"
TEXT_ONLY = "no <image>"
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


class Columns(Strict):
    """Of the JSON file and of tables.

    Attributes:
        image: the picture or its path, or a list of one.
        conversations: a list of {from, value} or of {role, content}.
        id: of the conversation; None numbers them.
    """

    image: str = "image"
    conversations: str = "conversations"
    id: str | None = "id"


class Config(Sources):
    """What every source of pictures with texts takes, and:

    Attributes:
        columns: of the file.
        without_image: what becomes of conversations without `<image>`: `drop` leaves them out, `keep` takes them as they are, with their
            picture where they name one. Rows of text alone want data.image_optional=true.
    """

    columns: Columns = Columns()
    without_image: Literal["drop", "keep"] = "drop"


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write `train|val|test.jsonl` and `quarantine.jsonl` into `target`. Pictures stay where they are, but for those of tables and shards
    that hold them, which are written once into `target/images`.

    Raises:
        DataError: the file is missing, broken or of another kind; too many rows cannot be used.
    """
    return gather(config, target).finish()


def gather(config: Config, target: Path) -> Gathering:
    """The rows, before they are cut and written."""
    found = Gathering(config, target)
    for source, place in config.places.items():
        if is_shards(place):
            _from_shards(found, source, place, config)
        else:
            _from_table(found, source, place, config)
    return found


def _from_table(found: Gathering, source: str, place: str, config: Config) -> None:
    for number, row in found.table(source, place, config.columns.model_dump()):
        name = str(row.get("id") if row.get("id") is not None else f"{source}-{number}")
        given = row["image"]
        try:
            given, talk = _one_picture(given), row["conversations"]
            if isinstance(talk, str):  # JSON in a cell, as CSV has it
                talk = parsed(talk, name)
            turns = read_turns(talk)
            if not _wanted(talk, config, found, (source, number, name, given), pictured=bool(given)):
                continue
            image = found.picture(source, given) if given or _marks(talk) else ""
            found.take(source, name, image, given or "", turns=turns)
        except Refused as why:
            found.refuse(source, number, name, given, why)


def _from_shards(found: Gathering, source: str, place: str, config: Config) -> None:
    for number, key, image, texts in found.shards(source, place):
        members = [(suffix, text) for suffix, text in sorted(texts.items()) if suffix.endswith("json")]
        try:
            if not members:
                raise Refused("no conversation", f"the shard holds no {key}.json")
            talks = [talk for suffix, text in members for talk in _conversations(parsed(text, f"{key}.{suffix}"))]
        except Refused as why:
            found.refuse(source, number, key, image, why)
            continue
        for place_in, talk in enumerate(talks, 1):
            name = f"{key}-{place_in}" if len(talks) > 1 else key
            try:
                turns = read_turns(talk)
                if _wanted(talk, config, found, (source, number, name, image), pictured=True):
                    found.take(source, name, image, key, turns=turns)
            except Refused as why:
                found.refuse(source, number, name, image, why)


def _wanted(conversation: Any, config: Config, found: Gathering, row: tuple[str, int, str, Any], *, pictured: bool) -> bool:
    """Whether a conversation that does not speak of a picture is to be read; if not, it is set aside."""
    if _marks(conversation) or config.without_image == "keep":
        return True
    found.set_aside(*row, Refused(TEXT_ONLY, "it names a picture, and does not say where it stands" if pictured else "a row of text alone"))
    return False


def _one_picture(given: Any) -> Any:
    if isinstance(given, list):
        if len(given) > 1:
            raise Refused("several pictures", f"{len(given)} of them")
        given = given[0] if given else None
    return given


def _conversations(value: Any) -> list[Any]:
    """The conversations of a JSON member: one row or a list of rows of the original's form, or the list of turns alone."""
    if isinstance(value, Mapping):
        return [value.get("conversations", value.get("messages"))]
    if isinstance(value, list) and any(isinstance(item, Mapping) and "conversations" in item for item in value):
        return [item.get("conversations") if isinstance(item, Mapping) else None for item in value]
    return [value]


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_turns(conversation: Any) -> list[dict[str, str]]:
    """A conversation as [{question, answer}], without `<image>`.

    Raises:
        Refused: it does not begin with the human, two turns of one speaker follow each other, the last question has no answer, `<image>`
            stands twice or elsewhere than first or last in the first question, a text is empty.
    """
    turns = [_turn(turn) for turn in _listed(conversation)]
    if not turns:
        raise Refused("no conversation", f"{conversation!r:.80}")
    if turns[0][0] == "gpt":
        raise Refused("starts with the assistant", f"{turns[0][1]!r:.80}")
    for number, (turn, after) in enumerate(pairwise(turns), 1):
        if turn[0] == after[0]:
            raise Refused("two turns of one speaker", f"turns {number} and {number + 1} are both of {turn[0]}")
    if len(turns) % 2:
        raise Refused("odd number of turns", f"{len(turns)} turns: the last question has no answer")
    texts = [text for _, text in turns]
    texts[0] = _without_mark(texts)
    pairs = [{"question": question, "answer": answer} for question, answer in zip(texts[::2], texts[1::2], strict=True)]
    for number, pair in enumerate(pairs, 1):
        for part, text in pair.items():
            if not text:
                raise Refused(f"empty {part}", f"{part} {number} of {len(pairs)}")
    return pairs


def _listed(conversation: Any) -> list[Any]:
    """The turns; older `datasets` hold a list of objects as an object of lists."""
    if (
        isinstance(conversation, Mapping)
        and len({len(item) if isinstance(item, list) else -1 for item in conversation.values()} - {-1}) == 1
    ):
        keys = list(conversation)
        return [dict(zip(keys, values, strict=True)) for values in zip(*conversation.values(), strict=True)]
    return conversation if isinstance(conversation, list) else []


def _turn(turn: Any) -> tuple[str, str]:
    speaker = turn.get("from", turn.get("role")) if isinstance(turn, Mapping) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, Mapping) else None
    if speaker not in (*_ASKS, *_ANSWERS):
        raise Refused("unknown speaker", f"{speaker!r:.40}: human and gpt, or user and assistant")
    return "human" if speaker in _ASKS else "gpt", _plain(text).strip()


def _plain(text: Any) -> str:
    """The text of a turn; of one written in parts, as chat templates have them, with the picture's part as its mark."""
    if isinstance(text, list):
        parts = [part for part in text if isinstance(part, Mapping)]
        return "\n".join(MARK if part.get("type") == "image" else str(part.get("text") or "") for part in parts)
    return text if isinstance(text, str) else ""


def _marks(conversation: Any) -> int:
    """How often `<image>` stands in a conversation, however broken that is."""
    return sum(_plain(turn.get("value", turn.get("content"))).count(MARK) for turn in _listed(conversation) if isinstance(turn, Mapping))


def _without_mark(texts: list[str]) -> str:
    first, number = texts[0], sum(text.count(MARK) for text in texts)
    if number > 1:
        raise Refused("two <image>", f"{number} of them")
    if number and MARK not in first:
        raise Refused("<image> out of place", "it stands in a later turn than the first")
    if number and not (first.startswith(MARK) or first.endswith(MARK)):
        raise Refused("<image> out of place", f"it stands amid the first question: {first!r:.80}")
    return first.removeprefix(MARK).removesuffix(MARK).strip()
