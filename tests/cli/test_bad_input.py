"""Whatever is wrong, a person reads one clear error: given, expected, fix; and nothing that lay there is harmed."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import sys
import zlib
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from safetensors.torch import load_file

import tiny
from cli.running import SMALL, contents, read_table, refused, small_words, tiny_run, trained, write_table
from cli.running import run as run_here
from command_line import eyegraft
from eyegraft.training.checkpoints import damage, find_checkpoint

QUICK = ("recipe=tiny", "stages.warm.epochs=1", "stages.finetune.epochs=1")
RECIPE, DATA, PART, RUN, TRAINING = 2, 3, 4, 5, 6  # the exit codes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A working folder with a small data set in `data`."""
    tiny.shapes(tmp_path / "data", {"train": 6, "val": 2, "test": 3})
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one finished run of the quick recipe."""
    root = tmp_path_factory.mktemp("finished")
    tiny.shapes(root / "data", {"train": 6, "val": 2, "test": 3})
    (root / "run").symlink_to(root / trained(tiny_run("train", *QUICK, cwd=root)))
    return root


def train(cwd: Path, *words: str) -> CompletedProcess[str]:
    return tiny_run("train", *QUICK, *words, cwd=cwd)


def only_run(root: Path) -> Path:
    (run,) = (root / "runs" / "tiny").iterdir()
    return run


def bomb(path: Path, side: int = 50_000) -> Path:
    """A PNG of a few bytes that says it is `side` pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b""))
    return path


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unknown_key_in_a_real_process(tmp_path: Path) -> None:
    done = eyegraft("train", "recipe=demo", "train.learing_rate=1", cwd=tmp_path)
    refused(done, RECIPE, "1 fault in the recipe", "train.learing_rate: unknown key", "did you mean 'learning_rate'?", "eyegraft show")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == [], "a recipe that cannot be used leaves nothing behind"


def test_all_faults_at_once(tmp_path: Path) -> None:
    wrong = ("train.learing_rate=1", "data.clumns.image=x", "head.widht=3", "vision_encoder.kind=tiny_patch", "train.batch_size=-1")
    refused(
        train(tmp_path, *wrong, "stages.warm.epochs=many", "train.scheduler_type=cosin", "tasks.caption.kind=captoin"),
        RECIPE,
        "8 faults in the recipe",
        "train.learing_rate: unknown key; expected one of ",
        "did you mean 'learning_rate'?",
        "data.clumns: unknown key",
        "did you mean 'columns'?",
        "head.widht: unknown key",
        "did you mean 'width'?",
        "vision_encoder.kind: given 'tiny_patch'; expected one of ",
        ", tiny_patches; did you mean 'tiny_patches'?",
        "train.batch_size: given -1; expected greater than 0",
        "stages.warm.epochs: given 'many'; expected a valid integer",
        "train.scheduler_type: given 'cosin'; expected 'cosine_warmup'",
        "tasks.caption.kind: given 'captoin'; expected one of caption",
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["recipe=tinny"], ["recipe=tinny", "recipe=NAME with one of ", "did you mean 'tiny'?"]),
        (["recipe=tinny", "-m"], ["recipe=tinny", "did you mean 'tiny'?"]),
        (["recipe=tiny,tinny", "-m"], ["recipe=tinny", "did you mean 'tiny'?"]),
        ([], ["no recipe", "recipe=NAME with one of "]),
        (["recipe=tiny", "connector=mpl"], ["connector=mpl", ", identity, linear, mlp, none, ", "did you mean 'mlp'?"]),
        (["recipe=tiny", "connector=null"], ["connector=null", ", identity, linear, mlp, none, ", "connector=none"]),
        (["recipe=tiny", "head.kind=tiny_grue"], ["head.kind: given 'tiny_grue'", "did you mean 'tiny_gru'?"]),
        (["recipe=tiny", "train.objective.kind=crossentropy"], ["train.objective", "did you mean 'cross_entropy'?"]),
        (["recipe=tiny", "train.epochs=abc"], ["train.epochs: given 'abc'", "expected a valid integer"]),
        (["recipe=tiny", "train.epochs=0"], ["train.epochs: given 0", "expected greater than 0"]),
        (["recipe=tiny", "train.learning_rate=nan"], ["train.learning_rate: given nan", "expected"]),
        (["recipe=tiny", "data.max_bad_fraction=2"], ["data.max_bad_fraction: given 2", "expected less than or equal to 1"]),
        (["recipe=tiny", "train.tune.hed=full"], ["tune: given 'hed'", "did you mean 'head'?"]),
        (["recipe=tiny", "run_stages=[wrm]"], ["run_stages: given 'wrm'", "did you mean 'warm'?"]),
        (["recipe=tiny", "train.epochs=[1"], ["train.epochs=3", "eyegraft show"]),
        (["recipe=tiny", "data.name=???"], ["no value for data.name", "data.name=…"]),
        (["recipe=tiny", "data.split={table: a.csv, fractions: {train: 0.5, test: 0.4}}"], ["data.split", "fractions sum to 0.9"]),
    ],
)
def test_wrong_recipe(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    refused(tiny_run("train", *words, cwd=tmp_path), RECIPE, *expected)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words", [["train", "recipe=tiny", "--frehs"], ["show", "tiny", "--jsn"], ["doctor", "--jsn"], ["evaluate", "x", "--jsn"]]
)
def test_unknown_flag(tmp_path: Path, words: list[str]) -> None:
    done = tiny_run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert f"unrecognized arguments: {words[-1]}" in done.stderr


