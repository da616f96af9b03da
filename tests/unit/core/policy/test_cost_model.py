"""What passes and drafts are taken to cost: between what was measured, and after what was seen since."""

import pytest

from specstream.core.policy.cost_model import (
    LATELY,
    LIFETIME,
    NODE_SHARE,
    PACE,
    READ_SHARE,
    STEP_SHARE,
    VOTES,
    CostModel,
    Line,
)
from specstream.core.policy.prices import PriceList

ROWS, SIZES, CONTEXTS = (1, 4), (1, 2, 4, 8, 16), (64, 480)


def seconds(rows, nodes, context):
    """Of a machine whose costs are straight lines."""
    return 10 + 0.5 * rows + 0.4 * nodes + 0.001 * nodes * context


PRICES = PriceList(
    {
        (rows, rows * size, context): seconds(rows, rows * size, context)
        for rows in ROWS
        for size in SIZES
        for context in CONTEXTS
    },
    {"model": {(1, 1): 2.0, (1, 4): 8.0, (4, 1): 5.0, (4, 4): 14.0}},
)


def known(context=64):
    costs = CostModel(PRICES)
    costs.look_at(context)
    return costs


def expected(nodes):
    return seconds(1, nodes, 64)


def decode(costs, passes, *, slow=1.0, dear=None):
    """Passes of one row at their price, or times so much; ``dear`` is by nodes how many times theirs some take."""
    for nodes in passes:
        costs.observe_pass(1, nodes, slow * (dear or {}).get(nodes, 1.0) * expected(nodes))


def padded(nodes):
    """The size that a pass over so many nodes is padded to."""
    return next(size for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if size >= nodes)


