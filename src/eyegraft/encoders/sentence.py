"""Sentence encoders of transformers (LaBSE, BGE-M3, E5, MiniLM …): a text to one vector, or to its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from eyegraft.config import Strict
from eyegraft.encoders._architecture import configuration, refuse_other, unreported
from eyegraft.errors import PartError, shown
from eyegraft.pretrained import drop_unused, ready, resolve, stack_of
from eyegraft.types import TextSpec, Tokens

Pooling = Literal["mean", "cls", "pooler", "tokens"]


class Config(Strict):
    """Attributes:
    model: `packaged:NAME`, a hub name, or a folder in the hub's layout (`config.json`, `tokenizer.json`, `model.safetensors`).
    revision: branch, tag or commit on the hub.
    pretrained: False gives random weights of the same architecture.
    architecture: the content of the model's `config.json`. With it nothing is read for random weights (words are then read byte by byte),
        and weights of another kind, width or depth are refused.
    pooling: how the states become what is handed on. `mean` of the real tokens; `cls`, the state of the first; `pooler`, that state through
        the model's own dense layer and tanh; `tokens`, every state as a token.
    normalize: whether each vector is scaled to length 1.
    prefix: what the model was trained to see before every text, such as "query: ".
    max_tokens: longer texts are cut there, special tokens counted; None takes the tokenizer's own limit.
    """

    model: str
    revision: str | None = None
    pretrained: bool = True
    architecture: dict[str, Any] | None = None
    pooling: Pooling = "mean"
    normalize: bool = True
    prefix: str = ""
    max_tokens: Annotated[int, Field(ge=3)] | None = None

    @model_validator(mode="after")
    def _of_a_kind(self) -> Config:
        if self.architecture is not None and not isinstance(self.architecture.get("model_type"), str):
            raise ValueError("`architecture` needs the `model_type` of the model's config.json")
        return self


class SentenceEncoder(nn.Module):
    """Gives [B, 1, D], or [B, T, D] where `pooling` is `tokens`. What an empty text gives is zero and masked.

    Attributes:
        gives_one_token: whether a text becomes one token, whatever its length.
    """

    def __init__(self, backbone: nn.Module, spec: TextSpec, *, pooling: Pooling, normalize: bool) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.spec = spec
        config: Any = self.backbone.config
        self.token_dim: int = config.hidden_size
        self.gives_one_token = pooling != "tokens"
        self._pooled = _POOLINGS[pooling]
        self._scaled: Callable[[Tensor], Tensor] = _to_length_one if normalize else nn.Identity()

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        return stack_of(self.backbone)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        input_ids, mask = inputs["input_ids"], inputs["mask"]  # [B, T]
        present = mask.any(1, keepdim=True)  # [B, 1]
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        readable = mask | (~present & first)  # attention over nothing at all would be NaN
        output = self.backbone(input_ids=input_ids, attention_mask=readable.long())
        values, real = self._pooled(output, readable)
        real = real & present  # [B, N]
        return Tokens(self._scaled(values).masked_fill(~real.unsqueeze(-1), 0.0), real)


def _mean(output: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = mask.unsqueeze(-1).to(output.last_hidden_state.dtype)  # [B, T, 1]
    summed = (output.last_hidden_state * weights).sum(1, keepdim=True)  # [B, 1, D]
    return summed / weights.sum(1, keepdim=True), mask[:, :1]


def _cls(output: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    return output.last_hidden_state[:, :1], mask[:, :1]


def _pooler(output: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    return output.pooler_output.unsqueeze(1), mask[:, :1]


def _tokens(output: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    return output.last_hidden_state, mask


_POOLINGS: dict[str, Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {"mean": _mean, "cls": _cls, "pooler": _pooler, "tokens": _tokens}


def _to_length_one(values: Tensor) -> Tensor:
    return functional.normalize(values, dim=-1)


def build(config: Config) -> SentenceEncoder:
    ready()
    wanted = None if config.architecture is None else configuration(config.architecture, "text_encoder")
    without_files = wanted is not None and not config.pretrained
    backbone, tokenizer, not_found = _random(wanted) if without_files else _loaded(config, wanted)
    limit = _num_positions(backbone)
    max_tokens = config.max_tokens or min(tokenizer.model_max_length, limit)
    if max_tokens > limit:
        raise PartError(
            f"text_encoder.max_tokens={max_tokens}", f"at most the {limit} positions of {config.model}", f"set max_tokens={limit}"
        )
    if len(tokenizer) > backbone.config.vocab_size:
        raise PartError(
            f"text_encoder.model: {config.model!r} has a tokenizer of {len(tokenizer)} tokens and weights for {backbone.config.vocab_size}",
            "a tokenizer and weights of one model",
            "download the folder again",
        )
    if config.pooling == "pooler" and getattr(backbone, "pooler", None) is None:
        raise PartError(
            f"text_encoder.pooling=pooler, but {type(backbone).__name__} has no pooler",
            "mean, cls or tokens",
            "set text_encoder.pooling=mean",
        )
    spec = TextSpec(tokenizer, max_tokens, config.prefix)
    encoder = SentenceEncoder(backbone, spec, pooling=config.pooling, normalize=config.normalize)
    device = next(backbone.parameters()).device
    probe = torch.full((1, 4), tokenizer.pad_token_id + 1, device=device)
    drop_unused(backbone, lambda: encoder({"input_ids": probe, "mask": torch.ones_like(probe, dtype=torch.bool)}).values)
    random = [name for name, _ in backbone.named_parameters() if name in not_found]
    if random:
        raise PartError(
            f"text_encoder.model: {config.model!r} lacks {len(random)} tensors that pooling={config.pooling} uses: {shown(random, 3)}",
            "weights for all that is used",
            "choose the pooling that the model was trained with",
        )
    return encoder


def _loaded(config: Config, wanted: Any) -> tuple[Any, Any, set[str]]:
    """Backbone, tokenizer, and the names of the tensors that the weights lack."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    name = resolve(config.model)
    hub: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        architecture = AutoConfig.from_pretrained(name, **hub)
        if wanted is not None:
            refuse_other(architecture, wanted, config.model, "text_encoder")
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
        if config.pretrained:
            with unreported():  # what is missing is refused below
                backbone, report = AutoModel.from_pretrained(
                    name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **hub
                )
            not_found = set(report["missing_keys"])
        else:
            backbone, not_found = AutoModel.from_config(architecture, dtype=torch.float32, trust_remote_code=False), set()
    except (OSError, ValueError) as error:
        raise PartError(
            f"text_encoder.model: {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
            "a hub name that this machine can reach, or a folder with config.json, tokenizer.json and model.safetensors",
            "check the name; offline, download the folder elsewhere and give its path, or take text_encoder=minilm; "
            "convert pickled weights (*.bin) to safetensors; code in a model's folder is never run",
        ) from error
    _refuse_other_kinds(backbone, "text_encoder.model")
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise PartError(
            f"text_encoder.model: {config.model!r} has no tokenizer.json with a padding token",
            "a tokenizer of the library `tokenizers`",
            "save it once with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER), and give that folder",
        )
    return backbone, tokenizer, not_found


