"""The draft model: what it proposes, and that its cache stays in step with every row.

In step means: its trees are those of a draft that starts from scratch, on the row's tokens, in every round. The draft
is an exact table with a long memory, so one stale or missing token shows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from specstream.core.decode import decode
from specstream.core.device import deferred
from specstream.core.policy.policy import Speculation
from specstream.core.ports import Drafter, DraftRequest, DraftSession, Verdict
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling, probabilities
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.drafters.draft_model import FAR_BEHIND, HARDLY, READ_AT_ONCE, DraftModelDrafter
from specstream.drafters.none import NoDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import Part, TableModel

TARGET = TableModel.random(30, vocab=5, memory=5)
DRAFT = TARGET.disturbed(31, 0.8)
PROMPTS = [[0, 1, 2, 3], [4], [2, 2, 1, 0, 3, 1, 4, 4, 0], [1, 3]]
SAMPLED = Sampling(temperature=1.0)


@pytest.fixture(autouse=True, params=["host", "device"])
def place(request, monkeypatch):
    """Token by token, or as on a GPU, where a chain is drafted without a word to the host."""
    monkeypatch.setattr(deferred, "asynchronous", lambda device: request.param == "device")
    return request.param


def copied(generator):
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return copy


CUTS = {True: Sampling(), False: SAMPLED}
"""Whether drafts of such a sampling may end early."""


class InStep(Drafter, DraftSession):
    """A DraftModelDrafter that is compared, round by round, with one restarted from scratch."""

    name = "in step"

    def __init__(self, drafter: DraftModelDrafter, threshold: float = 0.0, prices: tuple[float, ...] = ()) -> None:
        self.drafter, self.threshold, self.prices = drafter, threshold, prices
        self.aside = 0
        self.rounds = 0
        self.depths: list[list[int]] = []

    def begin(self, prompts, samplings, session=None):
        self.sampling = samplings[0]
        self.session = self.drafter.begin(prompts, samplings)
        return self

    def offers(self, requests):
        return self.session.offers(requests)

    def propose(self, requests):
        tokens = [list(request.tokens) for request in requests]
        requests = [replace(request, threshold=self.threshold, prices=self.prices) for request in requests]
        again = [replace(request, generator=copied(request.generator)) for request in requests]
        trees = self.session.propose(requests)
        expected = self.drafter.begin(tokens, [self.sampling] * len(tokens)).propose(again)
        for tree, fresh in zip(trees, expected, strict=True):
            assert (tree.tokens, tree.parents) == (fresh.tokens, fresh.parents)
            assert tree.proposals.keys() == fresh.proposals.keys()
            assert all(torch.equal(tree.proposals[node], fresh.proposals[node]) for node in fresh.proposals)
        assert [list(request.tokens) for request in requests] == tokens, "the row's tokens were changed"
        self.rounds += 1
        self.depths.append([max(tree.depths) for tree in trees])
        return trees

    def observe(self, verdicts):
        self.session.observe(verdicts)
        self.aside += sum(any(node != depth for depth, node in enumerate(verdict.path)) for verdict in verdicts)

    def keep(self, rows):
        self.session.keep(rows)

    def join(self, other):
        self.session.join(other.session)


def run(drafter, prompts=PROMPTS, *, sampling=SAMPLED, target=TARGET, **stopping):
    rows = start_rows(
        prompts,
        range(len(prompts)),
        target.context_length,
        sampling=sampling,
        stopping=Stopping(**{"max_new_tokens": 30, **stopping}),
    )
    for _ in decode(
        target,
        drafter,
        rows,
        speculation=Speculation(max_depth=5),
        timings=Timings(),
    ):
        running = [row for row in rows if row.finish_reason is None]
        if isinstance(drafter, InStep) and running:
            cached = drafter.session._session.committed
            assert all(held == row.tokens[: len(held)] for held, row in zip(cached, running, strict=True))
    return rows


def propose(drafter, tokens, *, depth=5, sampling=None, seed=0, **asked):
    generator = torch.Generator().manual_seed(seed)
    session = drafter.begin([tokens], [sampling or Sampling()])
    (tree,) = session.propose([DraftRequest(tokens=tokens, depth=depth, generator=generator, **asked)])
    return tree


def paths(tree):
    """The tokens of each node's path, without the root's."""
    found = [()]
    for node in range(1, len(tree)):
        found.append((*found[tree.parents[node]], tree.tokens[node]))
    return found[1:]


class TestDraftsThatEndEarly:
    @pytest.mark.parametrize("branches", [1, 2])
    @pytest.mark.parametrize("threshold", [0.999, 0.7, 0.5, 0.3, 0.1, 0.01])
    def test_before_the_token_that_makes_the_path_too_unlikely(self, threshold, branches, place):
        chain, likelihood, expected = DRAFT.favourites([0, 1, 2], 6), 1.0, 0
        for at in range(6):
            likelihood *= float(DRAFT.logits([0, 1, 2, *chain[:at]]).softmax(-1).max())
            if likelihood < threshold:
                break
            expected += 1
        tree = propose(DraftModelDrafter(DRAFT, gamma=6, branches=branches), [0, 1, 2], depth=6, threshold=threshold)
        on_the_device = place == "device" and branches == 1  # where nobody looks at a token until the chain is done
        assert max(tree.depths) == (6 if on_the_device else expected)

    def test_never_where_tokens_are_drawn(self, place):
        """To look at a drawn token only if it is a likely one would change how often it is emitted."""
        drafter = DraftModelDrafter(DRAFT, gamma=4)
        assert propose(drafter, [0, 1, 2], sampling=SAMPLED, threshold=0.99).drafted == 4
        request = DraftRequest(tokens=[0, 1, 2], depth=4, generator=torch.Generator())
        offers = {cut: drafter.begin([[0, 1, 2]], [each]).offers([request]) for cut, each in CUTS.items()}
        # On the device nobody looks at a token until the chain is done.
        assert all(offer.cuts is (cut and place == "host") for cut, ((offer,),) in offers.items())

    def test_rows_end_each_for_itself_and_stay_in_step(self, place):
        drafter = InStep(DraftModelDrafter(DRAFT, gamma=5), threshold=0.4)
        rows = run(drafter, sampling=Sampling())
        plain = run(NoDrafter(), sampling=Sampling())
        assert [row.emitted for row in rows] == [row.emitted for row in plain]
        if place == "host":
            assert len({depth for depths in drafter.depths for depth in depths}) > 2


class TestNodesBesideTheChain:
    """What a draft has seen on its way costs a node and no step."""

    @pytest.fixture(autouse=True)
    def on_the_host(self, place):
        if place == "device":
            pytest.skip("there nobody looks at a token until the chain is done")

    @staticmethod
    def seen(threshold, depth):
        """The chain that is kept, steps, and likelihoods of all that was seen besides, by path."""
        chain, likelihood, beside, steps = (), 1.0, {}, 0
        while steps < depth:
            shares = DRAFT.logits([0, 1, 2, *chain]).softmax(-1).double()
            best, steps = int(shares.argmax()), steps + 1
            beside |= {(*chain, token): likelihood * float(shares[token]) for token in range(5) if token != best}
            if likelihood * float(shares[best]) < threshold:
                return chain, steps, beside | {(*chain, best): likelihood * float(shares[best])}
            chain, likelihood = (*chain, best), likelihood * float(shares[best])
        return chain, steps, beside

    @pytest.mark.parametrize("threshold", [0.7, 0.3, 0.01])
    @pytest.mark.parametrize("prices", [(0.1,) * 15, (0.02,) * 15, (0.01,) * 5, tuple(0.01 * at for at in range(15))])
    def test_are_the_likeliest_that_are_worth_their_price(self, threshold, prices):
        chain, steps, beside = self.seen(threshold, 4)
        expected = {chain[: at + 1] for at in range(len(chain))}
        for price, (path, likelihood) in zip(
            prices[len(chain) :], sorted(beside.items(), key=lambda each: -each[1]), strict=False
        ):
            if likelihood <= max(price, HARDLY):
                break
            expected.add(path)
        tree = propose(DraftModelDrafter(DRAFT, gamma=4), [0, 1, 2], depth=4, threshold=threshold, prices=prices)
        assert set(paths(tree)) == expected and len(tree) == 1 + len(expected)
        assert tree.steps == steps

    def test_may_be_accepted_and_the_cache_stays_in_step(self):
        drafter = InStep(DraftModelDrafter(DRAFT, gamma=5), threshold=0.4, prices=(0.02,) * 15)
        rows = run(drafter, sampling=Sampling())
        assert [row.emitted for row in rows] == [row.emitted for row in run(NoDrafter(), sampling=Sampling())]
        assert drafter.aside > 3
        alone = run(InStep(DraftModelDrafter(DRAFT, gamma=5), threshold=0.4), sampling=Sampling())
        assert sum(row.stats.target_passes for row in rows) < sum(row.stats.target_passes for row in alone)

    def test_are_none_where_tokens_are_drawn(self):
        tree = propose(
            DraftModelDrafter(DRAFT, gamma=4), [0, 1, 2], sampling=SAMPLED, threshold=0.5, prices=(0.0,) * 15
        )
        assert tree.drafted == 4


class TestDoubts:
    """A draft's probabilities are about the text, not about whether the target agrees."""

    @pytest.fixture(autouse=True)
    def on_the_host(self, place):
        if place == "device":
            pytest.skip("there nobody looks at a token until the chain is done")

    def test_of_one_who_is_always_right_are_soon_not_believed(self):
        unsure = TARGET.sharpened(0.2)
        assert propose(DraftModelDrafter(unsure, gamma=4), [0, 1, 2], threshold=0.6).drafted == 0
        drafter = InStep(DraftModelDrafter(unsure, gamma=4), threshold=0.6)
        rows = run(drafter, [[0, 1, 2]], sampling=Sampling(), max_new_tokens=60)
        assert [row.emitted for row in rows] == [
            row.emitted for row in run(NoDrafter(), [[0, 1, 2]], sampling=Sampling(), max_new_tokens=60)
        ]
        assert drafter.depths[0] == [0]
        assert max(drafter.depths[-5:-1]) == [4]
        assert drafter.drafter.doubts.ratio < 0.3

    def test_of_one_who_is_wrong_more_often_than_it_says_grow(self):
        boaster = TARGET.disturbed(31, 3)
        drafter = DraftModelDrafter(boaster, gamma=4)
        run(InStep(drafter, threshold=0.5), sampling=Sampling(), max_new_tokens=60)
        assert drafter.doubts.ratio > 1.5
        drafted = [
            sum(propose(each, tokens, threshold=0.5).drafted for tokens in PROMPTS)
            for each in (DraftModelDrafter(boaster, gamma=4), drafter)
        ]
        assert drafted[1] < drafted[0]


