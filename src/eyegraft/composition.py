"""From what a user typed to a recipe: Hydra composes the YAML files of `conf/`, the schema and the parts' own `Config`s validate.

Every fault is reported at once, each with its config path, what was given, what is allowed and the nearest valid name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eyegraft.config import KEPT_IN_RUNS, PARTS, PATCH_SLICES, Augmentation, Recipe, Settings, staged
from eyegraft.errors import RecipeError, nearest
from eyegraft.registry import kinds, module_of

_ROOMS = {
    "vision_encoder": "encoders",
    "text_encoder": "encoders",
    "context_encoder": "encoders",
    "pooling": "connectors",
    "connector": "connectors",
    "fusion": "fusion",
    "head": "heads",
    "prepare": "prepare",
}
CONF = Path(__file__).parent / "conf"
_conf_dirs: list[Path] = []


def use_config_dir(folder: str) -> None:
    """Look for the user's own recipes and options in `folder/recipe/*.yaml`, `folder/data/*.yaml` …, before ours."""
    place = Path(folder).expanduser().resolve()
    if not place.is_dir():
        raise RecipeError(f"--config-dir {folder}: no such folder", "a folder with recipe/NAME.yaml in it", "check the path")
    if place not in _conf_dirs:
        _conf_dirs.append(place)


def group_names() -> set[str]:
    return {path.name for conf in (CONF, *_conf_dirs) for path in conf.iterdir() if path.is_dir() and not path.name.startswith("_")}


def recipe_files() -> dict[str, Path]:
    """Every recipe that can be named, and the file that it stands in."""
    return {path.stem: path for conf in (CONF, *_conf_dirs) for path in sorted((conf / "recipe").glob("*.yaml"))}


def hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """What Hydra is given for what the user typed.

    Keys become forced (`key=v` -> `++key=v`) so that validation, not Hydra's first refusal, names *all* unknown ones at once. A value that
    Hydra's grammar has no letters for (Korean, a question mark after a word, an apostrophe) is plain text and is quoted for it.
    """
    groups = group_names()
    for text in overrides:
        _stop_at_no_option(text, groups)
    given = [
        text
        if text[:1] in "+~-" or "=" not in text or text.split("=", 1)[0].split("@")[0] in groups or text.startswith("hydra")
        else f"++{text}"
        for text in overrides
    ]
    given = [text if _readable(text) else _quoted(text) for text in given]
    return [*given, f"hydra.searchpath=[{','.join(_in_quotes(f'file://{place}') for place in _conf_dirs)}]"] if _conf_dirs else given


def _stop_at_no_option(text: str, groups: set[str]) -> None:
    """Hydra has no words for `text_encoder=null`, where `none` is meant."""
    group, _, value = text.lstrip("+").partition("=")
    if group in groups and value.strip() in ("", "null"):
        options = sorted({path.stem for conf in (CONF, *_conf_dirs) for path in (conf / group).glob("*.yaml")})
        raise RecipeError(text, f"one of {', '.join(options)}", f"{group}=none" if "none" in options else f"leave {group} out")


def _readable(text: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return False
    return True


def _quoted(text: str) -> str:
    """`key=안녕` as `key="안녕"`, and `key=가,나` (a sweep) with each part quoted. Lists, mappings and what is quoted already stay."""
    key, _, value = text.partition("=")
    if not value or value[0] in "\"'[{":
        return text
    return f"{key}={','.join(_in_quotes(part) for part in re.split(r',(?! )', value))}"


def _in_quotes(value: str) -> str:
    """In Hydra's double quotes: a backslash is itself, but where a quote follows it must be doubled."""
    escaped = re.sub(r'(\\*)"', lambda match: match[1] * 2 + '\\"', value)
    return '"' + re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped) + '"'


def stop_at_hydra_settings(overrides: Sequence[str]) -> None:
    """Raise a `RecipeError` if a file of the user's folders sets anything of Hydra's own: callbacks, launchers and log handlers are code
    that Hydra runs, and a recipe is data. Call it before Hydra sees those folders.
    """
    for text in overrides:
        if text.lstrip("+~").startswith("hydra.searchpath"):
            raise RecipeError(text, "folders of recipes by --config-dir alone", "--config-dir FOLDER")
    for conf in _conf_dirs:
        for entry in conf.iterdir():
            if entry.is_dir() and entry.name.casefold() == "hydra":
                raise _not_data(entry, "a folder of Hydra's own options")
        for path in _yaml_files(conf):
            _stop_at_hydra_settings_in(path)


