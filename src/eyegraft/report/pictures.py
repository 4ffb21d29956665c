"""Pictures inside a page, as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from eyegraft.data.images import MISSING, TOO_LARGE, check_image, open_image
from eyegraft.errors import DataError

MAX_PIXELS = 89_478_485
"""Larger pictures are not decoded: Pillow's own limit for one that is no decompression bomb."""


def picture_uri(image: Any, folder: Path, size: tuple[int, int], *, quality: int) -> tuple[str | None, str]:
    """A picture as a WebP data URI, or None and the reason.

    Args:
        image: its path, from `folder` where it is relative.
        size: width and height that it is made to fit into; a smaller one stays as it is.
    """
    if not isinstance(image, str) or not image:
        return None, "no picture"
    path = folder / image  # an absolute path stands on its own
    facts = check_image(path, MAX_PIXELS, decode=False)
    if not facts.ok:
        return None, {MISSING: "picture missing", TOO_LARGE: "picture too large"}.get(facts.reason, "picture unreadable")
    try:
        picture = open_image(path, target=(size[1], size[0]))
        picture.thumbnail(size)
        memory = io.BytesIO()
        picture.save(memory, "WEBP", quality=quality, method=2)
    except (DataError, OSError, ValueError):
        return None, "picture unreadable"
    return f"data:image/webp;base64,{base64.b64encode(memory.getvalue()).decode()}", ""
