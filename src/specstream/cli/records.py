"""Reports of commands: tables that are read, and files, whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specstream.errors import UsageError
from specstream.files.atomic import check_ending, check_new, refuse_address, refuse_folder_name, write_whole

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120
"""Columns of the tables at least, whatever the terminal."""


def table_console() -> Console:
    """What tables are printed on."""
    from rich.console import Console

    return Console(width=max(WIDTH, Console().width))


def is_record(path: Path) -> bool:
    """Whether a file is what ``write_record`` wrote for a command."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "arguments" in record


def check_output(output: str | None, is_own: Callable[[Path], bool] = is_record, ending: str = ".json") -> None:
    """Refuse before anything is measured what could not be written afterwards.

    Args:
        output: the file; None for none.
        is_own: whether a file that is there is an earlier one of the command's, which may be replaced.
        ending: of what is written.

    Raises:
        UsageError: a folder, a place that cannot be written to, a file of another kind, or a name of one.
    """
    if output is None:
        return
    refuse_address(output, "--output")
    if not Path(output).is_dir():
        refuse_folder_name(output, "--output")
    if Path(output).is_dir() or not os.access(Path(output).absolute().parent, os.W_OK):
        raise UsageError(
            f"--output is {output!r}; give the name of a file in a folder that exists and can be written to"
        )
    check_new(Path(output), "--output", is_own)
    check_ending(output, "--output", ending, ending[1:].upper())


def write_record(output: str, record: Mapping[str, Any]) -> None:
    """As JSON, under a temporary name first."""
    write_whole(Path(output), json.dumps(record, indent=2) + "\n")
