"""Medusa's drafts: from which state, in which trees, and what is learnt of them."""

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
from specstream.drafters.medusa import MOST, MedusaDrafter
from specstream.drafters.none import NoDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import TableHeads, TableModel

MODEL = TableModel.random(7, vocab=10, memory=2, scale=3.0)


class Heads:
    """Of a state s, head k says s + 10 k, s + 10 k + 1, ..."""

    layer, depth, nbytes = 5, 3, 0

    def __init__(self, rates=()):
        self.rates = list(rates)
        self.asked = []

    def draft(self, states, depth, ranks):
        self.asked.append((states[:, 0].tolist(), depth))
        tokens = (states[:, :1, None] + 10 * torch.arange(1, depth + 1)[:, None] + torch.arange(ranks)).long()
        return tokens, (0.6 * 0.35 ** torch.arange(ranks)).expand(tokens.shape)


class Session:
    """A target's, of which only the states matter: 100 for row 0, node 0, 101 for its node 1, 200 for row 1, ..."""

    def __init__(self):
        self.tapped = []

    @property
    def hidden_states(self):
        return self

    def tap(self, layers):
        self.tapped += layers

    def states(self, layer):
        return (100 * torch.arange(1, 4)[:, None] + torch.arange(8))[..., None].float()


def request(token=1, depth=5, nodes=0):
    return DraftRequest(tokens=[0, token], depth=depth, generator=torch.Generator(), nodes=nodes)


def verdict(*path):
    return Verdict(path=path, tokens=(77,) * len(path))


def started(rows=1, paths=((0,),), heads=None, **options):
    drafter = MedusaDrafter(heads or Heads(), **options)
    session = drafter.begin([[0, 1]] * rows, [Sampling()] * rows, Session())
    session.propose([request(depth=0)] * rows)
    session.observe([verdict(*path) for path in paths])
    return session


def drafts(tree):
    return set(tree.tokens[1:])


def test_the_first_pass_of_a_batch_drafts_nothing_and_taps_the_session():
    drafter, target = MedusaDrafter(Heads()), Session()
    session = drafter.begin([[0, 1]], [Sampling()], target)
    assert target.tapped == [5]
    assert session.offers([request()]) == [[]]
    assert [len(tree) for tree in session.propose([request()])] == [1]


def test_the_last_accepted_node_of_each_row_is_drafted_from():
    session = started(2, [(0, 3), (0,)])
    first, second = session.propose([request(), request(2)])
    assert first.tokens[:2] == (1, 113)
    assert second.tokens[:2] == (2, 210)
    assert session._drafter.head.asked == [([103, 200], 3)]


def test_rows_that_leave_take_their_states_along():
    session = started(3, [(0,), (0,), (0, 1)])
    session.keep([2, 0])
    first, second = session.propose([request(), request()])
    assert (first.tokens[1], second.tokens[1]) == (311, 110)


def test_rows_that_are_not_drafted_for_cost_nothing():
    session = started(3, [(0,), (0,), (0,)])
    trees = session.propose([request(depth=0), request(depth=2), request(depth=0)])
    assert [len(tree) > 1 for tree in trees] == [False, True, False]
    assert session._drafter.head.asked == [([200], 2)]
    session.propose([request(depth=0)] * 3)
    assert len(session._drafter.head.asked) == 1


def test_the_offer_ranks_the_nodes_of_its_trees_by_what_was_learnt():
    rates = [[0.6, 0.2], [0.3, 0.1], [0.1, 0.05]]
    session = started(heads=Heads(rates), nodes=5)
    ((offer,),) = session.offers([request()])
    assert (offer.source, offer.depth, offer.tree) == ("medusa", 3, None)
    assert len(offer.ranked) == 14, "two ranks make 14 nodes, not 31"
    assert offer.ranked[:4] == ((1, 0.6), (1, 0.2), (2, pytest.approx(0.18)), (2, pytest.approx(0.06)))
    for depth in (1, 2, 3):
        ((offer,),) = session.offers([request(depth=depth)])
        assert (offer.depth, max(deep for deep, _ in offer.ranked)) == (depth, depth)


