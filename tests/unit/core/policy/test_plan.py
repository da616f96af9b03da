"""The plan of a round: no other choice of nodes that are trees is faster, and what does not pay is not drafted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch

from specstream.core.policy.acceptance import Calibrations, Estimates, Level
from specstream.core.policy.controller import Controller
from specstream.core.policy.cost_model import CostModel
from specstream.core.policy.plan import SPARE, SURE, Plan, Planner, Share, plain_time, worth
from specstream.core.policy.prices import PriceList
from specstream.core.ports import Offer
from specstream.core.tree import TokenTree
from tests.unit.core.machine import ask

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
PATIENT = 1e9
"""Seconds to spare."""


def machine(node: float, *, rows: Sequence[int] = (1, 2, 3, 4), step: float = 1e-9, flat: int = 0) -> CostModel:
    """A pass takes 10 s and ``node`` for each node beyond those of the rows; the first ``flat`` of each are free.

    A step of the drafter takes next to nothing, unless said.
    """
    passes = {(own, own * size, 64): 10.0 + node * max(0, own * (size - 1 - flat)) for own in rows for size in SIZES}
    drafts = {"heads": {(own, depth): step * depth for own in rows for depth in (1, 8)}}
    costs = CostModel(PriceList(passes, drafts))
    costs.look_at(64)
    return costs


def planner(costs: CostModel, rows: int, *, ragged: bool = False, worth: Sequence[float] = ()) -> Planner:
    return Planner(
        costs=costs,
        estimates=Estimates(),
        calibrations=[Calibrations() for _ in range(rows)],
        ragged=ragged,
        worth=worth or [1.0] * rows,
    )


def ranked(*nodes: tuple[int, float], source: str = "heads") -> Offer:
    return Offer(source=source, depth=max(depth for depth, _ in nodes), ranked=nodes)


def random_ranked(chance: random.Random, source: str = "heads") -> tuple[Offer, TokenTree]:
    """Four nodes that a tree grows by, and that tree: survival falls along every path."""
    parents, survival = [-1], [1.0]
    for node in range(1, 5):
        parent = chance.randrange(node)
        parents.append(parent)
        survival.append(survival[parent] * chance.uniform(0.2, 0.95))
    order = sorted(range(5), key=lambda node: -survival[node])
    place = {node: at for at, node in enumerate(order)}
    tree = TokenTree(
        (9, *range(1, 5)),
        (-1, *(place[parents[node]] for node in order[1:])),
        survival=tuple(survival[node] for node in order),
    )
    nodes = zip(tree.depths[1:], tree.survival[1:], strict=True)
    return ranked(*nodes, source=source), tree


def subtrees(tree: TokenTree) -> Iterator[frozenset[int]]:
    """Every set of nodes that is a tree with the root."""
    for held in product((False, True), repeat=tree.drafted):
        nodes = frozenset(node for node, own in enumerate(held, 1) if own)
        if all(tree.parents[node] in nodes | {0} for node in nodes):
            yield nodes


def rate(own: Planner, trees: Sequence[TokenTree], kept: Sequence[frozenset[int]], drafting: float = 0.0) -> float:
    """Tokens a second, by the formula."""
    gains = (
        worth * (1 + sum(tree.survival[node] for node in nodes))
        for worth, tree, nodes in zip(own.worth, trees, kept, strict=True)
    )
    return sum(gains) / (drafting + own.costs.passing(own.rows, own.nodes([1 + len(nodes) for nodes in kept])))


def fastest(own: Planner, trees: Sequence[TokenTree], drafting: float = 0.0) -> float:
    return max(rate(own, trees, kept, drafting) for kept in product(*map(subtrees, trees)))


def nodes_of(plan: Plan | None) -> list[float]:
    return [share.nodes if share else 0 for share in plan.shares] if plan else []


class TestTheBudget:
    @pytest.mark.parametrize("ragged", [True, False])
    @pytest.mark.parametrize("rows", [1, 2, 3])
    @pytest.mark.parametrize("node", [0.3, 1.5, 4.0])
    def test_no_choice_of_subtrees_is_faster(self, ragged, rows, node):
        """To draft costs next to nothing here.

        Padded, a row is left out whose nodes do not pay by themselves, though those beside other rows' are free: that
        loses little.
        """
        chance = random.Random(f"{ragged} {rows} {node}")
        for _ in range(4 if rows > 2 else 20):
            own = planner(machine(node, flat=chance.choice([0, 2])), rows, ragged=ragged)
            offers, trees = zip(*(random_ranked(chance) for _ in range(rows)), strict=True)
            plan = own.best([[offer] for offer in offers], PATIENT)
            best, plain = fastest(own, trees), rows / own.plain
            assert (plan.rate if plan else plain) == pytest.approx(max(best, plain), rel=1e-6 if ragged else 0.03)

    @pytest.mark.parametrize("ragged", [True, False])
    @pytest.mark.parametrize("step", [0.5, 3.0, 9.0])
    def test_drafting_is_paid_for_by_the_whole_round(self, ragged, step):
        """Every depth is a choice of its own: to draft deeper costs more and offers more. Rows that ask pay alike."""
        chance = random.Random(step)
        for _ in range(20):
            own = planner(machine(0.7, step=step), 2, ragged=ragged)
            offers, trees = zip(*(random_ranked(chance) for _ in range(2)), strict=True)
            plan = own.best([[offer] for offer in offers], PATIENT)
            best = 2 / own.plain
            for kept in product(*map(subtrees, trees)):
                asking = [tree.kept(nodes) for tree, nodes in zip(trees, kept, strict=True) if nodes]
                deepest = max((max(tree.depths) for tree in asking), default=0)
                best = max(best, rate(own, trees, kept, own.costs.drafting("heads", len(asking), deepest)))
            assert (plan.rate if plan else 2 / own.plain) == pytest.approx(best, rel=0.02)

    @pytest.mark.parametrize("ragged", [True, False])
    def test_it_is_never_expected_to_be_slower_than_plain_decoding(self, ragged):
        chance, taken = random.Random(3), 0
        for _ in range(200):
            rows = chance.randint(1, 4)
            own = planner(machine(chance.uniform(0, 8), step=chance.uniform(0, 8)), rows, ragged=ragged)
            plan = own.best([[random_ranked(chance)[0]] for _ in range(rows)], PATIENT)
            if plan is not None:
                taken += 1
                assert plan.rate > rows / own.plain
                assert plan.tokens == pytest.approx(rows + sum(share.survival for share in plan.shares if share))
        assert 20 < taken < 180

    def test_where_nodes_cost_what_they_may_bring_nothing_is_drafted(self):
        sure = ranked((1, 1.0), (2, 1.0), (3, 1.0))
        assert planner(machine(10.0), 1).best([[sure]], PATIENT) is None
        assert nodes_of(planner(machine(9.0), 1).best([[sure]], PATIENT)) == [3]

    def test_more_than_one_node_may_not_cost_more_than_there_is_to_spare(self):
        sure = ranked((1, 0.9), (2, 0.9), (3, 0.9))
        own = planner(machine(1.0, step=0.5), 1)
        assert nodes_of(own.best([[sure]], PATIENT)) == [3]
        assert nodes_of(own.best([[sure]], 13.5)) == [2]
        assert nodes_of(own.best([[sure]], 0.0)) == [1], "what one node may lose is what its trial would"

    def test_without_padding_the_likeliest_nodes_of_all_rows_are_taken(self):
        sure, doubtful = ranked((1, 0.9), (2, 0.85), (3, 0.8)), ranked((1, 0.3), (2, 0.05), (3, 0.01))
        assert nodes_of(planner(machine(0.5), 2, ragged=True).best([[sure], [doubtful]], PATIENT)) == [3, 1]
        assert nodes_of(planner(machine(2.5), 2, ragged=True).best([[sure], [doubtful]], PATIENT)) == [2, 0]

    def test_padded_rows_share_the_width(self):
        """The second row's nodes are free as far as the first one's go."""
        sure, doubtful = ranked((1, 0.9), (2, 0.85), (3, 0.1)), ranked((1, 0.3), (2, 0.05), (3, 0.01))
        assert nodes_of(planner(machine(1.0), 2).best([[sure], [doubtful]], PATIENT)) == [2, 2]

    def test_a_row_of_little_worth_is_given_fewer_nodes(self):
        own = planner(machine(1.5), 2, ragged=True, worth=[1.9, 0.1])
        assert nodes_of(own.best([[ranked((1, 0.8), (2, 0.7))]] * 2, PATIENT)) == [2, 0]

    def test_rows_that_are_offered_the_same_are_told_apart(self):
        """What is learned of all rows makes one offer for all of them."""
        offer = ranked((1, 0.9), (2, 0.8))
        own = planner(machine(0.1), 3, ragged=True)
        for at, ratio in enumerate((1.0, 0.001, 1.0)):
            own.estimates.calibration(own.calibrations[at], offer).judge(1000.0, 1000.0 * ratio)
        assert nodes_of(own.best([[offer]] * 3, PATIENT)) == [2, 0, 2]

    @pytest.mark.parametrize("ragged", [True, False])
    def test_rows_of_equal_offers_are_treated_alike(self, ragged):
        offer = ranked((1, 0.9), (2, 0.8), (1, 0.06), (3, 0.7))
        plan = planner(machine(1.0), 4, ragged=ragged).best([[offer]] * 4, PATIENT)
        assert len(set(nodes_of(plan))) == 1
        assert nodes_of(plan)[0] > 0

    def test_the_faster_of_two_drafters_is_taken_and_no_two_in_one_round(self):
        costs = machine(0.5)
        costs.know(PriceList({}, {"slow": {(1, 1): 9.0, (1, 4): 36.0}, "fast": {(1, 1): 1.0, (1, 4): 4.0}}))
        slow, fast = (ranked((1, 0.9), (2, 0.8), source=name) for name in ("slow", "fast"))
        plan = planner(costs, 2).best([[slow, fast], [slow]], PATIENT)
        assert [share and share.offer.source for share in plan.shares] == ["fast", None]

    def test_a_known_tree_is_taken_beside_another_rows_draft(self):
        costs = machine(0.5, step=0.1)
        known = Offer(source="lookup/9", depth=2, tree=TokenTree.chain([9, 1, 2]))
        own = planner(costs, 2)
        own.estimates.of(known).judge(2, 2)
        plan = own.best([[known], [ranked((1, 0.9))]], PATIENT)
        assert [share.offer.source for share in plan.shares] == ["lookup/9", "heads"]
        assert plan.drafting == costs.drafting("heads", 1, 1)

    def test_what_a_pass_has_beside_the_candidates_is_paid_once(self):
        """Lookahead's window is there at any depth: deeper candidates do not pay for it again."""
        offer = Offer(source="lookahead", depth=3, tree=TokenTree.chain([9, 1, 2, 3]), counts=(1, 1, 1), beside=4)
        own = planner(machine(1.0), 1)
        for _ in range(20):
            own.estimates.of(offer).judge(1, 1)
            own.estimates.of(offer).judge(3, 3)
        plan = own.best([[offer]], PATIENT)
        (share,) = plan.shares
        assert (share.depth, share.nodes) == (3, 7)
        assert plan.seconds == pytest.approx(own.line.of(8))
        assert planner(machine(3.0), 1).best([[offer]], PATIENT) is None, "the window alone costs 12 s"

    def test_a_draft_that_may_end_early_is_priced_by_where_it_is_expected_to(self):
        costs, offer = machine(0.5, step=1.0), Offer(source="heads", depth=4, cuts=True)
        own = planner(costs, 1)
        for _ in range(40):
            own.estimates.of(offer).judge(4, 4)
            own.estimates.of(offer).judge_length(4, 1)
        plan = own.best([[offer]], PATIENT)
        (share,) = plan.shares
        assert (share.depth, share.nodes) == (4, pytest.approx(1, abs=0.2))
        one, two = (costs.drafting("heads", 1, depth) for depth in (1, 2))
        assert two < plan.drafting < 1.1 * two + 0.1 * one, "the second step finds out that it has to end"
        assert plan.seconds == pytest.approx(plan.drafting + own.line.of(1 + share.nodes))

    def test_drafts_that_may_end_early_go_on_until_the_last_row_has_ended(self):
        costs, offers = machine(0.1, step=0.1), [Offer(source=f"heads/{row}", depth=4, cuts=True) for row in range(2)]
        own = planner(costs, 2)
        for offer, length in zip(offers, (1, 4), strict=True):
            for _ in range(60):
                own.estimates.of(offer).judge(4, 4)
                own.estimates.of(offer).judge_length(4, length)
        plan = own.best([[offer] for offer in offers], PATIENT)
        assert [share.depth for share in plan.shares] == [4, 4]
        assert plan.drafting == pytest.approx(costs.drafting("heads", 2, 4))