def _yaml_files(conf: Path) -> Iterator[Path]:
    """Every file that Hydra could load: it follows links, and nothing in a hidden folder can be named (see `_foreign`)."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(conf, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(name for name in inner if not name.startswith("."))
        seen.add(real)
        yield from (Path(folder, name) for name in sorted(names) if name.lower().endswith(".yaml"))


def _stop_at_hydra_settings_in(path: Path) -> None:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(
            f"{path}: {' '.join(str(error).split())}", "YAML in UTF-8", "mend the file, or keep recipes in a folder of their own"
        ) from error
    for package in re.findall(r"#[#\s]*@package\s+(\S+)", text):
        if {"hydra", "_name_"} & set(package.split(".")):
            raise _not_data(path, f"# @package {package}")
    if not isinstance(content, dict):
        return
    for key in content:
        if str(key).split(".")[0] == "hydra":
            raise _not_data(path, f"the key {key!r}")
    defaults = content.get("defaults")
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        if _foreign(entry):
            raise _not_data(path, f"the `defaults` entry {entry!r}")


def _foreign(entry: Any) -> bool:
    """Whether an entry of a defaults list names an option of Hydra's own, one outside the folder, or one that only Hydra can tell."""
    pairs = entry.items() if isinstance(entry, dict) else [(entry, None)]
    for key, value in pairs:
        for word in str(key).split():  # `optional`, `override`, then GROUP@PACKAGE
            group, _, package = word.partition("@")
            if "hydra" in re.split(r"[/\\]", group) or {"hydra", "_name_"} & set(package.split(".")) or _leads_out(group.removeprefix("/")):
                return True
        if any(_leads_out(str(item)) for item in (value if isinstance(value, list) else [value])):
            return True
    return False


def _leads_out(name: str) -> bool:
    return bool(re.search(r"^[/\\.]|[/\\][/\\.]|[$:]", name))  # `..`, hidden and absolute places, `${…}`, a drive


def _not_data(place: Path, found: str) -> RecipeError:
    return RecipeError(
        f"{place}: {found}",
        "a recipe, which is data: Hydra's own settings come from the command line alone",
        "take it out, and type what you need of it, such as hydra/launcher=NAME, after the recipe",
    )


def stop_at_unknown_recipe(overrides: Sequence[str]) -> None:
    """Raise a `RecipeError` unless the overrides choose a recipe that there is (or several, for a sweep)."""
    chosen = [text.split("=", 1)[1] for text in overrides if text.startswith("recipe=")]
    known = recipe_files()
    if not chosen:
        raise RecipeError("no recipe", f"recipe=NAME with one of {', '.join(sorted(known))}")
    for name in chosen[-1].split(","):
        if name not in known:
            raise RecipeError(f"recipe={name}", f"recipe=NAME with one of {', '.join(sorted(known))}", nearest(name, known))
        lines = known[name].read_text(encoding="utf-8").lstrip("\ufeff").splitlines() or [""]
        if lines[0].replace(" ", "") != "#@package_global_":
            raise RecipeError(
                f"{known[name]}: the first line is {lines[0]!r}",
                "# @package _global_",
                "put that line first; without it the keys land under `recipe`",
            )


def register_defaults() -> None:
    """Show Hydra the schema's own defaults, so that they are typed once and `show` prints every key."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    plain = {name: item.get_default(call_default_factory=True) for name, item in Recipe.model_fields.items() if not item.is_required()}
    dumped = {name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in plain.items()}
    store.store(name="schema", node={**dumped, "train": Settings().model_dump(mode="json")})


def compose(overrides: Sequence[str]) -> Any:
    """Compose `conf/config.yaml` with overrides as typed on the command line, into an OmegaConf object.

    Raises:
        RecipeError: there is no such recipe or option, or a value cannot be parsed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    stop_at_hydra_settings(overrides)
    stop_at_unknown_recipe(overrides)
    register_defaults()
    try:
        with initialize_config_module("eyegraft.conf", version_base="1.3"):
            return hydra_compose("config", overrides=hydra_overrides(overrides))
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = sorted(error.options or [])
        raise RecipeError(f"{group}={name}", f"one of {', '.join(options)}", nearest(name, options)) from error
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RecipeError(
            "; ".join(lines[:4]), "overrides such as train.epochs=3 or connector=prefix", "`eyegraft show recipe=NAME` prints every key"
        ) from error


