"""Every verb through the real command line, from `--help` to files on disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import tiny
from cli.running import SMALL, Interrupted, contents, read_table, refused, rows, small_words, stop_before, tiny_run, trained, write_table
from cli.running import run as run_here
from command_line import eyegraft
from eyegraft import __version__
from eyegraft.cli import VERBS

QUICK = ("recipe=tiny", "stages.warm.epochs=1", "stages.finetune.epochs=1")
QUESTION = "무엇이 그려져 있나요?"
KOREAN = {"red": "빨간", "blue": "파란", "green": "초록", "square": "사각형", "circle": "동그라미", "triangle": "삼각형"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a small data set and one finished run, `run`."""
    place = tmp_path_factory.mktemp("commands")
    tiny.shapes(place / "data", {"train": 6, "val": 2, "test": 3})
    (place / "run").symlink_to(place / trained(tiny_run("train", *QUICK, cwd=place)))
    return place


# ── help and lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, tmp_path: Path) -> None:
    done = run_here(verb, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: eyegraft {verb}")
    assert "--plugin PACKAGE" in done.stdout


def test_help_names_every_verb_and_loads_no_torch(tmp_path: Path) -> None:
    done = eyegraft("--help", cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    assert all(re.search(rf"^ +{verb} ", done.stdout, re.MULTILINE) for verb in VERBS), done.stdout
    assert not re.search(r"\| +(torch|transformers|hydra)$", done.stderr, re.MULTILINE), "help must come at once"
    version = run_here("--version", cwd=tmp_path)
    assert version.stdout.split() == ["eyegraft", __version__]


def test_recipes(tmp_path: Path) -> None:
    done = tiny_run("recipes", cwd=tmp_path)
    assert done.returncode == 0
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert listed["tiny"] == "Coloured shapes"
    assert "demo" in listed


@pytest.mark.parametrize("words", [["recipe=demo"], ["recipe=tiny", "train.epochs=7", "connector=prefix"]])
def test_show_equals_cfg_job(words: list[str], tmp_path: Path) -> None:
    shown = tiny_run("show", words[0].removeprefix("recipe="), *words[1:], cwd=tmp_path)
    job = tiny_run("train", *words, "--cfg", "job", cwd=tmp_path)
    assert (shown.returncode, job.returncode) == (0, 0), job.stderr
    assert shown.stdout.strip() == job.stdout.strip()
    plain = yaml.safe_load(shown.stdout)
    assert plain["recipe"] == words[0].removeprefix("recipe=")
    assert plain["train"]["scheduler_type"] == "cosine_warmup", "defaults are shown too"
    assert list(tmp_path.iterdir()) == []


def test_show_gives_what_a_run_writes_down(root: Path) -> None:
    shown = OmegaConf.to_container(OmegaConf.create(tiny_run("show", *QUICK, cwd=root).stdout), resolve=True)
    written = yaml.safe_load((root / "run" / "recipe.yaml").read_text(encoding="utf-8"))
    assert_within(shown, written)


def assert_within(part: Any, whole: Any, place: str = "recipe") -> None:
    """Every key of `part` stands in `whole` with the same value; `whole` may spell out more defaults."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert_within(value, whole[key], f"{place}.{key}")
    else:
        assert part == whole, place


@pytest.mark.parametrize(
    "value",
    ["무엇이 그려져 있나요?", "안녕, 여러분", "What's this?", "Hello! (you)", 'say "빨강"', "C:\\자료\\", "a = b", "50 % 빨강", "“빨강”"],
)
def test_any_text_can_be_typed_as_a_value(value: str, tmp_path: Path) -> None:
    done = tiny_run("show", "tiny", f"tasks.caption.prompt={value}", f"title={value}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["tasks"]["caption"]["prompt"], shown["title"]) == (value, value)


def test_config_dir_of_any_name(tmp_path: Path) -> None:
    place = tmp_path / "내 설정, 둘" / "recipe"
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text("# @package _global_\ndefaults: [tiny]\nrecipe: mine\ntitle: 내 것\n", encoding="utf-8")
    done = tiny_run("show", "mine", "--config-dir", str(place.parent), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["title"] == "내 것"


def test_sweep_over_korean_texts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    words = ("recipe=tiny", "run_stages=[warm]", "stages.warm.epochs=1", "tasks.caption.prompt=모양은,색은", "-m")
    done = tiny_run("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recipes = [
        yaml.safe_load((tmp_path / line / "recipe.yaml").read_text(encoding="utf-8")) for line in done.stdout.split("\n\n")[0].split()
    ]
    assert [recipe["tasks"]["caption"]["prompt"] for recipe in recipes] == ["모양은", "색은"]


# ── doctor ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_alone_describes_the_machine(tmp_path: Path) -> None:
    done = run_here("doctor", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("python 3.", "torch ", "memory ", "disk ", f"cache {tmp_path / 'cache'}", "extra timm"):
        assert word in done.stdout


def test_doctor_of_a_recipe(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    tiny.shapes(data, {"train": 6, "val": 2, "test": 3})
    write_table(data / "train.jsonl", [*read_table(data / "train.jsonl"), {"id": "x", "image": "no.png", "caption": "a", "group": "x"}])
    done = tiny_run("doctor", "recipe=tiny", "data.max_bad_fraction=0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert re.search(r"train +6 samples", out)
    assert re.search(r"quarantined +1 rows: missing file", out)
    assert "train/0: Shape:⟦ a red square⟧" in out, "learned tokens, the end of the text among them, are marked"
    assert re.search(r"^connector +full +1,008 +1,008", out, re.MULTILINE)
    assert "every trainable tensor got a gradient" in out
    assert re.search(r"memory: weights .* GiB, gradients and Adam of 17,201 numbers .* GiB, peak so far .* GiB on cpu", out)
    assert out.index("stage warm") < out.index("stage finetune")
    assert not (tmp_path / "runs").exists(), "a check-up writes nothing"


def test_doctor_gives_the_error_that_training_would_give(tmp_path: Path) -> None:
    tiny.shapes(tmp_path / "data", {"train": 4, "val": 2, "test": 2})
    done = tiny_run("doctor", "recipe=tiny", "data.columns.references=captoin", cwd=tmp_path)
    refused(done, 3, "no column 'captoin'", "did you mean 'caption'?")


# ── train ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sweep_runs_each_combination(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    words = ("recipe=tiny", "run_stages=[warm]", "stages.warm.epochs=1", "seed=1,2", "connector=mlp,prefix", "-m")
    done = tiny_run("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / line for line in done.stdout.split("\n\n")[0].split()]  # the table of all runs follows
    assert len(set(runs)) == 4
    recipes = [yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")) for run in runs]
    assert {(recipe["seed"], recipe["connector"]["kind"]) for recipe in recipes} == {(1, "mlp"), (1, "prefix"), (2, "mlp"), (2, "prefix")}
    stages = [json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"] for run in runs]
    assert [{name: facts["status"] for name, facts in run.items()} for run in stages] == [{"warm": "finished"}] * 4
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "runs", "cache"}, "Hydra leaves nothing of its own in the working folder"
    assert {path.parent for path in tmp_path.rglob(".hydra")} == set(runs), "the resolved recipe, where tools around Hydra look for it"


def test_unfinished_run_goes_on_and_fresh_starts_anew(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    stop_before(monkeypatch, 1)
    with pytest.raises(Interrupted):
        run_debug("train", *QUICK, cwd=tmp_path)
    monkeypatch.undo()
    (first,) = (tmp_path / "runs" / "tiny").iterdir()
    fresh = tmp_path / trained(tiny_run("train", *QUICK, "--fresh", cwd=tmp_path))
    assert fresh != first
    assert not json.loads((first / "run.json").read_text(encoding="utf-8"))["finished"]
    done = tiny_run("train", *QUICK, cwd=tmp_path)
    assert tmp_path / trained(done) == first
    assert f"going on with the unfinished run {first.relative_to(tmp_path)}" in done.stderr
    assert rows(first) == rows(fresh) == rows(root / "run")


def test_resume_names_a_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    stop_before(monkeypatch, 1)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_debug("train", *QUICK, "--fresh", cwd=tmp_path)
    monkeypatch.undo()
    older, newer = sorted((tmp_path / "runs" / "tiny").iterdir())
    done = tiny_run("train", *QUICK, "--resume", str(older.relative_to(tmp_path)), cwd=tmp_path)
    assert tmp_path / trained(done) == older
    assert rows(older) == rows(root / "run")
    assert not json.loads((newer / "run.json").read_text(encoding="utf-8"))["finished"]
    before = contents(older / "warm")
    trained(tiny_run("train", *QUICK, "--resume", str(older), cwd=tmp_path))
    assert contents(older / "warm") == before, "a finished run that is resumed stays as it is"


def run_debug(*words: str, cwd: Path) -> CompletedProcess[str]:
    """With `--debug` Hydra hands an exception on as it is."""
    return tiny_run(*words, "--debug", cwd=cwd)


# ── evaluate, report, predict ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_evaluate_prints_and_writes(root: Path) -> None:
    done = tiny_run("evaluate", "run", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "test: 3 samples" in done.stdout
    assert re.search(r" blank .* shuffled .* most .* nearest .*\n.*model.* image .* image .* frequent .* neighbour", done.stdout)
    for word in ("exact_match", "The model "):
        assert word in done.stdout
    page = Path(done.stdout.split("report: ")[1].strip())
    assert (root / page).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    again = tiny_run("report", "run", cwd=root)
    assert again.returncode == 0
    assert Path(again.stdout.strip()) == page


def test_a_table_in_place_of_splits_is_not_asked_for_beside_one(root: Path) -> None:
    done = tiny_run("evaluate", "run", "--split", "val", "--data", "other.jsonl", cwd=root)
    assert done.returncode == 2
    assert "argument --data: not allowed with argument --split" in done.stderr


def test_json_outputs_parse(root: Path) -> None:
    done = tiny_run("evaluate", "run", "--split", "val", "--split", "test", "--json", cwd=root)
    results = json.loads(done.stdout)
    assert list(results) == ["val", "test"]
    assert results["test"] == json.loads((root / "run" / "evaluation" / "test.json").read_text(encoding="utf-8"))
    images = ["data/images/0.png", "data/images/1.png"]
    done = tiny_run("predict", "run", *images, "--json", cwd=root)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == images
    plain = tiny_run("predict", "run", *images, cwd=root)
    assert plain.stdout == "".join(f"{answer['image']}\t{answer['answer']}\n" for answer in answers)


def test_results_alone_stand_on_standard_output(root: Path) -> None:
    """Logs go to standard error, so that a script can read what a verb gives."""
    done = eyegraft("predict", "run", "data/images/0.png", "--json", cwd=root, tiny=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"image", "answer"}
    assert done.stderr == ""


def test_korean_survives_from_table_to_files(tmp_path: Path, folders: Any) -> None:
    """Captions, prompts, ids and file names in Korean: train, evaluate, predict, report."""
    data = tmp_path / "자료"
    tiny.shapes(data, {"train": 6, "val": 2, "test": 3})
    for split in ("train", "val", "test"):
        table = read_table(data / f"{split}.jsonl")
        for row in table:
            _, colour, shape = row["caption"].split()
            (data / row["image"]).rename(data / "images" / f"그림{Path(row['image']).name}")
            row |= {
                "caption": f"{KOREAN[colour]} {KOREAN[shape]}",
                "image": f"images/그림{Path(row['image']).name}",
                "id": f"{split}/가{row['id']}",
            }
        write_table(data / f"{split}.jsonl", table)
    # learned by heart, without a validation split: the answers must be Korean, not noise
    words = (
        "train.tune.head.mode=full",
        "train.learning_rate=0.01",
        "stages.only.epochs=12",
        "evaluation.baselines=[blank_image]",
        "~data.tables.val",
        "data.base_dir=자료",
    )
    run = tmp_path / trained(run_here("train", *small_words(folders, *words, f"tasks.caption.prompt={QUESTION}"), *SMALL, cwd=tmp_path))
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert QUESTION in recipe
    assert "자료" in recipe

    done = run_here("evaluate", str(run), "--split", "train", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"]["prompt"] == QUESTION
    file = run / "evaluation" / "train.samples.jsonl"
    text = file.read_text(encoding="utf-8")
    assert "\\u" not in text, "Korean is written as Korean"
    assert "빨간 사각형" in text
    table = read_table(file)
    answers = {row["answers"]["model"] for row in table}
    assert any(re.search("[가-힣]", answer) for answer in answers), answers
    assert not any("\ufffd" in answer for answer in answers), answers
    assert "빨간 사각형" in Path(run_here("report", str(run), cwd=tmp_path).stdout.strip()).read_text(encoding="utf-8")

    image = table[0]["image"]
    done = eyegraft("predict", str(run), image, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"image": image, "answer": table[0]["answers"]["model"]}
    assert "\\u" not in done.stdout
