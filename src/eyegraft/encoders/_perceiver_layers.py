"""The layers of the patch perceiver: latents read patches once (Jaegle et al. 2021), then blocks of attention and a mixture of experts.

Every expert is D -> 2D -> D with GELU. A router gives each token to its `top_k` most probable experts; their answers are weighed by the
probabilities, normalised over those chosen (GShard, Lepikhin et al. 2020), or that of a single one by its own probability. That no
expert is left without work is asked by a loss of its own (Switch, Fedus et al. 2021, equation 4),

    balance = E · Σ_e f_e · P_e,

f_e being the share of the choices that fell on expert e and P_e the mean probability of e, over the tokens of one group; 1 where all
experts have the same. A picture is a group, as GShard takes groups of tokens: so its loss is its own, whatever else is in the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Balanced(NamedTuple):
    """Attributes:
    values: [B, N, D].
    balance: [B] float32, summed over the mixtures that the values passed.
    """

    values: Tensor
    balance: Tensor


class Attention(nn.Module):
    """Attention of queries [B, N, D] over what is read [B, M, D]; `seen` [B, M] bool says what of that may be looked at."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, queries: Tensor, read: Tensor, seen: Tensor | None = None) -> Tensor:
        query, key, value = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, D / heads]
            for layer, given in ((self.query, queries), (self.key, read), (self.value, read))
        )
        mask = None if seen is None else seen[:, None, None, :]
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2))
        return mixed


class Mixture(nn.Module):
    """A mixture of experts: [B, N, D] -> the same, and the balance of each picture.

    Tokens are put in order of their expert, so that each expert works on one piece of the whole: there are as many products as experts,
    none is padded and no token is dropped.
    """

    def __init__(self, dim: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(dim, num_experts)
        self.w_in = nn.Parameter(torch.empty(num_experts, dim, 2 * dim))
        self.b_in = nn.Parameter(torch.zeros(num_experts, 2 * dim))
        self.w_out = nn.Parameter(torch.empty(num_experts, 2 * dim, dim))
        self.b_out = nn.Parameter(torch.zeros(num_experts, dim))
        for weight in (self.w_in, self.w_out):
            nn.init.normal_(weight, std=0.02)

    def forward(self, values: Tensor) -> Balanced:
        with torch.autocast(values.device.type, enabled=False):  # a choice between near equals must not hang on a rounding
            probabilities = F.linear(values.float(), self.router.weight.float(), self.router.bias.float()).softmax(-1)  # [B, N, E]
        shares, chosen = probabilities.topk(self.top_k, dim=-1)  # [B, N, k]
        shares = shares / (shares.sum(-1, keepdim=True) if self.top_k > 1 else 1.0)  # of a single one it would teach the router nothing
        answers = self._answered(values.flatten(0, 1), chosen.flatten())  # [B · N · k, D]
        mixed = (answers.view(*chosen.shape, -1) * shares.unsqueeze(-1).to(answers.dtype)).sum(2)
        return Balanced(mixed, balance(probabilities, chosen))

    def _answered(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """What each of the chosen experts [T · k], token by token, says of its token [T, D]: [T · k, D]."""
        order = experts.argsort(stable=True)
        pieces = tokens[order // self.top_k].split(experts.bincount(minlength=self.num_experts).tolist())
        answers = []
        for expert, piece in enumerate(pieces):
            inner = F.gelu(piece @ self.w_in[expert] + self.b_in[expert])
            answers.append(inner @ self.w_out[expert] + self.b_out[expert])
        return torch.cat(answers)[order.argsort()]


def balance(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e of each picture, [B], from probabilities [B, N, E] and the experts chosen [B, N, k]. The gradient is that of P."""
    num_experts = probabilities.shape[-1]
    shares = F.one_hot(chosen, num_experts).flatten(1, 2).float().mean(1)  # [B, E]
    return num_experts * (shares * probabilities.mean(1)).sum(-1)


class Block(nn.Module):
    """Self-attention of the latents and the mixture, each behind a norm and beside a residual."""

    def __init__(self, dim: int, heads: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mixture = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mixture = Attention(dim, heads), Mixture(dim, num_experts, top_k)

    def forward(self, values: Tensor) -> Balanced:
        normed = self.norm_attention(values)
        values = values + self.attention(normed, normed)
        mixed = self.mixture(self.norm_mixture(values))
        return Balanced(values + mixed.values, mixed.balance)


def sines_and_cosines(side: int, dim: int) -> Tensor:
    """Where each cell of a square grid lies, [side², dim]: sines of column and row, then their cosines, at the rates of He et al. 2022."""
    rates = 10_000.0 ** (-torch.arange(dim // 4) / max(dim // 4, 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([places.flatten().unsqueeze(1) * rates for places in (columns, rows)], dim=1)  # [side², dim / 2]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 4))


class Trunk(nn.Module):
    """Pixels [B, 3, H, W] and the class of each map [B] -> [B, 1 + L, D], the class token first.

    Args:
        num_patches: H · W / patch².
        num_classes: K; one more class, the last, stands for a map whose class is not told.
    """

    def __init__(
        self,
        *,
        patch: int,
        num_patches: int,
        num_classes: int,
        dim: int,
        num_latents: int,
        heads: int,
        depth: int,
        experts: int,
        top_k: int,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, stride=patch)
        # places and latents start as large as patches are: behind smaller ones all latents say the same, and none of them where
        self.positions = nn.Parameter(sines_and_cosines(math.isqrt(num_patches), dim))
        self.types = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.types.weight, std=0.02)
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.norm_latents, self.norm_patches = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.reading = Attention(dim, heads)
        self.blocks = nn.ModuleList(Block(dim, heads, experts, top_k) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor, classes: Tensor, seen: Tensor | None = None) -> Balanced:
        """Args:
        classes: [B] int64, from 0 to K.
        seen: [B, N] bool, the patches that may be read.
        """
        types = self.types(classes)  # [B, D]
        patches = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions + types.unsqueeze(1)  # [B, N, D]
        latents = self.latents.expand(len(pixels), -1, -1)
        values = latents + self.reading(self.norm_latents(latents), self.norm_patches(patches), seen)
        total = values.new_zeros(len(values), dtype=torch.float32)
        for block in self.blocks:
            values, balance = block(values)
            total = total + balance
        return Balanced(torch.cat([types.unsqueeze(1), self.norm(values)], dim=1), total)

    def stack(self) -> list[list[nn.Parameter]]:
        """Parameters in depth order: the stem with all that meets the pixels, then each block; the last norm belongs to the last one."""
        blocks = [list(block.parameters()) for block in self.blocks]
        inside = {id(parameter) for block in blocks for parameter in block}
        tail = list(self.norm.parameters())
        inside |= {id(parameter) for parameter in tail}
        stem = [parameter for parameter in self.parameters() if id(parameter) not in inside]
        return [stem, *blocks[:-1], blocks[-1] + tail]
