"""What the contracts build of each part. A part that is found in a room's folder and has no sample here fails its contract.

ROOM[kind][label] is a function of the tiny pretrained folders (`conftest.Folders`) that gives the options of that part's `Config`, without
`kind`. Add an entry for your new file; add several where the part has several ways to run. Keep it tiny: no downloads, well under a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eyegraft.config import Part as PartConfig
from eyegraft.registry import configured, kinds

Options = Callable[[Any], dict[str, Any]]


def _timm(model: str) -> Options:
    return lambda folders: {"model": model, "pretrained": False}


def _vision(family: str) -> Options:
    return lambda folders: {"model": folders.vision(family)}


def _text(family: str, pooling: str, **options: Any) -> Options:
    return lambda folders: {"model": folders.text(family), "pooling": pooling, **options}


def _lm(family: str) -> Options:
    return lambda folders: {"model": folders.lm(family)}


def _sighted(family: str, **options: Any) -> Options:
    return lambda folders: {"model": folders.lm(family), "num_layers": 2, **options}


def _patches(**options: Any) -> Options:
    bands = [{"name": name, "wavelength_um": length, "unit": "K"} for name, length in {"a": 3.9, "b": 10.8, "c": 12.0}.items()]
    sensor = {"name": "three", "bands": bands, "gsd_m": 2000.0, "missing": "mask"}
    return lambda folders: {"sensor": sensor, **options}


PERCEIVER = {"dim": 8, "num_latents": 5, "num_heads": 2, "depth": 2, "num_experts": 3}

SAMPLES: dict[str, dict[str, dict[str, Options]]] = {
    "encoders": {
        "clay": {
            "pad16": _patches(size="tiny"),
            "kernel3-extra": _patches(size="tiny", grid="kernel3", extra_channels=["sza", "dem"]),
            "resize72": _patches(size="tiny", grid="resize72"),
            "crop": _patches(size="tiny", grid="crop"),
        },
        "huggingface": {family: _vision(family) for family in ("siglip", "naflex", "clip", "dinov2", "vit", "resnet")},
        "patch_perceiver": {
            "plain": lambda folders: {"classes": ["a", "b", "c"], "classifier": None, "image_size": 16, "patch_size": 8, **PERCEIVER},
            "one-expert": lambda folders: {"classifier": None, "image_size": 16, "patch_size": 4, "fit": "pad", **PERCEIVER, "top_k": 1},
        },
        "patch_cnn": {"plain": _patches(), "extra": _patches(side=10, width=5, extra_channels=["sza", "dem"])},
        "sentence": {
            "bert-mean": _text("bert", "mean"),
            "bert-pooler": _text("bert", "pooler", normalize=False),
            "bert-tokens": _text("bert", "tokens"),
            "xlm-roberta-cls": _text("xlm-roberta", "cls", prefix="query: "),
            "xlm-roberta-mean": _text("xlm-roberta", "mean"),
        },
        "tabular": {
            "all": lambda folders: {"numbers": ["a", "b"], "cyclic": {"c": 24}, "categories": {"d": 3, "e": ["x", "y"]}, "width": 8},
            "numbers": lambda folders: {"numbers": ["a"], "hidden_dim": 3},
        },
        "timm": {
            # `test_*` are timm's own miniatures of each family; mambaout gives channels last
            name: _timm(name)
            for name in ("test_vit", "test_vit3", "test_resnet", "test_efficientnet", "test_convnext", "test_mambaout", "resnet10t")
        },
    },
    "connectors": {
        "attention": {"one": lambda folders: {"num_heads": 4}, "three": lambda folders: {"num_queries": 3, "num_heads": 2}},
        "avg": {"plain": lambda folders: {}},
        "class_mean": {"plain": lambda folders: {}},
        "class_prefix": {"plain": lambda folders: {"num_tokens": 3}, "hidden": lambda folders: {"hidden_dim": 5}},
        "cls": {"plain": lambda folders: {}},
        "identity": {"plain": lambda folders: {}},
        "linear": {"plain": lambda folders: {}},
        "mean": {"plain": lambda folders: {}},
        "mlp": {"plain": lambda folders: {}, "hidden": lambda folders: {"hidden_dim": 7}},
        "perceiver": {
            "plain": lambda folders: {"num_latents": 3, "depth": 2, "num_heads": 4},
            "one-per-view": lambda folders: {"num_latents": 1, "depth": 1, "num_heads": 2, "per_view": True},
        },
        "prefix": {"plain": lambda folders: {"num_tokens": 3}, "hidden": lambda folders: {"hidden_dim": 5, "dropout": 0.1}},
        "qformer": {
            "plain": lambda folders: {"num_queries": 3, "dim": 8, "depth": 3, "num_heads": 2},
            "per-view": lambda folders: {"num_queries": 2, "dim": 8, "depth": 1, "num_heads": 1, "per_view": True},
        },
        "spatial_pool": {"rows": lambda folders: {"size": [1, 3]}, "uneven": lambda folders: {"size": [1, 2]}},
        "view_encoding": {"plain": lambda folders: {}, "coarse": lambda folders: {"num_bands": 1}},
    },
    "fusion": {
        "concat": {"plain": lambda folders: {}, "dropout": lambda folders: {"modality_dropout": {"text": 0.5}}},
        "gated": {"plain": lambda folders: {"dim": 6}},
        "sequence": {"plain": lambda folders: {}},
    },
    "heads": {
        "classifier": {"plain": lambda folders: {"hidden_dim": 5}},
        "regressor": {"plain": lambda folders: {"hidden_dim": 5}},
        "cross_attention_lm": {
            **{family: _sighted(family) for family in ("llama", "mistral", "qwen2", "phi", "gpt2")},
            "last-layer": _sighted("llama", num_layers=1, num_heads=2, gate="none"),
            "post-norm": _sighted("phi", gate="none", norm="post"),
        },
        "prefix_lm": {family: _lm(family) for family in ("llama", "mistral", "qwen2", "phi", "gpt2")},
    },
    "objectives": {
        "bce": {
            "plain": lambda folders: {},
            "balanced": lambda folders: {"class_weights": "balanced"},
            "smoothed": lambda folders: {"label_smoothing": 0.1, "class_weights": [1, 2]},
        },
        "condition": {"plain": lambda folders: {}, "smoothed": lambda folders: {"label_smoothing": 0.1}},
        "cross_entropy": {"plain": lambda folders: {}, "smoothed": lambda folders: {"label_smoothing": 0.1}},
        "densecl": {
            "plain": lambda folders: {"hidden_dim": 6, "out_dim": 4},
            "all-cells": lambda folders: {"hidden_dim": 6, "out_dim": 4, "cells_per_panorama": None, "same_place_degrees": 20},
        },
        "gaussian_nll": {"plain": lambda folders: {}},
        "huber": {"plain": lambda folders: {}, "early": lambda folders: {"delta": 0.3}},
        "dino": {
            "plain": lambda folders: {"num_prototypes": 8, "hidden_dim": 6, "bottleneck_dim": 4},
            "local-mean": lambda folders: {"num_prototypes": 8, "hidden_dim": 6, "num_local_views": 1, "pooling": "mean"},
        },
        "mae": {
            "plain": lambda folders: {"decoder_dim": 8},
            "levels": lambda folders: {"decoder_dim": 8, "decoder_depth": 1, "normalise_targets": False, "mask_ratio": 0.5, "loss": "l1"},
        },
        "mse": {"plain": lambda folders: {}},
        "focal": {"plain": lambda folders: {}, "balanced": lambda folders: {"gamma": 0.5, "class_weights": "balanced"}},
        "softmax": {
            "plain": lambda folders: {},
            "balanced": lambda folders: {"label_smoothing": 0.1, "class_weights": "balanced"},
            "focal": lambda folders: {"gamma": 2},
        },
        "vicreg": {"plain": lambda folders: {"expander": [6, 5]}, "bare": lambda folders: {"expander": []}},
    },
    "tasks": {
        "classify": {
            "yes-no": lambda folders: {},
            "classes": lambda folders: {"classes": ["cat", "dog", "새"]},
            "multi-label": lambda folders: {"classes": ["cat", "dog", "새"], "multi_label": True},
        },
        "pretrain": {"plain": lambda folders: {}},
        "regress": {
            "point": lambda folders: {"target": "ta", "unit": "K"},
            "gaussian": lambda folders: {"unit": "m/s", "distribution": "gaussian"},
            "plain": lambda folders: {"level": None},
        },
        "caption": {
            "chat": lambda folders: {"prompt": "What is drawn here?"},
            "plain": lambda folders: {"prompt": "What is drawn here?", "template": "plain"},
            "no-prompt": lambda folders: {"prompt": "", "template": "plain"},
            "characters": lambda folders: {"metric_unit": "characters"},
        },
        "element_caption": {
            "chat": lambda folders: {"overflow": "error"},
            "plain": lambda folders: {"overflow": "error", "prompt": "Which map is {condition}?", "template": "plain"},
        },
        "summary": {"plain": lambda folders: {"overflow": "error", "template": "plain"}},
        "element_summary_link": {
            "chat": lambda folders: {"overflow": "error"},
            "plain": lambda folders: {"overflow": "error", "template": "plain"},
        },
        "text_summary": {
            "chat": lambda folders: {"overflow": "error", "max_captions": 1},
            "plain": lambda folders: {"overflow": "error", "template": "plain"},
        },
        "vqa": {
            "chat": lambda folders: {"prompt": "What is drawn here?"},
            "plain": lambda folders: {"prompt": "What is drawn here?", "template": "plain"},
            "characters": lambda folders: {"prompt": "무엇인가요?", "metric_unit": "characters"},
        },
    },
}


SPEAKS = {
    "heads": {"classifier": "labels", "regressor": "labels"},
    "objectives": {"condition": "classes", "densecl": "views", "dino": "pixels", "mae": "pixels", "vicreg": "views"},
    "tasks": {"classify": "labels", "pretrain": "pixels", "regress": "numbers"},
}
"""Parts that answer in something else than text keep other promises. To a head numbers are labels; to an objective all that has targets is
text."""


def cases(room: str, *, speaks: str | None = None) -> list[Any]:
    """One case for each sample of each part found in the room's folder, and a failing one for a part without a sample.

    Args:
        speaks: only the parts that speak `text`, `labels`, `numbers`, `pixels`, `views` or `classes`; None: all.
    """
    found = []
    for kind in sorted(kinds(room)):
        if speaks is not None and speaks != SPEAKS[room].get(kind, "text"):
            continue
        for label in SAMPLES[room].get(kind) or {"without-sample": None}:
            found.append(pytest.param((kind, label), id=f"{kind}-{label}"))
    return found


def part(room: str, case: tuple[str, str], folders: Any) -> tuple[Any, Any]:
    """(module, validated Config) of a case."""
    kind, label = case
    options = SAMPLES[room].get(kind, {}).get(label)
    if options is None:
        pytest.fail(
            f"src/eyegraft/{room}/{kind}.py has no sample configuration, so nothing proves that it keeps the contract of its room.\n"
            f"  fix: in {__file__}, add to SAMPLES[{room!r}] an entry\n"
            f"           {kind!r}: {{'plain': lambda folders: {{... the options of its Config, small ones ...}}}},\n"
            f"       then run: pytest tests/contracts/test_{room}.py -k {kind}",
            pytrace=False,
        )
    return configured(room, PartConfig.model_validate({"kind": kind, **options(folders)}))


def rejects_unknown_keys(module: Any, config: Any) -> None:
    """A key that `Config` does not know is refused, and a validated one cannot be changed."""
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        module.Config.model_validate({**config.model_dump(), "no_such_key": 1})
    for name in type(config).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, None)


def reloads(build: Callable[[], Any], run: Callable[[Any], Any]) -> None:
    """The state of one instance makes another give the same outputs, and everything in it has a tensor to load."""
    import torch

    torch.manual_seed(1)
    first = build().eval()
    torch.manual_seed(2)
    second = build().eval()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(run(first), run(second))
