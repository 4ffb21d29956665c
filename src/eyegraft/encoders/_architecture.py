"""An architecture that a recipe ships, as transformers' configuration object: checked, and compared with what comes with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eyegraft.errors import PartError, nearest, shown

_COMPARED = ("model_type", "hidden_size", "hidden_sizes", "num_hidden_layers", "depths", "patch_size")


def eye_of(config: Any) -> Any:
    """The vision part of a two-tower model's configuration (CLIP, SigLIP); any other unchanged."""
    return getattr(config, "vision_config", config)


@contextmanager
def unreported() -> Iterator[None]:
    """Without transformers' warnings about a text tower that is not built, and without its table of tensors left over or missing: those of
    the text tower are left over, and what is missing is refused here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def configuration(architecture: Mapping[str, Any], part: str = "vision_encoder") -> Any:
    """The configuration object of transformers behind the content of a `config.json`. Only model types that transformers itself knows.

    Args:
        part: the recipe's name of what is built, for messages.

    Raises:
        PartError: an unknown model type or key, or a value of the wrong type. transformers would take a misspelt key without a word.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    given = dict(architecture)
    kind = given.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise PartError(
            f"{part}.architecture.model_type: transformers has no {kind!r}",
            "a model type such as siglip, siglip2, clip, dinov2, vit, resnet, bert or xlm-roberta",
            nearest(str(kind), list(CONFIG_MAPPING.keys())) or "code in a model's folder is never run",
        )
    try:
        with unreported():
            config, known = AutoConfig.for_model(kind, **given), CONFIG_MAPPING[kind]()
    except Exception as error:  # transformers' own checks raise types of their own
        raise PartError(
            f"{part}.architecture: {' '.join(str(error).split())}", f"the content of a config.json of model type {kind}"
        ) from error
    unknown = [key for key in given if not hasattr(known, key)]
    if isinstance(given.get("vision_config"), Mapping):
        unknown += [f"vision_config.{key}" for key in given["vision_config"] if not hasattr(eye_of(known), key)]
    if unknown:
        names = [*known.to_dict(), *(f"vision_config.{key}" for key in eye_of(known).to_dict())]
        raise PartError(
            f"{part}.architecture: {kind} has no {shown(unknown)}",
            "keys that transformers knows of this model type",
            nearest(unknown[0], names) or "take them out",
        )
    return config


def refuse_other(fetched: Any, wanted: Any, model: str, part: str = "vision_encoder") -> None:
    """The weights behind a name are those of the shipped architecture.

    Args:
        fetched, wanted: configurations, of the weights and of the recipe.

    Raises:
        PartError: they differ in kind, width, depth or patch size.
    """
    there, here = ({key: getattr(eye_of(config), key, None) for key in _COMPARED} for config in (fetched, wanted))
    differing = [key for key in _COMPARED if _listed(there[key]) != _listed(here[key])]
    if differing:
        raise PartError(
            f"{part}.model: {model!r} has {', '.join(f'{key} {there[key]}' for key in differing)}",
            f"{', '.join(f'{key} {here[key]}' for key in differing)}, as {part}.architecture says",
            f"name weights of that architecture, or take the model as it is: {part}.architecture=null"
            f"{' vision_encoder.preprocessor=null' if part == 'vision_encoder' else ''}",
        )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
