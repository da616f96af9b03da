"""The loop: where rows stop, how they advance and leave, what is counted. The target is an exact table."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from specstream.core.decode import Batch, decode
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.core.tree import TokenTree
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.none import NoDrafter
from specstream.errors import NumericalError, UsageError
from tests.lossless.drafters import Branching, FunctionDrafter, oracle
from tests.lossless.table_model import TableModel, TableSession

MODEL = TableModel.random(20, vocab=8, memory=3)
PROMPT = [1, 5, 2]
CHAIN = MODEL.favourites(PROMPT, 60)
SAMPLED = Sampling(temperature=1.0)


def greedy(count):
    """How rows are sampled and when they end."""
    return {"sampling": Sampling(), "stopping": Stopping(max_new_tokens=count)}


class Watched:
    """The target, with its sessions at hand."""

    rereads_at = None

    def __init__(self, model):
        self.model = model
        self.sessions: list[TableSession] = []

    @property
    def context_length(self):
        return self.model.context_length

    def begin(self, prefixes):
        self.sessions.append(self.model.begin(prefixes))
        return self.sessions[-1]


def run(drafter, prompts=(PROMPT,), *, model=MODEL, sampling=None, depth=5, threshold=None, **stopping):
    """Rows at their end, and every round of each row."""
    target, timings = Watched(model), Timings()
    rows = start_rows(
        prompts,
        range(len(prompts)),
        model.context_length,
        sampling=sampling or Sampling(),
        stopping=Stopping(**{"max_new_tokens": 12, **stopping}),
    )
    rounds = [[] for _ in rows]
    for passed in decode(
        target,
        drafter,
        rows,
        speculation=Speculation(max_depth=depth, acceptance_threshold=threshold),
        timings=timings,
    ):
        for each in passed:
            rounds[each.row.index].append(each.tokens)
        (session,) = target.sessions
        running = [row for row in rows if row.finish_reason is None]
        if running:
            assert session.committed == [row.tokens[:-1] for row in running], "the last token is the next root"
    for row, own in zip(rows, rounds, strict=True):
        assert [*row.tokens[: row.prompt_length], *itertools.chain(*own)] == row.tokens
        assert [len(tokens) for tokens in own] == row.stats.emitted
        assert row.stats.accepted <= row.stats.drafted
    return rows, rounds, timings


def first(drafter, **options):
    (row,), (rounds,), _ = run(drafter, **options)
    return row, rounds


class TestStopping:
    @pytest.mark.parametrize("drafter", [NoDrafter(), oracle(MODEL)], ids=["plain", "oracle"])
    @pytest.mark.parametrize("limit", range(1, 15))
    def test_max_new_tokens_is_met_exactly(self, drafter, limit):
        row, _ = first(drafter, max_new_tokens=limit)
        assert row.emitted == CHAIN[:limit]
        assert row.finish_reason == "length"

    def test_no_draft_is_asked_for_that_could_not_be_emitted(self):
        depths = []

        def tree(request):
            depths.append(request.depth)
            return TokenTree.chain(request.tokens[-1:])

        first(FunctionDrafter(tree), max_new_tokens=8)
        assert depths == [5, 5, 5, 4, 3, 2, 1, 0]

    @pytest.mark.parametrize("limit", range(1, 8))
    def test_a_drafter_that_drafts_deeper_than_asked_changes_nothing(self, limit):
        def tree(request):
            return TokenTree.chain([request.tokens[-1], *MODEL.favourites(request.tokens, 5)])

        row, rounds = first(FunctionDrafter(tree), max_new_tokens=limit)
        assert row.emitted == CHAIN[:limit]
        assert [len(tokens) for tokens in rounds] == ([limit] if limit <= 6 else [6, limit - 6])
        assert row.finish_reason == "length"

    @pytest.mark.parametrize("limit", [0, -3])
    def test_a_limit_below_1_is_refused(self, limit):
        with pytest.raises(UsageError, match=f"max_new_tokens is {limit}"):
            Stopping(max_new_tokens=limit)

    @pytest.mark.parametrize("drafter", [NoDrafter(), oracle(MODEL)], ids=["plain", "oracle"])
    def test_the_context_is_filled_and_not_exceeded(self, drafter):
        """The table refuses any node beyond its context."""
        row, _ = first(drafter, model=MODEL.limited(9))
        assert row.emitted == CHAIN[:6]
        assert row.finish_reason == "length"

    def test_a_prompt_that_nearly_fills_the_context_gets_one_token(self):
        row, _ = first(oracle(MODEL), model=MODEL.limited(len(PROMPT) + 1))
        assert row.emitted == CHAIN[:1]

    @pytest.mark.parametrize(
        "sampling", [Sampling(), Sampling(repetition_penalty=1.0 + 1e-9), Sampling(temperature=1e-3)]
    )
    @pytest.mark.parametrize("drafter", [NoDrafter(), oracle(MODEL)], ids=["plain", "oracle"])
    @pytest.mark.parametrize("eos", sorted(set(CHAIN[:9])))
    def test_an_end_in_the_middle_of_an_accepted_path(self, drafter, eos, sampling):
        row, _ = first(drafter, eos_token_ids=frozenset({eos}), sampling=sampling)
        assert row.emitted == CHAIN[: CHAIN.index(eos) + 1]
        assert row.finish_reason == "stop"

    def test_of_several_ends_the_first(self):
        row, _ = first(oracle(MODEL), eos_token_ids=frozenset(CHAIN[2:5]))
        assert row.emitted == CHAIN[: min(map(CHAIN.index, CHAIN[2:5])) + 1]

    def test_an_end_in_the_prompt_ends_nothing(self):
        absent = next(token for token in range(8) if token not in CHAIN[:12])
        row, _ = first(oracle(MODEL), prompts=[PROMPT], eos_token_ids=frozenset({absent}))
        assert row.finish_reason == "length"
        prompt = [absent, *PROMPT]
        row, _ = first(oracle(MODEL), prompts=[prompt], eos_token_ids=frozenset({absent}))
        assert row.emitted == CHAIN[:12]

    @pytest.mark.parametrize("drafter", [NoDrafter(), oracle(MODEL)], ids=["plain", "oracle"])
    @pytest.mark.parametrize("kept", range(1, 9))
    def test_a_check_cuts_where_it_says(self, drafter, kept):
        calls = []

        def check(emitted, new):
            calls.append((list(emitted), new))
            return kept if len(emitted) >= kept else None

        row, rounds = first(drafter, check=check)
        assert row.emitted == CHAIN[:kept]
        assert row.finish_reason == "stop"
        # It has seen all that was emitted, and each token once as new.
        assert all(emitted == CHAIN[: len(emitted)] for emitted, _ in calls)
        assert list(itertools.accumulate(new for _, new in calls)) == [len(emitted) for emitted, _ in calls]
        assert len(calls) == len(rounds)

    def test_a_check_may_drop_all_that_is_new(self):
        row, rounds = first(oracle(MODEL), check=lambda emitted, new: 6 if len(emitted) > 6 else None)
        assert row.emitted == CHAIN[:6]
        assert rounds[-1] == ()

    @pytest.mark.parametrize(("kept", "expected"), [(1, 1), (2, 2), (4, 3)])
    def test_the_earlier_of_check_and_end_wins(self, kept, expected):
        assert CHAIN[2] not in CHAIN[:2]
        row, _ = first(oracle(MODEL), eos_token_ids=frozenset({CHAIN[2]}), check=lambda emitted, new: kept)
        assert row.emitted == CHAIN[: min(kept, 3)]
        assert len(row.emitted) == expected

    def test_a_stop_at_the_limit_is_a_stop(self):
        """As in transformers: who asks whether the text is whole wants to hear of the end."""
        eos = CHAIN.index(CHAIN[2])
        row, _ = first(oracle(MODEL), max_new_tokens=eos + 1, eos_token_ids=frozenset({CHAIN[2]}))
        assert row.finish_reason == "stop"
        row, _ = first(oracle(MODEL), max_new_tokens=4, check=lambda emitted, new: 4 if len(emitted) >= 4 else None)
        assert (row.emitted, row.finish_reason) == (CHAIN[:4], "stop")

    def test_a_stop_behind_the_limit_is_none(self):
        row, _ = first(NoDrafter(), max_new_tokens=2, eos_token_ids=frozenset({CHAIN[2]}))
        assert (row.emitted, row.finish_reason) == (CHAIN[:2], "length")


class TestDepth:
    @pytest.mark.parametrize(("controller", "unmeasured", "deepest"), [(False, 2, 2), (False, None, 5), (True, 2, 5)])
    def test_of_what_is_asked_for_depends_on_whether_anything_is_measured(self, controller, unmeasured, deepest):
        speculation = Speculation(
            max_depth=5, unmeasured_depth=unmeasured, controller=Controller() if controller else None
        )
        asked = []

        class Asked(NoDrafter):
            def offers(self, requests):
                asked.extend(request.depth for request in requests)
                return super().offers(requests)

        rows = start_rows([PROMPT], [0], MODEL.context_length, **greedy(12))
        list(decode(MODEL, Asked(), rows, speculation=speculation, timings=Timings()))
        assert max(asked) == deepest

    def test_is_told_the_texts_and_when_they_end(self, monkeypatch):
        told = []

        def choose(self, requests, offers, left=None, *, ragged):
            told.append(([len(request.tokens) for request in requests], left))
            return [replace(request, depth=0) for request in requests]

        monkeypatch.setattr(Controller, "choose", choose)
        rows = start_rows([PROMPT, PROMPT * 4], [0, 1], MODEL.context_length, **greedy(3))
        settings = {"timings": Timings(), "speculation": Speculation(max_depth=5, controller=Controller())}
        list(decode(MODEL, NoDrafter(), rows, **settings))  # nobody can join, so the ends are known
        assert told == [([3, 12], [3, 3]), ([4, 13], [2, 2]), ([5, 14], [1, 1])]
        told.clear()
        rows = start_rows([PROMPT, PROMPT * 4], [0, 1], MODEL.context_length, **greedy(3))
        Batch(MODEL, NoDrafter(), rows, **settings).step()
        assert told == [([3, 12], None)]

    def test_what_was_drafted_is_cut_before_it_is_scored_and_judged_as_it_was_cut(self, monkeypatch):
        """The drafts are right: what was cut away is not accepted, and comes again."""
        judged = []
        observe = Controller.observe

        def choose(self, requests, offers, left=None, *, ragged):
            return [replace(each, offer=own[0] if own else None) for each, own in zip(requests, offers, strict=True)]

        def noted(self, offers, requests, trees, *rest, **named):
            judged.append([len(tree) for tree in trees])
            observe(self, offers, requests, trees, *rest, **named)

        monkeypatch.setattr(Controller, "choose", choose)
        monkeypatch.setattr(Controller, "observe", noted)
        monkeypatch.setattr(Controller, "cut", lambda self, trees: [tree.pruned(2) for tree in trees])
        rows = start_rows([PROMPT], [0], MODEL.context_length, **greedy(9))
        speculation = Speculation(max_depth=5, controller=Controller())
        rounds = list(decode(MODEL, oracle(MODEL), rows, speculation=speculation, timings=Timings()))
        assert rows[0].emitted == CHAIN[:9]
        assert [each.tokens for (each,) in rounds] == [tuple(CHAIN[at : at + 3]) for at in (0, 3, 6)]
        assert judged == [[3]] * 3
        assert (rows[0].stats.drafted, rows[0].stats.accepted) == (6, 6)

    def test_without_a_controller_nothing_is_cut(self):
        row, rounds = first(oracle(MODEL), max_new_tokens=6)
        assert (row.emitted, len(rounds)) == (CHAIN[:6], 1)

    def test_is_told_of_every_new_text(self, monkeypatch):
        told = []
        monkeypatch.setattr(Controller, "renew", lambda self, rows: told.append((self, rows)))
        speculation = Speculation(max_depth=5, controller=Controller())
        for _ in range(2):
            rows = start_rows([PROMPT], [0], MODEL.context_length, **greedy(4))
            list(decode(MODEL, NoDrafter(), rows, speculation=speculation, timings=Timings()))
        assert told == [(speculation.controller, 1)] * 2


class Paused(Controller):
    """Takes every offer, but in the rounds of these numbers, which pause."""

    def __init__(self, *rounds):
        super().__init__()
        self.rounds, self.count = rounds, 0

    def pauses(self, rows):
        self.count += 1
        return self.count - 1 in self.rounds

    def choose(self, requests, offers, left=None, *, ragged):
        return [replace(each, offer=own[0] if own else None) for each, own in zip(requests, offers, strict=True)]


class TestPauses:
    @staticmethod
    def asked(monkeypatch, drafter):
        """What the drafter's sessions are called for: the name of the method, and the depths that are asked for."""
        calls, kind = [], type(drafter.begin([PROMPT], [Sampling()], None))
        for name in ("offers", "propose", "observe"):
            whole = getattr(kind, name)

            def noted(self, each, name=name, whole=whole):
                calls.append((name, [getattr(one, "depth", None) for one in each]))
                return whole(self, each)

            monkeypatch.setattr(kind, name, noted)
        return calls

    def test_no_drafter_hears_of_a_paused_round_and_the_next_asks_for_roots(self, monkeypatch):
        drafter = oracle(MODEL)
        calls = self.asked(monkeypatch, drafter)
        rows = start_rows([PROMPT], [0], MODEL.context_length, **greedy(16))
        speculation = Speculation(max_depth=2, controller=Paused(1, 2))
        rounds = list(decode(MODEL, drafter, rows, speculation=speculation, timings=Timings()))
        assert rows[0].emitted == CHAIN[:16]
        assert [len(each.tokens) for (each,) in rounds] == [3, 1, 1, 1, 3, 3, 3, 1]
        assert [depths for name, depths in calls if name == "propose"] == [[2], [0], [2], [2], [2], [0]]
        assert [name for name, _ in calls] == ["offers", "propose", "observe"] * 6

    def test_a_row_that_has_to_repeat_is_never_paused(self):
        rows = start_rows([PROMPT, PROMPT], [0, 1], MODEL.context_length, **greedy(12))
        rows[1].repeats = True
        speculation = Speculation(max_depth=2, controller=Paused(*range(9)))
        list(decode(MODEL, oracle(MODEL), rows, speculation=speculation, timings=Timings()))
        assert [len(row.stats.emitted) for row in rows] == [4, 4]
        assert [row.emitted for row in rows] == [CHAIN[:12]] * 2

    def test_one_that_joins_behind_a_pause_is_drafted_for_at_once(self, monkeypatch):
        """Its trees may not depend on when others paused: it may have a seed to repeat."""
        drafter = oracle(MODEL)
        calls = self.asked(monkeypatch, drafter)
        settings = {
            "timings": Timings(),
            "speculation": Speculation(max_depth=2, controller=Paused(0)),
        }
        first, second = (
            Batch(MODEL, drafter, start_rows([PROMPT], [0], None, **greedy(9)), **settings) for _ in range(2)
        )
        first.step()
        assert not calls
        first.join(second)
        first.step()
        first.step()
        assert [depths for name, depths in calls if name == "propose"] == [[0, 2], [2, 2]]


