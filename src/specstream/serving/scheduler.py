"""Continuous batching: one thread owns the engine; answers join and leave its batch between two rounds.

Whoever asks hands in jobs and is told, from that thread, what each of them emits. Waiting jobs are taken by turns, one
client after the other. At most one prompt is read between two rounds, so that a crowd of newcomers does not hold up
those who are being served. What goes wrong with one job is its own; a pass that fails takes with it the jobs that were
in it, and the next batch starts with a new cache.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from specstream.config import GenerationConfig
from specstream.core.decode import Batch, Round, Row
from specstream.errors import SpecStreamError
from specstream.generation import Generation, Parts
from specstream.serving.pace import Pace
from specstream.text import TextStream

_log = logging.getLogger("specstream.serving")


LAST_PASS_SECONDS = 10.0
"""How long a server that gives up waits for the pass that runs."""


class QueueFullError(SpecStreamError):
    """Too many wait already; ``retry_after`` is in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} answers are waiting, which is the limit; try again in {retry_after} s")
        self.retry_after = retry_after


class StoppingError(SpecStreamError):
    """The server takes no more requests."""


class LateError(SpecStreamError):
    """The time limit of a request has passed."""


@dataclass(frozen=True, kw_only=True)
class TokenChance:
    """What the model gave an emitted token, and the likeliest instead of it: natural logarithms, before sampling."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one round gave a job: text that is complete by now, and the tokens, with their chances if it asked."""

    text: str
    tokens: tuple[int, ...]
    chances: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job's end: ``row`` has the counts, ``text`` is the whole answer."""

    row: Row
    text: str
    reason: str


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
        deliver: told every event, in order, from the scheduler's thread; ``Done`` or ``Failed`` is the last.
        deadline: of ``time.monotonic``.
        top_logprobs: how many of the likeliest tokens to report beside each; None for no chances at all.
    """

    prompt: Sequence[int]
    config: GenerationConfig
    client: str
    deliver: Callable[[Event], None]
    deadline: float = math.inf
    top_logprobs: int | None = None
    arrived: float = field(default_factory=time.monotonic)
    joined: float | None = None
    first: float | None = None
    cancelled: bool = False
    outcome: str = ""
    row: Row | None = None
    _generation: Generation = field(init=False)
    _stream: TextStream = field(init=False)
    _chances: list[TokenChance] = field(default_factory=list)

    def begin(self, parts: Parts) -> Batch:
        """Read the prompt: a batch of one row."""
        self._generation = Generation(parts, [self.prompt], self.config)
        self._stream = TextStream(parts.tokenizer, hold=max(map(len, self.config.stop_strings), default=0))
        (self.row,) = self._generation.rows
        if self.top_logprobs is not None:
            self.row.watch = self._watch
        return self._generation.batch()

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
        if row.finish_reason is None:
            self.deliver(Piece(text=self._stream.push(round_.tokens), tokens=round_.tokens, chances=chances))
            return
        text = self._generation.text(row)  # the last tokens may hold a stop string
        self.deliver(Piece(text=self._stream.finish(text), tokens=round_.tokens, chances=chances))
        self.outcome = row.finish_reason
        self.deliver(Done(row=row, text=text, reason=row.finish_reason))

    def _watch(self, logits: Tensor, tokens: Sequence[int]) -> None:
        shares = logits.float().log_softmax(-1)
        best = shares.topk(min(self.top_logprobs or 0, shares.shape[-1]), -1)
        for at, token in enumerate(tokens):
            top = tuple(zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True))
            self._chances.append(TokenChance(token=token, logprob=float(shares[at, token]), top=top))


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


class Scheduler:
    """Serves jobs.

    Args:
        parts: the engine's; from ``start`` on the thread's alone.
        max_rows: jobs that are decoded side by side.
        max_queue: jobs that may wait besides.
        finished: told of every job that has ended, from the thread.
    """

    def __init__(self, parts: Parts, *, max_rows: int, max_queue: int, finished: Callable[[Job], None]) -> None:
        self._parts, self._max_rows, self._max_queue, self._finished = parts, max_rows, max_queue, finished
        self._queue = FairQueue()
        self._running: dict[Row, Job] = {}
        self._reading: Job | None = None  # its prompt is being read: neither waiting nor in the batch
        self._batch: Batch | None = None
        self._stopping = self._giving_up = False
        self._pace = Pace()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="specstream-scheduler", daemon=True)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running) + (self._reading is not None)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Take no more jobs, finish those that are there for ``grace`` seconds, and give up the others.

        Told a second time, it gives them up at once.
        """
        with self._changed:
            grace, self._stopping = 0 if self._stopping else grace, True
            self._changed.notify_all()
        self._thread.join(grace)
        self._giving_up = True
        self._thread.join(LAST_PASS_SECONDS)
        if self._thread.is_alive():
            _log.error("a pass has not ended %.0f s after the grace; it is left behind", LAST_PASS_SECONDS)

    def check(self, count: int) -> None:
        """Refuse now what ``submit`` would refuse, before any work is done for it.

        Raises:
            QueueFullError: no room for so many.
            StoppingError: it takes no more.
        """
        with self._changed:
            if not self.ready:
                raise StoppingError("the server is stopping; try another one")
            waiting, running = len(self._queue), self.running
            if waiting + count > self._max_queue + max(0, self._max_rows - running):
                now = time.monotonic()
                seconds = self._pace.seconds([now - (job.joined or now) for job in list(self._running.values())])
                turns = (waiting + running) / self._max_rows
                raise QueueFullError(waiting, max(1, math.ceil(turns * seconds)))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take all of them or none.

        Raises:
            QueueFullError: no room.
            StoppingError: it takes no more.
        """
        with self._changed:
            self.check(len(jobs))
            for job in jobs:
                self._queue.push(job)
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more; they hear nothing."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while self._wait():
                self._retire()
                self._admit()
                self._round()
        finally:  # nothing is left, unless the thread dies: then nobody shall wait for it
            reading = [] if self._reading is None else [self._reading]
            for job in [*reading, *self._running.values(), *self._queue.remove(lambda job: True)]:
                self._end(job, StoppingError("the server's scheduler has died; see its log"))

    def _wait(self) -> bool:
        """Until there is something to do; False when there will be nothing more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) or self._running or self._stopping)
            return bool(len(self._queue) or self._running)

    def _retire(self) -> None:
        """Let go of the cancelled and of those whose time is up."""
        now = time.monotonic()

        def gone(job: Job) -> bool:
            return self._giving_up or job.cancelled or job.deadline <= now

        with self._changed:
            left = self._queue.remove(gone)
        rows = [row for row, job in self._running.items() if gone(job)]
        left += [self._running.pop(row) for row in rows]
        if rows and self._batch is not None:
            try:
                self._batch.leave(lambda row: row in rows)
            except BaseException as error:
                self._fail_batch(error)
        for job in left:
            if self._giving_up:
                self._end(job, StoppingError("the server has stopped; try another one"))
            else:
                seconds = job.deadline - job.arrived
                self._end(job, LateError(f"the answer took more than {seconds:.0f} s; ask for fewer tokens"))

    def _admit(self) -> None:
        """Let the next one in, if there is room: its prompt is read, and it joins the others."""
        with self._changed:
            if not len(self._queue) or len(self._running) >= self._max_rows:
                return
            job = self._reading = self._queue.pop()
        job.joined = time.monotonic()
        try:
            newcomer = job.begin(self._parts)
        except BaseException as error:
            self._reading = None
            self._end(job, _told(error))
            return
        self._running[newcomer.rows[0]], self._reading = job, None
        try:
            if self._batch is not None and self._batch.rows:
                self._batch.join(newcomer)
            else:
                self._batch = newcomer
        except BaseException as error:
            self._fail_batch(error)

    def _round(self) -> None:
        if not self._running or self._batch is None:
            self._batch = None  # and its cache
            return
        try:
            rounds = self._batch.step()
        except BaseException as error:
            self._fail_batch(error)
            return
        failed = []
        for round_ in rounds:
            job, own = self._running[round_.row], None
            try:
                job.emit(round_)
            except BaseException as error:
                own = _told(error)
                failed.append(round_.row)
            if own is not None or round_.row.finish_reason is not None:
                del self._running[round_.row]
                self._end(job, own)
        if any(row in self._batch.rows for row in failed):  # the row is fine, and its text could not be told
            try:
                self._batch.leave(lambda row: row in failed)
            except BaseException as error:
                self._fail_batch(error)

    def _fail_batch(self, error: BaseException) -> None:
        """Nobody knows what the cache holds: its rows fail, and the next batch gets another."""
        jobs, self._batch = list(self._running.values()), None
        self._running.clear()
        _log.error("a pass failed with %d answers in it: %s", len(jobs), error)
        for job in jobs:
            self._end(job, _told(error))

    def _end(self, job: Job, error: Exception | None) -> None:
        if error is not None and not job.cancelled:
            job.outcome = "late" if isinstance(error, LateError) else "failed"
            try:
                job.deliver(Failed(error=error))
            except Exception as lost:  # whoever asked is not there any more
                _log.warning("an answer's end could not be told: %s", lost)
        elif job.cancelled and not job.outcome:
            job.outcome = "cancelled"
        elif job.joined is not None and not job.cancelled:
            self._pace.ended(time.monotonic() - job.joined)
        try:
            self._finished(job)
        except Exception:
            _log.exception("an answer could not be counted")


def _told(error: BaseException) -> Exception:
    """As an ``Exception``: a library that panics in Rust raises none, and must not end the thread."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
