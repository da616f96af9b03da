"""The folder of a run: ``run.json``, ``samples.jsonl`` that only grows, ``summary.json``; and going on with it.

A turn is one prompt generated from by all arms of a group. An interrupted turn is done again as a whole, so that what
is compared was always measured together; of two samples of the same thing the later counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from specstream.engine.contestants import PLAIN
from specstream.errors import UsageError
from specstream.evaluation.benchmark.experiments import Group
from specstream.files.atomic import changed, difference, read_lines, refuse_address, set_aside, write_whole
from specstream.files.folders import held

RUN, SAMPLES, SUMMARY = "run.json", "samples.jsonl", "summary.json"

Place = tuple[str, str, str, str]
"""Experiment, its value, arm, its value; values as JSON."""


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """As JSON, all of it or nothing."""
    write_whole(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def place_of(line: Mapping[str, Any]) -> Place:
    """Which arm a line is about, as ``Samples.arms`` knows it."""
    return line["experiment"], json.dumps(line["value"]), line["arm"], json.dumps(line["arm_value"])


def plain_of(place: Place) -> Place:
    """The arm that an arm is measured against."""
    return (*place[:2], PLAIN, "null")


class Samples:
    """What was measured, in memory: ``arms`` has the facts of each, ``run`` those of all."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.arms: dict[Place, dict[str, Any]] = {}
        self._samples: dict[tuple[Place, int, int], dict[str, Any]] = {}  # by item and repeat too

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The newest of each thing that was measured."""
        return list(self._samples.values())

    def append(self, line: Mapping[str, Any]) -> None:
        """An arm, a sample, or another line of the run."""
        if line.get("kind") == "arm":
            self.arms[place_of(line)] = dict(line)
        elif line.get("kind") == "sample":
            self._samples[place_of(line), line["item"], line["repeat"]] = dict(line)

    def turns(self, group: Group, items: int, repeats: int) -> list[tuple[int, int]]:
        """Repeat and item of the turns of a group that are still to be done."""
        value = json.dumps(group.value)
        places = [(group.experiment, value, arm.name, json.dumps(arm.value)) for arm in group.arms]
        return [
            (repeat, item)
            for repeat in range(repeats)
            for item in range(items)
            if not all((place, item, repeat) in self._samples for place in places)
        ]

    def plain_of(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """What plain decoding made of the same item, in the same repeat."""
        return self._samples[plain_of(place_of(sample)), sample["item"], sample["repeat"]]

    def answered(self) -> Samples:
        """Without the items that one of the arms failed at."""
        failed = {each["item"] for each in self.samples if each["error"] is not None}
        found = Samples()
        for line in (*self.arms.values(), *self.samples):
            if line["kind"] == "arm" or line["item"] not in failed:
                found.append(line)
        return found


class RunFolder(Samples):
    """What is on disk of a run.

    Args:
        root: the folder.

    Raises:
        UsageError: its files cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        super().__init__()
        self.root = Path(root)
        if (self.root / RUN).exists():
            try:
                self.run = json.loads((self.root / RUN).read_text(encoding="utf-8"))
                lines = read_lines(self.root / SAMPLES)
            except (OSError, ValueError) as error:
                raise UsageError(f"the run in {str(root)!r} cannot be read: {error}; give another folder") from None
            for line in lines:
                super().append(line)

    @classmethod
    def existing(cls, root: str | Path) -> RunFolder:
        """The folder of a run that there is.

        Raises:
            UsageError: there is none.
        """
        if Path(root).name in (RUN, SAMPLES, SUMMARY) and Path(root).is_file():
            raise UsageError(f"{str(root)!r} is a file of a run; give its folder, {str(Path(root).parent)!r}")
        folder = cls(root)
        if not Path(root).exists():
            raise UsageError(f"there is no folder {str(root)!r}; give one that specstream benchmark wrote")
        if not folder.run:
            inner = sorted(str(each.parent) for each in Path(root).glob(f"*/{RUN}"))
            given = f"one of those in it: {', '.join(inner)}" if inner else "a folder that specstream benchmark wrote"
            what = (None if (folder.root / RUN).exists() else held(root)) or "no run"
            raise UsageError(f"{str(root)!r} holds {what}; give {given}")
        return folder

    def begin(self, settings: Mapping[str, Any], provenance: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
        """Start a run, or go on with the one that is here.

        Args:
            settings: must be those that it began with.
            provenance: likewise the machine and the versions.
            facts: what else ``run.json`` says.

        Returns:
            The number of this session, from 0.

        Raises:
            UsageError: the run here is of other settings or another machine, or the folder cannot be written to.
        """
        refuse_address(self.root, "measure.output_dir")
        if not self.run and self.root.is_dir() and any(self.root.iterdir()):
            raise UsageError(f"measure.output_dir is {str(self.root)!r}, which holds something else; give a new folder")
        measured = bool(self._samples)  # else nothing is lost by other settings
        before = self.run.get("settings", {}).get("experiments", {}) if measured else {}
        every = {**before, **settings["experiments"]}  # others than before may be added
        same = {**settings, "experiments": {name: every[name] for name in before}}
        for name, now in (("settings", same), ("provenance", provenance)):
            if measured and (other := difference(self.run[name], now)):
                raise UsageError(
                    f"{str(self.root)!r} holds a run with {changed(*other)}; give the same, "
                    "another measure.output_dir, or --no-resume to set that run aside"
                )
        session = {"started": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": sys.argv}
        sessions = [*self.run.get("sessions", []), session]
        settings = {**settings, "experiments": every}
        self.run = {"settings": settings, "provenance": dict(provenance), **facts, "sessions": sessions}
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_json(self.root / RUN, self.run)
            self._end_line()
        except OSError as error:
            raise UsageError(
                f"measure.output_dir is {str(self.root)!r}: {error.strerror}; give a folder that can be written to"
            ) from None
        self.append({"kind": "session", "session": len(sessions) - 1, **session, "provenance": dict(provenance)})
        return len(sessions) - 1

    def append(self, line: Mapping[str, Any]) -> None:
        """A line more, on disk when this returns."""
        with (self.root / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
        super().append(line)

    def set_aside(self) -> RunFolder:
        """Rename the run that is here, so that another can begin and nothing is lost."""
        if not self.run:
            return self
        set_aside(self.root)
        return RunFolder(self.root)

    def _end_line(self) -> None:
        """End the last line where its process was killed in the middle of it."""
        path = self.root / SAMPLES
        if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
