from __future__ import annotations

import pytest

from specstream.serving.pace import Pace


def test_before_an_answer_has_ended_those_that_run_say_how_long_they_take() -> None:
    assert Pace().seconds([]) == 1
    assert Pace().seconds([12.0, 4.0]) == 12


def test_it_is_the_mean_of_the_last_answers() -> None:
    pace = Pace()
    for seconds in (1000.0, *[4.0] * 32):
        pace.ended(seconds)
    assert pace.seconds([0.5]) == pytest.approx(4.0)
    for _ in range(16):
        pace.ended(8.0)
    assert pace.seconds([]) == pytest.approx(6.0)


def test_one_that_runs_longer_than_those_before_is_believed() -> None:
    pace = Pace()
    pace.ended(0.5)
    assert pace.seconds([30.0]) == 30
