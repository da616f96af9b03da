from __future__ import annotations

import time

import torch

from specstream.core.clock import Clock, Mark, between, split


def test_the_host_measures_itself():
    clock = Clock(torch.device("cpu"))
    start = clock.mark()
    time.sleep(0.01)
    assert between(start, clock.mark()) >= 0.01


def test_a_session_on_the_cpu_is_the_host():
    assert Clock(torch.device("cpu")).mark().event is None


def test_events_are_read_where_there_are_some():
    class Event:
        def elapsed_time(self, other):
            return 250.0

    assert between(Mark(1.0, Event()), Mark(9.0, Event())) == 0.25
    first, rest = split(Mark(time.perf_counter() - 2.0, Event()), Mark(0.0, Event()))
    assert first == 0.25
    assert rest >= 1.75
