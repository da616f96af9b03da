"""Trees of candidates by rank: the best of each size, and what is learnt of how often each rank is right."""

from itertools import combinations, product

import pytest

from specstream.core.candidates import MEMORY, RankAcceptance, Shape

RATES = [[0.5, 0.2, 0.1], [0.4, 0.3, 0.05], [0.3, 0.1, 0.1]]


def test_the_shape_of_each_size_is_the_best_of_all_trees():
    acceptance = RankAcceptance([rates[:2] for rates in RATES])
    every = [path for depth in (1, 2, 3) for path in product(range(2), repeat=depth)]

    def share(path):
        value = 1.0
        for at, rank in enumerate(path):
            value *= RATES[at][rank]
        return value

    for nodes in range(1, 6):
        trees = [tree for tree in combinations(every, nodes) if all(p[:-1] in tree or len(p) == 1 for p in tree)]
        best = max(sum(map(share, tree)) for tree in trees)
        assert acceptance.grow(nodes, 3).expected()[-1] == pytest.approx(1 + best)


def test_what_is_first_of_a_large_tree_is_the_best_small_one():
    acceptance = RankAcceptance(RATES)
    large = acceptance.grow(30, 3)
    for nodes in range(31):
        assert large.first(nodes).paths == acceptance.grow(nodes, 3).paths


def test_a_rank_that_is_right_more_often_than_the_one_before_comes_first():
    assert RankAcceptance([[0.1, 0.3, 0.2]]).grow(2, 1).paths == ((1,), (2,))


def test_no_deeper_than_asked_for_and_no_wider_than_there_are_ranks():
    acceptance = RankAcceptance(RATES)
    assert acceptance.grow(9, 1).paths == ((0,), (1,), (2,))
    assert acceptance.grow(0, 3) == acceptance.grow(9, 0) == Shape((), ())
    assert acceptance.grow(0, 3).widths() == (1,)


def test_widths_and_expectations_are_those_of_the_tree_cut_there():
    shape = RankAcceptance(RATES).grow(7, 3)
    tree = shape.tree(9, [[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    assert shape.widths() == tuple(len(tree.pruned(depth)) for depth in range(4))
    assert shape.expected()[0] == 1
    assert shape.expected()[-1] == pytest.approx(1 + sum(shape.shares))


def test_the_first_path_is_that_of_the_first_ranks():
    """Where a runtime keeps the bits along the first path only, that should be the likeliest."""
    tree = RankAcceptance(RATES).grow(12, 3).tree(9, [[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    assert tree.tokens[:4] == (9, 10, 20, 30)
    assert tree.parents[:4] == (-1, 0, 1, 2)


def test_a_tree_is_no_deeper_than_its_candidates():
    tree = RankAcceptance(RATES).grow(12, 3).tree(9, [[10, 11, 12]])
    assert tree.tokens == (9, 10, 11, 12)


def test_rates_follow_what_was_right():
    acceptance = RankAcceptance.unknown(2, 3)
    for _ in range(300):
        acceptance.observe([[1, 2, 3], [4, 5, 6]], [2])
    assert acceptance.rates[0] == pytest.approx([0, 1, 0], abs=0.02)
    assert acceptance.rates[1] == RankAcceptance.unknown(2, 3).rates[1], "nothing was emitted there"
    acceptance.observe([[1, 2, 3], [4, 5, 6]], [1, 9, 7])
    assert acceptance.rates[0][0] == pytest.approx(1 / MEMORY, abs=0.02)
    assert acceptance.rates[1][0] < 0.5