class TestProposal:
    def test_a_chain_of_its_favourites(self):
        tree = propose(DraftModelDrafter(DRAFT), [0, 1, 2])
        assert tree.is_chain
        assert list(tree.tokens) == [2, *DRAFT.favourites([0, 1, 2], 4)]
        assert not tree.proposals

    @pytest.mark.parametrize(("gamma", "depth", "expected"), [(3, 5, 3), (7, 5, 5), (3, 0, 0), (1, 1, 1)])
    def test_the_depth_is_the_smaller_of_gamma_and_what_is_asked(self, gamma, depth, expected):
        assert propose(DraftModelDrafter(DRAFT, gamma=gamma), [0, 1, 2], depth=depth).drafted == expected

    def test_runners_up_are_leaves_beside_the_chain(self):
        tree = propose(DraftModelDrafter(DRAFT, gamma=2, branches=3), [0, 1, 2])
        first = DRAFT.logits([0, 1, 2]).topk(3).indices.tolist()
        second = DRAFT.logits([0, 1, 2, first[0]]).topk(3).indices.tolist()
        assert tree.tokens == (2, first[0], second[0], *first[1:], *second[1:])
        assert tree.parents == (-1, 0, 1, 0, 0, 1, 1)

    @pytest.mark.parametrize("branches", [1, 2, 3])
    def test_drawn_candidates_carry_what_they_were_drawn_from(self, branches):
        sampling = Sampling(temperature=0.8, top_k=4)
        tree = propose(DraftModelDrafter(DRAFT, gamma=3, branches=branches), [0, 1, 2], sampling=sampling)
        chain = [0, 1, 2]
        for node in range(3):
            assert torch.equal(tree.proposals[node], probabilities(DRAFT.logits(chain), sampling))
            children = [tree.tokens[child] for child in tree.children[node]]
            assert len(children) == branches
            assert all(tree.proposals[node][token] > 0 for token in children)
            chain.append(children[0])
        assert tree.proposals.keys() == {0, 1, 2}

    def test_candidates_are_drawn_without_replacement_in_the_order_of_the_children(self):
        """Of the pairs (first, second): q(first) q(second) / (1 - q(first))."""
        drafter = DraftModelDrafter(DRAFT, gamma=1, branches=2)
        q = probabilities(DRAFT.logits([0, 1, 2]), SAMPLED).double()
        expected = q[:, None] * q[None] / (1 - q)[:, None]
        expected.fill_diagonal_(0)
        counts = torch.zeros_like(expected)
        for seed in range(1500):
            tree = propose(drafter, [0, 1, 2], sampling=SAMPLED, seed=seed)
            first, second = (tree.tokens[child] for child in tree.children[0])
            counts[first, second] += 1
        assert counts.diagonal().sum() == 0
        deviation = (counts / 1500 - expected).abs()
        assert bool((deviation < 4.5 * (expected / 1500).sqrt() + 1e-3).all())

    def test_fewer_candidates_where_fewer_are_possible(self):
        tree = propose(DraftModelDrafter(DRAFT, gamma=2, branches=3), [0], sampling=Sampling(temperature=1.0, top_k=2))
        assert [len(tree.children[node]) for node in (0, 1)] == [2, 2]

    def test_the_penalty_counts_the_drafted_tokens(self):
        sampling = Sampling(temperature=1.0, repetition_penalty=1.5)
        tree = propose(DraftModelDrafter(DRAFT, gamma=2), [3, 1], sampling=sampling)
        context = [3, 1, tree.tokens[1]]
        assert torch.equal(tree.proposals[1], probabilities(DRAFT.logits(context), sampling, context))

    @pytest.mark.parametrize("options", [{"gamma": 0}, {"gamma": -2}, {"branches": 0}])
    def test_settings_out_of_range_are_named(self, options):
        ((name, value),) = options.items()
        with pytest.raises(UsageError, match=f"{name} is {value}; give 1 or more"):
            DraftModelDrafter(DRAFT, **options)


