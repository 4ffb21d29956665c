"""Image tokens stand before the text in any causal language model of transformers (Tsimpoukelli et al. 2021, Frozen)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.pretrained import ready, resolve, stack_of
from eyegraft.types import IGNORE, Batch, Tokens


class Config(Strict):
    """Attributes:
    model: `packaged:NAME`, a hub name, or a folder in the hub's layout.
    revision: branch, tag or commit on the hub.
    dtype: of the language model's weights; adapters stay in float32.
    pretrained: False gives random weights of the same architecture.
    """

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pretrained: bool = True


class PrefixLM(nn.Module):
    def __init__(self, backbone: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        from transformers import GenerationConfig

        self.backbone: Any = backbone
        self.backbone.generation_config = GenerationConfig()  # else a model's own penalties slip into answers without a word
        self.tokenizer = tokenizer
        self.context_length = int(getattr(self.backbone.config, "max_position_embeddings", 0) or 2**31)

    @property
    def blocks(self) -> list[list[nn.Parameter]]:
        return stack_of(self.backbone)

    def forward(self, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        values, mask, labels = self._joined(tokens, batch, pad_left=False)
        following = labels[:, 1:]  # the logits at t predict the label at t + 1
        learned = (following != IGNORE).any(0).nonzero()[:, 0]  # logits are made only where some row has a label
        result = self.backbone(inputs_embeds=values, attention_mask=mask.long(), use_cache=False, logits_to_keep=learned)
        return result.logits, following[:, learned]

    @torch.no_grad()
    def generate(self, tokens: Tokens, batch: Batch, *, max_new_tokens: int, num_beams: int = 1) -> list[str]:
        from transformers import GenerationConfig

        values, mask, _ = self._joined(tokens, batch, pad_left=True)
        settings = GenerationConfig(
            do_sample=False,
            num_beams=num_beams,
            max_new_tokens=max(1, min(max_new_tokens, self.context_length - values.shape[1])),
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        ids = self.backbone.generate(inputs_embeds=values, attention_mask=mask.long(), generation_config=settings)
        # an answer that `max_new_tokens` cuts may end within a character of several bytes, which decodes to U+FFFD
        return [text.rstrip("\ufffd").strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _joined(self, tokens: Tokens, batch: Batch, *, pad_left: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, N+T, D], mask [B, N+T] and labels [B, N+T], with all padding of a row moved to one side."""
        text = self.backbone.get_input_embeddings()(batch.input_ids)  # [B, T, D]
        values = torch.cat([tokens.values.to(text.dtype), text], dim=1)
        mask = torch.cat([tokens.mask, batch.text_mask], dim=1)
        labels = torch.cat([batch.labels.new_full(tokens.mask.shape, IGNORE), batch.labels], dim=1)
        order = mask.long().argsort(dim=1, descending=not pad_left, stable=True)  # stable: real tokens keep their order
        return values.gather(1, order.unsqueeze(-1).expand_as(values)), mask.gather(1, order), labels.gather(1, order)


def input_dim(config: Config) -> int:
    """The width of the language model's embeddings, read from its configuration alone."""
    text = _architecture(config).get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def build(config: Config, *, in_dim: int, num_outputs: int) -> PrefixLM:
    if num_outputs:
        raise PartError("head.kind=prefix_lm under a task that answers in labels", "a text task", "set head=classifier")
    ready()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    architecture = _architecture(config)
    name, dtype = resolve(config.model), getattr(torch, config.dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision, trust_remote_code=False)
        model = (
            AutoModelForCausalLM.from_pretrained(name, revision=config.revision, dtype=dtype, trust_remote_code=False, use_safetensors=True)
            if config.pretrained
            else AutoModelForCausalLM.from_config(architecture, dtype=dtype, trust_remote_code=False)
        )
    except (OSError, ValueError) as error:
        raise _unloadable(config, error) from error
    if tokenizer.eos_token_id is None:
        raise PartError(
            f"head.model: the tokenizer of {config.model!r} has no end-of-text token", "an eos_token: without it no answer ever ends"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by `text_mask`, its id never matters
    if in_dim != input_dim(config):
        raise PartError(
            f"tokens of width {in_dim} before a language model of width {input_dim(config)}",
            "equal widths",
            "use a connector that projects, such as connector=mlp",
        )
    return PrefixLM(model, tokenizer)


def _architecture(config: Config) -> Any:
    ready()
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(config.model), revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unloadable(config, error) from error


def _unloadable(config: Config, error: Exception) -> PartError:
    return PartError(
        f"head.model: {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
        "packaged:NAME, a hub name that this machine can reach, or a folder with config.json, tokenizer files and model.safetensors",
        "check the name; offline, download the folder elsewhere and give its path; convert pickled weights (*.bin) to safetensors; "
        "code in a model's folder is never run",
    )
