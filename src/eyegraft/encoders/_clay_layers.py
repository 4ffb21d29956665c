"""The layers of Clay v1.5 (Clay Foundation, 2024): an encoder whose patch embedding is generated from wavelengths.

Names of modules and parameters are those of the released weights below `model.encoder.`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 8
_WAVE_DIM, _WAVE_HEADS, _NUM_WEIGHT_TOKENS = 128, 4, 128
_TIME_PLACE = 8  # the last numbers of a position: time [4] and latlon [4]


class Size(NamedTuple):
    dim: int
    depth: int
    heads: int
    dim_head: int
    mlp_ratio: int


SIZES = {
    "tiny": Size(192, 6, 4, 48, 2),
    "small": Size(384, 6, 6, 64, 2),
    "base": Size(768, 12, 12, 64, 4),
    "large": Size(1024, 24, 16, 64, 4),
}


def wave_codes(wavelengths_um: Tensor) -> Tensor:
    """Wavelengths [C] in micrometres -> [C, 128] = [sin(λω), cos(λω)], ω_i = 10000^(-i/63)."""
    half = _WAVE_DIM // 2
    omega = 1.0 / 10_000 ** (torch.arange(half, device=wavelengths_um.device) / (half - 1))
    angles = wavelengths_um[:, None] * omega
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def positions(side: int, dim: int, gsd_m: float, device: torch.device | None = None) -> Tensor:
    """Places on a square grid of tokens -> [side², dim] = [sin x, cos x, sin y, cos y] of place · ω, row by row, x along a row.

    ω_i = gsd · 10000^(-2(i/(q-1))/dim) with q = dim/4: the exponent runs over 2/dim alone, and not to 1. The weights were trained with it.
    """
    quarter = dim // 4
    omega = 1.0 / 10_000 ** (2 * (torch.arange(quarter, device=device) / (quarter - 1)) / dim) * gsd_m
    y, x = torch.meshgrid(torch.arange(side, device=device), torch.arange(side, device=device), indexing="ij")
    x_angles, y_angles = x.flatten()[:, None] * omega, y.flatten()[:, None] * omega
    return torch.cat((x_angles.sin(), x_angles.cos(), y_angles.sin(), y_angles.cos()), dim=1)


# ── the patch embedding and its generator ────────────────────────────────────────────────────────────────────────────────────────


class _ResidualLayers(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.l2(F.gelu(self.l1(x))))


class _SelfAttention(nn.Module):
    """PyTorch's `MultiheadAttention` on one sequence, with its names. That module reads the weights of `out_proj` without calling it, so an
    adapter around it would never take part."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (  # [heads, T, dim / heads] each
            part.unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for part in F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out_proj(mixed.transpose(0, 1).flatten(1))
        return attended


class _PostNormLayer(nn.Module):
    """PyTorch's `TransformerEncoderLayer` with its defaults: GELU for its ReLU, norms after the sums."""

    def __init__(self, dim: int, heads: int, hidden_dim: int = 2048) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        normed: Tensor = self.norm2(x + self.linear2(F.gelu(self.linear1(x))))
        return normed


