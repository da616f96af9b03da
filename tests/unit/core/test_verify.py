"""Acceptance rules, one row at a time; that the sampled ones are lossless is shown in tests/lossless."""

import math
from itertools import pairwise

import pytest
import torch

from specstream.core import verify as rules
from specstream.core.ports import Verdict
from specstream.core.sampling import NO_CHOICE, Sampling
from specstream.core.tree import TokenTree
from specstream.core.verify import verify, verify_greedy, verify_sampled, verify_typical
from specstream.errors import NumericalError

VOCAB = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distribution(*weights):
    weights = torch.tensor([*weights, *[0.0] * (VOCAB - len(weights))])
    return weights / weights.sum()


def point(token):
    return torch.nn.functional.one_hot(torch.tensor(token), VOCAB).float()


def logits_for(choices):
    """``[1, nodes, vocab]``: each node's argmax is the given token."""
    return torch.stack([point(token) * 9 for token in choices])[None]


#     0:0
#    /   \
#   1:1   2:2
#   |    /   \
#  3:3  4:3   5:4
BRANCHES = TokenTree((0, 1, 2, 3, 3, 4), (-1, 0, 0, 1, 2, 2))


class TestGreedy:
    @pytest.mark.parametrize(
        ("choices", "path", "tokens"),
        [
            ([5, 5, 5, 5, 5, 5], (0,), (5,)),
            ([3, 5, 5, 5, 5, 5], (0,), (3,)),  # a grandchild's token is no child's
            ([1, 5, 5, 5, 5, 5], (0, 1), (1, 5)),
            ([1, 3, 5, 0, 5, 5], (0, 1, 3), (1, 3, 0)),
            ([2, 3, 3, 5, 1, 5], (0, 2, 4), (2, 3, 1)),
            ([2, 3, 4, 5, 5, 2], (0, 2, 5), (2, 4, 2)),
        ],
    )
    def test_the_walk_follows_the_argmax(self, choices, path, tokens):
        expected = Verdict(path=path, tokens=tokens)
        assert verify_greedy(BRANCHES, choices.__getitem__) == expected
        assert verify([BRANCHES], logits_for(choices), [[7, 0]], Sampling(), [seeded()]) == [expected]
        # The same through the processed route.
        unchanged = Sampling(processors=(lambda input_ids, scores: scores,))
        assert verify([BRANCHES], logits_for(choices), [[7, 0]], unchanged, [seeded()]) == [expected]

    def test_accepted_counts_drafts(self):
        assert Verdict(path=(0, 2, 5), tokens=(2, 4, 2)).accepted == 2
        assert Verdict(path=(0,), tokens=(1,)).accepted == 0

    def test_no_chance_is_used_up(self):
        generator = seeded()
        before = generator.get_state()
        verify([BRANCHES], logits_for([1] * 6), [[0]], Sampling(), [generator])
        assert torch.equal(generator.get_state(), before)

    def test_rows_and_their_widths_are_their_own(self):
        logits = torch.full((2, 6, VOCAB), math.nan)
        logits[0] = logits_for([2, 5, 4, 5, 5, 3])[0]
        logits[1, :2] = logits_for([3, 1])[0]
        trees = [BRANCHES, TokenTree.chain([5, 3])]
        for sampling in (Sampling(), Sampling(repetition_penalty=1.01), Sampling(temperature=0.01)):
            verdicts = verify(trees, logits, [[0], [5]], sampling, [seeded(), seeded()])
            assert [verdict.tokens for verdict in verdicts] == [(2, 4, 3), (3, 1)]


class TestChoices:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(repetition_penalty=9.0)])
    def test_are_the_largest_logits_of_all_nodes_of_every_row(self, sampling):
        rows = ([2, 3, 4, 5, 5, 2], [1, 1, 0, 3, 4, 5])
        logits = torch.cat([logits_for(choices) for choices in rows])
        verdicts = verify([BRANCHES, BRANCHES], logits, [[5, 0], [1, 0]], sampling, [seeded(), seeded()])
        assert [tuple(verdict.choices()) for verdict in verdicts] == [*map(tuple, rows)]

    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
    def test_say_so_where_there_is_none(self, sampling):
        logits = logits_for([0, 3])
        logits[0, 1] = math.nan
        (verdict,) = verify([TokenTree((0, 1), (-1, 0))], logits - 99 * (logits == 0), [[0]], sampling, [seeded()])
        assert list(verdict.choices()) == [0, NO_CHOICE]

    def test_nobody_pays_for_what_is_not_asked_for(self, monkeypatch):
        monkeypatch.setattr(rules, "choose", None)
        verify([BRANCHES], logits_for([0] * 6), [[0]], Sampling(temperature=1.0), [seeded()])


