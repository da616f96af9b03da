"""Verification of chains all at once, beside the walk that it stands for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from specstream.core.device import deferred
from specstream.core.device.deferred import DeferredChain, Drafted, fetch, known_tokens, shared_drafts
from specstream.core.device.verification import judge_chains
from specstream.core.ports import Verdict
from specstream.core.sampling import Sampling, distributions, draw, draw_each, probabilities
from specstream.core.tree import TokenTree
from specstream.core.verify import verify
from specstream.errors import NumericalError

VOCAB = 7
SAMPLED = Sampling(temperature=1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, VOCAB, generator=seeded(seed)) * 2


@pytest.fixture
def on_the_device(monkeypatch):
    monkeypatch.setattr(deferred, "asynchronous", lambda device: True)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature, top_k, top_p, min_p in itertools.product((0.5, 1.7), (0, 3), (1.0, 0.7), (0.0, 0.2))
    ],
)
def test_many_distributions_at_once_are_those_of_each(sampling):
    logits = random_logits(4, 5)
    logits[0, 0, 2] = -math.inf
    logits[1, 1] = logits[1, 1].round()  # equals
    together, sound = distributions(logits, sampling)
    assert bool(sound.all())
    for row, node in itertools.product(range(4), range(5)):
        torch.testing.assert_close(together[row, node], probabilities(logits[row, node], sampling))


def test_a_distribution_that_is_none_is_marked():
    logits = random_logits(5)
    logits[0, 1], logits[1, 2], logits[2], logits[3, 0] = math.nan, math.inf, -math.inf, -math.inf
    assert distributions(logits, SAMPLED)[1].tolist() == [False, False, False, True, True]
    assert distributions(torch.tensor([1.0, 50.0]), Sampling(temperature=1e-38))[1].item() is False


def test_many_draws_at_once_are_those_of_each():
    weights = distributions(random_logits(50), Sampling(temperature=1.0, top_k=3))[0]
    points = [torch.rand((), generator=seeded(row), dtype=torch.float64) for row in range(50)]
    expected = [draw(row, seeded(at)) for at, row in enumerate(weights)]
    assert draw_each(weights, torch.stack(points)).tolist() == expected
    assert len(set(expected)) > 3


def test_a_draw_at_the_far_end_is_a_token_that_can_come():
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.8]])
    assert draw_each(weights, torch.ones(3, dtype=torch.float64)).tolist() == [1, 1, 3]
    assert draw_each(weights, torch.zeros(3, dtype=torch.float64)).tolist() == [0, 1, 2]
    assert 0 <= int(draw_each(torch.full((1, 4), math.nan), torch.zeros(1, dtype=torch.float64))) < 4


def test_a_row_has_its_own_chance_whatever_stands_beside_it():
    logits = random_logits(2, 4)
    chains = [TokenTree.chain([0, 1, 2]), TokenTree.chain([3, 4, 5, 6])]
    for seed in range(30):
        alone = judge_chains(chains[:1], logits[:1], SAMPLED, [seeded(seed)])
        assert judge_chains(chains, logits, SAMPLED, [seeded(seed), seeded(seed + 1)])[:1] == alone


def test_what_stands_behind_a_chain_is_never_read():
    logits = random_logits(2, 4)
    chains = [TokenTree.chain([0, 1]), TokenTree.chain([3, 4, 5, 6])]
    given = logits.clone()
    given[0, 2:] = math.nan
    for seed in range(20):
        generators = [seeded(seed), seeded(seed)], [seeded(seed), seeded(seed)]
        expected = judge_chains(chains, logits, SAMPLED, generators[0])
        assert judge_chains(chains, given, SAMPLED, generators[1]) == expected


def certain(*tokens):
    """``[1, nodes, vocab]`` logits that leave no choice."""
    return torch.stack([torch.where(torch.arange(VOCAB) == token, 0.0, -math.inf) for token in tokens])[None]


@pytest.mark.usefixtures("on_the_device")
class TestVerify:
    def test_the_walk_ends_at_a_rejection_or_behind_the_last(self):
        chain = TokenTree.chain([0, 1, 2])
        for tokens, path in {(1, 2, 3): (0, 1, 2), (1, 4, 3): (0, 1), (5, 2, 3): (0,)}.items():
            (verdict,) = verify([chain], certain(*tokens), [[0]], SAMPLED, [seeded()])
            assert verdict == Verdict(path=path, tokens=tokens[: len(path)])

    def test_the_walk_ends_at_an_accepted_end(self):
        chain = TokenTree.chain([0, 1, 2, 3])
        logits = certain(1, 2, 3, 4)
        logits[0, 2] = math.nan  # what would come after the end
        (verdict,) = verify([chain], logits, [[0]], SAMPLED, [seeded()], ends=frozenset({2}))
        assert verdict == Verdict(path=(0, 1, 2), tokens=(1, 2))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_numbers_that_are_none_are_an_error_where_the_output_meets_them(self, bad):
        chain = TokenTree.chain([0, 1, 2])
        logits = certain(1, 4, 3)
        logits[0, 2, 0] = bad
        assert verify([chain], logits, [[0]], SAMPLED, [seeded()])[0].tokens == (1, 4)
        logits[0, 1, 0] = bad
        (verdict,) = verify([chain], logits, [[0]], SAMPLED, [seeded()])
        assert isinstance(verdict.error, NumericalError)

    def test_a_token_that_was_not_drawn_from_its_distribution_is_ignored(self):
        """Accepted it would be too often; and subtracted, its distribution would take from others."""
        chain = TokenTree.chain([0, 1], [distributions(certain(2)[0, 0], SAMPLED)[0]])
        logits = torch.where(torch.isin(torch.arange(VOCAB), torch.tensor([1, 2])), 0.0, -math.inf).expand(1, 2, VOCAB)
        verdicts = [verify([chain], logits, [[0]], SAMPLED, [seeded(seed)])[0] for seed in range(40)]
        assert {verdict.path for verdict in verdicts} == {(0,)}
        assert {verdict.tokens for verdict in verdicts} == {(1,), (2,)}

    def test_a_draft_that_was_drawn_from_nan_is_an_error(self):
        drafts = Drafted(tokens=torch.tensor([[1, 2]]), sound=torch.tensor([[True, False]]))
        with pytest.raises(NumericalError):
            verify([DeferredChain(drafts, 0, 2, 0)], certain(1, 2, 3), [[0]], SAMPLED, [seeded()])
        with pytest.raises(NumericalError):
            verify([DeferredChain(drafts, 0, 2, 0)], certain(1, 2, 3), [[0]], Sampling(), [seeded()])
        (verdict,) = verify([DeferredChain(drafts, 0, 1, 0)], certain(1, 2, 3), [[0]], SAMPLED, [seeded()])
        assert verdict.tokens == (1, 2), "the second was not asked for"

    def test_rows_that_drew_stand_beside_rows_that_chose(self):
        """Such a batch comes from a drafter that mixes; each row is as it would be alone."""
        q = torch.full((VOCAB,), 1 / VOCAB)
        trees = [TokenTree.chain([0, 1, 2], [q, q]), TokenTree.chain([3, 4]), TokenTree.chain([5])]
        logits = random_logits(3, 3)
        for seed in range(40):
            generators = [seeded(seed + row) for row in range(3)]
            together = verify(trees, logits, [[0]] * 3, SAMPLED, generators)
            alone = [
                verify([tree], logits[row : row + 1], [[0]], SAMPLED, [seeded(seed + row)])[0]
                for row, tree in enumerate(trees)
            ]
            assert together == alone


class TestDeferred:
    def test_it_is_a_tree_whose_tokens_come_when_asked_for(self):
        drafts = Drafted(tokens=torch.tensor([[4, 5, 6], [7, 8, 9]]), proposals=random_logits(2, 3).softmax(-1))
        chain = DeferredChain(drafts, 1, 2, 3)
        assert (len(chain), chain.drafted, chain.is_chain, chain.depths) == (3, 2, True, (0, 1, 2))
        assert chain.children == ((1,), (2,), ())
        assert known_tokens([TokenTree.chain([1]), chain], 4) == [[1, 0, 0, 0], [3, 0, 0, 0]]
        assert "tokens" not in chain.__dict__
        assert chain.tokens == (3, 7, 8)
        assert torch.equal(chain.proposals[1], drafts.proposals[1, 1])
        assert chain.proposals.keys() == {0, 1}
        assert DeferredChain(drafts, 0, 1, None).tokens == (4,)

    def test_one_transfer_brings_all_tokens(self):
        drafts = Drafted(tokens=torch.tensor([[4, 5], [7, 8]]))
        trees = [DeferredChain(drafts, 0, 2, 1), DeferredChain(drafts, 1, 1, 2)]
        assert fetch(trees, torch.tensor([[10], [20]])) == [[10], [20]]
        assert [tree.__dict__["tokens"] for tree in trees] == [(1, 4, 5), (2, 7)]

    def test_what_does_not_fit_together_is_not_taken_together(self):
        drafts, others = (Drafted(tokens=torch.tensor([[4, 5], [7, 8]])) for _ in range(2))
        first, second = DeferredChain(drafts, 0, 2, 1), DeferredChain(drafts, 1, 2, 1)
        root, chain = TokenTree.chain([1]), TokenTree.chain([1, 2])
        assert shared_drafts([first, second]) is shared_drafts([root, second]) is drafts
        for trees in (
            [second, first],
            [first, chain],
            [first, DeferredChain(others, 1, 2, 1)],
            [first, DeferredChain(drafts, 1, 2, None)],
            [first],
            [root, root],
        ):
            assert shared_drafts(trees) is None
            assert known_tokens(trees, 3) == [[*tree.tokens, 0, 0][:3] for tree in trees]
