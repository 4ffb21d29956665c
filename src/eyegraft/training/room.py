"""Whether what a model sees leaves room for words in the context of its language model: measured, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eyegraft.answering import of_blank, tokenizer_of
from eyegraft.errors import PartError
from eyegraft.model import Graft
from eyegraft.views import Views

_LEAST_TEXT = 2
"""Tokens: one to ask with and one to learn."""


@dataclass(frozen=True)
class Room:
    """What stands before the text.

    Attributes:
        tokens: how many; image_tokens: those of the picture, all views.
        context: how many the language model takes, text included.
        views: of a panorama.
        shared: the tokens are of all views together, not each of one.
    """

    tokens: int
    image_tokens: int
    context: int
    views: Views | None
    shared: bool

    def __str__(self) -> str:
        seen = f"{self.image_tokens} image tokens"
        if self.views is not None:
            number, how = self.views.num_views, self.views.strategy
            each = f"{number} view{'s' if number > 1 else ''} of {how}"
            one = self.image_tokens // number
            seen = f"{seen} for {each}" if self.shared else f"{each} x {one} token{'s' if one != 1 else ''} = {seen}"
        other = self.tokens - self.image_tokens
        return seen + (f" and {other} of other inputs" if other else "")

    @property
    def fix(self) -> str:
        if self.views is None:
            return "fewer image tokens (pooling, connector)"
        ways = "fewer tokens a view (pooling=spatial_pool or avg), a fixed number for all (connector=perceiver), or one view (views=resize)"
        tiles = "fewer views (a smaller views.overlap or a larger views.fov_degrees), " if self.views.neighbours() else ""
        return tiles + ways

    def stop_if_full(self) -> None:
        """Raises:
        PartError: no text fits beside the image.
        """
        if self.tokens + _LEAST_TEXT > self.context:
            what = "alone are more than the language model can take" if self.tokens > self.context else "leave no room for text"
            raise PartError(f"{self} {what}", f"fewer than {self.context}, its context, text included", self.fix)


def room_of(model: Graft) -> Room | None:
    """None where no text is written, or the language model looks at the image from the side."""
    if tokenizer_of(model) is None or not getattr(model.head, "tokens_in_context", True):
        return None
    connected = of_blank(model)
    with torch.inference_mode():
        tokens = model.fusion(connected).mask.shape[1]
    image = connected.get("image")
    views = getattr(getattr(dict(model.encoders.items()).get("image"), "spec", None), "views", None)
    seen = int(image.mask.shape[1]) if image is not None else 0
    shared = views is not None and image is not None and image.num_views != views.num_views
    return Room(int(tokens), seen, int(model.head.context_length), views, shared)
