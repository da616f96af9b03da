"""Which rows the controller decides for, and what the others take."""

import pytest
import torch

from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.policy.prices import PriceList
from specstream.core.ports import DraftRequest, Offer, Verdict
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stopping import Stopping
from specstream.core.tree import TokenTree

PRICES = PriceList({(1, nodes, 64): 10 + 0.1 * nodes for nodes in (1, 2, 4, 8, 16)})
"""One row's passes, of which nodes are nearly free."""
HEADS = Offer(source="medusa", depth=2, ranked=((1, 0.9), (2, 0.8), (1, 0.05)))
KNOWN = Offer(source="lookup/3", depth=2, tree=TokenTree.chain([9, 1, 2]))
DOUBTED = TokenTree((9, 1, 2, 3), (-1, 0, 1, 0), survival=(1.0, 0.9, 0.8, 0.001))


def rows(count=1, *, repeats=False):
    found = start_rows([[1, 9]] * count, range(count), None, sampling=Sampling(), stopping=Stopping(max_new_tokens=9))
    for row in found:
        row.repeats = repeats
    return found


def requests(count=1):
    return [DraftRequest(tokens=[1, 9], depth=5, generator=torch.Generator()) for _ in range(count)]


def test_without_a_controller_the_first_offer_is_taken_as_deep_as_it_goes():
    (taken,) = Speculation(max_depth=5).choose(rows(), requests(), [[HEADS, KNOWN]])
    assert (taken.offer, taken.depth) == (HEADS, 2)
    (taken,) = Speculation(max_depth=5, unmeasured_steps=False).choose(rows(), requests(), [[HEADS, KNOWN]])
    assert (taken.offer, taken.depth) == (KNOWN, 2)
    (taken,) = Speculation(max_depth=5).choose(rows(), requests(), [[]])
    assert (taken.offer, taken.depth) == (None, 0)


def test_a_row_that_has_to_repeat_takes_its_first_offer_beside_one_that_is_decided_for():
    speculation = Speculation(max_depth=5, controller=Controller())  # which knows nothing, so takes nothing
    both = [*rows(repeats=True), *rows()]
    fixed, chosen = speculation.choose(both, requests(2), [[KNOWN], [KNOWN]])
    assert (fixed.offer, fixed.depth) == (KNOWN, 2)
    assert (chosen.offer, chosen.depth) == (None, 0)


def test_what_is_not_worth_a_pass_is_cut():
    speculation = Speculation(max_depth=5, controller=Controller(PRICES))
    (taken,) = speculation.choose(rows(), requests(), [[HEADS]])
    assert taken.offer is HEADS
    (cut,) = speculation.cut(rows(), [DOUBTED])
    assert cut.tokens == (9, 1, 2)
    assert Speculation(max_depth=5).cut(rows(), [DOUBTED]) == [DOUBTED]


@pytest.mark.parametrize("count", [1, 3])
def test_trees_of_rows_that_have_to_repeat_are_not_cut_by_the_plan_of_another_batch(count):
    speculation = Speculation(max_depth=5, controller=Controller(PRICES))
    speculation.choose(rows(), requests(), [[HEADS]])  # a plan, which was for others
    own = rows(count, repeats=True)
    speculation.choose(own, requests(count), [[HEADS]] * count)
    assert list(speculation.cut(own, [DOUBTED] * count)) == [DOUBTED] * count


def test_drafting_is_paid_for_though_all_of_it_was_cut():
    """A drafter that doubts all that it drafts costs its time in every round, and speculation ends."""
    controller = Controller(PriceList(PRICES.passes, {"medusa": {(1, 1): 3.0}}))
    speculation, own = Speculation(max_depth=5, controller=controller), rows()
    doubted = TokenTree((9, 1, 2, 3), (-1, 0, 1, 0), survival=(1.0, 0.01, 0.001, 0.001))
    drafted, same = 0, requests()
    for _ in range(64):
        asked = speculation.choose(own, same, [[HEADS]])
        trees = speculation.cut(own, [doubted] if asked[0].depth else [TokenTree.chain([9])])
        seconds = (3.0 if asked[0].depth else 0.0, 10 + 0.1 * len(trees[0]))
        drafted += bool(asked[0].depth)
        controller.observe([[HEADS]], asked, trees, [Verdict(path=(0,), tokens=(5,))], seconds)
    assert 1 <= drafted < 20
