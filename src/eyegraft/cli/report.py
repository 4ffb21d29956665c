"""`eyegraft report RUN`"""

from __future__ import annotations

import argparse

HELP = "write a run's report page again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder")


def run(arguments: argparse.Namespace) -> None:
    from eyegraft.report import write_report

    print(write_report(arguments.run))
