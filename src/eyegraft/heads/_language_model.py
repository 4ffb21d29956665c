"""What heads around a language model share: loading it whole or in 4 bits, its tokenizer, and the text of what it generates."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.pretrained import ready, resolve, tame_bitsandbytes


class LanguageModel(Strict):
    """Attributes:
    model: `packaged:NAME`, a hub name, or a folder in the hub's layout.
    revision: branch, tag or commit on the hub.
    dtype: of the language model's weights; adapters and new layers stay in float32.
    quantize: `nf4` keeps the linear layers in 4 bits with double quantisation, computes in bfloat16 (Dettmers et al. 2023, QLoRA), and
        trains by adapters alone; embeddings, norms and the output layer stay in `dtype`. It needs `pip install 'eyegraft[quantize]'`.
    pretrained: False gives random weights of the same architecture.
    architecture: the `config.json` of the model that its `_name_or_path` names, for where that file is not at hand: `eyegraft doctor` then
        reckons the memory of a model before anything of it is fetched.
    """

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantize: Literal["none", "nf4"] = "none"
    pretrained: bool = True
    architecture: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _quantizes_what_it_loads(self) -> LanguageModel:
        if self.quantize != "none" and not self.pretrained:
            raise ValueError(f"quantize={self.quantize} of random weights (pretrained=false): set quantize=none")
        return self


def load(config: LanguageModel) -> tuple[Any, Any]:
    """The language model and its tokenizer.

    Raises:
        PartError: they cannot be found or read, the tokenizer has no end of text, or there is nothing to quantise with.
    """
    if config.quantize != "none" and find_spec("bitsandbytes") is None:
        raise PartError(
            f"head.quantize={config.quantize}, but the package bitsandbytes is not installed",
            "bitsandbytes 0.50",
            "pip install 'eyegraft[quantize]', or set head.quantize=none",
        )
    ready()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    shape = architecture(config)
    if torch.get_default_device().type == "meta":  # shapes alone are asked for, and a folder with config.json is enough
        return AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, config.dtype), trust_remote_code=False), None
    name, dtype = resolve(config.model), getattr(torch, config.dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision, trust_remote_code=False)
        if config.quantize != "none":
            model = _quantised(config, name, dtype)
        elif config.pretrained:
            model = AutoModelForCausalLM.from_pretrained(
                name, revision=config.revision, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
        else:
            model = AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unloadable(config, error) from error
    if tokenizer.eos_token_id is None:
        raise PartError(
            f"head.model: the tokenizer of {config.model!r} has no end-of-text token", "an eos_token: without it no answer ever ends"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by `text_mask`, its id never matters
    model.generation_config = GenerationConfig()  # else a model's own penalties slip into answers without a word
    return model, tokenizer


def architecture(config: LanguageModel) -> Any:
    """The model's configuration, read without its weights."""
    ready()
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(config.model), revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        shipped = config.architecture or {}
        if shipped.get("_name_or_path") == config.model:
            return AutoConfig.for_model(**shipped)
        raise _unloadable(config, error) from error


def causal_of(backbone: Any) -> Any:
    """The language model itself, without the wrapping of its adapters, which lie in its layers."""
    return backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone


def context_length(model: Any) -> int:
    return int(getattr(model.config, "max_position_embeddings", 0) or 2**31)


def check_width(kind: str, in_dim: int, wanted: int, num_outputs: int) -> None:
    """Raises:
    PartError: the tasks answer in labels, or the tokens have another width than the language model.
    """
    if num_outputs:
        raise PartError(f"head.kind={kind} under a task that answers in labels", "a text task", "set head=classifier")
    if in_dim != wanted:
        raise PartError(
            f"tokens of width {in_dim} before a language model of width {wanted}",
            "equal widths",
            "use a connector that projects, such as connector=mlp",
        )


def generation_settings(tokenizer: Any, *, max_new_tokens: int, num_beams: int) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=max(1, max_new_tokens),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def texts_of(tokenizer: Any, ids: Tensor) -> list[str]:
    """What new tokens [B, T] say. An answer that `max_new_tokens` cuts may end within a character of several bytes: U+FFFD is taken off."""
    return [text.rstrip("\ufffd").strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _unloadable(config: LanguageModel, error: Exception) -> PartError:
    return PartError(
        f"head.model: {config.model!r} cannot be loaded: {str(error).splitlines()[0]}",
        "packaged:NAME, a hub name that this machine can reach, or a folder with config.json, tokenizer files and model.safetensors",
        "check the name; offline, download the folder elsewhere and give its path; convert pickled weights (*.bin) to safetensors; "
        "code in a model's folder is never run",
    )


# ── four bits ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _quantised(config: LanguageModel, name: str, dtype: Any) -> Any:
    tame_bitsandbytes()
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=config.quantize, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=config.revision,
            dtype=dtype,
            quantization_config=settings,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (ImportError, RuntimeError, AttributeError) as error:  # what bitsandbytes raises where it has no library for the machine
        raise PartError(
            f"head.quantize={config.quantize}: bitsandbytes cannot quantise here: {str(error).splitlines()[0]}",
            "a machine that bitsandbytes 0.50 has kernels for",
            "set head.quantize=none, with head.dtype=bfloat16 to halve the memory",
        ) from error
    _keep_differentiable(model)
    return model


def _keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking weights at the first forward in evaluation mode on a CPU.

    Its kernel for repacked weights has no backward and says nothing: after one validation every adapter would get zero gradients. Turned
    back by its own inverse the weights are others than before, for their scales were rounded to bfloat16 and quantised anew.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
