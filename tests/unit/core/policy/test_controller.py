"""The controller on a simulated machine: given costs and acceptance, does it find what pays, and when to stop?"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest

from specstream.core.policy.acceptance import Calibrations
from specstream.core.policy.controller import (
    BUDGET,
    LONGEST_PAUSE,
    LONGEST_WAIT,
    PLAIN_AFTER,
    REFILL,
    TRIAL_AFTER,
    Controller,
)
from specstream.core.policy.cost_model import Line
from specstream.core.policy.prices import PriceList
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.tree import TokenTree
from tests.unit.core.machine import CHANCE, Machine, ask, taken, widths

SMALL = {"price": widths(31, 40, 43, 45, 48, 50), "step": 12, "read": 1.2}
"""Milliseconds of a small model whose draft is hardly smaller: speculation pays little."""
PAIR = {"price": widths(200, 212, 225, 238, 250, 262), "step": 30, "read": 7}
"""Milliseconds of a 1.5B model with a 0.5B draft."""

AVX2 = {1: 20.0, 2: 21.0, 4: 27.0, 8: 38.0, 16: 58.0, 32: 95.0, 64: 175.0}
"""Milliseconds of SmolLM2-135M's passes there, by nodes of all rows together (docs/experiments/0092)."""

DRAFTERS = {"lookup": {"lookup": (0.5, 0.0)}, "model": {"model": 0.0}, "mixed": {"model": 0.0, "lookup": (0.5, 0.0)}}


class Always(Controller):
    """Takes what is offered, to its full depth."""

    def choose(self, requests, offers, left=None, *, ragged=False):
        pairs = zip(requests, offers, strict=True)
        return [replace(request, offer=own[0], depth=own[0].depth) for request, own in pairs]


def speed(machine, controller, tokens, repeats):
    return [machine.run(controller, tokens) for _ in range(repeats)]


class TestWhereNothingIsAccepted:
    @pytest.mark.parametrize("drafter", DRAFTERS.values(), ids=DRAFTERS)
    @pytest.mark.parametrize("costs", [SMALL, PAIR], ids=["small", "pair"])
    def test_a_short_text_loses_less_than_3_percent_from_the_first_round_on(self, costs, drafter):
        for seed in range(2):
            machine, controller = Machine(**costs, **drafter, seed=seed), Controller()
            assert min(speed(machine, controller, 256, 4)) > 0.97

    @pytest.mark.parametrize("drafter", DRAFTERS.values(), ids=DRAFTERS)
    @pytest.mark.parametrize("costs", [SMALL, PAIR], ids=["small", "pair"])
    def test_nor_does_one_after_a_text_of_which_much_was(self, costs, drafter):
        for seed in range(2):
            machine, controller = Machine(**costs, **drafter, seed=seed), Controller()
            good = {"model": 0.85, "lookup": (0.5, 0.9)}
            for name in drafter:
                setattr(machine, name, good[name])
            assert machine.run(controller, 600) > 1
            for name, value in drafter.items():
                setattr(machine, name, value)
            assert min(speed(machine, controller, 256, 2)) > 0.965

    @pytest.mark.parametrize("step", [12, 31, 90])
    def test_in_the_long_run_it_costs_what_it_is_allowed_to(self, step):
        machine, controller = Machine(SMALL["price"], step=step, read=step / 10, model=0.0), Controller()
        machine.run(controller, 2500)
        lost = machine.seconds / 31 - machine.tokens
        assert lost < BUDGET + REFILL * 2500 + 2 * step / 31

    def test_passes_that_are_dear_at_every_new_width_are_paid_for(self):
        """Each may be forgiven its price, as a first one; what it took is gone all the same."""
        for seed in range(5):
            machine, controller = Machine(lambda width: 20 * width, lookup=(1.0, 0.7), seed=seed), Controller()
            while machine.tokens < 256:
                machine.depth = machine.chance.randint(1, 24)
                machine.round(controller)
            assert machine.tokens * machine.price(1) / machine.seconds > 0.95

    def test_its_first_trial_is_one_token_deep(self):
        machine, controller = Machine(**PAIR, model=0.0), Controller()
        machine.run(controller, 30)
        tried = [row for (row,) in machine.log if row != "-"]
        assert set(tried) <= {"m1", "m2"}
        assert machine.log[:3] == [["-"], ["-"], ["m1"]]  # the price of a plain pass comes first

    def test_what_was_learnt_holds_for_the_next_request(self):
        machine, controller = Machine(**SMALL, **DRAFTERS["mixed"]), Controller()
        first, *later = speed(machine, controller, 256, 3)
        assert sum(later) / len(later) > first

    def test_trials_are_not_made_one_after_the_other(self):
        machine, controller = Machine(**SMALL, model=0.0), Controller()
        machine.run(controller, 2000)
        trials = [at for at, row in enumerate(machine.log) if row != ["-"] and at > 20]
        assert len(trials) > 5
        assert min(later - earlier for earlier, later in pairwise(trials)) >= TRIAL_AFTER

    def test_a_known_tree_that_pays_is_taken_at_once(self):
        """It is judged in every round, whatever was declined before."""
        machine, controller = Machine(**SMALL, model=0.0), Controller()
        machine.run(controller, 100)
        sure, step = Offer(source="lookup/6", depth=2, tree=TokenTree.chain([1, 2, 3])), Offer(source="model", depth=4)
        for _ in range(4):
            controller.estimates.of(sure).judge(2, 2)
        assert taken(controller, [[step, sure]]) == [(sure, 2)]


