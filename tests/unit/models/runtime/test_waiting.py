"""How threads wait: what makes them sleep, what ends it, and that OpenMP follows."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack, nullcontext
from pathlib import Path

import pytest
import torch

from specstream.models.runtime import waiting
from specstream.models.runtime.waiting import BUSY_AFTER, LONGEST, QUIET_AFTER, Usage, Waiting, watched

PASS = 0.02


class Process:
    """Two threads on two cores, on a clock that only passes move.

    Attributes:
        busy: whether other work wants one of the cores.
        slept: one entry for each time that threads began to sleep.
    """

    def __init__(self):
        self.used, self.busy, self.slept, self.asleep = Usage(), False, [], False
        self.waiting = Waiting(lambda: self.used, lambda: 2, self.sleep)

    def sleep(self, until):
        self.asleep = True
        self.slept.append(self.used.clock)
        until.callback(setattr, self, "asleep", False)

    def run(self, seconds, *, share=None, switches=None):
        end = self.used.clock + seconds
        while self.used.clock < end:
            usual = {
                (False, False): (1.95, 80),
                (True, False): (1.2, 190),
                (False, True): (1.6, 250),
                (True, True): (1.0, 3000),
            }
            cores, rate = usual[self.busy, self.asleep]
            with self.waiting.watched():
                self.used = self.used.and_by(Usage(PASS, (share or cores) * PASS, (switches or rate) * PASS))
        assert self.asleep == self.waiting.sleeps


def test_on_a_quiet_machine_threads_spin():
    process = Process()
    process.run(60)
    assert not process.slept


def test_beside_other_work_they_sleep_soon_and_as_long_as_it_lasts():
    process = Process()
    process.run(10)
    process.busy = True
    process.run(2 * BUSY_AFTER)
    assert process.asleep
    process.run(60)
    assert process.asleep and len(process.slept) == 1
    process.busy = False
    process.run(2 * QUIET_AFTER)
    assert not process.asleep
    process.run(60)
    assert len(process.slept) == 1


@pytest.mark.parametrize(
    "few", [{"share": 1.2, "switches": 5}, {"share": 1.99, "switches": 400}], ids=["switches", "lost"]
)
def test_neither_serial_work_nor_switches_that_cost_nothing_are_other_work(few):
    process = Process()
    process.run(10, **few)
    assert not process.slept, "one thread computes while the other waits, or a switch to nobody"


def test_where_other_work_does_not_show_while_threads_sleep_spinning_is_tried_more_and_more_rarely():
    process = Process()
    process.busy = True
    while process.used.clock < 600:
        process.run(PASS, **({"switches": 100} if process.asleep else {}))
    waits = [b - a for a, b in zip(process.slept, process.slept[1:], strict=False)]
    assert waits[0] == pytest.approx(QUIET_AFTER, rel=0.3) and waits[1] > 1.5 * waits[0]
    assert waits[-1] == pytest.approx(LONGEST, rel=0.1)
    process.busy = False
    process.run(200)
    process.busy = True
    process.run(1)
    process.busy = False
    process.run(2 * QUIET_AFTER)
    assert not process.asleep, "after a long quiet time it begins anew"


@pytest.mark.parametrize("name", waiting.VARIABLES)
def test_what_the_environment_says_of_waiting_holds(name, monkeypatch):
    for each in waiting.VARIABLES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    waiting.waiting.cache_clear()
    try:
        assert isinstance(waiting.waiting(), Waiting) and not isinstance(watched(torch.device("cpu")), nullcontext)
        assert isinstance(watched(torch.device("meta")), nullcontext)
        waiting.waiting.cache_clear()
        monkeypatch.setenv(name, "ACTIVE")
        assert waiting.waiting() is None and isinstance(watched(torch.device("cpu")), nullcontext)
    finally:
        waiting.waiting.cache_clear()


@pytest.mark.parametrize(
    ("threads", "cpus", "teams"), [(2, 2, 1), (8, 16, 2), (4, 16, 5), (2, 64, 0), (4, 2, 0), (1, 8, 0)]
)
def test_there_are_as_many_teams_as_outnumber_the_cpus(threads, cpus, teams, monkeypatch):
    kept = []
    monkeypatch.setattr(waiting, "_keep_a_team", lambda size, until: kept.append(size))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cpus), raising=False)
    with ExitStack() as until:
        waiting.outnumber(until)
    assert kept == [threads] * teams
    if teams:
        assert threads + sum(size - 1 for size in kept) > cpus


def test_where_no_thread_can_be_started_passes_go_on(monkeypatch):
    def full(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with ExitStack() as until:
        waiting._keep_a_team(2, until)


SLEEPS = """
import os, time, torch
from contextlib import ExitStack
from resource import RUSAGE_SELF, getrusage
from specstream.models.runtime.waiting import outnumber

torch.set_num_threads(THREADS)
rows = torch.zeros(THREADS << 15)

def slept():
    before = getrusage(RUSAGE_SELF).ru_nvcsw
    for _ in range(400):
        rows.zero_()
        sum(range(3000))  # longer than a thread that is to sleep spins, and less than one that spins
    return getrusage(RUSAGE_SELF).ru_nvcsw - before

def threads():
    return len(os.listdir("/proc/self/task"))

slept()
first = threads()
with ExitStack() as until:
    outnumber(until)
    print(threads() - first, slept())
end = time.monotonic() + 60
while threads() > first and time.monotonic() < end:  # the system counts a thread for a moment longer
    time.sleep(0.01)
print(threads() - first)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux lists them")
@pytest.mark.parametrize("threads", [1, 2])
def test_openmp_follows_and_what_was_started_for_it_ends(threads):
    own = {name: value for name, value in os.environ.items() if name not in waiting.VARIABLES}
    own |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", SLEEPS.replace("THREADS", str(threads))]
    more, slept, left = map(int, subprocess.run(command, env=own, capture_output=True, check=True).stdout.split())
    assert left == 0
    if threads == 1:
        assert more == 0, "nobody waits"
    else:
        assert more >= 2 and slept >= 400, "a worker slept between any two of its tasks"
