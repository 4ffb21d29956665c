"""Clay v1.5 against its description, written out a second time here, and its weights' layout."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny
from eyegraft.composition import CONF
from eyegraft.config import Lora, Part
from eyegraft.encoders._clay_layers import SIZES, ClayTrunk, enlargement, positions, wave_codes
from eyegraft.encoders.clay import ClayEncoder, Config, build
from eyegraft.errors import PartError
from eyegraft.registry import configured
from eyegraft.sensors import GK2A_AMI, Sensor
from eyegraft.tuning import add_adapter, default_tune
from eyegraft.types import Tokens

WAVES = {"blue": 0.48, "shortwave": 3.83, "window": 10.35}


def sensor(waves: dict[str, float] = WAVES, **changes: Any) -> Sensor:
    bands = [{"name": name, "wavelength_um": length, "unit": "K"} for name, length in waves.items()]
    return Sensor.model_validate({"name": "three", "bands": bands, "gsd_m": 2000.0, **changes})


def encoder(seed: int = 0, **options: Any) -> ClayEncoder:
    torch.manual_seed(seed)
    built = build(Config.model_validate({"size": "tiny", "sensor": sensor(), **options}))
    return tiny.lively(built, scale=1.0).eval()


def inputs(side: int = 9, channels: int = 3, count: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {"pixels": torch.randn(count, channels, side, side), "time": torch.randn(count, 4), "latlon": torch.randn(count, 4)}


# ── the description, written out with PyTorch's own transformer layers ───────────────────────────────────────────────────────────


def described(state: dict[str, Tensor], waves: list[float], gsd_m: float, size: str, given: dict[str, Tensor]) -> Tensor:
    """Pixels of a multiple of 8 -> tokens, one sample after the other, straight from the released tensors' names."""
    return torch.stack(
        [_one(state, waves, gsd_m, size, {key: tensor[n] for key, tensor in given.items()}) for n in range(len(given["pixels"]))]
    )


def _kernel(state: dict[str, Tensor], waves: list[float]) -> tuple[Tensor, Tensor]:
    at = "patch_embedding.weight_generator."
    codes = torch.tensor([[f(wave * 10_000 ** (-i / 63)) for f in (math.sin, math.cos) for i in range(64)] for wave in waves])
    hidden = F.gelu(codes @ state["patch_embedding.fclayer.l1.weight"].T + state["patch_embedding.fclayer.l1.bias"])
    codes = codes + F.gelu(hidden @ state["patch_embedding.fclayer.l2.weight"].T + state["patch_embedding.fclayer.l2.bias"])
    sequence = torch.cat([state[at + "weight_tokens"], codes, state[at + "bias_token"]])
    layer = nn.TransformerEncoderLayer(128, 4, dim_feedforward=2048, dropout=0, activation="gelu", batch_first=True, norm_first=False)
    mixer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    mixer.load_state_dict({name.removeprefix(at + "encoder."): t for name, t in state.items() if name.startswith(at + "encoder.")})
    out = mixer(sequence)
    weight = (out[128:-1] + sequence[128:-1]) @ state[at + "fc_weight.weight"].T + state[at + "fc_weight.bias"]  # [C, D·64]
    bias = out[-1] @ state[at + "fc_bias.weight"].T + state[at + "fc_bias.bias"]
    dim = len(bias)
    kernel = torch.empty(dim, len(waves), 8, 8)
    for band in range(len(waves)):  # "cin (cout k1 k2) -> cout cin k1 k2"
        for output in range(dim):
            kernel[output, band] = weight[band, output * 64 : output * 64 + 64].view(8, 8)
    return 0.02 * kernel, bias