class TestRequests:
    def test_of_ranked_nodes_more_are_drafted_than_planned_as_the_best_are_kept(self):
        controller = Controller(PriceList({(1, nodes, 64): 10 + 0.5 * nodes for nodes in SIZES}))
        offer = ranked((1, 0.9), (2, 0.8), (1, 0.01), (2, 0.01), (1, 0.01), (1, 0.01))
        (request,) = ask(controller, [[offer]])
        assert (request.offer, request.depth, request.nodes) == (offer, 2, SPARE * 2)
        assert (request.threshold, request.prices) == (0.0, ())

    def test_a_draft_that_cuts_is_told_what_its_steps_and_nodes_cost(self):
        own = planner(machine(0.5, step=1.0), 1)
        offer = Offer(source="heads", depth=3, cuts=True)
        for _ in range(40):
            own.estimates.of(offer).judge(3, 3)
        plan = own.best([[offer]], PATIENT)
        (request,) = own.requests(ask_for(offer), plan)
        assert request.depth == 3
        assert request.threshold == pytest.approx((own.costs.drafting("heads", 1, 1) + 0.5) * plan.rate, rel=0.05)
        assert request.prices[0] == pytest.approx(0.5 * plan.rate)
        dear = planner(machine(0.5, step=8.0), 1)
        dear.estimates = own.estimates
        (request,) = dear.requests(ask_for(offer), dear.best([[offer]], PATIENT))
        assert request.threshold == SURE, "or nothing would ever be found out"