class TestWhereMuchIs:
    @pytest.mark.parametrize("acceptance", [0.95, 0.9, 0.8, 0.6])
    @pytest.mark.parametrize("costs", [SMALL, PAIR], ids=["small", "pair"])
    def test_it_comes_close_to_the_best_fixed_depth(self, costs, acceptance):
        ratios = []
        for seed in range(3):
            machine, controller = Machine(**costs, model=acceptance, seed=seed), Controller()
            machine.run(controller, 128)
            ratios.append(machine.run(controller, 1500) / machine.best())
        # Where the best is hardly better than plain, luck decides more often that it does not pay.
        assert sum(ratios) / len(ratios) > (0.97 if costs is PAIR else 0.93 if acceptance != 0.8 else 0.88)

    def test_it_gets_there_within_a_few_rounds(self):
        machine, controller = Machine(**PAIR, model=1.0), Controller()
        machine.run(controller, 60)
        assert [row for (row,) in machine.log[:7]] == ["-", "-", "m1", "m2", "m4", "m5", "m5"]
        early = [Machine(**PAIR, model=0.9, seed=seed).run(Controller(), 64) for seed in range(20)]
        assert sum(early) / len(early) > 0.85 * Machine(**PAIR, model=0.9).best()

    def test_a_model_that_knows_when_it_is_unsure_is_asked_for_more_where_it_is_sure(self):
        """Better than the best fixed depth of a model of the same acceptance that is not asked how sure it is."""
        price = widths(*(200 + 15 * node for node in range(17)))
        known, blind = Machine(price, step=30, read=3, model=0, depth=16), Machine(price, step=30, read=3, model=0)
        known.sure, blind.sure, gained = 0.8, 0.8, []
        controller = Controller()
        known.run(controller, 300)
        at = len(known.log)
        fast = known.run(controller, 4000)
        for depth in range(1, 9):
            blind.depth, blind.tokens, blind.seconds = depth, 0, 0.0
            for _ in range(800):
                blind.round(Always())
            gained.append(blind.tokens / blind.seconds * 200)
        assert fast > 1.03 * max(gained)
        depths = Counter(row for (row,) in known.log[at:])
        assert len(depths) > 4, "some drafts end early, others do not"

    @pytest.mark.parametrize("costs", [SMALL, PAIR], ids=["small", "pair"])
    def test_a_model_that_is_never_sure_does_not_slow_it_down(self, costs):
        machine, controller = Machine(**costs, model=0.0), Controller()
        machine.sure = 0.0
        machine.run(controller, 64)
        assert machine.run(controller, 1500) > 0.97

    def test_it_does_so_on_a_disturbed_machine(self):
        """What was measured at start is not given up for single passes that took six times as long."""
        prices = PriceList(
            {(1, nodes, 64): PAIR["price"](nodes) for nodes in range(1, 7)}, {"model": {(1, 1): 30, (1, 4): 120}}
        )
        undisturbed = [Machine(**PAIR, model=0.88, seed=seed).run(Controller(prices), 300) for seed in range(20)]
        disturbed = []
        for seed in range(20):
            machine = Machine(**PAIR, model=0.88, seed=seed)
            machine.noisy = True
            disturbed.append(machine.run(Controller(prices), 300))
        usual = 1 + 1 / 8  # what the disturbances alone cost, on average
        assert min(disturbed) > 0.5 * sum(undisturbed) / 20
        assert sum(disturbed) * usual > 0.7 * sum(undisturbed)

    @pytest.mark.parametrize("spells", [(1, 15), (6, 20), (100, 100)])
    def test_it_does_so_where_the_machine_is_slow_now_and_then(self, spells):
        """Passes of one width are not held against those of another that were made in such a spell."""
        speeds = []
        for seed in range(5):
            machine, controller = Machine(lambda width: 17.8 + 2.2 * width, lookup=(0.6, 0.5), seed=seed), Controller()
            machine.spells = spells
            while machine.tokens < 1200:
                machine.depth = machine.chance.randint(4, 20)
                machine.round(controller)
            speeds.append(machine.tokens * machine.price(1) / machine.seconds)
        assert min(speeds) > 1.05
        assert sum(speeds) / 5 > 1.18

    @pytest.mark.parametrize("kind", ["model", "mixed"])
    @pytest.mark.parametrize(("costs", "least"), [(SMALL, 1.05), (PAIR, 1.7)], ids=["small", "pair"])
    def test_it_notices_when_drafts_turn_good(self, costs, least, kind):
        speeds = []
        for seed in range(3):
            machine, controller = Machine(**costs, **DRAFTERS[kind], seed=seed), Controller()
            assert machine.run(controller, 300) < 1
            machine.model = 0.9
            machine.run(controller, 300)
            speeds.append(machine.run(controller, 300))
        assert sum(speeds) / len(speeds) > least

    def test_a_deep_draft_that_was_unlucky_once_is_looked_at_again(self):
        machine, controller = Machine(**PAIR, model=1.0), Controller()
        machine.run(controller, 100)
        for _ in range(12):  # the fifth token is refused
            teach(controller, PAIR["price"], depth=5, accepted=4, step=30)
        assert machine_depth(controller) < 5
        machine.run(controller, 600)
        assert machine.log[-1] == ["m0"] or Counter(row for (row,) in machine.log[-60:]).most_common(1)[0][0] == "m5"


