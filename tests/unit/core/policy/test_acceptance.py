"""The running estimate of how often drafts are accepted, and what that makes of offers."""

import pytest
import torch

from specstream.core.policy.acceptance import (
    CALIBRATION_WEIGHT,
    FADE,
    PRIOR_ACCEPTANCE,
    PRIOR_WEIGHT,
    Acceptance,
    Calibration,
    Calibrations,
    Estimates,
    Level,
)
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree
from tests.unit.core.machine import CHANCE


def emitted(acceptance, depth):
    """What depth ``depth`` alone adds."""
    return acceptance.survivals(depth)[depth - 1]


def test_before_anything_was_judged_it_is_hopeful_and_shallow():
    acceptance = Acceptance()
    assert acceptance.reach == 1
    assert acceptance.survivals(3) == pytest.approx([PRIOR_ACCEPTANCE, PRIOR_ACCEPTANCE**2, PRIOR_ACCEPTANCE**3])
    assert acceptance.survivals(0) == []


def test_the_first_judgements_weigh_as_much_as_the_prior_does():
    acceptance = Acceptance()
    acceptance.judge(1, 0)
    prior = PRIOR_WEIGHT * (1 - FADE)
    assert acceptance.survivals(1) == [pytest.approx(prior * PRIOR_ACCEPTANCE / (1 + prior))]


def test_survival_falls_along_a_path_whatever_was_judged():
    acceptance = Acceptance()
    for round_ in range(50):
        acceptance.judge(3, (0, 3, 1)[round_ % 3])
        found = acceptance.survivals(6)
        assert found == sorted(found, reverse=True)
        assert all(0 <= each <= 1 for each in found)


def test_the_reach_doubles_with_what_was_judged():
    acceptance = Acceptance()
    reaches = []
    for _ in range(3):
        acceptance.judge(acceptance.reach, acceptance.reach)
        reaches.append(acceptance.reach)
    assert reaches == [2, 4, 8]


@pytest.mark.parametrize("period", [2, 3, 5])
def test_it_comes_to_the_frequency(period):
    acceptance = Acceptance()
    for round_ in range(300):
        acceptance.judge(1, int(round_ % period != 0))
    assert emitted(acceptance, 1) == pytest.approx(1 - 1 / period, abs=2 * FADE)


def test_depths_count_given_that_the_one_before_was_accepted():
    acceptance = Acceptance()
    for round_ in range(200):
        accepted = (2, 1)[round_ % 2]
        acceptance.judge(2, accepted)
    assert emitted(acceptance, 1) == pytest.approx(1)
    assert emitted(acceptance, 2) == pytest.approx(0.5, abs=0.05)


def test_a_run_that_is_not_to_be_believed_makes_it_forget():
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.judge(1, 0)
    for _ in range(2):
        acceptance.judge(1, 1)
        assert emitted(acceptance, 1) < 0.2, "twice is luck"
    acceptance.judge(1, 1)
    assert emitted(acceptance, 1) > 0.8
    for _ in range(100):
        acceptance.judge(1, 1)
    for _ in range(3):
        acceptance.judge(1, 0)
    assert emitted(acceptance, 1) < 0.5


def test_a_depth_that_is_not_looked_at_becomes_like_the_one_before():
    acceptance = Acceptance()
    for _ in range(30):
        acceptance.judge(2, 1)
    assert emitted(acceptance, 2) < 0.1
    for _ in range(60):
        acceptance.judge(1, 1)
    assert emitted(acceptance, 2) > 0.4


def test_a_depth_that_a_rejection_hid_does_not():
    acceptance = Acceptance()
    for _ in range(30):
        acceptance.judge(2, 1)
    before = list(acceptance._judged)
    acceptance.judge(1, 0)
    assert acceptance._judged[1] == before[1]


