"""The Q-Former of BLIP-2: [B, N, in] -> [B, Q, out] (Li et al. 2023).

Learned queries attend to each other in every layer of a BERT-like transformer and to the tokens in every second one; then one linear layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.connectors._by_view import apart, together
from eyegraft.errors import PartError, shown
from eyegraft.pretrained import ready, resolve
from eyegraft.types import Tokens

_PUBLISHED = {"num_queries": 32, "dim": 768, "depth": 12, "num_heads": 12}


class Config(Strict):
    """Attributes:
    weights: a hub name or a folder in the hub's layout that holds a BLIP-2 model (`config.json`, `model.safetensors` or its shards); its
        queries and Q-Former are read, nothing else. It was trained on the tokens of one encoder and fits that width alone.
    revision: branch, tag or commit on the hub.
    num_queries: Q, tokens that come out; of each view, if `per_view`.
    dim, depth, num_heads: of the transformer. All four default to BLIP-2's: 32, 768, 12 and 12, or what the weights have.
    per_view: each view of a picture by itself, its tokens one after another, in place of all views at once.
    """

    weights: str | None = None
    revision: str | None = None
    num_queries: Annotated[int, Field(ge=2)] | None = None  # one alone would have nothing but itself to attend to
    dim: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    per_view: bool = False


class QFormer(nn.Module):
    """Queries start as random numbers, as everything else, unless they are read."""

    def __init__(self, transformer: Any, num_queries: int, out_dim: int, per_view: bool) -> None:
        super().__init__()
        self.out_dim, self.per_view = out_dim, per_view
        self.transformer = transformer
        config = transformer.config
        self.queries = nn.Parameter(torch.randn(num_queries, config.hidden_size) * config.initializer_range)
        self.projection = nn.Linear(config.hidden_size, out_dim)

    def forward(self, tokens: Tokens) -> Tokens:
        return together(self._asked(apart(tokens)), tokens) if self.per_view else self._asked(tokens)

    def _asked(self, tokens: Tokens) -> Tokens:
        if tokens.values.shape[1] < 2:
            raise PartError(
                "connector=qformer of one token: its queries would have nothing to choose from, and what chooses would never learn",
                "all tokens of a picture or view",
                "set pooling=none, or connector.per_view=false where a pooling leaves one token of each view, or connector=prefix",
            )
        there = tokens.mask.any(1, keepdim=True)  # [B, 1]
        seen = tokens.mask | ~there  # a row without tokens sees all of them in place of nothing, which is no number; it is masked below
        values = self.transformer(
            query_embeds=self.queries.expand(len(tokens.values), -1, -1),
            encoder_hidden_states=tokens.values,
            encoder_attention_mask=seen[:, None, None, :],  # ready-made for every head and query, so that no value of it is read on the way
        ).last_hidden_state
        return Tokens(self.projection(values), there.expand(-1, len(self.queries)))


def build(config: Config, *, in_dim: int, out_dim: int) -> QFormer:
    ready()
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    if config.weights is not None:
        return _pretrained(config, config.weights, in_dim, out_dim)
    sizes = {name: number if (number := getattr(config, name)) is not None else usual for name, usual in _PUBLISHED.items()}
    if sizes["dim"] % sizes["num_heads"]:
        raise PartError(
            f"connector.num_heads={sizes['num_heads']} does not divide connector.dim={sizes['dim']}", "a divisor", "set connector.num_heads"
        )
    architecture = Blip2QFormerConfig(
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=4 * sizes["dim"],
        encoder_hidden_size=in_dim,
    )
    return QFormer(Blip2QFormerModel(architecture), sizes["num_queries"], out_dim, config.per_view)


# ── what BLIP-2 has learned ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _pretrained(config: Config, weights: str, in_dim: int, out_dim: int) -> QFormer:
    from safetensors import SafetensorError
    from transformers import AutoConfig, Blip2QFormerModel

    name = resolve(weights)
    try:
        whole: Any = AutoConfig.from_pretrained(name, revision=config.revision, trust_remote_code=False)
        tensors = _tensors(name, config.revision)
    except (OSError, ValueError, SafetensorError) as error:
        raise PartError(
            f"connector.weights: {weights!r} cannot be loaded: {str(error).splitlines()[0]}",
            "a hub name that this machine can reach, or a folder with config.json and model.safetensors",
            "check the name; offline, download the folder elsewhere and give its path; pickled weights (*.bin) are not read",
        ) from error
    architecture: Any = getattr(whole, "qformer_config", None)
    if whole.model_type != "blip-2" or "query_tokens" not in tensors:
        raise PartError(
            f"connector.weights: {weights!r} is a {whole.model_type} model"
            + ("" if "query_tokens" in tensors else " without query_tokens"),
            "a BLIP-2 model",
            "name one, or start from random numbers: connector.weights=null",
        )
    queries = tensors.pop("query_tokens")[0]
    _refuse_other(config, architecture, len(queries), in_dim)
    architecture.use_qformer_text_input = False  # layers that read words are left out
    made = QFormer(Blip2QFormerModel(architecture), len(queries), out_dim, config.per_view)
    absent = sorted(set(made.transformer.state_dict()) - set(tensors))
    if absent:
        raise PartError(
            f"connector.weights: {weights!r} lacks {len(absent)} tensors: {shown(absent, 3)}",
            "every tensor of its Q-Former: the others would stay random",
            "check that config.json belongs to model.safetensors",
        )
    made.transformer.load_state_dict({key: tensors[key] for key in made.transformer.state_dict()})
    with torch.no_grad():
        made.queries.copy_(queries)
    return made


def _refuse_other(config: Config, architecture: Any, num_queries: int, in_dim: int) -> None:
    if architecture.encoder_hidden_size != in_dim:
        raise PartError(
            f"connector.weights was trained on tokens of width {architecture.encoder_hidden_size}, the encoder gives {in_dim}",
            "the encoder that it was trained with",
            "name that vision_encoder, or start from random numbers: connector.weights=null",
        )
    there = {
        "num_queries": num_queries,
        "dim": architecture.hidden_size,
        "depth": architecture.num_hidden_layers,
        "num_heads": architecture.num_attention_heads,
    }
    other = [name for name, number in there.items() if getattr(config, name) not in (None, number)]
    if other:
        raise PartError(
            f"connector.weights has {', '.join(f'{name} {there[name]}' for name in other)}",
            ", ".join(f"{name} {getattr(config, name)}, as the recipe says" for name in other),
            f"leave {shown([f'connector.{name}' for name in other])} out, or set connector.weights=null",
        )


def _tensors(name: str, revision: str | None) -> dict[str, Tensor]:
    """Those of the Q-Former by its own names, and `query_tokens`. Of a model in shards only those files are fetched and opened that hold
    some: BLIP-2 with its language model takes 15 GB."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    index = cached_file(name, "model.safetensors.index.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    files = {"model.safetensors"}
    if index is not None:
        places: Mapping[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        files = {place for key, place in places.items() if _own(key) is not None}
    found: dict[str, Tensor] = {}
    for place in sorted(files):
        with safe_open(cached_file(name, place, revision=revision), framework="pt") as shard:
            found |= {own: shard.get_tensor(key) for key in shard.keys() if (own := _own(key)) is not None}  # noqa: SIM118  # no mapping
    return found


def _own(key: str) -> str | None:
    return key if key == "query_tokens" else key.removeprefix("qformer.") if key.startswith("qformer.") else None
