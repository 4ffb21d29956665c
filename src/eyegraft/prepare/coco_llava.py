"""COCO's captions and LLaVA's conversations in one folder, for recipes that learn the one and then the other.

Rows of `prepare=coco_captions` are of the task `captions`, rows of `prepare=llava_instruct` of the task `instruct`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo, field_validator

from eyegraft.config import Strict
from eyegraft.prepare import coco_captions, llava_instruct
from eyegraft.prepare._pairs import options_of


class Config(Strict):
    """Attributes:
    captions: as prepare=coco_captions takes it.
    instruct: as prepare=llava_instruct takes it. Shares must be cut at the same places as those of `captions`, so that no picture is held
        out from one and learned in the other.
    """

    captions: coco_captions.Config
    instruct: llava_instruct.Config

    @field_validator("captions", "instruct", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """An option that is taken over from another source may say again which it is."""
        kind = {"captions": "coco_captions", "instruct": "llava_instruct"}[str(info.field_name)]
        own = isinstance(value, Mapping) and value.get("kind") == kind
        return {key: item for key, item in value.items() if key != "kind"} if own else value


def prepare(config: Config, target: Path) -> dict[str, Any]:
    """Write one table a split, with a column `task`, and `quarantine.jsonl` into `target`. Pictures stay where they are.

    Raises:
        DataError: a file is missing, broken or of another kind; too many rows cannot be used.
    """
    with options_of("captions"):
        captions = coco_captions.gather(config.captions, target)
    with options_of("instruct"):
        instruct = llava_instruct.gather(config.instruct, target)
    return captions.finish_with("captions", {"instruct": instruct})
