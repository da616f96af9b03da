"""Trees of candidates by rank: the best of each size, and what is learnt of how often each rank is right."""

from itertools import combinations, product

import pytest

from specstream.core.tree_shapes import MEMORY, Candidates, RankAcceptance, Shape

RATES = [[0.5, 0.2, 0.1], [0.4, 0.3, 0.05], [0.3, 0.1, 0.1]]
TOKENS = [[10, 11, 12], [20, 21, 22], [30, 31, 32]]
DRAFTED = Candidates(TOKENS, RATES)


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
        assert sum(acceptance.grow(nodes, 3).shares) == pytest.approx(best)


def test_what_is_first_of_a_large_tree_is_the_best_small_one():
    acceptance = RankAcceptance(RATES)
    large = acceptance.grow(30, 3)
    for nodes in range(31):
        assert large.first(nodes).paths == acceptance.grow(nodes, 3).paths


def test_a_rank_that_is_right_more_often_than_the_one_before_comes_first():
    shape = RankAcceptance([[0.1, 0.3, 0.2]]).grow(2, 1)
    assert (shape.paths, shape.shares) == (((0,), (1,)), (0.3, 0.2))
    assert Candidates([[10, 11, 12]], [[0.1, 0.3, 0.2]]).tree(9, 2, 1).tokens == (9, 11, 12)


def test_no_deeper_than_asked_for_and_no_wider_than_there_are_ranks():
    acceptance = RankAcceptance(RATES)
    assert acceptance.grow(9, 1).paths == ((0,), (1,), (2,))
    assert acceptance.grow(0, 3) == acceptance.grow(9, 0) == Shape((), ())
    assert acceptance.grow(0, 3).depth == 0


def test_an_offer_ranks_the_nodes_that_a_tree_grows_by():
    shape = RankAcceptance(RATES).grow(7, 3)
    offer = shape.offer("medusa")
    assert (offer.source, offer.depth, offer.tree) == ("medusa", shape.depth, None)
    assert [depth for depth, _ in offer.ranked] == [len(path) for path in shape.paths]
    assert [survival for _, survival in offer.ranked] == sorted(shape.shares, reverse=True)
    for nodes in range(1, 8):
        depths = DRAFTED.tree(9, nodes, 3).depths[1:]
        assert sorted(depths) == sorted(depth for depth, _ in offer.ranked[:nodes])
    assert shape.offer("streams", 5).depth == 5, "a tree that is deeper than asked for may come of other chances"


def test_an_offer_is_made_anew_when_more_is_known():
    acceptance = RankAcceptance([[0.5, 0.2]])
    before = acceptance.offer("streams", 2, 1)
    assert acceptance.offer("streams", 2, 1) is before
    acceptance.observe([[7, 8]], [8])
    assert acceptance.offer("streams", 2, 1).ranked == ((1, pytest.approx(0.4)), (1, pytest.approx(0.36)))
    assert before.ranked == ((1, 0.5), (1, 0.2))


def test_the_first_path_is_the_likeliest_all_the_way_down():
    """Where a runtime keeps the bits along the first path only, that should be the likeliest."""
    tree = DRAFTED.tree(9, 12, 3)
    assert tree.tokens[:4] == (9, 10, 20, 30)
    assert tree.parents[:4] == (-1, 0, 1, 2)


def test_a_tree_is_no_deeper_than_its_candidates_or_than_asked_for():
    assert Candidates(TOKENS[:1], RATES[:1]).tree(9, 12, 3).tokens == (9, 10, 11, 12)
    assert max(DRAFTED.tree(9, 12, 2).depths) == 2


def test_a_tree_carries_how_likely_each_node_is_to_survive():
    tree = Candidates([[10, 11], [20, 21]], [[0.5, 0.25], [0.5, 0.125]]).tree(9, 5, 2)
    assert tree.tokens == (9, 10, 20, 21, 11, 20)
    assert tree.parents == (-1, 0, 1, 1, 0, 4)
    assert tree.survival == (1.0, 0.5, 0.25, 0.0625, 0.25, 0.125)


class Swayed(Candidates):
    """Behind rank 1 the order is another than behind rank 0."""

    def behind(self, at, rank):
        found = super().behind(at, rank)
        return [(0.9, 2), (0.05, 0)] if at and rank == 1 else found


def test_chances_may_depend_on_the_token_before():
    drafted = Swayed(TOKENS, [[0.5, 0.4, 0.1], [0.4, 0.3, 0.2], [0.3, 0.2, 0.1]])
    tree = drafted.tree(9, 4, 2)
    below = {(tree.tokens[parent], token) for parent, token in zip(tree.parents[1:], tree.tokens[1:], strict=True)}
    assert below == {(9, 10), (9, 11), (11, 22), (10, 20)}
    assert drafted.judged([11, 22, 30]) == [[10, 11, 12], [22, 20], [30, 31, 32]]
    assert drafted.judged([77, 22]) == [[10, 11, 12]], "what follows was drafted behind something else"


def test_rates_follow_what_was_right():
    acceptance = RankAcceptance.unknown(2, 3)
    for _ in range(300):
        acceptance.observe([[1, 2, 3], [4, 5, 6]], [2])
    assert acceptance.rates[0] == pytest.approx([0, 1, 0], abs=0.02)
    assert acceptance.rates[1] == RankAcceptance.unknown(2, 3).rates[1], "nothing was emitted there"
    acceptance.observe([[1, 2, 3], [4, 5, 6]], [1, 9, 7])
    assert acceptance.rates[0][0] == pytest.approx(1 / MEMORY, abs=0.02)
    assert acceptance.rates[1][0] < 0.5
