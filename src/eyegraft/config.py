"""The schema of a recipe. Nothing here imports more than pydantic; `composition.py` fills it, `registry.py` finds its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from eyegraft.strict import Fraction as Fraction  # the parts' own `Config`s find their words here
from eyegraft.strict import NonNegative as NonNegative
from eyegraft.strict import Positive as Positive
from eyegraft.strict import Rate as Rate
from eyegraft.strict import Strict as Strict
from eyegraft.views import Views


class Part(BaseModel):
    """Names one part of a room: `kind` is a file of that room, the other keys belong to that file's `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Columns(Strict):
    """Which column of the table holds what.

    Attributes:
        image: path of the image file, or the image itself in a set of `datasets`; None where there are no pictures.
        text: words beside the picture, as a second input; an empty cell means that there are none.
        references: the text to learn, or a list of texts of which each is right; of a label task, the label or the list of labels.
        prompt: what is asked of this image, where the task's own prompt will not do.
        turns: a conversation about the image, a list of {question, answer}; where the cell is empty, prompt and references hold.
        choices: the list of allowed answers.
        task: which of the recipe's tasks the row is of; an empty cell: any. A stage learns, and an evaluation scores, the rows of its task.
        id: unique name of a row; None numbers them.
        group: rows of one group never cross splits; None takes the image.
        meta: further columns to keep for slices and reports.
        drawn_with: one of `meta`; groups that are alike in it are not independent (cases of one hour), so a result's intervals draw them
            together. None: each group for itself.
    """

    image: str | None = "image"
    text: str | None = None
    references: str | None = "caption"
    prompt: str | None = None
    turns: str | None = None
    choices: str | None = None
    task: str | None = None
    id: str | None = None
    group: str | None = None
    meta: tuple[str, ...] = ()
    drawn_with: str | None = None


class Split(Strict):
    """Cut one table into splits by group. The cut is a pure function of the seed and the groups' names.

    Attributes:
        table: file, folder or hub name, as in `Data.tables`.
        fractions: split -> share of the rows; they sum to 1.
        seed: another seed, another cut.
    """

    table: str
    fractions: dict[str, Fraction]
    seed: int = 0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"fractions sum to {total:g}, they must sum to 1")
        return self


class Satellite(Strict):
    """Patches of many channels in patch stores, in place of tables and picture files.

    Attributes:
        patches: split -> folder of its patch store, relative to data.base_dir.
        statistics: file with mean and standard deviation of each channel. Where it was not made from this training split it is refused,
            unless it says that it was given; where there is none, they are computed.
        shuffle: `block` reads blocks of neighbouring rows in random order and shuffles among 64 of them, which a disk likes; `full`
            shuffles all rows; `none` keeps their order.
        rows_per_shard: of stores that `prepare` writes.
    """

    patches: Annotated[dict[str, str], Field(min_length=1)]
    statistics: str = "patches/statistics.json"
    shuffle: Literal["block", "full", "none"] = "block"
    rows_per_shard: Positive = 100_000


PATCH_SLICES = ("station", "hour", "season", "land_cover", "elevation")
"""What results on patches can be given by (see `eyegraft.data.patch_rows`)."""


