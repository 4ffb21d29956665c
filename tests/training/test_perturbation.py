"""The probe names what a model does not see, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from eyegraft.config import Part
from eyegraft.model import Graft
from eyegraft.registry import configured
from eyegraft.training.perturbation import effects, effects_of
from eyegraft.types import Batch

BANDS = [{"name": name, "wavelength_um": length, "unit": "K"} for name, length in {"a": 3.9, "b": 10.8, "c": 12.0}.items()]
SENSOR = {"name": "three", "bands": BANDS, "gsd_m": 2000.0, "missing": "mask"}


def part(room: str, kind: str, options: Mapping[str, Any], **widths: Any) -> Any:
    module, config = configured(room, Part.model_validate({"kind": kind, **options}))
    return module.build(config, **widths)


def graft(pooling: str = "mean", **options: Any) -> Graft:
    """A patch encoder, a pooling and a head, as a recipe puts them together."""
    torch.manual_seed(0)
    encoder = part("encoders", options.pop("kind", "clay"), {"sensor": SENSOR, **options})
    pool = part("connectors", pooling, {}, in_dim=encoder.token_dim, out_dim=encoder.token_dim)
    fusion = part("fusion", "concat", {}, dims={"image": encoder.token_dim})
    return Graft({"image": encoder}, {"image": {"pooling": pool}}, fusion, torch.nn.Identity())


def patches(extra: int = 0, count: int = 2) -> Batch:
    torch.manual_seed(1)
    inputs = {
        "pixels": torch.randn(count, 3, 9, 9),
        "mask": torch.rand(count, 3, 9, 9) > 0.3,
        "time": torch.randn(count, 4),
        "latlon": torch.zeros(count, 4),  # unknown, which is no reason to call it inert
    }
    if extra:
        inputs["extra"] = torch.randn(count, extra, 9, 9)
    empty = torch.zeros(count, 0, dtype=torch.long)
    return Batch({"image": inputs}, empty, empty.bool(), empty, [], torch.zeros(count, 1))


def test_crop_leaves_a_fifth_of_the_pixels(caplog: pytest.LogCaptureFixture) -> None:
    found = effects_of(graft(size="tiny", grid="crop"), patches())
    assert found.lines() == ["pixels: 17 of 81 pixels (21 %) have no effect: row 9, column 9"]
    assert not found.unused["pixels"][:8, :8].any()
    assert not any(found.inert.values())
    assert "17 of 81 pixels (21 %)" in caplog.text


@pytest.mark.parametrize("options", [{"grid": "pad16"}, {"grid": "kernel3"}, {"grid": "resize72"}, {}])
def test_the_other_grids_see_all(options: dict[str, str]) -> None:
    """Also the one that is taken where nothing is said, and with any pooling, and maps without a wavelength."""
    for pooling in ("mean", "cls"):
        model = graft(pooling, size="tiny", extra_channels=["sza", "dem"], **options)
        assert effects_of(model, patches(extra=2)).lines() == []


def test_frozen_or_not_makes_no_difference() -> None:
    model = graft(size="tiny", grid="crop").requires_grad_(False)
    assert len(effects_of(model, patches()).lines()) == 1


def test_inputs_that_nobody_reads_are_named() -> None:
    found = effects_of(graft(kind="patch_cnn"), patches())
    assert found.lines() == [
        "time: no effect: sin week, cos week, sin hour, cos hour",
        "latlon: no effect: sin lat, cos lat, sin lon, cos lon",
    ]


def test_a_dead_band_and_a_dead_map_are_named() -> None:
    model = graft(kind="patch_cnn", extra_channels=["sza", "dem"])
    with torch.no_grad():
        model.encoders["image"].layers[0].weight[:, [1, 4]] = 0
    found = effects_of(model, patches(extra=2))
    assert found.inert["pixels"] == ("b",)
    assert found.inert["extra"] == ("dem",)
    assert not found.unused["pixels"].any(), "the other bands are seen everywhere"


def test_a_picture_encoder_can_be_asked_too(make_graft: Callable[..., Any]) -> None:
    _, model = make_graft(connector={"kind": "mlp"})
    tiny.lively(model.encoders["image"], scale=1.0)
    pixels = torch.randn(1, 3, *model.encoders["image"].spec.size)
    batch = tiny.text_batch(model.head.tokenizer, [("a", "b")], pixels)
    assert effects_of(model, batch).lines() == []


def test_nothing_moves() -> None:
    model = graft(size="tiny")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    effects_of(model, patches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_of_zero_is_not_taken_for_proof() -> None:
    """A step has no slope anywhere, and what it reads has an effect nonetheless."""

    def stepped(inputs: Mapping[str, Tensor]) -> Tensor:
        return (inputs["maps"][:, 0, 1, 2] > 0).float() + inputs["maps"][:, 0, 0, 0]

    maps = torch.full((4, 2, 3, 4), -2.0)
    found = effects(stepped, {"maps": maps, "ids": torch.ones(4, dtype=torch.long)}, {"maps": ("one", "two")})
    seen = {tuple(place) for place in (~found.unused["maps"]).nonzero().tolist()}
    assert seen == {(0, 0), (1, 2)}
    assert found.inert == {"maps": ("two",)}
    assert found.lines() == ["maps: 10 of 12 pixels (83 %) have no effect", "maps: no effect: two"]


def test_a_forward_without_a_gradient_is_probed_by_value() -> None:
    found = effects(lambda inputs: inputs["v"].detach()[:, [0, 2]] * 2, {"v": torch.randn(3, 4)})
    assert found.inert == {"v": ("2", "4")}
