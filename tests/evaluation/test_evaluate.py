"""What a result holds, and that what it says of blank images is true."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny
from cli.running import TESTS, contents, kept_registry, read_table, tiny_run, write_table
from eyegraft import evaluate, load_recipe, train
from eyegraft.cli.evaluate import _print_samples
from eyegraft.composition import use_config_dir
from eyegraft.errors import DataError, RunError
from eyegraft.evaluation.baselines import shuffled_images as shuffled
from eyegraft.evaluation.conclusions import against_all, against_each, of_intervals
from eyegraft.evaluation.run import _held_out
from eyegraft.registry import use_plugin
from eyegraft.tasks.caption import CaptionTask
from eyegraft.training.runs import read_run
from eyegraft.types import Sample

FIELDS = {"schema", "recipe", "task", "split", "held_out", "num_samples", "data", "checkpoint", "seed", "prompt", "decoding"}
FIELDS |= {"signature", "versions", "num_resamples", "systems", "differences", "conclusions", "samples", "seconds"}
SYSTEMS = ["model", "blank_image", "shuffled_image", "most_frequent", "nearest_neighbour"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))
    use_plugin("tinyparts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluate")
    tiny.shapes(root / "data", {"train": 9, "val": 3, "test": 10})
    places = (f"data.base_dir={root / 'data'}", f"run_root={root / 'runs'}")
    short = ("stages.warm.epochs=2", "stages.finetune.epochs=1", "evaluation.num_resamples=200")
    with kept_registry():
        use_plugin("tinyparts")
        use_config_dir(str(TESTS / "tinyparts" / "conf"))
        return train(load_recipe("tiny", *places, *short, "data.held_out.test=pictures of other sizes"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, so that no test reads what another one wrote."""
    return shutil.copytree(trained, tmp_path / "run")


def data_of(run: Path) -> Path:
    return Path(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["data"]["base_dir"])


def test_result_has_every_field(run: Path) -> None:
    results = evaluate(run)
    assert list(results) == ["test"], "the recipe's evaluation.splits"
    result = results["test"]
    assert result == json.loads((run / "evaluation" / "test.json").read_text(encoding="utf-8"))
    assert set(result) >= FIELDS
    assert (result["schema"], result["recipe"], result["task"], result["split"]) == (1, "tiny", "caption", "test")
    assert (result["held_out"], result["num_samples"], result["seed"]) == ("pictures of other sizes", 10, 0)
    assert result["prompt"] == "Shape:"
    assert result["decoding"] == {"max_new_tokens": 24, "num_beams": 1, "do_sample": False, "template": "auto"}
    assert result["signature"], "metrics say their version"
    assert set(result["data"]) == {"name", "about", "sha256"}
    assert result["data"]["sha256"] == json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]["splits"]["test"]["sha256"]
    assert result["checkpoint"]["path"] == "finetune/checkpoints/best"
    assert result["checkpoint"]["lineage"] == ["warm", "finetune"]
    assert len(result["checkpoint"]["sha256"]) == 64
    assert {"python", "torch", "eyegraft"} <= set(result["versions"])
    assert list(result["systems"]) == SYSTEMS
    assert list(result["differences"]) == SYSTEMS[1:]
    assert len(result["conclusions"]) == 4


def test_samples_file(run: Path) -> None:
    result = evaluate(run)["test"]
    table = read_table(run / "evaluation" / result["samples"])
    assert [row["id"] for row in table] == [f"test/{n}" for n in range(12, 22)]
    for row in table:
        assert list(row["answers"]) == SYSTEMS
        assert Path(row["image"]).is_file()
        assert row["references"]
        assert {*row["scores"], *(f"bleu_{order}" for order in range(1, 5))} == set(result["differences"]["blank_image"])
    for name, values in result["systems"]["model"].items():
        if name in table[0]["scores"]:
            assert math.fsum(row["scores"][name] for row in table) / 10 == pytest.approx(values["value"])
    train = {reference["caption"] for reference in read_table(data_of(run) / "train.jsonl")}
    assert {row["answers"]["nearest_neighbour"] for row in table} <= train
    assert len({row["answers"]["most_frequent"] for row in table}) == 1


