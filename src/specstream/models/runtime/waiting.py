"""How the threads of a pass wait for each other: spinning on a quiet machine, asleep beside other work.

A pass has hundreds of barriers. OpenMP's threads spin at a barrier for milliseconds before they sleep, which is fastest
where each has a core to itself. Beside other work a thread that spins takes the core from those it waits for, and a
pass takes 20 to 100 times as long. GNU's libgomp spins for a few hundred turns only while it has more threads than the
process has CPUs (``GOMP_SPINCOUNT`` in its manual). So while other work is seen, idle threads are kept that make it so.
No bit of any result depends on this. docs/experiments/0086-threads-that-wait.md
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from typing import NamedTuple

import torch

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Environment variables that say how threads wait: where one is set, it holds."""

BUSY, LOST = 15.0, 0.15
"""Involuntary context switches in a second of passes, and cores that spinning threads do not get, from which on there
is other work."""

QUIET = 500.0
"""Involuntary context switches in a second of passes whose threads sleep, below which there is none."""

BUSY_AFTER, QUIET_AFTER, LONGEST = 0.05, 1.0, 64.0
"""Seconds of passes after which it is looked at, while threads spin and while they sleep. The second doubles, up to the
last, whenever spinning was tried again in vain."""

MOST_TEAMS = 8
"""Most groups of idle threads. More would be needed where passes take few of many CPUs, and so hardly wait for one."""

GRAIN = 1 << 15
"""Elements of a tensor for which torch takes a thread more (``at::internal::GRAIN_SIZE``)."""


class Usage(NamedTuple):
    """Of this process so far: seconds by the clock, seconds of its processors, involuntary context switches."""

    clock: float = 0.0
    processors: float = 0.0
    switches: int = 0

    def and_by(self, more: Usage, times: int = 1) -> Usage:
        """With what was used besides, or with -1 ``times`` without it."""
        clock, processors = self.clock + times * more.clock, self.processors + times * more.processors
        return Usage(clock, processors, self.switches + times * more.switches)


class Waiting:
    """Makes waiting threads sleep for as long as other work interrupts passes.

    Args:
        usage: of the process so far.
        threads: of a pass.
        sleep: makes waiting threads sleep until the stack is closed.
    """

    def __init__(
        self, usage: Callable[[], Usage], threads: Callable[[], int], sleep: Callable[[ExitStack], object]
    ) -> None:
        self._usage, self._threads, self._sleep = usage, threads, sleep
        self._lock = threading.Lock()
        self._used = Usage()  # by passes since it was looked at
        self._sleeping: ExitStack | None = None
        self._spun, self._quiet_after = math.inf, QUIET_AFTER  # seconds of passes since threads last slept

    @property
    def sleeps(self) -> bool:
        """Whether waiting threads sleep now."""
        return self._sleeping is not None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around a pass."""
        before = self._usage()
        yield
        used = self._usage().and_by(before, -1)
        with self._lock:
            self._used = self._used.and_by(used)
            if self._used.clock >= (self._quiet_after if self.sleeps else BUSY_AFTER):
                self._look()
                self._used = Usage()

    def _look(self) -> None:
        used = self._used
        if self._sleeping is None:
            lost = self._threads() * used.clock - used.processors
            if used.switches >= BUSY * used.clock and lost >= LOST * used.clock:
                in_vain = self._spun < self._quiet_after
                self._quiet_after = min(2 * self._quiet_after, LONGEST) if in_vain else QUIET_AFTER
                self._sleeping = ExitStack()
                self._sleep(self._sleeping)
            else:
                self._spun += used.clock
        elif used.switches < QUIET * used.clock:
            self._sleeping.close()
            self._sleeping, self._spun = None, 0.0


def watched(device: torch.device) -> AbstractContextManager[None]:
    """Around a pass on a device: beside other work the threads of a CPU do not spin."""
    own = waiting() if device.type == "cpu" else None
    return nullcontext() if own is None else own.watched()


@cache
def waiting() -> Waiting | None:
    """Of this process; None where threads wait as the environment says, or nothing is known of how they do."""
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return None
    from resource import RUSAGE_SELF, getrusage  # other systems lack it

    def usage() -> Usage:
        now = getrusage(RUSAGE_SELF)
        return Usage(time.perf_counter(), now.ru_utime + now.ru_stime, now.ru_nivcsw)

    return Waiting(usage, torch.get_num_threads, outnumber)


def outnumber(until: ExitStack) -> None:
    """Have OpenMP count more threads than there are CPUs, until the stack is closed."""
    threads, cpus = torch.get_num_threads(), len(os.sched_getaffinity(0))
    if threads < 2:
        return  # nobody waits
    teams = math.ceil((cpus + 1 - threads) / (threads - 1))
    for _ in range(teams if teams <= MOST_TEAMS else 0):
        _keep_a_team(threads, until)


def _keep_a_team(threads: int, until: ExitStack) -> None:
    """A thread with all of OpenMP's that one has, less itself; they sleep as it does, and end with it."""
    there, end = threading.Event(), threading.Event()

    def run() -> None:
        torch.empty(threads * GRAIN).zero_()
        there.set()
        end.wait()

    thread = threading.Thread(target=run, name="specstream-waiting", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system has no room for one: as slow as without
        return
    there.wait()
    until.callback(thread.join)
    until.callback(end.set)