def _random(architecture: Any) -> tuple[Any, Any, set[str]]:
    """Random weights from the recipe alone."""
    from transformers import AutoModel

    try:
        backbone = AutoModel.from_config(architecture, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:  # heads that do not divide the width, a type that is no encoder
        raise PartError(
            f"text_encoder.architecture: {str(error).splitlines()[0]}", "an architecture that transformers can build"
        ) from error
    _refuse_other_kinds(backbone, "text_encoder.architecture")
    return backbone, _byte_tokenizer(architecture.pad_token_id or 0, architecture.vocab_size), set()


def _refuse_other_kinds(backbone: Any, place: str) -> None:
    config = backbone.config
    if backbone.main_input_name != "input_ids" or config.is_encoder_decoder or not hasattr(config, "hidden_size"):
        raise PartError(f"{place}: {type(backbone).__name__} is no encoder of words", "one such as BertModel or XLMRobertaModel")


def _num_positions(backbone: Any) -> int:
    """How long a text the model can read. RoBERTa's positions begin after that of padding."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return int(backbone.config.max_position_embeddings)
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def _byte_tokenizer(pad_id: int, vocab_size: int) -> Any:
    """One token a byte, with `<s>` before and `</s>` after: for random weights, which no tokenizer belongs to, and for nothing else."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words.insert(pad_id, "<pad>")
    if len(words) > vocab_size or words.index("<pad>") != pad_id:
        raise PartError(
            f"text_encoder.architecture: vocab_size {vocab_size}, pad_token_id {pad_id}",
            f"a vocabulary of {len(words)} or more, padding among the first {len(words)}",
            "make vocab_size larger",
        )
    ids = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=ids, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends = [("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=core, cls_token="<s>", sep_token="</s>", pad_token="<pad>")
