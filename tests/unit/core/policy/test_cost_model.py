"""What passes and drafts are taken to cost between, beyond and before what was measured."""

import pytest

from specstream.core.policy.cost_model import CONTEXT, NODE_SHARE, READ_SHARE, Costs


def measured(passes, rows=1):
    costs = Costs()
    for width, seconds in [*passes.items()] * 2:
        costs.observe_pass(rows, width, seconds)
    return costs


def test_between_two_widths_along_a_line():
    costs = measured({1: 30.0, 5: 50.0})
    assert [costs.passing(1, width) for width in (1, 2, 3, 5)] == [30, 35, 40, 50]


def test_beyond_the_widest_half_as_steep():
    assert measured({1: 30.0, 2: 40.0}).passing(1, 4) == 50


def test_a_wider_pass_is_never_cheaper():
    costs = measured({1: 30.0, 2: 45.0, 4: 40.0})
    assert [costs.passing(1, width) for width in (2, 3, 4, 8)] == [45, 45, 45, 45]


def test_before_any_wide_pass_a_little_is_added_for_each_node():
    costs = measured({1: 30.0})
    assert costs.passing(1, 2) == pytest.approx(30 * (1 + NODE_SHARE))
    assert costs.passing(1, 2) < costs.passing(1, 4) < 40


def test_another_number_of_rows_lends_its_shape_by_nodes():
    costs = measured({1: 30.0, 3: 60.0}, rows=4)  # 4 nodes, 12 nodes
    assert costs.passing(3, 3) == 48.75, "9 nodes"
    assert costs.passing(3, 1) == 26.25
    costs.observe_pass(3, 1, 20.0)
    assert costs.passing(3, 3) == pytest.approx(20 * 48.75 / 26.25)
    assert costs.passing(9, 3) == pytest.approx(60 + 15 / 2 * 3.75), "27 nodes, beyond the widest"


def test_a_wide_pass_of_many_rows_is_not_priced_like_one_of_a_few():
    costs = measured({1: 13.0, 8: 14.0, 16: 23.0})
    costs.observe_pass(2, 1, 13.5)
    assert costs.passing(2, 8) > 1.5 * costs.passing(2, 1), "16 nodes"
    assert costs.passing(2, 4) < 1.1 * costs.passing(2, 1), "8 nodes"


def ratio(costs, width=2):
    return costs.passing(1, width) / costs.passing(1, 1)


def test_a_slow_start_and_hiccups_move_nothing():
    costs = Costs()
    for seconds in (3000, 30, 30):
        costs.observe_pass(1, 1, seconds)
    for _ in range(2):
        costs.observe_pass(1, 2, 40.0)
    assert ratio(costs) == pytest.approx(4 / 3)
    for hiccup in ((1, 900.0), (2, 700.0), (1, 60.0)):
        costs.observe_pass(1, *hiccup)
        for _ in range(3):
            costs.observe_pass(1, 1, 30.0)
        assert ratio(costs) == pytest.approx(4 / 3)


def test_a_slow_spell_makes_nothing_look_cheap_or_dear():
    costs = measured({1: 30.0, 2: 40.0, 4: 60.0})
    for _ in range(20):
        costs.observe_pass(1, 1, 90.0)
    assert ratio(costs) == pytest.approx(4 / 3), "wider passes would have been slower too"
    costs.observe_pass(1, 4, 180.0)
    costs.observe_draft(1, "draft", 1, 1, 36.0)
    for _ in range(4):
        costs.observe_pass(1, 1, 30.0)
    assert ratio(costs, 4) == pytest.approx(2)
    assert costs.steps(1, "draft", 1) / costs.passing(1, 1) <= 0.25
    costs.observe_draft(1, "draft", 1, 1, 12.0)
    costs.observe_draft(1, "draft", 1, 1, 12.0)
    assert costs.steps(1, "draft", 1) / costs.passing(1, 1) == pytest.approx(0.4)


