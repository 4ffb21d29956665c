"""A part that somebody adds without a sample fails its contract, and is told what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from contracts.samples import SAMPLES, cases, part
from eyegraft.registry import kinds, use_plugin


@pytest.mark.parametrize("room", SAMPLES)
def test_every_part_in_a_folder_has_a_sample(room: str) -> None:
    assert set(kinds(room)) == set(SAMPLES[room])


@pytest.mark.parametrize("room", SAMPLES)
def test_a_new_file_without_a_sample_is_told_how_to_add_one(
    room: str, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"newcomer_{room}"
    (tmp_path / package / room).mkdir(parents=True)
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / room / "__init__.py").touch()
    (tmp_path / package / room / "foo.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    use_plugin(package)
    case = next(item.values[0] for item in cases(room) if item.id.startswith("foo"))
    with pytest.raises(
        pytest.fail.Exception,
        match=rf"(?s){room}/foo\.py has no sample.*add to SAMPLES\['{room}'\].*pytest tests/contracts/test_{room}\.py",
    ):
        part(room, case, folders)