class TestMixed:
    def test_each_round_takes_what_pays_more(self):
        """A sure lookup is better than the model, the model better than a poor one."""
        for right, expected in ((0.95, "l"), (0.1, "m")):
            machine, controller = Machine(**PAIR, model=0.75, lookup=(0.5, right)), Controller()
            machine.run(controller, 800)
            took = Counter(row[0] for (row,) in machine.log[-200:])
            matching = 0.35 if expected == "l" else 0.9
            assert took[expected] > matching * 200
            assert machine.run(controller, 3000) > 0.97 * Machine(**PAIR, model=0.75).best()

    def test_a_lookup_is_judged_without_being_taken(self):
        """Nothing of it was accepted for long; once it is right, it is taken within a few rounds, without a trial."""
        machine, controller = Machine(**PAIR, lookup=(1.0, 0.0)), Controller()
        machine.run(controller, 300)
        before = len(machine.log)
        assert machine.log[-100:].count(["-"]) >= 99
        machine.lookup = (1.0, 1.0)
        machine.run(controller, 40)
        assert [row != "-" for (row,) in machine.log[before:]].index(True) <= 3
        assert machine.log[-4] == ["l5"]

    def test_sources_are_trusted_each_by_its_own_record(self):
        controller = Controller()
        good, bad = (Offer(source=f"lookup/{n}", depth=2, tree=TokenTree.chain([9, 1, 1])) for n in (6, 2))
        for _ in range(30):
            for offer, emitted in ((good, (1, 1, 0)), (bad, (0,))):
                learn(controller, offer, 2 if offer is good else 0, emitted)
        assert taken(controller, [[good]]) == [(good, 2)]
        assert taken(controller, [[bad]]) == [None]

    def test_rows_take_what_suits_each(self):
        """A model drafts for the rows that find nothing, and the pass is then wide for the others too."""
        machine, controller = Machine(**PAIR, model=0.9, lookup=(0.5, 1.0), rows=4), Controller()
        machine.run(controller, 300)
        kinds = [{choice[0] for choice in row} for row in machine.log[-60:]]
        assert {"l", "m"} in kinds

    def test_behind_another_context_other_costs_count(self):
        passes = {(1, 1, 64): 20, (1, 4, 64): 23, (1, 1, 4096): 20, (1, 4, 4096): 120}
        controller, right = Controller(PriceList(passes)), TokenTree.chain([9, 1, 1, 1])
        offers = [[Offer(source="lookup/6", depth=3, tree=right)]]

        def rounds(count, context, prices):
            depths = []
            for _ in range(count):
                (request,) = ask(controller, offers, context=context)
                tree = TokenTree.chain(right.tokens[: request.depth + 1])
                verdict = Verdict(path=tuple(range(request.depth + 1)), tokens=(1,) * (request.depth + 1))
                controller.observe(offers, [request], [tree], [verdict], (0.0, prices[request.depth]))
                depths.append(request.depth)
            return depths

        assert rounds(40, 100, [20, 21, 22, 23])[-10:] == [3] * 10
        far = rounds(60, 5000, [20, 60, 90, 120])  # there three tokens more cost five passes
        assert sum(far[-20:]) < 5
        assert rounds(10, 110, [20, 21, 22, 23])[-8:] == [3] * 8

    def test_a_round_without_drafts_is_plain(self):
        machine, controller = Machine(**PAIR, lookup=(0.3, 1.0)), Controller()
        machine.run(controller, 200)
        assert taken(controller, [[]]) == [None]
        assert taken(controller, [[], []]) == [None, None]

    def test_a_model_far_behind_has_to_earn_its_reading(self):
        controller = Controller()
        Machine(**PAIR, model=0.6).run(controller, 400)
        near, far = (Offer(source="model", depth=5, unread=unread) for unread in (2, 100))
        assert taken(controller, [[near]])[0][0] is near
        controller._budget = 0.1
        assert taken(controller, [[far]]) in ([None], [(far, 1)])