class TestPasses:
    @pytest.mark.parametrize("nodes", [1, 2, 3, 5, 7, 11, 16])
    @pytest.mark.parametrize("context", [64, 200, 480])
    def test_as_what_they_are_padded_to_and_between_contexts_along_lines(self, nodes, context):
        context = 64 * (context // 64) if context > 64 else context
        assert known(context).passing(1, nodes) == pytest.approx(seconds(1, padded(nodes), context))
        assert known(context).passing(4, 4 * nodes) == pytest.approx(seconds(4, padded(4 * nodes), context))

    @pytest.mark.parametrize("rows", [2, 3])
    def test_between_numbers_of_rows_too(self, rows):
        for nodes in (4, 7, 16):
            assert known().passing(rows, nodes) == pytest.approx(seconds(rows, padded(nodes), 64))

    def test_beyond_what_was_measured_the_lines_go_on_but_for_rows(self):
        assert known().passing(1, 30) == pytest.approx(seconds(1, 30, 64))
        assert known(5000).passing(1, 8) == pytest.approx(seconds(1, 8, 5000))
        assert known().passing(9, 40) == pytest.approx(seconds(4, 48, 64)), "as of the most rows"

    def test_a_shorter_context_costs_what_the_shortest_measured_costs(self):
        assert known(1).passing(1, 8) == pytest.approx(seconds(1, 8, 64))

    def test_a_pass_of_more_nodes_is_never_cheaper(self):
        line = Line({1: 10.0, 2: 14.0, 4: 12.0, 8: 15.0})
        assert [line.of(nodes) for nodes in (1, 2, 3, 4, 6, 8)] == [10, 14, 14, 14, 14.5, 15]

    def test_behind_more_context_it_is_never_cheaper(self):
        costs = CostModel(PriceList({(1, 1, 64): 10.0, (1, 1, 480): 8.0, (1, 4, 64): 12.0, (1, 4, 480): 14.0}))
        costs.look_at(480)
        assert (costs.passing(1, 1), costs.passing(1, 4)) == (8, 14), "what was measured there"
        costs.look_at(900)
        assert costs.passing(1, 4) == pytest.approx(16.019, abs=0.01)

    def test_where_only_plain_passes_were_measured_a_node_is_a_share_of_them(self):
        costs = CostModel(PriceList({(2, 2, 64): 10.0}))
        assert costs.passing(2, 4) == pytest.approx(10 * (1 + NODE_SHARE))

    def test_what_is_measured_later_is_known_beside_what_was(self):
        costs = CostModel(PriceList({(1, 1, 64): 10.0, (1, 2, 64): 11.0}))
        costs.know(PriceList({(1, 2, 64): 15.0, (1, 4, 64): 20.0}, {"model": {(1, 1): 1.0}}))
        assert [costs.passing(1, nodes) for nodes in (1, 2, 4)] == [10, 15, 20]
        assert costs.drafting("model", 1, 1) == 1
        assert costs.prices.passes[1, 1, 64] == 10


class TestDrafting:
    def test_by_depth_and_rows_along_lines(self):
        costs = known()
        assert [costs.drafting("model", 1, depth) for depth in (0, 1, 2, 4, 6)] == pytest.approx([0, 2, 4, 8, 12])
        assert [costs.drafting("model", rows, 1) for rows in (0, 1, 2, 3, 4, 9)] == pytest.approx([0, 2, 3, 4, 5, 5])
        assert costs.drafting("model", 2, 2) == pytest.approx(4 + (8 - 4) / 3)

    def test_a_fraction_of_a_step_is_expected_where_drafts_may_end(self):
        assert known().drafting("model", 1, 2.5) == pytest.approx(5)

    def test_tokens_that_have_to_be_read_first_cost_shares_of_a_step(self):
        costs = known()
        assert costs.drafting("model", 1, 2, 2) == costs.drafting("model", 1, 2)
        assert costs.drafting("model", 1, 2, 32) == pytest.approx(4 + 30 * READ_SHARE * 2)

    def test_a_drafter_that_nobody_measured_costs_shares_of_a_plain_pass(self):
        assert known().drafting("unknown", 1, 3) == pytest.approx(3 * STEP_SHARE * expected(1))

    def test_measurements_correct_it_at_every_depth_but_not_the_first(self):
        costs = known()
        for count in range(1, VOTES + 2):
            costs.observe_drafting("model", 1, 2, 1, 12.0)
            assert costs.drafting("model", 1, 4) == pytest.approx(24 if count > VOTES else 8)
        assert costs.drafting("model", 4, 1) == pytest.approx(5), "four rows were not seen"

    def test_of_one_that_nobody_measured_the_first_measurement_is_believed(self):
        costs = known()
        costs.observe_drafting("unknown", 1, 2, 1, 7.0)
        assert costs.drafting("unknown", 1, 2) == pytest.approx(7)

    def test_the_reading_is_not_taken_for_steps(self):
        costs = known()
        for _ in range(9):
            costs.observe_drafting("model", 1, 2, 32, 4 + 30 * READ_SHARE * 2)
        assert costs.drafting("model", 1, 2) == pytest.approx(4)

    def test_a_slow_spell_is_no_fault_of_its_own(self):
        costs = known()
        decode(costs, [1, 2, 1, 2, 1], slow=3.0)
        for _ in range(5):
            costs.observe_drafting("model", 1, 2, 1, 12.0)
        assert costs.drafting("model", 1, 2) == pytest.approx(4)
        decode(costs, [1, 2, 1, 2, 1])
        assert costs.drafting("model", 1, 2) == pytest.approx(4)


class TestCorrections:
    def test_what_is_as_expected_changes_nothing(self):
        costs = known()
        decode(costs, [1, 4, 2, 16] * 10)
        assert [costs.passing(1, nodes) for nodes in (1, 4, 16)] == pytest.approx([*map(expected, (1, 4, 16))])

    def test_dear_passes_are_believed_when_they_outvote_the_self_test(self):
        costs = known()
        for count in range(1, VOTES + 2):
            decode(costs, [1, 2, 1, 4], dear={4: 2.0})
            decode(costs, [1, 2, 1])  # so that the pace is that of others
            times = costs.passing(1, 4) / expected(4)
            assert times == pytest.approx(2 if count > VOTES else 1)

    def test_one_that_was_disturbed_changes_nothing(self):
        costs = known()
        for nodes in (1, 4, 16, 2):
            decode(costs, [1, 2, 4, 16, 1, 2, 4, 16, 1, 2])
            decode(costs, [nodes], slow=40.0)
        decode(costs, [1, 2, 4, 1])
        assert [costs.passing(1, nodes) for nodes in (1, 2, 4, 16)] == pytest.approx([*map(expected, (1, 2, 4, 16))])

    def test_a_correction_is_that_of_sizes_near_it(self):
        """Of the next smaller size that was seen; plain passes say nothing of wider ones that were."""
        costs = known()
        for _ in range(6):
            decode(costs, [1, 2, 1, 8, 1, 2, 1], dear={8: 2.0})
        assert costs.passing(1, 16) == pytest.approx(2 * expected(16))
        assert costs.passing(1, 8) == pytest.approx(2 * expected(8))
        assert costs.passing(1, 4) == pytest.approx(expected(4)), "two nodes are as expected, so four are"
        assert costs.passing(1, 6) < costs.passing(1, 7) == costs.passing(1, 8), "padded to the next size"

    def test_it_is_forgotten_when_it_was_not_seen_for_long(self):
        """Or what looked dear once would never be run, and so never be measured, again."""
        costs = known()
        for _ in range(6):
            decode(costs, [1, 2, 1, 8, 1, 2, 1], dear={8: 2.0})
        decode(costs, [1, 2] * (LIFETIME // 2 - 4))
        assert costs.passing(1, 8) == pytest.approx(2 * expected(8))
        decode(costs, [1, 2] * 4)
        assert costs.passing(1, 8) == pytest.approx(expected(8))

    def test_that_of_plain_passes_never_is(self):
        costs = known()
        for _ in range(10):
            decode(costs, [2, 4, 2, 4, 2, 4, 1], dear={1: 0.7})
        for _ in range(LIFETIME):
            decode(costs, [2, 4])
        assert costs.passing(1, 2) / costs.passing(1, 1) == pytest.approx(expected(2) / (0.7 * expected(1)))

    def test_each_number_of_rows_has_its_own(self):
        costs = known()
        for _ in range(6):
            decode(costs, [1, 2, 1, 8, 1, 2, 1], dear={8: 2.0})
        more = costs.passing(4, 8) / costs.passing(4, 4)
        assert more == pytest.approx(seconds(4, 8, 64) / seconds(4, 4, 64))


class TestThePace:
    def test_a_slow_spell_makes_everything_slow_and_nothing_dear(self):
        costs = known()
        decode(costs, [1, 4] * 10)
        decode(costs, [1, 4] * 10, slow=3.0)
        for nodes in (1, 2, 4, 16):
            assert costs.passing(1, nodes) == pytest.approx(3 * expected(nodes))
        decode(costs, [1, 4] * 2)
        for nodes in (1, 2, 4, 16):
            assert costs.passing(1, nodes) == pytest.approx(expected(nodes))

    def test_nor_does_one_in_which_only_plain_passes_run(self):
        costs = known()
        decode(costs, [1, 4] * 10)
        decode(costs, [1] * 40, slow=3.0)
        assert costs.passing(1, 4) / costs.passing(1, 1) == pytest.approx(expected(4) / expected(1))

    def test_it_is_the_median_of_a_few_passes(self):
        costs = known()
        decode(costs, [1] * PACE)
        decode(costs, [1], slow=50.0)
        assert costs.passing(1, 1) == pytest.approx(expected(1))

    def test_how_much_longer_a_pass_took_than_expected_is_returned(self):
        costs = known()
        assert costs.observe_pass(1, 1, expected(1)) == pytest.approx(1)
        assert costs.observe_pass(1, 1, 2 * expected(1)) == pytest.approx(2)
        decode(costs, [1] * 5, slow=3.0)
        assert costs.observe_pass(1, 1, 3 * expected(1)) == pytest.approx(1), "at the pace of those before"


class TestWithoutPrices:
    def test_nothing_is_known_before_two_plain_passes_as_the_first_may_be_disturbed(self):
        costs = CostModel()
        assert not costs.knows(1)
        costs.observe_pass(1, 1, 30.0)
        assert not costs.knows(1)
        costs.observe_pass(1, 3, 30.0)
        assert not costs.knows(1), "that one was not plain"
        costs.observe_pass(1, 1, 30.0)
        assert costs.knows(1)
        assert costs.knows(4), "from the nearest number of rows"
        costs.observe_pass(4, 4, 40.0)
        assert not costs.knows(4), "which it is itself now"
        assert CostModel(PRICES).knows(7)

    def test_the_first_passes_say_what_a_second_is(self):
        costs = CostModel()
        for _ in range(6):
            costs.observe_pass(1, 1, 30.0)
            assert costs.passing(1, 1) == pytest.approx(30)
            assert costs.passing(1, 3) == pytest.approx(30 * (1 + 2 * NODE_SHARE))
            assert costs.drafting("model", 1, 2) == pytest.approx(2 * STEP_SHARE * costs.plain(1))

    def test_a_first_pass_that_was_disturbed_is_corrected_by_the_next_ones(self):
        costs = CostModel()
        for took in (3000.0, 30.0, 30.0):
            costs.observe_pass(1, 1, took)
        assert costs.passing(1, 1) == pytest.approx(30)
        assert costs.passing(1, 3) == pytest.approx(30 * (1 + 2 * NODE_SHARE))

    def test_what_wider_passes_and_drafts_cost_is_learnt(self):
        costs = CostModel()
        for _ in range(6):
            for nodes, took in ((1, 30.0), (2, 33.0), (4, 60.0), (1, 30.0)):
                costs.observe_pass(1, nodes, took)
            costs.observe_drafting("model", 1, 2, 1, 24.0)
        assert costs.passing(1, 4) / costs.passing(1, 1) == pytest.approx(2, rel=0.1)
        assert costs.drafting("model", 1, 4) / costs.plain(1) == pytest.approx(1.6, rel=0.1)


@pytest.mark.parametrize(
    ("listed", "passes", "pace", "outdated"),
    [
        (True, LATELY, 0.7, True),
        (True, LATELY, 0.9, False),
        (True, LATELY - 1, 0.7, False),
        (False, LATELY, 0.7, False),
    ],
)
def test_a_list_from_a_busier_machine_is_outdated(listed, passes, pace, outdated):
    costs = CostModel(PriceList({(1, 1, 64): 10.0, (1, 8, 64): 12.0}) if listed else None)
    for _ in range(passes):
        costs.observe_pass(1, 1, pace * 10.0)
    assert costs.outdated == outdated