class TestBadLogits:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(repetition_penalty=1.1)])
    def test_are_an_error_where_the_output_meets_them(self, sampling, bad):
        logits = logits_for([1, 3, 5, 0, 0, 0])
        logits[0, 1, 2] = bad
        (verdict,) = verify([TokenTree.chain([0, 1, 3])], logits, [[0]], sampling, [seeded()])
        assert isinstance(verdict.error, NumericalError)
        assert verdict.tokens == ()

    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.01), Sampling(repetition_penalty=1.1)])
    def test_below_a_rejected_draft_are_nothing_to_the_output(self, sampling):
        """Plain decoding never sees them."""
        logits = logits_for([1, 5, 5, 0, 0, 0])
        logits[0, 2:] = math.nan
        (verdict,) = verify([BRANCHES], logits, [[0]], sampling, [seeded()])
        assert verdict.tokens == (1, 5)


class TestProcessors:
    @pytest.mark.parametrize("temperature", [0.0, 0.01])
    def test_are_called_once_per_emitted_token_in_order(self, temperature):
        seen = []

        def record(input_ids, scores):
            seen.append(input_ids[0].tolist())
            return scores

        sampling = Sampling(temperature=temperature, processors=(record,))
        (verdict,) = verify([BRANCHES], logits_for([2, 0, 4, 0, 0, 5]), [[9, 0]], sampling, [seeded()])
        assert verdict.tokens == (2, 4, 5)
        assert seen == [[9, 0], [9, 0, 2], [9, 0, 2, 4]]

    @pytest.mark.parametrize("temperature", [0.0, 0.01])
    def test_are_not_called_behind_an_end_of_sequence(self, temperature):
        """A grammar that has ended has nothing to say on what comes next."""
        seen = []

        def record(input_ids, scores):
            assert 4 not in input_ids
            seen.append(input_ids[0].tolist())
            return scores

        sampling = Sampling(temperature=temperature, processors=(record,))
        tree = TokenTree.chain([0, 2, 4, 1])
        (verdict,) = verify([tree], logits_for([2, 4, 1, 3]), [[0]], sampling, [seeded()], ends=frozenset({4}))
        assert verdict == Verdict(path=(0, 1, 2), tokens=(2, 4))
        assert len(seen) == 2

    def test_can_force_a_rejection(self):
        def never_4(input_ids, scores):
            return scores.index_fill(1, torch.tensor([4]), -math.inf)

        logits = logits_for([2, 0, 4, 0, 0, 5])
        logits[0, 2, 3] = 1.0
        for temperature in (0.0, 0.01):
            sampling = Sampling(temperature=temperature, processors=(never_4,))
            (verdict,) = verify([BRANCHES], logits, [[0]], sampling, [seeded()])
            assert verdict.tokens[:2] == (2, 3)

    def test_the_penalty_sees_the_drafts_on_the_path(self):
        """1 is preferred to 2, but not a second time."""
        step = torch.tensor([0.0, 4.0, 3.0, 0, 0, 0])
        sampling = Sampling(repetition_penalty=2.0)
        tree = TokenTree.chain([0, 1, 1])
        (verdict,) = verify([tree], torch.stack([step] * 3)[None], [[0]], sampling, [seeded()])
        assert verdict.tokens == (1, 2)


class TestSampled:
    def test_everything_is_accepted_of_a_draft_that_is_the_target(self):
        q = distribution(1, 2, 3, 4, 5, 6)
        for seed in range(30):
            drawn = torch.multinomial(q, 3, replacement=True, generator=seeded(seed)).tolist()
            tree = TokenTree.chain([0, *drawn], [q, q, q])
            verdict = verify_sampled(tree, lambda node: q, seeded(seed))
            assert verdict.path == (0, 1, 2, 3)
            assert verdict.tokens[:3] == tuple(drawn)

    def test_impossible_drafts_are_rejected_and_certain_ones_accepted(self):
        targets = [point(2), point(4), point(5)]
        depths = (0, 1, 1, 2, 2)
        for proposals in ({}, {0: distribution(1, 1, 1), 2: distribution(0, 0, 0, 0, 1, 1)}):
            tree = TokenTree((0, 1, 2, 5, 4), (-1, 0, 0, 2, 2), proposals)
            verdict = verify_sampled(tree, lambda node: targets[depths[node]], seeded())
            assert verdict == Verdict(path=(0, 2, 4), tokens=(2, 4, 5))

    def test_a_rejected_token_that_was_chosen_does_not_come_back(self):
        p = distribution(1, 1, 8)
        tree = TokenTree((9, 0, 1), (-1, 0, 0))
        for seed in range(200):
            verdict = verify_sampled(tree, lambda node: p, seeded(seed))
            assert len(verdict.tokens) == 2 or verdict.tokens == (2,)

    def test_proposals_without_probability_are_ignored(self):
        """Such a child was not drawn from q. It is never followed, and the distribution stays the target's."""
        q, p = distribution(0, 1), distribution(3, 1)
        tree = TokenTree((5, 0), (-1, 0), {0: q})
        verdicts = [verify_sampled(tree, lambda node: p, seeded(seed)) for seed in range(2000)]
        assert {verdict.path for verdict in verdicts} == {(0,)}
        share = sum(verdict.tokens == (0,) for verdict in verdicts) / len(verdicts)
        assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / len(verdicts))

    def test_more_siblings_than_the_proposal_holds(self):
        q, p = distribution(1), distribution(1, 0, 1)
        tree = TokenTree((5, 0, 1, 2), (-1, 0, 0, 0), {0: q})
        for seed in range(50):
            verdict = verify_sampled(tree, lambda node: p, seeded(seed))
            assert verdict.path in ((0, 1), (0,))
            assert verdict.path != (0,) or verdict.tokens == (2,)

    def test_a_rejection_that_only_rounding_can_cause_leaves_the_target(self):
        """q exceeds p by an ulp at the drawn token and nowhere else is p above q: nothing would be left."""
        p = point(1)
        q = torch.nextafter(p, torch.tensor(2.0)) * p
        tree = TokenTree((0, 1), (-1, 0), {0: q})
        verdicts = [verify_sampled(tree, lambda node: p, seeded(seed)) for seed in range(20)]
        assert {verdict.tokens[0] for verdict in verdicts} == {1}

    def test_an_end_of_sequence_ends_the_walk(self):
        verdict = verify_sampled(TokenTree.chain([0, 1, 2]), lambda node: point(node + 1), seeded(), frozenset({1}))
        assert verdict == Verdict(path=(0, 1), tokens=(1,))