class TestRows:
    PROMPTS = ([1, 5, 2], [0], [7, 7, 3, 1, 0, 2, 4], [3, 6])

    def test_advance_each_at_their_own_pace_and_leave_when_done(self):
        ends = {MODEL.favourites(prompt, 30)[at] for prompt, at in zip(self.PROMPTS, (2, 9, 29, 29), strict=True)}
        rows, rounds, _ = run(
            DraftModelDrafter(MODEL.disturbed(1, 1.0)), self.PROMPTS, max_new_tokens=30, eos_token_ids=frozenset(ends)
        )
        assert len({len(own) for own in rounds}) > 1
        for row, prompt in zip(rows, self.PROMPTS, strict=True):
            chain = MODEL.favourites(prompt, 30)
            end = min((at for at, token in enumerate(chain) if token in ends), default=29)
            assert row.emitted == chain[: end + 1]

    @pytest.mark.parametrize("branches", [1, 3])
    def test_a_rows_tokens_do_not_depend_on_its_neighbours(self, branches):
        """Each has its own source of chance."""
        drafter = DraftModelDrafter(MODEL.disturbed(1, 1.0), branches=branches)
        rows, _, _ = run(drafter, self.PROMPTS, sampling=SAMPLED, eos_token_ids=frozenset({6}), max_new_tokens=20)
        for row in rows:
            (alone,) = start_rows(
                [row.tokens[: row.prompt_length]],
                [row.index],
                None,
                sampling=SAMPLED,
                stopping=Stopping(max_new_tokens=20, eos_token_ids=frozenset({6})),
            )
            for _ in decode(
                MODEL,
                drafter,
                [alone],
                speculation=Speculation(max_depth=5),
                timings=Timings(),
            ):
                pass
            assert alone.tokens == row.tokens

    def test_rows_of_one_prompt_differ_by_their_seed(self):
        rows, _, _ = run(NoDrafter(), [PROMPT] * 6, sampling=SAMPLED)
        assert len({tuple(row.emitted) for row in rows}) == 6

    def test_each_fills_its_own_context(self):
        rows, _, _ = run(oracle(MODEL), self.PROMPTS, model=MODEL.limited(10), max_new_tokens=99)
        assert [len(row.tokens) for row in rows] == [10] * 4

    def test_an_empty_prompt_is_named(self):
        with pytest.raises(UsageError, match="prompt 1 is empty"):
            start_rows([[1], []], [0, 1], None, **greedy(12))

    @pytest.mark.parametrize("length", [4, 5])
    def test_a_prompt_without_room_is_named(self, length):
        with pytest.raises(UsageError, match=rf"the prompt has {length} tokens .* holds 4; shorten it"):
            start_rows([[1] * length], [0], 4, **greedy(12))
        with pytest.raises(UsageError, match=rf"prompt 1 has {length} tokens .* holds 4; shorten it"):
            start_rows([[1], [1] * length], [0, 1], 4, **greedy(12))

    def test_no_rows_are_no_passes(self):
        rows, rounds, _ = run(NoDrafter(), [])
        assert (rows, rounds) == ([], [])