class TestBatches:
    def test_the_steeper_a_batchs_passes_the_less_it_speculates(self):
        depths = []
        for slope in (0.0, 0.1, 0.3, 1.0):
            price = widths(*(31 * (1 + slope * at) for at in range(6)))
            machine, controller = Machine(price, step=6, model=0.8, rows=8), Controller()
            machine.run(controller, 300)
            depths.append(sum(int(choice[1:] or 0) for row in machine.log[-50:] for choice in row) / 400)
        assert depths == sorted(depths, reverse=True)
        assert depths[0] > 3 > 0.2 > depths[-1]

    def test_prices_are_kept_for_each_number_of_rows(self):
        controller = Controller()
        alone = Machine(widths(*(1 + 0.02 * at for at in range(6))), model=0.7)
        crowd = Machine(widths(*(1 + 1.0 * at for at in range(6))), model=0.7, rows=32)
        for _ in range(300):
            alone.round(controller)
            crowd.round(controller)
        depth = [sum(int(choice[1:] or 0) for row in each.log[-50:] for choice in row) for each in (alone, crowd)]
        assert depth[0] > depth[1] / 32

    def test_a_batch_that_shrinks_goes_on_speculating(self):
        """Prices that were never measured are taken from the nearest batch that was."""
        controller = Controller()
        Machine(**PAIR, model=0.9, rows=4).run(controller, 100)
        three = Machine(**PAIR, model=0.9, rows=3)
        three.round(controller)
        assert three.log[0] != ["-", "-", "-"]


