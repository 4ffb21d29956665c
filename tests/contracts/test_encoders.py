"""Every encoder in the folder keeps the promises of `eyegraft.encoders.Encoder`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.tuning import set_training_mode
from eyegraft.types import ImageSpec

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


def images(encoder: Any, count: int = 2) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(count, encoder.spec.channels, *encoder.spec.size)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("encoders", case, folders))


def test_tokens_are_what_they_say(made: Any) -> None:
    with torch.no_grad():
        tokens = made(images(made))
    batch, count, width = tokens.values.shape
    assert (batch, width) == (2, made.token_dim)
    assert tokens.values.is_floating_point()
    assert tokens.values.isfinite().all()
    assert tokens.mask.dtype == torch.bool
    assert tokens.mask.shape == (batch, count)
    assert tokens.mask.all(), "an image has no missing tokens"
    if tokens.grid is not None:
        assert tokens.grid[0] * tokens.grid[1] == count - tokens.num_prefix
        assert min(tokens.grid) >= 1
    assert tokens.values.std(0).max() > 0, "two images give the same tokens"


def test_a_token_sees_its_place(made: Any) -> None:
    """A change in one corner of the image moves the token of that corner most: the grid is row by row."""
    tiny.lively(made, scale=1.0)
    pixels = images(made, 1)
    height, width = made.spec.size
    with torch.no_grad():
        before = made(pixels)
        if before.grid is None or min(before.grid) < 2:
            return  # one token sees everything
        rows, columns = before.grid
        for corner, place in {(0, 1): columns - 1, (1, 0): (rows - 1) * columns}.items():
            changed = pixels.clone()
            top, left = corner[0] * (height - height // 8), corner[1] * (width - width // 8)
            changed[:, :, top : top + height // 8, left : left + width // 8] *= -8
            moved = (made(changed).values - before.values)[0, before.num_prefix :].norm(dim=-1)
            opposite = (rows - 1) * columns if place == columns - 1 else columns - 1
            assert moved[place] > moved[opposite], f"grid {before.grid}: {moved.view(rows, columns)}"


def test_image_spec_is_sane(made: Any) -> None:
    spec = made.spec
    assert isinstance(spec, ImageSpec)
    assert len(spec.size) == 2
    assert all(isinstance(side, int) and side > 0 for side in spec.size)
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
        made(images(made, 1))
    for handle in handles:
        handle.remove()
    starts = [min((first_use[id(p)] for p in block if id(p) in first_use), default=None) for block in made.blocks]
    called = [start for start in starts if start is not None]
    assert len(called) == len(made.blocks)
    assert called == sorted(called)


def test_gradient_reaches_every_parameter(made: Any) -> None:
    """So that `full`, `last_n` and adapters never train a tensor that the forward leaves out."""
    tiny.lively(made, scale=1.0)
    values = made(images(made)).values
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    without = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient: {without}"
    assert all(p.grad.isfinite().all() for p in made.parameters())


def test_frozen_is_frozen(made: Any) -> None:
    """Nothing moves and no graph is kept, not even running statistics, when training goes on around it."""
    pixels = images(made)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with torch.no_grad():
        expected = made(pixels).values
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    set_training_mode(made)
    values = made(pixels).values
    assert not values.requires_grad
    assert torch.equal(values, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_same_input_same_output(made: Any) -> None:
    pixels = images(made)
    with torch.no_grad():
        first, second, alone = made(pixels), made(pixels), made(pixels[1:])
    assert torch.equal(first.values, second.values)
    torch.testing.assert_close(alone.values, first.values[1:], rtol=1e-4, atol=1e-5)


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    module, config = part("encoders", case, folders)
    probe = module.build(config)
    pixels = images(probe, 1)
    reloads(lambda: module.build(config), lambda encoder: encoder(pixels).values)