class TestCounts:
    def test_plain_decoding_emits_1_per_pass(self):
        row, rounds = first(NoDrafter())
        assert row.stats.mean_accepted_length == 1.0
        assert row.stats.target_passes == len(rounds) == 12
        assert (row.stats.drafted, row.stats.accepted, row.stats.acceptance_rate) == (0, 0, 0.0)

    def test_no_depth_is_plain_decoding(self):
        row, _ = first(oracle(MODEL), depth=0)
        assert row.stats.emitted == [1] * 12

    def test_a_perfect_drafter(self):
        row, _ = first(oracle(MODEL), max_new_tokens=14)
        assert row.stats.emitted == [6, 6, 2]
        assert (row.stats.drafted, row.stats.accepted, row.stats.rejected) == (11, 11, 0)
        assert row.stats.acceptance_rate == 1.0
        assert row.stats.mean_accepted_length == 14 / 3

    @pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
    def test_nothing_is_rejected_of_the_target_as_its_own_draft(self, sampling):
        row, _ = first(DraftModelDrafter(MODEL), sampling=sampling, max_new_tokens=23)
        assert row.stats.acceptance_rate == 1.0
        assert row.stats.rejected == 0
        assert row.stats.emitted == [5, 5, 5, 5, 3]

    def test_a_hopeless_drafter(self):
        def tree(request):
            (favourite,) = MODEL.favourites(request.tokens, 1)
            return TokenTree.chain([request.tokens[-1], *[(favourite + 1) % 8] * min(request.depth, 2)])

        row, _ = first(FunctionDrafter(tree))
        assert row.stats.emitted == [1] * 12
        assert (row.stats.drafted, row.stats.accepted, row.stats.rejected) == (2 * 10 + 1, 0, 2 * 10 + 1)

    def test_trees_count_every_node_and_accept_one_path(self):
        row, _ = first(FunctionDrafter(Branching(MODEL, 2, 2, drawn_to=0)), max_new_tokens=9)
        assert row.stats.emitted == [3, 3, 3]
        assert (row.stats.drafted, row.stats.accepted, row.stats.rejected) == (18, 6, 12)

    def test_accepted_drafts_that_a_stop_cuts_are_not_counted(self):
        row, _ = first(oracle(MODEL), check=lambda emitted, new: 2)
        assert (row.stats.emitted, row.stats.drafted, row.stats.accepted) == ([2], 5, 2)
        row, _ = first(oracle(MODEL), eos_token_ids=frozenset({CHAIN[0]}))
        assert (row.stats.emitted, row.stats.drafted, row.stats.accepted) == ([1], 5, 1)

    def test_drafts_that_were_not_judged_are_not_rejected(self):
        """`compare` with a model as its own draft says that nothing was rejected, wherever the text ends."""
        for stopping in ({"check": lambda emitted, new: 2}, {"eos_token_ids": frozenset({CHAIN[2]})}):
            row, _ = first(oracle(MODEL), **stopping)
            assert row.finish_reason == "stop"
            assert row.stats.rejected == 0
        # A tree of 2 + 4 nodes whose first accepted node is an end: its sibling's branch fell, its own children not.
        tree = Branching(MODEL, 2, 2, drawn_to=0)
        row, _ = first(FunctionDrafter(tree), eos_token_ids=frozenset({CHAIN[0]}))
        assert (row.stats.drafted, row.stats.accepted, row.stats.rejected) == (6, 1, 3)

    def test_time_is_counted_where_it_went(self):
        _, _, timings = run(oracle(MODEL))
        assert timings.prefill > 0
        assert 0 < timings.propose + timings.score <= timings.decode


