"""The recipe: its schema, its composition, and the folder-as-registry loader of parts.

Hydra composes YAML files (`conf/`), pydantic validates the result. Both report *all* faults at once, each with its config path, what was
given, what is allowed and the nearest valid name. Nothing here imports torch until the parts of a valid recipe are asked for.
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from eyegraft.errors import PartError, RecipeError, nearest

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Base of every configuration object: frozen, and an unknown key is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Part(BaseModel):
    """Names one part of a room: `kind` is a file of that room, the other keys belong to that file's `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Columns(Strict):
    """Which column of the table holds what. `references` may hold one text or a list of texts."""

    image: str = "image"
    references: str | None = "caption"
    prompt: str | None = None
    id: str | None = None
    group: str | None = None
    meta: tuple[str, ...] = ()


class Split(Strict):
    """Cut one table into splits by group. The cut is a pure function of the seed and the groups' names."""

    table: str
    fractions: dict[str, Fraction]
    seed: int = 0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"fractions sum to {total:g}, they must sum to 1")
        return self


class Data(Strict):
    """Prepared data: tables of rows that name images.

    Attributes:
        name: what results call it.
        about: one sentence for reports: what the pictures are, real or simulated.
        base_dir: folder that table and image paths are relative to.
        tables: split -> table file (csv, tsv, jsonl, json, parquet), a folder of `datasets`, or `hub:NAME[:CONFIG]:SPLIT`.
        split: in place of `tables`, one table cut by group.
        held_out: split -> what "held out" means there, said beside its results.
        max_bad_fraction: the run stops when more rows than this are quarantined.
        max_pixels: larger images are refused before they are decoded.
        check: `decode` reads every image once before training, `header` only its size.
    """

    name: str
    about: str = ""
    base_dir: str = "."
    tables: dict[str, str] = {}
    split: Split | None = None
    columns: Columns = Columns()
    held_out: dict[str, str] = {}
    max_bad_fraction: Fraction = 0.01
    max_pixels: Positive = 100_000_000
    check: Literal["decode", "header"] = "decode"
    num_workers: NonNegative = 0

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if bool(self.tables) == bool(self.split):
            raise ValueError("give either `tables` (one file a split) or `split` (one file cut by group), not both or neither")
        return self