class _Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _WeightGenerator(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight_tokens = nn.Parameter(torch.randn(_NUM_WEIGHT_TOKENS, _WAVE_DIM) * 0.02)
        self.bias_token = nn.Parameter(torch.randn(1, _WAVE_DIM) * 0.02)
        self.encoder = _Layers(_PostNormLayer(_WAVE_DIM, _WAVE_HEADS))
        self.fc_weight = nn.Linear(_WAVE_DIM, dim * PATCH**2)
        self.fc_bias = nn.Linear(_WAVE_DIM, dim)

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the bands [C, 128] -> (weights [C, D·64], bias [D])."""
        sequence = torch.cat((self.weight_tokens, codes, self.bias_token))
        mixed = self.encoder.layers[0](sequence)
        bands = slice(_NUM_WEIGHT_TOKENS, -1)
        return self.fc_weight(mixed[bands] + sequence[bands]), self.fc_bias(mixed[-1])


class PatchEmbedding(nn.Module):
    """One convolution whose kernel is generated from the wavelengths of one sensor.

    While the generator is frozen the kernel is generated once and kept, until the weights move, change type or are written (PyTorch counts
    that, except through `.data`). While it trains, every forward generates the kernel, and gradients go through it.

    Args:
        side: of the kernel in pixels. Below 8 the generated kernel is carried back through the bilinear enlargement of a cell of that side
            to 8 x 8 pixels, so that the result is what Clay gives for the enlarged cell.
    """

    def __init__(self, dim: int, wavelengths_um: Sequence[float], side: int = PATCH) -> None:
        super().__init__()
        self.dim, self.side = dim, side
        self.wavelengths_um = tuple(wavelengths_um)
        self.weight_generator = _WeightGenerator(dim)
        self.fclayer = _ResidualLayers(_WAVE_DIM)
        self._kept: tuple[object, tuple[Tensor, Tensor]] | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        kernel, bias = self.convolution()
        return F.conv2d(pixels, kernel.to(pixels.dtype), bias.to(pixels.dtype), stride=self.side)

    def convolution(self) -> tuple[Tensor, Tensor]:
        """(kernel [D, C, side, side], bias [D])."""
        parameters = list(self.parameters())
        if any(parameter.requires_grad or parameter.is_inference() for parameter in parameters):  # the latter's changes are not counted
            return self._generated()
        state = tuple((parameter.data_ptr(), parameter._version, parameter.device, parameter.dtype) for parameter in parameters)
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():  # what inference mode makes could not be used in training later
                self._kept = state, self._generated()
        return self._kept[1]

    def _generated(self) -> tuple[Tensor, Tensor]:
        like = self.weight_generator.weight_tokens
        with torch.autocast(like.device.type if like.device.type != "meta" else "cpu", enabled=False):  # wavelengths differ by little
            lengths = torch.tensor(self.wavelengths_um, device=like.device)
            weights, bias = self.weight_generator(self.fclayer(wave_codes(lengths).to(like.dtype)))
            kernel = weights.view(-1, self.dim, PATCH, PATCH).transpose(0, 1) * 0.02  # [D, C, 8, 8]; the bias is not scaled
            if self.side != PATCH:
                enlarge = enlargement(self.side).to(kernel)
                kernel = torch.einsum("dcyx,yi,xj->dcij", kernel, enlarge, enlarge)
        return kernel, bias


def enlargement(side: int) -> Tensor:
    """[8, side], the matrix of bilinear interpolation from `side` pixels to 8."""
    unit = torch.eye(side)[None]  # [1, side, side]: one line of pixels a channel
    return F.interpolate(unit, size=PATCH, mode="linear", align_corners=False)[0].T


# ── the transformer ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # [B, heads, N, dim_head]
        attended: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return attended


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        forwarded: Tensor = self.net(x)
        return forwarded


class _Transformer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([_Attention(size.dim, size.heads, size.dim_head), _FeedForward(size.dim, size.dim * size.mlp_ratio)])
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = x + layer[0](x, mask)  # type: ignore[index]
            x = x + layer[1](x)  # type: ignore[index]
        normed: Tensor = self.norm(x)
        return normed


class ClayTrunk(nn.Module):
    """Pixels to tokens, with the names of the released weights.

    Args:
        gsd_m: of a pixel that the patch embedding sees 8 x 8 of, in metres.
        side: of the patch embedding's kernel, in pixels.
    """

    def __init__(self, size: Size, wavelengths_um: Sequence[float], gsd_m: float, side: int = PATCH) -> None:
        super().__init__()
        self.gsd_m = gsd_m
        self.cls_token = nn.Parameter(torch.randn(1, 1, size.dim) * 0.02)
        self.patch_embedding = PatchEmbedding(size.dim, wavelengths_um, side)
        self.transformer = _Transformer(size)

    def forward(self, pixels: Tensor, time: Tensor, latlon: Tensor, *, added: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """Pixels [B, C, h, w] of a square, time [B, 4] and latlon [B, 4] -> [B, 1 + N, D], the class token first.

        Args:
            added: [B, D, g, g], summed with the patches.
            seen: [B, N] bool, False where a token has nothing measured in it; no other token looks at it.
        """
        patches = self.patch_embedding(pixels)  # [B, D, g, g]
        grid = patches.shape[-1]
        patches = (patches if added is None else patches + added).flatten(2).transpose(1, 2)  # [B, N, D]
        place = positions(grid, patches.shape[-1] - _TIME_PLACE, self.gsd_m, pixels.device)
        moment = torch.cat((time, latlon), dim=1).unsqueeze(1).expand(-1, grid**2, -1)  # [B, N, 8]
        code = torch.cat((place.expand(len(patches), -1, -1), moment.float()), dim=-1)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches + code.to(patches.dtype)), dim=1)
        mask = None if seen is None else F.pad(seen, (1, 0), value=True)[:, None, None, :]  # for every head and query
        encoded: Tensor = self.transformer(tokens, mask)
        return encoded

    def blocks(self) -> list[list[nn.Parameter]]:
        """Parameters in depth order: class token and patch embedding, each block, the last one with the final norm."""
        stem = [self.cls_token, *self.patch_embedding.parameters()]
        layers = [list(layer.parameters()) for layer in self.transformer.layers]
        return [stem, *layers[:-1], layers[-1] + list(self.transformer.norm.parameters())]