class TestRounds:
    """What a round says of itself."""

    def passes(self, drafter):
        rows = start_rows([PROMPT], [0], MODEL.context_length, **greedy(12))
        return [
            each for (each,) in decode(MODEL, drafter, rows, speculation=Speculation(max_depth=5), timings=Timings())
        ]

    def test_who_drafted_what_and_what_became_of_it(self):
        def tree(request):
            right = MODEL.favourites(request.tokens, 2)
            return TokenTree.merge(request.tokens[-1], [[(right[0] + 1) % 8], right])

        passes = self.passes(FunctionDrafter(tree))
        assert [each.tokens for each in passes] == [tuple(CHAIN[at : at + 3]) for at in range(0, 12, 3)]
        for each in passes:
            assert (each.drafter, each.tree.parents, each.path) == ("function", (-1, 0, 0, 2), (0, 2, 3))
            assert tuple(each.tree.tokens[node] for node in each.path[1:]) == each.tokens[:2]

    @pytest.mark.parametrize(
        "drafter", [NoDrafter(), FunctionDrafter(lambda request: TokenTree.chain([request.tokens[-1]]))]
    )
    def test_nobody_where_nothing_was_drafted(self, drafter):
        assert {(each.drafter, each.path, len(each.tree)) for each in self.passes(drafter)} == {(None, (0,), 1)}