class Augmentation(Strict):
    """Random changes of training images, applied before the encoder's own transform. All zero: none.

    Attributes:
        rotation_degrees, translation, scale: half-ranges of a random affine map (translation and scale as fractions).
        brightness, contrast, saturation: half-ranges of a factor around 1.
        hue: half-range of a shift, as a fraction of the colour circle.
        grayscale, blur, flip: probabilities. Flip is horizontal: never use it on pictures with writing.
    """

    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    translation: Fraction = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    grayscale: Fraction = 0.0
    blur: Fraction = 0.0
    flip: Fraction = 0.0


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021), by PEFT.

    Attributes:
        rank, alpha, dropout: as in the paper; the update is scaled by alpha / rank.
        target_modules: module names, or `all-linear`.
        target_layers: only the last so many blocks; None means all.
    """

    rank: Positive = 16
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    target_layers: Positive | None = None
    use_dora: bool = False
    use_rslora: bool = False


class Tune(Strict):
    """How one part is trained. In a recipe a bare word such as `frozen` stands for `{mode: frozen}`.

    Attributes:
        mode: `frozen` nothing, `last_n` the last blocks, `full` everything, `lora` adapters only.
        last_n: number of blocks for `last_n`.
        learning_rate: None takes the stage's.
    """

    mode: Literal["frozen", "last_n", "full", "lora"]
    last_n: NonNegative = 0
    learning_rate: Rate | None = None
    lora: Lora = Lora()

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _blocks(self) -> Tune:
        if self.mode == "last_n" and self.last_n == 0:
            raise ValueError("mode last_n needs last_n of 1 or more (or use mode: frozen)")
        return self


class EarlyStopping(Strict):
    """Which validation value chooses `best/`, and after how many epochs without a better one training ends (None: never).

    Attributes:
        metric: a value of the validation log, such as `val_loss`.
        mode: whether lower or higher is better.
    """

    metric: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    patience: Positive | None = None


class Settings(Strict):
    """What a stage trains with. `train` holds the defaults; a stage states only what differs.

    Attributes:
        task: which of the recipe's tasks is learned; None where there is only one.
        objective: None takes the task's own.
        batch_size: samples in one forward.
        gradient_accumulation: forwards in one optimiser step; the loss is averaged over all their tokens.
        max_steps: optimiser steps at most, whatever `epochs` says.
        warmup_ratio: share of the steps over which the rate rises from 0.
        precision: `32-true`, `bf16-mixed` or `16-mixed`, as Lightning Fabric names them.
        checkpoint_every: optimiser steps between saves within an epoch; checkpoint_minutes: minutes between them, whichever comes first.
        tune: part -> how it is trained; parts not named keep the default of their room.
        init_from: a run folder whose last stage this one starts from. In `train` it holds for the first stage alone.
    """

    task: str | None = None
    objective: Part | None = None
    epochs: Positive = 1
    max_steps: Positive | None = None
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    learning_rate: Rate = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    scheduler_type: Literal["cosine_warmup", "linear_warmup", "constant", "cosine"] = "cosine_warmup"
    warmup_ratio: Fraction = 0.05
    max_grad_norm: Rate | None = 1.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    early_stopping: EarlyStopping = EarlyStopping()
    checkpoint_every: Positive | None = None
    checkpoint_minutes: Rate = 10.0
    log_every: Positive = 10
    tune: dict[str, Tune] = {}
    init_from: str | None = None


class Trackers(Strict):
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    tensorboard: bool = False
    wandb: dict[str, Any] | None = None


class Evaluation(Strict):
    """How a run is evaluated.

    Attributes:
        splits: which splits `evaluate` reports when none is named.
        batch_size: samples generated at once.
        baselines: dumb answers and damaged inputs to stand beside the model.
        num_resamples: bootstrap resamples behind each 95 % interval.
    """

    splits: tuple[str, ...] = ("test",)
    batch_size: Positive = 32
    baselines: tuple[Literal["blank_image", "shuffled_image", "most_frequent", "nearest_neighbour"], ...] = (
        "blank_image",
        "shuffled_image",
        "most_frequent",
        "nearest_neighbour",
    )
    num_resamples: Positive = 2000


class Recipe(Strict):
    """One recipe, whole. See `conf/` for the files that it is composed from."""

    recipe: str
    title: str = ""
    experiment_name: str
    run_root: str = "runs"
    seed: NonNegative = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    num_threads: Positive | None = None
    deterministic: bool = False
    vision_encoder: Part
    pooling: Part | None = None
    connector: Part
    fusion: Part
    head: Part
    prepare: Part | None = None
    data: Data
    augmentation: Augmentation = Augmentation()
    tasks: Annotated[dict[str, Part], Field(min_length=1)]
    train: Settings
    stages: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    run_stages: tuple[str, ...] | Literal["all"] = "all"
    trackers: Trackers = Trackers()
    evaluation: Evaluation = Evaluation()

    def task_of(self, settings: Settings) -> str:
        """The name of the task that a stage learns."""
        return settings.task or next(iter(self.tasks))

    def stage(self, name: str) -> Settings:
        """The settings of one stage: `train`, with what the stage itself states on top (nested keys one by one)."""
        return Settings.model_validate(_overlay(self.train.model_dump(exclude_unset=True), self.stages[name]))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages to run, in the recipe's order."""
        return tuple(name for name in self.stages if self.run_stages == "all" or name in self.run_stages)

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, as it is written beside checkpoints."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the result; where the run is kept does not."""
        plain = {key: value for key, value in self.plain().items() if key not in ("run_root", "trackers")}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


# ── parts: a folder is a registry ────────────────────────────────────────────────────────────────────────────────────────────────

_ROOMS = {
    "vision_encoder": "encoders",
    "pooling": "connectors",
    "connector": "connectors",
    "fusion": "fusion",
    "head": "heads",
    "prepare": "prepare",
}
_plugins: list[str] = []


def use_plugin(package: str) -> None:
    """Look for parts in `package.encoders`, `package.heads` … too. Named by the user, never by a recipe: a recipe runs no code."""
    try:
        import_module(package)
    except ImportError as error:
        raise PartError(
            f"--plugin {package}: {error}", "the name of an importable package", "install it, or add its parent folder to PYTHONPATH"
        ) from error
    if package not in _plugins:
        _plugins.append(package)


def plugins() -> tuple[str, ...]:
    """The packages named by the user, for processes that must know them too."""
    return tuple(_plugins)


def _room_packages(room: str) -> list[ModuleType]:
    packages = [import_module(f"eyegraft.{room}")]
    for plugin in _plugins:
        try:
            packages.append(import_module(f"{plugin}.{room}"))
        except ModuleNotFoundError as error:
            if error.name != f"{plugin}.{room}":
                raise
    return packages