def ask_for(offer: Offer):
    """One row's request, before anything is chosen."""
    return ask(Controller(), [[offer]])


class TestTheCut:
    @pytest.mark.parametrize("ragged", [True, False])
    @pytest.mark.parametrize("rows", [1, 2])
    def test_it_keeps_trees_and_of_all_those_the_fastest(self, ragged, rows):
        chance, smaller = random.Random(rows), 0
        for _ in range(30):
            own = planner(machine(chance.uniform(0.5, 6)), rows, ragged=ragged)
            offers, trees = zip(*(random_ranked(chance) for _ in range(rows)), strict=True)
            drafting = chance.uniform(0, 3)
            plan = own.plan([None] * rows, drafting)
            plan = Plan(**{**vars(plan), "shares": [share_of(offer) for offer in offers]})
            cut = own.cut(trees, plan)
            kept = [frozenset(tree_nodes(tree, part)) for tree, part in zip(trees, cut, strict=True)]
            best = max(fastest(own, trees, drafting), rows / (own.plain + drafting))
            assert rate(own, trees, kept, drafting) == pytest.approx(best, rel=1e-6)
            smaller += sum(map(len, cut)) < 5 * rows
        assert smaller > 10

    def test_by_what_this_draft_says_and_not_by_what_was_planned(self):
        own, offer = planner(machine(2.0), 1), ranked((1, 0.9), (2, 0.8))
        plan = own.best([[offer]], PATIENT)
        for survival, size in (((1.0, 0.9, 0.85), 3), ((1.0, 0.9, 0.01), 2), ((1.0, 0.1, 0.01), 1)):
            (tree,) = own.cut([TokenTree((9, 1, 2), (-1, 0, 1), survival=survival)], plan)
            assert len(tree) == size

    def test_what_drafts_were_worth_calibrates_what_they_say(self):
        own, offer = planner(machine(2.0), 1), ranked((1, 0.9), (2, 0.8))
        plan, tree = own.best([[offer]], PATIENT), TokenTree((9, 1, 2), (-1, 0, 1), survival=(1.0, 0.6, 0.5))
        assert [len(each) for each in own.cut([tree], plan)] == [3]
        for _ in range(200):
            own.estimates.calibration(own.calibrations[0], offer, drafted=True).judge(2.0, 0.2)
        assert [len(each) for each in own.cut([tree], plan)] == [1]

    @pytest.mark.parametrize("ragged", [True, False])
    def test_a_tree_whose_drafter_says_nothing_is_left_alone(self, ragged):
        own = planner(machine(4.0), 3, ragged=ragged)
        known, offer = TokenTree.chain([9, 1, 2, 3]), ranked((1, 0.9), (2, 0.8))
        doubted = TokenTree((9, 1, 2, 3, 4, 5), (-1, 0, 1, 2, 3, 4), survival=(1.0, 0.1, 0.1, 0.1, 0.1, 0.1))
        shares = [share_of(Offer(source="lookup/3", depth=3, tree=known)), share_of(offer), None]
        plan = Plan(**{**vars(own.plan([None] * 3, 0.0)), "shares": shares})
        first, second, third = own.cut([known, doubted, doubted], plan)
        assert first is known
        assert third is doubted, "nothing was planned for it"
        assert len(second) == (2 if ragged else 6), "what a pass is padded to is free, and five beside the third row's"
        assert own.cut([known, known, known], plan) == [known] * 3

    def test_what_was_not_doubted_counts_by_the_worth_of_its_row(self):
        """A row of no worth has a long sure tree: what the other row drafts is not held against that."""
        own = planner(machine(4.0), 2, ragged=True, worth=[0.0, 2.0])
        known, offer = TokenTree.chain([9, 1, 2, 3]), ranked((1, 0.9))
        shares = [share_of(Offer(source="lookup/3", depth=3, tree=known))._replace(survival=3.0), share_of(offer)]
        plan = Plan(**{**vars(own.plan([None] * 2, 0.0)), "shares": shares})
        _, second = own.cut([known, TokenTree((9, 1), (-1, 0), survival=(1.0, 0.4))], plan)
        assert len(second) == 2

    def test_drawn_children_are_left_alone(self):
        """Of tokens that were drawn none may be dropped for being unlikely."""
        own, offer = planner(machine(9.0), 1), ranked((1, 0.9))
        plan = Plan(**{**vars(own.plan([None], 0.0)), "shares": [share_of(offer)]})
        drawn = TokenTree((9, 1), (-1, 0), {0: torch.full((4,), 0.25)}, survival=(1.0, 0.01))
        assert own.cut([drawn], plan) == [drawn]
        plain = TokenTree((9, 1), (-1, 0), survival=(1.0, 0.01))
        assert [len(tree) for tree in own.cut([plain], plan)] == [1]