class TestProcessors:
    @pytest.mark.parametrize("sampling", [{}, {"temperature": 0.01}, {"temperature": 1.0}])
    @pytest.mark.parametrize("drafter", [NoDrafter(), oracle(MODEL)], ids=["plain", "oracle"])
    @pytest.mark.parametrize("eos", [None, CHAIN[4]])
    def test_see_every_token_of_the_output_once_and_in_order(self, drafter, sampling, eos):
        seen = []

        def record(input_ids, scores):
            seen.append(input_ids[0].tolist())
            return scores

        ends = frozenset() if eos is None else frozenset({eos})
        row, _ = first(drafter, sampling=Sampling(processors=(record,), **sampling), eos_token_ids=ends)
        assert seen == [row.tokens[:end] for end in range(row.prompt_length, len(row.tokens))]

    def test_are_not_shown_to_a_draft_model(self):
        draft = MODEL.disturbed(1, 1.0)
        seen = []

        def record(input_ids, scores):
            seen.append(input_ids[0].tolist())
            return scores

        row, _ = first(DraftModelDrafter(draft, branches=2), sampling=Sampling(processors=(record,)))
        assert len(seen) == 12 == len(row.emitted)


def test_typical_acceptance_is_passed_on():
    drafter = DraftModelDrafter(MODEL.disturbed(1, 1.0))
    lossless, _ = first(drafter, sampling=SAMPLED, max_new_tokens=40)
    typical, _ = first(drafter, sampling=SAMPLED, max_new_tokens=40, threshold=0.01)
    assert typical.stats.acceptance_rate > lossless.stats.acceptance_rate


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_logits_that_are_no_numbers_end_the_decoding(sampling):
    model = TableModel(torch.full_like(MODEL.table, torch.nan), 3)
    with pytest.raises(NumericalError):
        run(NoDrafter(), model=model, sampling=sampling)


def test_whether_it_was_exact_is_the_sessions_word():
    class Rounding(TableSession):
        exact = "rounding"

    class Target(TableModel):
        def begin(self, prefixes):
            return Rounding(self, prefixes)

    row, _ = first(NoDrafter(), model=Target(MODEL.table, 3))
    assert row.exact == "rounding"
    row, _ = first(NoDrafter())
    assert row.exact == "bits"


def test_a_caller_may_leave_in_the_middle():
    rows = start_rows([PROMPT], [0], None, sampling=Sampling(), stopping=Stopping(max_new_tokens=30))
    rounds = decode(
        MODEL,
        oracle(MODEL),
        rows,
        speculation=Speculation(max_depth=3),
        timings=Timings(),
    )
    next(rounds)
    next(rounds)
    rounds.close()
    assert rows[0].emitted == CHAIN[:8]
    assert rows[0].finish_reason is None
