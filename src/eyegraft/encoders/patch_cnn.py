"""A small convolutional network for patches of many channels, trained from nothing: [B, C, H, W] -> a token of the whole patch, then one
for every 3 x 3 pixels.

The light alternative to a pretrained encoder: some thousand numbers, a moment on a CPU. It reads bands and extra channels alike and
needs no wavelengths; time and place are left to a later part of the recipe. The first token weighs every place by itself (`pooling=cls`):
where a station stands in the middle of a patch, a mean over places would forget which pixel is the middle one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eyegraft.config import Positive, Strict
from eyegraft.errors import PartError, shown
from eyegraft.sensors import NamedSensor
from eyegraft.types import PatchSpec, Tokens

_STRIDE = 3


class Config(Strict):
    """Attributes:
    sensor: the name of a known sensor, or its bands written out.
    side: of a patch, in pixels.
    width: D of the tokens and of the layers between.
    extra_channels: maps beside the bands (`sza`, `dem`, `lsmask`).
    """

    sensor: NamedSensor
    side: Positive = 9
    width: Positive = 32
    extra_channels: tuple[str, ...] = ()


class PatchCNN(nn.Module):
    """{pixels: [B, C, H, W] z-scored, mask: [B, C, H, W] (True where measured), extra: [B, E, H, W]} -> [B, 1 + N, D]; `mask` is optional.

    What was not measured counts as its band's mean. With a sensor whose missing pixels are masked, a channel more says which share of the
    bands was measured at each pixel. Levels matter for a regression, so nothing is normalised on the way.
    """

    backbone = None  # nothing pretrained

    def __init__(self, spec: PatchSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.token_dim = width
        self.num_bands = len(spec.sensor.bands)
        self.tells_missing = spec.sensor.missing == "mask"
        channels = self.num_bands + len(spec.extra_channels) + int(self.tells_missing)
        left_over = -spec.size[0] % _STRIDE  # an incomplete last cell is padded: no pixel is left out
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
        self.cells = nn.Sequential(nn.ZeroPad2d((0, left_over, 0, left_over)), nn.Conv2d(width, width, _STRIDE, stride=_STRIDE))
        cells = (-(-spec.size[0] // _STRIDE), -(-spec.size[1] // _STRIDE))
        self.whole = nn.Sequential(nn.GELU(), nn.Conv2d(width, width, cells))

    @property
    def blocks(self) -> Sequence[Sequence[nn.Parameter]]:
        first, second = (list(layer.parameters()) for layer in self.layers if isinstance(layer, nn.Conv2d))
        return [first, second, [*self.cells.parameters(), *self.whole.parameters()]]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        grid = self.cells(self.layers(self._maps(inputs)))  # [B, D, h, w]
        values = torch.cat([self.whole(grid).flatten(2), grid.flatten(2)], dim=2).transpose(1, 2)  # [B, 1 + N, D]
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return Tokens(values, mask, grid=(grid.shape[2], grid.shape[3]), num_prefix=1)

    def _maps(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """All channels in one: [B, C + E (+ 1), H, W]."""
        pixels, mask, extra = inputs["pixels"], inputs.get("mask"), inputs.get("extra")
        names = (*self.spec.sensor.band_names, *self.spec.extra_channels)
        maps = [pixels if mask is None else torch.where(mask, pixels, 0)]
        maps += [extra] if extra is not None and self.spec.extra_channels else []
        given = sum(channels.shape[1] for channels in maps)
        if given != len(names) or pixels.shape[1] != self.num_bands:
            raise PartError(
                f"{pixels.shape[1]} channels of pixels and {0 if extra is None else extra.shape[1]} of extra",
                f"{self.num_bands} and {len(self.spec.extra_channels)}: {shown(names, 20)}",
                "give the patches' own sensor and extra_channels under vision_encoder",
            )
        if self.tells_missing:
            maps.append(torch.ones_like(pixels[:, :1]) if mask is None else mask.to(pixels.dtype).mean(1, keepdim=True))
        return torch.cat(maps, dim=1)


def build(config: Config) -> PatchCNN:
    return PatchCNN(PatchSpec(config.sensor, (config.side, config.side), config.extra_channels), config.width)