def _one(state: dict[str, Tensor], waves: list[float], gsd_m: float, size: str, given: dict[str, Tensor]) -> Tensor:
    dim, depth, heads, dim_head, _ = SIZES[size]
    kernel, bias = _kernel(state, waves)
    side = given["pixels"].shape[-1] // 8
    rows = []
    for y in range(side):
        for x in range(side):
            square = given["pixels"][:, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8]
            quarter = (dim - 8) // 4
            omega = [gsd_m * 10_000 ** (-2 * (i / (quarter - 1)) / (dim - 8)) for i in range(quarter)]
            code = [f(place * w) for place in (x, y) for f in (math.sin, math.cos) for w in omega]
            rows.append((kernel * square).sum((1, 2, 3)) + bias + torch.cat([torch.tensor(code), given["time"], given["latlon"]]))
    tokens = torch.stack([state["cls_token"][0, 0], *rows])
    for i in range(depth):
        at = f"transformer.layers.{i}."
        normed = F.layer_norm(tokens, (dim,), state[at + "0.norm.weight"], state[at + "0.norm.bias"])
        query, key, value = (normed @ state[at + "0.to_qkv.weight"].T).split(heads * dim_head, dim=-1)
        mixed = []
        for head in range(heads):
            of = slice(head * dim_head, (head + 1) * dim_head)
            mixed.append((query[:, of] @ key[:, of].T / math.sqrt(dim_head)).softmax(-1) @ value[:, of])
        tokens = tokens + torch.cat(mixed, dim=-1) @ state[at + "0.to_out.weight"].T
        normed = F.layer_norm(tokens, (dim,), state[at + "1.net.0.weight"], state[at + "1.net.0.bias"])
        hidden = F.gelu(normed @ state[at + "1.net.1.weight"].T + state[at + "1.net.1.bias"])
        tokens = tokens + hidden @ state[at + "1.net.3.weight"].T + state[at + "1.net.3.bias"]
    return F.layer_norm(tokens, (dim,), state["transformer.norm.weight"], state["transformer.norm.bias"])