class TestVocabulary:
    def test_entries_that_only_the_draft_has_are_not_drafted(self):
        wide = TableModel(torch.cat([DRAFT.table, torch.full((len(DRAFT.table), 2), 50.0)], 1), 5)
        tree = propose(DraftModelDrafter(wide, vocab_size=5), [0], sampling=SAMPLED)
        assert all(token < 5 for token in tree.tokens)
        assert all(len(q) == 5 and float(q.sum()) == pytest.approx(1) for q in tree.proposals.values())

    @pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
    def test_entries_that_only_the_target_has_are_impossible_drafts(self, sampling):
        tree = propose(DraftModelDrafter(DRAFT, vocab_size=7, branches=2), [0], sampling=sampling)
        assert all(token < 5 for token in tree.tokens)
        assert all(q.tolist()[5:] == [0, 0] for q in tree.proposals.values())

    @pytest.mark.parametrize("branches", [1, 2])
    @pytest.mark.parametrize("sampling", [Sampling(), SAMPLED, Sampling(temperature=1.0, repetition_penalty=1.2)])
    def test_a_token_that_only_the_target_has_may_be_said(self, sampling, branches):
        """The draft has no embedding for it; the table refuses it as a model would."""
        wide = TableModel.random(40, vocab=7, memory=3)
        drafter = DraftModelDrafter(TableModel.random(41, vocab=5, memory=3), vocab_size=7, branches=branches)
        rows = run(drafter, sampling=sampling, target=wide)
        assert any(token >= 5 for row in rows for token in row.emitted[:-6])
        assert any(row.stats.accepted for row in rows)
        if sampling.greedy:
            assert [row.emitted for row in rows] == [wide.favourites(prompt, 30) for prompt in PROMPTS]