class TestWhereDraftsEnd:
    def test_nobody_knows_at_first_so_they_are_expected_to_go_on(self):
        assert Acceptance().going(3) == [1, 1, 1]

    def test_how_often_they_got_to_each_depth(self):
        acceptance = Acceptance()
        for round_ in range(600):
            acceptance.judge_length(3, (1, 3)[round_ % 2])
        assert acceptance.going(3) == pytest.approx([1, 0.5, 0.5], abs=2 * FADE)

    def test_beyond_what_was_asked_for_as_at_the_last_depth(self):
        acceptance = Acceptance()
        for round_ in range(600):
            acceptance.judge_length(2, 1 + round_ % 2)
        one, two, three, four = acceptance.going(4)
        assert (one, two / one) == (pytest.approx(1), pytest.approx(0.5, abs=2 * FADE))
        assert (three / two, four / three) == (pytest.approx(two / one), pytest.approx(two / one))

    def test_a_draft_that_was_not_asked_to_go_on_did_not_end(self):
        acceptance = Acceptance()
        for _ in range(100):
            acceptance.judge_length(2, 2)
        assert acceptance.going(4) == [1, 1, 1, 1]


class TestCalibration:
    def test_it_comes_to_what_happened_over_what_was_expected(self):
        calibration = Calibration()
        assert calibration.ratio == 1
        for _ in range(1000):
            calibration.judge(2.0, 0.5)
        assert calibration.ratio == pytest.approx(0.25, rel=0.05)

    def test_the_first_judgements_count_as_much_as_a_few_tokens_of_its_word(self):
        calibration = Calibration()
        calibration.judge(CALIBRATION_WEIGHT, 0.0)
        assert calibration.ratio == pytest.approx(0.5, rel=0.02)


def verdict(accepted, tokens=None):
    return Verdict(path=tuple(range(accepted + 1)), tokens=tuple(tokens or [1] * (accepted + 1)))


HEADS = Offer(source="medusa", depth=2, ranked=((1, 0.8), (1, 0.4), (2, 0.3)))
CUTS = Offer(source="model", depth=4, cuts=True)


class TestLevels:
    def test_of_a_drafter_that_says_nothing_by_depth_no_deeper_than_it_reaches(self):
        estimates, known, offer = Estimates(), Calibrations(), Offer(source="model", depth=5, branches=3)
        assert estimates.levels(offer, known) == [Level(1, 3.0, PRIOR_ACCEPTANCE)]
        for _ in range(50):
            estimates.of(offer).judge(2, 1)
        first, second, third, fourth = estimates.levels(offer, known)
        assert (first.survival, second.survival) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01))
        assert [each.depth for each in (first, second, third, fourth)] == [1, 2, 3, 4]

    def test_of_a_known_tree_by_its_nodes_at_each_depth(self):
        estimates, known = Estimates(), Calibrations()
        offer = Offer(source="lookup/3", depth=2, tree=TokenTree((9, 1, 2, 3), (-1, 0, 0, 1)))
        estimates.of(offer).judge(1, 1)
        assert [(each.depth, each.nodes) for each in estimates.levels(offer, known)] == [(1, 2.0), (2, 1.0)]

    def test_kinds_of_drafts_are_told_apart_and_drafters_calibrated_as_one(self):
        estimates, known = Estimates(), Calibrations()
        long, short = (Offer(source=f"lookup/{length}", depth=3) for length in (6, 2))
        assert estimates.of(long) is not estimates.of(short)
        assert estimates.calibration(known, long) is estimates.calibration(known, short)

    def test_of_ranked_nodes_each_by_itself_calibrated(self):
        estimates, known = Estimates(), Calibrations()
        assert estimates.levels(HEADS, known) == [Level(1, 1.0, 0.8), Level(1, 1.0, 0.4), Level(2, 1.0, 0.3)]
        for _ in range(1000):
            estimates.calibration(known, HEADS).judge(1.0, 0.5)
        assert [each.survival for each in estimates.levels(HEADS, known)] == pytest.approx([0.4, 0.2, 0.15], rel=0.05)
        for _ in range(3000):
            estimates.calibration(known, HEADS).judge(1.0, 3.0)
        assert estimates.levels(HEADS, known)[0].survival == 1.0, "no more than certain"

    def test_a_draft_that_may_end_has_fewer_nodes_and_tokens(self):
        estimates, known = Estimates(), Calibrations()
        for _ in range(300):
            estimates.of(CUTS).judge(4, 4)
            estimates.of(CUTS).judge_length(4, 1)
        first, second, *_ = estimates.levels(CUTS, known)
        assert (first.nodes, second.nodes) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01))
        assert first.survival == pytest.approx(1, abs=0.01)
        for _ in range(1000):
            estimates.calibration(known, CUTS).judge(1.0, 0.25)
        assert estimates.levels(CUTS, known)[0].survival == pytest.approx(0.25, abs=0.02)
        for _ in range(1000):
            estimates.calibration(known, CUTS).judge(1.0, 2.0)
        assert estimates.levels(CUTS, known)[0].survival <= 1, "it may be right to have ended, but adds nothing by that"


