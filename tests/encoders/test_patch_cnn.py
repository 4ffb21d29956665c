"""The light encoder: small, blind to no pixel, and it trains without being asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from eyegraft.composition import CONF
from eyegraft.config import Part
from eyegraft.encoders.patch_cnn import Config, PatchCNN, build
from eyegraft.errors import PartError
from eyegraft.registry import configured
from eyegraft.tuning import default_tune

SENSOR: dict[str, Any] = {
    "name": "two",
    "bands": [{"name": "lst_day", "unit": "K"}, {"name": "lst_night", "unit": "K"}],
    "gsd_m": 1000.0,
}


def encoder(**options: Any) -> PatchCNN:
    torch.manual_seed(0)
    return build(Config.model_validate({"sensor": SENSOR, **options}))


def test_the_option_is_light() -> None:
    """All channels of the document's patches, 19 of them, in some thousand numbers."""
    options = yaml.safe_load((CONF / "vision_encoder" / "patch_cnn.yaml").read_text(encoding="utf-8"))
    module, config = configured("encoders", Part.model_validate(options))
    made = module.build(config)
    assert sum(parameter.numel() for parameter in made.parameters()) == 32 * 9 * (19 + 2 * 32) + 9 * 32 * 32 + 4 * 32
    tokens = made({"pixels": torch.randn(2, 16, 9, 9), "extra": torch.randn(2, 3, 9, 9)})
    assert tokens.values.shape == (2, 10, 32)
    assert (tokens.grid, tokens.num_prefix) == ((3, 3), 1)
    assert default_tune(made).mode == "full"


@pytest.mark.parametrize("side", [1, 7, 8, 9, 10, 11])
def test_every_pixel_counts(side: int) -> None:
    """Also where 3 does not divide the side, and also bands without a wavelength."""
    pixels = torch.randn(4, 2, side, side, requires_grad=True)
    values = encoder(side=side)({"pixels": pixels}).values
    (values * torch.randn_like(values)).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.any(0).all()
    assert values.shape[1] == 1 + (-(-side // 3)) ** 2


def test_the_first_token_knows_places_apart() -> None:
    """A mean over places gives the same for a patch and for its mirror image; where the station stands matters."""
    made, pixels = encoder(), torch.randn(1, 2, 9, 9)
    one, other = (made({"pixels": given}).values[:, 0] for given in (pixels, pixels.flip(-1)))
    assert not torch.allclose(one, other, atol=1e-3)


@torch.no_grad()
def test_missing_pixels_are_told_from_the_mean() -> None:
    """Under `missing: mask` a pixel that was not measured, and one that was and lies at the mean, are two things; what lies below the mask is
    nothing at all."""
    made = encoder(sensor={**SENSOR, "missing": "mask"})
    pixels = torch.randn(1, 2, 9, 9)
    mask = torch.ones_like(pixels, dtype=torch.bool)
    mask[:, 0, 4, 4] = False

    def run(hidden: float, mask: Tensor | None) -> Tensor:
        given = pixels.clone()
        given[:, 0, 4, 4] = hidden
        return made({"pixels": given} if mask is None else {"pixels": given, "mask": mask}).values

    assert torch.equal(run(torch.nan, mask), run(99.0, mask))
    assert not torch.allclose(run(0.0, mask), run(0.0, None), atol=1e-5)
    assert torch.equal(run(0.0, torch.ones_like(mask)), run(0.0, None))
    dropping = encoder()
    assert dropping.layers[0].in_channels == 2, "patches with missing pixels were dropped, and nothing need be told"


def test_other_channels_are_refused() -> None:
    made = encoder(extra_channels=["dem"])
    for given in (
        {"pixels": torch.randn(1, 2, 9, 9)},
        {"pixels": torch.randn(1, 3, 9, 9)},
        {"pixels": torch.randn(1, 2, 9, 9), "extra": torch.randn(1, 2, 9, 9)},
    ):
        with pytest.raises(PartError, match=r"(?s)channels of pixels and . of extra.*2 and 1: lst_day, lst_night, dem"):
            made(given)