CONFIGURATIONS = {
    "greedy chain": (DraftModelDrafter(DRAFT), Sampling()),
    "greedy tree": (DraftModelDrafter(DRAFT, branches=3), Sampling()),
    "sampled chain": (DraftModelDrafter(DRAFT), SAMPLED),
    "sampled tree": (DraftModelDrafter(DRAFT, gamma=5, branches=2), SAMPLED),
    "gamma 1": (DraftModelDrafter(DRAFT, gamma=1, branches=2), SAMPLED),
    "often right": (DraftModelDrafter(TARGET.disturbed(32, 0.4)), SAMPLED),
    "mostly wrong": (DraftModelDrafter(TableModel.random(33, vocab=5, memory=5).sharpened(4)), SAMPLED),
    "with a penalty": (DraftModelDrafter(DRAFT, branches=2), Sampling(temperature=1.0, repetition_penalty=1.4)),
}


class TestCache:
    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize(("drafter", "sampling"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
    def test_stays_in_step_with_a_draft_from_scratch(self, drafter, sampling, batch):
        watched = InStep(drafter)
        rows = run(watched, PROMPTS[:batch], sampling=sampling)
        assert watched.rounds >= 5
        if batch > 1 and drafter.gamma > 1:
            assert any(1 < emitted <= drafter.gamma for row in rows for emitted in row.stats.emitted), "partly accepted"

    def test_stays_in_step_while_rows_leave(self):
        watched = InStep(DraftModelDrafter(DRAFT, branches=2))
        rows = run(watched, PROMPTS * 2, eos_token_ids=frozenset({4}))
        assert len({row.stats.target_passes for row in rows}) > 2
        assert {len(depths) for depths in watched.depths} > {1, 8}

    def test_rows_may_ask_for_different_depths(self):
        """Near its limit each row asks for less; at different times, as rows differ in pace."""
        watched = InStep(DraftModelDrafter(DRAFT, gamma=5))
        run(watched, max_new_tokens=17)
        assert any(len(set(depths)) > 1 for depths in watched.depths)
        assert any(0 in depths and max(depths) > 0 for depths in watched.depths)

    def test_a_row_that_sat_out_a_round_drafts_on_as_if_it_had_not(self):
        watched = InStep(DraftModelDrafter(DRAFT, gamma=4)).begin(PROMPTS[:2], [Sampling()] * 2)
        rows = [list(prompt) for prompt in PROMPTS[:2]]
        for depths in ([3, 3], [4, 0], [4, 0], [2, 4], [1, 3]):
            requests = [
                DraftRequest(tokens=tokens, depth=depth, generator=torch.Generator())
                for tokens, depth in zip(rows, depths, strict=True)
            ]
            watched.propose(requests)
            watched.observe([Verdict(path=(0,), tokens=(3,))] * 2)
            for tokens in rows:
                tokens.append(3)

    @pytest.mark.parametrize("limit", [1, 2, 5, 9, 10, 16])
    @pytest.mark.parametrize("branches", [1, 2])
    def test_a_shorter_context_ends_the_drafting_and_nothing_else(self, limit, branches):
        """Whether a prompt does not fit or outgrows it; the table refuses any token beyond the context."""
        watched = InStep(DraftModelDrafter(DRAFT.limited(limit), branches=branches))
        rows = run(watched, sampling=Sampling())
        assert [row.emitted for row in rows] == [TARGET.favourites(prompt, 30) for prompt in PROMPTS]
        drafted = [row.stats.drafted > 0 for row in rows]
        assert drafted == [len(prompt) < limit for prompt in PROMPTS]

    def test_the_draft_reads_each_accepted_token_once(self):
        """A round costs gamma passes, not gamma and one to catch up; and the last draft and the bonus stay unread."""
        drafter = InStep(DraftModelDrafter(TARGET, gamma=4))
        run(drafter, PROMPTS[:1], sampling=Sampling(), max_new_tokens=25)
        assert drafter.session._session.passes == 5 * 4
        assert drafter.session._session.nodes == 1 + 25 - 2


TEXT = torch.randint(5, (400,), generator=torch.Generator().manual_seed(0)).tolist()


class TestFallingBehind:
    """Rounds that another drafter drafts for, or nobody, are not read until the draft is asked again."""

    def begin(self, *lengths):
        return DraftModelDrafter(DRAFT).begin([TEXT[:length] for length in lengths], [Sampling()] * len(lengths))

    def ask(self, session, *ends, depths=None):
        requests = [
            DraftRequest(tokens=TEXT[:end], depth=depth, generator=torch.Generator())
            for end, depth in zip(ends, depths or [2] * len(ends), strict=True)
        ]
        offers = session.offers(requests)
        trees = session.propose(requests)
        for tree, end, request in zip(trees, ends, requests, strict=True):
            assert list(tree.tokens[1:]) == DRAFT.favourites(TEXT[:end], request.depth)
        session.observe([Verdict(path=(0,), tokens=(0,)) for _ in ends])
        return offers

    def test_what_is_unread_is_offered_as_such(self):
        session = self.begin(10)
        unread = [self.ask(session, end)[0][0].unread for end in (10, 40)]
        assert unread == [1, 30]

    def test_it_is_read_in_passes_of_bounded_width(self):
        session = self.begin(10)
        self.ask(session, 10)
        before = session._session.passes, session._session.nodes
        self.ask(session, 10 + READ_AT_ONCE * 3)
        passes, nodes = session._session.passes - before[0], session._session.nodes - before[1]
        assert passes == 3 + 1
        assert nodes <= READ_AT_ONCE * 3 + 2

    def test_far_behind_it_starts_afresh(self):
        session = self.begin(10)
        self.ask(session, 10)
        before = session._session.nodes
        end = 11 + FAR_BEHIND + 1
        ((offer,),) = self.ask(session, end)
        assert offer.unread == READ_AT_ONCE
        assert session._session.nodes - before <= READ_AT_ONCE + 2
        ((offer,),) = self.ask(session, end + 2)
        assert offer.unread == 2, "and goes on from there"

    def test_a_row_that_is_not_drafted_for_reads_along(self):
        session = self.begin(10, 10)
        self.ask(session, 10, 10)
        for end in range(12, 40, 2):
            self.ask(session, end, end, depths=[2, 0])
        ((_,), (offer,)) = self.ask(session, 40, 40)
        assert offer.unread <= 3

    def test_which_tokens_it_can_read_is_known_before_it_reads_the_outputs(self):
        """A token that only the target has comes in before the draft has made any pass."""
        session = DraftModelDrafter(TableModel.random(41, vocab=5, memory=3), vocab_size=7).begin(
            [[0, 1]], [Sampling()]
        )
        (tree,) = session.propose([DraftRequest(tokens=[0, 1, 6, 5, 2], depth=2, generator=torch.Generator())])
        assert tree.drafted == 2


def test_minus_infinity_everywhere_but_one_token():
    """A draft that is sure proposes one candidate however many branches there are."""
    sure = TableModel(DRAFT.table.clone().fill_(-math.inf).index_fill_(1, torch.tensor([3]), 0.0), 5)
    tree = propose(DraftModelDrafter(sure, gamma=3, branches=3), [0, 1], sampling=SAMPLED)
    assert tree.tokens == (1, 3, 3, 3)


class TestADraftThatSaysSomeTokens:
    TOKENS = (1, 3, 4)

    def drafter(self, branches=1):
        some = Part(DRAFT, self.TOKENS)
        return DraftModelDrafter(some, gamma=5, branches=branches, vocab_size=5, part=torch.tensor(self.TOKENS))

    @pytest.mark.parametrize("penalty", [1.0, 1.7])
    def test_drafts_the_likeliest_of_them_and_reads_all(self, penalty):
        context = [0, 1, 2, 0]
        tree = propose(self.drafter(), context, sampling=Sampling(repetition_penalty=penalty))
        for token in tree.tokens[1:]:
            logits = DRAFT.logits(context)
            seen = torch.tensor([each in context for each in range(5)])
            logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
            assert token == max(self.TOKENS, key=lambda each: float(logits[each]))
            context.append(token)
        assert len(tree) == 6

    def test_proposes_the_others_with_probability_0(self):
        tree = propose(self.drafter(), [2, 0, 2], sampling=SAMPLED)
        first = DRAFT.logits([2, 0, 2])[list(self.TOKENS)].softmax(-1)
        assert torch.allclose(torch.as_tensor(tree.proposals[0])[list(self.TOKENS)], first)
        for proposal in tree.proposals.values():
            assert len(proposal) == 5
            assert float(proposal[0]) == float(proposal[2]) == 0.0

    def test_runs_in_step(self):
        drafter = InStep(self.drafter())
        run(drafter)
        assert drafter.rounds > 5

    def test_needs_the_size_of_the_whole(self):
        with pytest.raises(UsageError, match="give the size of the target's vocabulary"):
            DraftModelDrafter(Part(DRAFT, self.TOKENS), part=torch.tensor(self.TOKENS))
