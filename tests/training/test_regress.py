"""Numbers from pictures, from training to the page: the mean brightness of a picture is a temperature."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import eyegraft.training
from cli.running import run
from eyegraft.composition import validate
from eyegraft.config import Recipe
from eyegraft.errors import DataError, RecipeError
from eyegraft.evaluation import evaluate
from eyegraft.report import write_report
from eyegraft.serving import load_run
from eyegraft.training.checkup import check_recipe

COUNTS = {"train": 64, "val": 24, "test": 24}


def draw(folder: Path) -> Path:
    """Grey noise of different brightness; `<split>.csv` says how warm each picture is and which station took it."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        rows = []
        for place in range(count):
            noise = np.repeat(np.repeat(rng.uniform(-40, 40, (8, 8, 1)), 4, 0), 4, 1) + rng.uniform(45, 210)
            pixels = np.repeat(noise.clip(0, 255).astype(np.uint8), 3, 2)
            name = f"images/{split}-{place}.png"
            Image.fromarray(pixels).save(folder / name)
            kelvin = 260 + 0.15 * float(pixels.mean())
            rows.append(
                {"id": f"{split}/{place}", "image": name, "ta": f"{kelvin:.3f}", "stn": f"{split}-{place // 2}", "season": place % 2}
            )
        write(folder / f"{split}.csv", rows)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    draw(folder / "data")
    return folder


@pytest.fixture(scope="module")
def recipe(place: Path, plain_recipe: Callable[..., dict[str, Any]]) -> Callable[..., Recipe]:
    def made(*, data: Path = place / "data", distribution: str = "point", **train: Any) -> Recipe:
        plain = plain_recipe(
            run_root=str(place / "runs"),
            num_threads=1,
            pooling={"kind": "mean"},
            connector=None,
            fusion={"kind": "concat"},
            head={"kind": "regressor", "hidden_dim": 32},
            data={
                "name": "brightness",
                "base_dir": str(data),
                "tables": {split: f"{split}.csv" for split in COUNTS},
                "columns": {"references": "ta", "id": "id", "group": "stn", "meta": ["season"]},
            },
            tasks={"ta": {"kind": "regress", "target": "ta", "unit": "K", "distribution": distribution}},
            train={
                "epochs": 6,
                "batch_size": 16,
                "learning_rate": 0.01,
                "tune": {"vision_encoder": "full"},
                "early_stopping": {"metric": "val_rmse_kelvin"},
                **train,
            },
            stages={"numbers": {}},
            evaluation={"num_resamples": 200, "slices": ["season"]},
        )
        return validate(plain)

    return made


