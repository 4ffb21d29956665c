"""The container's files fit together and to the project, as far as that shows without a container engine."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from cli.running import TESTS

ROOT = TESTS.parent
SERVICE = "torch-dev"  # the name that users of the earlier system type
VARIABLE = re.compile(r"\$\{(\w+)(?:(:?[-?])([^}]*))?\}")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction of the Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in text("Dockerfile").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def example() -> dict[str, str]:
    lines = [line for line in text(".env.example").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines)
    return dict(line.split("=", 1) for line in lines)


def service(name: str = "compose.yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text(name))["services"][SERVICE]
    return found


def test_env_example_names_what_compose_uses() -> None:
    used = {match[1] for match in VARIABLE.finditer(text("compose.yaml"))}
    assert used | {"COMPOSE_FILE", "COMPOSE_PATH_SEPARATOR"} == set(example())
    assert "$" not in text("compose.gpu.yaml")


def test_defaults_are_the_same_in_all_three_files() -> None:
    arguments = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    args = service()["build"]["args"]
    assert set(args) == set(arguments) == {"USERNAME", "USER_UID", "USER_GID"}
    for name, value in args.items():
        match = VARIABLE.fullmatch(value)
        assert match, value
        assert (match[1], match[2], match[3]) == (name, ":-", arguments[name])
        assert example()[name] == arguments[name]


def test_project_and_data_are_where_the_docs_say() -> None:
    volumes = [VARIABLE.sub(lambda match: match[1], volume) for volume in service()["volumes"]]
    assert volumes == [".:/workspace", "DATA_DIR:/data", "cache:/home/USERNAME/.cache"]
    assert "cache" in yaml.safe_load(text("compose.yaml"))["volumes"]
    assert service()["environment"]["DATA_DIR"] == "/data"
    assert ("WORKDIR", "/workspace") in instructions()
    assert any(word == "USER" and "USER_UID" in rest for word, rest in instructions()), "not root"


def test_gpu_file_extends_the_same_service() -> None:
    (device,) = service("compose.gpu.yaml")["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert set(yaml.safe_load(text("compose.gpu.yaml"))) == {"services"}
    for name in re.findall(r"compose[\w.]*\.yaml", text(".env.example")):
        assert (ROOT / name).exists()


def test_copied_paths_exist_and_are_not_ignored() -> None:
    ignored = [line.removeprefix("**/") for line in text(".dockerignore").splitlines() if line and not line.startswith("#")]
    sources = [
        path for word, rest in instructions() if word == "COPY" for path in rest.split()[:-1] if not path.startswith("--") and path != "."
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        parts = PurePosixPath(source).parts
        above = [str(PurePosixPath(*parts[: count + 1])) for count in range(len(parts))]
        assert not [pattern for pattern in ignored for place in above if fnmatch(place, pattern)], source
    assert {".env", ".git", ".venv"} <= set(ignored)


def test_what_the_package_is_built_from_is_copied_before_it_is_installed() -> None:
    project = tomllib.loads(text("pyproject.toml"))
    order = instructions()
    install = next(number for number, (word, rest) in enumerate(order) if word == "RUN" and "-e " in rest)
    copied = {path for word, rest in order[:install] if word == "COPY" for path in rest.split()[:-1]}
    needed = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == needed | {project["tool"]["hatch"]["version"]["path"]}


def test_versions_and_extras_are_the_projects() -> None:
    pins = {line.strip() for line in text("constraints.txt").splitlines() if "==" in line and not line.startswith("#")}
    pinned = re.findall(r"[\w-]+==[\w.]+", text("Dockerfile"))
    assert any(pin.startswith("torch==") for pin in pinned)
    assert set(pinned) <= pins
    extras = re.search(r'-e "\.\[([\w,]+)\]"', text("Dockerfile"))
    assert extras
    assert set(extras[1].split(",")) <= set(tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"])


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "compose.gpu.yaml", ".env.example"])
def test_no_web_addresses(name: str) -> None:
    assert "://" not in text(name)
    assert "index-url" not in text(name)


def test_page_says_untested_and_names_the_service() -> None:
    page = text("docs/docker.md")
    assert "untested" in page.lower()
    assert f"docker compose exec {SERVICE} bash" in page
    assert all(f"`{name}`" in page for name in example() if not name.startswith("COMPOSE_PATH"))