def share_of(offer: Offer) -> Share:
    """A row that takes something of it; how much was planned does not matter to a cut."""
    return Share(offer, offer.depth, 1, 0.5)


def tree_nodes(tree: TokenTree, part: TokenTree) -> list[int]:
    """Which nodes of a tree a part of it has, without the root; refused where it is no part."""
    return list(part.places_in(tree))[1:]


class TestLevelsThatDoNotFall:
    """A deeper level may bring more a node than the one before, as behind a node that only costs."""

    @pytest.mark.parametrize("ragged", [True, False])
    def test_none_is_taken_before_those_that_it_hangs_from(self, ragged):
        own, chance = planner(machine(0.5), 3, ragged=ragged), random.Random(ragged)
        offer = Offer(source="lookup/3", depth=8, tree=TokenTree.chain([9] * 9))
        for _ in range(200):
            levels = [
                [Level(at, float(chance.randint(1, 4)), chance.uniform(0, 2)) for at in range(1, chance.randint(2, 9))]
                for _ in range(3)
            ]
            items = own._items([(offer, each) for each in levels])
            for row, each in enumerate(levels):
                mine = [(at, nodes, gain) for _, of, at, nodes, gain in items if of == row]
                assert mine == [(at, level.nodes, level.survival) for at, level in enumerate(each)]

    def test_they_are_taken_together_if_both_pay(self):
        own = planner(machine(1.0), 2, ragged=True)
        deep = Offer(source="lookup/9", depth=2, tree=TokenTree((9, 1, 2, 3, 4), (-1, 0, 0, 0, 1)))
        poor = Offer(source="lookup/2", depth=1, tree=TokenTree.chain([9, 1]))
        for _ in range(40):
            own.estimates.of(deep).judge(2, 2)
            own.estimates.of(poor).judge(1, 0)
        assert nodes_of(own.best([[deep], [poor]], PATIENT)) == [4, 0]


class TestABatchThatNobodyJoins:
    """Its time is that of the row that ends last, and of the others as far as they make passes dearer."""

    @staticmethod
    def price(rows: int) -> float:
        return 10.0 + rows

    def test_rows_of_one_length_take_passes_of_all_to_the_end(self):
        assert plain_time([7, 7, 7], self.price) == 7 * 13

    def test_each_row_leaves_when_it_ends(self):
        assert plain_time([5, 2, 9], self.price) == 2 * 13 + 3 * 12 + 4 * 11
        assert plain_time([0, 4], self.price) == 4 * 11
        assert plain_time([], self.price) == 0

    def test_what_a_token_is_worth_is_what_it_saves(self):
        """Where the order is certain."""
        left = [10, 60, 200]
        found = worth(left, self.price)
        for row in range(3):
            less = [each - (at == row) for at, each in enumerate(left)]
            saved = plain_time(left, self.price) - plain_time(less, self.price)
            assert found[row] * self.price(3) / 3 == pytest.approx(saved)

    def test_rows_whose_order_is_open_share_what_they_save(self):
        assert worth([50, 52], self.price) == [1.0, 1.0]
