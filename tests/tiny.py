"""Tiny parts in real layouts, made on the spot: folders as the hub lays them out, pictures, tables. Random weights, real loading code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from eyegraft.pretrained import ready

TEXTS = [
    "a red square",
    "a blue circle",
    "a green triangle",
    "빨간 사각형",
    "파란 동그라미",
    "초록 삼각형",
    "What is drawn here?",
    "무엇이 그려져 있나요?",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(folder: Path, *, chat: bool = True) -> Any:
    """A byte-level BPE tokenizer that has seen English and Korean, saved into `folder`."""
    ready()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<pad>")
    if chat:
        made.chat_template = CHAT_TEMPLATE
    made.save_pretrained(folder)
    return made


def language_model(folder: Path, family: str = "llama", *, chat: bool = True, context: int = 256) -> Path:
    """A random decoder of two layers and width 32, with its tokenizer, in the hub's layout."""
    made = tokenizer(folder, chat=chat)
    import torch
    from transformers import GPT2Config, LlamaConfig, MistralConfig, PhiConfig, Qwen2Config
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    common = {
        "vocab_size": len(made),
        "eos_token_id": made.eos_token_id,
        "bos_token_id": made.bos_token_id,
        "pad_token_id": made.pad_token_id,
    }
    wide = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": context,
    }
    config = {
        "llama": lambda: LlamaConfig(**common, **wide, num_key_value_heads=2),
        "mistral": lambda: MistralConfig(**common, **wide, num_key_value_heads=2),
        "qwen2": lambda: Qwen2Config(**common, **wide, num_key_value_heads=2),
        "phi": lambda: PhiConfig(**common, **wide),
        "gpt2": lambda: GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=context),
    }[family]()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def vision_encoder(folder: Path, family: str = "siglip") -> Path:
    """A random vision tower for 32-pixel images, with its preprocessor configuration, in the hub's layout."""
    ready()
    import torch
    import transformers as t

    size = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    vit = {key: value for key, value in size.items() if key != "num_hidden_layers"} | {"num_hidden_layers": 2}
    torch.manual_seed(0)
    model = {
        "siglip": lambda: t.SiglipModel(t.SiglipConfig(vision_config=size, text_config=text)),
        "naflex": lambda: t.Siglip2Model(
            t.Siglip2Config(vision_config={k: v for k, v in size.items() if k != "image_size"} | {"num_patches": 16}, text_config=text)
        ),
        "clip": lambda: t.CLIPModel(t.CLIPConfig(vision_config=size, text_config=text, projection_dim=16)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in vit.items() if k != "intermediate_size"}, mlp_ratio=2)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**vit), add_pooling_layer=False),
        "resnet": lambda: t.ResNetModel(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic")
        ),
    }[family]()
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    crop = (
        {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": 32}} if family in ("clip", "dinov2") else {"size": square}
    )
    if family == "naflex":
        crop = {"patch_size": 8, "max_num_patches": 16}
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3, "do_normalize": True, **crop}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def text_encoder(folder: Path, family: str = "bert") -> Path:
    """A random sentence encoder of two layers and width 32, with a tokenizer of its family (WordPiece, or Unigram), in the hub's layout."""
    ready()
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if family == "bert":
        first, last, special = "[CLS]", "[SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    else:  # as that of XLM-R, its vocabulary holds the special tokens as pieces
        first, last, special = "<s>", "</s>", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        core = Tokenizer(models.Unigram())
        core.normalizer, core.pre_tokenizer, core.decoder = normalizers.NFKC(), pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    ends = [(word, core.token_to_id(word)) for word in (first, last)]
    core.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    pad, unknown = ("[PAD]", "[UNK]") if family == "bert" else ("<pad>", "<unk>")
    made = t.PreTrainedTokenizerFast(tokenizer_object=core, cls_token=first, sep_token=last, pad_token=pad, unk_token=unknown)
    made.add_special_tokens({"mask_token": special[-1]})
    made.save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    facts = {"vocab_size": len(made), "pad_token_id": made.pad_token_id, **size}
    torch.manual_seed(0)
    model = {"bert": lambda: t.BertModel(t.BertConfig(**facts)), "xlm-roberta": lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**facts))}
    model[family]().save_pretrained(folder)
    return folder


def picture(path: Path, colour: str = "red", shape: str = "square", side: int = 40) -> Path:
    """One coloured shape on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (side, side), "white")
    draw, box = ImageDraw.Draw(image), (side // 5, side // 5, side * 4 // 5, side * 4 // 5)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(side // 2, side // 5), (side // 5, side * 4 // 5), (side * 4 // 5, side * 4 // 5)], fill=colour)
    else:
        draw.rectangle(box, fill=colour)
    image.save(path)
    return path


def shapes(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """Coloured shapes as a prepared data set: `<split>.jsonl` with columns image, caption, id, group; no two pictures alike."""
    number = 0
    for split, count in (counts or {"train": 12, "val": 4, "test": 6}).items():
        rows = []
        for _ in range(count):
            colour, shape = ("red", "blue", "green")[number % 3], ("square", "circle", "triangle")[number // 3 % 3]
            picture(folder / "images" / f"{number}.png", colour, shape, side=36 + number)
            rows.append(
                {"id": f"{split}/{number}", "image": f"images/{number}.png", "caption": f"a {colour} {shape}", "group": f"g{number}"}
            )
            number += 1
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def text_batch(tokenizer: Any, pairs: list[tuple[str, str | None]], pixels: Any = None, *, template: str = "auto") -> Any:
    """A batch of (prompt, target) texts, or of prompts alone where every target is None; `pixels` [B, C, H, W] may come with it."""
    import torch

    from eyegraft.data.batches import Examples
    from eyegraft.data.text import encode_pair, encode_prompt
    from eyegraft.types import Sample

    pixels = torch.zeros(len(pairs), 3, 8, 8) if pixels is None else pixels
    samples, texts = [], []
    for number, (prompt, target) in enumerate(pairs):
        if target is None:
            text = encode_prompt(tokenizer, prompt, template=template)  # type: ignore[arg-type]
        else:
            text = encode_pair(tokenizer, prompt, target, max_tokens=256, template=template)  # type: ignore[arg-type]
        sample = Sample(str(number), Path(f"{number}.png"), prompt=prompt, references=(target,) if target else ())
        samples.append(sample)
        texts.append(text)
    batch = Examples(samples, texts, {}).batch(range(len(pairs)), [None] * len(pairs), tokenizer.pad_token_id)
    return batch.with_input("image", pixels)


def lively(module: Any, *, scale: float = 5.0, seed: int = 0) -> Any:
    """Give a fresh random network weights so large that what it says hangs on all that it sees, and nothing starts at zero."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1e-2)
    return module
