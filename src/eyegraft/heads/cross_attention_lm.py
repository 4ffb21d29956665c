"""The last layers of any causal language model of transformers attend to image tokens.

In each of them, image tokens are added to what the layer's self-attention gives, h [B, T, D]:

| gate   | norm   | what the layer goes on with                  |                                                                    |
|--------|--------|----------------------------------------------|--------------------------------------------------------------------|
| `tanh` | `pre`  | h + tanh(g) · attend(LayerNorm(h), image)    | g starts at 0: at first the model says what it said before         |
| `none` | `pre`  | h + attend(LayerNorm(h), image)              |                                                                    |
| `none` | `post` | LayerNorm(h + attend(h, image))              | the form of Vaswani et al. 2017; h is normalised from the start    |

The closed gate is that of Flamingo (Alayrac et al. 2022), whose layers stand between those of the language model. Image tokens take up no
room in the text. They travel as keyword arguments of the model's forward; nothing is kept on a layer.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from eyegraft.config import Positive
from eyegraft.errors import PartError
from eyegraft.heads._language_model import (
    LanguageModel,
    architecture,
    check_width,
    context_length,
    generation_settings,
    load,
    texts_of,
)
from eyegraft.heads._packing import Learned, Row, pack
from eyegraft.pretrained import blocks_of, stack_of
from eyegraft.types import IGNORE, Batch, TokenLogits, Tokens

_SELF_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
"""What transformers calls the self-attention of a decoder's layer."""


class Config(LanguageModel):
    __doc__ = f"""{LanguageModel.__doc__}
    num_layers: how many layers see the image, counted from the last.
    num_heads: of the new attention; None takes the language model's number.
    gate, norm: see above.
    """

    num_layers: Positive = 4
    num_heads: Positive | None = None
    gate: Literal["tanh", "none"] = "tanh"
    norm: Literal["pre", "post"] = "pre"

    @model_validator(mode="after")
    def _gate_closes(self) -> Config:
        if self.gate == "tanh" and self.norm == "post":
            raise ValueError(
                "gate=tanh with norm=post: the norm would change the language model while the gate is closed; "
                "choose norm=pre, or gate=none with norm=post"
            )
        return self


# ── the new layer ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class CrossAttention(nn.Module):
    """Adds what hidden states [B, T, D] find among image tokens, in one of the forms above. A key's bias would change nothing.

    Args:
        place: which of the cross-attentions of the model this is, counted from the first.
    """

    def __init__(self, dim: int, num_heads: int, place: int, *, gated: bool, pre_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.place, self.pre_norm = num_heads, place, pre_norm
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def keys_values(self, image: Tensor) -> Tensor:
        """Image tokens [B, N, D] -> [B, 2, H, N, D / H]: they are the same for every token of a text, and made once."""
        both = torch.stack([self.key(image), self.value(image)], dim=1)  # [B, 2, N, D]
        heads: Tensor = both.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(2, 3)

    def forward(self, hidden: Tensor, keys_values: Tensor, image_mask: Tensor) -> Tensor:
        """Hidden states [B, T, D], keys and values [B, 2, H, N, D / H], mask [B, N] -> [B, T, D]. Rows without an image do not change."""
        given = hidden.to(self.query.weight.dtype)
        seen = image_mask.any(1)  # [B]
        query = self.query(self.norm(given) if self.pre_norm else given).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        allowed = image_mask | ~seen.unsqueeze(1)  # a row that may look at nothing would give NaN
        keys, values = keys_values.to(query.dtype).unbind(1)
        found = F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed[:, None, None])
        found = self.output(found.transpose(1, 2).flatten(2))
        if self.gate is not None:
            found = found * self.gate.tanh()
        changed = given + found if self.pre_norm else self.norm(given + found)
        return torch.where(seen[:, None, None], changed.to(hidden.dtype), hidden)


# ── what is mixed into the classes of transformers, so that all names in a language model stay its own ──────────────────────────────────