def test_unknown_plugin_and_config_dir(tmp_path: Path) -> None:
    refused(run_here("recipes", "--plugin", "no_such_package", cwd=tmp_path), PART, "--plugin no_such_package", "importable", "PYTHONPATH")
    refused(
        run_here("recipes", "--config-dir", "nowhere", cwd=tmp_path), RECIPE, "--config-dir nowhere", "recipe/NAME.yaml", "check the path"
    )


def test_unknown_verb(tmp_path: Path) -> None:
    done = eyegraft("trian", "recipe=demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'trian'" in done.stderr
    assert "Traceback" not in done.stderr


def test_early_stopping_that_cannot_work_is_found_before_training(shapes: Path) -> None:
    refused(
        train(shapes, "train.early_stopping.metric=val_exact"),
        RECIPE,
        "early_stopping.metric='val_exact'",
        "did you mean 'val_exact_match'?",
    )
    refused(train(shapes, "~data.tables.val", "train.early_stopping.patience=2"), RECIPE, "without validation data", "data.tables.val")
    assert not list(shapes.glob("runs/*/*/*/checkpoints")), "no step was taken"


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_missing_table(shapes: Path) -> None:
    refused(train(shapes, "data.tables.train=trian.jsonl"), DATA, "trian.jsonl: no such file", "did you mean 'train.jsonl'?")
    refused(train(shapes, "data.base_dir=dat"), DATA, "data.base_dir: 'dat'", "an existing folder", "did you mean 'data'?")


def test_missing_column(shapes: Path) -> None:
    words = ("data.columns.references=captoin", "data.columns.group=case")
    refused(
        train(shapes, *words),
        DATA,
        "data.columns.references: no column 'captoin'",
        "data.columns.group: no column 'case'",
        "did you mean 'caption'?",
    )


def test_empty_table(shapes: Path) -> None:
    (shapes / "data" / "val.jsonl").write_text("", encoding="utf-8")
    refused(train(shapes), DATA, "table val.jsonl: it has no rows", "at least one row")


def test_every_image_unreadable(shapes: Path) -> None:
    for path in (shapes / "data" / "images").iterdir():
        path.write_bytes(b"no picture at all")
    before = contents(shapes / "data")
    refused(train(shapes), DATA, "none of the 11 rows can be used", "11 unreadable image", "not a picture", "quarantine.jsonl")
    named = read_table(only_run(shapes) / "quarantine.jsonl")
    assert [row["id"] for row in named] == [f"train/{n}" for n in range(6)] + ["val/6", "val/7"] + [f"test/{n}" for n in range(8, 11)]
    assert {row["reason"] for row in named} == {"unreadable image"}
    assert all(row["detail"] and row["image"] and row["split"] for row in named)
    assert contents(shapes / "data") == before


def test_some_bad_rows_are_counted_and_left_out(shapes: Path) -> None:
    table = shapes / "data" / "train.jsonl"
    good = read_table(table)
    (shapes / "data" / "images" / "0.png").write_bytes(b"")
    write_table(table, [*good, {**good[1], "id": "gone", "image": "images/gone.png"}, {**good[2], "id": "mute", "caption": " "}])
    words = ("data.max_bad_fraction=0.3", "trackers.tensorboard=false")
    done = train(shapes, *words)
    run = shapes / trained(done)
    assert "3 rows are not used" in done.stderr
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["quarantined"] == {"unreadable image": 1, "missing file": 1, "empty text": 1}
    assert facts["data"]["splits"]["train"]["rows"] == 5
    named = {row["id"]: row["reason"] for row in read_table(run / facts["quarantine_file"])}
    assert named == {"train/0": "unreadable image", "gone": "missing file", "mute": "empty text"}
    shutil.rmtree(shapes / "runs")
    refused(train(shapes), DATA, "3 of 13 rows (23.1%) cannot be used", "data.max_bad_fraction = 1.0%", "train/0")


def test_image_bomb_is_never_decoded(shapes: Path) -> None:
    size = bomb(shapes / "data" / "images" / "0.png").stat().st_size
    assert size < 200
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(train(shapes), DATA, "1 image too large", "2500000000 pixels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2_000_000, "gigabytes were taken for a file of 100 bytes"


def test_leak_between_splits(shapes: Path) -> None:
    shutil.copyfile(shapes / "data" / "images" / "0.png", shapes / "data" / "images" / "10.png")
    refused(train(shapes), DATA, "leak between splits", "images/0.png (train) = images/10.png (test)", "data.split")
    tiny.shapes(shapes / "data", {"train": 6, "val": 2, "test": 3})
    table = shapes / "data" / "val.jsonl"
    write_table(table, [{**row, "group": "g0"} for row in read_table(table)])
    refused(train(shapes), DATA, "leak between splits", "1 group stands in more than one split", "g0 (train) = g0 (val)")


def test_text_longer_than_the_limit(shapes: Path) -> None:
    words = ("tasks.caption.max_text_tokens=22",)
    refused(
        train(shapes, *words),
        DATA,
        "1 of 2 samples cannot be learned from:\n  sample val/7: a text of",
        "at most max_text_tokens=22",
        "tasks.caption.overflow=truncate",
    )
    done = train(shapes, *words, "tasks.caption.overflow=truncate")
    trained(done)
    assert "texts were cut to the limit" in done.stderr


def test_image_and_text_beyond_the_context(shapes: Path, folders: Any) -> None:
    long = " ".join(["red"] * 300)
    table = shapes / "data" / "train.jsonl"
    write_table(table, [{**row, "caption": long} for row in read_table(table)])
    done = run_here("train", *small_words(folders, "tasks.caption.max_text_tokens=4096"), *SMALL, cwd=shapes)
    refused(
        done,
        DATA,
        "6 of 6 samples cannot be learned from",
        "16 image tokens and ",
        "at most 256, the context",
        "tasks.caption.max_text_tokens",
    )


def test_no_pretrained_folder(shapes: Path, folders: Any) -> None:
    words = small_words(folders)
    done = run_here("train", *words[:2], "head.model=no/such-model", *SMALL, cwd=shapes)
    refused(done, PART, "head.model: 'no/such-model' cannot be loaded", "a folder with config.json", "check the name")
    done = run_here("train", *words, "vision_encoder.model=./nowhere", *SMALL, cwd=shapes)
    refused(done, PART, "vision_encoder.model: './nowhere' cannot be loaded", "preprocessor_config.json", "check the name")


# ── the machine and the optimisation ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_full_disk_then_room_again(finished: Path, tmp_path: Path) -> None:
    """The disk is full at the first file, at the first checkpoint, and in the second stage; with room again the same command ends alike."""
    (tmp_path / "data").symlink_to(finished / "data")
    optimizer = (finished / "run" / "warm" / "checkpoints" / "latest" / "optimizer.safetensors").stat().st_size
    for limit, place in ((300, "recipe.yaml"), (4000, "warm/checkpoints/latest"), (optimizer + 200, "finetune/checkpoints/latest")):

        def no_room(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        done = eyegraft("train", *QUICK, cwd=tmp_path, tiny=True, preexec_fn=no_room)
        refused(done, RUN, "no room to write", place, "free some space and run the same command: it goes on from the last whole checkpoint")
    done = eyegraft("train", *QUICK, cwd=tmp_path, tiny=True)
    run = tmp_path / trained(done)
    assert "going on with the unfinished run" in done.stderr
    for stage in ("warm", "finetune"):
        whole, filled = (place / stage / "checkpoints" / "best" for place in (finished / "run", run))
        assert (filled / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_loss_that_is_not_finite(shapes: Path) -> None:
    done = train(shapes, "train.learning_rate=1e30", "stages.warm.learning_rate=1e30", "train.max_grad_norm=null", "stages.warm.epochs=3")
    refused(done, TRAINING, "the loss of stage 'warm' is nan at step ", "train/", "a finite loss", "lower train.learning_rate")
    run = only_run(shapes)
    checkpoint = find_checkpoint(run / "warm" / "checkpoints" / "latest")
    assert checkpoint is not None
    assert damage(checkpoint) is None
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["finished"] is False


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_resume_of_another_recipe(finished: Path) -> None:
    before = contents(finished / "run")
    done = train(finished, "train.learning_rate=0.5", "--resume", "run")
    refused(done, RUN, "--resume run: the recipe differs in", "train.learning_rate (0.01 there, 0.5 here)", "--fresh")
    refused(train(finished, "--resume", "nowhere"), RUN, "nowhere is no run folder", "run.json", "eyegraft train")
    assert contents(finished / "run") == before


def test_finished_run_is_never_overwritten(finished: Path) -> None:
    before = contents(finished / "run")
    again = finished / trained(train(finished))
    assert again.resolve() != (finished / "run").resolve()
    assert contents(finished / "run") == before


@pytest.mark.parametrize("verb", ["evaluate", "predict", "report"])
def test_folder_that_is_no_run(shapes: Path, verb: str) -> None:
    before = contents(shapes)
    images = ["data/images/0.png"] if verb == "predict" else []
    refused(
        tiny_run(verb, "data", *images, cwd=shapes), RUN, "data", "run.json" if verb == "report" else "is no run folder", "eyegraft train"
    )
    assert contents(shapes) == before


def test_folder_above_a_run_names_the_run(finished: Path) -> None:
    refused(
        tiny_run("evaluate", "runs/tiny", cwd=finished),
        RUN,
        "runs/tiny is no run folder",
        f"give one of runs/tiny/{(finished / 'run').resolve().name}",
    )


def test_unknown_split_and_stage(finished: Path) -> None:
    before = contents(finished / "run")
    done = tiny_run("evaluate", "run", "--split", "tset", cwd=finished)
    refused(done, DATA, "no split 'tset'", "one of train, val, test", "did you mean 'test'?")
    refused(tiny_run("evaluate", "run", "--stage", "wram", cwd=finished), RUN, "stage 'wram'", "warm, finetune")
    refused(tiny_run("evaluate", "run", "--data", "other.csv", cwd=finished), DATA, "other.csv: no such file")
    assert contents(finished / "run") == before


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_predict_on_bad_images(finished: Path, tmp_path: Path) -> None:
    good = str(finished / "data" / "images" / "0.png")
    (tmp_path / "words.png").write_text("no picture", encoding="utf-8")
    whole = Path(good).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    bomb(tmp_path / "bomb.png")
    bomb(tmp_path / "large.png", side=11_000)  # less than Pillow itself refuses, more than data.max_pixels
    for name, words in (
        ("gone.png", ["missing file"]),
        ("words.png", ["unreadable image", "not a picture"]),
        ("half.png", ["unreadable image"]),
        ("bomb.png", ["image too large", "2500000000 pixels"]),
        ("large.png", ["image too large", "data.max_pixels = 89,478,485"]),
    ):
        done = tiny_run("predict", "run", good, str(tmp_path / name), cwd=finished)
        refused(done, DATA, f"{name}: ", *words)
        assert done.stdout == "", "nothing is answered when one image is bad"


def test_prompt_beyond_the_context(finished: Path) -> None:
    done = tiny_run("predict", "run", "data/images/0.png", "--prompt", "what? " * 100, cwd=finished)
    refused(done, DATA, "1 prompts leave no room for an answer", "600 text tokens", "fewer than 512 together", "shorten the prompt")