@pytest.mark.parametrize("size", ["tiny", "small"])
@torch.no_grad()
def test_it_is_what_the_description_says(size: str) -> None:
    """Tiny has heads of another width; a small pixel size keeps the sines of both ways of computing together."""
    made = encoder(size=size, side=24, sensor=sensor(gsd_m=30.0))
    given = inputs(24)
    expected = described(made.backbone.state_dict(), list(WAVES.values()), 30.0, size, given)
    torch.testing.assert_close(made(given).values, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_baked_kernel_equals_the_generator(frozen: bool) -> None:
    """All 16 bands of the imager, kept while frozen and made in each forward while it trains."""
    made = encoder(sensor=GK2A_AMI).requires_grad_(not frozen)
    embedding = made.backbone.patch_embedding
    kernel, bias = embedding.convolution()
    expected, expected_bias = _kernel(made.backbone.state_dict(), list(GK2A_AMI.wavelengths_um()))
    assert kernel.shape == (192, 16, 8, 8)
    torch.testing.assert_close(kernel, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(bias, expected_bias, atol=1e-5, rtol=0)
    assert (embedding.convolution()[0] is kernel) == frozen
    assert kernel.requires_grad != frozen


def test_a_baked_kernel_is_never_stale() -> None:
    """Loading, an optimiser's step and another type are each noticed."""
    made = encoder().requires_grad_(False)
    embedding = made.backbone.patch_embedding
    with torch.inference_mode():
        first, _ = embedding.convolution()
    embedding.load_state_dict(encoder(seed=1).backbone.patch_embedding.state_dict())
    second, _ = embedding.convolution()
    assert not torch.allclose(first, second)
    embedding.requires_grad_(True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=1.0)
    made(inputs()).values.square().sum().backward()
    optimizer.step()
    embedding.requires_grad_(False)
    third, _ = embedding.convolution()
    assert not torch.allclose(second, third)
    assert embedding.double().convolution()[0].dtype == torch.float64


def test_what_inference_leaves_can_be_used_in_training() -> None:
    """A kernel kept while predicting, then a gradient through it to the pixels; and an encoder that was made while predicting."""
    made, given = encoder().requires_grad_(False), inputs()
    with torch.inference_mode():
        expected = made(given).values
        assert torch.equal(encoder().requires_grad_(False)(given).values, expected)
    pixels = given["pixels"].requires_grad_()
    made({**given, "pixels": pixels}).values.square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.any()


def test_training_reaches_the_generator() -> None:
    made = encoder()
    assert default_tune(made).mode == "frozen", "it has a backbone"
    made(inputs()).values.square().sum().backward()
    generator = made.backbone.patch_embedding
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in generator.parameters())
    before = generator.convolution()[0].detach().clone()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.allclose(generator.convolution()[0], before)


def test_only_weights_are_scaled() -> None:
    """The kernel is 0.02 of what the generator gives, the bias all of it."""
    embedding = encoder().backbone.patch_embedding
    generator = embedding.weight_generator
    weights, bias = generator(embedding.fclayer(wave_codes(torch.tensor(list(WAVES.values())))))
    kernel, given_bias = embedding.convolution()
    assert torch.equal(kernel[5, 2, 3, 4], weights[2, 5 * 64 + 3 * 8 + 4] * 0.02)
    assert torch.equal(given_bias, bias)


# ── positions, time and place ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_positions_of_a_tiny_grid() -> None:
    """2 x 2 tokens, 8 numbers each: q = 2, so ω = gsd · [1, 10000^(-1/4)] = gsd · [1, 0.1]. x first, then y."""
    sin, cos = math.sin, math.cos
    none = [0, 0, 1, 1]
    one = [sin(30), sin(3.0), cos(30), cos(3.0)]
    expected = torch.tensor([none + none, one + none, none + one, one + one])
    torch.testing.assert_close(positions(2, 8, 30.0), expected, atol=2e-5, rtol=0)


def test_wave_codes_are_sines_then_cosines() -> None:
    codes = wave_codes(torch.tensor([0.64, 10.35]))
    assert codes.shape == (2, 128)
    for column, expected in ((0, math.sin(10.35)), (63, math.sin(10.35e-4)), (64, math.cos(10.35)), (127, math.cos(10.35e-4))):
        assert codes[1, column] == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_time_and_place_take_the_last_eight_numbers() -> None:
    """What a forward adds to the patches differs in those alone; the class token gets no position."""
    made, seen = encoder(), []
    made.backbone.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    given = inputs()
    made(given)
    made({"pixels": given["pixels"]})
    difference = seen[0] - seen[1]
    assert not difference[:, 0].any()
    assert not difference[:, 1:, :-8].any()
    torch.testing.assert_close(difference[:, 1:, -8:-4], given["time"][:, None].expand(-1, 4, -1))
    torch.testing.assert_close(difference[:, 1:, -4:], given["latlon"][:, None].expand(-1, 4, -1))


@torch.no_grad()
def test_zeros_mean_unknown() -> None:
    made, given = encoder(), inputs()
    zeros = {"time": torch.zeros(2, 4), "latlon": torch.zeros(2, 4)}
    assert torch.equal(made({"pixels": given["pixels"]}).values, made({"pixels": given["pixels"], **zeros}).values)
    assert not torch.allclose(made(given).values, made({**given, **zeros}).values)


@torch.no_grad()
def test_the_order_of_bands_does_not_matter() -> None:
    """A band is known by its wavelength, not by its place: the same weights, bands and pixels turned round."""
    made, given, order = encoder(), inputs(), [2, 0, 1]
    names = list(WAVES)
    turned = encoder(sensor=sensor({names[place]: WAVES[names[place]] for place in order}))
    turned.load_state_dict(made.state_dict())
    values = turned({**given, "pixels": given["pixels"][:, order]}).values
    torch.testing.assert_close(values, made(given).values, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(turned(given).values, values, atol=1e-2), "pixels of another band are another picture"


# ── grids ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_a_multiple_of_eight_needs_no_grid() -> None:
    given = inputs(16)
    padded, cropped = encoder(side=16)(given), encoder(side=16, grid="crop")(given)
    assert torch.equal(padded.values, cropped.values)
    assert padded.grid == (2, 2)


@torch.no_grad()
def test_pad16_repeats_the_edge() -> None:
    given = inputs()
    by_hand = F.pad(given["pixels"], (3, 4, 3, 4), mode="replicate")
    assert torch.equal(encoder()(given).values, encoder(side=16)({**given, "pixels": by_hand}).values)


@torch.no_grad()
def test_crop_is_the_document(caplog: pytest.LogCaptureFixture) -> None:
    """9 x 9 with a stride of 8: the first 8 x 8 pixels are one token, and the pixel size has no effect. It says so."""
    given = inputs()
    made = encoder(grid="crop")
    assert "17 of 81 pixels (21 %) of every patch are not read, and gsd has no effect" in caplog.text
    tokens = made(given)
    assert tokens.grid == (1, 1)
    by_hand = {**given, "pixels": given["pixels"][..., :8, :8]}
    assert torch.equal(tokens.values, encoder(side=8)(by_hand).values)
    assert torch.equal(tokens.values, encoder(grid="crop", sensor=sensor(gsd_m=500.0))(given).values)


@torch.no_grad()
def test_resize72_is_a_token_a_pixel() -> None:
    given = inputs()
    enlarged = F.interpolate(given["pixels"], size=(72, 72), mode="bilinear", align_corners=False)
    by_hand = encoder(side=72, sensor=sensor(gsd_m=250.0))({**given, "pixels": enlarged})
    tokens = encoder(grid="resize72")(given)
    assert tokens.grid == (9, 9)
    torch.testing.assert_close(tokens.values, by_hand.values, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_kernel3_is_each_cell_enlarged() -> None:
    """Nine cells of 3 x 3 pixels, each enlarged to 8 x 8 on its own, give what the 3 x 3 kernel gives."""
    given = inputs()
    enlarged = torch.cat(
        [
            torch.cat([F.interpolate(cell, size=(8, 8), mode="bilinear", align_corners=False) for cell in row.split(3, dim=-1)], dim=-1)
            for row in given["pixels"].split(3, dim=-2)
        ],
        dim=-2,
    )
    by_hand = encoder(side=24, sensor=sensor(gsd_m=750.0))({**given, "pixels": enlarged})
    tokens = encoder(grid="kernel3")(given)
    assert tokens.grid == (3, 3)
    torch.testing.assert_close(tokens.values, by_hand.values, atol=1e-4, rtol=1e-3)
    assert torch.allclose(enlargement(3).sum(1), torch.ones(8)), "a constant patch stays what it was"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grid": "kernel3", "side": 10}, "side that 3 divides, not 10"),
        ({"grid": "crop", "side": 7}, "at least 8 pixels, not 7"),
        ({"extra_channels": ["dem", "dem"]}, "names one twice"),
        ({"grid": "pad"}, "'pad16', 'kernel3', 'resize72' or 'crop'"),
    ],
)
def test_grids_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config.model_validate({"sensor": "gk2a_ami", **options})


# ── missing pixels, extra channels, wrong inputs ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("grid", "side", "per_side"), [("pad16", 16, 2), ("kernel3", 9, 3), ("resize72", 3, 3)])
@torch.no_grad()
def test_missing_pixels_never_come_through(grid: str, side: int, per_side: int) -> None:
    """NaN under a mask is the band's mean; a token with nothing measured is not real, and no other looks at it."""
    made, given = encoder(grid=grid, side=side), inputs(side)
    mask = torch.ones_like(given["pixels"], dtype=torch.bool)
    cell = side // per_side
    mask[0, :, :cell, cell : 2 * cell] = False  # the second token of the first sample
    mask[1, 1, 0, 0] = False
    hidden = torch.where(mask, given["pixels"], torch.nan)
    tokens = made({**given, "pixels": hidden, "mask": mask})
    assert tokens.values.isfinite().all()
    assert (~tokens.mask).nonzero().tolist() == [[0, 2]]
    filled = made({**given, "pixels": hidden.nan_to_num(0)})
    torch.testing.assert_close(tokens.values[1], filled.values[1])
    assert not torch.allclose(tokens.values[0, 0], filled.values[0, 0], atol=1e-4), "an empty token is not looked at"
    measured = made({**given, "mask": torch.ones_like(mask)})
    torch.testing.assert_close(measured.values, made(given).values)


@torch.no_grad()
def test_a_patch_without_a_single_pixel_keeps_its_class_token() -> None:
    given = inputs()
    tokens = encoder()({**given, "mask": torch.zeros_like(given["pixels"], dtype=torch.bool)})
    assert tokens.mask.tolist() == [[True, False, False, False, False]] * 2
    assert tokens.values.isfinite().all()


def test_extra_channels_have_a_stem_of_their_own() -> None:
    made = encoder(extra_channels=["sza", "dem"])
    given = {**inputs(), "extra": torch.randn(2, 2, 9, 9)}
    tokens = made(given)
    assert not any("extra" in name for name in made.backbone.state_dict()), "the released weights have no such tensors"
    with torch.no_grad():
        assert not torch.allclose(made({**given, "extra": given["extra"] + 1}).values, tokens.values, atol=1e-4), "also where all is frozen"
        made.extra_stem.weight.zero_()  # type: ignore[union-attr]
        made.extra_stem.bias.zero_()  # type: ignore[union-attr]
        plain = encoder()
        plain.backbone.load_state_dict(made.backbone.state_dict())
        assert torch.equal(made(given).values, plain(inputs()).values)
    assert made.spec.extra_channels == ("sza", "dem")


def test_wrong_inputs_say_what_was_expected() -> None:
    made = encoder(extra_channels=["sza"])
    with pytest.raises(PartError, match=r"(?s)pixels of shape \[2, 4, 9, 9\].*\[B, 3, 9, 9\]: the channels blue, shortwave, window"):
        made(inputs(channels=4))
    with pytest.raises(PartError, match=r"pixels of shape \[2, 3, 8, 8\]"):
        made(inputs(8))
    with pytest.raises(PartError, match=r"(?s)no `extra` among the inputs latlon, pixels, time.*maps of sza"):
        made(inputs())
    with pytest.raises(PartError, match=r"(?s)extra of shape \[2, 2, 9, 9\].*\[B, 1, 9, 9\]"):
        made({**inputs(), "extra": torch.randn(2, 2, 9, 9)})


# ── sizes and options ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "parameters", "tensors"),
    [("tiny", 4_030_592, 85), ("small", 10_957_568, 85), ("base", 92_102_144, 145), ("large", 311_442_944, 265)],
)
def test_the_yaml_options_are_the_four_sizes(size: str, parameters: int, tensors: int) -> None:
    """Large is the released encoder, to the last number. The meta device costs neither memory nor time."""
    file = CONF / "vision_encoder" / f"clay_{size}.yaml"
    options = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert ("checkpoint" in options) == (size == "large"), "weights are released in one size"
    module, config = configured("encoders", Part.model_validate({**options, "checkpoint": None}))
    with torch.device("meta"):
        made = module.build(config)
        tokens: Tokens = made({"pixels": torch.zeros(2, 16, 9, 9)})
    assert sum(tensor.numel() for tensor in made.backbone.state_dict().values()) == parameters
    assert len(made.backbone.state_dict()) == tensors
    dim, depth, *_ = SIZES[size]
    assert tokens.values.shape == (2, 5, dim) == (2, 5, made.token_dim)
    assert len(made.blocks) == 1 + depth
    assert f"5 tokens of {dim} (the class token first), {depth} layers" in file.read_text(encoding="utf-8").splitlines()[0]