class TestCosts:
    def test_trees_are_priced_by_their_width(self):
        """Branches that buy nothing here make the same depth dearer."""
        depths = {}
        for branches in (1, 3):
            price = widths(*(31 * (1 + 0.08 * at) for at in range(16)))
            machine, controller = Machine(price, step=3, model=0.8, branches=branches), Controller()
            machine.run(controller, 600)
            depths[branches] = sum(int(row[1:] or 0) for (row,) in machine.log[-100:]) / 100
        assert depths[1] > depths[3] + 0.5

    def test_one_slow_pass_changes_nothing(self):
        machine, controller = Machine(**PAIR, model=0.95), Controller()
        machine.run(controller, 300)
        before = machine_depth(controller)
        teach(controller, lambda width: 20_000, depth=before, accepted=before, step=30)
        assert machine_depth(controller) >= before - 2

    def test_a_plain_price_that_aged_is_measured_again(self):
        """Plain passes were dear when they were last seen (a long context); now drafts lose and nobody would notice."""
        machine, controller = Machine(widths(60, 62, 64, 66, 68, 70), lookup=(1.0, 0.8)), Controller()
        machine.run(controller, 400)
        machine.price, machine.lookup = widths(20, 62, 64, 66, 68, 70), (1.0, 0.5)
        machine.run(controller, 600)
        assert machine.log[-50:].count(["-"]) > 40

    def test_an_end_that_was_accepted_says_nothing_of_what_lay_behind_it(self):
        controller = Controller()
        Machine(**PAIR, model=1.0).run(controller, 100)
        for tokens, changed in (((1,), False), ((1, 1), True)):  # ended by the draft; by the next token
            before = controller.estimates._sources["model"].survivals(2)[1]
            teach(controller, PAIR["price"], depth=5, accepted=1, step=30, tokens=tokens)
            assert (controller.estimates._sources["model"].survivals(2)[1] < before) == changed


def machine_depth(controller):
    """How deep a model that is in step would draft."""
    (found,) = taken(controller, [[Offer(source="model", depth=5, unread=2)]])
    return found[1] if found else 0


def teach(controller, price, *, depth, accepted, step, tokens=None):
    """A round of the model's."""
    offer = Offer(source="model", depth=5, unread=2)
    request = DraftRequest(tokens=[9], depth=depth, generator=CHANCE, offer=offer)
    verdict = Verdict(path=tuple(range(accepted + 1)), tokens=tokens or (1,) * (accepted + 1))
    tree = TokenTree.chain([9] + [1] * depth)
    controller.observe([[offer]], [request], [tree], [verdict], (depth * step, price(depth + 1)))


def learn(controller, offer, depth, emitted):
    """A round in which a known tree was there, taken to some depth or not at all."""
    request = DraftRequest(tokens=[9], depth=depth, generator=CHANCE, offer=offer if depth else None)
    verdict = Verdict(path=tuple(range(len(emitted))), tokens=emitted)
    ask(controller, [[offer]])
    controller.observe([[offer]], [request], [offer.tree.pruned(depth)], [verdict], (0.0, 1.0 + 0.05 * depth))


class TestOffersThatAreRanked:
    """A drafter that estimates by itself says how likely each node of its best tree is."""

    @staticmethod
    def nodes(rate, price):
        """How many of them are taken, of a tree whose nodes are accepted ever less often."""
        controller = Controller(PriceList({(1, nodes, 64): price(nodes) for nodes in (1, 4, 8)}))
        controller._trials["heads"].begin(0)  # no trial for now
        offer = Offer(source="heads", depth=2, ranked=((1, rate), (2, rate**2), (1, rate**3), (2, rate**4)))
        (request,) = ask(controller, [[offer]])
        return request.nodes

    def test_as_many_are_taken_as_pay(self):
        found = [self.nodes(0.6, lambda nodes, slope=slope: 100 + slope * nodes) for slope in (1, 15, 25, 400)]
        assert found == sorted(found, reverse=True)
        assert found[0] == 4
        assert 0 < found[2] < 4
        assert found[3] == 0

    def test_nothing_is_taken_that_is_not_expected_to_pay(self):
        controller = Controller(PriceList({(1, nodes, 64): 100 + 12 * nodes for nodes in (1, 4, 8)}))
        controller._trials["heads"].begin(0)
        offer = Offer(source="heads", depth=1, ranked=((1, 0.02),))
        assert taken(controller, [[offer]]) == [None]