def test_what_one_width_costs_beside_another_is_learnt_anew():
    costs = measured({1: 30.0, 2: 40.0})
    for _ in range(12):
        costs.observe_pass(1, 1, 30.0)
        costs.observe_pass(1, 1, 30.0)
        costs.observe_pass(1, 2, 75.0)
    assert ratio(costs) == pytest.approx(2.5)


def test_the_first_pass_of_a_width_may_be_slow_too():
    costs = measured({1: 30.0})
    costs.observe_pass(1, 2, 3000.0)
    assert costs.passing(1, 2) < 40
    costs.observe_pass(1, 2, 31.0)
    assert costs.passing(1, 2) == 31
    costs.observe_pass(1, 3, 3000.0)
    costs.observe_pass(1, 3, 90.0)
    assert costs.passing(1, 3) == 90, "what is dear twice is dear"


def test_so_may_the_first_step_of_a_drafter():
    costs = Costs()
    costs.observe_draft(1, "draft", 1, 3, 330.0)
    costs.observe_draft(1, "draft", 1, 1, 30.0)
    assert costs.steps(1, "draft", 1) == 30
    costs.observe_draft(1, "draft", 1, 22, 90.0)
    assert costs.steps(1, "draft", 1) == 30
    assert costs.reading(1, "draft", 22) == 60


def test_what_a_first_step_was_limited_to_bounds_no_others():
    costs = Costs()
    costs.observe_pass(2, 1, 12.0)
    costs.observe_draft(2, "draft", 1, 1, 300.0)
    assert costs.steps(2, "draft", 1) == 3
    for _ in range(3):
        costs.observe_draft(2, "draft", 3, 2, 25.0)
    assert costs.steps(2, "draft", 3) == 25


def test_a_step_cannot_cost_more_than_steps_and_reading_together():
    costs = Costs()
    costs.observe_draft(1, "draft", 1, 1, 300.0)
    costs.observe_draft(1, "draft", 1, 12, 60.0)
    assert costs.steps(1, "draft", 1) == 30


def test_steps_and_reading_are_told_apart():
    costs = Costs()
    assert (costs.steps(1, "draft", 3), costs.reading(1, "draft", 50)) == (0, 0)
    costs.observe_draft(1, "draft", 4, 2, 48.0)
    assert costs.steps(1, "draft", 2) == 24
    assert costs.reading(1, "draft", 2) == 0
    assert costs.reading(1, "draft", 12) == pytest.approx(10 * READ_SHARE * 12)
    for round_ in range(200):
        steps, unread = 1 + round_ % 4, (2, 30, 9, 100)[round_ % 3]
        costs.observe_draft(1, "draft", steps, unread, 20 * steps + 3 * (unread - 2))
    assert costs.steps(1, "draft", 1) == pytest.approx(20, rel=0.1)
    assert costs.reading(1, "draft", 102) == pytest.approx(300, rel=0.1)


def test_a_first_step_that_is_dearer_than_the_others_does_not_price_them():
    costs = Costs()
    for _ in range(3):
        costs.observe_draft(1, "draft", 1, 2, 13.0)
    assert costs.steps(1, "draft", 5) == 13 + 4 * 13 / 2, "hopeful, until it is known"
    for _ in range(3):
        costs.observe_draft(1, "draft", 5, 2, 41.0)
    assert [costs.steps(1, "draft", count) for count in (1, 3, 5)] == [13, 27, 41]
    assert costs.steps(1, "draft", 6) == 41 + 7 / 2


def test_a_disturbed_deep_draft_costs_no_more_than_its_first_steps_would():
    costs = Costs()
    costs.observe_draft(1, "draft", 1, 2, 13.0)
    costs.observe_draft(1, "draft", 3, 2, 400.0)
    assert costs.steps(1, "draft", 3) == 39


def test_each_source_and_number_of_rows_has_its_own_price():
    costs = Costs()
    costs.observe_draft(1, "a", 1, 1, 10.0)
    costs.observe_draft(8, "a", 1, 1, 40.0)
    costs.observe_draft(1, "b", 1, 1, 70.0)
    assert [costs.steps(*which, 1) for which in ((1, "a"), (2, "a"), (7, "a"), (5, "b"))] == [10, 10, 40, 70]


