"""Successive halving against speeds that are made up."""

from __future__ import annotations

from collections import Counter

import pytest

from specstream.evaluation.successive_halving import runs_of, search

SPEEDS = {"plain": 10.0, "a": 5.0, "b": 20.0, "c": 12.0, "d": 9.0, "e": 15.0}


class Machine:
    """Runs that take what ``SPEEDS`` says, more on some prompts, and are counted."""

    def __init__(self, speeds=SPEEDS, broken=()):
        self.speeds, self.broken, self.runs = speeds, broken, []

    def __call__(self, name, prompt):
        self.runs.append((name, prompt))
        if name in self.broken:
            raise RuntimeError("it\nbroke")
        return 10 + prompt, (10 + prompt) / self.speeds[name] * (1 + 0.5 * (prompt % 2))


def test_the_fastest_is_found_and_the_slow_ones_run_less():
    machine = Machine()
    found = search("plain", list("abcde"), 8, machine, first=2, repeats=3)
    assert (found.best, found.pays) == ("b", True)
    assert found.ratio.value == pytest.approx(2)
    assert [stage.prompts for stage in found.stages] == [2, 4, 8]
    assert [stage.left for stage in found.stages] == [["b", "e", "c", "d", "a"], ["b", "e", "c"], ["b", "e"]]
    runs = Counter(name for name, _ in machine.runs)
    assert runs == {"plain": 2 + 4 + 24, "b": 30, "e": 30, "c": 6, "d": 2, "a": 2}


@pytest.mark.parametrize(("names", "prompts", "repeats"), [("abcde", 8, 3), ("ab", 3, 1), ("abcd", 1, 2), ("", 4, 2)])
def test_how_many_runs_there_will_be_is_known_beforehand(names, prompts, repeats):
    machine = Machine()
    if names:
        search("plain", list(names), prompts, machine, repeats=repeats)
    assert runs_of(len(names), prompts, repeats=repeats) == len(machine.runs)


def test_everything_of_a_prompt_runs_in_turn_and_the_first_one_changes():
    machine = Machine()
    search("plain", ["b", "e"], 3, machine, repeats=1)
    assert machine.runs == [
        *[("plain", 0), ("b", 0), ("e", 0)],
        *[("b", 1), ("e", 1), ("plain", 1)],
        *[("e", 2), ("plain", 2), ("b", 2)],
    ]


def test_what_is_reported_is_of_the_last_stage_alone():
    """A candidate that was lucky at first is not reported with its luck."""
    count = Counter()

    def measure(name, prompt):
        count[name] += 1
        lucky = name == "b" and count[name] <= 2
        return 10, 0.1 if lucky else 10 / SPEEDS[name]

    found = search("plain", list("abcd"), 4, measure, first=2, repeats=1)
    assert (found.best, found.ratio.value) == ("b", pytest.approx(2))


def test_nothing_faster_than_the_base_does_not_pay():
    found = search("plain", ["a", "d"], 4, Machine())
    assert (found.best, found.pays) == ("d", False)
    assert found.ratio.high < 1


def test_a_candidate_that_fails_is_out_with_its_reason():
    machine = Machine(broken="b")
    found = search("plain", list("abcde"), 4, machine)
    assert found.best == "e"
    assert found.stages[0].out == {"b": "RuntimeError: it broke"}
    assert Counter(name for name, _ in machine.runs)["b"] == 1


def test_a_base_that_fails_is_a_failure():
    with pytest.raises(RuntimeError, match="broke"):
        search("plain", ["b"], 2, Machine(broken=["plain"]))


def test_if_all_fail_there_is_no_best():
    found = search("plain", ["a", "b"], 2, Machine(broken="ab"))
    assert (found.best, found.ratio, found.pays) == (None, None, False)