class TestDraftersThatAreMistakenOfThemselves:
    """They say that 0.7 tokens more will be accepted. A pass of four costs 27 and their step 2, a plain pass 20.

    One round in five there is a lookup besides, each of whose tokens is right with probability 0.8.
    """

    HEADS = Offer(source="heads", depth=2, ranked=((1, 0.4), (1, 0.2), (2, 0.1)))

    def decode(self, controller, right, tokens, lookups=0.2):
        """The speed over plain decoding, and how often the heads drafted, whose first token is right so often."""
        chance, calibrations = random.Random(3), Calibrations()
        seconds, emitted, drafted = 0.0, 0, 0
        while emitted < tokens:
            match = self.match(chance) if chance.random() < lookups else None
            offers = [[*([match[0]] if match else []), self.HEADS]]
            (request,) = ask(controller, offers, calibrations=calibrations)
            offer, tree, accepted = request.offer, TokenTree.chain([9]), 0
            if offer is self.HEADS:
                survival = (1.0, *(each for _, each in self.HEADS.ranked[: request.nodes]))
                tree = TokenTree((9, *range(request.nodes)), (-1, *([0, 0, 1][: request.nodes])), survival=survival)
                (tree,) = controller.cut([tree])
                accepted, drafted = int(chance.random() < right), drafted + 1
            elif offer:
                tree = TokenTree.chain(offer.tree.tokens[: request.depth + 1])
                accepted = min(match[1], request.depth)
            spent = (2.0 if offer is self.HEADS else 0.0, 20.0 + 7 / 3 * (len(tree) - 1))
            emission = tuple(1 if match and at < match[1] else 77 for at in range(accepted + 1))
            verdict = Verdict(path=tuple(range(accepted + 1)), tokens=emission)
            controller.observe(offers, [request], [tree], [verdict], spent)
            seconds, emitted = seconds + sum(spent), emitted + accepted + 1
        return emitted * 20.0 / seconds, drafted

    @staticmethod
    def match(chance):
        right = next((at for at in range(5) if chance.random() >= 0.8), 5)
        chain = TokenTree.chain([9, *[1] * right, *[0] * (5 - right)])
        return Offer(source="lookup/3", depth=5, tree=chain), right

    def test_what_the_lookup_earns_is_not_spent_on_their_word(self):
        controller = Controller()
        speed, _ = self.decode(controller, 0.0, 600)
        assert speed > 1.3
        speed, drafted = self.decode(controller, 0.0, 600)
        assert speed > 1.35
        assert drafted < 40

    def test_alone_they_cost_what_they_are_allowed_to(self):
        controller = Controller()
        speed, _ = self.decode(controller, 0.0, 256, lookups=0.0)
        assert speed > 0.97
        speed, _ = self.decode(controller, 0.0, 2000, lookups=0.0)
        assert speed > 0.985

    def test_they_are_believed_again_once_they_are_right(self):
        controller = Controller()
        self.decode(controller, 0.0, 500)
        self.decode(controller, 1.0, 600)
        speed, drafted = self.decode(controller, 1.0, 500, lookups=0.0)
        assert drafted > 230
        assert speed > 1.3

    def test_what_a_text_gained_is_not_spent_on_the_next(self):
        speeds = self.texts([1.0, 0.0] * 6, 48)
        assert min(speeds[0::2]) > 1.2
        assert sum(speeds[1::2]) / 6 > 0.965

    def texts(self, rights, tokens):
        """The speed of texts one after the other, which the controller is told of, as the loop tells it."""
        controller, speeds = Controller(), []
        for right in rights:
            controller.renew()
            speeds.append(self.decode(controller, right, tokens, lookups=0.0)[0])
        return speeds

    @pytest.mark.parametrize("tokens", [32, 48, 96, 256])
    def test_a_new_text_is_not_judged_by_the_last_ones(self, tokens):
        after_bad = self.texts([0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.7], tokens)
        assert min(after_bad[2], after_bad[7]) > 1.2

    @pytest.mark.parametrize(("tokens", "least"), [(32, 0.97), (48, 0.975), (96, 0.98), (256, 0.985)])
    def test_texts_in_which_they_are_never_right_lose_no_more_than_is_allowed(self, tokens, least):
        later = self.texts([0.0] * 12, tokens)[1:]
        assert sum(later) / len(later) > least

    def test_those_that_are_right_are_asked_all_the_while(self):
        controller = Controller()
        self.decode(controller, 0.7, 100, lookups=0.0)
        _, drafted = self.decode(controller, 0.7, 500, lookups=0.0)
        assert drafted > 270


