"""The command line: one file a verb. Each has `HELP`, `add_arguments(parser)` and `run(arguments)`; heavy imports live inside `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from eyegraft import __version__
from eyegraft.errors import FULL, EyegraftError, RunError

VERBS = ("recipes", "show", "prepare", "check", "train", "sweep", "evaluate", "compare", "report", "predict", "map", "doctor")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eyegraft", description="Graft a pretrained eye onto the answer you need: text, labels or numbers."
    )
    parser.add_argument("--version", action="version", version=f"eyegraft {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--plugin", action="append", default=[], metavar="PACKAGE", help="a package of your own parts (PACKAGE.encoders, PACKAGE.heads …)"
    )
    common.add_argument(
        "--config-dir", action="append", default=[], metavar="FOLDER", help="a folder of your own recipes (FOLDER/recipe/NAME.yaml)"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--quiet", action="store_true", help="warnings and results only")
    for verb in VERBS:
        module = import_module(f"eyegraft.cli.{verb}")
        module.add_arguments(verbs.add_parser(verb, help=module.HELP, description=module.HELP, parents=[common]))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit code. Errors that a user can mend are printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show a letter must not stop the work
    arguments, rest = _parser().parse_known_args(argv)
    if arguments.verb == "predict":  # argparse takes images that may be left out before an option alone
        arguments.images += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest and arguments.verb != "train":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]  # Hydra's own flags, such as -m and --cfg
    try:
        return _run(arguments)
    except EyegraftError as error:
        if arguments.debug:
            raise
        tell(error)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except OSError as error:
        if arguments.debug or error.errno not in FULL:
            raise
        print(f"error: no room to write {error.filename or 'a file'}: {error.strerror}\n  fix: free some disk space", file=sys.stderr)
        return RunError.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def tell(error: EyegraftError) -> None:
    """Say why the command ends; of several processes the first that fails does."""
    from eyegraft.training.processes import speaks

    if speaks():
        print(f"error: {error}", file=sys.stderr, flush=True)


def _run(arguments: argparse.Namespace) -> int:
    import logging

    from eyegraft.composition import use_config_dir
    from eyegraft.console import setup_logging
    from eyegraft.registry import use_plugin
    from eyegraft.training.processes import stop_if_several

    if arguments.verb not in ("train", "doctor"):
        stop_if_several(f"eyegraft {arguments.verb}")
    setup_logging(logging.WARNING if arguments.quiet else logging.INFO)
    for package in arguments.plugin:
        use_plugin(package)
    for folder in arguments.config_dir:
        use_config_dir(folder)
    code: int = import_module(f"eyegraft.cli.{arguments.verb}").run(arguments) or 0
    return code
