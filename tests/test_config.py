"""Recipes: composed from YAML, validated as a whole, every fault said at once with its path and the nearest name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eyegraft import config, registry
from eyegraft.composition import CONF, compose, load_recipe, recipe_files, to_plain, use_config_dir, validate
from eyegraft.config import Augmentation, Part, Settings, Tune
from eyegraft.errors import PartError, RecipeError
from eyegraft.registry import configured, kinds, module_of, use_plugin

ROOMS = {"vision_encoder": "encoders", "pooling": "connectors", "connector": "connectors", "fusion": "fusion", "head": "heads"}
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("_"))


@pytest.fixture
def plain() -> dict[str, Any]:
    return {
        "recipe": "small",
        "experiment_name": "small",
        "vision_encoder": {"kind": "huggingface", "model": "x"},
        "connector": {"kind": "mlp"},
        "fusion": {"kind": "sequence"},
        "head": {"kind": "prefix_lm", "model": "x"},
        "data": {"name": "shapes", "tables": {"train": "train.jsonl"}},
        "tasks": {"caption": {"kind": "caption"}},
        "train": {},
        "stages": {"only": {}},
    }


def faults(plain: dict[str, Any], **changes: Any) -> list[str]:
    """The faults of a recipe, one a line; empty when there are none."""
    try:
        validate({**plain, **changes})
    except RecipeError as error:
        lines = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
        assert str(error).startswith(f"{len(lines)} fault{'s' if len(lines) > 1 else ''} in the recipe")
        return lines
    return []


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_small_recipe_is_valid(plain: dict[str, Any]) -> None:
    assert faults(plain) == []


def test_all_faults_at_once_with_path_and_nearest_name(plain: dict[str, Any]) -> None:
    found = faults(
        plain,
        seed="abc",
        devise="cpu",
        vision_encoder={"kind": "huggingfce"},
        connector={"kind": "prefix", "num_tokens": 0},
        head={"kind": "prefix_lm", "modle": "x"},
        train={"epoch": 3, "batch_size": -1, "tune": {"head": {"mode": "lora", "lora": {"rnk": 3}}}},
        tasks={"caption": {"kind": "captions"}},
        stages={"only": {"epohcs": 3, "objective": {"kind": "cross_entropi"}}},
    )
    expected = {
        "seed": "given 'abc'; expected a valid integer",
        "devise": "did you mean 'device'?",
        "vision_encoder.kind": f"given 'huggingfce'; expected one of {', '.join(sorted(kinds('encoders')))}; did you mean 'huggingface'?",
        "connector.num_tokens": "given 0; expected greater than 0",
        "head.model": "missing",
        "head.modle": "unknown key; expected one of architecture, dtype, model, pretrained, quantize, revision; did you mean 'model'?",
        "train.epoch": "did you mean 'epochs'?",
        "train.batch_size": "given -1; expected greater than 0",
        "train.tune.head.lora.rnk": "did you mean 'rank'?",
        "tasks.caption.kind": "did you mean 'caption'?",
        "stages.only.epohcs": "did you mean 'epochs'?",
        "stages.only.objective.kind": "did you mean 'cross_entropy'?",
    }
    assert sorted(line.split(": ")[0] for line in found) == sorted(expected), "each fault once"
    for line in found:
        assert expected[line.split(": ")[0]] in line


@pytest.mark.parametrize(
    ("changes", "path", "text"),
    [
        ({"data": {"name": "d", "split": {"table": "t", "fractions": {"train": 0.5, "val": 0.2}}}}, "data.split", "sum to 0.7"),
        ({"data": {"name": "d"}}, "data", "one of `tables`"),
        ({"data": {"name": "d", "tables": {"a": "b"}, "split": {"table": "t", "fractions": {"a": 1}}}}, "data", "one of `tables`"),
        ({"data": {"name": "d", "tables": {"a": "b"}, "max_bad_fraction": 2}}, "data.max_bad_fraction", "less than or equal to 1"),
        ({"data": {"name": "d", "tables": {"a": "b"}, "columns": {"images": "x"}}}, "data.columns.images", "did you mean 'image'?"),
        (
            {"data": {"name": "d", "tables": {"a": "b"}, "columns": {"meta": ["hour"], "drawn_with": "huor"}}},
            "data.columns.drawn_with",
            "given 'huor'; expected hour; did you mean 'hour'?",
        ),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate", "finite"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate", "finite"),
        ({"train": {"learning_rate": 0}}, "train.learning_rate", "greater than 0"),
        ({"train": {"epochs": 1.5}}, "train.epochs", "integer"),
        ({"train": {"precision": "fp16"}}, "train.precision", "'bf16-mixed'"),
        ({"train": {"warmup_ratio": 1.5}}, "train.warmup_ratio", "1"),
        ({"train": {"tune": {"head": "lorra"}}}, "train.tune.head.mode", "'lora'"),
        ({"train": {"tune": {"head": "last_n"}}}, "train.tune.head", "last_n of 1 or more"),
        ({"train": {"early_stopping": {"mertic": "x"}}}, "train.early_stopping.mertic", "did you mean 'metric'?"),
        ({"train": {"objective": {"kind": "cross_entrop"}}}, "train.objective.kind", "did you mean 'cross_entropy'?"),
        ({"augmentation": {"flip": 2}}, "augmentation.flip", "1"),
        ({"augmentation": {"hue": -0.1}}, "augmentation.hue", "greater than or equal to 0"),
        ({"augmentation": {"yaw_degrees": 181}}, "augmentation.yaw_degrees", "less than or equal to 180"),
        ({"augmentation": {"yaw_degrees": 90}}, "augmentation.yaw_degrees", "views such as anyres_e2p"),
        ({"views": {"strategy": "e2p"}, "augmentation": {"rotation_degrees": 5}}, "augmentation.rotation_degrees", "yaw_degrees"),
        ({"views": {"strategy": "e2p"}, "augmentation": {"flip": 0.5}}, "augmentation.flip", "augmentation=panorama"),
        ({"views": {"strategy": "e2p"}, "data": {"name": "a", "tables": {"train": "a"}, "fit": "crop"}}, "data.fit", "expected encoder"),
        ({"views": {"strategy": "e2p", "overlap": 1}}, "views.overlap", "given 1; expected the share of a tile"),
        ({"views": {"strategy": "e2p", "fov_degrees": 180}}, "views.fov_degrees", "given 180; expected below 180"),
        ({"views": {"strategy": "e2p", "overlap": 0.999}}, "views", "make 4,000 views of a panorama; expected at most 500"),
        ({"evaluation": {"baselines": ["blank"]}}, "evaluation.baselines.0", "'blank_image'"),
        ({"tasks": {}}, "tasks", "at least 1"),
        ({"stages": {}}, "stages", "at least 1"),
        ({"stages": {"a": 3}}, "stages.a", "dictionary"),
        ({"stages": {"a": {"task": "captoin"}}}, "stages.a.task", "did you mean 'caption'?"),
        ({"stages": {"a": {"tune": {"haed": "full"}}}}, "stages.a.tune", "did you mean 'head'?"),
        ({"stages": {"a": {"tasks": {"caption": 0}}}}, "stages.a", "the weights of tasks sum to 0 (caption): give one of them more"),
        ({"stages": {"logs": {}}}, "stages.logs", "a run's folder has for something else"),
        ({"stages": {"Evaluation": {}}}, "stages.Evaluation", "expected another name"),
        ({"stages": {"run.json": {}}}, "stages.run.json", "expected another name"),
        ({"stages": {"test_predictions.json": {}}}, "stages.test_predictions.json", "expected another name"),
        ({"stages": {"a/b": {}}}, "stages.a/b", "can be a folder's"),
        ({"stages": {"..": {}}}, "stages...", "can be a folder's"),
        ({"stages": {".lock": {}}}, "stages..lock", "can be a folder's"),
        ({"stages": {"a@b": {}}}, "stages.a@b", "can be a folder's"),
        ({"run_stages": ["onyl"]}, "run_stages", "did you mean 'only'?"),
        ({"tasks": {"a": {"kind": "caption"}, "b": {"kind": "caption"}}}, "stages.only.task", "missing; expected one of a, b"),
        ({"pooling": {"kind": "mean", "x": 1}}, "pooling.x", "unknown key; expected no keys here"),
        ({"prepare": {"kind": "drawing"}}, "prepare.kind", "did you mean 'drawings'?"),
        ({"connector": {"knd": "mlp"}}, "connector.kind", "missing"),
        ({"connector": "mlp"}, "connector", "dictionary"),
        ({"head": {"kind": "prefix_lm", "model": "x", "dtype": "fp32"}}, "head.dtype", "'float32'"),
    ],
)
def test_one_fault(plain: dict[str, Any], changes: dict[str, Any], path: str, text: str) -> None:
    found = faults(plain, **changes)
    assert len(found) == 1, found
    assert found[0].split(": ")[0] == path
    assert text in found[0]
    assert not found[0].rstrip().endswith(";")


def test_what_is_missing_is_said(plain: dict[str, Any]) -> None:
    del plain["head"], plain["stages"]
    assert faults(plain) == ["head: missing; expected a value", "stages: missing; expected a value"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: st.dictionaries(st.text(max_size=4), inner),
        max_leaves=5,
    )
)
def test_whatever_is_written_is_refused_in_words(value: Any) -> None:
    """No shape of YAML gets past the schema as another error than ours."""
    for key in ("vision_encoder", "stages", "train", "tasks", "data"):
        with pytest.raises(RecipeError, match="fault"):
            validate({key: value})


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_states_only_what_differs(plain: dict[str, Any]) -> None:
    train = {"epochs": 7, "batch_size": 3, "early_stopping": {"patience": 2}, "tune": {"head": "lora", "vision_encoder": "frozen"}}
    stages = {"first": {}, "second": {"epochs": 2, "early_stopping": {"mode": "max"}, "tune": {"vision_encoder": "full"}}}
    recipe = validate({**plain, "train": train, "stages": stages})
    first, second = recipe.stage("first"), recipe.stage("second")
    assert first == recipe.train
    assert (second.epochs, second.batch_size) == (2, 3)
    assert (second.early_stopping.patience, second.early_stopping.mode) == (2, "max")
    assert {name: tune.mode for name, tune in second.tune.items()} == {"head": "lora", "vision_encoder": "full"}


def test_a_stage_may_change_one_nested_key_of_a_part(plain: dict[str, Any]) -> None:
    """A stage that lowers the rate of an adapter does not have to say again that it is an adapter."""
    train = {"tune": {"head": {"mode": "lora", "lora": {"rank": 4}}, "vision_encoder": "full"}}
    stages = {"only": {"tune": {"head": {"learning_rate": 0.5, "lora": {"alpha": 8}}, "vision_encoder": {"learning_rate": 0.25}}}}
    tune = validate({**plain, "train": train, "stages": stages}).stage("only").tune
    assert tune["head"] == Tune(mode="lora", learning_rate=0.5, lora={"rank": 4, "alpha": 8})  # type: ignore[arg-type]
    assert tune["vision_encoder"] == Tune(mode="full", learning_rate=0.25)


def test_a_stage_may_not_contradict_what_it_inherits(plain: dict[str, Any]) -> None:
    train = {"tune": {"head": {"mode": "lora"}}}
    assert faults(plain, train=train, stages={"only": {"tune": {"head": {"mode": "last_n"}}}})[0].startswith("stages.only.tune.head: ")


def test_stages_to_run(plain: dict[str, Any]) -> None:
    stages: dict[str, Any] = {"a": {}, "b": {}, "c": {}}
    assert validate({**plain, "stages": stages}).stage_names == ("a", "b", "c")
    assert validate({**plain, "stages": stages, "run_stages": ["c", "a"]}).stage_names == ("a", "c"), "in the recipe's order"


# ── fingerprint ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_fingerprint_is_of_what_decides_the_result(plain: dict[str, Any]) -> None:
    drawn = {**plain["data"], "columns": {"meta": ["hour"], "drawn_with": "hour"}}
    alone = {**plain["data"], "columns": {"meta": ["hour"]}}
    assert validate({**plain, "data": drawn}).fingerprint == validate({**plain, "data": alone}).fingerprint, "of intervals alone"
    same = [{}, {"run_root": "elsewhere"}, {"trackers": {"tensorboard": True}}, {"seed": 0}]
    other = [{"seed": 1}, {"train": {"epochs": 2}}, {"connector": {"kind": "prefix"}}, {"stages": {"another": {}}}]
    assert len({validate({**plain, **change}).fingerprint for change in same}) == 1
    assert len({validate({**plain, **change}).fingerprint for change in ({}, *other)}) == 1 + len(other)


def test_plain_data_makes_the_same_recipe(plain: dict[str, Any]) -> None:
    recipe = validate(plain)
    again = validate(yaml.safe_load(yaml.safe_dump(recipe.plain())))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


def test_a_recipe_cannot_be_changed(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(plain).seed = 3  # type: ignore[misc]


# ── what ships ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "recipe").glob("*.yaml")))
def test_every_recipe_that_ships_is_valid(name: str) -> None:
    overrides = [f"{key}=x" for key in _open_keys(name)]
    recipe = load_recipe(name, *overrides)
    assert recipe.recipe == name, "the file's name and the recipe's differ"
    assert recipe.title
    for stage in recipe.stage_names:
        recipe.stage(stage)


def _open_keys(name: str) -> list[str]:
    from omegaconf import OmegaConf

    return sorted(OmegaConf.missing_keys(compose([f"recipe={name}"])))


OPTIONS = [(group, path.stem) for group in GROUPS if group != "recipe" for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}-{option}" for group, option in OPTIONS])
def test_every_option_that_ships_names_a_part_and_validates(group: str, option: str) -> None:
    text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
    patches = "satellite:" in text or "gk2a" in text or group == "context_encoder"  # go with an encoder of patches, and have the columns
    base = "ta_small" if patches else "sphere_small" if group == "experiment" and option.startswith("sphere_") else "demo"
    beside = ["augmentation=panorama"] if group == "views" and option != "none" else ["views=e2p"] if option == "panorama" else []
    composed = compose([f"recipe={base}", *beside, f"{'+' if group == 'experiment' else ''}{group}={option}"])  # a preset stands on top
    plain: Any = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    missing = [key for key, value in plain.items() if value == "???"]
    for key in missing:
        composed[group][key] = "x"
    if option == "raster_series":  # what it reads only its user can name
        with pytest.raises(RecipeError, match=r"prepare\.raster: missing"):
            validate(to_plain(composed))
        return
    recipe = validate(to_plain(composed))
    if group in ROOMS and "kind" in plain:
        assert plain["kind"] in kinds(ROOMS[group])
        module, _ = configured(ROOMS[group], getattr(recipe, group))
        assert module.__name__.endswith(f".{plain['kind']}")
    else:
        assert group not in ROOMS or getattr(recipe, group) is None


@pytest.mark.parametrize("room", ["encoders", "connectors", "fusion", "heads", "objectives", "tasks", "prepare"])
def test_every_file_of_a_room_is_a_part(room: str) -> None:
    for kind in kinds(room):
        module = module_of(room, kind)
        assert issubclass(module.Config, config.Strict), f"{module.__name__}.Config must be a Strict"
        assert callable(getattr(module, "build", None) or getattr(module, "prepare", None)), module.__name__


# ── composition ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_overrides_all() -> None:
    recipe = load_recipe("demo", "train.epochs=2", "connector=prefix", "connector.num_tokens=3", "seed=5", "stages.name.batch_size=2")
    assert (recipe.train.epochs, recipe.seed, recipe.stage("name").batch_size) == (2, 5, 2)
    assert recipe.connector == Part(kind="prefix", num_tokens=3)  # type: ignore[call-arg]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        compose(["recipe=dmeo"])
    with pytest.raises(RecipeError, match=r"no recipe\n.*demo"):
        compose([])


@pytest.mark.parametrize("override", ["connector=mpl", "nonsense/group=3", "train.epochs=[1", "=3"])
def test_an_override_that_hydra_refuses_is_our_error(override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe("demo", override)


def test_unknown_overrides_are_all_named() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", "train.epoch=2", "sead=3")
    assert "train.epoch: unknown key" in str(caught.value)
    assert "did you mean 'seed'?" in str(caught.value)


def test_a_value_that_the_recipe_leaves_open_is_asked_for() -> None:
    with pytest.raises(RecipeError, match=r"no value for head\.model"):
        load_recipe("demo", "head=prefix_lm")


def test_an_interpolation_that_leads_nowhere_is_our_error() -> None:
    with pytest.raises(RecipeError, match=r"\$\{"):
        load_recipe("demo", "title='${no.such.key}'")


def test_your_own_recipe_and_options(tmp_path: Path) -> None:
    """`--config-dir`: recipes and options of ours can be used in it, and one of the same name is put before ours."""
    for place, text in {
        "recipe/mine.yaml": "# @package _global_\ndefaults:\n  - /recipe/demo\n  - override /connector: wide\n\nrecipe: mine\nexperiment_name: mine\n",
        "connector/wide.yaml": "kind: mlp\nhidden_dim: 99\n",
    }.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
    with pytest.raises(RecipeError, match="recipe=mine"):
        load_recipe("mine")
    use_config_dir(str(tmp_path))
    assert recipe_files()["mine"] == tmp_path / "recipe" / "mine.yaml"
    recipe = load_recipe("mine", "train.epochs=9")
    assert (recipe.recipe, recipe.train.epochs) == ("mine", 9)
    assert recipe.connector.options == {"hidden_dim": 99}
    assert load_recipe("demo", "connector=wide").connector.options == {"hidden_dim": 99}


def test_a_config_dir_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        use_config_dir(str(tmp_path / "nowhere"))


# ── plugins ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a package of parts and make it importable; gives its name."""

    def made(name: str, files: dict[str, str]) -> str:
        for place, text in {"__init__.py": "", **files}.items():
            path = tmp_path / name / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        return name

    return made


