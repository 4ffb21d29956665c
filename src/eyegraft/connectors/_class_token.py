"""What connectors share that treat the class token apart from the others."""

from __future__ import annotations

from eyegraft.connectors._by_view import apart
from eyegraft.errors import PartError
from eyegraft.types import Tokens


def class_and_others(place: str, tokens: Tokens) -> tuple[Tokens, Tokens]:
    """The class token of each view, [B·V, 1, D], and its tokens behind the prefix, [B·V, N, D]; registers are left out.

    Args:
        place: what asks, for the message.

    Raises:
        PartError: there is no class token.
    """
    if tokens.num_prefix < 1:
        raise PartError(
            f"{place}, but the encoder gives no class token", "an encoder with a class token", "set another pooling or connector"
        )
    views, first = apart(tokens), tokens.num_prefix
    return Tokens(views.values[:, :1], views.mask[:, :1]), Tokens(views.values[:, first:], views.mask[:, first:])