def test_intervals_hold_their_value(run: Path) -> None:
    result = evaluate(run)["test"]
    for table in (result["systems"], result["differences"]):
        for system, metrics in table.items():
            for name, entry in metrics.items():
                assert math.isfinite(entry["value"])
                if entry["low"] is not None:
                    assert entry["low"] - 1e-12 <= entry["value"] <= entry["high"] + 1e-12, (system, name)
    assert result["systems"]["model"]["token_f1"]["low"] is not None
    assert result["systems"]["model"]["bleu_4"]["low"] is not None, "of drawn samples BLEU is counted anew"
    assert result["systems"]["model"]["chrf"]["low"] is None, "chrF is no mean over samples, and has no such interval"
    for system, metrics in result["differences"].items():
        for name, entry in metrics.items():
            gap = result["systems"]["model"][name]["value"] - result["systems"][system][name]["value"]
            assert entry["value"] == pytest.approx(gap)


def test_same_again(run: Path) -> None:
    first, second = (evaluate(run)["test"] | {"seconds": 0} for _ in range(2))
    assert first == second


def test_named_splits_and_stage(run: Path) -> None:
    results = evaluate(run, splits=["val", "train"], stage="warm")
    assert list(results) == ["val", "train"]
    assert {result["checkpoint"]["path"] for result in results.values()} == {"warm/checkpoints/best"}
    assert not (run / "evaluation" / "test.json").exists()
    train = results["train"]["systems"]["nearest_neighbour"]["exact_match"]
    assert train["value"] == 1, "every training picture is its own nearest neighbour"
    with pytest.raises(DataError, match="no split 'vall'") as caught:
        evaluate(run, splits=["vall"])
    assert "did you mean 'val'?" in caught.value.fix


def test_what_training_saw_is_not_called_held_out(run: Path) -> None:
    results = evaluate(run, splits=["train", "val", "test"])
    assert results["train"]["held_out"] == "none: training saw these samples"
    assert results["val"]["held_out"] == "none: these samples chose the checkpoint"
    assert results["train"]["conclusions"][0] == "Not held out: training saw these samples."
    assert results["val"]["conclusions"][0] == "Not held out: these samples chose the checkpoint."
    assert not any("Not held out" in sentence for sentence in results["test"]["conclusions"])
    recipe = read_run(run).recipe
    said = recipe.model_copy(update={"data": recipe.data.model_copy(update={"held_out": {"train": "new", "val": "other people"}})})
    assert _held_out(said, "train") == "none: training saw these samples"
    assert _held_out(said, "val") == "other people; but these samples chose the checkpoint"


def test_an_earlier_stage_is_written_beside_the_headline(run: Path) -> None:
    headline = evaluate(run)["test"]
    before = contents(run / "evaluation")
    result = evaluate(run, stage="warm")["test"]
    assert (result["split"], result["samples"]) == ("test", "test@warm.samples.jsonl")
    assert set(contents(run / "evaluation")) - set(before) == {"test@warm.json", "test@warm.samples.jsonl"}
    assert before.items() <= contents(run / "evaluation").items()
    assert json.loads((run / "evaluation" / "test@warm.json").read_text(encoding="utf-8")) == result
    assert evaluate(run, stage="finetune")["test"]["samples"] == headline["samples"], "the last stage, named"


def test_the_command_says_which_checkpoint_and_shows_its_answers(run: Path) -> None:
    done = tiny_run("evaluate", str(run), "--stage", "warm", cwd=run)
    assert done.returncode == 0, done.stderr
    used = json.loads((run / "evaluation" / "test@warm.json").read_text(encoding="utf-8"))["checkpoint"]
    assert f"checkpoint: stage warm, epoch {used['epoch']}, step {used['step']}\n" in done.stdout
    assert "test/12 " in done.stdout


