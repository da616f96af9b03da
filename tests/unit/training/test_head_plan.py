"""How many answers and steps are chosen, and that they fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specstream.errors import UsageError
from specstream.training.head_plan import EPOCHS, LEAST, MOST_EPOCHS, Costs, answers_for, estimate, steps_for, steps_of

COSTS = Costs(
    answer=0.01,
    alone=0.05,
    states=0.002,
    step=0.5,
    evaluation=0.05,
    setup=10.0,
    kept=10_000.0,
    answer_tokens=100.0,
    length=150.0,
    available=5000,
)


@pytest.mark.parametrize("hours", [0.2, 0.5, 1.0, 2.0])
def test_what_is_chosen_fits_the_hours_and_little_more_would(hours):
    left = hours * 3600
    answers = answers_for(COSTS, None, left, 20)
    steps = steps_for(COSTS, answers, left - answers * 1.0, 20)
    assert estimate(COSTS, answers, steps, 20).seconds <= left
    assert steps >= steps_of(answers, EPOCHS)
    assert estimate(COSTS, answers + 16, steps_of(answers + 16, EPOCHS), 20).seconds > left


def test_without_hours_the_tokens_decide():
    assert answers_for(COSTS, 50_000, None, 20) == 500
    assert answers_for(COSTS, None, None, 20) == answers_for(COSTS, 10**9, None, 20) == 5000
    assert answers_for(COSTS, 5, None, 20) == LEAST
    assert steps_for(COSTS, 500, None, 20) == steps_of(500, EPOCHS) == (500 - 48) * EPOCHS // 8


def test_hours_beyond_the_prompts_become_steps():
    few = replace(COSTS, available=100)
    assert answers_for(few, None, 1e6, 20) == 100
    assert steps_for(few, 100, 1e6, 20) == steps_of(100, MOST_EPOCHS)


def test_states_without_room_take_time_and_no_disk():
    """Of 500 answers all are read once where they fit, and for each step and evaluation where none does."""
    steps = steps_of(500, EPOCHS)
    whole, none = (estimate(COSTS, 500, steps, disk) for disk in (20, 0))
    assert whole.kept == pytest.approx(500 * 150 * 10_000)
    assert none.kept == 0
    assert whole.states == pytest.approx(500 * 150 * 0.002)
    assert none.states == pytest.approx((steps * 8 + 7 * 48) * 150 * 0.002)


def test_the_least_is_taken_where_nothing_more_fits():
    seconds = estimate(COSTS, LEAST, steps_of(LEAST, EPOCHS), 20).seconds
    assert answers_for(COSTS, None, seconds, 20) == LEAST
    with pytest.raises(UsageError, match="too small"):
        answers_for(COSTS, None, seconds - 1, 20)


def test_too_few_hours_say_what_it_takes():
    with pytest.raises(
        UsageError, match=r"^hours is too small: 0.01 are left after a sample, and 24 answers take 0.05; give"
    ):
        answers_for(COSTS, None, 36.0, 20)
