"""Answers to the examples of a data set, a line each as soon as it is there, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specstream.errors import UsageError
from specstream.files.atomic import changed, difference, folder_of, set_aside

FILE = "answers.jsonl"
"""In the folder of a data set."""


class Answers:
    """A file of lines: what the run is, then a record for each example; of two for one example the later counts.

    Args:
        folder: is made.
        run: what has to be the same for answers to belong together.
        resume: go on with a file that is there; False sets it aside.

    Raises:
        UsageError: the file is of another run, or none of ours.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, resume: bool = True) -> None:
        folder_of("measure.output_dir", folder)
        self.path = folder / FILE
        self.records: dict[int, dict[str, Any]] = {}
        run = json.loads(json.dumps(run))
        if self.path.exists() and not resume:
            set_aside(self.path)
        if self.path.exists() and b"\n" in self.path.read_bytes():
            self._read(run)
        else:
            self.path.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep the record of an example, in memory and on disk."""
        line = json.dumps(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[int(record["example"])] = json.loads(line)

    def _read(self, run: Mapping[str, Any]) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole, _, cut = text.rpartition("\n")
        if cut:  # the run was stopped while it wrote
            with self.path.open("r+", encoding="utf-8") as file:
                file.truncate(len((whole + "\n").encode()))
        try:
            header, *lines = [json.loads(line) for line in whole.split("\n")]
            known = header["run"]
            self.records = {int(record["example"]): record for record in lines}
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{str(self.path)!r} holds no answers of ours; give another output_dir") from None
        if not self.records:  # nothing is lost by other settings
            self.path.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
        elif (other := difference(known, run)) is not None:
            raise UsageError(
                f"{str(self.path)!r} was written with {changed(*other)}; "
                "give --no-resume, or another measure.output_dir"
            )