def test_line_separators_within_answers_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "a", "answers": {"model": "one\u2028two\x85three"}, "references": ["one"], "scores": {}}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 2, encoding="utf-8")
    _print_samples(tmp_path / "rows.jsonl")
    assert len(capsys.readouterr().out.split("\n")) == 3


# ── another table ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def other_table(folder: Path, name: str) -> Path:
    """A CSV of three new pictures beside it, one with a text that begins like another's."""
    for number, colour in enumerate(("red", "blue", "green")):
        tiny.picture(folder / f"{number}.png", colour, "circle", side=80 + number)
    lines = [f"{folder / f'{n}.png'},a {colour} circle,other/{n},o{n}" for n, colour in enumerate(("red", "blue", "green"))]
    (folder / name).write_text("\n".join(["image,caption,id,group", *lines]) + "\n", encoding="utf-8")
    return folder / name


def test_another_table(run: Path, tmp_path: Path) -> None:
    evaluate(run)
    before = contents(run / "evaluation")
    results = evaluate(run, table=str(other_table(tmp_path / "new", "their data.csv")))
    assert list(results) == ["their_data"]
    result = results["their_data"]
    assert (result["num_samples"], result["held_out"]) == (3, "")
    assert list(result["systems"]) == SYSTEMS, "the recipe's training split still gives the baselines"
    assert json.loads((run / "evaluation" / "their_data.json").read_text(encoding="utf-8")) == result
    assert before.items() <= contents(run / "evaluation").items(), "what was evaluated before stays"


@pytest.mark.parametrize("name", ["test.csv", "train.csv"])
def test_another_table_that_is_called_like_a_split(run: Path, tmp_path: Path, name: str) -> None:
    evaluate(run)
    before = contents(run / "evaluation")
    ((split, result),) = evaluate(run, table=str(other_table(tmp_path / "new", name))).items()
    assert split == f"{Path(name).stem}-other"
    assert result["held_out"] == "", "what is said of the recipe's own split is not said of this one"
    assert before.items() <= contents(run / "evaluation").items()


def test_another_table_with_training_pictures_is_a_leak(run: Path, tmp_path: Path) -> None:
    table = read_table(data_of(run) / "train.jsonl")
    mixed = write_table(tmp_path / "mixed.jsonl", [{**row, "image": str(data_of(run) / row["image"])} for row in table[:2]])
    with pytest.raises(DataError, match="leak between splits"):
        evaluate(run, table=str(mixed))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("what", ["group", "picture"])
def test_another_table_may_share_nothing_with_training(run: Path, tmp_path: Path, split: str, what: str) -> None:
    table = read_table(data_of(run) / f"{split}.jsonl")[0]
    new = tiny.picture(tmp_path / "new.png", "red", "circle", side=99)
    if what == "picture":
        shutil.copyfile(data_of(run) / table["image"], new)
    group = table["group"] if what == "group" else "new"
    place = write_table(tmp_path / "new.jsonl", [{"image": str(new), "caption": "a shape", "id": "new", "group": group}])
    with pytest.raises(DataError, match=f"leak between splits: new holds 1 of the {what}s of {split}: "):
        evaluate(run, table=str(place))


