"""What a collection writes, a line for each prompt, and how the lines are read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specstream.errors import UsageError
from specstream.files.atomic import why_unread
from specstream.routing.config import NONE


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation.

    Attributes:
        tokens: that it emitted.
        passes: of the target.
        drafted: tokens that were scored.
        accepted: of those.
        seconds: of decoding, the prompt not counted.
        total: of the whole call.
        equal: whether the tokens are plain decoding's.
    """

    tokens: int
    passes: int
    drafted: int
    accepted: int
    seconds: float
    total: float
    equal: bool


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A prompt and what every drafter did on it.

    Attributes:
        prompt: the text, as it was given.
        token_ids: of the prompt as the model was asked it.
        domain: what kind of prompt it is.
        source: its file and record.
        runs: of each drafter, the repeated ones in order; empty where it failed.
        error: why it failed, empty where it did not.
    """

    prompt: str
    token_ids: list[int]
    domain: str
    source: str
    runs: dict[str, list[Run]]
    error: str = ""

    def of(self, drafters: Iterable[str]) -> Collected:
        """The same prompt with the runs of some drafters only."""
        return replace(self, runs={name: self.runs[name] for name in drafters})


def read_collected(paths: Sequence[str | Path]) -> tuple[list[Collected], list[Collected]]:
    """The prompts of some collections that were measured, and those that failed.

    Returns:
        Both in the order of the files; a prompt that comes again is left out.

    Raises:
        UsageError: a file that cannot be read, a line that is none, by number, or drafters that differ.
    """
    seen: dict[str, Collected] = {}
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            each = _collected(line, f"{path}:{number}")
            seen.setdefault(each.prompt, each)
    measured = [each for each in seen.values() if not each.error]
    if not measured:
        raise UsageError(
            f"no prompt was measured in {', '.join(map(str, paths))}; collect some: specstream router collect"
        )
    names = set(measured[0].runs)
    for each in measured:
        if set(each.runs) != names:
            raise UsageError(
                f"{each.source} was measured with {', '.join(sorted(each.runs))} and others with "
                f"{', '.join(sorted(names))}; give collections of the same drafters"
            )
    if NONE not in names:
        raise UsageError(f"the drafters are {', '.join(sorted(names))}; collect with {NONE!r} among them")
    return measured, [each for each in seen.values() if each.error]


def _lines(path: str | Path) -> list[str]:
    try:
        *lines, rest = Path(path).read_text(encoding="utf-8").split("\n")  # not splitlines: texts hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"data {str(path)!r} cannot be read: {why_unread(error)}; give what specstream router collect wrote"
        ) from None
    if rest:
        raise UsageError(f"{path}:{len(lines) + 1} is cut off; drop it, or run specstream router collect again")
    return lines


def _collected(line: str, where: str) -> Collected:
    try:
        values = json.loads(line)
        runs = {name: [Run(**run) for run in own] for name, own in values.pop("runs").items()}
        each = Collected(**values, runs=runs)
        if not each.error and (not runs or not all(runs.values())):
            raise ValueError("no runs and no error")
        if any(run.seconds <= 0 or run.tokens < 1 for own in runs.values() for run in own):
            raise ValueError("a run without tokens or time")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UsageError(
            f"{where} is no line of a collection: {why}; give what specstream router collect wrote"
        ) from None
    return each