def test_names_and_shapes_of_the_released_weights() -> None:
    """Spot checks of the large encoder, as its state dict is described."""
    with torch.device("meta"):
        state = ClayTrunk(SIZES["large"], [1.0], 10.0).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    at = "patch_embedding.weight_generator"
    for name, shape in {
        "cls_token": (1, 1, 1024),
        f"{at}.weight_tokens": (128, 128),
        f"{at}.bias_token": (1, 128),
        f"{at}.encoder.layers.0.self_attn.in_proj_weight": (384, 128),
        f"{at}.encoder.layers.0.self_attn.in_proj_bias": (384,),
        f"{at}.encoder.layers.0.self_attn.out_proj.weight": (128, 128),
        f"{at}.encoder.layers.0.linear1.weight": (2048, 128),
        f"{at}.encoder.layers.0.linear2.weight": (128, 2048),
        f"{at}.encoder.layers.0.norm2.bias": (128,),
        f"{at}.fc_weight.weight": (65536, 128),
        f"{at}.fc_bias.weight": (1024, 128),
        "patch_embedding.fclayer.l2.weight": (128, 128),
        "transformer.norm.weight": (1024,),
        "transformer.layers.23.0.norm.bias": (1024,),
        "transformer.layers.0.0.to_qkv.weight": (3072, 1024),
        "transformer.layers.0.0.to_out.weight": (1024, 1024),
        "transformer.layers.0.1.net.0.weight": (1024,),
        "transformer.layers.0.1.net.1.weight": (4096, 1024),
        "transformer.layers.0.1.net.3.weight": (1024, 4096),
    }.items():
        assert shapes[name] == shape, name
    assert "transformer.layers.0.0.to_qkv.bias" not in shapes


