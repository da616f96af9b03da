from __future__ import annotations

from types import SimpleNamespace

import pytest

from specstream.core.ports import Components, DraftSession, Offer, hidden_states_of
from specstream.core.tree import TokenTree
from specstream.drafters.medusa import MedusaDrafter
from specstream.drafters.streams import StreamsDrafter
from specstream.errors import UsageError
from tests.lossless.table_model import TableHeads, TableModel, TableStreams

MODEL = TableModel.random(3)


class Bare:
    """A session that shows no hidden states."""

    hidden_states = None


@pytest.mark.parametrize("drafter", [MedusaDrafter(TableHeads(MODEL)), StreamsDrafter(TableStreams(MODEL))])
def test_a_target_without_hidden_states_is_refused_by_name(drafter):
    with pytest.raises(UsageError, match=f"drafter is '{drafter.name}', which needs the target's hidden states"):
        drafter.begin([[1]], [None], Bare())


def test_hidden_states_are_the_sessions_own():
    session = MODEL.begin([[1]])
    assert hidden_states_of(session, "any") is session


@pytest.mark.parametrize(
    ("offer", "per_depth"),
    [
        (Offer(source="a", depth=3), (1, 1, 1)),
        (Offer(source="a", depth=2, branches=3), (3, 3)),
        (Offer(source="a", depth=3, tree=TokenTree((9, 1, 2, 3, 4), (-1, 0, 0, 1, 3))), (2, 1, 1)),
        (Offer(source="a", depth=2, tree=TokenTree.chain([9, 1, 2, 3]), counts=(4, 2), beside=1), (4, 2)),
    ],
)
def test_an_offer_says_how_many_nodes_there_are_at_each_depth(offer, per_depth):
    assert offer.per_depth == per_depth


def test_components_that_several_drafters_share_count_once():
    head, draft, other = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()
    union = Components.union(
        [Components(models=(draft,)), Components(heads=(head,), models=(draft, other)), Components(heads=(head,))]
    )
    assert (union.heads, union.models) == ((head,), (draft, other))


def test_a_session_that_misses_a_method_is_not_made():
    class Unfinished(DraftSession):
        def offers(self, requests):
            return []

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()