CONNECTOR = """
from eyegraft.config import Strict

class Config(Strict):
    gain: float = 1.0

def build(config, *, in_dim, out_dim):
    return config.gain
"""


def test_a_plugins_part_is_found_by_its_file(package: Callable[..., str], plain: dict[str, Any]) -> None:
    name = package(
        "my_parts", {"connectors/__init__.py": "", "connectors/loud.py": CONNECTOR, "connectors/_shared.py": "raise AssertionError"}
    )
    assert "loud" not in kinds("connectors")
    use_plugin(name)
    assert {"loud", "mlp"} <= set(kinds("connectors"))
    assert "_shared" not in kinds("connectors")
    assert kinds("heads"), "a plugin without that room is no fault"
    assert faults(plain, connector={"kind": "loud", "gain": 2.0}) == []
    assert faults(plain, connector={"kind": "loud", "gian": 2.0})[0].endswith("did you mean 'gain'?")
    module, options = configured("connectors", Part(kind="loud", gain=3.0))  # type: ignore[call-arg]
    assert module.build(options, in_dim=1, out_dim=1) == 3.0


def test_a_plugin_is_never_loaded_by_a_recipe(package: Callable[..., str], plain: dict[str, Any]) -> None:
    package("sly_parts", {"__init__.py": "raise AssertionError('code ran')", "connectors/__init__.py": "", "connectors/x.py": ""})
    for kind in ("sly_parts.connectors.x", "sly_parts", "../sly_parts/connectors/x", "os"):
        assert faults(plain, connector={"kind": kind})[0].startswith("connector.kind: given")