@pytest.mark.parametrize("nodes", [1, 2, 5, 30])
def test_a_tree_has_as_many_nodes_as_asked_for_and_as_preferred_where_nobody_says(nodes):
    session = started(heads=Heads(), nodes=5)
    (tree,) = session.propose([request(nodes=nodes)])
    assert tree.drafted == nodes
    (tree,) = session.propose([request()])
    assert tree.drafted == 5


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_tree_is_deeper_than_asked_for(depth):
    session = started()
    (offers,) = session.offers([request(depth=depth)])
    assert bool(offers) == (depth > 0)
    assert all(offer.depth <= depth for offer in offers)
    (tree,) = session.propose([request(depth=depth)])
    assert max(tree.depths) == depth


def test_what_was_right_is_what_the_next_trees_are_offered_for():
    session = started(nodes=3)
    for _ in range(200):  # rank 4 of the first head is always right, the second head never
        session.propose([request()])
        session.observe([Verdict(path=(0,), tokens=(114, 999))])
    ((offer,),) = session.offers([request()])
    assert offer.depth == 3, "a seed has to repeat"
    first, *others = offer.ranked
    assert (first[0], first[1] > 0.9, max(survival for _, survival in others) < 0.2) == (1, True, True)


def test_the_largest_tree_is_known_beforehand():
    assert MedusaDrafter(Heads(), nodes=40, ranks=8).nodes == 40
    assert MedusaDrafter(Heads(), nodes=4).nodes == MOST


@pytest.mark.parametrize(("name", "value"), [("nodes", 0), ("ranks", 0)])
def test_a_setting_out_of_range_is_refused(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}; give"):
        MedusaDrafter(Heads(), **{name: value})


def generate(drafter, controller=None, tokens=120, model=MODEL, seed=0, sampling=None):
    rows = start_rows(
        [[1, 2], [3]],
        [seed, seed + 1],
        model.context_length,
        sampling=sampling or Sampling(),
        stopping=Stopping(max_new_tokens=tokens),
    )
    for _ in decode(
        model,
        drafter,
        rows,
        speculation=Speculation(max_depth=5, controller=controller),
        timings=Timings(),
    ):
        pass
    return rows


def test_good_heads_are_used_as_deep_as_they_go():
    rows = generate(MedusaDrafter(TableHeads(MODEL)))
    assert [row.emitted for row in rows] == [row.emitted for row in generate(NoDrafter())]
    assert min(row.stats.mean_accepted_length for row in rows) > 3.8


def test_a_context_that_ends_is_filled_and_not_exceeded():
    rows = generate(MedusaDrafter(TableHeads(MODEL)), model=MODEL.limited(20))
    assert [len(row.tokens) for row in rows] == [20, 20]


def test_a_seed_repeats_whatever_was_learnt_before():
    drafter, sampling = MedusaDrafter(TableHeads(MODEL)), Sampling(temperature=1.0)
    first = [row.emitted for row in generate(drafter, seed=5, sampling=sampling)]
    generate(drafter, seed=9, sampling=sampling)
    assert [row.emitted for row in generate(drafter, seed=5, sampling=sampling)] == first


def priced(monkeypatch, price):
    controller = Controller()
    observe = controller.observe

    def observe_priced(offers, requests, trees, verdicts, seconds, *, deciding, ragged):
        of_the_pass = float(price(max(map(len, trees))))
        observe(offers, requests, trees, verdicts, (0.0, of_the_pass), deciding=0.0, ragged=ragged)

    monkeypatch.setattr(controller, "observe", observe_priced)
    return controller


def test_wrong_heads_are_turned_down(monkeypatch):
    controller = priced(monkeypatch, lambda width: width)
    wrong = MedusaDrafter(TableHeads(TableModel.random(8, vocab=10, memory=2, scale=3.0).sharpened(-1)), ranks=2)
    generate(wrong, controller)
    rows = generate(wrong, controller)
    assert sum(row.stats.drafted for row in rows) < 0.5 * sum(row.stats.target_passes for row in rows)


def test_the_size_follows_the_price_of_a_pass(monkeypatch):
    drafted = []
    for price in (lambda width: 100 + width, lambda width: 10 + 3 * width):
        drafter, controller = MedusaDrafter(TableHeads(MODEL.disturbed(9, 2.0))), priced(monkeypatch, price)
        generate(drafter, controller)
        rows = generate(drafter, controller)
        drafted.append(sum(row.stats.drafted for row in rows) / sum(row.stats.target_passes for row in rows))
    assert drafted[0] > 2 * drafted[1]