class TestTrials:
    def tried(self, controller, count):
        """In which of so many rounds heads were tried, of which nothing is ever accepted."""
        offers, found = [[Offer(source="heads", depth=1, ranked=((1, 0.02),))]], []
        for at in range(count):
            (request,) = ask(controller, offers)
            tree = TokenTree.chain([9, 1][: 1 + request.depth])
            seconds = (2.0 * request.depth, 20.0 + 3 * request.depth)
            controller.observe(offers, [request], [tree], [Verdict(path=(0,), tokens=(77,))], seconds)
            found += [at] if request.depth else []
        return found

    def test_they_become_ever_rarer(self):
        waits = [later - earlier for earlier, later in pairwise(self.tried(Controller(), 500))]
        assert waits == sorted(waits)
        assert waits[0] <= 2 * TRIAL_AFTER + LONGEST_PAUSE < waits[-1] <= LONGEST_WAIT + LONGEST_PAUSE

    def test_there_are_none_where_a_step_takes_as_long_as_a_plain_pass(self):
        machine = Machine(SMALL["price"], step=31, model=0.9)
        machine.run(Controller(PriceList({(1, nodes, 64): SMALL["price"](nodes) for nodes in range(1, 7)})), 20)
        assert ["m1"] in machine.log, "nobody measured what it takes"
        listed = PriceList({(1, nodes, 64): SMALL["price"](nodes) for nodes in range(1, 7)}, {"model": {(1, 1): 31.0}})
        machine.log.clear()
        machine.run(Controller(listed), 200)
        assert set(map(tuple, machine.log)) == {("-",)}

    def test_in_other_texts_they_come_sooner_again(self):
        controller = Controller()
        self.tried(controller, 500)
        for _ in range(4):
            controller.renew()
        assert self.tried(controller, 2 * TRIAL_AFTER)

    def test_a_plain_pass_is_made_now_and_then(self):
        machine, controller = Machine(**SMALL, model=0.95), Controller()
        machine.run(controller, 4000)
        plain = [at for at, row in enumerate(machine.log) if row == ["-"]]
        assert len(plain) > 4
        assert max(later - earlier for earlier, later in pairwise(plain[2:])) <= PLAIN_AFTER + 1


class TestPauses:
    """Offering and choosing take time too: where they gain nothing, rounds are made without them."""

    @staticmethod
    def machine(rows=1, deciding=1.0, right=0.0, **named):
        machine = Machine(**SMALL, lookup=(1.0, right), rows=rows, **named)
        machine.deciding = deciding
        return machine

    @staticmethod
    def paused(machine, controller, rounds):
        """Which of so many rounds pause."""
        found = []
        for _ in range(rounds):
            machine.round(controller)
            found.append(machine._behind)
        return found

    def test_they_become_longer_up_to_a_bound(self):
        found = self.paused(self.machine(), Controller(), 256)
        lengths = [len(each) for each in "".join("#" if each else "." for each in found).split(".") if each]
        assert lengths[:6] == sorted(lengths[:6])
        assert max(lengths) == LONGEST_PAUSE
        assert sum(found) > 180

    def test_what_deciding_takes_is_saved(self):
        machine, controller = self.machine(deciding=3.1), Controller()
        machine.run(controller, 256)
        assert machine.run(controller, 256) > 0.98  # 0.91 without pauses

    def test_there_are_none_where_deciding_takes_nothing(self):
        machine, controller = self.machine(deciding=0.0), Controller()
        machine.run(controller, 100)
        assert not any(self.paused(machine, controller, 100))

    def test_there_are_none_where_drafts_pay(self):
        machine, controller = self.machine(right=0.9), Controller()
        machine.run(controller, 100)
        assert not any(self.paused(machine, controller, 100))

    def test_drafts_that_turn_good_are_found_behind_a_few(self):
        """A known tree is judged in rounds that do not pause only, and one judgement is not enough."""
        machine, controller = self.machine(), Controller()
        machine.run(controller, 200)
        machine.lookup, before = (1.0, 1.0), len(machine.log)
        machine.run(controller, 100)
        assert [row != ["-"] for row in machine.log[before:]].index(True) <= 5 * (LONGEST_PAUSE + 2)
        assert machine.run(controller, 100) > 2

    def test_a_new_text_ends_one(self):
        machine, controller = self.machine(), Controller()
        machine.run(controller, 200)
        assert any(controller.pauses(1) or machine.round(controller) for _ in range(LONGEST_PAUSE))
        controller.renew(1)
        assert not controller.pauses(1)

    def test_each_number_of_rows_has_its_own(self):
        controller = Controller()
        self.paused(self.machine(rows=4), controller, 200)
        self.machine(right=0.9).run(controller, 60)
        assert not any(self.paused(self.machine(right=0.9), controller, 60))
        assert any(self.paused(self.machine(rows=4), controller, LONGEST_PAUSE + 2))


