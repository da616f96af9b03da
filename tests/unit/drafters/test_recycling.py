"""Token recycling: what grows from the successors that were found likely."""

import pytest
import torch

from specstream.core.ports import DraftRequest, Verdict
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.verify import verify
from specstream.drafters.recycling import DEPTH, MOST, PREFERRED, RecyclingDrafter
from specstream.errors import UsageError


def request(*tokens, depth=4, nodes=0):
    return DraftRequest(tokens=tokens, depth=depth, generator=torch.Generator(), nodes=nodes)


def begun(sampling=None, **options):
    drafter = RecyclingDrafter(**options)
    return drafter, drafter.begin([[1]], [sampling or Sampling()])


def show(session, *tokens, likely):
    """A round behind ``tokens[0]`` that emits the rest; ``likely`` is what was found behind each of the path."""
    session.offers([request(tokens[0])])
    asked = []

    def likeliest(k):
        asked.append(k)
        return [each[:k] for each in likely]

    session.observe([Verdict(path=tuple(range(len(tokens) - 1)), tokens=tokens[1:], likeliest=likeliest)])
    return asked


def test_nothing_is_known_before_a_pass():
    _, session = begun()
    assert session.offers([request(1)]) == [[]]
    assert session.propose([request(1)])[0].tokens == (1,)


def test_a_tree_grows_from_the_successors_of_each_token():
    _, session = begun()
    assert show(session, 1, 2, 3, likely=[[2, 5], [3, 6]]) == [8]
    (tree,) = session.propose([request(9, 1, nodes=4)])
    paths = {tuple(tree.tokens[node] for node in tree.path(node)[1:]) for node in range(1, len(tree))}
    assert paths == {(2,), (5,), (2, 3), (2, 6)}
    assert tree.survival[0] == 1
    assert all(tree.survival[node] < tree.survival[tree.parents[node]] for node in range(1, len(tree)))


def test_the_newest_successors_take_the_place_of_the_oldest():
    _, session = begun()
    show(session, 1, 2, likely=[[2, 5]])
    show(session, 1, 7, likely=[[7]])
    assert session.propose([request(1, nodes=3)])[0].tokens == (1, 7)


def test_the_tree_is_no_deeper_than_asked_and_no_larger():
    _, session = begun()
    show(session, 1, 1, 1, likely=[[1, 2, 3], [1, 2, 3]])
    ((offer,),) = session.offers([request(1, depth=2)])
    assert offer.depth == 2
    assert len(offer.ranked) == MOST
    (tree,) = session.propose([request(1, depth=2)])
    assert (max(tree.depths), tree.drafted) == (2, 6)
    assert session.propose([request(1)])[0].drafted == PREFERRED
    ((deepest,),) = session.offers([request(1, depth=99)])
    assert deepest.depth == DEPTH
    assert session.propose([request(1, depth=0)])[0].tokens == (1,)


def test_successors_that_are_right_are_expected_to_be():
    drafter, session = begun()
    before = drafter.learned.rates[0][1]
    for _ in range(20):
        show(session, 1, 5, likely=[[2, 5]])
    assert drafter.learned.rates[0][1] > 0.8 > before


def test_of_sampled_rows_nothing_is_carried_on():
    drafter, session = begun(Sampling(temperature=1.0))
    for _ in range(5):
        show(session, 1, 5, likely=[[2, 5]])
    assert drafter.learned.rates == drafter.unlearned().rates
    assert drafter.begin([[1]], [Sampling(temperature=1.0)]).offers([request(1)]) == [[]]


def test_rows_leave_and_join_with_their_tables():
    drafter = RecyclingDrafter()
    session = drafter.begin([[1], [1]], [Sampling()] * 2)
    session.offers([request(1), request(1)])
    session.observe([Verdict(path=(0,), tokens=(each,), likeliest=lambda k, each=each: [[each]]) for each in (4, 5)])
    session.keep([1])
    session.join(drafter.begin([[1]], [Sampling()]))
    trees = session.propose([request(1), request(1)])
    assert [tree.tokens for tree in trees] == [(1, 5), (1,)]


def test_no_successor_is_refused():
    with pytest.raises(UsageError, match="successors is 0; give 1 or more"):
        RecyclingDrafter(successors=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_likeliest_are_those_of_the_accepted_path(temperature):
    logits = torch.full((1, 4, 6), -20.0)
    for node, order in enumerate(([2, 4, 1], [0, 1, 2], [5, 3, 0], [1, 1, 1])):
        for rank, token in enumerate(order):
            logits[0, node, token] = 20.0 - rank
        logits[0, node, order[0]] += 40.0
    tree = TokenTree((0, 3, 2, 1), (-1, 0, 0, 2))
    sampling = Sampling(temperature=temperature)
    (verdict,) = verify([tree], logits, [[0]], sampling, [torch.Generator().manual_seed(0)])
    assert verdict.path == (0, 2)
    assert verdict.likeliest(3) == [[2, 4, 1], [5, 3, 0]]