class _Sighted:
    """Of a layer's self-attention, which has a `CrossAttention` as `cross`."""

    cross: CrossAttention

    def forward(
        self,
        *args: Any,
        image_keys_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_row: Row | None = None,
        **kwargs: Any,
    ) -> Any:
        """Args:
        image_keys_values: [B, K, 2, H, N, D / H] of all cross-attentions; image_mask: [B, N] bool.
        image_row: where texts share one; each looks at its own image all the same.
        """
        if image_keys_values is None or image_mask is None:
            raise _hands_nothing_down(self)
        hidden, *rest = super().forward(*args, **kwargs)  # type: ignore[misc]
        apart = hidden if image_row is None else image_row.apart(hidden)
        changed = self.cross(apart, image_keys_values[:, self.cross.place], image_mask)
        return changed if image_row is None else image_row.packed(changed), *rest


class _HandsDown:
    """Of the language model: `generate` takes the image and gives it to every forward."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *, image_keys_values: Tensor | None = None, image_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc]
        return {**prepared, "image_keys_values": image_keys_values, "image_mask": image_mask}


def _mix(mixin: type, module: nn.Module) -> None:
    own = type(module)
    module.__class__ = type(own.__name__, (mixin, own), {"__module__": own.__module__})


# ── the head ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class CrossAttentionLM(nn.Module):
    """A causal language model with cross-attention in its last layers. Unless told otherwise it is frozen, and these train."""

    tokens_in_context = False
    default_mode = "new"

    def __init__(self, backbone: nn.Module, tokenizer: Any, crosses: tuple[CrossAttention, ...]) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.tokenizer = tokenizer
        self.context_length = context_length(backbone)
        self._learned = Learned()
        self._crosses = crosses  # a tuple, for they belong to the backbone, under whatever adapters

    @property
    def blocks(self) -> list[list[nn.Parameter]]:
        return stack_of(self.backbone)

    @property
    def new_parameters(self) -> list[nn.Parameter]:
        """What no file of the language model's weights holds."""
        return [parameter for cross in self._crosses for parameter in cross.parameters()]

    def forward(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        ids, mask, labels = self._text(batch, pad_left=False)
        following = labels[:, 1:]  # the logits at t predict the label at t + 1
        learned = (following != IGNORE).any(0).nonzero()[:, 0]  # logits are made only where some row has a label
        result = self.backbone(input_ids=ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=learned, **self._image(tokens))
        return result.logits, following[:, learned]

    def learned(self, tokens: Tokens, batch: Batch) -> tuple[TokenLogits, Tensor]:
        ids, mask, labels = self._text(batch, pad_left=False)
        row = pack(mask) if batch.packed else None
        return self._learned(self.backbone, {"input_ids": ids}, mask, labels, row=row, image_row=row, **self._image(tokens))

    @torch.no_grad()
    def generate(self, tokens: Tokens, batch: Batch, *, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        ids, mask, _ = self._text(batch, pad_left=True)
        room = min(max_new_tokens, self.context_length - ids.shape[1])
        settings = generation_settings(self.tokenizer, max_new_tokens=room, num_beams=num_beams)
        said = self.backbone.generate(inputs=ids, attention_mask=mask.long(), generation_config=settings, **self._image(tokens))
        return texts_of(self.tokenizer, said[:, ids.shape[1] :])

    def _image(self, tokens: Tokens) -> dict[str, Tensor]:
        """The arguments that the language model hands down to its layers."""
        values = torch.where(tokens.mask.unsqueeze(-1), tokens.values, 0)  # what is missing may be anything
        values = values.to(self._crosses[0].key.weight.dtype)
        return {
            "image_keys_values": torch.stack([cross.keys_values(values) for cross in self._crosses], dim=1),
            "image_mask": tokens.mask,
        }

    def _text(self, batch: Batch, *, pad_left: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and labels [B, T], with padding on one side. Where a text has nothing before its first learned token, a token that
        starts texts comes first: something must be there to look at the image."""
        ids, mask, labels = batch.input_ids, batch.text_mask, batch.labels
        bare = ~mask.any(1) | (labels[:, :1] != IGNORE).any(1)  # [B]
        if bare.any():
            start = self.tokenizer.bos_token_id
            first = ids.new_full((len(ids), 1), self.tokenizer.eos_token_id if start is None else start)
            ids = torch.cat([first, ids], dim=1)
            mask = torch.cat([bare.unsqueeze(1), mask], dim=1)
            labels = torch.cat([torch.full_like(first, IGNORE), labels], dim=1)
        order = mask.long().argsort(dim=1, descending=not pad_left, stable=True)  # stable: real tokens keep their order
        return ids.gather(1, order), mask.gather(1, order), labels.gather(1, order)


def input_dim(config: Config) -> int:
    """The width of the language model's hidden states, read from its configuration alone."""
    return int(architecture(config).get_text_config().hidden_size)


def build(config: Config, *, in_dim: int, num_outputs: int) -> CrossAttentionLM:
    check_width("cross_attention_lm", in_dim, input_dim(config), num_outputs)
    shape = architecture(config).get_text_config()
    num_heads = config.num_heads or int(shape.num_attention_heads)
    if in_dim % num_heads:
        raise PartError(
            f"head.num_heads: {num_heads} heads over a language model of width {in_dim}",
            "a number of heads that divides the width",
            f"set head.num_heads={next(number for number in range(num_heads, 0, -1) if not in_dim % number)}",
        )
    model, tokenizer = load(config)
    layers = blocks_of(model)
    if config.num_layers > len(layers):
        raise PartError(
            f"head.num_layers={config.num_layers} of a language model with {len(layers)} layers",
            f"at most {len(layers)}",
            f"set head.num_layers={min(4, len(layers))}",
        )
    seeing = layers[len(layers) - config.num_layers :]
    gated, pre_norm = config.gate == "tanh", config.norm == "pre"
    crosses = tuple(CrossAttention(in_dim, num_heads, place, gated=gated, pre_norm=pre_norm) for place in range(len(seeing)))
    for layer, cross in zip(seeing, crosses, strict=True):
        _give_sight(layer, cross.to(model.device))
    _mix(_HandsDown, model)
    head = CrossAttentionLM(model, tokenizer, crosses)
    _try(head, in_dim)
    return head


def _give_sight(layer: nn.Module, cross: CrossAttention) -> None:
    name = next((name for name in _SELF_ATTENTION if isinstance(getattr(layer, name, None), nn.Module)), None)
    if name is None:
        raise PartError(
            f"head.model: one of the last layers, a {type(layer).__name__}, has no self-attention to add to",
            f"decoder layers with one of {', '.join(_SELF_ATTENTION)}",
            "choose a smaller head.num_layers, another language model, or head.kind=prefix_lm",
        )
    own = layer.get_submodule(name)
    own.cross = cross
    _mix(_Sighted, own)


@torch.no_grad()
def _try(head: CrossAttentionLM, in_dim: int) -> None:
    """One token, to see that an image arrives: families differ in what they hand down, and each attention asks for it.

    Raises:
        PartError: it does not.
    """
    device = head.backbone.device
    image = Tokens(torch.zeros(1, 1, in_dim, device=device), torch.ones(1, 1, dtype=torch.bool, device=device))
    was_training = head.training
    try:
        head.eval().backbone(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False, **head._image(image))
    except TypeError as error:  # a forward on the way takes no argument of this name
        raise _hands_nothing_down(head.backbone) from error
    head.train(was_training)


def _hands_nothing_down(module: object) -> PartError:
    return PartError(
        f"head.model: no image reaches the layers of this language model: its {type(module).__name__} is handed none",
        "a family that hands keyword arguments down to its layers, as Llama, Phi, Qwen, Mistral, Gemma, GPT-2 and most of transformers 5",
        "choose such a model, or head.kind=prefix_lm",
    )