def to_plain(composed: Any) -> dict[str, Any]:
    """An OmegaConf object as plain data, interpolations resolved.

    Raises:
        RecipeError: a value that must be given is missing, or an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        plain: Any = OmegaConf.to_container(composed, resolve=True) if not missing else {}
    except OmegaConfBaseException as error:
        raise RecipeError(str(error).splitlines()[0], "interpolations such as ${seed}", "check the recipe's ${…}") from error
    if missing:
        fix = " ".join(f"{key}=…" for key in missing)
        raise RecipeError(f"no value for {', '.join(missing)}", "a value for each key that the recipe leaves open", fix)
    return {str(key): value for key, value in plain.items()}


def validate(plain: Mapping[str, Any]) -> Recipe:
    """Turn plain data into a recipe, or raise one `RecipeError` that lists every fault."""
    faults: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        faults += [_fault((), detail, Recipe) for detail in error.errors()]
    stages = plain.get("stages")
    train = plain.get("train")
    if isinstance(train, Mapping):
        faults += _objective_faults(("train",), train)
    if isinstance(stages, Mapping) and isinstance(train, Mapping):
        inherited = train if _model_faults((), Settings, train) else Settings.model_validate(train).model_dump(exclude_unset=True)
        above = set(_model_faults((), Settings, staged(inherited, {})))  # said once, where it stands
        for name, stage in stages.items():
            if isinstance(stage, Mapping):
                whole = _model_faults((), Settings, staged(inherited, stage))
                faults += [_of_stage(str(name), fault) for fault in whole if fault not in above]
                faults += _objective_faults(("stages", str(name)), stage)
    for place, room in _ROOMS.items():
        faults += _part_faults((place,), room, plain.get(place))
    tasks = plain.get("tasks")
    for name, part in tasks.items() if isinstance(tasks, Mapping) else ():
        faults += _part_faults(("tasks", str(name)), "tasks", part)
    if recipe is not None and not faults:
        faults += _cross_faults(recipe)
    if faults or recipe is None:
        raise RecipeError(
            f"{len(faults)} fault{'s' if len(faults) > 1 else ''} in the recipe:\n" + "\n".join(f"  - {fault}" for fault in faults),
            fix="`eyegraft show recipe=NAME` prints every key with its value",
        )
    return recipe


def load_recipe(name: str, *overrides: str) -> Recipe:
    """Compose and validate a recipe: `load_recipe("demo", "train.epochs=2")`."""
    return validate(to_plain(compose([f"recipe={name}", *overrides])))


def _of_stage(name: str, fault: str) -> str:
    """A fault of a stage's settings under its path; one of them all together is of the stage itself."""
    return f"stages.{name}{fault.removeprefix('recipe')}" if fault.startswith("recipe: ") else f"stages.{name}.{fault}"


def _model_faults(place: tuple[str, ...], model: type[BaseModel], value: Mapping[str, Any]) -> list[str]:
    try:
        model.model_validate(dict(value))
    except ValidationError as error:
        return [_fault(place, detail, model) for detail in error.errors()]
    return []


def _objective_faults(place: tuple[str, ...], settings: Mapping[str, Any]) -> list[str]:
    word, available = settings.get("loss_type"), kinds("objectives")
    faults = _part_faults((*place, "objective"), "objectives", settings.get("objective"))
    if isinstance(word, str) and word not in available:
        allowed = ", ".join(sorted(available))
        faults.append(f"{'.'.join(place)}.loss_type: given {word!r}; expected one of {allowed}{_hint(word, available)}")
    return faults


