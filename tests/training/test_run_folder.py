"""What a run's folder holds, how runs of an older layout are read, and how a stage starts from another run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from cli.running import Interrupted, contents, read_table, refused, rows, stop_before, tensors, tiny_run, trained, write_table
from eyegraft import load_run
from eyegraft.console import log_to, progress
from eyegraft.errors import RunError
from eyegraft.evaluation.compare import compare_runs
from eyegraft.registry import use_plugin
from eyegraft.training.checkpoints import FINAL, checkpoints_of, keep_final
from eyegraft.training.runs import needed_stages, read_place, read_run

REFUSED = RunError.exit_code
THREE = """# @package _global_
defaults:
  - override /vision_encoder: tiny_patches
  - override /head: tiny_gru
recipe: three
experiment_name: three
num_threads: 1
data:
  name: shapes
  tables: {train: train.jsonl, val: val.jsonl, test: test.jsonl}
  base_dir: data
  columns: {image: image, references: caption, id: id, group: group}
  near_duplicates: allow
tasks:
  caption: {kind: caption, prompt: "Shape:", max_new_tokens: 4}
train: {batch_size: 4, learning_rate: 0.01}
stages: {vision: {}, resampler: {}, finetune: {}}
"""


@pytest.fixture(autouse=True)
def _own_cache_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    use_plugin("tinyparts")


def eyegraft(verb: str, *words: str, cwd: Path) -> CompletedProcess[str]:
    return tiny_run(verb, *words, "--config-dir", str(cwd / "conf"), cwd=cwd)


def train(cwd: Path, *words: str) -> CompletedProcess[str]:
    return eyegraft("train", "recipe=three", *words, cwd=cwd)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data, a recipe of three stages, and `whole`, a run of them all."""
    place = tmp_path_factory.mktemp("folder")
    tiny.shapes(place / "data", {"train": 8, "val": 3, "test": 3})
    (place / "conf" / "recipe").mkdir(parents=True)
    (place / "conf" / "recipe" / "three.yaml").write_text(THREE, encoding="utf-8")
    (place / "whole").symlink_to(place / trained(train(place)))
    return place


@pytest.fixture
def here(root: Path, tmp_path: Path) -> Path:
    """A working folder of one test, with the same data and recipe."""
    for name in ("data", "conf"):
        (tmp_path / name).symlink_to(root / name)
    return tmp_path


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return found


def best(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoints_of(run / stage) / "best" / "model.safetensors")


def lineage(run: Path, stage: str) -> list[str]:
    config = json.loads((checkpoints_of(run / stage) / "best" / "config.json").read_text(encoding="utf-8"))
    return list(config["lineage"])


# ── checkpoints and what a stage ends with ───────────────────────────────────────────────────────────────────────────────────────


def test_stage_folder(root: Path) -> None:
    for stage in ("vision", "resampler", "finetune"):
        folder = root / "whole" / stage
        assert {path.name for path in folder.iterdir()} == {"checkpoints", "metrics.jsonl", "samples.jsonl", FINAL}
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best", "latest"}
        assert (folder / FINAL).read_bytes() == (folder / "checkpoints" / "best" / "model.safetensors").read_bytes()


def test_final_weights_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems that know no links they are copied; an older one is replaced, and no draft stays."""
    (tmp_path / "best").mkdir()
    for content in (b"first", b"second"):
        (tmp_path / "best" / "model.safetensors").unlink(missing_ok=True)
        (tmp_path / "best" / "model.safetensors").write_bytes(content)
        keep_final(tmp_path, tmp_path / "best")
        keep_final(tmp_path, tmp_path / "best")
        assert (tmp_path / FINAL).read_bytes() == content
        monkeypatch.setattr("os.link", lambda source, target: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    assert {path.name for path in tmp_path.iterdir()} == {"best", FINAL}
    assert (tmp_path / FINAL).stat().st_nlink == 1


def older(run: Path, target: Path, *stages: str) -> Path:
    """The run with the checkpoints of stages in the stages' own folders, as they once were."""
    shutil.copytree(run, target)
    for stage in stages:
        (target / stage / FINAL).unlink(missing_ok=True)
        for folder in list((target / stage / "checkpoints").iterdir()):
            folder.rename(target / stage / folder.name)
        (target / stage / "checkpoints").rmdir()
    return target