def test_a_bare_word_in_a_stage_changes_the_mode_alone(plain: dict[str, Any]) -> None:
    plain = {**plain, "train": {"tune": {"head": {"mode": "frozen", "lora": {"rank": 3}}}}, "stages": {"a": {"tune": {"head": "lora"}}}}
    tune = validate(plain).stage("a").tune["head"]
    assert (tune.mode, tune.lora.rank) == ("lora", 3)


def test_an_installed_package_offers_itself(package: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the entry point `eyegraft.plugins`: what the user installed needs no `--plugin`."""
    package("offered_parts", {"connectors/__init__.py": "", "connectors/quiet.py": CONNECTOR})
    assert "quiet" not in kinds("connectors")
    facts = tmp_path / "site" / "offered-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[eyegraft.plugins]\noffered = offered_parts\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "quiet" in kinds("connectors")


def test_a_plugin_that_is_not_there() -> None:
    with pytest.raises(PartError, match="no_such_package"):
        use_plugin("no_such_package")
    assert "no_such_package" not in registry.plugins()


def test_a_broken_plugin_room_is_not_hidden(package: Callable[..., str]) -> None:
    """A missing import inside it is its author's to see, not a kind that does not exist."""
    use_plugin(package("broken_parts", {"connectors/__init__.py": "import a_module_that_is_not_there"}))
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        kinds("connectors")


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(PartError, match=r"connectors: unknown kind 'mlpp'(.|\n)*did you mean 'mlp'"):
        module_of("connectors", "mlpp")


# ── what is imported when ────────────────────────────────────────────────────────────────────────────────────────────────────────

HEAVY = ("torch", "transformers", "timm", "peft", "lightning_fabric", "hydra", "pandas", "pyarrow", "datasets")


@pytest.mark.parametrize(
    "code",
    [
        "import eyegraft",
        "import eyegraft.config, eyegraft.types, eyegraft.errors",
        "import contextlib, eyegraft.cli\nwith contextlib.suppress(SystemExit): eyegraft.cli.main(['--help'])",
        "import contextlib, eyegraft.cli\nwith contextlib.suppress(SystemExit): eyegraft.cli.main(['train', '--help'])",
    ],
    ids=["import", "config", "help", "train-help"],
)
def test_help_and_import_cost_nothing(code: str) -> None:
    report = f"{code}\nimport sys\nprint('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60, check=True)
    assert "HEAVY []" in result.stdout


def test_nothing_but_a_recipes_parts_is_imported() -> None:
    """Validating a recipe with a Hugging Face encoder does not need timm to be installed."""
    code = "import sys\nsys.modules['timm'] = None\nfrom eyegraft.composition import load_recipe\nload_recipe('demo', 'vision_encoder=siglip_base')\nprint('fine')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "fine", result.stderr


# ── defaults ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_augmentation_means_none() -> None:
    assert set(Augmentation().model_dump().values()) == {0.0}


def test_every_public_key_is_described() -> None:
    """`show` prints them all; the docstring of their class says what they are."""
    for model in (value for value in vars(config).values() if isinstance(value, type) and issubclass(value, config.Strict)):
        for name in model.model_fields:
            assert name in str(model.__doc__), f"{model.__name__}.{name} is not described"
    assert isinstance(Settings(), Settings)
    assert import_module("eyegraft").__version__


def test_the_answer_is_no_input(plain: dict[str, Any]) -> None:
    plain["data"]["columns"] = {"references": "price", "meta": ["price", "rooms", "month"]}
    known = {"kind": "tabular", "numbers": ["rooms"], "cyclic": {"month": 12}}
    assert faults(plain, context_encoder=known) == []
    assert faults(plain, context_encoder={**known, "numbers": ["room", "price"]}) == [
        "context_encoder: given 'room'; expected rooms, month; did you mean 'rooms'?",
        "context_encoder: given 'price', which data.columns.references says is the answer; expected what is known without it",
    ]
