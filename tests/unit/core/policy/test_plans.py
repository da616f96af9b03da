"""What a token of each row is worth in a batch that nobody joins, and what the controller makes of it."""

from __future__ import annotations

import pytest

from specstream.core.policy.controller import Controller
from specstream.core.policy.plans import worth
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree
from tests.unit.core.machine import CHANCE, offer_of

DEPTH = 3


def flat(rows: int) -> float:
    """Rows cost little: the weights are read once for all."""
    return 1 + 0.02 * rows


def test_where_rows_cost_nothing_only_the_last_one_counts():
    assert worth([10, 50, 100], lambda rows: 1.0) == [0.0, 0.0, 3.0]
    assert worth([100, 10, 50], lambda rows: 1.0) == [3.0, 0.0, 0.0]


def test_where_rows_cost_as_much_as_passes_all_count_alike():
    assert worth([10, 50, 100], lambda rows: 2.0 * rows) == pytest.approx([1, 1, 1])


def test_rows_whose_order_is_open_share_what_they_save():
    assert worth([60, 61, 62, 60], flat) == pytest.approx([1, 1, 1, 1])
    assert worth([50, 60], flat) == pytest.approx([1, 1]), "twice the root of 60 is more"
    first, second, last = worth([20, 60, 61], flat)
    assert second == last > 1 > first
    assert first + second + last == pytest.approx(3)
    assert first == pytest.approx(3 * (flat(3) - flat(2)) / flat(3))


def test_a_price_that_fell_with_rows_was_a_disturbance():
    prices = {1: 1.0, 2: 1.2, 3: 1.1}
    assert worth([10, 50, 100], prices.__getitem__) == pytest.approx([0, 3 * 0.2 / 1.2, 3 / 1.2])


def seconds_of(lengths: list[int], lucky: int, *, closed: bool) -> float:
    """Of decoding rows to their ends; all that is drafted for the lucky one is right, for the others nothing is."""
    controller, left, spent = Controller(), dict(enumerate(lengths)), 0.0
    paces = {row: [4, 4] for row in left}
    tree = TokenTree.chain([9] + [1] * DEPTH)
    while left:
        rows = list(left)
        depths = [min(DEPTH, left[row] - 1) if row == lucky else 0 for row in rows]
        offers = [[Offer(source="lookup/6", depth=depth, tree=tree.pruned(depth))] if depth else [] for depth in depths]
        ending = [left[row] * passes / tokens for row in rows for tokens, passes in [paces[row]]]
        choices = controller.choose(offers, ending=ending if closed else None)
        requests, trees, verdicts = [], [], []
        for choice in choices:
            depth = choice.depth if choice else 0
            requests.append(DraftRequest(tokens=[9], depth=depth, generator=CHANCE, offer=offer_of(choice)))
            trees.append(tree.pruned(depth))
            verdicts.append(Verdict(path=tuple(range(depth + 1)), tokens=(1,) * (depth + 1)))
        took = flat(len(rows)) * (1 + 0.1 * (max(map(len, trees)) - 1))
        controller.observe(offers, requests, trees, verdicts, (0.0, took))
        spent += took
        for row, verdict in zip(rows, verdicts, strict=True):
            left[row] -= len(verdict.tokens)
            paces[row] = [paces[row][0] + len(verdict.tokens), paces[row][1] + 1]
            if left[row] <= 0:
                del left[row]
    return spent


def test_a_row_that_is_ahead_is_not_sped_up_at_the_price_of_those_that_end_last():
    plain = 100 * flat(4)
    assert seconds_of([100] * 4, 0, closed=False) > 1.03 * plain
    assert seconds_of([100] * 4, 0, closed=True) < 1.02 * plain


def test_the_row_that_ends_last_is_sped_up():
    plain = 100 * flat(4) + 200 * flat(1)
    assert seconds_of([100, 100, 100, 300], 3, closed=True) < 0.45 * plain
