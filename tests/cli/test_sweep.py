"""Many runs of one command: `train -m`, `sweep` and `compare` on real runs."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import TESTS, contents, read_table, refused, tiny_run, write_table
from command_line import arguments, environment
from eyegraft.cli._multirun import Outcome, note, noted
from eyegraft.cli.sweep import read_words
from eyegraft.errors import RecipeError
from eyegraft.training.sweep import Choices, Range

QUICK = ("recipe=tiny", "stages.warm.epochs=1", "stages.finetune.epochs=1")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    tiny.shapes(tmp_path / "data", {"train": 6, "val": 2, "test": 3})
    return tmp_path


def runs_in(printed: str) -> list[str]:
    return re.findall(r"^runs/\S+$", printed, re.MULTILINE)


# ── train -m and compare ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_job_stops_no_other_and_finished_ones_are_not_trained_again(root: Path) -> None:
    words = (*QUICK, "seed=0,1", "train.batch_size=0,2", "-m")
    done = tiny_run("train", *words, cwd=root)
    assert done.returncode == 2, done.stderr
    runs = runs_in(done.stdout)
    assert len(runs) == 2
    table = done.stdout.split("\n\n")[1]
    assert re.search(r"^run +seed +seconds +trained +epoch +val_loss ↓", table), table
    assert all(Path(run).name in table for run in runs)
    assert "failed: seed=1 train.batch_size=0: 1 fault in the recipe: - train.batch_size: given 0" in table
    before = contents(root / "runs")

    again = tiny_run("train", *words, cwd=root)
    assert again.returncode == 2
    assert runs_in(again.stdout) == runs
    assert again.stderr.count("finished already") == 2
    assert contents(root / "runs") == before

    rows = read_table(root / "data" / "train.jsonl")
    write_table(root / "data" / "train.jsonl", rows[:-1])
    other = tiny_run("train", *QUICK, "seed=0,1", "-m", cwd=root)
    assert other.returncode == 0, other.stderr
    assert not {*runs_in(other.stdout)} & {*runs}, "runs of other data are no runs of this sweep"
    fresh = tiny_run("train", *QUICK, "seed=0,", "-m", "--fresh", cwd=root)
    assert not {*runs_in(fresh.stdout)} & {*runs, *runs_in(other.stdout)}


def test_jobs_may_run_in_other_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As launchers of Hydra's run them: what they give back comes through files, and silence is no success."""
    outcomes = [Outcome(("seed=0",), root / "runs" / "a"), Outcome(("seed=1", "a=가"), error="no", exit_code=3)]
    for number, outcome in reversed(list(enumerate(outcomes))):
        note(root / "outcomes", number, outcome)
    assert noted(root / "outcomes") == outcomes
    monkeypatch.setattr("eyegraft.cli._hydra.note", lambda *given: None)
    refused(tiny_run("train", *QUICK, "seed=0", "-m", cwd=root), 5, "no job of the sweep reported back", "hydra/launcher")


def test_a_damaged_run_beside_it_is_passed_over(root: Path) -> None:
    words = (*QUICK, "run_stages=[warm]")
    (run,) = runs_in(tiny_run("train", *words, cwd=root).stdout)
    damaged = root / Path(run).parent / "29990101_000000" / "run.json"
    damaged.parent.mkdir()
    for content in ('{"finger', "[]", "{}"):
        damaged.write_text(content)
        for multirun in ((), ("-m",)):
            again = tiny_run("train", *words, *multirun, cwd=root)
            assert again.returncode == 0, again.stderr
            assert runs_in(again.stdout) == [run], "the unfinished run goes on"
            assert re.search(r"passing over runs/\S+/29990101_000000/run.json: it cannot be read", again.stderr)


