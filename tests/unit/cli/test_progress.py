from __future__ import annotations

import time

import pytest

from specstream import reporting
from specstream.cli.progress import progress
from tests.unit.test_reporting import wait_for


def test_a_log_gets_lines_with_the_time_left(monkeypatch, capsys):
    """Two were done before; 10 seconds for each more."""
    monkeypatch.setattr(reporting, "AFTER", 0.0)
    monkeypatch.setattr(reporting, "EVERY", 0.01)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress("gsm8k", 20, done=2) as update:
        wait_for(capsys, "specstream: gsm8k: 2 of 20 (0 s so far)\n")
        now[0] = 70.0
        update(9, note="1 failed")
        wait_for(capsys, "specstream: gsm8k: 9 of 20, about 110 s left; 1 failed (70 s so far)\n")
        now[0] = 180.0
        update(20)
    assert capsys.readouterr().err.endswith("specstream: gsm8k: 20 of 20: done in 180 s\n")


def test_a_short_command_says_nothing_in_a_log(monkeypatch, capsys):
    monkeypatch.setattr(reporting, "AFTER", 3600.0)
    with progress("prompts", 2) as update:
        update(1)
        update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [0, None])
def test_a_total_may_come_later(monkeypatch, capsys, total):
    monkeypatch.setattr(reporting, "AFTER", 0.0)
    monkeypatch.setattr(reporting, "EVERY", 0.01)
    with progress("answers", total or 0) as update:
        wait_for(capsys, "specstream: answers: 0 done (")
        update(1, 4)
        wait_for(capsys, "specstream: answers: 1 of 4, about")
