"""The running estimate of how often drafts are accepted."""

import pytest

from specstream.core.policy.acceptance import FADE, PRIOR_ACCEPTANCE, Acceptance


def emitted(acceptance, depth):
    """What depth ``depth`` alone adds."""
    return acceptance.expected[depth] - acceptance.expected[depth - 1]


def test_before_anything_was_judged_it_is_hopeful_and_shallow():
    acceptance = Acceptance()
    assert acceptance.reach == 1
    assert acceptance.expected == [1, 1 + PRIOR_ACCEPTANCE]
    assert acceptance.hopeful == 2


def test_the_reach_doubles_with_what_was_judged():
    acceptance = Acceptance()
    reaches = []
    for _ in range(3):
        acceptance.judge(acceptance.reach, acceptance.reach)
        reaches.append(acceptance.reach)
    assert reaches == [2, 4, 8]


@pytest.mark.parametrize("period", [2, 3, 5])
def test_it_comes_to_the_frequency(period):
    acceptance = Acceptance()
    for round_ in range(300):
        acceptance.judge(1, int(round_ % period != 0))
    assert emitted(acceptance, 1) == pytest.approx(1 - 1 / period, abs=2 * FADE)


def test_depths_count_given_that_the_one_before_was_accepted():
    acceptance = Acceptance()
    for round_ in range(200):
        accepted = (2, 1)[round_ % 2]
        acceptance.judge(2, accepted)
    assert emitted(acceptance, 1) == pytest.approx(1)
    assert emitted(acceptance, 2) == pytest.approx(0.5, abs=0.05)


def test_a_run_that_is_not_to_be_believed_makes_it_forget():
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.judge(1, 0)
    for _ in range(2):
        acceptance.judge(1, 1)
        assert emitted(acceptance, 1) < 0.2, "twice is luck"
    acceptance.judge(1, 1)
    assert emitted(acceptance, 1) > 0.8
    for _ in range(100):
        acceptance.judge(1, 1)
    for _ in range(3):
        acceptance.judge(1, 0)
    assert emitted(acceptance, 1) < 0.5


def test_a_depth_that_is_not_looked_at_becomes_like_the_one_before():
    acceptance = Acceptance()
    for _ in range(30):
        acceptance.judge(2, 1)
    assert emitted(acceptance, 2) < 0.1
    for _ in range(60):
        acceptance.judge(1, 1)
    assert emitted(acceptance, 2) > 0.4


def test_a_depth_that_a_rejection_hid_does_not():
    acceptance = Acceptance()
    for _ in range(30):
        acceptance.judge(2, 1)
    before = list(acceptance._judged)
    acceptance.judge(1, 0)
    assert acceptance._judged[1] == before[1]