def judge(estimates, offers, taken, depth, tree, result, known=None):
    calibrations = Calibrations() if known is None else known
    request = DraftRequest(tokens=[9], depth=depth, generator=CHANCE, offer=taken, calibrations=calibrations)
    estimates.judge(offers, request, tree, result)


class TestWhatARoundTeaches:
    def test_known_trees_are_judged_whether_they_were_taken_or_not(self):
        estimates = Estimates()
        right = Offer(source="lookup/6", depth=2, tree=TokenTree.chain([9, 1, 2]))
        wrong = Offer(source="lookup/2", depth=2, tree=TokenTree.chain([9, 1, 3]))
        for _ in range(40):
            judge(estimates, [right, wrong], None, 0, TokenTree.chain([9]), verdict(0, [1]))
            judge(estimates, [right, wrong], right, 2, right.tree, verdict(2, [1, 2, 5]))
        assert emitted(estimates.of(right), 2) == pytest.approx(1, abs=0.02)
        assert emitted(estimates.of(wrong), 1) == pytest.approx(1, abs=0.02)
        assert emitted(estimates.of(wrong), 2) == pytest.approx(0, abs=0.02)

    def test_depths_behind_the_last_emitted_token_are_not_judged(self):
        estimates = Estimates()
        offer = Offer(source="lookup/6", depth=3, tree=TokenTree.chain([9, 1, 2, 3]))
        judge(estimates, [offer], None, 0, TokenTree.chain([9]), verdict(0, [1]))
        assert estimates.of(offer).rates == [1.0]

    def test_drawn_trees_are_not_judged_by_what_was_emitted(self):
        """That depends on chance too."""
        estimates = Estimates()
        drawn = TokenTree((9, 1), (-1, 0), {0: torch.full((4,), 0.25)})
        offer = Offer(source="lookup/6", depth=1, tree=drawn)
        judge(estimates, [offer], None, 0, TokenTree.chain([9]), verdict(0, [2]))
        assert estimates.of(offer).rates == []

    def test_what_was_drafted_is_judged_as_far_as_it_was_looked_at(self):
        estimates, offer = Estimates(), Offer(source="model", depth=4)
        judge(estimates, [offer], offer, 4, TokenTree.chain([9, 1, 2, 3, 4]), verdict(1))
        assert estimates.of(offer).rates == [1.0, 0.0], "behind the rejected one nothing was"
        judge(estimates, [offer], None, 0, TokenTree.chain([9]), verdict(0))
        assert estimates.of(offer).rates == [1.0, 0.0], "a row that took nothing says nothing of drafts"

    def test_ranked_drafts_calibrate_what_their_drafter_says_of_them(self):
        """By what it said of this very tree, where it did, as it was cut."""
        estimates, known = Estimates(), Calibrations()
        sure = TokenTree((9, 1, 2), (-1, 0, 1), survival=(1.0, 0.9, 0.7))
        for _ in range(2000):
            judge(estimates, [HEADS], HEADS, 2, sure, verdict(1), known)
        assert estimates.calibration(known, HEADS, drafted=True).ratio == pytest.approx(1 / 1.6, rel=0.05)
        silent = TokenTree((9, 1, 2), (-1, 0, 0))
        for _ in range(2000):
            judge(estimates, [HEADS], HEADS, 2, silent, verdict(1), known)
        assert estimates.calibration(known, HEADS).ratio == pytest.approx(
            1 / sum(each for _, each in HEADS.ranked), rel=0.05
        )
        assert estimates.calibration(known, HEADS, drafted=True).ratio == pytest.approx(1 / 1.6, rel=0.05)
        assert estimates.of(HEADS).rates == [], "its own estimate stands"

    def test_what_was_cut_to_its_root_was_expected_to_bring_something(self):
        estimates, known = Estimates(), Calibrations()
        for _ in range(2000):
            judge(estimates, [HEADS], HEADS, 2, TokenTree((9,), (-1,), survival=(1.0,)), verdict(0), known)
        assert estimates.calibration(known, HEADS).ratio < 0.01
        assert estimates.calibration(known, HEADS, drafted=True).ratio == 1, "nothing was expected of that"

    def test_a_draft_that_ended_teaches_where_drafts_end(self):
        """Its last step found out that it had to end, and was no token of it."""
        estimates = Estimates()
        ended = TokenTree((9, 1), (-1, 0), steps=2)
        for _ in range(100):
            judge(estimates, [CUTS], CUTS, 4, ended, verdict(1))
        assert estimates.of(CUTS).going(2) == [pytest.approx(1), pytest.approx(0, abs=0.01)]
        assert estimates.of(CUTS).rates[0] == 1.0

    def test_what_drafts_that_may_end_are_expected_to_bring_comes_to_what_they_bring(self):
        """Some end after a token; of those that do not all is accepted. Both are asked to draft four."""
        estimates, known = Estimates(), Calibrations()
        whole, ended = TokenTree.chain([9, 1, 2, 3, 4]), TokenTree((9, 1), (-1, 0), steps=2)
        for _ in range(300):
            judge(estimates, [CUTS], CUTS, 4, whole, verdict(4), known)
            judge(estimates, [CUTS], CUTS, 4, ended, verdict(1), known)
        assert sum(level.survival for level in estimates.levels(CUTS, known)) == pytest.approx(2.5, abs=0.2)
        assert sum(level.nodes for level in estimates.levels(CUTS, known)) == pytest.approx(2.5, abs=0.2)