def test_compare_prints_and_writes(root: Path) -> None:
    runs = runs_in(tiny_run("train", *QUICK, "connector=mlp,prefix", "-m", cwd=root).stdout)
    for run in runs:
        assert tiny_run("evaluate", run, cwd=root).returncode == 0
    done = tiny_run("compare", "runs/tiny", "--csv", "all.csv", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "Nothing is chosen by test results." in done.stdout
    assert "test has 3 samples: too few to tell runs apart." in done.stdout
    found = json.loads(tiny_run("compare", *runs, "--json", cwd=root).stdout)
    assert found["keys"] == ["connector.kind"]
    assert [entry["best"] for entry in found["entries"]] == sorted(entry["best"] for entry in found["entries"])
    assert found["reference"] == found["entries"][0]["run"]
    assert found["entries"][1]["difference"]["low"] is not None
    with (root / "all.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["run"] for row in rows] == [entry["run"] for entry in found["entries"]]
    assert {row["connector.kind"] for row in rows} == {"mlp", "prefix"}
    refused(tiny_run("compare", "data", cwd=root), 5, "no run in this folder")


# ── sweep ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

SEARCH = ("train.learning_rate=1e-4..1e-1:log", "train.batch_size=2..4", "connector=mlp,prefix")


def trials_in(place: Path) -> list[dict[str, Any]]:
    (file,) = place.glob("runs/tiny/sweep-*/sweep.json")
    trials: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["trials"]
    return trials


def test_killed_search_goes_on_to_the_same_trials(root: Path) -> None:
    """Killed within the second trial: that one's run goes on, the first is left alone, and all are as in a search that nobody killed."""
    words = ("recipe=tiny", "stages.warm.epochs=6", "run_stages=[warm]", "train.checkpoint_every=null", "trials=2", *SEARCH)
    process = subprocess.Popen(arguments("sweep", *words, tiny=True), cwd=root, env=environment(), stdout=-3, stderr=-3)
    deadline = time.monotonic() + 60
    while len(list(root.glob("runs/tiny/*/warm/metrics.jsonl"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed = trials_in(root)
    assert [trial["state"] for trial in killed] == ["finished", "running"]
    first = contents(root / killed[0]["run"])

    done = tiny_run("sweep", *words, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "going on with the unfinished run" in done.stderr
    trials = trials_in(root)
    assert [trial["state"] for trial in trials] == ["finished"] * 2
    assert len(list(root.glob("runs/tiny/*/run.json"))) == 2
    assert contents(root / killed[0]["run"]) == first
    best = min(trials, key=lambda trial: trial["value"])
    assert f"best of 2 trials by val_loss ({best['value']:.4f}): {best['run']}" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" ".join(f"{key}={value}" for key, value in best["parameters"].items()))

    whole = root / "whole"
    whole.mkdir()
    (whole / "data").symlink_to(root / "data")
    assert tiny_run("sweep", *words, cwd=whole).returncode == 0
    kept = ("parameters", "value")
    assert [[trial[key] for key in kept] for trial in trials_in(whole)] == [[trial[key] for key in kept] for trial in trials]
    more = tiny_run("sweep", *words, "trials=3", cwd=whole)
    assert len(re.findall(r"trial \d of 3 is finished", more.stderr)) == 2, "more trials of the same search go on behind the old ones"


def test_search_in_which_every_trial_fails(root: Path) -> None:
    done = tiny_run("sweep", *QUICK, "trials=2", "train.learning_rate=1e20..1e30:log", "train.max_grad_norm=null", cwd=root)
    assert done.returncode == 6
    assert "all 2 trials failed; the first: the " in done.stderr
    assert [trial["state"] for trial in trials_in(root)] == ["failed"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trials=2"], "nothing to search"),
        (["train.learning_rate=1e-5..1e-3"], "no number of trials"),
        (["trials=0", "train.learning_rate=1e-5..1e-3"], "trials=0"),
        (["trials=2", "train.learning_rate=1e-3..1e-5"], "a low end below the high end"),
        (["trials=2", "train.learning_rate=0..1e-3:log"], "a low end above 0"),
        (["trials=2", "train.learning_rate=1e-5..1e-3:lug"], "nothing or :log"),
        (["trials=2", "train.learning_rate=1e-5..high"], "a number on either side"),
        (["trials=2", "train.learnin_rate=1e-5..1e-3"], "did you mean 'learning_rate'?"),
        (["trials=2", "head.dropout=0..1", "train.batch_size=0.5..4"], "given 0.5"),
        (["trials=2", "connector=mlp,prefx"], "did you mean 'prefix'?"),
        (["trials=2", "seed=0,1"], "one seed"),
        (["trials=2", "head.dropout=0..0.5", "~data.tables.val"], "a split called val"),
    ],
)
def test_bad_search_is_refused_before_the_first_trial(words: list[str], said: str, tmp_path: Path) -> None:
    refused(tiny_run("sweep", "recipe=tiny", *words, cwd=tmp_path), 2, said)
    assert list(tmp_path.iterdir()) == []


def test_patches_are_searched_on_too(tmp_path: Path) -> None:
    words = ("sweep", "recipe=ta_small", "trials=2", "train.learning_rate=1e-5..1e-3", "data.base_dir=nowhere")
    refused(tiny_run(*words, cwd=tmp_path), 3, "nowhere", "no such folder")  # they have a split to choose by
    refused(tiny_run(*words, "~data.satellite.patches.val", cwd=tmp_path), 2, "a split called val", "set data.satellite.patches.val")


def test_words_of_a_search() -> None:
    overrides, space, num_trials = read_words(
        [
            "tiny",
            "trials=7",
            "a.rate=1e-5..1E-3:log",
            "a.size=2..16",
            "a.shift=-1..+1.5",
            "group=x,y",
            "data.base_dir=../data",
            "tasks.t.prompt=무엇,어디",
            "list=[1,2]",
        ]
    )
    assert overrides == ["recipe=tiny", "data.base_dir=../data", "list=[1,2]"]
    assert num_trials == 7
    assert space == {
        "a.rate": Range(1e-5, 1e-3, log=True),
        "a.size": Range(2, 16),
        "a.shift": Range(-1, 1.5),
        "group": Choices(("x", "y")),
        "tasks.t.prompt": Choices(('"무엇"', '"어디"')),
    }
    assert space["a.size"].whole
    with pytest.raises(RecipeError, match="searched twice"):
        read_words(["tiny", "trials=1", "a=1..2", "a=1,2"])


def test_searches_on_the_page_can_be_typed() -> None:
    """Every end, middle and choice of the page's searches makes a valid recipe."""
    from eyegraft.cli.sweep import typed
    from eyegraft.composition import load_recipe
    from eyegraft.training.sweep import _examples

    page = (TESTS.parent / "docs" / "sweeps.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in re.findall(r"^eyegraft sweep .*$", page, re.MULTILINE)]
    assert commands
    for words in commands:
        (recipe, *overrides), space, _ = read_words(words)
        for parameters in _examples(space):
            load_recipe(recipe.removeprefix("recipe="), *overrides, *typed(parameters))
