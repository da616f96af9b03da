from __future__ import annotations

import logging
import threading

import pytest

from specstream import reporting
from specstream.reporting import errors_only, step


def wait_for(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """What stderr holds once the text is in it."""
    said, pause = "", threading.Event()
    for _ in range(1000):
        said += capsys.readouterr().err
        if text in said:
            return said
        pause.wait(0.01)
    raise AssertionError(f"{text!r} is not in {said!r}")


def test_a_short_step_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(reporting, "AFTER", 3600.0)
    with step("loading a model"):
        pass
    assert capsys.readouterr().err == ""


def test_a_long_step_says_what_it_is_and_goes_on_saying_it(monkeypatch, capsys):
    monkeypatch.setattr(reporting, "AFTER", 0.0)
    monkeypatch.setattr(reporting, "EVERY", 0.01)
    counts = iter(range(10**9))
    with step(lambda: f"compiling, {next(counts)} of many"):
        wait_for(capsys, "specstream: compiling, 0 of many (0 s so far)\n")
        wait_for(capsys, "specstream: compiling, 9 of many")
    assert "of many: done in 0 s\n" in capsys.readouterr().err.splitlines(keepends=True)[-1]


def test_a_step_that_fails_ends_its_lines(monkeypatch, capsys):
    monkeypatch.setattr(reporting, "AFTER", 0.0)
    with pytest.raises(KeyError), step("loading a model"):
        wait_for(capsys, "so far")
        raise KeyError("weights")
    assert "done" not in capsys.readouterr().err
    assert not any(thread.name == reporting.THREAD for thread in threading.enumerate())


def test_two_that_overlap_leave_transformers_as_it_was():
    from transformers.utils import logging as theirs

    (handler, *_), before = logging.getLogger("transformers").handlers, theirs.get_verbosity()
    warning, error = (
        logging.makeLogRecord({"name": "transformers.a", "levelno": level})
        for level in (logging.WARNING, logging.ERROR)
    )
    first, second = errors_only(), errors_only()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert handler.filter(error) and not handler.filter(warning)
    assert handler.filter(logging.makeLogRecord({"name": "specstream", "levelno": logging.WARNING}))
    second.__exit__(None, None, None)
    assert handler.filter(warning) and theirs.get_verbosity() == before
