"""What a cold start costs the first answer: self-tests, and whatever else is measured once and kept on disk.

``python -m benchmarks.cold_start DTYPE TOKENS MODEL [DRAFT]`` loads a model in this process and prints the seconds of
loading, of the first answer and of the same answer again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median

from benchmarks.beside import Outcome, Settings
from benchmarks.prompts import CHATS
from benchmarks.report import Spread, aligned, say
from benchmarks.workers import ROOT
from specstream.engine.contestants import in_turn
from specstream.errors import SpecStreamError

COLD = {"SPECSTREAM_NO_SELFTEST_CACHE": "1"}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Seconds of one process: of loading, of its first answer, and of the same answer again."""

    loading: float
    first: float
    again: float

    @property
    def beyond(self) -> float:
        """What the first answer took more."""
        return self.first - self.again


def cold_start(settings: Settings, model: str) -> Outcome:
    """How much longer the first answer takes than the same answer again, where nothing is kept from other processes.

    Processes that find what others kept are started in turn with those; the first of each is not counted.
    """
    words = [settings.dtype, str(settings.max_new_tokens), model, *filter(None, [settings.draft])]
    ways = {name: lambda _, own=own: start(words, own) for name, own in (("cold", COLD), ("warm", {}))}
    starts: dict[str, list[Start]] = {name: [] for name in ways}
    for entry in in_turn(ways, [None], rounds=settings.rounds):
        starts[entry.contestant].append(entry.value)
        say(f"{entry.contestant}: {entry.value}")
    cells = [["start", "loading s min median max", "first answer", "again", "beyond"]]
    for name, own in starts.items():
        columns = [[getattr(each, key) for each in own] for key in ("loading", "first", "again", "beyond")]
        cells.append([name, *(Spread.of(column).ratio() for column in columns)])
    value = median(each.beyond for each in starts["cold"])
    details = {name: [asdict(each) for each in own] for name, own in starts.items()}
    return Outcome(value=value, text=aligned(cells), details=details)


def start(words: list[str], variables: dict[str, str]) -> Start:
    """One process.

    Args:
        words: dtype, tokens, model and, if it has one, its draft.
        variables: over this process's own.

    Raises:
        SpecStreamError: it failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", "benchmarks.cold_start", *words]
    kept = {name: value for name, value in os.environ.items() if name not in COLD}
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**kept, "PYTHONPATH": path, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SpecStreamError(
            f"a start ended with code {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])}"
        )
    return Start(**json.loads(done.stdout.splitlines()[-1]))


def timed(dtype: str, tokens: int, model: str, draft: str | None = None) -> Start:
    """Load a model here, and answer twice."""
    from specstream.cli.loading import load_engine

    moments = [time.perf_counter()]
    engine = load_engine(model, draft, {"dtype": dtype, "memory": False})
    for _ in range(2):
        moments.append(time.perf_counter())
        engine.generate([{"role": "user", "content": CHATS[0]}], max_new_tokens=tokens)
    moments.append(time.perf_counter())
    loading, first, again = (end - begin for begin, end in pairwise(moments))
    return Start(loading=loading, first=first, again=again)


if __name__ == "__main__":
    print(json.dumps(asdict(timed(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))))