def test_training_rows_that_became_test_rows_are_refused(run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(data_of(run), tmp_path / "data")
    plain = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    plain["data"]["base_dir"] = str(data)
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
    evaluate(run)
    train, val, test = (read_table(data / f"{split}.jsonl") for split in ("train", "val", "test"))
    write_table(data / "test.jsonl", test[:-1])
    evaluate(run)  # other test rows are nothing that training saw
    write_table(data / "train.jsonl", train[1:])
    write_table(data / "test.jsonl", [*test, train[0]])
    for table in (None, str(other_table(tmp_path / "new", "new.csv"))):
        with pytest.raises(RunError, match="train changed since this run was trained"):
            evaluate(run, table=table)
    write_table(data / "val.jsonl", val[1:])
    with pytest.raises(RunError, match="train and val changed") as caught:
        evaluate(run)
    assert caught.value.expected
    assert caught.value.fix


def test_another_table_where_the_recipe_cuts_its_own(tmp_path: Path) -> None:
    data = tiny.shapes(tmp_path / "data", {"all": 9})
    use_config_dir(str(TESTS / "tinyparts" / "conf"))
    cut = "data.split={table: all.jsonl, fractions: {train: 0.6, val: 0.2, test: 0.2}}"
    words = (cut, "~data.tables", f"data.base_dir={data}", f"run_root={tmp_path / 'runs'}", "run_stages=[warm]", "stages.warm.epochs=1")
    made = train(load_recipe("tiny", *words))
    result = evaluate(made, table=str(other_table(tmp_path / "new", "other.csv")))["other"]
    assert list(result["systems"]) == SYSTEMS, "the training split of the cut gives the baselines"
    assert set(evaluate(made)) == {"test"}
    everything = write_table(tmp_path / "all.jsonl", [{**row, "image": str(data / row["image"])} for row in read_table(data / "all.jsonl")])
    with pytest.raises(DataError, match="of the pictures of train") as caught:
        evaluate(made, table=str(everything))
    assert "of the pictures of val" in caught.value.given


# ── baselines, and what is said of them ──────────────────────────────────────────────────────────────────────────────────────────


def sample(number: int, reference: str) -> Sample:
    return Sample(str(number), Path(f"{number}.png"), f"prompt {number}", (reference,))


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_images_have_no_fixed_points(seed: int) -> None:
    samples = [sample(n, f"answer {n % 3}") for n in range(10)]
    by_image = {item.image: item for item in samples}
    moved = shuffled(samples, seed)
    assert moved == shuffled(samples, seed)
    for before, after in zip(samples, moved, strict=True):
        assert (after.id, after.prompt, after.references) == (before.id, before.prompt, before.references)
        assert after.image != before.image
        assert by_image[after.image].references != before.references


def test_shuffled_images_of_equal_references_still_move() -> None:
    samples = [sample(n, "the same") for n in range(4)]
    assert all(before.image != after.image for before, after in zip(samples, shuffled(samples, 0), strict=True))
    with pytest.raises(DataError, match="1 samples that are all alike"):
        shuffled(samples[:1], 0)


def test_model_that_ignores_the_image_is_said_not_to_beat_blank_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyparts.heads.tiny_gru import TinyGRU

    monkeypatch.setattr(TinyGRU, "_start", lambda self, tokens: torch.zeros(1, tokens.values.shape[0], tokens.values.shape[2]))
    result = evaluate(run)["test"]
    answers = [row["answers"] for row in read_table(run / "evaluation" / "test.samples.jsonl")]
    assert all(row["model"] == row["blank_image"] == row["shuffled_image"] for row in answers)
    for name in ("blank", "shuffled"):
        (sentence,) = [text for text in result["conclusions"] if f"{name} images" in text]
        assert sentence.startswith(f"The model cannot be told apart from the same model on {name} images on exact_match: +0.000 [")
        assert all(entry == {"value": 0, "low": 0, "high": 0} for entry in result["differences"][f"{name}_image"].values())


def test_model_that_reads_the_image_is_said_to_beat_blank_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def oracle(self: CaptionTask, head: Any, tokens: Any, batch: Any) -> list[str]:
        blank = bool((tokens.values == tokens.values[:1]).all())  # the same in every row
        return ["nothing" if blank else item.references[0] for item in batch.samples]

    monkeypatch.setattr(CaptionTask, "answer", oracle)
    result = evaluate(run)["test"]
    assert result["conclusions"][0] == "The model beats the same model on blank images on exact_match by +1.000 [+1.000, +1.000]."
    assert result["systems"]["model"]["exact_match"] == {"value": 1, "low": 1, "high": 1}


def test_fewer_baselines(run: Path) -> None:
    plain = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    plain["evaluation"]["baselines"] = ["most_frequent"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
    assert list(evaluate(run)["test"]["systems"]) == ["model", "most_frequent"]


def gap(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_conclusions_know_the_direction_and_skip_metrics_without_samples() -> None:
    systems = {"model": {"bleu": {}, "rmse": {}, "exact": {}}}
    lower = {"bleu": True, "rmse": False, "exact": True}
    differences = {
        "blank_image": {"rmse": gap(-2, -3, -1), "exact": gap(0, 0, 0)},
        "shuffled_image": {"rmse": gap(2, 1, 3)},
        "most_frequent": {"rmse": gap(0.5, -1, 2)},
    }
    better, worse, neither = against_each(systems, differences, lower, 10)
    assert better == "The model beats the same model on blank images on rmse by +2.000 [+1.000, +3.000]."
    assert worse.startswith("The model loses to the same model on shuffled images on rmse")
    assert neither.startswith("The model cannot be told apart from")
    assert against_each({"model": {"bleu": {}}}, {"blank_image": {}}, {}, 10) == []
    few = against_each(systems, differences, lower, 9)
    assert len(few) == 3
    assert all("too few samples (9) to tell" in text and "beats" not in text and "loses" not in text for text in few)


def numbers(*gaps: tuple[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any], dict[str, bool | None], int]:
    """A model with an RMSE of 2, and what `gaps` say of it less each baseline."""
    systems = {"model": {"rmse": gap(2, 1.9, 2.1)}} | {name: {"rmse": gap(2 - one["value"], 0, 9)} for name, one in gaps}
    return systems, {name: {"rmse": one} for name, one in gaps}, {"rmse": False}, 50


def test_all_baselines_in_one_sentence() -> None:
    better, worse, same = gap(-1, -1.5, -0.5), gap(1, 0.5, 1.5), gap(-0.1, -1, 1)
    (line,) = against_all(*numbers(("blank_image", worse), ("climatology", better), ("ridge", gap(-0.5, -0.7, -0.3))))
    assert line == (
        "The model beats every one of 2 baselines on rmse: 2.000 [1.900, 2.100] against 2.500 [0.000, 9.000] of the best of them, "
        "ridge regression on columns."
    ), "the model itself on blank images is no baseline"
    (line,) = against_all(*numbers(("climatology", better), ("ridge", worse), ("boosting", worse), ("most_frequent", same)))
    assert "does not beat every baseline on rmse: it beats 1 of 4, loses to ridge regression on columns and boosted trees" in line
    assert ", cannot be told apart from 1 more; " in line
    (line,) = against_all(*numbers(("climatology", better), ("ridge", same)))
    assert "it beats 1 of 2, cannot be told apart from the others; " in line
    assert against_all(*numbers(("blank_image", better))) == []
    assert against_all(*numbers(("ridge", better))[:3], 9) == [], "too few samples"
    assert against_all(*numbers(("ridge", gap(-1, None, None)))) == []


def test_what_intervals_cover_is_held_against_what_they_promise() -> None:
    narrow, wide, right, alone = (
        of_intervals({"interval_coverage": entry}, 0.9)[0]
        for entry in (gap(0.7, 0.6, 0.8), gap(0.97, 0.95, 0.99), gap(0.91, 0.85, 0.95), gap(0.7, None, None))
    )
    assert narrow == "Intervals that are to cover 90 % of new samples cover 70.0 % [60.0, 80.0] of these: too narrow here."
    assert wide.endswith("97.0 % [95.0, 99.0] of these: wider than need be.")
    assert right.endswith("91.0 % [85.0, 95.0] of these.")
    assert alone.endswith("70.0 % of these.")
    assert of_intervals({}, 0.9) == of_intervals({"interval_coverage": gap(0.9, 0.8, 1)}, None) == []


def test_one_image_has_no_shuffled_baseline(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = other_table(tmp_path / "new", "one.csv")
    table.write_text("".join(table.read_text(encoding="utf-8").splitlines(keepends=True)[:2]), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="eyegraft"):
        result = evaluate(run, table=str(table))["one"]
    assert list(result["systems"]) == [system for system in SYSTEMS if system != "shuffled_image"]
    assert "fewer than two images, so no baseline shuffled_image" in caplog.text
