"""Every encoder in the folder keeps the promises of `eyegraft.encoders.Encoder`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tiny
from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.sensors import Sensor
from eyegraft.tuning import set_training_mode
from eyegraft.types import ColumnSpec, ImageSpec, PatchSpec, TextSpec

pytestmark = pytest.mark.parametrize("case", cases("encoders"))
_built: dict[tuple[str, str], Any] = {}


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    """The encoder of a case, built once; its state is put back after each test."""
    if case not in _built:
        module, config = part("encoders", case, folders)
        torch.manual_seed(0)
        _built[case] = module.build(config)
    encoder = _built[case]
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)
    yield encoder.eval()
    encoder.load_state_dict(state)
    encoder.zero_grad()


def inputs_of(encoder: Any, count: int = 2) -> Any:
    """Random inputs of a batch, in the form that the encoder's spec asks for; rows differ in what of them is real, where they can."""
    torch.manual_seed(3)
    spec = encoder.spec
    if isinstance(spec, TextSpec):
        width = min(spec.max_tokens, 8)
        mask = torch.arange(width) < torch.tensor([[width], [width - 3]])
        return {"input_ids": torch.randint(0, len(spec.tokenizer), (count, width)), "mask": mask[:count]}
    if isinstance(spec, PatchSpec):
        shape = (count, len(spec.sensor.bands), *spec.size)
        extra = {"extra": torch.randn(count, len(spec.extra_channels), *spec.size)} if spec.extra_channels else {}
        return {
            "pixels": torch.randn(shape),
            "mask": torch.rand(shape) > 0.3,
            "time": torch.randn(count, 4),
            "latlon": torch.randn(count, 4),
            **extra,
        }
    if isinstance(spec, ColumnSpec):
        return torch.randn(count, spec.width)
    if spec.patch_size is not None:
        side, most = math.isqrt(spec.max_patches), spec.max_patches
        grid = torch.tensor([[side, side - 1], [1, most]])[:count]
        pixels = torch.randn(count, most, spec.patch_size**2 * spec.channels)
        return {"pixels": pixels, "mask": torch.arange(most) < grid.prod(1, keepdim=True), "grid": grid}
    return torch.randn(count, spec.channels, *spec.size)


def row(inputs: Any, number: int) -> Any:
    """One row as a batch of its own."""
    if isinstance(inputs, dict):
        return {key: tensor[number : number + 1] for key, tensor in inputs.items()}
    return inputs[number : number + 1]


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("encoders", case, folders))


def test_tokens_are_what_they_say(made: Any) -> None:
    with torch.no_grad():
        inputs = inputs_of(made)
        tokens = made(inputs)
    batch, count, width = tokens.values.shape
    assert (batch, width) == (2, made.token_dim)
    assert tokens.values.is_floating_point()
    assert tokens.values.isfinite().all()
    assert tokens.mask.dtype == torch.bool
    assert tokens.mask.shape == (batch, count)
    if isinstance(made.spec, PatchSpec):
        assert tokens.mask.any(1).all(), "a patch that is measured in part has a token that is real"
    elif isinstance(inputs, dict):
        assert count == 1 or torch.equal(tokens.mask, inputs["mask"]), "a token is real where the input is, unless one stands for all"
    else:
        assert tokens.mask.all(), "an image has no missing tokens"
    if tokens.grid is not None:
        assert tokens.grid[0] * tokens.grid[1] == count - tokens.num_prefix
        assert min(tokens.grid) >= 1
    assert tokens.values.std(0).max() > 0, "two inputs give the same tokens"


