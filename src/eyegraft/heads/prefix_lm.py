"""Image tokens stand before the text in any causal language model of transformers (Tsimpoukelli et al. 2021, Frozen)."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from eyegraft.heads._language_model import (
    LanguageModel,
    architecture,
    causal_of,
    check_width,
    context_length,
    generation_settings,
    load,
    texts_of,
)
from eyegraft.heads._packing import Learned, pack
from eyegraft.pretrained import stack_of
from eyegraft.types import IGNORE, Batch, TokenLogits, Tokens


class Config(LanguageModel):
    __doc__ = LanguageModel.__doc__


class PrefixLM(nn.Module):
    def __init__(self, backbone: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.tokenizer = tokenizer
        self.context_length = context_length(backbone)
        self._learned = Learned()

    @property
    def blocks(self) -> list[list[nn.Parameter]]:
        return stack_of(self.backbone)

    def forward(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        values, mask, labels = self._joined(tokens, batch, pad_left=False)
        following = labels[:, 1:]  # the logits at t predict the label at t + 1
        learned = (following != IGNORE).any(0).nonzero()[:, 0]  # logits are made only where some row has a label
        result = self.backbone(inputs_embeds=values, attention_mask=mask.long(), use_cache=False, logits_to_keep=learned)
        return result.logits, following[:, learned]

    def learned(self, tokens: Tokens, batch: Batch) -> tuple[TokenLogits, Tensor]:
        values, mask, labels = self._joined(tokens, batch, pad_left=False)
        return self._learned(self.backbone, {"inputs_embeds": values}, mask, labels, row=pack(mask) if batch.packed else None)

    @torch.no_grad()
    def generate(self, tokens: Tokens, batch: Batch, *, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        cache = self._images_once(tokens) if num_beams == 1 and batch.text_mask.shape[1] and batch.text_mask.any(1).all() else None
        values, mask, _ = self._joined(tokens, batch, pad_left=True, image_first=cache is not None)
        room = min(max_new_tokens, self.context_length - values.shape[1])
        settings = generation_settings(self.tokenizer, max_new_tokens=room, num_beams=num_beams)
        ids = self.backbone.generate(inputs_embeds=values, attention_mask=mask.long(), past_key_values=cache, generation_config=settings)
        return texts_of(self.tokenizer, ids)

    def _images_once(self, tokens: Tokens) -> Any:
        """What the language model keeps of images that stand before several texts, read once each; None where there is nothing to save,
        or where what it keeps depends on more than the tokens before."""
        if not tokens.mask.all() or not tokens.mask.shape[1]:
            return None
        new = (tokens.values[1:] != tokens.values[:-1]).flatten(1).any(1)  # rows of one image come together
        firsts = torch.cat([new.new_ones(1), new]).nonzero()[:, 0]
        if len(firsts) == len(tokens.values):
            return None
        from transformers.cache_utils import DynamicCache, DynamicLayer

        causal = causal_of(self.backbone)
        cache = DynamicCache(config=causal.config)
        if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None  # such as a window that slides: it would count the padding between image and text
        if "position_ids" not in signature(causal.forward).parameters:
            return None  # so would positions that are counted by place
        images = tokens.values[firsts].to(self.backbone.get_input_embeddings().weight.dtype)
        self.backbone(inputs_embeds=images, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_select_indices(torch.cat([new.new_zeros(1), new]).cumsum(0))
        return cache

    def _joined(self, tokens: Tokens, batch: Batch, *, pad_left: bool, image_first: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, N+T, D], mask [B, N+T] and labels [B, N+T], with all padding of a row moved to one side of it, or of its text."""
        text = self.backbone.get_input_embeddings()(batch.input_ids)  # [B, T, D]
        values = torch.cat([tokens.values.to(text.dtype), text], dim=1)
        mask = torch.cat([tokens.mask, batch.text_mask], dim=1)
        labels = torch.cat([batch.labels.new_full(tokens.mask.shape, IGNORE), batch.labels], dim=1)
        side = (mask if pad_left else ~mask).long()
        if image_first:
            side[:, : tokens.mask.shape[1]] = -1
        order = side.argsort(dim=1, stable=True)  # stable: real tokens keep their order
        return values.gather(1, order.unsqueeze(-1).expand_as(values)), mask.gather(1, order), labels.gather(1, order)


def input_dim(config: Config) -> int:
    """The width of the language model's embeddings, read from its configuration alone."""
    text = architecture(config).get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def build(config: Config, *, in_dim: int, num_outputs: int) -> PrefixLM:
    check_width("prefix_lm", in_dim, input_dim(config), num_outputs)
    return PrefixLM(*load(config))