def test_lora_on_attention_and_everywhere() -> None:
    for targets in (["to_qkv", "to_out"], "all-linear"):
        made = encoder()
        plain = made(inputs()).values
        adapted = add_adapter("vision_encoder", made, Lora(rank=2, target_modules=targets))
        torch.testing.assert_close(made(inputs()).values, plain)
        for parameter in made.parameters():
            parameter.requires_grad_(any(parameter is one for one in adapted))
        for parameter in adapted:
            nn.init.normal_(parameter, std=0.1)
        made(inputs()).values.square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapted)
        assert len(made.blocks) == 7


# ── weights from files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A file of the released layout: a Lightning checkpoint with encoder, decoder, teacher and projection; random weights, tiny."""
    state = {name: tensor.clone() for name, tensor in encoder(seed=5).backbone.state_dict().items()}
    whole = {f"model.encoder.{name}": tensor for name, tensor in state.items()}
    whole |= {
        "model.decoder.mask_patch": torch.zeros(192),
        "model.teacher.blocks.0.weight": torch.zeros(3),
        "model.proj.bias": torch.zeros(2),
    }
    content = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.1.0", "state_dict": whole, "optimizer_states": [{"state": {}}]}
    file = tmp_path_factory.mktemp("clay") / "clay-v1.5.ckpt"
    torch.save(content, file)
    return file, state