def test_finished_runs_of_the_older_layout_are_read(root: Path, here: Path) -> None:
    run = older((root / "whole").resolve(), here / "old", "vision", "resampler", "finetune")
    assert eyegraft("evaluate", "old", "--stage", "resampler", cwd=here).returncode == 0
    result = json.loads((run / "evaluation" / "test@resampler.json").read_text(encoding="utf-8"))
    assert result["checkpoint"]["path"] == "resampler/best"
    answers = [eyegraft("predict", str(place), "data/images/0.png", cwd=here).stdout for place in (run, root / "whole")]
    assert answers[0] == answers[1] != ""
    assert [entry.best for entry in compare_runs([run]).entries] == [entry.best for entry in compare_runs([root / "whole"]).entries]
    again = here / trained(train(here, "run_stages=[finetune]", "train.init_from=old/vision/best"))
    assert lineage(again, "finetune") == [f"{run.parent.name}/old/vision", "finetune"]


def test_unfinished_runs_of_the_older_layout_go_on(root: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train.epochs=2", "train.checkpoint_every=1")
    whole = here / trained(train(here, *words, "experiment_name=apart", "run_root=apart"))
    with monkeypatch.context() as patched:
        stop_before(patched, 3, "resampler")
        with pytest.raises(Interrupted):
            train(here, *words, "experiment_name=apart", "--debug")
    (begun,) = (here / "runs" / "apart").iterdir()
    run = older(begun, here / "moved", "vision", "resampler")
    shutil.rmtree(begun)
    run.rename(begun)
    done = train(here, *words, "experiment_name=apart")
    assert here / trained(done) == begun
    assert f"going on from {Path('runs') / 'apart' / begun.name / 'resampler' / 'latest'}: epoch 2, step 3" in done.stderr
    assert rows(begun) == rows(whole)
    assert not (begun / "resampler" / "checkpoints").exists(), "a stage keeps to one place"
    assert (begun / "finetune" / "checkpoints" / "best").is_dir()
    by_name = [{name.replace("checkpoints/", ""): content for name, content in tensors(one).items()} for one in (begun, whole)]
    assert by_name[0] == {name: content for name, content in by_name[1].items() if name != f"vision/{FINAL}"}


# ── log files ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) *")


def logs(run: Path, name: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((run / "logs").glob(f"{name}_*.log"))]


def without_stamps(text: str) -> list[str]:
    assert all(STAMP.match(line) for line in text.splitlines()), text
    return [STAMP.sub("", line, count=1) for line in text.splitlines()]


def test_log_files_say_what_the_console_says(here: Path) -> None:
    done = train(here)
    run = here / trained(done)
    assert all(re.fullmatch(r"(train|vision|resampler|finetune)_\d{8}_\d{6}\.log", path.name) for path in (run / "logs").iterdir())
    (command,) = logs(run, "train")
    lines = without_stamps(command)
    said = [line.rstrip() for line in done.stderr.splitlines()]
    assert lines == said[said.index(lines[0]) :]
    (stage,) = logs(run, "resampler")
    assert lines[lines.index(without_stamps(stage)[0]) :][: len(stage.splitlines())] == without_stamps(stage)
    assert "stage vision" not in stage
    assert any("val_loss" in line for line in without_stamps(stage))


def test_a_failure_is_kept_with_its_traceback_and_a_resumed_run_has_its_own_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(here, "train.learning_rate=1e30", "train.max_grad_norm=null", "train.epochs=4")
    assert done.returncode == 6
    (run,) = (here / "runs" / "three").iterdir()
    for text in (*logs(run, "train"), *logs(run, "vision")):
        kept = "\n".join(without_stamps(text))
        assert "Traceback (most recent call last):" in kept
        assert "eyegraft.errors.TrainingError: the " in kept
        assert "lower train.learning_rate" in kept
    names = {path.name for path in (run / "logs").iterdir()}
    monkeypatch.setattr("eyegraft.training.runs.datetime", _Later)
    train(here, "train.learning_rate=1e30", "train.max_grad_norm=null", "train.epochs=4")
    assert {path.name for path in (run / "logs").iterdir()} - names == {"train_20990101_000000.log", "vision_20990101_000000.log"}


def test_what_cannot_begin_leaves_no_folder(here: Path) -> None:
    """Unless there is something to look at in it: a list of bad rows."""
    for words, code in ((("data.tables.train=none.jsonl",), 3), (("stages.resampler.early_stopping.metric=val_x",), 2)):
        assert train(here, "experiment_name=fails", *words).returncode == code
        assert not (here / "runs" / "fails").exists()
    write_table(here / "bad.jsonl", [{**row, "image": "nowhere.png"} for row in read_table(here / "data" / "train.jsonl")])
    bad = ("experiment_name=fails", f"data.tables.train={here / 'bad.jsonl'}")
    assert train(here, *bad).returncode == 3
    (run,) = (here / "runs" / "fails").iterdir()
    assert {row["reason"] for row in read_table(run / "quarantine.jsonl")} == {"missing file"}
    assert train(here, *bad).returncode == 3, "the same command goes on with it"
    assert list((here / "runs" / "fails").iterdir()) == [run]


class _Later:
    @staticmethod
    def now() -> Any:
        from datetime import datetime

        return datetime(2099, 1, 1)


def test_quiet_commands_keep_all(here: Path) -> None:
    done = eyegraft("train", "recipe=three", "run_stages=[vision]", "--quiet", cwd=here)
    run = here / trained(done)
    assert "val_loss" not in done.stderr
    assert "val_loss" in logs(run, "train")[0]


def test_log_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing stops for want of a log; in letters of any language."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    log = logging.getLogger("eyegraft.tests")
    with log_to(tmp_path / "file" / "a.log"):
        log.info("lost")

    def fail() -> None:
        with log_to(tmp_path / "c.log"):
            log.info("로그\nhalf of a pair \ud83d")
            logging.getLogger("other").info("no word of other packages")
            raise ZeroDivisionError("division by zero")

    with log_to(tmp_path / "b.log"), pytest.raises(ZeroDivisionError):
        fail()
    assert without_stamps((tmp_path / "b.log").read_text(encoding="utf-8")) == ["로그", "half of a pair \\ud83d"]
    assert without_stamps((tmp_path / "c.log").read_text(encoding="utf-8"))[-1] == "ZeroDivisionError: division by zero"
    assert not logging.getLogger("eyegraft").isEnabledFor(logging.DEBUG)


def test_long_things_leave_a_line_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("eyegraft.console.time.monotonic", lambda: float(next(clock)))
    with log_to(tmp_path / "a.log"), progress("decoding", 6) as advance:
        for _ in range(6):
            advance(note="loss 1")
    kept = without_stamps((tmp_path / "a.log").read_text(encoding="utf-8"))
    assert kept == ["decoding: 3/6 after 75 s loss 1", "decoding: 6/6 after 150 s loss 1"]


# ── where a stage starts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_later_stage_alone_starts_from_another_run(root: Path, here: Path) -> None:
    """The stages before it are not trained, its run is finished with it, and the same command then starts a new run."""
    words = ("run_stages=[finetune]", f"train.init_from={root / 'whole'}", "train.learning_rate=1e-12")
    done = train(here, *words)
    run = here / trained(done)
    assert f"stage finetune from {root / 'whole' / 'finetune' / 'checkpoints' / 'best'}" in done.stderr
    assert set(facts(run)["stages"]) == {"finetune"}
    assert facts(run)["finished"] is True
    assert not (run / "vision").exists()
    assert not (run / "resampler").exists()
    there, now = best(root / "whole", "finetune"), best(run, "finetune")
    assert max(float((there[name] - now[name]).abs().max()) for name in there) < 1e-9
    assert [name.rsplit("/", 1)[-1] for name in lineage(run, "finetune")] == ["vision", "resampler", "finetune", "finetune"]
    assert [entry.marks for entry in compare_runs([run]).entries] == [()]
    assert here / trained(train(here, *words)) != run


@pytest.mark.parametrize("inside", ["vision", "vision/checkpoints", "vision/checkpoints/best", f"vision/{FINAL}"])
def test_a_stage_of_another_run(root: Path, inside: str) -> None:
    opened, stage, which = read_place(root / "whole" / inside)
    assert (opened.folder, stage, which) == (root / "whole", "vision", "best")


def test_a_stage_after_the_one_that_started_elsewhere(root: Path, here: Path) -> None:
    words = (f"train.init_from={root / 'whole' / 'vision'}",)
    first = here / trained(train(here, *words, "run_stages=[resampler]"))
    assert facts(first)["finished"] is False
    done = train(here, *words)
    assert here / trained(done) == first
    assert "stage vision is left out: a later stage of this run started from another run" in done.stderr
    assert set(facts(first)["stages"]) == {"resampler", "finetune"}
    assert [name.rsplit("/", 1)[-1] for name in lineage(first, "finetune")] == ["vision", "resampler", "finetune"]
    assert facts(first)["finished"] is True


def test_one_stage_then_the_rest(root: Path, here: Path) -> None:
    first = here / trained(train(here, "run_stages=[vision]"))
    assert set(facts(first)["stages"]) == {"vision"}
    assert here / trained(train(here)) == first
    for stage in ("vision", "resampler", "finetune"):
        assert all(torch.equal(tensor, best(root / "whole", stage)[name]) for name, tensor in best(first, stage).items())


def test_a_missing_start_is_said_before_the_first_stage_trains(root: Path, here: Path) -> None:
    gap = train(here, "run_stages=[vision,finetune]")
    refused(gap, REFUSED, "stage 'finetune' starts from 'resampler', which this run has not trained", "train.init_from=RUN")
    later = train(here, "+stages.finetune.init_from=nowhere")
    refused(later, REFUSED, "stages.finetune.init_from: nowhere is no run folder", "eyegraft train")
    unknown = train(here, f"train.init_from={root / 'whole' / 'visio'}")
    refused(unknown, REFUSED, "train.init_from: ", "has no stage 'visio'", "did you mean 'vision'?")
    file = train(here, f"train.init_from={root / 'whole' / 'vision' / 'metrics.jsonl'}")
    refused(file, REFUSED, "is no checkpoint of", "a run, a stage of it, or best or latest of a stage")
    assert not list(here.rglob("metrics.jsonl"))


def test_doctor_looks_at_the_start_too(root: Path, here: Path) -> None:
    done = eyegraft("doctor", "recipe=three", f"train.init_from={root / 'whole' / 'vision'}", cwd=here)
    assert f"the first stage starts from {root / 'whole' / 'vision' / 'checkpoints' / 'best'}" in done.stdout
    refused(eyegraft("doctor", "recipe=three", "train.init_from=nowhere", cwd=here), REFUSED, "train.init_from: nowhere is no run folder")
    for verb in ("doctor", "train"):
        wider = eyegraft(verb, "recipe=three", f"train.init_from={root / 'whole'}", "head.width=32", cwd=here)
        refused(wider, REFUSED, "does not fit this model: connectors.image", "init_from=RUN/STAGE")


def test_a_begun_stage_needs_its_start_no_more(root: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree((root / "whole").resolve(), here / "other")
    words = ("train.init_from=other", "train.checkpoint_every=1", "run_stages=[finetune]")
    with monkeypatch.context() as patched:
        stop_before(patched, 1)
        with pytest.raises(Interrupted):
            train(here, *words, "--debug")
    shutil.rmtree(here / "other")
    assert facts(here / trained(train(here, *words)))["finished"] is True


@pytest.mark.parametrize(
    ("started", "needed"), [((), "abc"), (("a",), "abc"), (("c",), "c"), (("b",), "bc"), (("a", "b", "c"), "abc"), (("a", "c"), "ac")]
)
def test_needed_stages(started: tuple[str, ...], needed: str) -> None:
    assert needed_stages("abc", started) == tuple(needed)


# ── a stage or checkpoint by its path ────────────────────────────────────────────────────────────────────────────────────────────


def test_predictor_of_a_stage(root: Path) -> None:
    whole = root / "whole"
    assert load_run(whole / "vision").checkpoint == whole / "vision" / "checkpoints" / "best"
    assert load_run(whole / "vision" / "checkpoints" / "latest").checkpoint == whole / "vision" / "checkpoints" / "latest"
    with pytest.raises(RunError, match="which is of stage 'vision'"):
        load_run(whole / "vision", stage="finetune")


def test_unknown_stage_and_part_of_a_run(root: Path) -> None:
    before = contents((root / "whole").resolve())
    refused(eyegraft("evaluate", "whole", "--stage", "resample", cwd=root), REFUSED, "has no stage 'resample'", "did you mean 'resampler'?")
    refused(eyegraft("evaluate", "whole/vision", cwd=root), REFUSED, "is no run folder", "which it is a part of")
    assert contents((root / "whole").resolve()) == before
    assert read_run(root / "whole").needed == ("vision", "resampler", "finetune")
