"""Tiny pretrained folders, each made once for all tests, and a clean registry for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub is a fault


class Folders:
    """Pretrained folders in the hub's layout by family: `folders.vision("clip")`, `folders.lm("gpt2")`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: set[str] = set()

    def _folder(self, name: str, make: Callable[[Path], object]) -> str:
        place = self._root / name
        if name not in self._made:
            place.mkdir()
            make(place)
            self._made.add(name)
        return str(place)

    def vision(self, family: str = "siglip") -> str:
        return self._folder(f"vision-{family}", lambda place: tiny.vision_encoder(place, family))

    def lm(self, family: str = "llama", *, chat: bool = True) -> str:
        return self._folder(f"lm-{family}{'' if chat else '-plain'}", lambda place: tiny.language_model(place, family, chat=chat))

    def text(self, family: str = "bert") -> str:
        return self._folder(f"text-{family}", lambda place: tiny.text_encoder(place, family))

    def tokenizer(self, *, chat: bool = True) -> Any:
        from eyegraft.pretrained import ready

        ready()
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.lm(chat=chat))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums are then added in one order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugins and configuration folders that a test names are forgotten after it."""
    from eyegraft import composition, registry

    plugins, conf_dirs = list(registry._plugins), list(composition._conf_dirs)
    yield
    registry._plugins[:], composition._conf_dirs[:] = plugins, conf_dirs


@pytest.fixture(scope="session")
def plain_recipe(folders: Folders) -> Callable[..., dict[str, Any]]:
    """A small valid recipe as plain data; keywords replace its top-level keys."""

    def made(vision: str = "siglip", lm: str = "llama", **changes: Any) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "recipe": "small",
            "experiment_name": "small",
            "vision_encoder": {"kind": "huggingface", "model": folders.vision(vision)},
            "pooling": None,
            "connector": {"kind": "mlp"},
            "fusion": {"kind": "sequence"},
            "head": {"kind": "prefix_lm", "model": folders.lm(lm)},
            "data": {"name": "shapes", "tables": {"train": "train.jsonl"}},
            "tasks": {"caption": {"kind": "caption"}},
            "train": {},
            "stages": {"only": {}},
        }
        return {**plain, **changes}

    return made


@pytest.fixture
def make_graft(plain_recipe: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """(recipe, model) of a small recipe; keywords as for `plain_recipe`."""

    def made(**changes: Any) -> tuple[Any, Any]:
        import torch

        from eyegraft.composition import validate
        from eyegraft.model import assemble

        recipe = validate(plain_recipe(**changes))
        torch.manual_seed(0)
        return recipe, assemble(recipe)

    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Where everything is installed (`EYEGRAFT_REQUIRE_ALL=1`), a skipped test is a failed one. Data from elsewhere may be missing."""
    report = yield
    if report.skipped and os.environ.get("EYEGRAFT_REQUIRE_ALL") == "1" and "EYEGRAFT_TEST_DATA" not in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"{item.nodeid} was skipped: {report.longrepr}"
    return report
