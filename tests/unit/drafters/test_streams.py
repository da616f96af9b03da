"""The drafter of streams: whose candidates, when, and in which tree."""

from __future__ import annotations

import time

import pytest
import torch

from specstream.core.decode import decode
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.ports import DraftRequest, Verdict
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.tree_shapes import Candidates
from specstream.drafters.streams import StreamsDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import TableModel

GAMMA = 3


class Head:
    """Candidates that say where they come from: pass row, node, depth and rank."""

    gamma, first, nbytes = GAMMA, 7, 0

    def __init__(self):
        self.asked, self.depths = [], []
        self.chances = [[0.5 / 2**rank for rank in range(8)]] * GAMMA

    def candidates(self, session, places, following, count, rows=None, *, depth=None):
        self.asked.append((list(places), rows))
        self.depths.append(depth)
        return [
            Candidates(
                [
                    [1000 * row + 100 * node + 10 * depth + rank for rank in range(count)]
                    for depth in range(1, depth + 1)
                ],
                [own[:count] for own in self.chances[:depth]],
            )
            for row, node in places
        ]

    def likelihoods(self, hidden, trees):
        return [[1.0, *(0.9 if token % 10 == 0 else 0.1 for token in tree.tokens[1:])] for tree in trees]


class Session:
    """Notes what it is asked."""

    def __init__(self):
        self.tapped, self.descended = [], []

    @property
    def hidden_states(self):
        return self

    def tap(self, layers):
        self.tapped.extend(layers)

    def descend(self, trees, layer):
        self.descended.append((list(trees), layer))
        return torch.zeros(len(trees), max(map(len, trees)), 1)


def request(depth=5, token=5, nodes=0):
    return DraftRequest(tokens=[1, token], depth=depth, generator=torch.Generator(), nodes=nodes)


def begun(rows=1, **options):
    drafter, session = StreamsDrafter(Head(), **options), Session()
    return drafter, session, drafter.begin([[1, 2]] * rows, [Sampling()] * rows, session)


def emitted(offer, nodes=2):
    """Tokens that the best tree of so many nodes is expected to emit."""
    return 1 + sum(survival for _, survival in offer.ranked[:nodes])


def verdict(*path, tokens=(9,)):
    return Verdict(path=path, tokens=tokens)


def test_nothing_is_drafted_before_there_is_a_node_to_draft_from():
    drafter, session, drafts = begun()
    assert session.tapped == [7]
    assert drafts.offers([request()]) == [[]]
    (tree,) = drafts.propose([request()])
    assert tree.tokens == (5,)
    assert drafter.head.asked == []


def test_trees_grow_from_the_last_accepted_node():
    drafter, _, drafts = begun(nodes=3, most=6)
    drafts.observe([verdict(0, 2, 4)])
    ((offer,),) = drafts.offers([request()])
    assert (offer.source, offer.depth, offer.tree, len(offer.ranked)) == ("streams", GAMMA, None, 6)
    assert drafter.head.asked == [], "an offer costs next to nothing"
    (tree,) = drafts.propose([request(depth=offer.depth, nodes=6)])
    assert drafter.head.asked == [([(0, 4)], [0])]
    assert tree.drafted == 6
    assert set(tree.tokens[1:]) <= {400 + 10 * depth + rank for depth in (1, 2, 3) for rank in range(8)}
    assert tree.tokens[:3] == (5, 410, 420)


def test_a_tree_has_as_many_nodes_as_asked_for_and_as_preferred_where_nobody_says():
    drafter, _, drafts = begun(nodes=3, most=6)
    drafts.observe([verdict(0)])
    for nodes in (1, 2, 6):
        (tree,) = drafts.propose([request(nodes=nodes)])
        assert tree.drafted == nodes
    (tree,) = drafts.propose([request()])
    assert (tree.drafted, drafter.nodes, drafter.fixed_tree(9).nodes) == (3, 6, 9)


def test_a_tree_says_how_likely_the_streams_hold_each_node():
    _, _, drafts = begun(nodes=4)
    drafts.observe([verdict(0)])
    (tree,) = drafts.propose([request()])
    assert tree.survival == (1.0, 0.5, 0.25, 0.125, 0.25)
    assert tree.tokens == (5, 10, 20, 30, 11)


def test_a_tree_is_no_deeper_than_asked_for():
    _, _, drafts = begun(nodes=15)
    drafts.observe([verdict(0)])
    ((offer,),) = drafts.offers([request(depth=2)])
    assert (offer.depth, max(depth for depth, _ in offer.ranked)) == (2, 2)
    (tree,) = drafts.propose([request(depth=1)])
    assert max(tree.depths) == 1
    (tree,) = drafts.propose([request(depth=0)])
    assert tree.tokens == (5,)


def test_rows_that_take_nothing_pay_nothing_and_rows_that_leave_take_their_places_along():
    drafter, _, drafts = begun(rows=3)
    drafts.observe([verdict(0), verdict(0, 1), verdict(0, 1, 2)])
    drafts.keep([2, 0])
    trees = drafts.propose([request(depth=0), request(depth=1)])
    assert len(trees[0]) == 1
    assert set(trees[1].tokens[1:]) <= set(range(10, 18))
    assert drafter.head.asked == [([(0, 0)], [1])], "the place as the pass numbered it, the row as it is now"
    drafts.observe([verdict(0), verdict(0)])
    drafts.propose([request(depth=0), request(depth=0)])
    assert len(drafter.head.asked) == 1


