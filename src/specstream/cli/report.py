"""`specstream report`: what benchmark runs say, as a page with charts; two runs are compared by a test."""

from __future__ import annotations

from typing import Annotated

import typer

from specstream.cli import options

_Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN_DIR...", help="Folders of benchmark runs; others are compared with the first."),
]
_Output = Annotated[
    options.Text,
    typer.Option("--output", "-o", help="The folder for the report (default: report, in the first run's)."),
]


def report(run_dirs: _Runs, output: _Output = None) -> None:
    """Write a self-contained HTML page, Markdown and charts about benchmark runs."""
    from pathlib import Path

    from specstream.evaluation.benchmark.folder import RunFolder
    from specstream.evaluation.report.page import write_report

    folders = [RunFolder.existing(each) for each in run_dirs]
    for file in write_report(folders, output or Path(run_dirs[0]) / "report"):
        print(file)
