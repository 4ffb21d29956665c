"""Small weather maps of three classes, the encoder that reads them, and a classifier with weights whose batch norms have seen pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from eyegraft.encoders import patch_perceiver

CLASSES = ("mcon", "sbcp", "thea")
SMALL: dict[str, Any] = {
    "classes": CLASSES,
    "image_size": 16,
    "patch_size": 4,
    "dim": 8,
    "num_latents": 5,
    "num_heads": 2,
    "depth": 2,
    "num_experts": 3,
}


def classifier_weights(folder: Path) -> str:
    """timm's smallest EfficientNet for seven classes of its own, its batch norms fitted to noise."""
    from eyegraft.pretrained import ready

    ready()
    import timm

    torch.manual_seed(5)
    model = timm.create_model("test_efficientnet", pretrained=False, num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return str(folder)


def encoder(*, seed: int = 0, classifier: str | None = None, **options: Any) -> Any:
    """Args:
    classifier: its folder of weights; None: an encoder without one.
    """
    torch.manual_seed(seed)
    given = None if classifier is None else {"model": "test_efficientnet", "weights": classifier}
    made = patch_perceiver.build(patch_perceiver.Config.model_validate({**SMALL, "classifier": given, **options})).eval()
    if "weights" not in options:
        with torch.no_grad():
            made.backbone.types.weight.normal_()  # else a class would weigh little beside random pixels
    return made


def draw(path: Path, kind: int, number: int) -> None:
    """A palette GIF whose colour field leans with its class."""
    picture = Image.new("RGB", (40, 30), "white")
    pen = ImageDraw.Draw(picture)
    for place in range(6):
        colour = tuple(40 * place + 20 if band == kind else (37 * number) % 60 for band in range(3))
        box = (
            [place * 6, 0, place * 6 + 5, 29]
            if kind == 0
            else [0, place * 5, 39, place * 5 + 4]
            if kind == 1
            else [place, place, 39 - place, 29 - place]
        )
        pen.rectangle(box, fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(32).save(path)


def prepared(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """`<split>.jsonl` with columns id, image, condition, caption, case; the class is written in several forms, and now and then not at all."""
    number = 0
    for split, count in (counts or {"train": 24, "val": 6, "test": 6}).items():
        rows = []
        for _ in range(count):
            kind = number % 3
            draw(folder / "maps" / f"{number}.gif", kind, number)
            written = (CLASSES[kind], f"wqa:{CLASSES[kind]}", CLASSES[kind])[number % 4 % 3] if number % 8 else None
            text = f"The map shows {CLASSES[kind]}."
            rows.append(
                {"id": f"{split}/{number}", "image": f"maps/{number}.gif", "condition": written, "caption": text, "case": str(number)}
            )
            number += 1
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
