"""Measured over predicted speed: whether passes and drafting cost, in a generation, what they cost by themselves.

Passes are timed alone, in the same process, between the generations, at the context in the middle of the output.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from specstream.core.ports import Target
from specstream.core.tree import TokenTree
from specstream.engine.contestants import PLAIN

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Nodes of every row in the passes that are timed; between two of them a pass is taken to cost along a line."""

REPEATS = 3
"""Timed passes of each width, after one that is not counted."""


class PassCosts:
    """What passes over a target cost at one context, measured in turn.

    Args:
        target: whose passes.
        clock: seconds.
    """

    def __init__(self, target: Target, clock: Callable[[], float] = time.perf_counter) -> None:
        self._target, self._clock = target, clock
        self._seconds: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))  # by rows, by width
        self._ragged = False

    def measure(self, contexts: Sequence[Sequence[int]], widths: Mapping[int, Sequence[int]], repeats: int) -> None:
        """Time passes, and the commit of each, ``repeats`` times after one that is not counted.

        Args:
            contexts: token ids of every row.
            widths: numbers of rows, at most all, and the widths to time with each: nodes of every row.
            repeats: how often.
        """
        session = self._target.begin([list(context) for context in contexts])
        self._ragged = session.ragged
        for rows in sorted(widths, reverse=True):
            if rows < len(contexts):
                contexts = contexts[:rows]
                session.keep(range(rows))
            for repeat in range(repeats + 1):
                for width in widths[rows]:
                    seconds = self._pass(session, contexts, width)
                    if repeat:
                        self._seconds[rows][width].append(seconds)

    def _pass(self, session: Any, contexts: Sequence[Sequence[int]], width: int) -> float:
        chains = [TokenTree.chain([context[-1 - at % len(context)] for at in range(width)]) for context in contexts]
        started = self._clock()
        session.score(chains)
        session.commit([(0,)] * len(contexts))
        seconds = self._clock() - started
        session.rollback([len(context) for context in contexts])
        return seconds

    def of(self, sizes: Sequence[int]) -> float:
        """Seconds of a pass over trees of these sizes; as many rows must have been measured."""
        known = {width: median(seconds) for width, seconds in self._seconds[len(sizes)].items()}
        width = sum(sizes) / len(sizes) if self._ragged else max(sizes)
        widths = sorted(known)
        return float(np.interp(width, widths, [known[each] for each in widths]))

    def total(self, passes: Sequence[Sequence[int]]) -> float:
        """Seconds that passes over trees of these sizes should take."""
        return sum(map(self.of, passes))

    def as_json(self) -> dict[str, float]:
        """Of one row, by width."""
        return {str(width): median(seconds) for width, seconds in sorted(self._seconds[1].items())}


def seconds_of_passes(
    target: Target, prompts: Sequence[Sequence[int]], samples: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """What the passes of every contestant should take, timed just after they were made.

    Args:
        target: of all contestants.
        prompts: token ids of every row.
        samples: of each contestant, as ``benchmark.metrics`` reads them; one of them is plain decoding's.
    """
    plain = samples[PLAIN]["tokens"]
    contexts = [[*prompt, *said[: len(said) // 2]] for prompt, said in zip(prompts, plain, strict=True)]
    costs = PassCosts(target)
    costs.measure(contexts, _widths([sizes for each in samples.values() for sizes in each["sizes"]]), REPEATS)
    return {name: costs.total(each["sizes"]) for name, each in samples.items()}


def measured_over_predicted(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """The measured over the predicted speed of a contestant: below 1 if it took longer than it should have.

    Drafting is counted by the contestant's own median for as many rows and as deep a tree, its choices included.

    Args:
        samples: those with ``predicted``, the seconds that their passes should take, are counted.

    Returns:
        None if there are none.
    """
    counted = [each for each in samples if "predicted" in each]
    proposing: dict[tuple[int, int], list[float]] = defaultdict(list)
    for each in counted:
        for (_, drafting, *_), rows in zip(each["passes"], each["depths"], strict=True):
            proposing[len(rows), max(row[0] for row in rows)].append(drafting)
    predicted = sum(median(seconds) * len(seconds) for seconds in proposing.values())
    predicted += sum(each["predicted"] for each in counted)
    return predicted / sum(each["decode"] for each in counted) if counted else None


def _widths(passes: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """By rows, the widths to time: ``WIDTHS`` as far as the widest pass goes, and the widest itself beyond them."""
    widest: dict[int, int] = defaultdict(int)
    for sizes in passes:
        widest[len(sizes)] = max(widest[len(sizes)], *sizes)
    return {rows: [*WIDTHS[: bisect_left(WIDTHS, most)], most] for rows, most in widest.items()}