@pytest.fixture(scope="module", params=["point", "gaussian"])
def finished(request: pytest.FixtureRequest, recipe: Callable[..., Recipe]) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of either kind, and what its evaluation says of the test split."""
    folder = eyegraft.training.train(recipe(distribution=request.param), fresh=True)
    return folder, evaluate(folder)["test"]


def kelvin(rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.array([float(row["ta"]) for row in rows])


def facts(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_it_beats_who_does_not_look(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    assert result["systems"]["model"]["rmse_kelvin"]["high"] < result["systems"]["most_frequent"]["rmse_kelvin"]["low"]
    gap = result["differences"]["most_frequent"]["rmse_kelvin"]
    assert gap["high"] < 0, "paired, on the same draws of stations"
    assert result["resampled"] == "12 of stn, each with all its samples"
    assert any(line.startswith("The model beats the best answer without looking on rmse_kelvin by +") for line in result["conclusions"])
    assert "Validation alone chose the checkpoint, by val_rmse_kelvin, and intervals." in result["conclusions"]
    assert result["higher_is_better"]["bias_kelvin"] is None
    assert {entry["num_samples"] for entry in result["slices"]["season"].values()} == {12}
    assert result["slices"]["season"]["0"]["metrics"]["bias_kelvin"]["low"] is not None


def test_the_scale_is_that_of_the_training_split(finished: tuple[Path, dict[str, Any]], place: Path) -> None:
    folder, result = finished
    train = kelvin(read(place / "data" / "train.csv"))
    learned = facts(folder)["stages"]["numbers"]["learned"]
    assert learned == {"mean": pytest.approx(train.mean()), "std": pytest.approx(train.std()), "num_samples": 64}
    assert result["details"]["training"] == learned
    model = {name: entry["value"] for name, entry in result["systems"]["model"].items()}
    assert model["rmse_kelvin"] == pytest.approx(model["rmse_norm"] * learned["std"])
    lines = (folder / "numbers" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "val"]
    assert all(row["val_rmse_kelvin"] == pytest.approx(row["val_rmse_norm"] * learned["std"]) for row in rows)


def test_what_a_script_reads(finished: tuple[Path, dict[str, Any]], place: Path) -> None:
    folder, result = finished
    rows = json.loads((folder / "test_predictions.json").read_text(encoding="utf-8"))
    truth = kelvin(read(place / "data" / "test.csv"))
    assert all(list(row) == ["id", "path", "gt", "pred", "unit", "std", "low", "high"] for row in rows)
    assert [row["gt"] for row in rows] == truth.tolist()
    errors = np.array([row["pred"] for row in rows]) - truth
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["rmse_kelvin"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert results["bias_kelvin"] == pytest.approx(errors.mean())
    assert results["loss"] == pytest.approx((errors**2).mean() / facts(folder)["stages"]["numbers"]["learned"]["std"] ** 2)
    inside = [row["low"] <= row["gt"] <= row["high"] for row in rows]
    assert results["interval_coverage"] == pytest.approx(np.mean(inside))
    assert np.mean(inside) > 0.5
    widths = {round(row["high"] - row["low"], 9) for row in rows}
    if rows[0]["std"] is None:
        assert len(widths) == 1
    else:
        assert len(widths) > 12
    assert result["details"]["intervals"]["num_samples"] == 24


def test_a_reloaded_run_answers_in_kelvin(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    rows = json.loads((folder / "test_predictions.json").read_text(encoding="utf-8"))[:3]
    answers = load_run(folder).predict([row["path"] for row in rows])
    assert [answer["value"] for answer in answers] == pytest.approx([row["pred"] for row in rows], rel=1e-5)
    assert [answer["interval"] for answer in answers] == [pytest.approx([row["low"], row["high"]], rel=1e-5) for row in rows]
    said = run("predict", str(folder), rows[0]["path"], cwd=folder).stdout.split("\t")[1]
    assert said.startswith(f"{answers[0]['value']:.6g} K (")
    assert f" to {answers[0]['interval'][1]:.6g})" in said


def test_the_page_begins_with_the_worst(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    page = " ".join(write_report(folder).read_text(encoding="utf-8").split())
    rows = json.loads((folder / "test_predictions.json").read_text(encoding="utf-8"))
    worst = sorted(rows, key=lambda row: -abs(row["pred"] - row["gt"]))
    cards = page[page.index('class="cards"') :]
    places = [cards.index(f'<p class="id mono">{row["id"]}</p>') for row in worst]
    assert places == sorted(places)
    error = worst[0]["pred"] - worst[0]["gt"]
    assert any(f"{error:+.{decimals}f}".replace("-", "\N{MINUS SIGN}") in cards[: places[0]] for decimals in (1, 2))
    assert '<th scope="col">bias (K)</th>' in page, "no arrow: a bias is best at zero"
    assert "RMSE (K), lower is better" in page
    assert "Without looking: the mean of the training values, always" in page


def test_other_truths_in_test_change_no_weight_and_no_scale(recipe: Callable[..., Recipe], place: Path) -> None:
    other = place / "other"
    other.mkdir()
    (other / "images").symlink_to(place / "data" / "images")
    for split in COUNTS:
        rows = read(place / "data" / f"{split}.csv")
        write(other / f"{split}.csv", [{**row, "ta": float(row["ta"]) + 1000 * (split == "test")} for row in rows])
    runs = [eyegraft.training.train(recipe(data=data, max_steps=3), fresh=True) for data in (place / "data", other)]
    first, second = ((run / "numbers" / "checkpoints" / "best" / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    stages = [facts(run)["stages"]["numbers"] for run in runs]
    assert stages[0]["learned"] == stages[1]["learned"]
    assert stages[0]["decision"] == stages[1]["decision"] != {}
    for name in ("interval_coverage", "bias_kelvin"):
        values = [evaluate(run)["test"]["systems"]["model"][name]["value"] for run in runs]
        assert values[0] - values[1] == pytest.approx({"bias_kelvin": 1000, "interval_coverage": values[0]}[name])


def test_every_unusable_number_stops_the_run_before_it_trains(recipe: Callable[..., Recipe], place: Path) -> None:
    bad = place / "bad"
    bad.mkdir()
    (bad / "images").symlink_to(place / "data" / "images")
    for split in COUNTS:
        rows = read(place / "data" / f"{split}.csv")
        rows[3]["ta"] = {"train": "NaN", "val": "inf", "test": "12,5"}[split]
        write(bad / f"{split}.csv", rows)
    with pytest.raises(DataError) as caught:
        eyegraft.training.train(recipe(data=bad), fresh=True)
    for split, cell in (("train", "NaN"), ("val", "inf"), ("test", "12,5")):
        assert f"sample {split}/3: ta is '{cell}'" in caught.value.given
    assert "train/4" not in caught.value.given


def test_the_doctor_shows_the_scale(recipe: Callable[..., Recipe], place: Path) -> None:
    train = kelvin(read(place / "data" / "train.csv"))
    lines = list(check_recipe(recipe(distribution="gaussian")))
    assert f"training targets: mean {train.mean():.6g}, std {train.std():.6g}, num_samples 64" in lines
    assert not [line for line in lines if line.startswith("labels:")]


def test_a_point_knows_no_likelihood(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"loss_type=gaussian_nll with tasks\.ta") as caught:
        eyegraft.training.train(recipe(loss_type="gaussian_nll"), fresh=True)
    assert caught.value.expected == "one of mse, huber"
