"""Continuous batching: one thread owns the engine; answers join and leave its batch between two rounds.

Whoever asks hands in jobs and is told what each of them emits. Waiting jobs are taken by turns, one client after the
other. At most one chunk of one prompt is read between two rounds, so that neither a crowd of newcomers nor a long
prompt holds up those who are being served. What goes wrong with one job is its own; a pass that fails takes with it the
jobs that were in it, and the next batch starts with a new cache.

A second thread tells jobs at their deadline, whatever the first one is at. What is left of them is dropped between two
passes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from specstream.core.decode import Batch, Reading
from specstream.core.rows import Row
from specstream.engine.generation import Parts
from specstream.errors import SpecStreamError
from specstream.serving.faults import fault
from specstream.serving.jobs import Failed, FairQueue, Job, LateError

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


class Turns:
    """One thread on which several schedulers run, one at a time and in the order in which they ask.

    So between two rounds of one there is at most one round of each other. As it is one thread, OpenMP has one pool of
    threads for all of them: those of the pools of several would spin on the cores that one of them computes on.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="specstream-turns", daemon=True).start()

    def take(self, work: Callable[[], None]) -> None:
        """Run something there, and wait for its end.

        Raises:
            BaseException: its own.
        """
        done: Future[None] = Future()
        self._asked.put((work, done))
        done.result()

    def close(self) -> None:
        """End the thread behind what was asked before."""
        self._asked.put(None)

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            work, done = asked
            try:
                work()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)