def _part_faults(place: tuple[str, ...], room: str, value: Any) -> list[str]:
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        return []  # None, or a shape that the schema itself complains of
    available = kinds(room)
    if value["kind"] not in available:
        hint = nearest(value["kind"], available)
        return [
            f"{'.'.join(place)}.kind: given {value['kind']!r}; expected one of {', '.join(sorted(available))}"
            + (f"; {hint}" if hint else "")
        ]
    config: type[BaseModel] = module_of(room, value["kind"]).Config
    return _model_faults(place, config, {str(key): item for key, item in value.items() if key != "kind"})


def _cross_faults(recipe: Recipe) -> list[str]:
    """Faults between keys that are each right alone."""
    faults = []
    if not recipe.encoder_parts:
        faults.append(
            f"train.modality: given {recipe.train.modality!r}, but the recipe names no encoder for it; "
            "expected a vision_encoder, a text_encoder or a context_encoder"
        )
    if recipe.data.satellite is not None and recipe.augmentation != Augmentation():
        faults.append("augmentation: random changes of pictures, but data.satellite has patches; expected augmentation=none")
    faults += _panorama_faults(recipe)
    if recipe.reads_images and recipe.data.satellite is None and recipe.data.columns.image is None:
        faults.append("data.columns.image: given null, but the model reads pictures; expected a column, or train.modality=text_only")
    faults += [fault for name in recipe.stages if (fault := _folder_fault(name))]
    for name in recipe.stages:
        stage = recipe.stage(name)
        if stage.task is None and stage.tasks is None and len(recipe.tasks) > 1:
            faults.append(f"stages.{name}.task: missing; expected one of {', '.join(recipe.tasks)}, or several in stages.{name}.tasks")
        for task in (stage.task,) if stage.task is not None else stage.tasks or ():
            if task not in recipe.tasks:
                key = "task" if stage.task is not None else "tasks"
                faults.append(f"stages.{name}.{key}: given {task!r}; expected one of {', '.join(recipe.tasks)}{_hint(task, recipe.tasks)}")
        if len(recipe.tasks_of(stage)) > 1 and recipe.data.columns.task is None:
            faults.append(f"stages.{name}.tasks: several, but data.columns.task names no column that says which task a row is of")
        for part in stage.tune:
            if part not in PARTS:
                faults.append(f"stages.{name}.tune: given {part!r}; expected one of {', '.join(PARTS)}{_hint(part, PARTS)}")
        if "image" not in recipe.encoder_parts and (stage.finetune_layers or stage.lora.enabled):
            faults.append(f"stages.{name}: finetune_layers or lora.enabled train a vision encoder; expected a recipe that has one")
        if stage.modality != recipe.train.modality:
            faults.append(f"stages.{name}.modality: given {stage.modality!r}; expected train.modality, {recipe.train.modality!r}")
    faults += _column_faults(recipe)
    sliced = recipe.data.columns.meta if recipe.data.satellite is None else PATCH_SLICES
    for task in recipe.evaluation.tasks:
        if task not in recipe.tasks or recipe.data.columns.task is None:
            allowed = ", ".join(recipe.tasks) if recipe.data.columns.task else "none: data.columns.task names no column"
            faults.append(f"evaluation.tasks: given {task!r}; expected {allowed}{_hint(task, recipe.tasks)}")
    drawn_with = recipe.data.columns.drawn_with
    if drawn_with is not None and drawn_with not in recipe.data.columns.meta:
        allowed = ", ".join(recipe.data.columns.meta) or "a column of data.columns.meta, which is empty"
        hint = _hint(drawn_with, recipe.data.columns.meta)
        faults.append(f"data.columns.drawn_with: given {drawn_with!r}; expected {allowed}{hint}")
    named = {"slices": (recipe.evaluation.slices, sliced), "shuffle_within": (recipe.evaluation.shuffle_within, recipe.data.columns.meta)}
    for key, (columns, there) in named.items():
        for column in columns:
            if column not in there:
                allowed = ", ".join(there) or "a column of data.columns.meta, which is empty"
                faults.append(f"evaluation.{key}: given {column!r}; expected {allowed}{_hint(column, there)}")
    if recipe.run_stages != "all":
        for name in recipe.run_stages:
            if name not in recipe.stages:
                faults.append(f"run_stages: given {name!r}; expected all or some of {', '.join(recipe.stages)}{_hint(name, recipe.stages)}")
    return faults


