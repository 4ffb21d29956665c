"""What the documentation tells people to type can be typed: verbs, flags, recipes, overrides and files exist."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from cli.running import TESTS
from eyegraft import cli
from eyegraft.composition import compose, recipe_files, to_plain, use_config_dir, validate
from eyegraft.errors import RecipeError

ROOT = TESTS.parent
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if path.name != "CHANGELOG.md")
BLOCK = re.compile(r"^(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`(?:[\w.]+/)*(?P<place>\w+/\w+\.yaml)`[^`]*\Z")  # the last file that is named before a YAML block
HYDRA_FLAGS = {"-m", "--multirun", "--cfg", "-c", "--info", "-i", "--resolve", "job", "all"}


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(the text before it, the block) for each block in these languages."""
    text = page.read_text(encoding="utf-8")
    return [(text[: match.start()], match["body"]) for match in BLOCK.finditer(text) if match["language"] in languages]


def commands(page: Path) -> list[list[str]]:
    """The words behind `eyegraft` of every command in shell blocks, without comments."""
    lines = [line for _, body in blocks(page, "sh", "bash", "shell", "console") for line in body.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["eyegraft"]]


ALL = [pytest.param(page, words, id=f"{page.relative_to(ROOT)}: {' '.join(words)}") for page in PAGES for words in commands(page)]


def test_pages_are_found() -> None:
    assert {"README.md", "demo.md"} <= {page.name for page in PAGES}
    assert len(ALL) >= 10


@pytest.fixture
def page_files(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The recipes and options that a page shows as YAML, each in the file that the text before it names."""
    page: Path = request.getfixturevalue("page")
    for before, body in blocks(page, "yaml"):
        named = NAMED.search(before)
        stated = re.search(r"^recipe: (\w+)$", body, re.MULTILINE)
        place = named["place"] if named else f"recipe/{stated[1]}.yaml" if stated else None
        if place is not None:
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).write_text(body, encoding="utf-8")
    for other in PAGES:  # what one page shows under `data:`, others name as an option
        for _, body in blocks(other, "yaml"):
            plain = yaml.safe_load(body)
            if (
                set(plain) == {"data"}
                and "name" in plain["data"]
                and not (shown := tmp_path / "data" / f"{plain['data']['name']}.yaml").exists()
            ):
                shown.parent.mkdir(exist_ok=True)
                shown.write_text(yaml.safe_dump(plain["data"], allow_unicode=True), encoding="utf-8")
    (tmp_path / "recipe").mkdir(exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(("page", "words"), ALL)
def test_command(page: Path, words: list[str], page_files: Path, request: pytest.FixtureRequest) -> None:
    assert words[0] in cli.VERBS or words[0].startswith("-"), f"{page.name}: no verb {words[0]!r}"
    if words[0] in ("--help", "--version") or words[1:] == ["--help"]:
        return
    arguments, rest = cli._parser().parse_known_args(words)  # leaves with its own message where a word is missing or refused
    unknown = [word for word in rest if word.startswith("-") and word not in HYDRA_FLAGS]
    assert not unknown, f"{page.name}: no such flags {unknown}"
    assert arguments.verb == "train" or not rest, f"{page.name}: {rest}"
    if hasattr(arguments, "overrides"):
        given = [word for word in (*arguments.overrides, *rest) if word not in HYDRA_FLAGS]
        overrides = [f"prepare.{word}" if words[0] == "prepare" and word.startswith("step=") else word for word in given]
        check_overrides(page, words, overrides, page_files, own=bool(arguments.plugin) or page.name == "CONTRIBUTING.md")


def check_overrides(page: Path, words: list[str], overrides: list[str], page_files: Path, *, own: bool) -> None:
    """Each combination of a sweep composes to a valid recipe, unless the page shows which error comes."""
    from eyegraft.cli.show import named

    use_config_dir(str(page_files))
    swept = "-m" in words or "--multirun" in words
    # one value of each sweep is enough to prove that key and kind of value exist
    single = [re.sub(r"=([^\[{]+?),.*", r"=\1", word) if swept else word for word in named(overrides)]
    if not single:
        return
    fault = why_not(single)
    if fault is not None and not own:
        assert f"error: {fault.given.splitlines()[0]}" in page.read_text(encoding="utf-8"), f"{page.name}: {fault}"
    elif fault is not None:  # parts that the page has the reader write in Python
        assert all(".kind: given" in line for line in fault.given.splitlines()[1:]), f"{page.name}: {fault}"


def why_not(overrides: list[str]) -> RecipeError | None:
    try:
        validate(to_plain(compose(overrides)))
    except RecipeError as error:
        return error
    return None


def test_shown_error_is_the_one_that_comes(tmp_path: Path) -> None:
    """A block that begins with `error:` is what the command before it prints, with … for what is left out."""
    from cli.running import run

    checked = 0
    for page in PAGES:
        for before, body in blocks(page, ""):
            if body.startswith("error: "):
                last = [words for words in commands(page) if "eyegraft " + " ".join(words) in before][-1]
                printed = run(*last, cwd=tmp_path).stderr
                pattern = ".*".join(re.escape(piece) for piece in body.strip().split("…"))
                assert re.search(pattern, printed), f"{page.name} shows\n{body}\nand this comes:\n{printed}"
                checked += 1
    assert checked >= 1


def test_shown_recipes_are_whole() -> None:
    """YAML on the pages is YAML."""
    for page in PAGES:
        for _, body in blocks(page, "yaml"):
            assert yaml.safe_load(body), page.name


def test_python_on_the_pages_compiles_and_imports() -> None:
    for page in PAGES:
        for _, body in blocks(page, "python"):
            entries = body.lstrip().startswith('"') and not body.lstrip().startswith('"""')  # lines of a dictionary
            compile(f"{{{body}}}" if entries else body, f"a block of {page.name}", "exec")
            for line in body.splitlines():
                if match := re.match(r"from (eyegraft[\w.]*) import (.+)", line):
                    module = import_module(match[1])
                    for name in match[2].strip("()").split(","):
                        assert hasattr(module, name.split(" as ")[0].strip()), f"{page.name}: {line}"


def test_linked_files_exist() -> None:
    """Links within the repository; pictures that a demo run makes are not there before it."""
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_recipe_table_names_every_recipe() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in recipe_files() if f"`{name}`" not in readme]
    assert not missing, f"the README's table lacks {missing}"
    for name in recipe_files():
        assert (ROOT / "docs" / "recipes" / f"{name}.md").exists()
