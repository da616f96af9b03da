"""The index of docs/experiments, newest first, made from the head of every record.

python -m tools.experiments            # writes docs/experiments/index.md
python -m tools.experiments --check    # exit code 1 if it is not up to date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "experiments"
FIELDS = ("Date", "Commit", "Machine", "Prediction", "Figure", "Verdict", "Command")
VERDICTS = {
    "Confirmed": "the prediction was right",
    "Refuted": "it was wrong, or the try was dropped",
    "Mixed": "right in part",
    "Met": "a goal was reached",
    "Missed": "it was not",
    "Measured": "there was no prediction",
}

_NAME = re.compile(r"(\d{4})-[a-z0-9]+(?:-[a-z0-9]+)*\.md")
_HEAD = re.compile(r"# (?P<title>[^\n]+)\n\n\| \| \|\n\|---\|---\|\n(?P<rows>(?:\| [^\n]+ \|\n)+)\n")
_PREFACE = """# Experiments

One file for each experiment, the failed ones too, newest first. `python -m tools.experiments` makes this page from the
heads of the files; do not edit it.

Commit is the one that was measured where the record names it, and otherwise the commit that added the record. Times
are medians on two cores unless a record says otherwise. Records are not rewritten: names of options and commands are
those of their day. The first word of a verdict:
"""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the head of a record says.

    Attributes:
        number: its place in time, from 1.
        file: the name of the file in the folder.
        title: the heading of the page.
        head: a text for each of FIELDS.
    """

    number: int
    file: str
    title: str
    head: dict[str, str]


def read(file: Path) -> Experiment:
    """The head of one record.

    Raises:
        ValueError: the name or the head does not have the form; one line that names the file and the field.
    """
    named = _NAME.fullmatch(file.name)
    if named is None:
        raise ValueError(f"{file.name}: name it NNNN-title.md, in small letters, digits and hyphens")
    found = _HEAD.match(file.read_text(encoding="utf-8"))
    rows = [row.strip("| ").split(" | ") for row in found["rows"].splitlines()] if found else []
    if found is None or tuple(row[0] for row in rows) != FIELDS or any(len(row) != 2 for row in rows):
        raise ValueError(f"{file.name}: begin with '# Title' and a table of {', '.join(FIELDS)}, in this order")
    head = {name: said for name, said in rows}
    try:
        date.fromisoformat(head["Date"])
    except ValueError:
        raise ValueError(f"{file.name}: Date {head['Date']!r} is no date; write it as 2026-11-28") from None
    if head["Verdict"].partition(".")[0] not in VERDICTS:
        raise ValueError(
            f"{file.name}: Verdict {head['Verdict']!r}: begin with one of {', '.join(VERDICTS)} and a full stop"
        )
    return Experiment(number=int(named[1]), file=file.name, title=found["title"], head=head)


def read_all(folder: Path) -> list[Experiment]:
    """Every record of a folder, oldest first.

    Raises:
        ValueError: a record has no valid head, or the numbers are not 1, 2, 3, .. in the order of the dates.
    """
    records = [read(file) for file in sorted(folder.glob("*.md")) if file.name != "index.md"]
    for expected, record in enumerate(records, 1):
        if record.number != expected:
            raise ValueError(f"{record.file}: the next number is {expected:04d}")
    for before, after in pairwise(records):
        if after.head["Date"] < before.head["Date"]:
            raise ValueError(f"{after.file}: its Date is before that of {before.file}; number records in order of time")
    return records


def index(records: Sequence[Experiment]) -> str:
    """The page: number, title, date and verdict of every record, newest first."""
    lines = [_PREFACE, *(f"- **{word}**: {meaning}" for word, meaning in VERDICTS.items()), ""]
    lines += ["| | experiment | date | verdict |", "|---|---|---|---|"]
    lines += [
        f"| {each.number:04d} | [{each.title}]({each.file}) | {each.head['Date']} | {each.head['Verdict']} |"
        for each in reversed(records)
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the index, or compare it; the exit code."""
    page = FOLDER / "index.md"
    try:
        text = index(read_all(FOLDER))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" in arguments:
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            print("docs/experiments/index.md is not up to date: run python -m tools.experiments", file=sys.stderr)
            return 1
        return 0
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