class Data(Strict):
    """Prepared data: tables of rows that name images, or patch stores.

    Attributes:
        name: what results call it.
        about: one sentence for reports: what the pictures are, real or simulated.
        base_dir: folder that table and image paths are relative to.
        tables: split -> table file (csv, tsv, jsonl, json, parquet), a folder of `datasets`, or `hub:NAME[:CONFIG]:SPLIT`.
        split: in place of `tables`, one table cut by group.
        satellite: in place of both, patch stores; `columns` and what follows up to `num_workers` then says nothing.
        columns: which column holds what.
        held_out: split -> what "held out" means there, said beside its results.
        max_bad_fraction: the run stops when more rows than this are quarantined.
        max_pixels: larger images are refused before they are decoded.
        check: `decode` reads every image once before training, `header` only its size.
        fit: how a picture is brought to the encoder's size: `encoder` as its weights say, `crop`, `squash`, or `pad` with grey-128 around.
        merge_references: outside `train`, rows of one picture and prompt become one sample with several right answers. Not for labels.
        image_optional: an empty image cell is a row without a picture; without this it is a bad row.
        near_duplicates: pictures of train or val that look like one of another split: `refuse` stops, `move` takes those of train and val,
            with their groups, to the other split, `allow` only says so.
        num_workers: processes that decode images ahead of training; results are the same with any number.
    """

    name: str
    about: str = ""
    base_dir: str = "."
    tables: dict[str, str] = {}
    split: Split | None = None
    satellite: Satellite | None = None
    columns: Columns = Columns()
    held_out: dict[str, str] = {}
    max_bad_fraction: Fraction = 0.01
    max_pixels: Positive = 89_478_485  # Pillow's own limit for a picture that is no decompression bomb
    check: Literal["decode", "header"] = "decode"
    fit: Literal["encoder", "crop", "squash", "pad"] = "encoder"
    merge_references: bool = True
    image_optional: bool = False
    near_duplicates: Literal["refuse", "move", "allow"] = "refuse"
    num_workers: NonNegative = 0

    @field_validator("tables", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return {} if value is None else value  # how YAML takes back the tables of the option that it extends

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        if bool(self.tables) + bool(self.split) + bool(self.satellite) != 1:
            raise ValueError(
                "give one of `tables` (one file a split), `split` (one file cut by group) and `satellite` (patch stores), and only one"
            )
        return self


class Augmentation(Strict):
    """Random changes of training images, applied before the encoder's own transform. All zero: none.

    Attributes:
        rotation_degrees, translation, scale: half-ranges of a random affine map (translation and scale as fractions).
        brightness, contrast, saturation: half-ranges of a factor around 1.
        hue: half-range of a shift, as a fraction of the colour circle.
        grayscale, blur, flip: probabilities. Flip is horizontal: never use it on pictures with writing.
        yaw_degrees: of panoramas (see `views`), half-range of a turn about the vertical axis, by whole columns of pixels; 180 is any.
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
    yaw_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0


class Lora(Strict):
    """Low-rank adapters (Hu et al. 2021), by PEFT.

    Attributes:
        rank, alpha, dropout: as in the paper; the update is scaled by alpha / rank.
        target_modules: module names, or `all-linear`.
        target_layers: only the last so many blocks; None means all.
        use_dora: weight-decomposed adapters (Liu et al. 2024); use_rslora: scale by alpha / sqrt(rank) (Kalajdzievski 2023).
    """

    rank: Positive = 16
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    target_layers: Positive | None = None
    use_dora: bool = False
    use_rslora: bool = False


class BackboneLora(Lora):
    """Adapters of the vision encoder, switched on by `enabled` (see `Settings.freeze_backbone`); the other keys as in `Lora`.

    Attributes:
        enabled: off by default.
        rank, alpha, dropout, target_modules, target_layers, use_dora, use_rslora: of the attention in the last blocks, by default.
    """

    enabled: bool = False
    alpha: Positive = 8
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj")
    target_layers: Positive | None = 6


class FeatureCache(Strict):
    """What a frozen encoder gives is the same in every epoch and every run: written once, read from then on.

    Attributes:
        mode: `auto` wherever it gives the same result as encoding again, `off` nowhere.
        tokens: also keep whole token sequences, where the recipe pools them by learned weights or not at all: 100 times the disk.
        augmented_copies: with random augmentation, how many fixed random variants of each picture stand for it; 0 encodes anew each time.
        dtype: of the stored values. Training reads the rounded values from its first epoch on.
        max_gib: the stores of all recipes together; the least recently used go first.
    """

    mode: Literal["auto", "off"] = "auto"
    tokens: bool = False
    augmented_copies: NonNegative = 0
    dtype: Literal["float16", "bfloat16"] = "float16"
    max_gib: Annotated[float, Field(gt=0)] = 20.0


class Tune(Strict):
    """How one part is trained. In a recipe a bare word such as `frozen` stands for `{mode: frozen}`.

    Attributes:
        mode: `frozen` nothing, `last_n` the last blocks, `full` everything, `lora` adapters only, `new` nothing but the layers inside a
            pretrained part that its weights do not hold; these train under `last_n`, `full` and `lora` too.
        last_n: number of blocks for `last_n`.
        learning_rate: None takes the stage's.
    """

    mode: Literal["frozen", "last_n", "full", "lora", "new"]
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
    """Which validation value chooses `best/`, and when training ends for want of a better one.

    Attributes:
        metric: `val_loss`, or `val_` and a metric of the task such as `val_exact_match` (then answers are made after each epoch).
        mode: whether lower (`min`) or higher (`max`) is better; `auto` asks the metric.
        patience: epochs without a better value after which the stage ends; None: never.
    """

    metric: str = "val_loss"
    mode: Literal["auto", "min", "max"] = "auto"
    patience: Positive | None = None


class Settings(Strict):
    """What a stage trains with. `train` holds the defaults; a stage states only what differs.

    Attributes:
        task: which of the recipe's tasks is learned; None where there is only one.
        tasks: several of them in one stage: name -> weight, 0 leaves one out. Rows say which task they are of (`data.columns.task`).
        temperature: how an epoch is shared among several tasks. None: by weight alone, whatever their rows; T: by weight · rows^(1 / T),
            so that 1 takes the rows as they are and more levels them out (Arivazhagan et al. 2019).
        split: what is learned from; a pretraining stage may name one without labels. Statistics always come from `train`.
        modality: which encoders the model has: all that the recipe names, or the vision, text or context encoder alone. The same in all
            stages.
        objective: None takes the task's own. loss_type: the same by a bare word, such as focal.
        batch_size: samples in one forward.
        gradient_accumulation: forwards in one optimiser step; the loss is averaged over all their tokens.
        group_by_length: texts of about the same length share a batch, so that little of it is padding.
        packing: texts of a batch share rows of at most so many tokens, image tokens included where they stand in the text, and none sees
            another. There is no padding, so batches are random; the rows of a batch go through one after another, so this and not
            `batch_size` is what fills the memory. On a CPU 512 or less is fastest.
        learning_rate, weight_decay, betas: of AdamW (Loshchilov & Hutter 2019); vectors and norms do not decay.
        max_steps: optimiser steps at most, whatever `epochs` says.
        scheduler_type: how the rate falls after the warmup; warmup_ratio: share of the steps over which it rises from 0.
        max_grad_norm: gradients are clipped to this norm over all trained tensors; None: not.
        precision: `32-true`, `bf16-mixed` or `16-mixed`, as Lightning Fabric names them.
        checkpoint_every: optimiser steps between saves within an epoch; checkpoint_minutes: minutes between them, whichever comes first.
        early_stopping: what chooses the best checkpoint, and when to stop.
        log_every: optimiser steps between rows of `metrics.jsonl`.
        log_samples: validation samples of each task that are answered after every epoch, for `samples.jsonl`; 0 for none. Of texts only.
        feature_cache: of frozen encoders.
        tune: part -> how it is trained; parts not named keep the default of their room: pretrained ones are frozen, new ones train,
            and so do the cross-attention layers of a frozen language model.
        freeze_backbone, finetune_layers, backbone_lr, lora, lora_lr: `tune.vision_encoder` in other words. freeze_backbone=false with
            finetune_layers=N trains the top N blocks, with -1 all; lora.enabled=true trains adapters on the last lora.target_layers blocks.
            Without a rate of its own each takes learning_rate; a rate of what does not train decides nothing.
        init_from: what this one starts from: a run, by its last stage, or RUN/STAGE. In `train` it holds for the first stage that is run.
    """

    task: str | None = None
    tasks: dict[str, Annotated[float, Field(ge=0)]] | None = None
    temperature: Rate | None = None
    split: str = "train"
    modality: Literal["multimodal", "vision_only", "text_only", "context_only"] = "multimodal"
    objective: Part | None = None
    loss_type: str | None = None
    epochs: Positive = 1
    max_steps: Positive | None = None
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    group_by_length: bool = True
    packing: Positive | None = None
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
    log_samples: NonNegative = 4
    feature_cache: FeatureCache = FeatureCache()
    tune: dict[str, Tune] = {}
    freeze_backbone: bool | None = None
    finetune_layers: Annotated[int, Field(ge=-1)] = 0
    backbone_lr: Rate | None = None
    lora: BackboneLora = BackboneLora()
    lora_lr: Rate | None = None
    init_from: str | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if self.finetune_layers and self.freeze_backbone is not False:
            raise ValueError(
                f"finetune_layers={self.finetune_layers} of a frozen backbone: set freeze_backbone=false, or finetune_layers=0"
            )
        if self.freeze_backbone is False and not self.finetune_layers and not self.lora.enabled:
            raise ValueError(
                "freeze_backbone=false, but nothing of it trains: set finetune_layers=N (top N blocks; -1: all) or lora.enabled=true"
            )
        if self.finetune_layers and self.lora.enabled:
            raise ValueError("finetune_layers and lora.enabled together: train the blocks or adapters on them")
        if "vision_encoder" in self.tune and (self.freeze_backbone is not None or self.lora.enabled):
            raise ValueError("tune.vision_encoder beside freeze_backbone or lora.enabled, which say the same: keep one")
        if self.task is not None and self.tasks is not None:
            raise ValueError(f"task={self.task} beside tasks: name one task, or several with their weights")
        if self.tasks is not None and not any(self.tasks.values()):
            raise ValueError(f"the weights of tasks sum to 0 ({', '.join(self.tasks) or 'none named'}): give one of them more")
        if self.temperature is not None and self.tasks is None:
            raise ValueError(f"temperature={self.temperature:g} shares an epoch among several tasks: name them in `tasks`")
        if self.objective is not None and self.loss_type not in (None, self.objective.kind):
            raise ValueError(f"loss_type={self.loss_type} and objective.kind={self.objective.kind}: keep one")
        return self

    def tune_of(self, part: str) -> Tune | None:
        """How a part is trained, as far as the recipe says."""
        if part != "vision_encoder" or (self.freeze_backbone is None and not self.lora.enabled):
            return self.tune.get(part)
        if self.lora.enabled:
            return Tune(mode="lora", lora=Lora(**self.lora.model_dump(exclude={"enabled"})), learning_rate=self.lora_lr)
        if self.finetune_layers > 0:
            return Tune(mode="last_n", last_n=self.finetune_layers, learning_rate=self.backbone_lr)
        return Tune(mode="full" if self.finetune_layers else "frozen", learning_rate=self.backbone_lr)

    def objective_of(self, own: str) -> Part:
        """The objective, where a task's own is `own`."""
        return self.objective or Part(kind=self.loss_type or own)


class Trackers(Strict):
    """Where metrics go besides `metrics.jsonl`, which is always written.

    Attributes:
        tensorboard: event files in `<run>/<stage>/tensorboard`.
        wandb: arguments of `wandb.init`, such as {project: maps, mode: offline}; {} for its defaults, None for no Weights & Biases.
    """

    tensorboard: bool = False
    wandb: dict[str, Any] | None = None


Baseline = Literal[
    "blank_image",
    "shuffled_image",
    "absent_image",
    "shuffled_text",
    "absent_text",
    "shuffled_context",
    "absent_context",
    "most_frequent",
    "nearest_neighbour",
    "climatology",
    "elevation_linear",
    "ridge",
    "boosting",
]


class Evaluation(Strict):
    """How a run is evaluated.

    Attributes:
        splits: which splits `evaluate` reports when none is named.
        batch_size: samples generated at once.
        baselines: dumb answers, damaged inputs and, for numbers, models of single columns to stand beside the model; those of a modality
            that the model does not read, or of another kind of answer, are left out.
        tasks: tasks of the recipe that are asked beside those that the stage learned, where a split has rows of them.
        shuffle_within: columns of `data.columns.meta`; pictures are also shuffled among samples alike in all of these, such as maps of one
            hour and kind, so that what remains to be seen is what tells these apart (`shuffled_image_within`).
        slices: columns of `data.columns.meta`; the result is also given for each of their values.
        after_training: `train` ends by evaluating.
        num_resamples: bootstrap resamples behind each 95 % interval.
    """

    splits: tuple[str, ...] = ("test",)
    batch_size: Positive = 32
    baselines: tuple[Baseline, ...] = get_args(Baseline)
    tasks: tuple[str, ...] = ()
    shuffle_within: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    after_training: bool = False
    num_resamples: Positive = 2000


PARTS = (
    *("vision_encoder", "condition_classifier", "text_encoder", "context_encoder"),
    *("pooling", "view_encoding", "connector", "fusion", "head"),
)
"""The parts of a model, as `tune` names them."""

BESIDE_THE_RESULT = ("run_root", "trackers", "run_stages")
"""Keys of a recipe that may change between one command and the next on the same run."""

KEPT_IN_RUNS = (
    *("run.json", "recipe.yaml", "quarantine.jsonl", "near_duplicates.jsonl", "results.json", "report.html"),
    *("logs", "evaluation", "maps", "wandb"),
)
"""What a run's folder holds beside its stages, with what begins with a dot or ends in `_predictions.json` or `_report.md`."""


class Recipe(Strict):
    """One recipe, whole. See `conf/` for the files that it is composed from.

    Attributes:
        recipe, title, experiment_name: its name, what a report is headed with, and the folder of its runs under run_root.
        seed: of everything random.
        device: `auto` takes a GPU where there is one; num_threads: of torch on a CPU; deterministic: ask torch for deterministic kernels.
        vision_encoder, text_encoder, context_encoder, pooling, connector, fusion, head: the parts of the model, each with a `kind`.
            Pooling and connector are the image's; the context is what else a row says of itself (time, place, further columns).
        views: pictures are panoramas, and these views of them are what the vision encoder sees.
        prepare: how its data set is made, where it has one of its own; data: where it lies; augmentation: of training images.
        tasks: name -> what is asked and answered.
        train: what every stage trains with; stages: name -> what differs there, in order, null leaving one out; run_stages: which of them
            to run.
        trackers, evaluation: where metrics go, and what a result stands beside.
    """

    recipe: str
    title: str = ""
    experiment_name: str
    run_root: str = "runs"
    seed: NonNegative = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    num_threads: Positive | None = None
    deterministic: bool = False
    vision_encoder: Part | None = None
    text_encoder: Part | None = None
    context_encoder: Part | None = None
    pooling: Part | None = None
    connector: Part | None = None
    views: Views | None = None
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

    @field_validator("stages", mode="before")
    @classmethod
    def _without_those_left_out(cls, value: Any) -> Any:
        return {name: stage for name, stage in value.items() if stage is not None} if isinstance(value, Mapping) else value

    @property
    def encoder_parts(self) -> dict[str, Part]:
        """Modality -> encoder, of those that the model has. A task of labels or numbers may have any of them."""
        named = {"image": self.vision_encoder, "text": self.text_encoder, "context": self.context_encoder}
        alone = {"vision_only": "image", "text_only": "text", "context_only": "context"}.get(self.train.modality)
        return {modality: part for modality, part in named.items() if part is not None and alone in (None, modality)}

    @property
    def reads_images(self) -> bool:
        """Whether the model looks at pictures; of one that does not, none has to be there."""
        return "image" in self.encoder_parts

    def tasks_of(self, settings: Settings) -> dict[str, float]:
        """The tasks that a stage learns, and their weights."""
        if settings.tasks is not None:
            return {name: weight for name, weight in settings.tasks.items() if weight}
        return {settings.task or next(iter(self.tasks)): 1.0}

    def stage(self, name: str) -> Settings:
        """The settings of one stage: `train`, with what the stage itself states on top (nested keys one by one)."""
        return Settings.model_validate(staged(self.train.model_dump(exclude_unset=True), self.stages[name]))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages to run, in the recipe's order."""
        return tuple(name for name in self.stages if self.run_stages == "all" or name in self.run_stages)

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, as it is written beside checkpoints."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the result. Where the run is kept does not, nor which of its stages run now, nor how intervals are
        drawn."""
        plain = {key: value for key, value in self.plain().items() if key not in BESIDE_THE_RESULT}
        del plain["data"]["columns"]["drawn_with"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def staged(train: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a stage: what it states, on top of `train`. A bare word in `tune` changes the mode alone."""

    def worded(settings: Mapping[str, Any]) -> dict[str, Any]:
        tune = settings.get("tune")
        if not isinstance(tune, Mapping):
            return dict(settings)
        return {**settings, "tune": {part: {"mode": how} if isinstance(how, str) else how for part, how in tune.items()}}

    return overlay(worded(train), worded(stage))


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the keys of `over` on top, nested mappings key by key."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
