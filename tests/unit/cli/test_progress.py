from __future__ import annotations

import time

from specstream.cli.progress import progress


def test_a_log_gets_a_line_a_minute_with_the_time_left(monkeypatch, capsys):
    """Two were done before; 10 seconds for each more."""
    clock = iter([0.0, 10.0, 70.0, 80.0, 130.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress("gsm8k", 20, done=2) as update:
        for done in (3, 9, 10, 15):
            update(done)
    assert capsys.readouterr().err.splitlines() == [
        "gsm8k: 9 of 20, about 2 minutes left",
        "gsm8k: 15 of 20, about 1 minutes left",
    ]
