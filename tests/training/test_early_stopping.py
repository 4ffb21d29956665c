"""What chooses the best checkpoint is there: known before the first step where it can be, and no crash where it is missing later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from cli.running import TINY, kept_registry, read_table, rows, write_table
from eyegraft import load_recipe, train
from eyegraft.composition import use_config_dir
from eyegraft.errors import DataError
from eyegraft.registry import use_plugin
from eyegraft.training.loop import StageTrainer
from serving import weather_run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "cache"))


def test_a_score_of_facts_where_no_row_states_any(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        weather_run.trained(tmp_path, "train.early_stopping.metric=val_summary_fact_score")
    said = str(caught.value)
    assert "stages.all.early_stopping.metric=val_summary_fact_score, which these 10 samples of the validation split do not give" in said
    assert "val_summary_rouge_l" in said
    assert "val_summary_fact" not in caught.value.expected
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_the_loss_of_a_task_that_validation_has_no_row_of(tmp_path: Path) -> None:
    with kept_registry():
        recipe = weather_run.recipe(tmp_path, "train.early_stopping.metric=val_loss_text_summary")
        table = tmp_path / "data" / "val.jsonl"
        write_table(table, [{"captions": None, **row} for row in read_table(table) if row["task"] != "text_summary"])
        with pytest.raises(DataError, match="val_loss_text_summary, which these 9 samples") as caught:
            train(recipe)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert "val_loss_element_caption, val_loss_summary, val_loss_link, val_" in caught.value.expected


def test_a_metric_that_one_epoch_leaves_undefined_chooses_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.shapes(tmp_path / "data", {"train": 6, "val": 2, "test": 1})
    whole, seen = StageTrainer._validate, list[int]()

    def undefined_at_first(self: StageTrainer, **how: bool) -> dict[str, float]:
        seen.append(1)
        values: dict[str, Any] = whole(self, **how)
        return values if len(seen) > 2 else {name: value for name, value in values.items() if name != "val_token_f1"}

    monkeypatch.setattr(StageTrainer, "_validate", undefined_at_first)
    with kept_registry():
        use_plugin("tinyparts")
        use_config_dir(TINY[-1])
        words = ("train.early_stopping.metric=val_token_f1", "stages.warm.epochs=3", "run_stages=[warm]", "stages.warm.learning_rate=1e-4")
        run = train(load_recipe("tiny", f"data.base_dir={folder}", f"run_root={tmp_path / 'runs'}", *words))
    assert [row["kind"] for row in rows(run)].count("val") == 3
    assert [record.message for record in caplog.records if "is undefined" in record.message] == [
        f"val_token_f1 is undefined after epoch {epoch}: no best is chosen by it" for epoch in (1, 2)
    ]
    best = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["warm"]["best"]
    assert (best["epoch"], best["value"]) == (3, rows(run)[-1]["val_token_f1"])
