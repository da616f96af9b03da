"""What a scheduler is handed, what it tells of it, and the order in which it takes what waits."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from specstream.config import GenerationConfig
from specstream.core.decode import Reading
from specstream.core.rows import Known, Round, Row
from specstream.engine.generation import Generation, Parts
from specstream.errors import SpecStreamError

SLICE = 32
"""Tokens of a prompt whose probabilities are held at a time: each is a number for every token of the vocabulary."""


class LateError(SpecStreamError):
    """The time limit of a request has passed."""


@dataclass(frozen=True, kw_only=True)
class TokenChance:
    """What the model gave a token, and the likeliest instead of it: natural logarithms, before sampling.

    The first of a prompt has none.

    Attributes:
        rank: 1 for the likeliest token; only of tokens of a prompt.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one round gave a job: text that is complete by now, and the tokens, with their chances if it asked."""

    text: str
    tokens: tuple[int, ...]
    chances: tuple[TokenChance, ...] = ()


class Done:
    """A job's end: its pieces are the whole answer."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A job's other end."""

    error: Exception


Event = Piece | Done | Failed


@dataclass(kw_only=True, eq=False)
class Job:
    """One answer.

    Attributes:
        prompt: token ids.
        config: how it is generated.
        client: whom it is for; clients take turns.
        deliver: told every event, in order, until ``Done`` or ``Failed``; from whatever thread.
        deadline: of ``time.monotonic``.
        top_logprobs: how many of the likeliest tokens to report beside each; None for no chances at all.
        prompt_logprobs: the same for the tokens of the prompt, in ``prompt_chances``.
        echo: the prompt's text, which is told first, its chances with it; None to leave it out.
        prompt_only: whether nothing is to come behind it.
        ranked: whether it is compared with others, by ``logprob``: the mean of its tokens' own.
        known: what is certain to come next, where something tells (``Row.known``).
        arrived: of ``time.monotonic``, as ``joined`` (its prompt began to be read), ``read`` (it was) and ``first``
            (its first token was there) are.
    """

    prompt: Sequence[int]
    config: GenerationConfig
    client: str
    deliver: Callable[[Event], None]
    deadline: float = math.inf
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: str | None = None
    prompt_only: bool = False
    ranked: bool = False
    known: Known | None = None
    arrived: float = field(default_factory=time.monotonic)
    joined: float | None = None
    read: float | None = None
    first: float | None = None
    cancelled: bool = False
    outcome: str = ""
    row: Row | None = None
    prompt_chances: list[TokenChance] = field(default_factory=list)
    _generation: Generation = field(init=False)
    _chances: list[TokenChance] = field(default_factory=list)
    _total: float = 0.0

    @property
    def logprob(self) -> float:
        return self._total / max(1, self.row.stats.new_tokens if self.row else 0)

    def begin(self, parts: Parts) -> Reading:
        """Its prompt, to be read."""
        self.joined = time.monotonic()
        self._generation = Generation(parts, [self.prompt], self.config)
        (self.row,) = self._generation.rows
        self.row.known = self.known
        if self.top_logprobs is not None or self.ranked:
            self.row.watch = self._watch
        if self.prompt_logprobs is not None or (self.top_logprobs is not None and self.echo is not None):
            self.prompt_chances.append(TokenChance(token=self.prompt[0], logprob=None, top=()))
            self.row.watch_prompt = self._watch_prompt
        return self._generation.reading()

    def open(self) -> bool:
        """Tell what there is when the prompt has been read; whether there is more to come."""
        if self.echo is not None:
            most = self.top_logprobs
            told = () if most is None else tuple(replace(each, top=each.top[:most]) for each in self.prompt_chances)
            self.deliver(Piece(text=self.echo, tokens=tuple(self.prompt), chances=told))
        if self.prompt_only:
            self.outcome = "length"
            self.deliver(Done())
        return not self.prompt_only

    def late(self) -> LateError:
        """What its time went into, and what to do about that."""
        now = time.monotonic()
        joined = now if self.joined is None else self.joined
        began = now if self.read is None else self.read
        waited, read, wrote = joined - self.arrived, began - joined, now - began
        remedies = {"try again later": waited, "send a shorter prompt": read, "ask for fewer tokens": wrote}
        return LateError(
            f"the answer took more than {self.deadline - self.arrived:.3g} s: {waited:.1f} s waiting, {read:.1f} s "
            f"reading the prompt, {wrote:.1f} s writing; {max(remedies, key=lambda remedy: remedies[remedy])}"
        )

    def emit(self, round_: Round) -> None:
        """Tell what a round gave.

        Raises:
            Exception: the row's own error.
        """
        row = round_.row
        if row.error is not None:
            raise row.error
        if self.first is None:
            self.first = time.monotonic()
        chances, self._chances = tuple(self._chances[: len(round_.tokens)]), []
        self._total += sum(each.logprob or 0.0 for each in chances)
        chances = () if self.top_logprobs is None else chances
        self.deliver(Piece(text=self._generation.piece(round_), tokens=round_.tokens, chances=chances))
        if row.finish_reason is not None:
            self.outcome = row.finish_reason
            self._generation.remember()
            self.deliver(Done())

    def _watch(self, logits: Tensor, tokens: Sequence[int]) -> None:
        self._chances += _chances(logits, tokens, self.top_logprobs or 0)

    def _watch_prompt(self, logits: Tensor, start: int) -> None:
        most = max(self.prompt_logprobs or 0, 0 if self.echo is None else self.top_logprobs or 0)
        for at in range(0, len(logits), SLICE):
            part = logits[at : at + SLICE]
            first = start + at + 1
            self.prompt_chances += _chances(part, self.prompt[first : first + len(part)], most, ranked=True)


def _chances(logits: Tensor, tokens: Sequence[int], most: int, *, ranked: bool = False) -> Iterator[TokenChance]:
    """Of each token, and of the ``most`` likeliest in its place; ``logits`` are ``[tokens, vocab]``."""
    shares = logits.float().log_softmax(-1)
    best = shares.topk(min(most, shares.shape[-1]), -1)
    for at, token in enumerate(tokens):
        top = tuple(zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True))
        rank = int((shares[at] >= shares[at, token]).sum()) if ranked else None  # as vLLM counts
        yield TokenChance(token=token, logprob=float(shares[at, token]), top=top, rank=rank)


class FairQueue:
    """First come, first served among one client's jobs; the clients take turns."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Job]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def push(self, job: Job) -> None:
        self._clients.setdefault(job.client, deque()).append(job)

    def pop(self) -> Job:
        """The next one; its client's others wait until the other clients had a turn."""
        client, jobs = self._clients.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._clients[client] = jobs
        return job

    def remove(self, gone: Callable[[Job], bool]) -> list[Job]:
        """Take out whoever is gone."""
        found = [job for jobs in self._clients.values() for job in jobs if gone(job)]
        left = {client: deque(job for job in jobs if not gone(job)) for client, jobs in self._clients.items()}
        self._clients = OrderedDict((client, jobs) for client, jobs in left.items() if jobs)
        return found