def _folder_fault(stage: str) -> str:
    """What keeps a stage's folder from standing in that of its run."""
    if stage.casefold() in KEPT_IN_RUNS or re.search(r"(?i)_(predictions\.json|report\.md)$", stage):
        return f"stages.{stage}: given the name {stage!r}, which a run's folder has for something else; expected another name"
    if not re.fullmatch(r"\w([\w .+-]*[\w+-])?", stage):
        return f"stages.{stage}: given the name {stage!r}; expected one that can be a folder's: letters, digits, _ and -"
    return ""


def _panorama_faults(recipe: Recipe) -> list[str]:
    """Changes of pictures that a panorama cannot take, and one that only a panorama can."""
    changes = recipe.augmentation
    if recipe.views is None:
        given = f"augmentation.yaw_degrees: given {changes.yaw_degrees:g}, which turns panoramas; expected 0, or views such as anyres_e2p"
        return [given] if changes.yaw_degrees else []
    faults = []
    if recipe.data.satellite is not None:
        faults.append("views: of panoramas, but data.satellite has patches; expected views=none")
    if recipe.data.fit != "encoder":
        faults.append(f"data.fit: given {recipe.data.fit!r}, but views are drawn at the encoder's size; expected encoder, or views=none")
    for name in ("rotation_degrees", "translation", "scale", "flip", "blur"):
        if getattr(changes, name):
            faults.append(
                f"augmentation.{name}: given {getattr(changes, name):g}, which tears or mirrors a panorama or leaves a seam; expected 0: "
                "yaw_degrees and changes of colour suit views (augmentation=panorama)"
            )
    return faults


def _column_faults(recipe: Recipe) -> list[str]:
    """Of the columns that a context encoder reads of a table: one that is not kept, or that holds the answer."""
    if recipe.data.satellite is not None or recipe.context_encoder is None:
        return []
    columns, part = recipe.data.columns, recipe.context_encoder.model_dump()
    answers = {getattr(columns, key): key for key in ("references", "choices", "turns")}
    given = [part.get(key) for key in ("numbers", "cyclic", "categories")]
    faults = []
    for column in (name for names in given if isinstance(names, list | tuple | Mapping) for name in names):
        if column in answers:
            key = f"data.columns.{answers[column]}"
            faults.append(f"context_encoder: given {column!r}, which {key} says is the answer; expected what is known without it")
        elif column not in columns.meta:
            there = [name for name in columns.meta if name not in answers]
            allowed = ", ".join(there) or "columns of data.columns.meta, which is empty"
            faults.append(f"context_encoder: given {column!r}; expected {allowed}{_hint(column, there)}")
    return faults


def _hint(name: str, candidates: Iterable[str]) -> str:
    hint = nearest(name, candidates)
    return f"; {hint}" if hint else ""


def _fault(place: tuple[str, ...], detail: ErrorDetails, model: type[BaseModel]) -> str:
    """One pydantic fault as `path: given …; expected …; did you mean …`."""
    where = tuple(str(item) for item in detail["loc"])
    path = ".".join((*place, *where)) or "recipe"
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(model, where[:-1])
        expected = f"one of {', '.join(sorted(fields))}" if fields else "no keys here"
        return f"{path}: unknown key; expected {expected}{_hint(where[-1], fields)}"
    if detail["type"] == "missing":
        return f"{path}: missing; expected a value"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if isinstance(detail.get("input"), Mapping):  # keys that do not go together: the message names them
        return f"{path}: {message}"
    return f"{path}: given {detail.get('input')!r}; expected {message}"


def _fields_at(model: type[BaseModel], where: Sequence[str]) -> list[str]:
    """The keys that the schema allows at a path (through optional and mapping types)."""
    from typing import get_args

    current: Any = model
    for step in where:
        if isinstance(current, type) and issubclass(current, BaseModel):
            if step not in current.model_fields:
                continue  # a union's branch name in pydantic's path
            current = current.model_fields[step].annotation
        models = [item for item in (current, *get_args(current)) if isinstance(item, type) and issubclass(item, BaseModel)]
        current = models[0] if models else current
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