def loaded(file: Path, **options: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = build(
        Config.model_validate({"size": "tiny", "sensor": sensor(), "checkpoint": str(file), **options})
    ).backbone.state_dict()
    return state


@pytest.mark.parametrize("form", ["lightning", "old-zip", "safetensors", "bare", "half"])
def test_weights_of_the_released_layout_load(form: str, released: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    file, state = released
    prefixed = {f"model.encoder.{name}": tensor for name, tensor in state.items()}
    if form == "old-zip":  # before PyTorch 1.6
        file = tmp_path / "old.ckpt"
        torch.save({"state_dict": prefixed}, file, _use_new_zipfile_serialization=False)
    elif form in ("safetensors", "half"):
        file = tmp_path / "clay.safetensors"
        save_file({name: tensor.half() if form == "half" else tensor for name, tensor in prefixed.items()}, file)
    elif form == "bare":
        file = tmp_path / "bare.safetensors"
        save_file(state, file)
    given = loaded(file)
    assert set(given) == set(state)
    for name, tensor in state.items():
        assert given[name].dtype == torch.float32
        torch.testing.assert_close(given[name], tensor.half().float() if form == "half" else tensor, rtol=0, atol=0)


def test_loaded_weights_run_and_train(released: tuple[Path, dict[str, Tensor]]) -> None:
    file, state = released
    made = build(Config.model_validate({"size": "tiny", "sensor": sensor(), "checkpoint": str(file), "extra_channels": ["sza"]}))
    assert not any(tensor.is_meta for tensor in [*made.parameters(), *made.buffers()])
    by_hand = encoder(extra_channels=["sza"])
    by_hand.backbone.load_state_dict(state)
    by_hand.extra_stem.load_state_dict(made.extra_stem.state_dict())  # type: ignore[union-attr]
    given = {**inputs(), "extra": torch.randn(2, 1, 9, 9)}
    assert torch.equal(made.eval()(given).values, by_hand(given).values)
    assert all(isinstance(parameter, nn.Parameter) and parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("cls_token"), r"84 tensors.*1 missing: cls_token"),
        (lambda state: state.update(mystery=torch.zeros(1)), r"1 unknown: mystery.*expected: the 85 tensors of Clay v1\.5 tiny"),
        (
            lambda state: state.update({"patch_embedding.fclayer.l1.weight": torch.zeros(64, 128)}),
            r"1 of another shape: patch_embedding\.fclayer\.l1\.weight \[64, 128\] for \[128, 128\]",
        ),
        (lambda state: state.clear(), r"0 tensors of an encoder; 85 missing"),
    ],
)
def test_a_mismatch_names_what_differs(change: Any, said: str, released: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    state = dict(released[1])
    change(state)
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {f"model.encoder.{name}": tensor for name, tensor in state.items()}}, file)
    with pytest.raises(PartError, match=f"(?s){said}"):
        loaded(file)


def test_another_size_is_named(released: tuple[Path, dict[str, Tensor]]) -> None:
    with (
        torch.device("meta"),
        pytest.raises(PartError, match=r"(?s)a checkpoint of size tiny given.*expected: large, as.*set vision_encoder\.size=tiny"),
    ):
        loaded(released[0], size="large")


class Harmful:
    """What a pickle must never be allowed to do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code of a checkpoint ran",)


def test_bad_files_are_errors_in_words(
    released: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PartError, match=r"(?s)no file at .*clay-v1\.5\.ckpt.*checkpoint=null"):
        loaded(tmp_path / "clay-v1.5.ckpt")
    harmful = tmp_path / "harmful.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Harmful()}, harmful)
    with pytest.raises(PartError, match=r"(?s)holds more than tensors.*save its state_dict as \.safetensors"):
        loaded(harmful)
    assert "ran" not in capsys.readouterr().out
    page = tmp_path / "page.ckpt"
    page.write_text("<html>404: Not Found</html>")
    with pytest.raises(PartError, match=r"(?s)page\.ckpt is no checkpoint.*download it again"):
        loaded(page)
    for suffix in ("ckpt", "safetensors"):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(released[0].read_bytes()[:100_000])
        with pytest.raises(PartError, match=r"cannot be read|holds more than"):
            loaded(cut)


def test_random_weights_say_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    encoder()
    assert "Clay tiny starts from random weights: train.freeze_backbone=false train.finetune_layers=-1" in caplog.text
