"""Contestants in turn: the one loop of every measurement, and the record of one generation.

For each prompt all contestants generate one after the other. Who begins changes from prompt to prompt and from round to
round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, Literal, TypeVar

Prompt = TypeVar("Prompt")
Made = TypeVar("Made")

PLAIN = "plain"
"""The contestant that decodes plainly, which others are measured against."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation, or the answers to the turns of one chat together.

    Attributes:
        tokens: emitted, of each row of a batch or of each answer.
        texts: likewise, without stop strings and special tokens.
        emitted: tokens of each pass of the target, of each row or answer; plain decoding emits 1.
        drafted: drafted tokens that were scored.
        accepted: of those.
        rejected: of those; the others were never judged.
        prefill: seconds before the first pass.
        decode: seconds of all passes, drafting included.
        exact: ``bits`` or ``rounding``.
    """

    tokens: list[list[int]]
    texts: list[str]
    emitted: list[list[int]]
    drafted: int
    accepted: int
    rejected: int
    prefill: float
    decode: float
    exact: str

    @classmethod
    def of(cls, *generations: Any) -> Run:
        """Of a ``Generation`` that has run, or of those of one chat."""
        rows = [(each, row) for each in generations for row in each.rows]
        stats = [row.stats for _, row in rows]
        return cls(
            tokens=[row.emitted for _, row in rows],
            texts=[each.text(row) for each, row in rows],
            emitted=[list(each.emitted) for each in stats],
            drafted=sum(each.drafted for each in stats),
            accepted=sum(each.accepted for each in stats),
            rejected=sum(each.rejected for each in stats),
            prefill=sum(each.timings.prefill for each in generations),
            decode=sum(each.timings.decode for each in generations),
            exact="bits" if all(row.exact == "bits" for _, row in rows) else "rounding",
        )

    @property
    def passes(self) -> list[int]:
        """Tokens of each pass, of all rows."""
        return [count for row in self.emitted for count in row]

    @property
    def new_tokens(self) -> int:
        return sum(self.passes)

    @property
    def total(self) -> float:
        """Seconds of the whole call."""
        return self.prefill + self.decode


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[Made]):
    """What one contestant made of one prompt.

    Attributes:
        contestant: its name.
        round: from 0.
        prompt: index.
        last: whether all contestants have now had this prompt in this round.
        made: what its function returned; None if that failed.
        error: why it did.
    """

    contestant: str
    round: int
    prompt: int
    last: bool
    made: Made | None = None
    error: Exception | None = None

    @property
    def value(self) -> Made:
        """What was made.

        Raises:
            Exception: the contestant's own.
        """
        if self.error is not None:
            raise self.error
        return self.made  # type: ignore[return-value]  # without an error it is what the function returned


@dataclass(frozen=True, kw_only=True)
class Turn(Generic[Made]):
    """What all contestants made of one prompt in one round."""

    round: int
    prompt: int
    entries: Sequence[Entry[Made]]

    def values(self) -> dict[str, Made]:
        """By contestant.

        Raises:
            Exception: that of the first contestant that failed.
        """
        return {each.contestant: each.value for each in self.entries}


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names from another one on for each number."""
    first = number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def in_turn(
    contestants: Mapping[str, Callable[[Prompt], Made]],
    prompts: Sequence[Prompt],
    *,
    rounds: int = 1,
    todo: Iterable[tuple[int, int]] | None = None,
    warm_up: int = 1,
    errors: Literal["raise", "keep", "leave"] = "raise",
    on_run: Callable[[str], None] = lambda name: None,
) -> Iterator[Entry[Made]]:
    """Run the contestants, one at a time. To stop reading is to stop; what was read is whole.

    Args:
        contestants: by name, what each does with a prompt.
        prompts: all of them.
        rounds: over the prompts.
        todo: rounds and indices of prompts that are left, of a measurement that goes on; None for all of them.
        warm_up: so many of the prompts that are left are given to every contestant beforehand and not counted.
        errors: ``raise`` ends all with a contestant's exception; ``keep`` puts it into the entry; after ``leave`` that
            contestant is also not run again.
        on_run: told who is next.
    """
    order = list(product(range(rounds), range(len(prompts))) if todo is None else todo)
    warming = [(False, order[at % len(order)]) for at in range(warm_up)] if order else []
    going = dict(contestants)
    for counted, (round_, index) in [*warming, *((True, each) for each in order)]:
        names = rotated(list(going), round_ + index)
        for name in names:
            if counted:
                on_run(name)
            made, failed = None, None
            try:
                made = going[name](prompts[index])
            except Exception as error:
                if errors == "raise":
                    raise
                failed = error
                if errors == "leave":
                    del going[name]
            if counted:
                last = name == names[-1]
                yield Entry(contestant=name, round=round_, prompt=index, last=last, made=made, error=failed)


def by_turn(entries: Iterable[Entry[Made]]) -> Iterator[Turn[Made]]:
    """Entries of one prompt and round together, as soon as they are there."""
    own: list[Entry[Made]] = []
    for entry in entries:
        own.append(entry)
        if entry.last:
            yield Turn(round=entry.round, prompt=entry.prompt, entries=own)
            own = []


def interleaved(passes: Mapping[str, Iterator[object]], behind: Callable[[str], float]) -> Iterator[str]:
    """Let contestants make their passes as if they ran at the same time.

    Args:
        passes: of each contestant.
        behind: how far each is, such as its seconds or its tokens; the one with the least goes on.

    Yields:
        Who has made a pass.
    """
    going, end = list(passes), object()
    while going:
        name = min(going, key=behind)
        if next(passes[name], end) is end:
            going.remove(name)
        else:
            yield name