class Scheduler:
    """Serves jobs.

    Args:
        parts: the engine's; from ``start`` on the thread's alone.
        max_rows: jobs that are decoded side by side.
        max_queue: jobs that may wait besides.
        chunk: tokens of a prompt that are read between two rounds.
        finished: told of every job that has ended, from either thread or the one that cancels it.
        turns: those of all models on this machine; None where there is no other.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        max_rows: int,
        max_queue: int,
        chunk: int,
        finished: Callable[[Job], None],
        turns: Turns | None = None,
    ) -> None:
        self._parts, self._max_rows, self._max_queue, self._finished = parts, max_rows, max_queue, finished
        self._chunk, self._turns = chunk, turns
        self._queue = FairQueue()
        self._open: set[Job] = set()  # those that were not told their end
        self._running: dict[Row, Job] = {}
        self._reading: Job | None = None  # its prompt is being read: neither waiting nor in the batch
        self._prompt: Reading | None = None  # that prompt
        self._batch: Batch | None = None
        self._stopping = self._ended = False
        self._lately: deque[float] = deque(maxlen=32)  # seconds that the last answers took
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="specstream-scheduler", daemon=True)
        self._watch = threading.Thread(target=self._watch_deadlines, name="specstream-deadlines", daemon=True)

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
        self._watch.start()

    def stop(self, grace: float) -> None:
        """Take no more jobs, finish those that are there for ``grace`` seconds, and give up the others.

        Told a second time, it gives them up at once.
        """
        with self._changed:
            grace, self._stopping = 0 if self._stopping else grace, True
            self._changed.notify_all()
        self._thread.join(grace)
        with self._changed:
            self._drop(list(self._open), lambda job: StoppingError("the server has stopped; try another one"))
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
                running_for = [now - (job.joined or now) for job in list(self._running.values())]
                seconds = answer_seconds(self._lately, running_for)
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
            self._open.update(jobs)
            for job in jobs:
                self._queue.push(job)
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more; they hear nothing."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._drop(jobs, lambda job: None)

    def _drop(self, jobs: Sequence[Job], why: Callable[[Job], Exception | None]) -> None:
        """End these from another thread: at once as far as anybody can see, and their passes as soon as may be."""
        for job in jobs:
            self._tell(job, why(job))
        for job in self._queue.remove(lambda job: job not in self._open):
            self._count(job)
        self._changed.notify_all()

    def _watch_deadlines(self) -> None:
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                self._drop([job for job in self._open if job.deadline <= now], Job.late)
                soonest = min((job.deadline for job in self._open), default=math.inf)
                self._changed.wait(min(threading.TIMEOUT_MAX, max(0.0, soonest - now)))

    def _work(self) -> None:
        try:
            while self._wait():
                if self._turns is None:
                    self._turn()
                else:
                    self._turns.take(self._turn)
        finally:  # nothing is left, unless the thread dies: then nobody shall wait for it
            with self._changed:
                self._ended, self._batch = True, None
                self._drop(list(self._open), lambda job: StoppingError("the server's scheduler has died; see its log"))
            self._retire()

    def _turn(self) -> None:
        """One chunk of one prompt, and one round."""
        self._retire()
        self._read()
        self._round()

    def _wait(self) -> bool:
        """Until there is something to do; False when there will be nothing more."""

        def busy() -> bool:
            return bool(len(self._queue) or self._running or self._reading)

        with self._changed:
            self._changed.wait_for(lambda: busy() or self._stopping)
            return busy()

    def _retire(self) -> None:
        """Let go of those that were told their end: by their deadline, their client, or a server that gives up."""
        if self._reading is not None and self._reading not in self._open:
            self._count(self._reading)
            self._reading = self._prompt = None
        rows = [row for row, job in self._running.items() if job not in self._open]
        for row in rows:
            self._count(self._running.pop(row))
        self._leave(rows)

    def _read(self) -> None:
        """Read on in one prompt, the next one's if there is room; the row of one that is read joins the others."""
        job = self._reading or self._admit()
        if job is None:
            return
        try:
            self._prompt = self._prompt or job.begin(self._parts)
            newcomer = self._prompt.step(self._chunk)
        except BaseException as error:
            self._reading = self._prompt = None
            self._end(job, _told(error))
            return
        if newcomer is None:
            return
        job.read = time.monotonic()
        self._reading = self._prompt = None
        if not self._open_up(job):
            return
        self._running[newcomer.rows[0]] = job
        try:
            if self._batch is not None and self._batch.rows:
                self._batch.join(newcomer)
            else:
                self._batch = newcomer
        except BaseException as error:
            self._fail_batch(error)

    def _open_up(self, job: Job) -> bool:
        """Have a job tell of its prompt; whether its row joins the others."""
        error = None
        try:
            if job not in self._open or job.open():
                return True
        except BaseException as failed:
            error = _told(failed)
        self._end(job, error)
        return False

    def _admit(self) -> Job | None:
        """The next one, if there is room."""
        with self._changed:
            if len(self._queue) and len(self._running) < self._max_rows:
                self._reading = self._queue.pop()
            return self._reading

    def _round(self) -> None:
        if not self._running or self._batch is None:
            self._batch = None  # and its cache
            return
        try:
            rounds = self._batch.step()
        except BaseException as error:
            self._fail_batch(error)
            return
        failed = list[Row]()
        for round_ in rounds:
            job, own = self._running[round_.row], None
            if job not in self._open:  # it was told its end during the pass
                continue
            try:
                job.emit(round_)
            except BaseException as error:
                own = _told(error)
                failed.append(round_.row)
            if own is not None or round_.row.finish_reason is not None:
                del self._running[round_.row]
                self._end(job, own)
        self._leave(failed)  # the row is fine, and its text could not be told

    def _leave(self, gone: Collection[Row]) -> None:
        """Have the batch let go of those of these rows that are still in it."""
        if self._batch is None or not any(row in gone for row in self._batch.rows):
            return
        try:
            self._batch.leave(lambda row: row in gone)
        except BaseException as error:
            self._fail_batch(error)

    def _fail_batch(self, error: BaseException) -> None:
        """Nobody knows what the cache holds: its rows fail, and the next batch gets another."""
        jobs, self._batch = list(self._running.values()), None
        self._running.clear()
        for job in jobs:
            self._end(job, _told(error))

    def _end(self, job: Job, error: Exception | None) -> None:
        self._tell(job, error)
        self._count(job)

    def _tell(self, job: Job, error: Exception | None) -> None:
        """Its end, if it does not know: of what is well it was told with its last piece."""
        with self._changed:
            if job not in self._open:
                return
            self._open.remove(job)
            if job.cancelled:
                job.outcome = job.outcome or "cancelled"
            elif error is not None:
                job.outcome = "late" if isinstance(error, LateError) else "failed"
                try:
                    job.deliver(Failed(error=error))
                except Exception as lost:  # whoever asked is not there any more
                    _log.warning("an answer's end could not be told: %s", fault(lost))

    def _count(self, job: Job) -> None:
        """Once the passes have nothing to do with it any more."""
        if job.joined is not None and job.outcome in ("stop", "length"):
            self._lately.append(time.monotonic() - job.joined)
        try:
            self._finished(job)
        except Exception as error:
            _log.error("an answer could not be counted: %s", fault(error))


def answer_seconds(lately: Collection[float], running: Sequence[float]) -> float:
    """What an answer takes, for those who have to come again.

    Args:
        lately: seconds of the last answers that came to their own end.
        running: seconds since those that are being decoded began; one that runs longer is believed.
    """
    return max([sum(lately) / len(lately) if lately else 1.0, *running])


def _told(error: BaseException) -> Exception:
    """As an ``Exception``: a library that panics in Rust raises none, and must not end the thread."""
    return error if isinstance(error, Exception) else SpecStreamError(f"a pass ended with {fault(error)}")