def test_a_token_sees_its_place(made: Any) -> None:
    """A change in one corner of the image moves the token of that corner most: the grid is row by row."""
    if isinstance(made.spec, TextSpec | ColumnSpec) or (isinstance(made.spec, ImageSpec) and made.spec.patch_size is not None):
        return  # the input is a sequence, token by token
    tiny.lively(made, scale=1.0)
    inputs = inputs_of(made, 1)
    rest = {key: tensor for key, tensor in inputs.items() if key not in ("pixels", "mask")} if isinstance(inputs, dict) else None
    pixels = inputs if rest is None else inputs["pixels"]
    height, width = made.spec.size
    with torch.no_grad():
        before = made(pixels if rest is None else {**rest, "pixels": pixels})
        if before.grid is None or min(before.grid) < 2:
            return  # one token sees everything
        rows, columns = before.grid
        for corner, place in {(0, 1): columns - 1, (1, 0): (rows - 1) * columns}.items():
            changed = pixels.clone()
            top, left = corner[0] * (height - height // 8), corner[1] * (width - width // 8)
            changed[:, :, top : top + height // 8, left : left + width // 8] *= -8
            moved = (made(changed if rest is None else {**rest, "pixels": changed}).values - before.values)[0, before.num_prefix :].norm(
                dim=-1
            )
            opposite = (rows - 1) * columns if place == columns - 1 else columns - 1
            assert moved[place] > moved[opposite], f"grid {before.grid}: {moved.view(rows, columns)}"


def test_masked_inputs_change_nothing(made: Any) -> None:
    """What lies where the mask says False never reaches a token that is real."""
    inputs = inputs_of(made)
    if not isinstance(inputs, dict):
        return  # nothing is masked
    tiny.lively(made, scale=1.0)
    key = "pixels" if "pixels" in inputs else "input_ids"
    hidden = ~inputs["mask"]
    other = inputs[key].clone()
    other[hidden] = 1 - other[hidden] if key == "pixels" else other[hidden].roll(1)
    with torch.no_grad():
        before, after = made(inputs), made({**inputs, key: other})
    assert not torch.equal(other, inputs[key])
    torch.testing.assert_close(after.values[after.mask], before.values[before.mask], rtol=1e-5, atol=1e-6)


def test_spec_is_sane(made: Any) -> None:
    spec = made.spec
    if isinstance(spec, TextSpec):
        assert spec.max_tokens >= 8
        assert len(spec.tokenizer) > 1
        return
    if isinstance(spec, ColumnSpec):
        assert spec.width >= len(spec.names) >= 1
        return
    assert len(spec.size) == 2
    assert all(isinstance(side, int) and side > 0 for side in spec.size)
    if isinstance(spec, PatchSpec):
        assert isinstance(spec.sensor, Sensor)
        return
    assert isinstance(spec, ImageSpec)
    assert (spec.patch_size is None) == (spec.max_patches is None)
    assert len(spec.mean) == len(spec.std) == spec.channels >= 1
    assert all(0 <= value <= 1 for value in spec.mean)
    assert all(0 < value <= 1 for value in spec.std)
    assert spec.interpolation in ("nearest", "bilinear", "bicubic", "lanczos")
    assert spec.fit in ("crop", "squash", "pad")
    assert 0 < spec.crop_fraction <= 1


def test_blocks_hold_every_parameter_once(made: Any) -> None:
    ids = [id(parameter) for block in made.blocks for parameter in block]
    assert len(ids) == len(set(ids)), "a parameter stands in two blocks"
    assert set(ids) == {id(parameter) for parameter in made.parameters()}
    assert len(made.blocks) >= 2
    assert all(len(block) for block in made.blocks), "an empty block would make last_n train nothing"


def test_blocks_are_in_depth_order(made: Any) -> None:
    """Blocks come in the order in which the forward first uses them, stem first."""
    first_use: dict[int, int] = {}

    def note(module: torch.nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            first_use.setdefault(id(parameter), len(first_use))

    handles = [module.register_forward_pre_hook(note) for module in made.modules()]
    with torch.no_grad():
        made(inputs_of(made, 1))
    for handle in handles:
        handle.remove()
    starts = [min((first_use[id(p)] for p in block if id(p) in first_use), default=None) for block in made.blocks]
    called = [start for start in starts if start is not None]
    assert len(called) == len(made.blocks)
    assert called == sorted(called)


def test_gradient_reaches_every_parameter(made: Any) -> None:
    """So that `full`, `last_n` and adapters never train a tensor that the forward leaves out."""
    tiny.lively(made, scale=1.0)
    values = made(inputs_of(made)).values
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient: {without}"
    assert all(p.grad.isfinite().all() for p in made.parameters())


def test_frozen_is_frozen(made: Any) -> None:
    """Nothing moves and no graph is kept, not even running statistics, when training goes on around it."""
    inputs = inputs_of(made)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with torch.no_grad():
        expected = made(inputs).values
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    set_training_mode(made)
    values = made(inputs).values
    assert not values.requires_grad
    assert torch.equal(values, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_same_input_same_output(made: Any) -> None:
    inputs = inputs_of(made)
    with torch.no_grad():
        first, second, alone = made(inputs), made(inputs), made(row(inputs, 1))
    assert torch.equal(first.values, second.values)
    torch.testing.assert_close(alone.values, first.values[1:], rtol=1e-4, atol=1e-5)


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    module, config = part("encoders", case, folders)
    probe = module.build(config)
    inputs = inputs_of(probe, 1)
    reloads(lambda: module.build(config), lambda encoder: encoder(inputs).values)
