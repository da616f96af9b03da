"""The controller on a simulated machine: given costs and acceptance, does it find the best depth, and when to stop?"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from specstream.core.controller import FIRST_PROBE, Controller

MAX_DEPTH = 6


class Machine:
    """A pass over w nodes takes 1 + slope * (w - 1), drafting a token `draft`; it is accepted with `acceptance`."""

    def __init__(self, slope, draft, acceptance, seed=0):
        self.slope, self.draft, self.acceptance = slope, draft, acceptance
        self.chance = random.Random(seed)
        self.seconds, self.tokens = 0.0, 0
        self.depths = []

    def round(self, controller, rows=1):
        depth = controller.depth(rows)
        accepted = 0
        while accepted < depth and self.chance.random() < self.acceptance:
            accepted += 1
        proposing, scoring = depth * self.draft, 1 + self.slope * depth
        controller.observe(rows, depth + 1, proposing, scoring, [(depth, accepted)] if depth else [])
        self.seconds += proposing + scoring
        self.tokens += accepted + 1
        self.depths.append(depth)

    def best_rate(self):
        return max(self.rate(depth) for depth in range(MAX_DEPTH + 1))

    def rate(self, depth):
        expected = sum(self.acceptance**at for at in range(depth + 1))
        return expected / (1 + (self.slope + self.draft) * depth)


@pytest.mark.parametrize(
    ("slope", "draft", "acceptance"),
    [(0.02, 0.0, 0.9), (0.02, 0.1, 0.8), (0.1, 0.2, 0.6), (0.3, 0.3, 0.7), (0.05, 0.3, 0.3), (0.01, 0.0, 0.1)],
)
def test_it_comes_close_to_the_best_fixed_depth(slope, draft, acceptance):
    machine, controller = Machine(slope, draft, acceptance), Controller(MAX_DEPTH)
    for _ in range(4000):
        machine.round(controller)
    assert machine.tokens / machine.seconds > 0.9 * machine.best_rate()  # learning, and acceptance that is luck


@pytest.mark.parametrize("draft", [0.0, 0.2, 0.5])
def test_where_nothing_is_accepted_it_costs_almost_nothing(draft):
    machine, controller = Machine(0.3, draft, 0.0), Controller(MAX_DEPTH)
    for _ in range(2000):
        machine.round(controller)
    assert machine.tokens / machine.seconds > 0.97  # plain decoding is 1.0


def test_it_tries_again_and_notices_when_drafts_turn_good():
    machine, controller = Machine(0.1, 0.1, 0.0), Controller(MAX_DEPTH)
    for _ in range(300):
        machine.round(controller)
    machine.acceptance = 1.0
    for _ in range(3000):
        machine.round(controller)
    assert sum(machine.depths[-100:]) > 90 * MAX_DEPTH


def test_it_backs_off_between_trials():
    machine, controller = Machine(1.0, 1.0, 0.0), Controller(MAX_DEPTH)
    for _ in range(1500):
        machine.round(controller)
    trials = [at for at, depth in enumerate(machine.depths) if depth and at > 60]
    gaps = [after - before for before, after in pairwise(trials)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= FIRST_PROBE


def test_wide_batches_speculate_less_than_one_row():
    controller = Controller(MAX_DEPTH)
    alone, crowd = Machine(0.02, 0.0, 0.7), Machine(1.0, 0.0, 0.7)
    for _ in range(300):
        alone.round(controller, rows=1)
        crowd.round(controller, rows=32)
    assert sum(alone.depths[-50:]) > sum(crowd.depths[-50:])


def test_one_slow_pass_changes_nothing():
    machine, controller = Machine(0.02, 0.0, 0.9), Controller(MAX_DEPTH)
    for _ in range(200):
        machine.round(controller)
    before = controller.depth(1)
    controller.observe(1, before + 1, 0.0, 100.0, [(before, before)])
    assert controller.depth(1) >= before - 1