def test_no_more_streams_run_than_the_deepest_tree_of_the_round_needs():
    drafter, _, drafts = begun(rows=3, nodes=6)
    drafts.observe([verdict(0)] * 3)
    for depths in ((1, 1, 1), (1, 2, 0), (0, 0, 9)):
        trees = drafts.propose([request(depth=depth) for depth in depths])
        assert [max(tree.depths) for tree in trees] == [min(depth, GAMMA) for depth in depths]
    assert drafter.head.depths == [1, 2, GAMMA]


def test_all_candidates_are_judged_whether_the_tree_held_them_or_not():
    drafter, _, drafts = begun(nodes=2, ranks=4)
    for _ in range(60):
        drafts.observe([verdict(0, tokens=(13, 20, 7))])
        drafts.propose([request()])
    rates = drafter.learned.rates
    assert rates[0][3] > 0.9 > 0.1 > rates[0][0], "rank 3 of depth 1 is always right"
    assert rates[1][0] > 0.9
    assert max(rates[2]) < 0.1
    drafts.observe([verdict(0)])
    ((offer,),) = drafts.offers([request()])
    assert emitted(offer) > 2.8


def test_a_generation_that_samples_is_judged_by_itself():
    drafter, session, drafts = begun(nodes=2, ranks=4)
    for _ in range(60):
        drafts.observe([verdict(0, tokens=(13, 20, 7))])
        drafts.propose([request()])
    expected = {}
    for name, sampling in (("sampled", Sampling(temperature=1.0)), ("greedy", Sampling())):
        other = drafter.begin([[1, 2]], [sampling], session)
        other.observe([verdict(0)])
        ((offer,),) = other.offers([request()])
        expected[name] = emitted(offer)
    assert expected["sampled"] < 2 < 2.8 < expected["greedy"]


def test_where_the_streams_are_sure_the_tree_is_deep_and_where_they_doubt_it_is_wide():
    drafter, _, drafts = begun(nodes=3, rates=[[0.5, 0.2], [0.4, 0.2], [0.3, 0.2]])
    drafts.observe([verdict(0)])
    drafter.head.chances = [[0.9, 0.1]] * GAMMA
    (tree,) = drafts.propose([request(depth=GAMMA)])
    assert tree.tokens == (5, 10, 20, 30)
    drafter.head.chances = [[0.3, 0.28, 0.26]] * GAMMA
    (tree,) = drafts.propose([request(depth=GAMMA)])
    assert (tree.tokens, max(tree.depths)) == ((5, 10, 11, 12), 1)


def test_a_head_may_come_with_rates():
    _, _, drafts = begun(nodes=2, rates=[[0.1, 0.8], [0.2, 0.7], [0.5, 0.1]])
    drafts.observe([verdict(0)])
    ((offer,),) = drafts.offers([request()])
    assert offer.ranked[:3] == ((1, 0.8), (2, pytest.approx(0.8 * 0.7)), (3, pytest.approx(0.8 * 0.7 * 0.5)))


def test_what_the_early_exit_doubts_is_dropped_with_all_below_it():
    _, session, drafts = begun(rows=2, nodes=8, pruning=0.5)
    drafts.observe([verdict(0), verdict(0)])
    trees = drafts.propose([request(), request(depth=0)])
    assert trees[0].tokens == (5, 10, 20, 30)
    assert trees[1].tokens == (5,)
    ((whole, layer),) = session.descended
    assert (len(whole[0]), len(whole[1]), layer) == (9, 1, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes is 0"),
        ({"ranks": 0}, "ranks is 0"),
        ({"pruning": 1.0}, "pruning is 1.0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        StreamsDrafter(Head(), **options)


class Never(Head):
    """Streams whose candidates are never right: they are beyond the vocabulary's used part."""

    def candidates(self, session, places, following, count, rows=None, *, depth=None):
        self.asked.append((list(places), rows))
        session.clock.seconds += 0.2
        return [Candidates([[4, 3][:count]] * GAMMA, [[0.6, 0.3][:count]] * GAMMA) for _ in places]


class FakeClock:
    """Time that passes only where something says that it took some."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_text_on_which_streams_are_of_no_use_hardly_pays_for_them(monkeypatch):
    """Every offer is declined after a few, but for a trial now and then."""
    table = torch.zeros(6, 5)
    table[:, 0] = 9.0
    clock = FakeClock()
    monkeypatch.setattr(time, "perf_counter", clock)

    class Target(TableModel):
        def begin(self, prefixes):
            session = super().begin(prefixes)
            score = session.score
            session.tap, session.clock = lambda layers: None, clock

            def timed(trees):
                clock.seconds += 1 + 0.05 * (max(map(len, trees)) - 1)
                return score(trees)

            session.score = timed
            return session

    drafter, rows, timings = (
        StreamsDrafter(Never()),
        start_rows([[1, 2]], [0], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=300)),
        Timings(),
    )
    for _ in decode(
        Target(table, 1),
        drafter,
        rows,
        speculation=Speculation(max_depth=3, controller=Controller()),
        timings=timings,
    ):
        pass
    assert rows[0].emitted == [0] * 300
    assert 1 <= len(drafter.head.asked) < 60
    assert timings.decode < 300 * 1.05