class TestTypical:
    def test_the_threshold_is_medusas(self):
        """min(e, sqrt(e) exp(-H)), crossed from both sides."""
        tree = TokenTree.chain([0, 1])
        for threshold in (0.05, 0.3):
            for share in torch.linspace(0.02, 0.9, 45).tolist():
                p = distribution(1 - share, share)
                entropy = -(share * math.log(share) + (1 - share) * math.log(1 - share))
                accepts = share > min(threshold, math.sqrt(threshold) * math.exp(-entropy))
                verdict = verify_typical(tree, lambda node, p=p: p, seeded(), threshold)
                assert verdict.accepted == accepts

    def test_the_likeliest_of_several_is_followed(self):
        p = distribution(0, 0.2, 0.5, 0.1, 0.1, 0.1)
        assert verify_typical(BRANCHES, lambda node: p, seeded(), 0.05).path[:2] == (0, 2)

    def test_of_unlikely_ones_none(self):
        p = distribution(0.98, 0.01, 0.01)
        for seed in range(20):
            verdict = verify_typical(BRANCHES, lambda node: p, seeded(seed), 0.3)
            assert verdict.path == (0,)
            assert p[verdict.tokens[0]] > 0

    def test_a_walk_to_a_leaf_ends_with_a_token_of_the_targets(self):
        verdict = verify_typical(BRANCHES, lambda node: point([2, 0, 4, 0, 0, 5][node]), seeded(), 0.3)
        assert verdict == Verdict(path=(0, 2, 5), tokens=(2, 4, 5))

    def test_an_end_of_sequence_ends_the_walk(self):
        choices = [2, 0, 4, 0, 0, 5]
        verdict = verify_typical(BRANCHES, lambda node: point(choices[node]), seeded(), 0.3, frozenset({2}))
        assert verdict == Verdict(path=(0, 2), tokens=(2,))

    def test_is_asked_for_by_its_threshold_and_only_when_sampling(self):
        """p = 0.4 against a flat q: typical acceptance always takes it, lossless sampling now and then."""
        logits = distribution(0.3, 0.4, 0.3).log().clamp_min(-50).expand(1, 2, VOCAB)
        tree = TokenTree.chain([0, 1])

        def paths(temperature, threshold):
            sampling = Sampling(temperature=temperature)
            generators = [[seeded(seed)] for seed in range(40)]
            verdicts = [verify([tree], logits, [[0]], sampling, each, threshold)[0] for each in generators]
            return {verdict.path for verdict in verdicts}

        assert paths(1.0, 0.3) == {(0, 1)}
        assert paths(1.0, None) == {(0,), (0, 1)}
        assert paths(0.0, 0.3) == {(0, 1)}


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_a_path_leads_down_the_tree_and_spells_its_tokens(threshold):
    generator = seeded(3)
    for _ in range(100):
        logits = torch.randn(1, 6, VOCAB, generator=generator) * 2
        (verdict,) = verify([BRANCHES], logits, [[0]], Sampling(temperature=1.0), [generator], threshold)
        assert verdict.path[0] == 0
        assert all(BRANCHES.parents[child] == node for node, child in pairwise(verdict.path))
        assert verdict.tokens[:-1] == tuple(BRANCHES.tokens[node] for node in verdict.path[1:])
        assert len(verdict.tokens) == verdict.accepted + 1