def test_a_wide_price_that_grew_old_is_taken_from_the_narrower_ones_again():
    costs = measured({1: 30.0, 2: 33.0, 6: 600.0})
    assert costs.passing(1, 6) == 600
    for _ in range(200):
        costs.observe_pass(1, 1, 30.0)
        costs.observe_pass(1, 2, 33.0)
    assert costs.passing(1, 6) < 60
    assert costs.at_most(1, 6) == 600, "what it may cost is not forgotten"


def test_rows_of_which_only_old_wide_passes_are_known_borrow_from_others():
    costs = measured({4: 70.0}, rows=3)
    for _ in range(50):
        costs.observe_pass(1, 1, 30.0)
        costs.observe_pass(1, 2, 33.0)
    assert 30 <= costs.passing(3, 4) <= 70


def test_passes_behind_much_context_have_prices_of_their_own():
    costs = Costs()
    for _ in range(6):
        costs.observe_pass(1, 1, 20.0)
        costs.observe_pass(1, 8, 22.0)
    costs.look_back(CONTEXT * 2 + 10)
    assert not costs.knows_plain(1)
    assert (costs.passing(1, 1), costs.passing(1, 8)) == (20.0, 22.0), "the nearest, until there is one"
    for _ in range(6):
        costs.observe_pass(1, 1, 21.0)
        costs.observe_pass(1, 8, 35.0)
    assert costs.knows_plain(1)
    assert costs.passing(1, 8) / costs.passing(1, 1) == pytest.approx(35 / 21, rel=0.1)
    costs.look_back(CONTEXT - 1)
    assert costs.knows_plain(1)
    assert costs.passing(1, 8) / costs.passing(1, 1) == pytest.approx(22 / 20, rel=0.1)
    costs.look_back(CONTEXT * 3)
    assert costs.passing(1, 8) > 30, "the nearest is the one behind most"


def test_of_more_rows_the_nearest_rows_are_asked_before_the_nearest_context():
    costs = Costs()
    for width, seconds in ((1, 20.0), (4, 24.0), (1, 20.0)):
        costs.observe_pass(1, width, seconds)
    costs.look_back(5 * CONTEXT)
    assert costs.knows_plain(4), "where no pass of so many rows was made, none is missing"
    for width, seconds in ((1, 40.0), (4, 90.0)) * 3:
        costs.observe_pass(4, width, seconds)
    costs.look_back(0)
    assert costs.passing(4, 4) / costs.passing(4, 1) == pytest.approx(90 / 40, rel=0.1)
    assert costs.passing(1, 4) / costs.passing(1, 1) == pytest.approx(24 / 20)


def test_a_plain_pass_that_was_made_once_may_have_been_disturbed():
    costs = Costs()
    costs.observe_pass(4, 1, 45.0)
    assert not costs.knows_plain(4)
    assert not costs.knows_plain(3), "it would be priced by the other"
    costs.observe_pass(4, 1, 15.0)
    assert costs.knows_plain(4)
    assert costs.knows_plain(3)
    assert costs.passing(4, 1) == pytest.approx(15.0)
    costs.observe_pass(3, 1, 30.0)
    assert not costs.knows_plain(3)


def test_what_was_never_measured_may_cost_as_much_as_several_passes_that_were():
    costs = Costs()
    for width, seconds in ((1, 14.0), (2, 18.0), (4, 25.0)) * 2:
        costs.observe_pass(4, width, seconds)
    assert costs.at_most(4, 3) == costs.passing(4, 3)
    assert costs.at_most(4, 4) == 25.0
    assert costs.passing(4, 12) < 60, "on a line, half as steep"
    assert costs.at_most(4, 12) == pytest.approx(75.0)
    assert costs.at_most(2, 24) == pytest.approx(75.0 * costs.passing(2, 2) / costs.passing(4, 1), rel=0.3), "by nodes"