def kinds(room: str) -> dict[str, str]:
    """The parts of a room: kind -> module name. Files that start with an underscore are shared code, not parts."""
    found: dict[str, str] = {}
    for package in _room_packages(room):
        for info in pkgutil.iter_modules(package.__path__):
            if not info.name.startswith("_"):
                found[info.name] = f"{package.__name__}.{info.name}"
    return found


def module_of(room: str, kind: str) -> ModuleType:
    """Import the file behind a kind."""
    available = kinds(room)
    if kind not in available:
        raise PartError(f"{room}: unknown kind {kind!r}", f"one of {', '.join(sorted(available))}", nearest(kind, available))
    return import_module(available[kind])


def configured(room: str, part: Part) -> tuple[ModuleType, Strict]:
    """The module behind a part and its validated `Config`. Call `module.build(config, ...)` with measured widths."""
    module = module_of(room, part.kind)
    return module, module.Config.model_validate(part.options)


# ── composition and validation ───────────────────────────────────────────────────────────────────────────────────────────────────

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
    given = [
        text
        if text[:1] in "+~-" or "=" not in text or text.split("=", 1)[0].split("@")[0] in groups or text.startswith("hydra")
        else f"++{text}"
        for text in overrides
    ]
    given = [text if _readable(text) else _quoted(text) for text in given]
    return [*given, f"hydra.searchpath=[{','.join(_in_quotes(f'file://{place}') for place in _conf_dirs)}]"] if _conf_dirs else given


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


def stop_at_unknown_recipe(overrides: Sequence[str]) -> None:
    """Raise a `RecipeError` unless the overrides choose a recipe that there is (or several, for a sweep)."""
    chosen = [text.split("=", 1)[1] for text in overrides if text.startswith("recipe=")]
    known = recipe_files()
    if not chosen:
        raise RecipeError("no recipe", f"recipe=NAME with one of {', '.join(sorted(known))}")
    for name in chosen[-1].split(","):
        if name not in known:
            raise RecipeError(f"recipe={name}", f"recipe=NAME with one of {', '.join(sorted(known))}", nearest(name, known))


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
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    stop_at_unknown_recipe(overrides)
    register_defaults()
    try:
        with initialize_config_module("eyegraft.conf", version_base="1.3"):
            return hydra_compose("config", overrides=hydra_overrides(overrides))
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

    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise RecipeError(
            f"no value for {', '.join(missing)}",
            "a value for each key that the recipe leaves open",
            " ".join(f"{key}=…" for key in missing),
        )
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise RecipeError(str(error).splitlines()[0], "interpolations such as ${seed}", "check the recipe's ${…}") from error
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
        faults += _part_faults(("train", "objective"), "objectives", train.get("objective"))
    if isinstance(stages, Mapping) and isinstance(train, Mapping):
        inherited = train if _model_faults((), Settings, train) else Settings.model_validate(train).model_dump(exclude_unset=True)
        above = {fault.removeprefix("train.") for fault in faults}  # said once, where it stands
        for name, stage in stages.items():
            if isinstance(stage, Mapping):
                whole = _model_faults((), Settings, _overlay(inherited, stage))
                faults += [f"stages.{name}.{fault}" for fault in whole if fault not in above]
                faults += _part_faults(("stages", str(name), "objective"), "objectives", stage.get("objective"))
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


def _model_faults(place: tuple[str, ...], model: type[BaseModel], value: Mapping[str, Any]) -> list[str]:
    try:
        model.model_validate(dict(value))
    except ValidationError as error:
        return [_fault(place, detail, model) for detail in error.errors()]
    return []


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
    parts = {"vision_encoder", "pooling", "connector", "fusion", "head"}
    for name in recipe.stages:
        stage = recipe.stage(name)
        if stage.task is None and len(recipe.tasks) > 1:
            faults.append(f"stages.{name}.task: missing; expected one of {', '.join(recipe.tasks)}")
        if stage.task is not None and stage.task not in recipe.tasks:
            faults.append(
                f"stages.{name}.task: given {stage.task!r}; expected one of {', '.join(recipe.tasks)}{_hint(stage.task, recipe.tasks)}"
            )
        for part in stage.tune:
            if part not in parts:
                faults.append(f"stages.{name}.tune: given {part!r}; expected one of {', '.join(sorted(parts))}{_hint(part, parts)}")
    if recipe.run_stages != "all":
        for name in recipe.run_stages:
            if name not in recipe.stages:
                faults.append(
                    f"run_stages: given {name!r}; expected all or some of {', '.join(recipe.stages)}{_hint(name, recipe.stages)}"
                )
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
