"""What a language model makes of texts where they are learned: hidden states at labels alone, of texts apart or all in one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.errors import PartError
from eyegraft.heads._language_model import causal_of
from eyegraft.types import IGNORE, TokenLogits


@dataclass(frozen=True)
class Row:
    """Where the tokens of B texts of at most T tokens stand in one row of L.

    Attributes:
        places: [B, T] int64, the place of each token in the row; anything for padding.
        real: [B, T] bool, True where a token is real; the row has these alone, text by text.
        positions: [1, L] int64, of each token in its own text: a text starts wherever they do not go up by one.
    """

    places: Tensor
    real: Tensor
    positions: Tensor

    def packed(self, values: Tensor) -> Tensor:
        """[B, T, …] -> [1, L, …]."""
        return values[self.real].unsqueeze(0)

    def apart(self, values: Tensor) -> Tensor:
        """[1, L, …] -> [B, T, …]."""
        return values[0][self.places]


def pack(mask: Tensor) -> Row:
    """One row of all texts, without padding.

    Args:
        mask: [B, T] bool, True where a token is real: right-padded.
    """
    inside = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    lengths = mask.sum(1)
    starts = lengths.cumsum(0) - lengths  # [B]
    return Row((starts.unsqueeze(1) + inside) * mask, mask, inside[mask].unsqueeze(0))


class Learned:
    """Runs a causal language model over texts with labels. What it found out about the model's family is kept: one for each model."""

    def __init__(self) -> None:
        self._made_by_layer: bool | None = None
        self._packs: bool | None = None

    def __call__(
        self, backbone: Any, texts: Mapping[str, Tensor], mask: Tensor, labels: Tensor, *, row: Row | None, **more: Any
    ) -> tuple[TokenLogits, Tensor]:
        """Logits and labels [M] at all M learned tokens, text by text.

        Args:
            backbone: of transformers, with or without adapters.
            texts: `input_ids` [B, T] or `inputs_embeds` [B, T, D], right-padded.
            mask: [B, T] bool; labels: [B, T].
            row: where the texts share one.
            more: further arguments of the language model. Tensors are [B, …].

        Raises:
            PartError: texts that share a row would see each other.
        """
        causal = causal_of(backbone)
        base, layer = causal.base_model, causal.get_output_embeddings()
        following = labels[:, 1:]  # what stands at t predicts the label at t + 1
        learned = following != IGNORE
        if self._made_by_layer is None:
            self._made_by_layer = base is not causal and layer is not None and _makes_logits(layer, base, causal, more)
        if row is not None and self._packs is None:
            self._packs = _keeps_apart(base, causal, more)
        if row is None:
            given = {**texts, "attention_mask": mask.long()}
        elif self._packs:
            given = {**{name: row.packed(values) for name, values in texts.items()}, "position_ids": row.positions}
        else:
            raise PartError(
                f"train.packing: in a {type(causal).__name__} texts that share a row would see each other, or count each other's positions",
                "a family whose attention follows position_ids, as Llama, Phi, Qwen, Mistral, Gemma, GPT-2 and most others",
                "set train.packing=null",
            )
        if self._made_by_layer:
            hidden = base(**given, **more, use_cache=False).last_hidden_state
        elif row is not None:
            hidden = causal(**given, **more, use_cache=False).logits
        else:
            columns = learned.any(0).nonzero()[:, 0]
            hidden, learned = causal(**given, **more, use_cache=False, logits_to_keep=columns).logits, learned[:, columns]
            following = following[:, columns]
        hidden = hidden if row is None else row.apart(hidden)
        found = hidden[:, : learned.shape[1]][learned]
        return TokenLogits(found, learned.nonzero()[:, 0], layer if self._made_by_layer else nn.Identity()), following[learned]


# ── what a family of language models does, found out by trying ───────────────────────────────────────────────────────────────────────

_TRIED = [[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8]]
"""Token ids of four short texts; any will do as long as texts that share a row differ."""


def _makes_logits(layer: Any, base: Any, causal: Any, more: Mapping[str, Any]) -> bool:
    """Whether the output layer alone makes logits of hidden states. Some families scale them or cap them after it."""
    with _undisturbed(causal) as device:
        ids = torch.tensor(_TRIED[:1], device=device)
        given = {"input_ids": ids, **_of_first(more, 1), "use_cache": False}
        return torch.equal(layer(base(**given).last_hidden_state), causal(**given).logits)


def _keeps_apart(base: Any, causal: Any, more: Mapping[str, Any]) -> bool:
    """Whether texts in a row come out as each of them does alone."""
    with _undisturbed(causal) as device:
        ids = torch.tensor(_TRIED, device=device)
        alone = base(input_ids=ids, use_cache=False, **_of_first(more, 4)).last_hidden_state.float()
        positions = torch.arange(3, device=device).repeat(1, 4)
        packed = base(input_ids=ids.view(1, 12), position_ids=positions, use_cache=False, **_of_first(more, 1)).last_hidden_state.float()
        wholly = {parameter.dtype for parameter in causal.parameters()} == {torch.float32}
        error = (packed.view_as(alone) - alone).norm(dim=-1) / alone.norm(dim=-1).mean()
        return bool(error.max() < (1e-4 if wholly else 3e-2))  # of rounding; what leaks is more, even between random weights


def _of_first(more: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """The arguments of the first text, `count` times."""
    return {name: value[:1].expand(count, *value.shape[1:]) for name, value in more.items() if isinstance(value, Tensor)}


@contextmanager
def _undisturbed(causal: Any) -> Iterator[torch.device]:
    """For a forward that nothing later shall notice: without gradient, dropout, or a change of the modes; gives the device."""
    device = causal.get_input_embeddings().weight.device
    training = [module for module in causal.modules() if module.training]
    causal.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield device
    finally:
        for module in training:
            module.training = True