class TestRows:
    def test_each_is_calibrated_by_itself(self):
        """One text repeats itself and its neighbour does not: copies of the second are not expected to be accepted."""
        estimates, repeats, differs = Estimates(), Calibrations(), Calibrations()
        right = Offer(source="lookup/3", depth=2, tree=TokenTree.chain([9, 1, 1]))
        wrong = Offer(source="lookup/3", depth=2, tree=TokenTree.chain([9, 2, 2]))
        for _ in range(30):
            judge(estimates, [right], None, 0, TokenTree.chain([9]), verdict(0, [1]), repeats)
            judge(estimates, [wrong], None, 0, TokenTree.chain([9]), verdict(0, [1]), differs)
        assert estimates.levels(right, repeats)[0].survival > 0.8
        assert estimates.levels(wrong, differs)[0].survival < 0.15
        assert estimates.levels(wrong, Calibrations())[0].survival == pytest.approx(0.5, abs=0.1)

    def test_a_text_of_which_nothing_was_seen_is_expected_to_be_like_what_its_drafter_says(self):
        estimates = Estimates()
        taken, tree = Offer(source="medusa", depth=1, ranked=((1, 0.5),)), TokenTree((9, 1), (-1, 0))
        for _ in range(300):
            judge(estimates, [taken], taken, 1, tree, verdict(0), known := Calibrations())
        assert estimates.calibration(known, taken).ratio < 1
        assert estimates.calibration(Calibrations(), taken).ratio == 1