class TestPassesWithoutPadding:
    """Of four rows, on a machine on which eight nodes cost no more than one, and each further one a fifth of that."""

    @staticmethod
    def machine(*, ragged: bool, right: float, rows: int = 4) -> Machine:
        def price(nodes: int) -> float:
            return 10 + 2 * max(0, (nodes if ragged else rows * nodes) - 8)

        machine = Machine(price, lookup=(0.15, right), rows=rows, depth=7)
        machine.ragged = ragged
        return machine

    def test_a_row_may_have_much_to_verify_where_the_others_have_nothing(self):
        packed, padded = (self.machine(ragged=ragged, right=0.97).run(Controller(), 512) for ragged in (True, False))
        assert packed > 1.2
        assert packed > padded + 0.1

    def test_rows_that_do_not_pay_for_their_nodes_are_left_out(self):
        controller = Controller()
        machine = self.machine(ragged=True, right=0.97)
        machine.run(controller, 128)
        good, poor = (
            Offer(source=source, depth=7, tree=TokenTree.chain([9, *[1] * 7])) for source in ("lookup/3", "poor")
        )
        for _ in range(8):
            controller.estimates.of(poor).judge(1, 0)
        first, *others = taken(controller, [[good], [poor], [poor], [poor]], ragged=True)
        assert first is not None
        assert others == [None, None, None]

    @pytest.mark.parametrize("ragged", [True, False])
    def test_one_row_tries_a_drafter_for_all(self, ragged):
        machine, controller = Machine(lambda nodes: 10 + nodes / 9, step=4, model=0.0, rows=4), Controller()
        machine.ragged = ragged
        machine.run(controller, 400)
        trials = [[choice != "-" for choice in row].count(True) for row in machine.log if set(row) != {"-"}]
        assert max(trials[2:]) == (1 if ragged else 4)

    @pytest.mark.parametrize("rows", [2, 4, 7])
    def test_never_slower(self, rows):
        machine = self.machine(ragged=True, right=0.0, rows=rows)
        assert machine.run(Controller(), 256) > 0.97


class TestRowsOfWhichSomeRepeatThemselves:
    """Four rows that nobody joins, on a machine on which twice the nodes take 1.4 times as long."""

    def speeds(
        self, rights: list[float], *, before: list[float] | None = None, deciding: float = 0.0, seeds: int = 6
    ) -> float:
        """Over plain decoding, of texts of 48 tokens, on average, each of them behind another where one is given."""
        price, found = Line(AVX2).of, []
        passes = {(rows, rows * share, 64): price(rows * share) for rows in (1, 4) for share in (1, 2, 4, 8, 16)}
        for seed in range(seeds):
            machine, controller = Machine(price, rows=4, depth=8, seed=seed), Controller(PriceList(passes, {}))
            machine.ragged, machine.deciding = True, deciding * price(4)
            for _ in range(4):
                for text in (before, rights):
                    if text is not None:
                        machine.lookup = [(0.9, right) for right in text]
                        controller.renew(4)
                        speed = machine.run_apart(controller, 48)
                found.append(speed)
        return fmean(found)

    @pytest.mark.parametrize("good", [1, 2, 3])
    def test_rows_that_get_ahead_of_the_last_one_are_not_paid_for(self, good):
        """By what their tokens promise, three such rows gain; the batch ends with the fourth, and lost 3 %."""
        assert self.speeds([0.85] * good + [0.0] * (4 - good)) > 0.98

    def test_what_the_last_text_gained_does_not_pay_for_asking_in_every_round_of_the_next(self):
        """Offering and choosing take 3 % of a round; a policy that goes on as it did where that paid loses 4.5 %."""
        assert self.speeds([0.0] * 4, before=[0.9] * 4, deciding=0.03) > 0.97

    def test_where_all_repeat_themselves_it_pays(self):
        assert self.speeds([0.85] * 4) > 1.15
