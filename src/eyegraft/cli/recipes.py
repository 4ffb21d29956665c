"""`eyegraft recipes`"""

from __future__ import annotations

import argparse

HELP = "list the recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace) -> None:
    import yaml

    from eyegraft.composition import recipe_files

    for name, path in sorted(recipe_files().items()):
        title = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("title", "")
        print(f"{name:<24}{title}")
