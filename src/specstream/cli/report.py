"""`specstream report`: what benchmark runs say, as a page with charts; two runs are compared by a test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specstream.cli import options
from specstream.errors import UsageError
from specstream.files.atomic import check_ending

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
    from specstream.evaluation.benchmark.folder import RunFolder
    from specstream.evaluation.benchmark.summary import summarise
    from specstream.evaluation.report.page import verdict, write_report

    if output is not None:
        check_ending(output, "--output", "", "a folder")
    twice = next((each for at, each in enumerate(run_dirs) if Path(each).resolve() in _places(run_dirs[:at])), None)
    if twice is not None:
        raise UsageError(f"{twice!r} is given twice; give another run to compare with, or one alone")
    folders = [RunFolder.existing(each) for each in run_dirs]
    files = write_report(folders, output or Path(run_dirs[0]) / "report")
    for folder in folders:
        print(f"{folder.root}: {verdict(summarise(folder)['arms'])}")
    print(f"written to {' and '.join(map(str, files))}")


def _places(folders: list[str]) -> set[Path]:
    return {Path(each).resolve() for each in folders}
